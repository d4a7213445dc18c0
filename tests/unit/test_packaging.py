"""The wheel and the sdist hold what they should, and say of themselves what is so."""

import ast
import re
import subprocess
import sys
import tarfile
import zipfile
from email import message_from_bytes
from pathlib import Path

import pytest

import safe_pip
from safe_pip.commands import VERBS

PROJECT = Path(__file__).parents[2]
SOURCE = PROJECT / "src" / "safe_pip"


def build(target: str, source: Path, directory: Path) -> Path:
    command = [sys.executable, "-m", "hatchling", "build", "--target", target, "--directory", str(directory)]
    built = subprocess.run(command, cwd=source, capture_output=True, text=True)
    assert built.returncode == 0, built.stdout + built.stderr
    [artifact] = directory.iterdir()
    return artifact


def contents(wheel: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(wheel) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    return contents(build("wheel", PROJECT, tmp_path_factory.mktemp("wheel")))


@pytest.fixture(scope="module")
def sdist(tmp_path_factory):
    """The source tree that comes out of the sdist."""
    archive = build("sdist", PROJECT, tmp_path_factory.mktemp("sdist"))
    unpacked = tmp_path_factory.mktemp("unpacked")
    with tarfile.open(archive) as members:
        # Not the parameter: early releases of the Pythons that we support lack it, later ones warn without a filter.
        members.extraction_filter = getattr(tarfile, "data_filter", None)
        members.extractall(unpacked)
    [tree] = unpacked.iterdir()
    return tree


@pytest.fixture(scope="module")
def metadata(wheel):
    [content] = [content for name, content in wheel.items() if name.endswith(".dist-info/METADATA")]
    return message_from_bytes(content)


def test_the_version_stands_in_one_place():
    assert safe_pip.__version__.encode() not in (PROJECT / "pyproject.toml").read_bytes()
    [assigned] = [
        node.value.value
        for node in ast.parse((SOURCE / "__init__.py").read_bytes()).body
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__version__"
    ]
    assert assigned == safe_pip.__version__


def test_the_distribution_is_not_named_as_the_command_which_is_the_name_of_another_project(metadata, wheel):
    assert metadata["Name"] == "parallel-safe-pip"
    # What an adopted environment looks for, to know a safe-pip that is just being replaced.
    assert b'startswith("parallel_safe_pip-")' in (SOURCE / "_hook.py").read_bytes()
    assert any(name.startswith("parallel_safe_pip-") for name in wheel)


def test_pip_is_the_one_run_time_dependency(metadata):
    assert metadata.get_all("Requires-Dist") == ["pip>=25.3"]


def test_the_wheel_carries_our_licence_and_that_of_every_vendored_library(metadata):
    libraries = [line.split("==")[0] for line in (SOURCE / "_vendor/vendor.txt").read_text().split()]
    expected = ["LICENSE", *(f"src/safe_pip/_vendor/{library}/LICENSE" for library in libraries)]
    assert metadata["License-Expression"] == "MIT"
    assert sorted(metadata.get_all("License-File")) == sorted(expected)


def test_the_wheel_holds_the_source_tree_and_nothing_else(wheel):
    tracked = {
        path.relative_to(SOURCE.parent).as_posix()
        for path in SOURCE.rglob("*")
        if path.is_file() and not any(part.startswith((".", "__pycache__")) for part in path.relative_to(SOURCE).parts)
    }
    assert {name for name in wheel if ".dist-info/" not in name and ".data/" not in name} == tracked
    assert "safe_pip/py.typed" in tracked


def test_the_wheel_installs_a_manual_page_of_the_program_and_of_each_verb(wheel):
    [data] = {name.partition("/")[0] for name in wheel if ".data/" in name}
    names = ["safe-pip", *(f"safe-pip-{verb}" for verb in VERBS)]
    assert {name for name in wheel if ".data/" in name} == {f"{data}/data/share/man/man1/{name}.1" for name in names}


def test_the_wheel_installs_one_command(wheel):
    [content] = [content for name, content in wheel.items() if name.endswith("/entry_points.txt")]
    assert content.decode().split() == ["[console_scripts]", "safe-pip", "=", "safe_pip.__main__:main"]


@pytest.mark.parametrize("repository", [None, "example/example"])
def test_a_release_names_the_repository_that_builds_it(tmp_path, monkeypatch, repository):
    monkeypatch.setenv("GITHUB_SERVER_URL", "https://example.invalid")
    monkeypatch.delenv("GITHUB_REPOSITORY", raising=False)
    if repository is not None:
        monkeypatch.setenv("GITHUB_REPOSITORY", repository)
    built = contents(build("wheel", PROJECT, tmp_path))
    [content] = [content for name, content in built.items() if name.endswith(".dist-info/METADATA")]
    urls = message_from_bytes(content).get_all("Project-URL") or []
    url = "https://example.invalid/example/example"
    below = {
        "Source": "",
        "Issues": "/issues",
        "Documentation": "/tree/HEAD/docs",
        "Changelog": "/blob/HEAD/CHANGELOG.md",
    }
    assert urls == ([] if repository is None else [f"{name}, {url}{path}" for name, path in below.items()])


def test_the_sdist_builds_the_same_wheel(sdist, wheel, tmp_path):
    assert contents(build("wheel", sdist, tmp_path)) == wheel


def test_the_sdist_can_be_tested_as_the_readme_says(sdist):
    for name in (
        "tox.ini",
        "toxfile.py",
        "hatch_build.py",
        "pyproject.toml",
        "README.md",
        ".ci/pythons",
        "tests/unit/test_packaging.py",
    ):
        assert (sdist / name).is_file(), name


def test_the_changelog_begins_with_this_version_and_so_does_the_citation():
    changes = (PROJECT / "CHANGELOG.md").read_text()
    [newest, *_] = re.findall(r"^## \[?(.+?)\]?(?: .*)?$", changes, re.MULTILINE)
    assert newest == safe_pip.__version__
    assert f"\nversion: {newest}\n" in (PROJECT / "CITATION.cff").read_text()


def test_the_workflow_runs_environments_that_tox_has():
    """tox takes any name that is made of its factors, and runs no command for one of none."""
    workflow, tox = (PROJECT / ".github/workflows/ci.yml").read_text(), (PROJECT / "tox.ini").read_text()
    [checks] = re.findall(r"env: \[(.+)\]", workflow)
    assert all(f"[testenv:{name}]" in tox for name in checks.split(", "))
    [full] = re.findall(r"^    full = (.+), docs, package$", tox, re.MULTILINE)
    assert sorted(re.findall(r"env: ([\w-]+) }", workflow)) == sorted(["quick", *full.split(", ")])
