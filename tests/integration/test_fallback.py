"""If pip is not as expected, or flock is missing, commands still work and exclude each other."""

from __future__ import annotations

import json
import subprocess

import pytest

from tests.support.faults import changed_pip
from tests.support.venvs.pip_environment import PipEnvironment, ended
from tests.support.wheels.tiny import Project

pytestmark = pytest.mark.slow

SCRIPT = changed_pip.__file__
ONE = Project("one", "1", console_scripts={"one": "one:main"})

INSTALLING = [
    ("pip._internal.commands", "create_command"),
    ("pip._internal.cli.index_command", "SessionCommandMixin._build_session"),
    ("pip._internal.req.req_file", "get_file_content"),
    ("pip._internal.resolution.resolvelib.factory", "Factory.__init__"),
    ("pip._internal.build_env", "NoOpBuildEnvironment.__enter__"),
    ("pip._internal.build_env", "NoOpBuildEnvironment.__exit__"),
    ("pip._vendor.pyproject_hooks", "BuildBackendHookCaller._call_hook"),
    ("pip._internal.req.req_install", "InstallRequirement.ensure_build_location"),
    ("pip._internal.req.req_install", "InstallRequirement.update_editable"),
    ("pip._internal.cache", "WheelCache.get_cache_entry"),
    ("pip._internal.cache", "WheelCache.record_download_origin"),
    ("pip._internal.wheel_builder", "_get_cache_dir"),
    ("pip._internal.wheel_builder", "_build_one"),
    ("pip._internal.network.cache", "SafeFileCache.get"),
    ("pip._internal.network.cache", "SafeFileCache.get_body"),
    ("pip._internal.commands.install", "install_given_reqs"),
    ("pip._internal.commands.install", "get_environment"),
    ("pip._internal.commands.install", "InstallCommand._warn_about_conflicts"),
    ("pip._internal.commands.install", "InstallCommand._determine_conflicts"),
    ("pip._internal.commands.install", "check_install_conflicts"),
    ("pip._internal.commands.install", "InstallCommand._handle_target_dir"),
    ("pip._internal.req", "get_install_progress_renderer"),
    ("pip._internal.req.req_install", "get_scheme"),
    ("pip._internal.req.req_install", "InstallRequirement.install"),
    ("pip._internal.req.req_uninstall", "UninstallPathSet.remove"),
    ("pip._internal.req.req_uninstall", "UninstallPathSet.commit"),
    ("pip._internal.req.req_uninstall", "UninstallPathSet.rollback"),
    ("pip._internal.req.req_uninstall", "StashedUninstallPathSet.stash"),
    ("pip._internal.req.req_uninstall", "UninstallPthEntries.remove"),
    ("pip._internal.operations.install.wheel", "parse_wheel"),
    ("pip._internal.operations.install.wheel", "wheel_root_is_purelib"),
    ("pip._internal.operations.install.wheel", "compileall.compile_file"),
    ("pip._internal.operations.install.wheel", "message_about_scripts_not_on_PATH"),
]
SAVING = [
    ("pip._internal.operations.install.wheel", "ZipBackedFile.save"),
    ("pip._internal.operations.install.wheel", "_fs_to_record_path"),
    ("pip._internal.operations.install.wheel", "is_within_directory"),
    ("pip._internal.metadata.importlib", "Distribution.from_wheel"),
    ("pip._internal.operations.install.wheel", "ZipFile"),
]
OTHERS = [
    ("pip._internal.req.req_uninstall", "UninstallPathSet.remove", ("uninstall", "-y", "one")),
    ("pip._internal.req.req_uninstall", "UninstallPathSet.commit", ("uninstall", "-y", "one")),
    ("pip._internal.req.req_uninstall", "UninstallPathSet.rollback", ("uninstall", "-y", "one")),
    ("pip._internal.req.req_uninstall", "StashedUninstallPathSet.stash", ("uninstall", "-y", "one")),
    ("pip._internal.req.req_uninstall", "UninstallPthEntries.remove", ("uninstall", "-y", "one")),
    ("pip._internal.req.req_uninstall", "UninstallPathSet._allowed_to_proceed", ("uninstall", "-y", "one")),
    ("pip._internal.commands.list", "get_environment", ("list",)),
    ("pip._internal.commands.inspect", "get_environment", ("inspect",)),
    ("pip._internal.operations.freeze", "get_environment", ("freeze",)),
    ("pip._internal.commands.cache", "CacheCommand.remove_cache_items", ("cache", "info")),
    ("pip._internal.commands.cache", "CacheCommand.get_cache_info", ("cache", "list")),
    ("pip._internal.commands.cache", "CacheCommand.list_cache_items", ("cache", "info")),
]


