"""The checker names each violation that is planted in a sound environment."""

from __future__ import annotations

import os
import sys
import sysconfig
import zipfile
from collections.abc import Callable
from io import BytesIO
from pathlib import Path

import pytest

from tests.support.venvs.checker import Violation, check_files, check_imports, check_with_pip, installed
from tests.support.venvs.template import Venv, clean_environment
from tests.support.wheels.tiny import Project, digest

LEFT = Project("left", "1", requires=("right==1",), console_scripts={"left": "left:main"})
RIGHT = Project("right", "1", files={"right/__init__.py": "", "right/deep/a.py": "x = 1\n"}, data={"share/r.txt": "r"})


@pytest.fixture
def environment(tmp_path: Path) -> Venv:
    """An environment that was filled by hand, without a process and without pip."""
    made = Venv(tmp_path / "env", frozenset({"bin/python"}))
    made.scripts.mkdir(parents=True)
    made.python.symlink_to(sys.executable)
    for project in (LEFT, RIGHT):
        install(project, made)
    return made


def install(project: Project, environment: Venv) -> Path:
    """Unpack a wheel, make its scripts, write its RECORD; on return its dist-info."""
    with zipfile.ZipFile(BytesIO(project.wheel())) as archive:
        content = {name: archive.read(name) for name in archive.namelist() if not name.endswith("/RECORD")}
    for name in project.console_scripts:
        content[os.path.relpath(environment.scripts / name, environment.purelib)] = (
            f"#!{environment.python}\nfrom {project.name} import main\nmain()\n".encode()
        )
    rows = []
    for name, text in content.items():
        data = f"{project.stem}.data/data/"
        path = environment.path / name.removeprefix(data) if name.startswith(data) else environment.purelib / name
        path = Path(os.path.normpath(path))
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(text)
        rows.append(f"{os.path.relpath(path, environment.purelib)},{digest(text)},{len(text)}\n")
    info = environment.purelib / f"{project.stem}.dist-info"
    (info / "RECORD").write_text("".join(rows) + f"{info.name}/RECORD,,\n")
    return info


def names(violations: list[Violation]) -> set[str]:
    return {violation.name for violation in violations}


def test_a_sound_environment_has_no_violation(environment: Venv) -> None:
    assert check_files(environment) == []


def test_installed_versions_are_read_from_metadata(environment: Venv) -> None:
    assert installed(environment) == {"left": "1", "right": "1"}


def plant_second_version(environment: Venv) -> None:
    install(Project("left", "2"), environment)


def plant_egg_info(environment: Venv) -> None:
    (environment.purelib / "Right-1-py3.egg-info").mkdir()


def plant_missing_metadata(environment: Venv) -> None:
    (environment.purelib / "left-1.dist-info" / "METADATA").unlink()


def plant_foreign_metadata(environment: Venv) -> None:
    (environment.purelib / "left-1.dist-info" / "METADATA").write_text("Name: left\nVersion: 2\n")


def plant_missing_record(environment: Venv) -> None:
    (environment.purelib / "left-1.dist-info" / "RECORD").unlink()


def plant_empty_record(environment: Venv) -> None:
    (environment.purelib / "left-1.dist-info" / "RECORD").write_text("")


def plant_empty_dist_info(environment: Venv) -> None:
    (environment.purelib / "middle-1.dist-info").mkdir()


def plant_missing_file(environment: Venv) -> None:
    (environment.purelib / "right" / "deep" / "a.py").unlink()


def plant_missing_data(environment: Venv) -> None:
    (environment.path / "share" / "r.txt").unlink()


def plant_other_content(environment: Venv) -> None:
    (environment.purelib / "right" / "deep" / "a.py").write_text("x = 2\n")


def plant_other_length(environment: Venv) -> None:
    (environment.purelib / "right" / "deep" / "a.py").write_text("x = 10\n")


def plant_unowned_module(environment: Venv) -> None:
    (environment.purelib / "right" / "deep" / "b.py").write_text("")


def plant_unrecorded_requested(environment: Venv) -> None:
    (environment.purelib / "left-1.dist-info" / "REQUESTED").write_text("")


def plant_unowned_data(environment: Venv) -> None:
    (environment.path / "share" / "s.txt").write_text("")


def plant_orphaned_bytecode(environment: Venv) -> None:
    cache = environment.purelib / "gone" / "__pycache__"
    cache.mkdir(parents=True)
    (cache / "__init__.cpython-310.pyc").write_bytes(b"")


def plant_stashed_file(environment: Venv) -> None:
    (environment.purelib / "right" / "~eep").write_text("")


def plant_stashed_directory(environment: Venv) -> None:
    (environment.purelib / "~eft-1.dist-info").mkdir()


def plant_missing_script(environment: Venv) -> None:
    (environment.scripts / "left").unlink()


