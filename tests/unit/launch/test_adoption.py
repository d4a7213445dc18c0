"""The file that makes `pip` be safe-pip: which starts it is about, and what it says of itself."""

import runpy
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

import safe_pip
from safe_pip.commands import adopt
from safe_pip.commands.environments import Context, Place, until_current
from safe_pip.launch import adoption
from safe_pip.launch.adoption import Adoption
from safe_pip.launch.settings import Settings
from safe_pip.locking import flock
from safe_pip.messages import Reporter

PACKAGE = Path(safe_pip.__file__).parent
HOOK = runpy.run_path(str(PACKAGE / "_hook.py"))
is_pip, was_removed = HOOK["is_pip"], HOOK["was_removed"]
WRAPPER = "#!/usr/bin/python3\nimport sys\nfrom pip._internal.cli.main import cli\nsys.exit(cli())\n"


def is_likely(argv: list[str], orig_argv: list[str]) -> bool:
    """What the line decides at every start, with no more than it sees there."""
    line = Adoption(Path("/tree"), Path("/home")).content()[adoption.NAME].decode().splitlines()[-1]
    test = line.removeprefix("import sys; ").partition(" and exec(")[0]
    return bool(eval(test, {"sys": SimpleNamespace(argv=argv, orig_argv=orig_argv)}))


def write(wanted: Adoption) -> None:
    for name, content in wanted.content().items():
        (wanted.tree / name).write_bytes(content)


@pytest.mark.parametrize(
    "words",
    [
        ["-m", "pip"],
        ["-mpip", "list"],
        ["-I", "-m", "pip", "install", "-m", "x"],
        ["-Impip", "list"],
        ["-W", "ignore", "-Xutf8", "-sm", "pip"],
        ["-m", "pip.__main__", "list"],
    ],
)
def test_every_spelling_of_the_module_is_pip(words):
    place = next(number for number, word in enumerate(words) if "pip" in word)
    argv = ["-m", *words[place + 1 :]]
    assert is_likely(argv, ["python", *words])
    assert is_pip(argv, words[place], "/tree")


@pytest.mark.parametrize("word", ["pipx", "pip_audit", "-mpipx", "-mxpip", "xpip", "pip._vendor.rich", "pytest"])
def test_another_module_is_not(word):
    assert not is_pip(["-m"], word, "/tree")


@pytest.mark.parametrize("name", ["pip", "pip3", "pip3.13", "pip-3.13"])
def test_the_scripts_that_installers_make_for_pip_are_pip(tmp_path, name):
    script = tmp_path / name
    script.write_text(WRAPPER)
    argv = [str(script), "list"]
    assert is_likely(argv, ["python", *argv])
    assert is_pip(argv, str(script), "/tree")


@pytest.mark.parametrize(
    ("name", "text"),
    [("pip-compile", WRAPPER), ("pipx", WRAPPER), ("pip", "print('mine')"), ("pip.py", WRAPPER), ("xpip", WRAPPER)],
)
def test_another_script_is_not(tmp_path, name, text):
    (tmp_path / name).write_text(text)
    assert not is_pip([str(tmp_path / name)], str(tmp_path / name), "/tree")


def test_a_directory_is_pip_if_it_is_the_one_of_the_environment(tmp_path):
    for name in ("tree", "other"):
        (tmp_path / name / "pip").mkdir(parents=True)
    tree, other = str(tmp_path / "tree" / "pip"), str(tmp_path / "other" / "pip")
    for program in ("", "/__main__.py"):
        assert is_pip([tree + program], tree + program, str(tmp_path / "tree"))
        assert not is_pip([other + program], other + program, str(tmp_path / "tree"))


@pytest.mark.parametrize("name", ["my-pip", "pip-of-tools", "pipx"])
def test_a_link_to_a_script_of_pip_is_pip_whatever_its_name(tmp_path, name):
    (tmp_path / "pip3").write_text(WRAPPER)
    link = tmp_path / name
    link.symlink_to("pip3")
    argv = [str(link), "list"]
    assert is_likely(argv, ["python", *argv])
    assert is_pip(argv, str(link), "/tree")


@pytest.mark.parametrize(
    ("argv", "orig_argv"),
    [
        ([""], ["python"]),
        (["-c"], ["python", "-c", "import pip; print(list(pip.__path__), sep=str())"]),
        (["-c", "pip"], ["python", "-c", "print()", "pip"]),
        (["/x/setup.py", "pip"], ["python", "/x/setup.py", "pip"]),
        ([], []),
        (["one", "more"], ["python"]),
    ],
)
def test_most_other_starts_are_told_by_the_line_alone(argv, orig_argv):
    assert not is_likely(argv, orig_argv)


def test_code_given_on_the_command_line_is_never_pip():
    assert not is_pip(["-c"], "import pip", "/tree")
    assert not is_pip(["-c"], "pip", "/tree")


@pytest.mark.parametrize("home", ["/opt/safe_pip", "/opt/o'\"\\x\n\u20ac/safe_pip", "/opt/\udcff/safe_pip"])
def test_an_adoption_is_found_as_it_was_written_whatever_the_path(tmp_path, home):
    wanted = Adoption(tmp_path, Path(home))
    write(wanted)
    assert adoption.find(tmp_path) == wanted
    for name, content in wanted.content().items():
        assert name.endswith(".start") or compile(content, name, "exec")
    assert not wanted.works


