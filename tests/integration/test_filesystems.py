"""Real commands on filesystems that refuse operations, on several filesystems at once, and killed on each."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import re
import shutil
import struct
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support.faults import mounts, observed_command, overlay
from tests.support.faults.disk import Change
from tests.support.faults.kills import KILL, LOCK_FILES
from tests.support.faults.mounts import as_root
from tests.support.trees.listing import Tree, differences, tree_of
from tests.support.venvs.checker import check_files
from tests.support.venvs.pip_environment import PipEnvironment
from tests.support.venvs.readonly import ReadOnlyEnvironment
from tests.support.venvs.workspace import Workspace
from tests.support.wheels.tiny import Project

pytestmark = pytest.mark.slow


def tool(version: str, *more: str) -> Project:
    """A version that has files in the middle of others', a directory and a script of its own, and `more` files."""
    files = {
        "tool/__init__.py": f"def main():\n    print({version!r})\n",
        "tool/deep/data.txt": version * int(version),
        "nspace/tool/part.py": version * int(version),
        "nspace/tool.txt": version,
    }
    data = {"common/both/tool.txt": version, f"common/tool/{version}.txt": version, "etc/tool.conf": version}
    return Project(
        "tool", version, files=files | dict.fromkeys(more, ""), console_scripts={"tool": "tool:main"}, data=data
    )


STOCK = (
    tool("1", "tool/gone.py", "only1.py"),
    tool("2", "tool/come/come.py"),
    tool("3"),
    Project("other", files={"nspace/other.py": ""}, data={"common/both/other.txt": ""}),
    Project("next"),
)
INSTALL, UPGRADE, UNINSTALL = ("install", "tool==1", "other"), ("install", "tool==2"), ("uninstall", "-y", "tool")
STEPS = (INSTALL, UPGRADE, UNINSTALL)


class ObservedEnvironment:
    """An environment that is made new again and again, always at the same path: what is in its files is comparable."""

    def __init__(self, workspace: Workspace, directory: Path) -> None:
        self.directory = directory
        self.root = directory / "merged"
        (directory / "index").mkdir()
        self.env = PipEnvironment(workspace, directory, workspace.maker.make(self.root, workspace.base))
        self.env.add_to_index(*STOCK)
        self._pristine = directory / "pristine"
        shutil.copytree(self.root, self._pristine, symlinks=True)
        self._plain: list[Tree] = []

    @property
    def site(self) -> Path:
        return self.env.site

    @property
    def plain(self) -> list[Tree]:
        """What plain pip leaves after each of the steps, on a filesystem that refuses nothing."""
        if not self._plain:
            self.renew()
            for step in STEPS:
                self.env.plain(*step)
                self._plain.append(self.tree())
        return self._plain

    def renew(self) -> None:
        """Put an environment there with nothing but pip and safe-pip in it: links, as nothing changes their files."""
        remove(self.root)
        subprocess.run(["cp", "-al", self._pristine, self.root], check=True)

    def tree(self) -> Tree:
        """All that is installed."""
        return look(self.root)

    def observe(self, how: str, *words: str | int) -> list[str]:
        """The command line, but for safe-pip's own arguments, of one that is observed."""
        return [str(self.env.venv.python), str(observed_command.__file__), how, *map(str, words)]

    def noted(self, *args: str) -> list[Change]:
        """Run safe-pip; on return all that it changed."""
        file = self.directory / "notes"
        file.unlink(missing_ok=True)
        finished([*self.observe("note", str(file)), *args], self)
        return notes(file)

    def killed(self, suffix: str, time: int, number: int, *args: str) -> None:
        """Run safe-pip and have it killed there; see `observed`."""
        done = finished([*self.observe("kill", suffix, time, number), *args], self, status=-KILL)
        assert done.stderr == ""


