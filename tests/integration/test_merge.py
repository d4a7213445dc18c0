"""`safe-pip merge` and `unmerge` as real processes: many at once, killed, refused, beside installs."""

from __future__ import annotations

import functools
import json
import os
import pwd
import random
import shutil
import stat
import subprocess
import sys
import sysconfig
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from safe_pip.errors import UnusableEnvironment
from tests.support.faults import disk
from tests.support.faults.mounts import as_root, read_only, tmpfs
from tests.support.faults.transaction import Link
from tests.support.pages import Page, shell
from tests.support.processes import forks
from tests.support.processes.watching import Happened, Watch, wait_for_end
from tests.support.processes.workers import LIMIT, workers
from tests.support.trees.prefixes import SITE, MergePrefix, distribution, exact, run, stage, start
from tests.support.venvs.checker import check, installed
from tests.support.venvs.pip_environment import PipEnvironment
from tests.support.wheels.tiny import Project

pytestmark = pytest.mark.slow

TWENTY, AT_ONCE = 20, 16
VERSION = f"lib/python{sys.version_info[0]}.{sys.version_info[1]}/site-packages"
COMMON = ("bin", "include/sub", "lib/pkgconfig", VERSION, f"{VERSION}/namespace", "share/doc", "share/man/man1")


def twenty(directory: Path) -> list[Path]:
    """Twenty staged trees: all their parents are common, none of their files."""
    return [
        stage(
            directory / f"staged-{number}",
            {f"{parent}/file-{number}": f"{parent} {number}\n" for parent in COMMON}
            | {f"share/doc/own-{number}/README": "", f"var/empty-{number}": None, f"share/link-{number}": Link("doc")},
        )
        for number in range(TWENTY)
    ]


def everything(trees: list[Path]) -> dict[str, tuple[str, ...]]:
    """What all trees together hold; times of common directories are left out."""
    found: dict[str, tuple[str, ...]] = {}
    for tree in trees:
        found |= {path: said[:4] for path, said in exact(tree).items()}
    return found


def test_twenty_trees_with_common_parents_are_merged_by_sixteen_processes_at_once(tmp_path: Path) -> None:
    trees, prefix = twenty(tmp_path), tmp_path / "not/there/yet"
    (tmp_path / "manifests").mkdir()
    with ThreadPoolExecutor(AT_ONCE) as pool:

        def merge(number: int) -> None:
            manifest = tmp_path / f"manifests/{number}"
            run("merge", trees[number], "--into", prefix, "--on-conflict", "fail", "--manifest", manifest)

        list(pool.map(merge, range(TWENTY)))
        assert {path: said[:4] for path, said in exact(prefix).items()} == everything(trees)
        assert not [*prefix.rglob(".safe-pip*")]
        list(pool.map(lambda number: run("unmerge", tmp_path / f"manifests/{number}"), range(TWENTY)))
    assert not prefix.exists(), "it goes with the last of them"
    assert prefix.parent.is_dir()


def test_all_of_them_go_into_an_environment_while_distributions_come_and_go_in_it(
    env: PipEnvironment, tmp_path: Path
) -> None:
    trees = twenty(tmp_path / "trees")
    projects = [
        Project(name, version, data={f"share/doc/{name}": version}, files={f"namespace/{name}.py": version})
        for name in ("alpha", "beta")
        for version in ("1", "2")
    ]
    env.add_to_index(*projects)
    before = installed(env.venv)
    commands = [["merge", tree, "--into", env.venv.path] for tree in trees[:20]]
    for version in ("1", "2", "1", "2"):
        commands += [["install", f"alpha=={version}"], ["install", f"beta=={version}"]]
    random.Random(1).shuffle(commands)
    with ThreadPoolExecutor(AT_ONCE) as pool:
        list(pool.map(lambda words: env.run(*words), commands))
    assert installed(env.venv).keys() == {*before, "alpha", "beta"}
    found, merged = exact(env.venv.path), everything(trees[:20])
    assert all(found[path][:4] == said for path, said in merged.items() if said[0] != "d")
    # What was merged belongs to no distribution.
    strange = [each for each in check(env.venv, env.variables) if each.detail not in merged]
    assert strange == []
    assert MergePrefix(env.venv.path).private() == []


