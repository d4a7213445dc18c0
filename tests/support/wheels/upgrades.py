"""Distributions for upgrades that are killed: two projects in two versions, with all cases that a plan handles.

Packages and modules that change, come and go; a file that becomes a directory; portions of one namespace; scripts of
both kinds; data in directories of their own and in one that both share.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator

from tests.support.wheels.tiny import Content, Project

PROJECTS = ("alpha", "beta")
PROBE = "probe"


def upgrade_projects(files: int) -> Iterator[Project]:
    """Both versions of both distributions, each with this number of files, and the probe."""
    for name, version in itertools.product(PROJECTS, ("1", "2")):
        content: dict[str, Content] = {f"{name}/__init__.py": f"__version__ = {version!r}\ndef main(): pass\n"}
        for number in range(files):
            content[f"{name}/part{number % 8}/module{number}.py"] = f"number, version = {number}, {version!r}\n"
        content |= {
            f"{name}/only{version}.py": "",
            f"{name}_single.py": f"version = {version!r}\n",
            f"{name}_only{version}.py": "",
            f"space/{name}.py": f"version = {version!r}\n",
            f"space/{name}_only{version}/__init__.py": "",
            f"{name}_turned.py" if version == "1" else f"{name}_turned/__init__.py": "",
        }
        data = {
            f"share/things/{name}.txt": version,
            f"share/{name}/only{version}.txt": "",
            f"etc/{name}.conf": version,
        }
        yield Project(
            name,
            version,
            files=content,
            data=data,
            scripts={f"{name}-script": f"#!python\nprint({version!r})\n"},
            console_scripts={name: f"{name}:main", f"{name}{version}": f"{name}:main"},
        )
    yield Project(PROBE)