def finished(command: list[str], observed: ObservedEnvironment, status: int = 0) -> subprocess.CompletedProcess[str]:
    """Run a command with the variables of the environment."""
    done = subprocess.run(
        command, env=observed.env.variables, cwd=observed.directory, input="", capture_output=True, text=True
    )
    assert done.returncode == status, f"{command} exited {done.returncode}:\n{done.stdout}\n{done.stderr}"
    return done


def notes(file: Path) -> list[Change]:
    """What `observed` has written down."""
    return [Change(*json.loads(line)) for line in file.read_text().splitlines()]


def look(root: Path) -> Tree:
    """All that is installed: no empty directories, and what `common` is a link to as if it were there."""

    def is_ours(path: str) -> bool:
        return os.path.basename(path).startswith(".safe-pip")

    found = dict(tree_of(root, is_ours))
    if (root / "common").is_symlink():
        found = {path: what for path, what in found.items() if path.partition("/")[0] not in ("common", "memory")}
        found |= {"common": "directory 755"}
        found |= {f"common/{path}": what for path, what in tree_of(root / "common", is_ours).items()}
    above = {parent for path, what in found.items() if not is_directory(what) for parent in parents(path)}
    return {path: what for path, what in found.items() if not is_directory(what) or path in above}


def is_directory(what: str) -> bool:
    return what.startswith("directory ")


def parents(path: str) -> list[str]:
    return [str(parent) for parent in Path(path).parents]


def left(*roots: Path, tree: Path) -> list[str]:
    """What transactions have left below `roots`; only the lock files of `tree` are to stay."""
    found = []
    for root in roots:
        for where, directories, names in os.walk(root):
            here = Path(where)
            if here == tree / ".safe-pip":
                found += [str(here / name) for name in (*directories, *names) if name not in LOCK_FILES]
                directories.clear()
                continue
            found += [str(here / name) for name in (*directories, *names) if name.startswith((".safe-pip-", "~"))]
            if ".safe-pip" in directories and here != tree:
                found.append(str(here / ".safe-pip"))
    return found


def points(changes: list[Change]) -> tuple[int, int]:
    """The number of the journal that came to be committed, and of the changes from it to the commit point."""
    names = [change.path.rpartition(".")[2] if change.operation == "move" else "" for change in changes]
    last = len(names) - 1 - names[::-1].index("journal")
    return names.count("journal"), names.index("committed") - last


def remove(path: Path) -> None:
    """Delete a tree; the kernel makes some directories of overlays with no permissions at all."""
    if subprocess.run(["rm", "-rf", path], capture_output=True).returncode:
        subprocess.run(["chmod", "-R", "u+rwx", path], check=True)
        subprocess.run(["rm", "-rf", path], check=True)


@pytest.fixture(scope="module")
def observed(workspace: Workspace, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ObservedEnvironment]:
    made = ObservedEnvironment(workspace, tmp_path_factory.mktemp("filesystems").resolve())
    yield made
    remove(made.directory)


@pytest.fixture
def new(observed: ObservedEnvironment) -> ObservedEnvironment:
    """The same, with nothing installed."""
    observed.renew()
    return observed


# A lower layer, as every container has one


class Layers:
    """An overlay whose lower layer has `tool` 1 and `other` in it."""

    def __init__(self, observed: ObservedEnvironment) -> None:
        self.observed = observed
        observed.renew()
        observed.env.run(*INSTALL)
        self.before = observed.tree()
        remove(observed.directory / "lower")
        observed.root.rename(observed.directory / "lower")
        self.reset()

    def reset(self) -> None:
        """Have only the lower layer."""
        for name in ("upper", "work", "merged"):
            remove(self.observed.directory / name)

    def mounted(self) -> contextlib.AbstractContextManager[None]:
        """Within, it is there; each time it has other inode numbers."""
        return mounts.overlay(self.observed.directory)


@pytest.fixture(scope="module")
def lower(observed: ObservedEnvironment) -> Layers:
    assert observed.plain
    return Layers(observed)