def test_the_commands_of_the_page_unload_twenty_packages_at_once_and_take_one_away(
    env: PipEnvironment, tmp_path: Path
) -> None:
    page = Page.read("destdir")
    page.save(env.directory)
    packages = env.directory / "packages"
    names = ["one", *(f"package-{number}" for number in range(TWENTY - 1))]
    for name in names:
        files = [f"{parent}/{name}" for parent in COMMON]
        lines = [f"\tmkdir -p $(DESTDIR)$(prefix)/{os.path.dirname(each)}" for each in files]
        lines += [f"\techo {name} > $(DESTDIR)$(prefix)/{each}" for each in files]
        stage(packages / name, {"Makefile": "\n".join(["install:", *lines, ""])})
    env.activate()
    shell(page.commands[0], env.directory, env.variables)
    local = env.directory / "local"
    wanted = {f"{parent}/{name}" for parent in COMMON for name in names}
    assert {str(path.relative_to(local)) for path in local.rglob("*") if path.is_file()} == wanted
    again = packages / "one/Makefile"
    again.write_text(again.read_text().replace("bin/one", "bin/another"))
    shell(page.commands[1], env.directory, env.variables)
    wanted = {*wanted - {"bin/one"}, "bin/another"}
    assert {str(path.relative_to(local)) for path in local.rglob("*") if path.is_file()} == wanted
    shell("".join(page.commands[2:]), env.directory, env.variables)
    wanted -= {f"{parent}/one" for parent in COMMON} | {"bin/another"}
    assert {str(path.relative_to(local)) for path in local.rglob("*") if path.is_file()} == wanted


# Killed.


def big(version: str) -> dict[str, str | Link | None]:
    """A tree with something of everything; much of it is another in each version."""
    files = {f"share/big/{number % 7}/{number}.txt": version for number in range(60)}
    files |= {f"bin/tool-{number}": version for number in range(5)} | {f"share/big/only-{version}": ""}
    modules = {f"{SITE}/big/module_{number}.py": f"x = {version}{'0' * int(version)}\n" for number in range(20)}
    return {**distribution("big", version, {**files, **modules}), "lib/libbig.so": Link(f"libbig.so.{version}")}


def test_a_merge_succeeds_although_its_output_cannot_be_written(tmp_path: Path) -> None:
    stage(tmp_path, {"tree/bin/x": ""})
    reading, writing = os.pipe()
    os.close(reading)
    try:
        for verb in (["merge", "tree", "--into", "prefix", "--manifest", "m"], ["unmerge", "m"]):
            done = subprocess.run(
                [sys.executable, "-m", "safe_pip", *verb],
                cwd=tmp_path,
                stdout=writing,
                stderr=subprocess.PIPE,
                text=True,
            )
            assert (done.returncode, done.stderr.count("\n")) == (0, 1), done.stderr
            assert "standard output could not be written" in done.stderr
            assert (tmp_path / "prefix/bin/x").exists() == (verb[0] == "merge")
    finally:
        os.close(writing)


