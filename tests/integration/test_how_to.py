"""The tutorial, and how-to pages on tools that need little: build tools, CI, conda and modules, hatch."""

from __future__ import annotations

import os
import runpy
import shutil
import subprocess
import venv
from pathlib import Path

import pytest

from tests.support.pages import PAGES, Page, shell
from tests.support.venvs.pip_environment import PipEnvironment
from tests.support.venvs.tools import Toolbox

pytestmark = pytest.mark.slow
DOCS = PAGES.parent
THREE = {"example_alpha": "2", "example_beta": "2", "example_gamma": "2"}


@pytest.fixture
def env(env: PipEnvironment) -> PipEnvironment:
    """With safe-pip on PATH and the projects of the pages in the index."""
    env.activate()
    runpy.run_path(str(DOCS / "examples.py"))["main"](env.index)
    return env


def program(name: str, env: PipEnvironment, toolbox: Toolbox) -> None:
    """Put a tool on PATH; skips the test if it cannot be had."""
    if shutil.which(name) is None:
        env.more["PATH"] += os.pathsep + str(toolbox.program(name).parent)


def test_the_tutorial_leads_to_its_end(env: PipEnvironment) -> None:
    page = Page.parse("tutorial", (DOCS / "tutorial.md").read_text())
    (env.directory / "docs").mkdir()
    shutil.copy(DOCS / "examples.py", env.directory / "docs")
    done = shell("".join(page.commands[1:]), env.directory, env.variables)
    assert env.installed() == {f"example_{name}": "2" for name in ("alpha", "beta", "common", "gamma")} | {
        "example_helper": env.installed()["example_helper"]
    }
    assert "Sound" in done.stdout.splitlines()[-1]


def test_a_program_takes_the_lock_itself(env: PipEnvironment) -> None:
    page = Page.read("python-programs")
    page.save(env.directory)
    done = shell("".join(page.commands), env.directory, env.variables)
    [site] = env.directory.glob(".venv/lib/python*/site-packages")
    assert {"example_alpha-1.dist-info", "example_beta-2.dist-info"} <= set(os.listdir(site))
    assert " lock: " not in done.stdout, "nothing is held in the end"


@pytest.mark.parametrize("generator", ["-G Ninja", "Unix Makefiles"])
def test_cmake_installs_at_once(env: PipEnvironment, toolbox: Toolbox, generator: str) -> None:
    page = Page.read("cmake-ninja-meson")
    page.save(env.directory)
    program("cmake", env, toolbox)
    if "Ninja" in generator:
        program("ninja", env, toolbox)
    elif shutil.which("make") is None:
        pytest.skip("make is not installed")
    shell(page.command(generator), env.directory, env.variables)
    (site,) = env.directory.glob("build*/venv/lib/python*/site-packages")
    assert {f"{name}.py" for name in THREE} <= set(os.listdir(site))


@pytest.mark.parametrize("tool", ["ninja", "meson"])
def test_ninja_and_meson_install_at_once(env: PipEnvironment, toolbox: Toolbox, tool: str) -> None:
    page = Page.read("cmake-ninja-meson")
    page.save(env.directory)
    program("ninja", env, toolbox)
    program(tool, env, toolbox)
    shell(page.command("meson setup") if tool == "meson" else "ninja\n", env.directory, env.variables)
    assert "ninja\n" in page.commands
    assert env.installed() == THREE


def test_a_cache_that_ci_saves_and_restores_has_the_prepared_wheels(env: PipEnvironment) -> None:
    page = Page.read("ci")
    (env.directory / "requirements.txt").write_text("example-gamma\n")
    install = "safe-pip venv .venv -r requirements.txt\n"
    assert len(page.files) == 3
    assert all(install.partition(" .venv ")[2] in text for text in page.files.values())
    cache = env.directory / "cache"
    variables = env.variables | {"PIP_CACHE_DIR": str(cache)}
    assert shell(page.commands[0], env.directory, variables).stdout == f"{cache}\n"
    shell(install, env.directory, variables)

    def entries() -> dict[str, int]:
        listings = (cache / "safe-pip").glob("prepared-*/wheels/*/listing")
        return {path.parent.name: path.stat().st_ino for path in listings}

    subprocess.run(["tar", "-cf", "cache.tar", "cache"], cwd=env.directory, check=True)
    before = entries()
    assert len(before) == len(THREE)
    shutil.rmtree(cache)
    shutil.rmtree(env.directory / ".venv")
    subprocess.run(["tar", "-xf", "cache.tar"], cwd=env.directory, check=True)
    restored = entries()
    shell(
        f"{install}safe-pip run --env .venv -- .venv/bin/python -c 'import example_gamma'\n", env.directory, variables
    )
    assert entries() == restored
    assert restored.keys() == before.keys()


def test_an_environment_of_conda_and_one_of_a_module_are_named_by_their_path(env: PipEnvironment) -> None:
    page = Page.read("conda-hpc")
    prefix = env.directory / "prefix"
    venv.create(prefix, symlinks=True)
    variables = env.variables | {"CONDA_PREFIX": str(prefix), "WORK": str(env.directory / "work")}
    for command in page.commands:
        shell(command, env.directory, variables)
    assert list(prefix.glob("lib/python*/site-packages/example_gamma.py"))
    assert list(env.directory.glob("work/venv/lib/python*/site-packages/example_alpha.py"))
    assert list(env.directory.glob("work/apps/example-beta/lib/python*/site-packages/example_beta.py"))
    assert env.installed() == {}


def test_the_tasks_of_a_cluster_share_one_environment_or_mount_one_image(env: PipEnvironment) -> None:
    page = Page.read("cluster")
    page.save(env.directory)
    for name in ("work", "local"):
        (env.directory / name).mkdir()
    variables = env.variables | {"WORK": str(env.directory / "work"), "LOCAL": str(env.directory / "local")}
    make, use, build, mount = page.commands
    shell(make + use, env.directory, variables)
    if shutil.which("mksquashfs") is None:
        pytest.skip("the image was not tried: there is no mksquashfs")
    assert "Made `" in shell(build, env.directory, variables).stdout
    assert "is up to date" in shell(build, env.directory, variables).stdout
    assert not (env.directory / "local" / "env").exists()
    if not (shutil.which("squashfuse") and os.access("/dev/fuse", os.W_OK)):
        pytest.skip("the image was not mounted: there is no squashfuse, or no /dev/fuse")
    try:
        assert "example-gamma" in shell(mount, env.directory, variables).stdout
    finally:
        subprocess.run(["fusermount", "-uz", env.directory / "local" / "env"], capture_output=True, check=False)


def test_the_environment_of_hatch_can_be_adopted(env: PipEnvironment, toolbox: Toolbox) -> None:
    program("hatch", env, toolbox)
    (env.directory / "pyproject.toml").write_text(
        '[project]\nname = "example-program"\nversion = "1"\n'
        '[tool.hatch.envs.default]\nskip-install = true\ndependencies = ["example-alpha"]\n'
    )
    env.more["HATCH_DATA_DIR"] = str(env.directory / "hatch")
    env.more["HATCH_CACHE_DIR"] = str(env.directory / "hatch")
    shell(Page.read("other-tools").commands[0], env.directory, env.variables)
    text = (env.directory / "pyproject.toml").read_text()
    (env.directory / "pyproject.toml").write_text(text.replace('"example-alpha"', '"example-alpha", "example-beta"'))
    shell("hatch run python -c 'import example_beta'", env.directory, env.variables)
    (tree,) = Path(env.directory, "hatch").glob("env/**/site-packages")
    assert (tree / ".safe-pip").is_dir(), "pip installed it"