@pytest.fixture
def layers(lower: Layers) -> Iterator[Layers]:
    lower.reset()
    yield lower
    lower.reset()


def assert_they_were_entered(observed: ObservedEnvironment, changes: list[Change]) -> None:
    """One directory of the lower layer was to be moved as a whole, in vain; then all were left in their places."""
    time, count = points(changes)
    assert time == 2
    committed = next(number for number, each in enumerate(changes) if each.path.endswith(".committed"))
    stay = {str(observed.site / name) for name in ("tool", "tool-1.dist-info", "nspace/tool")}
    renamed = [each for each in changes[committed - count : committed] if each.operation in RENAMES]
    assert renamed
    assert stay.isdisjoint(path for each in renamed for path in each.paths)


@as_root
def test_in_a_container_directories_of_the_image_are_entered_and_the_result_is_plain_pips(layers: Layers) -> None:
    observed = layers.observed
    with layers.mounted():
        assert observed.tree() == layers.before == observed.plain[0]
        assert_they_were_entered(observed, observed.noted(*UPGRADE))
        assert differences(observed.plain[1], observed.tree()) == []
        observed.env.run(*UNINSTALL)
        assert differences(observed.plain[2], observed.tree()) == []
        observed.env.run(*INSTALL)
        assert differences(observed.plain[0], observed.tree()) == []
        assert left(observed.root, tree=observed.site) == []


@pytest.mark.skipif(bool(overlay.why_not()), reason=f"overlayfs cannot be mounted: {overlay.why_not()}")
def test_so_it_is_in_a_user_namespace(layers: Layers) -> None:
    observed = layers.observed
    show = "import json, sys; from pathlib import Path; from tests.integration.test_filesystems import look"
    show += "; print(json.dumps(look(Path(sys.argv[1]))))"

    def run(*command: str) -> None:
        variables = [f"{name}={value}" for name, value in observed.env.variables.items()]
        done = overlay.run(observed.directory, "env", "-i", *variables, *command)
        assert done.returncode == 0, done.stderr

    def tree() -> Tree:
        return json.loads(overlay.run_python(observed.directory, show, str(observed.root)))

    run(*observed.observe("note", "layers"), *UPGRADE)
    assert_they_were_entered(observed, notes(observed.directory / "layers"))
    assert differences(observed.plain[1], tree()) == []
    run(*observed.env.command(*UNINSTALL))
    assert differences(observed.plain[2], tree()) == []
    run(*observed.env.command(*INSTALL))
    assert differences(observed.plain[0], tree()) == []