@pytest.mark.parametrize("verb", ["merge", "upgrade", "unmerge"])
def test_killed_at_any_moment_it_is_all_there_or_not_at_all_for_the_next_command(
    tmp_path: Path, verb: str, seed: int
) -> None:
    chances = random.Random(seed)
    prefix, manifest = MergePrefix(tmp_path / "prefix"), tmp_path / "manifest"
    one, two = stage(tmp_path / "1", big("1")), stage(tmp_path / "2", big("2"))
    other = {"bin/other": "", f"{SITE}/other.py": "", "share/big/other": ""}
    prefix.merge(stage(tmp_path / "other", other))
    (prefix.path / "bin/python3").touch()  # from now on it is an environment: its locks stay
    prefix.merge(one, manifest=manifest)
    pristine, noted = tmp_path / "pristine", manifest.read_bytes()
    if verb == "merge":
        prefix.unmerge(manifest)
    shutil.copytree(prefix.path, pristine, symlinks=True)
    words = {"merge": ("merge", one), "upgrade": ("merge", two), "unmerge": ("unmerge", manifest)}[verb]
    words = (*words, "--into", prefix.path) if verb != "unmerge" else words
    old = prefix.content()
    run(*words)
    new = prefix.content()
    state = prefix.path / SITE / ".safe-pip"
    killed = 0
    for _ in range(5):
        shutil.rmtree(prefix.path)
        shutil.copytree(pristine, prefix.path, symlinks=True)
        manifest.write_bytes(noted)
        moment, delay = chances.choice(["", ".owner", ".journal", ".journal", ".committed"]), chances.uniform(0, 0.03)
        with Watch(state) as watch:
            process = start(*words)
            if moment:
                is_it = functools.partial(_is_named, moment)
                watch.wait(process, is_it, LIMIT, is_awake=moment == ".journal")
            if not wait_for_end(process, delay if moment else delay * 10):
                process.kill()
            process.communicate()
        killed += process.returncode != 0
        run("merge", stage(tmp_path / "next", {"next": "next"}), "--into", prefix.path)
        found = prefix.content()
        assert found.pop("next", None)
        assert _files(found) in (_files(old), _files(new)), (moment, delay)
        assert prefix.private() == []
        if verb != "unmerge":
            run(*words)
            assert {path: said for path, said in prefix.content().items() if path != "next"} == new
    assert killed


def _is_named(suffix: str, happened: Happened) -> bool:
    return happened[1].endswith(suffix)


def _files(content: dict[str, str]) -> dict[str, str]:
    """The content without directories: a directory may stay empty if the command that removes it is killed."""
    return {path: said for path, said in content.items() if said[0] != "d"}


@pytest.fixture(params=[False, True], ids=["plain", "with site-packages"])
def left(request: pytest.FixtureRequest, tmp_path: Path) -> MergePrefix:
    """A prefix, with or without a site-packages, in which a merge has died just before it was committed."""
    files = {"bin/x": "", **({f"{SITE}/x.py": ""} if request.param else {})}
    staged = stage(tmp_path / "staged", {"bin/y": "", "share/z": "", "include/h.h": ""})
    with disk.record() as changes:
        MergePrefix(stage(tmp_path / "first", files)).merge(staged)
    committed = [change.path.endswith(".committed") for change in changes].index(True)
    prefix = MergePrefix(stage(tmp_path / "prefix", files))
    with pytest.raises(disk.Crashed), disk.crash_at(committed):
        prefix.merge(staged)
    assert (prefix.path / "share/z").exists()
    return prefix


def is_as_it_was(prefix: MergePrefix) -> bool:
    return {path for path, said in prefix.content().items() if said[0] != "d"} <= {"bin/x", f"{SITE}/x.py"}


def test_the_next_command_of_any_kind_undoes_what_a_killed_merge_left(left: MergePrefix) -> None:
    run("run", "--shared", "--env", left.path, "--", "true")
    assert is_as_it_was(left)


def test_doctor_shows_and_repairs_leftovers_of_a_killed_merge(left: MergePrefix) -> None:
    status = json.loads(run("status", "--json", "--env", left.path).stdout)
    assert [each["next"] for each in status["transactions"]] == ["roll back"]
    document = json.loads(run("doctor", "--json", "--env", left.path, status=1).stdout)
    assert "unfinished-transaction" in {each["kind"] for each in document["findings"]}
    run("doctor", "--repair", "--env", left.path)
    assert is_as_it_was(left)
    assert left.private() == []


# Users, and filesystems.


def give(directory: Path, user: pwd.struct_passwd) -> None:
    """Let all below a directory be a user's."""
    for where, directories, names in os.walk(directory):
        for name in (".", *directories, *names):
            os.lchown(os.path.join(where, name), user.pw_uid, user.pw_gid)


