"""A staged and committed install gives the same bytes as pip, and does not contain the path of the stage."""

from __future__ import annotations

import contextlib
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.venvs.pip_environment import PipEnvironment
from tests.support.wheels.tiny import EVERYTHING, OTHER, Project, digest

pytestmark = [pytest.mark.slow, pytest.mark.oldest_pip]
ON_EACH = pytest.mark.each_python


def tree(root: Path, *, without: str = "\0") -> dict[str, tuple[str, bytes]]:
    """Every file and directory below `root`: type and mode, and its content with `root` taken out."""
    found = {}
    for directory, directories, files in os.walk(root):
        for name in sorted(directories + files):
            path = Path(directory, name)
            status = path.lstat()
            content = b""
            if path.is_symlink():
                content = os.fsencode(os.readlink(path))
            elif stat.S_ISREG(status.st_mode) and path.suffix != ".pyc":
                content = path.read_bytes().replace(os.fsencode(root), b"ROOT")
            found[str(path.relative_to(root))] = (stat.filemode(status.st_mode), content)
    return {name: what for name, what in found.items() if without not in name}


def text(found: dict[str, tuple[str, bytes]]) -> str:
    return "\n".join(f"{name} {mode} {content!r}" for name, (mode, content) in sorted(found.items()))


@contextlib.contextmanager
def umask(mask: int):
    before = os.umask(mask)
    try:
        yield
    finally:
        os.umask(before)


@pytest.fixture
def alike(workspace, tmp_path):
    """Runs `do(env, run)` with safe-pip and with plain pip, in the same place; the trees it leaves must be alike.

    On return what `do` returned for each.
    """

    def compare(do, where="venv"):
        said, trees = [], []
        for tool in ("ours", "pips"):
            env = PipEnvironment.open(workspace, tmp_path / "env")
            env.add_to_index(EVERYTHING, OTHER)
            said.append(do(env, env.run if tool == "ours" else env.plain))
            trees.append(text(tree(env.directory / where, without=".safe-pip")))
            env.directory.rename(tmp_path / tool)
        assert trees[0] == trees[1]
        return said

    return compare


OWN = f"own.{sys.implementation.cache_tag}.pyc"


PACKAGE, SCHEME = "pack/__pycache__", "own-1.data/purelib/pack/__pycache__"


@pytest.mark.parametrize(
    ("place", "options"),
    [
        pytest.param(PACKAGE, (), marks=ON_EACH, id="plain"),
        pytest.param(SCHEME, (), id="scheme"),
        pytest.param(PACKAGE, ("--no-compile",), id="no-compile"),
        pytest.param(SCHEME, ("--no-cache-dir",), id="scheme-none"),
    ],
)
def test_bytecode_that_a_wheel_brings_is_compiled_over_or_left_as_pip_does(alike, tmp_path, place, options):
    code = "import pack.own; print(pack.own.__spec__.loader.get_code('pack.own').co_consts[0])"

    def install(env, run):
        env.more["XDG_CACHE_HOME"] = str(tmp_path / "cache")
        files = {"pack/own.py": "x = 42\n", f"{place}/{OWN}": b"their own", f"{place}/gone.x.pyc": b"without a source"}
        env.add_to_index(Project("own", files=files))
        for _ in range(2):
            run("install", "--force-reinstall", *options, "own")
        found = env.site / "pack" / "__pycache__"
        assert (found / "gone.x.pyc").read_bytes() == b"without a source"
        if "--no-compile" in options:
            assert (found / OWN).read_bytes() == b"their own"
            return (env.site / "own-1.dist-info" / "RECORD").read_bytes()
        assert (found / OWN).read_bytes() != b"their own"
        done = subprocess.run(
            [env.venv.python, "-v", "-c", code], env=env.variables, capture_output=True, text=True, check=True
        )
        assert done.stdout == "42\n"
        assert f"{OWN} matches " in done.stderr
        return (env.site / "own-1.dist-info" / "RECORD").read_bytes()

    said = alike(install)
    assert said[0] == said[1]


@pytest.mark.parametrize("mask", [pytest.param(0o022, marks=ON_EACH), 0o002, 0o077], ids=oct)
def test_every_file_is_as_pip_would_have_left_it(alike, mask):
    def install(env, run):
        run("install", "every-thing", "other")
        run("install", "--force-reinstall", "--no-deps", "other")

    with umask(mask):
        alike(install)


