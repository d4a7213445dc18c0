"""Tiny distributions made in memory: every byte is known, and the same project always gives the same file."""

from __future__ import annotations

import base64
import csv
import gzip
import hashlib
import io
import tarfile
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

Content = str | bytes

# A backend without requirements: the sdist contains its wheel.
IN_TREE_BACKEND = """\
import os, shutil

def _copy(directory):
    (name,) = os.listdir("prebuilt")
    shutil.copy(os.path.join("prebuilt", name), directory)
    return name

def build_wheel(wheel_directory, config_settings=None, metadata_directory=None):
    return _copy(wheel_directory)

build_editable = build_wheel
"""
IN_TREE = '[build-system]\nrequires = []\nbuild-backend = "_backend"\nbackend-path = ["."]\n'
SETUPTOOLS = '[build-system]\nrequires = ["setuptools"]\nbuild-backend = "setuptools.build_meta"\n'


@dataclass(frozen=True)
class Project:
    """One version of one project: what `wheel` and `sdist` make files of.

    `files` are paths in purelib; without any there is one module of the project's name with `__version__`. `data` are
    paths below the environment's prefix, `scripts` are files for its scripts directory.
    """

    name: str
    version: str = "1"
    requires: tuple[str, ...] = ()
    extras: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    files: Mapping[str, Content] | None = None
    console_scripts: Mapping[str, str] = field(default_factory=dict)
    scripts: Mapping[str, Content] = field(default_factory=dict)
    data: Mapping[str, Content] = field(default_factory=dict)
    requires_python: str | None = None

    @property
    def stem(self) -> str:
        return f"{self.name.replace('-', '_')}-{self.version}"

    @property
    def wheel_name(self) -> str:
        return f"{self.stem}-py3-none-any.whl"

    @property
    def sdist_name(self) -> str:
        return f"{self.stem}.tar.gz"

    @property
    def modules(self) -> Mapping[str, Content]:
        if self.files is not None:
            return self.files
        lines = [f"__version__ = {self.version!r}", ""]
        functions = [entry.partition(":")[2] for entry in self.console_scripts.values()]
        lines += [f"def {name}():\n    print(__version__)\n" for name in functions]
        return {f"{self.name.replace('-', '_')}.py": "\n".join(lines)}

    def metadata(self) -> str:
        """Core metadata 2.1, as PKG-INFO and METADATA have it."""
        lines = ["Metadata-Version: 2.1", f"Name: {self.name}", f"Version: {self.version}"]
        lines += [f"Requires-Python: {self.requires_python}"] if self.requires_python else []
        lines += [f"Requires-Dist: {requirement}" for requirement in self.requires]
        for extra, requirements in self.extras.items():
            lines.append(f"Provides-Extra: {extra}")
            lines += [f'Requires-Dist: {requirement}; extra == "{extra}"' for requirement in requirements]
        return "\n".join(lines) + "\n"

    def wheel(self) -> bytes:
        """The wheel (binary distribution format 1.0), stored without compression, dated 1980."""
        info, data = f"{self.stem}.dist-info", f"{self.stem}.data"
        content: dict[str, Content] = dict(self.modules)
        content |= {f"{data}/scripts/{name}": text for name, text in self.scripts.items()}
        content |= {f"{data}/data/{name}": text for name, text in self.data.items()}
        content[f"{info}/METADATA"] = self.metadata()
        content[f"{info}/WHEEL"] = "Wheel-Version: 1.0\nGenerator: tests\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        if self.console_scripts:
            rows = "".join(f"{name} = {entry}\n" for name, entry in self.console_scripts.items())
            content[f"{info}/entry_points.txt"] = f"[console_scripts]\n{rows}"
        content.setdefault(f"{info}/RECORD", _record(content, f"{info}/RECORD"))
        archive = io.BytesIO()
        with zipfile.ZipFile(archive, "w") as file:
            for path, text in content.items():
                mode = 0o755 if path.startswith(f"{data}/scripts/") else 0o644
                member = zipfile.ZipInfo(path)
                member.external_attr = (0o100000 | mode) << 16
                file.writestr(member, _bytes(text))
        return archive.getvalue()

    def source_tree(self, *, backend: str = "in-tree") -> Mapping[str, bytes]:
        """The files of a checkout, built by a backend of its own (`in-tree`) or by `setuptools`."""
        if backend == "in-tree":
            return {
                "pyproject.toml": IN_TREE.encode(),
                "_backend.py": IN_TREE_BACKEND.encode(),
                f"prebuilt/{self.wheel_name}": self.wheel(),
            }
        scripts = "".join(f"{name} = {entry!r}\n" for name, entry in self.console_scripts.items())
        modules = [path.removesuffix(".py") for path in self.modules if path.endswith(".py") and "/" not in path]
        pyproject = (
            f"{SETUPTOOLS}\n[project]\nname = {self.name!r}\nversion = {self.version!r}\n"
            f"dependencies = {list(self.requires)!r}\n\n[project.scripts]\n{scripts}\n"
            f"[tool.setuptools]\npy-modules = {modules!r}\n"
        )
        return {"pyproject.toml": pyproject.encode(), **{path: _bytes(text) for path, text in self.modules.items()}}

    def sdist(self, *, backend: str = "in-tree") -> bytes:
        """The sdist of `source_tree(backend=...)`."""
        content = {**self.source_tree(backend=backend), "PKG-INFO": self.metadata().encode()}
        packed = io.BytesIO()
        with tarfile.open(fileobj=packed, mode="w", format=tarfile.PAX_FORMAT) as archive:
            for path, text in content.items():
                member = tarfile.TarInfo(f"{self.stem}/{path}")
                member.size, member.mode = len(text), 0o644
                archive.addfile(member, io.BytesIO(text))
        return gzip.compress(packed.getvalue(), mtime=0)

    def write_wheel(self, directory: Path) -> Path:
        """Put the wheel into `directory`; on return the path of the file."""
        return _write(directory / self.wheel_name, self.wheel())

    def write_sdist(self, directory: Path, *, backend: str = "in-tree") -> Path:
        """Put the sdist into `directory`; on return the path of the file."""
        return _write(directory / self.sdist_name, self.sdist(backend=backend))

    def write_source_tree(self, directory: Path, *, backend: str = "in-tree") -> Path:
        """Put the source tree's files into `directory`; on return `directory`."""
        for path, text in self.source_tree(backend=backend).items():
            _write(directory / path, text)
        return directory