@as_root
def test_a_commit_that_was_killed_is_undone_after_the_layers_were_mounted_anew(layers: Layers) -> None:
    observed = layers.observed
    with layers.mounted():
        time, count = points(observed.noted(*UPGRADE))
    for number in (2, count // 2, count):
        layers.reset()
        with layers.mounted():
            observed.killed(".journal", time, number, *UPGRADE)
        with layers.mounted():
            assert "tool==1" in observed.env.run("freeze").stdout
            assert differences(layers.before, observed.tree()) == [], number
            assert left(observed.root, tree=observed.site) == [], number
    with layers.mounted():
        observed.env.run(*UPGRADE)
        assert differences(observed.plain[1], observed.tree()) == []


@as_root
def test_a_commit_that_was_killed_when_it_was_done_is_finished_after_the_layers_were_mounted_anew(
    layers: Layers,
) -> None:
    observed = layers.observed
    with layers.mounted():
        observed.killed(".committed", 1, 1, *UPGRADE)
    with layers.mounted():
        assert differences(observed.plain[1], observed.tree()) == []
        observed.env.run("install", "next")
        assert "tool==2" in observed.env.run("freeze").stdout
        assert left(observed.root, tree=observed.site) == []
        observed.env.run("uninstall", "-y", "next")
        assert differences(observed.plain[1], observed.tree()) == []


# One environment on several filesystems


@pytest.fixture
def spread(observed: ObservedEnvironment) -> Iterator[ObservedEnvironment]:
    """`bin` and a directory in the tree are mounts, `common` is a link to another filesystem."""
    assert observed.plain
    observed.renew()
    memory, scripts, nspace = observed.root / "memory", observed.root / "bin", observed.site / "nspace"
    for directory in (memory, nspace):
        directory.mkdir(exist_ok=True)
    kept = observed.directory / "bin"
    shutil.copytree(scripts, kept, symlinks=True)
    with contextlib.ExitStack() as mounted:
        mounted.enter_context(mounts.tmpfs(memory, "-o", "mode=755"))
        (memory / "common").mkdir()
        (observed.root / "common").symlink_to("memory/common")
        mounted.enter_context(mounts.tmpfs(scripts, "-o", "mode=755"))
        shutil.copytree(kept, scripts, symlinks=True, dirs_exist_ok=True)
        mounted.enter_context(mounts.ext4(nspace, observed.directory / "image"))
        yield observed
    remove(kept)
    observed.renew()


PRIVATE = re.compile(r"(.*)/\.safe-pip/[0-9a-f]{16}")
RENAMES = {"move", "move_over", "exchange"}
COPYING = {"copy", "create", "write", "write_bytecode", "make_directory"}


def assert_nothing_is_copied_under_the_lock(changes: list[Change]) -> None:
    """Between the locks and the commit point there are renames and links alone."""
    operations = [change.operation for change in changes]
    since = len(operations) - 1 - operations[::-1].index("locked")
    under = changes[since : operations.index("unlocked", since)]
    assert {"move"} <= {change.operation for change in under}
    assert [change for change in under if change.operation in COPYING] == []


@as_root
def test_on_several_filesystems_each_has_a_part_and_nothing_is_copied_under_the_lock(
    spread: ObservedEnvironment,
) -> None:
    homes = {spread.site, spread.root / "bin", spread.site / "nspace", spread.root / "memory"}
    for step, expected in zip(STEPS, spread.plain, strict=True):
        changes = spread.noted(*step)
        assert_nothing_is_copied_under_the_lock(changes)
        private = {match[1] for each in changes if each.operation == "make_directory" for match in of_part(each.path)}
        assert {Path(each) if "memory" not in each else spread.root / "memory" for each in private} == homes
        assert len(private) == 4
        assert differences(expected, spread.tree()) == []
        assert (spread.root / "common").is_symlink()
        assert left(spread.root, tree=spread.site) == []


def of_part(path: str) -> list[re.Match[str]]:
    match = PRIVATE.fullmatch(path)
    return [match] if match else []


@as_root
@pytest.mark.parametrize("step", [INSTALL, UPGRADE, UNINSTALL], ids=["install", "upgrade", "uninstall"])
def test_a_commit_on_several_filesystems_that_was_killed_is_undone_on_all_of_them(
    spread: ObservedEnvironment, step: tuple[str, ...]
) -> None:
    number = STEPS.index(step)
    if number:
        spread.env.run(*INSTALL)
    before = spread.tree()
    for at in (2, 7):
        spread.killed(".journal", 1, at, *step)
        spread.env.run("list")
        assert differences(before, spread.tree()) == [], at
        assert left(spread.root, tree=spread.site) == [], at


@as_root
def test_a_package_that_is_a_mount_of_its_own_is_entered(new: ObservedEnvironment) -> None:
    (new.site / "tool").mkdir()
    with mounts.tmpfs(new.site / "tool", "-o", "mode=755"):
        for step, expected in zip(STEPS, new.plain, strict=True):
            new.env.run(*step)
            assert differences(expected, new.tree()) == []
        assert list((new.site / "tool").iterdir()) == []
        assert left(new.root, tree=new.site) == []


# Links in the prefix


def test_an_install_through_a_link_out_of_the_environment_is_refused_before_any_change(
    new: ObservedEnvironment,
) -> None:
    elsewhere = new.directory / "outside"
    remove(elsewhere)
    elsewhere.mkdir()
    (new.root / "common").symlink_to(elsewhere)
    before = new.tree()
    refused = new.env.run(*INSTALL, status=78)
    assert f"`{elsewhere}/tool` lies outside the directories that may be changed" in refused.stderr
    assert "Nothing was changed" in refused.stderr
    assert list(elsewhere.iterdir()) == []
    assert differences(before, new.tree()) == []
    assert left(new.root, elsewhere, tree=new.site) == []


def compare(
    observed: ObservedEnvironment, prepare: Callable[[ObservedEnvironment], object], *steps: tuple[str, ...]
) -> None:
    """After each step the environment is as plain pip leaves it."""
    found: list[list[Tree]] = []
    for run in (observed.env.plain, observed.env.run):
        observed.renew()
        prepare(observed)
        found.append([])
        for step in steps:
            run(*step)
            found[-1].append(observed.tree())
    for step, plain, ours in zip(steps, *found, strict=True):
        assert differences(plain, ours) == [], step


def test_files_installed_through_links_in_the_prefix_go_to_their_targets_and_the_links_stay(
    observed: ObservedEnvironment,
) -> None:
    for version in ("1", "2"):
        data = {
            "lib64/linked/data.txt": version,
            "man/man1/linked.1": version,
            "common/man/man1/direct.1": version,
            f"man/man{version}/only.{version}": version,
        }
        observed.env.add_to_index(Project("linked", version, data=data))

    def link(observed: ObservedEnvironment) -> None:
        (observed.root / "common" / "man").mkdir(parents=True)
        (observed.root / "man").symlink_to("common/man")
        if not (observed.root / "lib64").exists():
            (observed.root / "lib64").symlink_to("lib")

    steps = ("install", "linked==1"), ("install", "linked==2"), ("uninstall", "-y", "linked")
    compare(observed, link, *steps)
    assert (observed.root / "man").is_symlink()
    assert (observed.root / "lib64").is_symlink()
    assert left(observed.root, tree=observed.site) == []
    assert not (observed.root / "lib" / "linked").exists()


# Access rights of installed files

NO_ID = 0xFFFFFFFF
ENTRIES = ((1, 7, NO_ID), (2, 7, 65534), (4, 5, NO_ID), (0x10, 7, NO_ID), (0x20, 4, NO_ID))
ACCESS_LIST = struct.pack("<I", 2) + b"".join(struct.pack("<HHI", *entry) for entry in ENTRIES)
"""For user 65534 as well: version 2, then tag, permissions, id, as the kernel has it in an extended attribute."""


def give_to_a_group(directory: Path) -> None:
    os.chown(directory, -1, 65534)
    directory.chmod(0o2775)


def give_an_access_list(directory: Path) -> None:
    try:
        os.setxattr(directory, "system.posix_acl_default", ACCESS_LIST)
    except OSError as error:
        pytest.skip(f"there are no access lists here: {error.strerror}")


def access(root: Path) -> dict[str, object]:
    """The access rights of everything in the tree and in `common`."""
    found: dict[str, object] = {}
    for top in (root / "lib", root / "common", root / "bin", root / "etc"):
        for where, directories, names in os.walk(top):
            directories[:] = [name for name in directories if name != ".safe-pip"]
            for path in (Path(where, name) for name in (*directories, *names)):
                status = path.lstat()
                listed = {} if path.is_symlink() else {name: os.getxattr(path, name) for name in os.listxattr(path)}
                found[str(path.relative_to(root))] = oct(status.st_mode), status.st_uid, status.st_gid, listed
    return found


@as_root
@pytest.mark.parametrize(
    ("mask", "gifts"),
    [(0o002, (give_to_a_group,)), (0o077, (give_to_a_group, give_an_access_list))],
    ids=["002 setgid", "077 setgid and access list"],
)
def test_installed_files_have_the_access_rights_that_plain_pip_gives(
    observed: ObservedEnvironment, mask: int, gifts: tuple[Callable[[Path], None], ...]
) -> None:
    found: list[list[dict[str, object]]] = []
    before = os.umask(mask)
    try:
        for run in (observed.env.plain, observed.env.run):
            observed.renew()
            for give in gifts:
                for directory in (observed.site, observed.root / "common", observed.site / "nspace"):
                    directory.mkdir(exist_ok=True)
                    give(directory)
            found.append([])
            for step in (INSTALL, UPGRADE):
                run(*step)
                found[-1].append(access(observed.root))
    finally:
        os.umask(before)
    for plain, ours in zip(*found, strict=True):
        changed = [path for path in plain | ours if plain.get(path) != ours.get(path)]
        assert changed == [], [(plain.get(path), ours.get(path)) for path in changed]


# Killed, and what others make of it


@pytest.mark.parametrize("following", [("list",), ("install", "next")], ids=" ".join)
def test_a_command_killed_below_a_shared_run_is_recovered_below_it(
    new: ObservedEnvironment, following: tuple[str, ...]
) -> None:
    new.env.run("install", "other")
    before = new.tree()
    killed = [*new.observe("kill", ".journal", 1, 3), "install", "tool==1"]
    script = f"{' '.join(killed)}; test $? = 137 && ls {new.site}/.safe-pip/*.journal && "
    done = new.env.run("run", "--shared", "--", "sh", "-c", script + " ".join(new.env.command(*following)))
    assert "\ntool " not in done.stdout
    if following != ("list",):
        new.env.run("uninstall", "-y", "next")
    assert differences(before, new.tree()) == []
    assert left(new.root, tree=new.site) == []


def installed(root: Path) -> Tree:
    """What is there but for safe-pip itself, which another interpreter compiles when it runs it."""
    return {path: what for path, what in look(root).items() if "/safe_pip/" not in path}


@as_root
def test_a_reader_without_permission_to_undo_names_the_user_with_permission_and_changes_nothing(
    new: ObservedEnvironment, common: Path
) -> None:
    new.env.run(*INSTALL)
    readable = ReadOnlyEnvironment(new.env, common)
    root = readable.site.parents[2]
    before = installed(root)
    done = readable.run("kill", ".journal", "1", "3", *UPGRADE, user=0, program=(str(observed_command.__file__),))
    assert done.returncode == -KILL, done.stderr
    torn = tree_of(root)
    assert installed(root) != before
    for args in (("list",), ("freeze",), ("install", "next")):
        refused = readable.run(*args)
        assert (refused.returncode, refused.stdout) == (76, "") if args != ("install", "next") else (78, ""), args
        assert "Run it as `root`" in refused.stderr or args == ("install", "next")
    assert differences(torn, tree_of(root)) == []
    listed = readable.run("list", "--format", "freeze", user=0)
    assert "tool==1" in listed.stdout, listed.stderr
    assert differences(before, installed(root)) == []
    assert readable.run("list").returncode == 0


def test_a_journal_whose_files_plain_pip_changed_is_refused_and_kept_until_doctor_repairs(
    new: ObservedEnvironment,
) -> None:
    new.env.run(*INSTALL)
    new.killed(".journal", 1, 3, *UPGRADE)
    new.env.plain("install", "tool==3")
    torn = tree_of(new.root)
    for args in (("list",), ("install", "next"), ("uninstall", "-y", "tool")):
        refused = new.env.run(*args, status=76)
        assert "was changed by another program since" in refused.stderr
        assert "Half-applied: run `safe-pip doctor --repair`" in refused.stderr
    assert differences(torn, tree_of(new.root)) == []
    told = new.env.run("doctor", status=1).stdout
    assert "unfinished-transaction" in told
    assert "undo what can be undone, put aside what it has of the rest" in told
    new.env.run("doctor", "--repair", status=None)
    listed = new.env.run("list", "--format", "freeze").stdout
    assert "tool==3" in listed
    assert "other==1" in listed
    (kept,) = new.site.glob(".safe-pip/kept-*")
    shutil.rmtree(kept)
    assert check_files(new.env.venv) == []


def test_a_state_directory_that_is_a_link_is_refused_and_nothing_is_touched_where_it_leads(
    new: ObservedEnvironment,
) -> None:
    elsewhere = new.directory / "elsewhere"
    private = elsewhere / "0123456789abcdef"
    (private / "stage").mkdir(parents=True)
    for name in (*LOCK_FILES, f"{private.name}.owner", f"{private.name}.journal", f"{private.name}.committed"):
        (elsewhere / name).write_text("")
    (new.site / ".safe-pip").symlink_to(elsewhere)
    before, installed = tree_of(elsewhere), tree_of(new.root)
    for args in (("list",), ("install", "next"), ("uninstall", "-y", "pip")):
        refused = new.env.run(*args, status=78)
        assert f"`{new.site}/.safe-pip`" in refused.stderr
        assert differences(before, tree_of(elsewhere)) == []
        assert differences(installed, tree_of(new.root)) == []


# No room, no permission


@as_root
def test_a_wheel_without_room_on_the_disk_is_refused(new: ObservedEnvironment) -> None:
    big = Project("big", files={f"big/{number}.txt": str(number) * 300_000 for number in range(10, 22)})
    new.env.add_to_index(big)
    target = new.directory / "target"
    target.mkdir()
    with mounts.tmpfs(target, "-o", "size=4m"):
        refused = new.env.run("install", "--target", target, "big", status=74)
        assert re.search(r"error: there is not enough space in `.*`\. Nothing was changed", refused.stderr), (
            refused.stderr
        )
        assert os.listdir(target) == []
        new.env.run("install", "--target", target, "tool==1")
        assert (target / "tool" / "deep" / "data.txt").read_text() == "1"
        assert ".safe-pip" not in os.listdir(target)
    target.rmdir()


@as_root
def test_a_directory_without_write_permission_is_reported_before_any_wait(new: ObservedEnvironment) -> None:
    new.env.run(*INSTALL)
    before = new.tree()
    with contextlib.ExitStack() as held:
        descriptor = os.open(new.site, os.O_RDONLY)
        held.callback(os.close, descriptor)
        fcntl.flock(descriptor, fcntl.LOCK_SH)
        assert new.env.run(*UPGRADE, status=75, SAFE_PIP_LOCK_TIMEOUT="0")
        held.enter_context(mounts.read_only(new.root / "common"))
        for step in (UPGRADE, UNINSTALL):
            refused = new.env.run(*step, status=78, SAFE_PIP_LOCK_TIMEOUT="0")
            assert f"`{new.root}/common" in refused.stderr
            assert "is not writable: Read-only file system. Nothing was changed" in refused.stderr
    assert differences(before, new.tree()) == []
    assert left(new.root, tree=new.site) == []


# Many files


def test_thousands_of_files_are_a_few_renames_under_the_lock(new: ObservedEnvironment) -> None:
    count = 4_000
    for version in ("1", "2"):
        files = {f"many/d{number % 100}/{number}.txt": version for number in range(count)}
        new.env.add_to_index(Project("many", version, files=files | {f"only{version}.py": ""}))
    for args in ("install many==1", "install many==2", "uninstall -y many"):
        changes = new.noted(*args.split())
        operations = [change.operation for change in changes]
        since = operations.index("locked")
        under = changes[since + 1 : operations.index("unlocked")]
        assert len(under) < 20, (args, under)
        _, done = points(changes)
        assert done < 10, (args, done)
        found = sum(len(names) for _, _, names in os.walk(new.site / "many"))
        assert found == (count if args.startswith("install") else 0)
    assert not (new.site / "many").exists()
    assert left(new.root, tree=new.site) == []