@pytest.mark.parametrize(
    "options",
    [
        ("--no-compile",),
        ("--prefix", "there"),
        ("--root", "there"),
        pytest.param(("--target", "there"), marks=ON_EACH),
        ("--target", "a/b/there"),
    ],
    ids=" ".join,
)
def test_so_it_is_with_every_option_that_chooses_where(alike, options):
    where = options[1].split("/")[0] if len(options) > 1 else "venv"
    alike(lambda env, run: run("install", "--ignore-installed", *options, "every-thing", "other"), where)


@pytest.mark.each_python
def test_an_upgrade_and_an_uninstall_leave_the_directories_that_pip_leaves(alike):
    """Those above are an administrator's. A header directory goes with the headers."""

    def change(env, run):
        made = env.directory / "venv/etc/site/conf.d"
        made.mkdir(parents=True)
        made.parent.chmod(0o2775)
        files = {"thing.py": "", "thing-1.data/headers/thing.h": "", "thing-1.data/data/etc/site/conf.d/thing": ""}
        env.add_to_index(Project("thing", "1", files=files), Project("thing", "2"))
        run("install", "thing==1")
        run("install", "thing==2")
        run("install", "thing==1")
        run("uninstall", "-y", "thing")

    alike(change)


@pytest.mark.each_python
def test_so_it_is_for_a_user(alike):
    def install(env, run):
        python = Path(sys.base_prefix, "bin", "python{}.{}".format(*sys.version_info))
        base = env.directory / "base"
        variables = env.variables | {"PYTHONPATH": str(env.site), "PYTHONUSERBASE": str(base)}
        module = "safe_pip" if run == env.run else "pip"
        arguments = ["-m", module, "install", "--user", "--break-system-packages", "every-thing", "other"]
        subprocess.run([python, *arguments], env=variables, check=True, cwd=env.directory, capture_output=True)

    alike(install, "base")


@pytest.mark.each_python
def test_where_a_distribution_came_from_and_whether_it_was_asked_for_is_recorded(alike):
    def install(env, run):
        needing = Project("needing", "1", requires=("other",))
        env.add_to_index(needing)
        run("install", f"needing @ {(env.index / needing.wheel_name).as_uri()}")
        info = env.site / "needing-1.dist-info"
        assert (info / "REQUESTED").read_bytes() == b""
        assert not (env.site / "other-1.dist-info" / "REQUESTED").exists()
        assert needing.wheel_name in (info / "direct_url.json").read_text()

    alike(install)


def test_nothing_that_is_installed_names_the_stage(env):
    env.add_to_index(EVERYTHING, OTHER)
    env.run("install", "every-thing", "other")
    for path in env.venv.path.rglob("*"):
        if path.is_file() and ".safe-pip" not in path.parts and "safe_pip" not in str(path):
            assert b".safe-pip" not in path.read_bytes(), path
            assert b"stub-stage" not in path.read_bytes(), path


@pytest.mark.each_python
def test_a_traceback_shows_the_installed_path(env):
    env.add_to_index(EVERYTHING)
    env.run("install", "every-thing")
    compiled = env.site / "every" / "__pycache__" / f"__init__.{sys.implementation.cache_tag}.pyc"
    before = compiled.stat()
    done = subprocess.run([env.venv.scripts / "every"], capture_output=True, text=True, env=env.variables)
    assert f'File "{env.site}/every/__init__.py", line 2, in fail\n    raise ValueError' in done.stderr
    assert compiled.stat().st_ino == before.st_ino, "the compiled file was not valid for its source"


@pytest.mark.each_python
def test_scripts_that_are_not_on_the_path_are_named_where_they_are(alike):
    def install(env, run):
        env.more["PATH"] = os.defpath
        return run("install", "--root", "there", "--ignore-installed", "every-thing").stderr

    ours, pips = alike(install)
    assert "is installed in" in ours
    assert ours == pips


@pytest.mark.parametrize("options", [(), ("--no-cache-dir",), ("--target", "venv/there")], ids=" ".join)
def test_a_wheel_that_differs_from_its_record_is_installed_as_by_pip_and_a_changed_file_told(alike, options):
    """RECORD lists a directory, leaves out most files, and has another digest of one."""
    rows = f"wrong/,{digest(b'')},0\nwrong/__init__.py,{digest(b'other')},5\nwrong-1.dist-info/RECORD,,\n"
    files = {"wrong/__init__.py": "", "wrong/left_out.py": "", "wrong-1.dist-info/RECORD": rows}
    told = "`wrong-1-py3-none-any.whl` is not what its RECORD says: `wrong/__init__.py` has another digest"

    def install(env, run):
        env.add_to_index(Project("wrong", "1", files=files))
        if run == env.run:
            before = text(tree(env.venv.path, without=".safe-pip"))
            for before_command, variable in (((), "record"), (("--verify=record",), "none")):
                done = run(*before_command, "install", *options, "wrong", status=1, SAFE_PIP_VERIFY=variable)
                assert f"error: {told}, " in done.stderr
                assert done.stderr.endswith("Nothing was changed\n")
            assert text(tree(env.venv.path, without=".safe-pip")) == before
        said = run("install", *options, "wrong").stderr
        if run == env.run:
            assert f"safe-pip: {told}" in said.splitlines()
            again = run("install", "-v", "--force-reinstall", "--upgrade", *options, "wrong")
            assert "`wrong/left_out.py` is not listed" in again.stderr
        return options or (env.site / "wrong-1.dist-info" / "RECORD").read_bytes()

    ours, pips = alike(install)
    assert ours == pips