class Changed(PipEnvironment):
    """The environment, with one seam of its pip changed."""

    seam = ("-", "-")

    def command(self, *args):
        return [str(self.venv.python), SCRIPT, *self.seam, *map(str, args)]


@pytest.fixture
def changed(workspace, tmp_path):
    return Changed.open(workspace, tmp_path)


class Server:
    """A process that has imported pip, and runs each command in a child with one seam changed."""

    def __init__(self, env: PipEnvironment) -> None:
        self.env = env
        modules = {module for module, *_ in (*INSTALLING, *SAVING, *OTHERS)}
        self._process = subprocess.Popen(
            [env.venv.python, SCRIPT, "serve", *sorted(modules)],
            env=env.variables, cwd=env.directory, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip

    def run(self, module: str, attribute: str, *args: str) -> tuple[int, str, str]:
        """The status, standard output and standard error of a command that does not start again."""
        print(json.dumps([module, attribute, *args]), file=self._process.stdin, flush=True)
        return tuple(json.loads(self._process.stdout.readline()))

    def close(self) -> None:
        self._process.communicate(timeout=60)
        assert self._process.returncode == 0


@pytest.fixture(scope="module")
def server(workspace, tmp_path_factory):
    env = PipEnvironment.open(workspace, tmp_path_factory.mktemp("server"))
    env.add_to_index(ONE)
    env.run("install", "one")
    server = Server(env)
    yield server
    server.close()


@pytest.mark.parametrize(("module", "attribute"), INSTALLING, ids=[".".join(seam) for seam in INSTALLING])
def test_an_install_falls_back_whichever_seam_is_not_as_expected(server, module, attribute):
    """It starts again with nothing changed; what the second start does is the same for every seam."""
    status, _, err = server.run(module, attribute, "install", "-v", "--force-reinstall", "one")
    assert (status, "runs under one exclusive lock" in err) == (changed_pip.FALLS_BACK, True), err
    assert server.env.installed() == {"one": "1"}
    assert {path.name for path in (server.env.site / ".safe-pip").iterdir() if path.is_dir()} == set()


@pytest.mark.parametrize(("module", "attribute", "args"), OTHERS, ids=[f"{seam[0]}.{seam[1]}" for seam in OTHERS])
def test_other_commands_fall_back_whichever_seam_is_not_as_expected(server, module, attribute, args):
    status, _, err = server.run(module, attribute, "-v", *args)
    assert (status, "runs under one exclusive lock" in err) == (changed_pip.FALLS_BACK, True), err
    assert server.env.installed() == {"one": "1"}


def test_none_of_these_commands_falls_back_with_pip_as_it_is(server):
    commands = [*{args: None for _, _, args in OTHERS}, ("install", "one"), ("install", "--force-reinstall", "one")]
    for args in commands:
        status, _, err = server.run("-", "-", "-v", *args)
        assert (status, "runs under one exclusive lock" in err) == (0, False), err
    assert server.env.installed() == {"one": "1"}


@pytest.mark.parametrize(("module", "attribute"), [INSTALLING[0], INSTALLING[12], INSTALLING[23]])
def test_an_install_and_an_uninstall_that_fell_back_do_what_they_are_asked_for(changed, module, attribute):
    changed.add_to_index(ONE)
    changed.seam = (module, attribute)
    done = changed.run("install", "-v", "one")
    assert "runs under one exclusive lock" in done.stderr
    assert "Successfully installed one-1" in done.stdout
    assert changed.installed() == {"one": "1"}
    assert not (changed.site / "~ne").exists()
    changed.seam = OTHERS[0][:2]
    assert "runs under one exclusive lock" in changed.run("-v", "uninstall", "-y", "one").stderr
    assert changed.installed() == {}


@pytest.mark.parametrize(("module", "attribute"), SAVING)
def test_an_unexpected_seam_that_only_saves_time_is_left_out(server, module, attribute):
    for _ in range(2):
        status, _, err = server.run(module, attribute, "install", "-v", "--force-reinstall", "one")
        assert (status, "runs under one exclusive lock" in err) == (0, False), err
        assert ("prepared wheels are not used" in err) == (attribute == "ZipBackedFile.save")
        assert server.env.installed() == {"one": "1"}


def test_without_v_nothing_is_said_of_it(changed):
    changed.add_to_index(ONE)
    changed.seam = INSTALLING[0]
    assert changed.run("install", "one").stderr == ""


@pytest.mark.parametrize("seam", [INSTALLING[0], ("fcntl", "-")], ids=["changed pip", "no fcntl"])
def test_such_a_command_has_the_environment_to_itself(changed, seam):
    changed.seam = seam
    waiting = changed.waiting(Project("slow", "1"))
    process = changed.start("install", waiting.tree)
    waiting.begun(process)
    refused = changed.run("--lock-timeout", "0", "list", status=75)
    assert "Nothing was changed" in refused.stderr
    waiting.release()
    with ended(process) as (status, _, err):
        assert status == 0, err
    assert changed.installed() == {"slow": "1"}


def test_without_flock_five_commands_at_once_leave_a_sound_environment(changed):
    changed.seam = ("fcntl", "-")
    versions = [Project("shared", str(number), console_scripts={"shared": "shared:main"}) for number in range(4)]
    changed.add_to_index(ONE, *versions)
    processes = [changed.start("install", f"shared=={number % 4}", "one") for number in range(5)]
    for process in processes:
        with ended(process) as (status, _, err):
            assert status == 0, err
    assert changed.installed().keys() == {"one", "shared"}
    left = {path.name for path in changed.site.iterdir() if path.name.startswith("~")}
    assert not left
    done = subprocess.run([changed.venv.scripts / "shared"], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == changed.installed()["shared"]


@pytest.mark.parametrize(
    "words", [("--target", "{}"), ("--prefix", "{}"), ("--root", "{}"), ()], ids="target prefix root env".split()
)
def test_such_a_command_has_the_target_that_it_names_to_itself(changed, tmp_path, words):
    changed.add_to_index(ONE)
    words = [word.format(tmp_path / "there") for word in words]
    more = {} if words else {"PIP_TARGET": str(tmp_path / "there")}
    changed.run("install", *words, "one", **more)
    (tree,) = {path.parent for path in (tmp_path / "there").rglob("one-1.dist-info")}
    holder = PipEnvironment.start(changed, "run", "--exclusive", "--env", str(tree), "--", "sh", "-c", "echo held; cat")
    assert holder.stdout.readline() == "held\n"
    changed.seam = INSTALLING[0]
    refused = changed.run("--lock-timeout", "0", "install", *words, "--upgrade", "one", status=75, **more)
    assert "Nothing was changed" in refused.stderr
    holder.communicate()
    assert "one-1" in changed.run("install", *words, "--upgrade", "--force-reinstall", "one", **more).stdout
    assert not list((tmp_path / "there").rglob(".safe-pip*"))


@pytest.mark.parametrize(
    "words", [("--target", "{}"), ("--prefix", "{}"), ("--root", "{}")], ids="target prefix root".split()
)
def test_such_a_command_that_fails_leaves_no_directory_behind(changed, tmp_path, words):
    changed.seam = INSTALLING[0]
    words = [word.format(tmp_path / "there" / "below") for word in words]
    done = changed.run("install", *words, "no-such-project", status=1)
    assert "No matching distribution found" in done.stderr
    assert not (tmp_path / "there").exists()


def test_of_a_target_that_is_no_directory_pip_itself_says_so(changed, tmp_path):
    changed.add_to_index(ONE)
    (tmp_path / "file").write_text("content")
    changed.seam = INSTALLING[0]
    done = changed.run("install", "--target", tmp_path / "file", "one", status=1)
    assert "Target path exists but is not a directory" in done.stderr
    assert (tmp_path / "file").read_text() == "content"


def test_another_interpreter_gets_a_safe_pip_of_its_own(changed, workspace, tmp_path):
    changed.add_to_index(ONE)
    (tmp_path / "other").mkdir()
    other = PipEnvironment.open(workspace, tmp_path / "other")
    changed.seam = INSTALLING[0]
    changed.run("--python", other.venv.python, "install", "one")
    assert "one" not in changed.installed()
    assert other.installed() == {"one": "1"}
    assert (other.site / ".safe-pip").is_dir()


def test_pip_is_listed_and_replaced_where_it_is_installed(changed):
    changed.add_to_index(Project("pip", "99"))
    changed.seam = INSTALLING[0]
    listed = json.loads(changed.run("list", "-v", "--format", "json").stdout)
    assert [each["location"] for each in listed if each["name"] == "pip"] == [str(changed.site)]
    changed.run("install", "--upgrade", "pip")
    assert [path.name for path in changed.site.glob("pip-*.dist-info")] == ["pip-99.dist-info"]