@as_root
def test_a_user_merges_read_only_files_and_directories(common: Path) -> None:
    one = stage(common / "one", {"share/ro/a": "a", "share/ro/deep/a": "a", "bin/a": ""})
    two = stage(common / "two", {"share/ro/b": "b", "share/ro/deep/b": "b", "bin/b": ""})
    for tree in (one, two):
        for path in sorted(tree.rglob("*"), reverse=True):
            path.chmod(0o555 if path.is_dir() else 0o444)
        (tree / "bin").chmod(0o755)
        (tree / "share").chmod(0o755)
    (common / "prefix").mkdir()
    give(common, forks.need_user())
    prefix = MergePrefix(common / "prefix")

    def merge() -> None:
        for tree in (one, two):
            prefix.merge(tree, manifest=common / f"{tree.name}.json")
        found = {path: said[:4] for path, said in exact(prefix.path).items()}
        assert found == everything([one, two])
        assert not prefix.merge(two).is_changed

    def unmerge() -> None:
        for tree in (two, one):
            prefix.unmerge(common / f"{tree.name}.json")

    everything_is_loaded(common)
    forks.in_child(merge, user="nobody")
    assert {said[3] for said in exact(prefix.path).values()} == {f"{os.stat(one).st_uid}:{os.stat(one).st_gid}"}
    forks.in_child(unmerge, user="nobody")
    assert os.listdir(prefix.path) == []


@as_root
def test_a_prefix_of_another_user_is_refused(common: Path) -> None:
    prefix, staged = MergePrefix(stage(common / "prefix", {"bin/x": ""})), stage(common / "staged", {"bin/y": ""})
    give(staged, forks.need_user())

    def merge() -> None:
        with pytest.raises(UnusableEnvironment) as caught:
            prefix.merge(staged)
        assert str(caught.value) == f"`{prefix.path}` is not writable: Permission denied. Nothing was changed"

    everything_is_loaded(common)
    forks.in_child(merge, user="nobody")


def everything_is_loaded(directory: Path) -> None:
    """Import what a merge imports only when it is used: another user may not read it."""
    prefix = MergePrefix(directory / "first")
    prefix.merge(stage(directory / "loaded", {"x": ""}), manifest=directory / "loaded.json")
    prefix.unmerge(directory / "loaded.json")


@as_root
def test_root_keeps_owners_and_lets_users_go_on(common: Path) -> None:
    staged = stage(common / "staged", {"bin/tool": "", "share/doc/x": "", "lib64": Link("lib"), "lib/x": ""})
    for number, path in enumerate(sorted(staged.rglob("*"))):
        os.chown(path, 1000 + number, 2000 + number, follow_symlinks=False)
    (staged / "bin/tool").chmod(0o6755)
    run("merge", staged, "--into", common / "prefix")
    assert exact(common / "prefix") == exact(staged)


@as_root
def test_a_tree_on_another_filesystem_is_first_copied_beside_the_prefix(tmp_path: Path) -> None:
    (tmp_path / "memory").mkdir()
    prefix = MergePrefix(stage(tmp_path / "prefix", {"share/x": "", f"{SITE}/x.py": ""}))
    with tmpfs(tmp_path / "memory"):
        staged = stage(tmp_path / "memory/staged", {**big("1"), "share/x": "other", "lib64": Link("lib")})
        os.link(staged / "bin/tool-0", staged / "bin/same")
        run("merge", staged, "--into", prefix.path, "--move")
        assert not staged.exists()
    assert (prefix.path / "bin/same").samefile(prefix.path / "bin/tool-0")
    assert (prefix.path / "share/x").read_text() == "other"
    assert prefix.private() == []