@pytest.mark.each_python
def test_a_directory_that_a_record_lists_goes_only_if_nothing_else_is_in_it(env):
    rows = "listed/,,\nlisted/__init__.py,,\nlisted-1.dist-info/METADATA,,\nlisted-1.dist-info/RECORD,,\n"
    env.add_to_index(
        Project("listed", "1", files={"listed/__init__.py": "", "listed-1.dist-info/RECORD": rows}),
        Project("listed", "2", files={"listed/__init__.py": "2"}),
    )
    env.run("install", "listed==1")
    assert "damaged" not in env.run("doctor").stdout
    (env.site / "listed" / "mine.txt").write_text("mine")
    env.run("install", "listed==2")
    env.run("install", "listed==1")
    env.run("uninstall", "-y", "listed")
    assert os.listdir(env.site / "listed") == ["mine.txt"]
    env.run("install", "listed==1")
    (env.site / "listed" / "mine.txt").unlink()
    env.run("uninstall", "-y", "listed")
    assert not (env.site / "listed").exists()


def test_a_wheel_that_leads_out_of_its_place_is_refused_in_pips_words(alike):
    def install(env, run):
        env.add_to_index(Project("evil", "1", files={"../../outside.py": "", "evil.py": ""}))
        return run("install", "evil", status=1).stderr

    ours, pips = alike(install)
    assert "trying to install outside the target directory" in ours
    assert ours == pips


@pytest.mark.each_python
def test_an_uninstall_leaves_nothing(env):
    def files():
        found = tree(env.venv.path, without=".safe-pip")
        # pip leaves empty directories outside of site-packages.
        return text({name: what for name, what in found.items() if "site-packages" in name or what[0][0] != "d"})

    env.add_to_index(EVERYTHING, OTHER)
    before = files()
    env.run("install", "every-thing", "other")
    subprocess.run([env.venv.python, "-OO", "-c", "import every, nspace.part"], check=True)
    env.run("uninstall", "-y", "every-thing")
    assert (env.site / "nspace" / "other" / "__init__.py").exists()
    assert (env.venv.path / "share" / "every" / "two").exists()
    env.run("uninstall", "-y", "other")
    assert files() == before


@pytest.mark.each_python
def test_one_wheel_that_fails_leaves_the_others_as_they_were(env):
    env.add_to_index(Project("aproject", "1"))
    env.run("install", "aproject")
    before = text(tree(env.venv.path, without=".safe-pip"))
    env.add_to_index(Project("aproject", "2"), Project("zproject", "1", console_scripts={"broken": "no-function"}))
    process = env.start("install", "--upgrade", "aproject", "zproject")
    said, complained = process.communicate()
    # From Python 3.15 on the words are those of `importlib.metadata`.
    assert "broken = no" in complained or "'no-function'" in complained
    assert process.returncode in (1, 2)  # before pip 26 it was an error that pip did not expect
    assert "uninstall" not in said
    assert text(tree(env.venv.path, without=".safe-pip")) == before


def test_with_v_a_file_that_is_overwritten_is_named_with_its_owner(env):
    env.add_to_index(
        Project("aproject", "1", files={"shared.py": "a = 1\n", "aproject.py": ""}),
        Project("bproject", "1", files={"shared.py": "b = 1\n", "nobodys.py": "b = 1\n"}),
    )
    env.run("install", "aproject")
    (env.site / "nobodys.py").write_text("n = 1\n")
    said = env.run("install", "-v", "bproject").stderr
    assert f"`{env.site}/shared.py` of `aproject` was overwritten" in said
    assert f"`{env.site}/nobodys.py`, which no distribution owned, was overwritten" in said
    assert (env.site / "shared.py").read_text() == "b = 1\n"


