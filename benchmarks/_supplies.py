"""What the benchmark of prepared wheels installs, where its store is, and uv."""

from __future__ import annotations

import shutil
import sys
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from _bench import Bench
from tests.support.venvs.tools import ToolOutOfReach, fetched
from tests.support.wheels.wheelhouse import BACKENDS, NEW, NEW_BINARY

# All of them are at hand where the tests are.
SET = """
attrs certifi charset-normalizer click flit_core hatchling idna jinja2 markupsafe packaging pathspec pluggy pygments
requests setuptools six tomli trove-classifiers urllib3 wheel
argcomplete cachetools colorama distlib filelock humanize platformdirs pyproject_hooks python_discovery virtualenv
""".split()
FROM_TOOLS = ("tox", "nox", "build")
HUNDRED = 100


def set_of_wheels(shared: Bench) -> Path:
    """A directory with one wheel of each project of `SET`; the tools need newer ones than the tests."""
    directory = shared.scratch / "set"
    directory.mkdir()
    in_wheelhouse = [project for project in SET if project in NEW | NEW_BINARY | BACKENDS]
    wheels = [
        *shared.wheelhouse.new(*in_wheelhouse),
        *(wheel for tool in FROM_TOOLS for wheel in fetched(tool).iterdir()),
    ]
    chosen = {_name(wheel): wheel for wheel in wheels}
    for project in SET:
        wheel = chosen[project.replace("-", "_")]
        (directory / wheel.name).symlink_to(wheel)
    return directory


def hundred(shared: Bench, chosen: Path) -> Iterator[Path]:
    """A hundred wheels: the set, what is upgraded elsewhere, all others at hand, then the set again, repacked."""
    directories = (chosen, shared.wheels, shared.wheelhouse.path, *map(fetched, FROM_TOOLS))
    seen: set[str] = set()
    for wheel in (wheel for directory in directories for wheel in sorted(directory.glob("*.whl"))):
        if wheel.name not in seen and _name(wheel) != "pip" and len(seen) < HUNDRED:
            seen.add(wheel.name)
            yield wheel
    left = HUNDRED - len(seen)
    for number in range(left):
        wheels = sorted(chosen.iterdir())
        wheel = wheels[number % len(wheels)]
        again = shared.scratch / f"again-{number}" / wheel.name
        again.parent.mkdir()
        shutil.copyfile(wheel, again)
        with zipfile.ZipFile(again, "a") as archive:
            archive.comment = f"{number}".encode()  # other bytes, the same content
        yield again


def batches_of(wheels: Sequence[Path]) -> list[list[Path]]:
    """Fetch these pins with as few commands as possible: one for each version of a project."""
    batches: list[dict[str, Path]] = []
    for wheel in wheels:
        for batch in batches:
            if batch.setdefault(_name(wheel), wheel) is wheel:
                break
        else:
            batches.append({_name(wheel): wheel})
    return [list(batch.values()) for batch in batches]


def _name(wheel: Path) -> str:
    return wheel.name.split("-")[0].replace(".", "_").lower()


def uv_program(scratch: Path) -> Path | None:
    """uv in an environment of its own; None where it cannot be had."""
    try:
        (wheel,) = fetched("uv").glob("*.whl")
    except ToolOutOfReach as error:
        print(f"without uv: {error}", file=sys.stderr)
        return None
    program = scratch / "uv"
    with zipfile.ZipFile(wheel) as archive:
        (name,) = [name for name in archive.namelist() if name.endswith(".data/scripts/uv")]
        program.write_bytes(archive.read(name))
    program.chmod(0o755)
    return program


def stores(shared: Bench) -> Iterator[Path]:
    """The directories of prepared wheels of the benchmark's user."""
    cache = Path(shared.variables["XDG_CACHE_HOME"])
    for pattern in ("*/prepared-*", "*/*/prepared-*"):
        yield from cache.glob(pattern)


def forget(shared: Bench) -> None:
    """Have no wheel prepared."""
    for store in stores(shared):
        shutil.rmtree(store)


@contextmanager
def forgotten(shared: Bench) -> Iterator[None]:
    """Within, no wheel is prepared; afterwards those are that were before."""
    moved = {store: store.with_name(f"aside-{store.name}") for store in stores(shared)}
    for store, aside in moved.items():
        store.rename(aside)
    try:
        yield
    finally:
        forget(shared)
        for store, aside in moved.items():
            aside.rename(store)


def size_of(directory: Path) -> int:
    """What all below a directory takes on the disk; a file with two names counts once."""
    found: dict[tuple[int, int], int] = {}
    for path in [directory, *directory.rglob("*")]:
        status = path.lstat()
        found[status.st_dev, status.st_ino] = status.st_blocks * 512
    return sum(found.values())