def plant_stray_script(environment: Venv) -> None:
    (environment.scripts / "middle").write_text("")


def plant_foreign_interpreter(environment: Venv) -> None:
    (environment.scripts / "left").write_text("#!/elsewhere/python\n")


def plant_journal(environment: Venv) -> None:
    (environment.purelib / ".safe-pip").mkdir()
    (environment.purelib / ".safe-pip" / "x.journal").write_text("")


def plant_stage(environment: Venv) -> None:
    (environment.purelib / ".safe-pip" / "x" / "stage").mkdir(parents=True)


@pytest.mark.parametrize(
    ("plant", "name"),
    [
        (plant_second_version, "doubled-project"),
        (plant_egg_info, "doubled-project"),
        (plant_missing_metadata, "damaged-dist-info"),
        (plant_foreign_metadata, "damaged-dist-info"),
        (plant_missing_record, "damaged-dist-info"),
        (plant_empty_record, "damaged-dist-info"),
        (plant_empty_dist_info, "damaged-dist-info"),
        (plant_missing_file, "missing-file"),
        (plant_missing_data, "missing-file"),
        (plant_other_content, "wrong-digest"),
        (plant_other_length, "wrong-digest"),
        (plant_unowned_module, "unowned-file"),
        (plant_unrecorded_requested, "unowned-file"),
        (plant_unowned_data, "unowned-file"),
        (plant_orphaned_bytecode, "unowned-file"),
        (plant_stashed_file, "leftover"),
        (plant_stashed_directory, "leftover"),
        (plant_missing_script, "missing-script"),
        (plant_stray_script, "stray-script"),
        (plant_foreign_interpreter, "wrong-shebang"),
        (plant_journal, "unfinished-transaction"),
        (plant_stage, "unfinished-transaction"),
    ],
)
def test_a_planted_violation_is_named(environment: Venv, plant: Callable[[Venv], None], name: str) -> None:
    plant(environment)
    assert name in names(check_files(environment))


def test_bytecode_of_an_owned_source_is_no_violation(environment: Venv) -> None:
    cache = environment.purelib / "right" / "deep" / "__pycache__"
    cache.mkdir()
    (cache / "a.cpython-310.pyc").write_bytes(b"")
    (cache / "a.cpython-313.opt-1.pyc").write_bytes(b"")
    assert check_files(environment) == []


def test_lock_files_are_no_violation(environment: Venv) -> None:
    (environment.purelib / ".safe-pip").mkdir()
    (environment.purelib / ".safe-pip" / "commit.gate").write_bytes(b"")
    assert check_files(environment) == []


def test_a_state_directory_elsewhere_is_a_violation(environment: Venv) -> None:
    (environment.path / ".safe-pip").mkdir()
    (environment.path / ".safe-pip" / "commit").write_bytes(b"")
    assert names(check_files(environment)) == {"unowned-file"}


@pytest.fixture
def variables(tmp_path: Path) -> dict[str, str]:
    """The variables of a child interpreter that sees the environment's purelib, which is not in a real venv."""
    return clean_environment(tmp_path / "home")


def make_it_run(environment: Venv) -> None:
    environment.python.unlink()
    environment.python.symlink_to(os.path.realpath(sys.executable))
    (environment.path / "pyvenv.cfg").write_text(
        f"home = {sysconfig.get_config_var('BINDIR')}\ninclude-system-site-packages = false\n"
    )


def test_modules_that_import_are_no_violation(environment: Venv, variables: dict[str, str]) -> None:
    make_it_run(environment)
    assert check_imports(environment, variables) == []


def test_a_module_that_does_not_import_is_named(environment: Venv, variables: dict[str, str]) -> None:
    make_it_run(environment)
    (environment.purelib / "left.py").write_text("import nowhere\n")
    (violation,) = check_imports(environment, variables)
    assert violation.name == "import-failed"
    assert "left: ModuleNotFoundError" in violation.detail


def test_a_module_that_only_imports_before_another_is_no_violation(
    environment: Venv, variables: dict[str, str]
) -> None:
    make_it_run(environment)
    (environment.purelib / "right" / "__init__.py").write_text("import sys\nassert 'left' not in sys.modules\n")
    assert check_imports(environment, variables) == []


def test_an_interpreter_that_dies_is_a_failed_import(environment: Venv, variables: dict[str, str]) -> None:
    make_it_run(environment)
    (environment.purelib / "left.py").write_text("import os\nos._exit(3)\n")
    assert names(check_imports(environment, variables)) == {"import-failed"}


def test_a_pip_that_does_not_start_is_a_failed_check(environment: Venv, variables: dict[str, str]) -> None:
    make_it_run(environment)
    assert names(check_with_pip(environment, variables)) == {"pip-check"}