@pytest.mark.each_python
def test_the_metadata_of_legacy_installs_goes_with_their_lines_in_pth_files(env):
    checkouts = []
    for name in ("legacy_one", "legacy_two"):
        checkout = env.directory / name
        (checkout / f"{name}.egg-info").mkdir(parents=True)
        (checkout / f"{name}.egg-info" / "PKG-INFO").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1\n")
        (env.site / f"{name.replace('_', '-')}.egg-link").write_text(f"{checkout}\n.")
        checkouts.append(checkout)
    egg = env.site / "anegg-1-py3.egg"
    (egg / "EGG-INFO").mkdir(parents=True)
    (egg / "EGG-INFO" / "PKG-INFO").write_text("Metadata-Version: 2.1\nName: anegg\nVersion: 1\n")
    (egg / "anegg.py").write_text("")
    pth = env.site / "easy-install.pth"
    pth.write_text("".join(f"{checkout}\n" for checkout in checkouts) + f"./{egg.name}\n/elsewhere\n")
    pth.chmod(0o640)
    done = env.run("-v", "uninstall", "-y", "legacy_one", "anegg")
    assert f"Removing pth entries from {pth}:" in done.stdout
    assert pth.read_text() == f"{checkouts[1]}\n/elsewhere\n"
    assert stat.S_IMODE(pth.stat().st_mode) == 0o640
    assert not egg.exists()
    assert not (env.site / "legacy-one.egg-link").exists()
    assert (env.site / "legacy-two.egg-link").exists()
    assert (checkouts[0] / "legacy_one.egg-info").exists()


@pytest.mark.each_python
def test_a_distribution_without_metadata_of_ours_is_removed_by_its_list_of_files(env):
    info = env.site / "flat-1.egg-info"
    info.mkdir()
    (info / "PKG-INFO").write_text("Metadata-Version: 2.1\nName: flat\nVersion: 1\n")
    (info / "top_level.txt").write_text("flat\n")
    (info / "installed-files.txt").write_text("../flat/__init__.py\nPKG-INFO\ntop_level.txt\ninstalled-files.txt\n")
    (env.site / "flat").mkdir()
    (env.site / "flat" / "__init__.py").write_text("")
    env.run("uninstall", "-y", "flat")
    assert not info.exists()
    assert not (env.site / "flat").exists()


class TestTarget:
    """`--target`: what is there stays, or is replaced whole."""

    ONE = Project("aproject", "1", files={"apackage/__init__.py": "v = 1\n", "apackage/old.py": "", "only1.py": ""})
    TWO = Project("aproject", "2", files={"apackage/__init__.py": "v = 2\n", "only2.py": ""})

    def listed(self, env: PipEnvironment) -> list[str]:
        return sorted(path.name for path in (env.directory / "there").iterdir() if path.name != "__pycache__")

    def test_another_version_replaces_a_project_as_a_whole(self, env):
        env.add_to_index(self.ONE)
        env.run("install", "--target", "there", "aproject==1")
        env.add_to_index(self.TWO)
        env.run("install", "--target", "there", "--upgrade", "aproject==2")
        assert self.listed(env) == ["apackage", "aproject-2.dist-info", "only2.py"]
        assert not (env.directory / "there" / "apackage" / "old.py").exists()

    def test_without_upgrade_a_project_that_is_there_stays_as_a_whole(self, env):
        env.add_to_index(self.ONE)
        env.run("install", "--target", "there", "aproject==1")
        env.add_to_index(self.TWO)
        before = text(tree(env.directory / "there"))
        done = env.run("install", "--target", "there", "aproject==2")
        for name in ("apackage", "aproject-1.dist-info"):
            there = env.directory / "there" / name
            assert f"Target directory {there} already exists. Specify --upgrade to force replacement." in done.stderr
        assert text(tree(env.directory / "there")) == before

    def test_missing_files_are_added_beside_existing_ones_as_pip_does(self, alike):
        def install(env, run):
            run("install", "--target", "there", "every-thing")
            return run("install", "--target", "there", "every-thing", "other").stderr

        ours, pips = alike(install, "there")
        assert sorted(ours.splitlines()) == sorted(pips.splitlines())

    def test_an_upgrade_replaces_entries_whole_as_pip_does(self, alike):
        def install(env, run):
            run("install", "--target", "there", "every-thing")
            (env.directory / "there" / "every" / "mine").write_text("")
            (env.directory / "there" / "module.py").unlink()
            (env.directory / "there" / "module.py").symlink_to("pure.py")
            return run("install", "--target", "there", "--upgrade", "every-thing").stderr

        ours, pips = alike(install, "there")
        assert "is a link" in ours
        assert ours == pips