@as_root
def test_a_part_of_the_prefix_may_be_another_filesystem(tmp_path: Path) -> None:
    prefix = MergePrefix(stage(tmp_path / "prefix", {"share": None, f"{SITE}/x.py": ""}))
    staged = stage(tmp_path / "staged", {**big("1"), "share/empty": None, "share/big/ro/x": "x"})
    os.link(staged / "share/big/1/1.txt", staged / "share/big/1/same.txt")
    (staged / "share/big/ro").chmod(0o555)
    with tmpfs(prefix.path / "share", "-o", "mode=755"):
        run("merge", staged, "--into", prefix.path, "--manifest", tmp_path / "m")
        found, wanted = exact(prefix.path), exact(staged)
        for path in wanted:
            parts = slice(0, 4) if wanted[path][0] == "d" else slice(0, 6)
            assert found[path][parts] == wanted[path][parts]
        assert "Nothing to merge" in run("merge", staged, "--into", prefix.path).stdout
        run("unmerge", tmp_path / "m")
        assert os.listdir(prefix.path / "share") == []
    assert prefix.private() == []


@as_root
def test_a_full_disk_is_told_and_nothing_is_changed(tmp_path: Path) -> None:
    (tmp_path / "small").mkdir()
    with tmpfs(tmp_path / "small", "-o", "size=1m"):
        prefix = MergePrefix(stage(tmp_path / "small/prefix", {"bin/x": "", f"{SITE}/x.py": ""}))
        before = prefix.content()
        staged = stage(tmp_path / "staged", {f"share/{number}": "x" * 300_000 for number in range(5)})
        error = run("merge", staged, "--into", prefix.path, "--manifest", tmp_path / "m", status=74).stderr
        assert "there is not enough space in" in error
        assert error.endswith(". Nothing was changed\n")
        assert (prefix.content(), prefix.private()) == (before, [])
        assert not (tmp_path / "m").exists()


@as_root
def test_a_read_only_filesystem_is_told(tmp_path: Path) -> None:
    prefix = stage(tmp_path / "prefix", {"bin/x": ""})
    with read_only(prefix):
        error = run("merge", stage(tmp_path / "staged", {"bin/y": ""}), "--into", prefix, status=78).stderr
    assert error == f"safe-pip: error: `{prefix}` is not writable: Read-only file system. Nothing was changed\n"


# The command line.


def test_every_conflict_is_named_on_standard_error_and_in_the_document(tmp_path: Path) -> None:
    prefix = stage(tmp_path / "prefix", {**distribution("other", "1", {"share/both": "1"}), "bin/x": "1"})
    staged = stage(tmp_path / "staged", {"share/both": "2", "bin/x": "2", "bin/y": "y"})
    done = run("merge", staged, "--into", prefix, "--on-conflict=fail", "--json", status=1)
    assert done.stderr.splitlines() == [
        f"safe-pip: `{prefix}/bin/x` exists with other content, which no distribution owned",
        f"safe-pip: `{prefix}/share/both` exists with other content, which `other` owned",
        "safe-pip: error: 2 files exist with other content. Nothing was changed",
    ]
    found = {f"{prefix}/bin/x": None, f"{prefix}/share/both": "other"}
    named = [{"path": path, "owner": owner, "manifest": None} for path, owner in found.items()]
    kept = [{**each, "reason": "conflict"} for each in named]
    document = json.loads(done.stdout)
    assert (document["changed"], document["conflicts"], document["put"]) == (False, named, [])
    done = run("merge", staged, "--into", prefix, "--on-conflict", "keep", "--json")
    assert (json.loads(done.stdout)["kept"], json.loads(done.stdout)["put"]) == (kept, [f"{prefix}/bin/y"])
    assert done.stderr.count(" was kept with its other content, which ") == 2
    done = run("merge", staged, "--into", prefix, "--json")
    assert json.loads(done.stdout)["replaced"] == named
    assert done.stderr.splitlines() == [
        f"safe-pip: warning: `{prefix}/bin/x` was replaced, which no distribution owned",
        f"safe-pip: warning: `{prefix}/share/both` was replaced, which `other` owned",
    ]
    done = run("merge", staged, "--into", prefix)
    assert (done.stdout, done.stderr) == (f"Nothing to merge: all of it is in `{prefix}`\n", "")