# A wheel with every kind of file, and a wheel that shares directories with it.
EVERYTHING = Project(
    "every-thing",
    "1",
    files={
        "every/__init__.py": "def fail():\n    raise ValueError('here')\n",
        "every/deep/er.py": "value = 1\n",
        "every/broken.py": "def (:\n",
        "every/data.txt": "text\n",
        "module.py": "",
        "nspace/part/__init__.py": "",
        "every_thing-1.data/purelib/pure.py": "pure = 1\n",
        "every_thing-1.data/platlib/plat.py": "plat = 1\n",
        "every_thing-1.data/headers/every.h": "#define EVERY\n",
    },
    console_scripts={"every": "every:fail"},
    scripts={"every-script": "#!python\nimport every\n", "compiled.py": "#!python\nprint()\n", "plain": "#!/bin/sh\n"},
    data={"share/every/one": "one", "etc/every.conf": "x = 1\n"},
)
OTHER = Project("other", "1", files={"nspace/other/__init__.py": "", "other.py": ""}, data={"share/every/two": "two"})


def digest(content: bytes) -> str:
    """A digest as RECORD spells it (binary distribution format, "The .dist-info directory")."""
    return "sha256=" + base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode()


def _record(content: Mapping[str, Content], own_path: str) -> str:
    text = io.StringIO()
    rows = csv.writer(text, lineterminator="\n")
    rows.writerows((path, digest(_bytes(value)), len(_bytes(value))) for path, value in content.items())
    rows.writerow((own_path, "", ""))
    return text.getvalue()


def _bytes(content: Content) -> bytes:
    return content.encode() if isinstance(content, str) else content


def _write(path: Path, content: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path