def test_a_safe_pip_in_the_tree_is_named_relative_to_it(tmp_path):
    (tmp_path / "safe_pip").mkdir()
    (tmp_path / "safe_pip" / "_runner.py").touch()
    wanted = adoption.wanted(tmp_path)
    assert wanted == Adoption(tmp_path, tmp_path / "safe_pip")
    assert str(tmp_path) not in repr(wanted.content())
    write(wanted)
    assert adoption.find(tmp_path) == wanted
    assert wanted.works


@pytest.mark.parametrize(
    ("python", "has_line", "has_module"),
    [("python3.10", True, False), ("python3.17t", True, False), ("python3.18", False, True), ("python3", True, True)],
)
def test_a_tree_gets_the_files_that_its_python_runs(tmp_path, python, has_line, has_module):
    tree = tmp_path / python / "site-packages"
    tree.mkdir(parents=True)
    wanted = Adoption(tree, PACKAGE)
    found = {name: content.decode() for name, content in wanted.content().items()}
    assert ("import sys" in found.pop(adoption.NAME)) == has_line
    if not has_module:
        assert not found
        return
    # A commit puts names in by their order, and takes them away in reverse: the module is there when it is named.
    assert sorted(found) == ["_safe_pip_adopted.py", "safe-pip-adopted.start"]
    assert found["safe-pip-adopted.start"].splitlines()[1:] == ["_safe_pip_adopted:start"]
    write(wanted)
    assert adoption.find(tree) == wanted
    runpy.run_path(str(tree / "_safe_pip_adopted.py"))["start"]()
    (tree / "safe-pip-adopted.start").unlink()
    assert adoption.find(tree) is None


def test_without_the_first_file_the_others_do_nothing(tmp_path, monkeypatch):
    wanted = Adoption(tmp_path, PACKAGE)
    write(wanted)
    monkeypatch.setattr(sys, "argv", ["-m"])
    monkeypatch.setattr(sys, "orig_argv", ["python", "-m", "pip"])
    monkeypatch.setattr(sys, "meta_path", [])
    start = runpy.run_path(str(tmp_path / "_safe_pip_adopted.py"))["start"]
    for there in (True, False, True):
        sys.meta_path.clear()
        wanted.file.touch() if there else wanted.file.unlink()
        start()
        start()
        assert len(sys.meta_path) == there


def test_any_other_tree_gets_the_safe_pip_that_is_running(tmp_path):
    assert adoption.wanted(tmp_path) == Adoption(tmp_path, PACKAGE)


def test_it_tells_where_the_pip_is_that_its_safe_pip_runs_unless_that_lies_beside_it(tmp_path):
    wanted = adoption.wanted(tmp_path, Path("/host/\udcff"))
    assert wanted == Adoption(tmp_path, PACKAGE, Path("/host/\udcff"))
    write(wanted)
    assert adoption.find(tmp_path) == wanted
    for unknown in (None, tmp_path):  # `python -m pip adopt`, run in the environment itself
        assert adoption.wanted(tmp_path, unknown) == wanted
    assert adoption.wanted(tmp_path, PACKAGE.parent) == Adoption(tmp_path, PACKAGE)


def test_a_file_that_is_not_ours_is_no_adoption(tmp_path):
    (tmp_path / adoption.NAME).write_text("import sys\n")
    assert adoption.find(tmp_path) is None
    (tmp_path / adoption.NAME).write_bytes(b"\xff\n\n")
    assert adoption.find(tmp_path) is None


def test_a_python_that_has_no_orig_argv_does_nothing(tmp_path):
    line = Adoption(tmp_path, PACKAGE).content()[adoption.NAME].decode().splitlines()[-1]
    test = line.removeprefix("import sys; ").partition(" and exec(")[0]
    assert not eval(test, {"sys": SimpleNamespace(argv=["-m"])})


def test_the_program_calls_itself_as_it_was_called(monkeypatch):
    from safe_pip.pip_seams.seams import program

    for called, name in (
        ("/tree/pip/__main__.py", f"{sys.executable} -m pip"),
        ("/tree/safe_pip/__main__.py", f"{sys.executable} -m safe_pip"),
        ("/bin/pip3", "pip3"),
    ):
        monkeypatch.setattr(sys, "argv", [called])
        assert program() == name


@pytest.mark.skipif(not flock.supported, reason="there are no locks here")
def test_a_file_that_comes_and_goes_again_while_it_is_written_is_looked_at_once_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tree = tmp_path / "prefix" / "lib" / f"python3.{sys.version_info[1]}" / "site-packages"
    tree.mkdir(parents=True)
    found, contents = iter([{}, {adoption.NAME: b"another one's"}, {}]), adoption.contents
    monkeypatch.setattr(adoption, "contents", lambda tree: next(found) if found.__length_hint__() else contents(tree))
    place = Place.find(str(tmp_path / "prefix"), Context(Settings(lock_timeout=0), Reporter()))
    assert until_current(lambda: adopt.change(place, place.trees[0], is_adopted=True)) is not None
    assert (tree / adoption.NAME).is_file()


def test_a_safe_pip_was_removed_if_neither_it_nor_its_metadata_is_there(tmp_path):
    home = tmp_path / "site" / "safe_pip"
    assert was_removed(str(home))
    home.parent.mkdir()
    assert was_removed(str(home))
    (home.parent / "parallel_safe_pip-1.dist-info").mkdir()
    assert not was_removed(str(home)), "it is being replaced"
    (home.parent / "parallel_safe_pip-1.dist-info").rmdir()
    home.mkdir()
    (home / "_runner.py").touch()
    assert not was_removed(str(home))
    (home / "_runner.py").unlink()
    (home / "_runner.py").symlink_to("_runner.py")
    assert not was_removed(str(home)), "it is damaged"