def test_an_edited_file_is_kept_and_named_and_the_manifest_is_removed(tmp_path: Path) -> None:
    staged, prefix = stage(tmp_path / "staged", {"etc/conf": "1", "etc/more": "1"}), tmp_path / "prefix"
    run("merge", staged, "--into", prefix, "--manifest", tmp_path / "m")
    (prefix / "etc/conf").write_text("edited")
    done = run("unmerge", tmp_path / "m", "--json")
    assert done.stderr == f"safe-pip: warning: `{prefix}/etc/conf` was changed since, and was kept\n"
    document = json.loads(done.stdout)
    kept = [{"path": f"{prefix}/etc/conf", "owner": None, "manifest": None, "reason": "changed"}]
    assert (document["removed"], document["kept"]) == ([f"{prefix}/etc/more"], kept)
    assert document["left"] == [str(prefix), f"{prefix}/etc"]
    assert not (tmp_path / "m").exists()


@pytest.mark.parametrize(
    ("words", "status", "said"),
    [
        (("merge",), 2, "required: STAGED"),
        (("merge", "a", "b"), 2, "unrecognized arguments: b"),
        (("merge", "--on-conflict=ask", "a"), 2, "invalid choice: 'ask'"),
        (("merge", "--no-such", "a"), 2, "unrecognized arguments: --no-such"),
        (("merge", "a", "--into"), 2, "--into: expected one argument"),
        (("merge", "tree", "--into", ""), 2, "--into: it is empty"),
        (("merge", "tree", "--into="), 2, "--into: it is empty"),
        (("merge", "", "--into", "new"), 2, "STAGED: it is empty"),
        (("merge", "tree", "--into", "n" * 300), 78, "File name too long"),
        (("merge", "missing"), 1, "missing` does not exist"),
        (("merge", "file"), 1, "file` is not a directory"),
        (("merge", "tree", "--into", "tree/inside"), 1, "lies in"),
        (("merge", "tree", "--into", "file"), 78, "file` is not a directory"),
        (("merge", "tree", "--into", "new", "--manifest", "no/such/m"), 78, "no/such/m` cannot be written"),
        (("unmerge",), 2, "required: MANIFEST"),
        (("unmerge", "missing"), 1, "missing` cannot be read"),
        (("unmerge", "file"), 1, "is not the manifest of a merge"),
    ],
)
def test_an_impossible_merge_prints_one_line_and_changes_nothing(
    tmp_path: Path, words: tuple[str, ...], status: int, said: str
) -> None:
    stage(tmp_path, {"file": "", "tree/bin/x": ""})
    error = run(*words, status=status, cwd=tmp_path).stderr
    assert said in error
    assert error.startswith("safe-pip: error: ")
    assert error.count("\n") == 1
    assert sorted(os.listdir(tmp_path)) == ["file", "tree"]


@pytest.mark.parametrize("verb", ["merge", "unmerge"])
def test_help_is_shown(verb: str) -> None:
    assert run(verb, "--help").stdout.startswith(f"usage: safe-pip {verb} ")
    assert run("help", verb).stdout == run(verb, "--help").stdout
    assert max(map(len, run(verb, "--help").stdout.splitlines())) <= 120


def test_without_a_prefix_it_is_that_of_the_environment(env: PipEnvironment, tmp_path: Path) -> None:
    site = str(env.site.relative_to(env.venv.path))
    staged = stage(tmp_path / "staged", {f"{site}/merged.py": "", "data/merged": ""})
    env.run("merge", staged, "--manifest", tmp_path / "m")
    assert (env.site / "merged.py").exists()
    assert "Nothing to merge" in env.run("merge", staged, "--env", env.venv.python).stdout
    assert "Nothing to merge" in env.run("--python", env.venv.python, "merge", staged).stdout
    assert (env.site / ".safe-pip/commit").exists()
    assert not (env.venv.path / ".safe-pip").exists()
    env.run("unmerge", tmp_path / "m")
    assert not (env.site / "merged.py").exists()
    assert not (env.venv.path / "data").exists()


def test_an_installed_distribution_is_upgraded_by_a_staged_one_and_pip_takes_it_away(
    env: PipEnvironment, tmp_path: Path
) -> None:
    env.add_to_index(*(Project("moved", version, console_scripts={"moved": "moved:main"}) for version in ("1", "2")))
    env.run("install", "moved==1")
    prefix = env.venv.path
    env.run("install", "--root", tmp_path / "root", "--prefix", prefix, "--ignore-installed", "moved==2")
    assert not [*(tmp_path / "root").rglob(".safe-pip")]
    env.run("merge", f"{tmp_path}/root{prefix}")
    assert env.installed() == {"moved": "2"}
    # Bytecode is never merged, though RECORD names it: the import system makes it again.
    assert [found for found in check(env.venv, env.variables) if not found.detail.endswith(".pyc")] == []
    env.run("uninstall", "-y", "moved")
    assert env.installed() == {}


def test_a_merge_that_replaces_waits_for_users_of_the_old_files_and_a_merge_that_adds_does_not(tmp_path: Path) -> None:
    prefix = MergePrefix(stage(tmp_path / "prefix", {f"{SITE}/x.py": "", "bin/x": "", "bin/python3": ""}))
    adds, replaces = stage(tmp_path / "adds", {"bin/y": ""}), stage(tmp_path / "replaces", {"bin/x": "x"})
    with workers(prefix.path / SITE, count=1) as (reader,):
        reader.hold("keeping")
        run("merge", adds, "--into", prefix.path)
        error = run("--lock-timeout", "0", "merge", replaces, "--into", prefix.path, status=75).stderr
        assert "is not free, shared by" in error
        assert error.endswith("Nothing was changed\n")
    run("--lock-timeout", "0", "merge", replaces, "--into", prefix.path)
    assert (prefix.path / "bin/x").read_text() == "x"


def test_it_is_at_work_below_run_exclusive(tmp_path: Path) -> None:
    prefix = MergePrefix(stage(tmp_path / "prefix", {"bin/x": ""}))
    staged = stage(tmp_path / "staged", {"bin/x": "x", "share/y": "y"})
    inner = [sys.executable, "-m", "safe_pip", "merge", staged, "--into", prefix.path]
    for mode, directory in (("--exclusive", prefix.path), ("--shared", tmp_path / "elsewhere")):
        run("run", mode, "--lock-dir", directory, "--", *inner)
    assert (prefix.path / "bin/x").read_text() == "x"


def test_a_prefix_is_the_same_to_merges_and_installs_that_name_it(env: PipEnvironment, tmp_path: Path) -> None:
    """`--prefix` installs and merges into one tree that is packed afterwards."""
    env.add_to_index(Project("one", data={"share/doc/one": ""}), Project("two", data={"share/doc/two": ""}))
    prefix = tmp_path / "packed"
    site = Path(sysconfig.get_path("purelib", "posix_prefix", vars={"base": str(prefix)}))
    staged = [stage(tmp_path / f"{number}", {f"share/doc/{number}": "", f"bin/{number}": ""}) for number in range(6)]
    commands: list[list[object]] = [["merge", tree, "--into", prefix] for tree in staged]
    commands += [["install", "--prefix", prefix, "--ignore-installed", name] for name in ("one", "two")]
    with ThreadPoolExecutor(len(commands)) as pool:
        list(pool.map(lambda words: env.run(*words), commands))
    assert sorted(os.listdir(prefix / "share/doc")) == sorted(["one", "two", *map(str, range(6))])
    assert {path.name for path in prefix.rglob("*.dist-info")} == {"one-1.dist-info", "two-1.dist-info"}
    assert not [*prefix.rglob(".safe-pip*")]
    assert stat.S_ISDIR(os.stat(site.parent).st_mode)
