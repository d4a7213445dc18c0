"""The sources of a superbuild: twenty small packages, two of them C libraries and two C extensions.

Without a C compiler and the headers of Python there are no libraries, and the extensions are pure.
"""

from __future__ import annotations

import json
import shutil
import sysconfig
from pathlib import Path
from typing import NamedTuple

HAS_COMPILER = shutil.which("cc") is not None and Path(sysconfig.get_path("include"), "Python.h").is_file()

# A build backend that is one of the packages. It reads `package.json`, and packs what is below `src` and `data`.
# Each package says which versions of other packages and which C libraries it was built with. A file `trap` ends its
# recipe, once: "kill" at once, "interrupt" as Ctrl-C in the terminal of ninja does.
BACKEND = r"""
import base64, hashlib, importlib, io, json, os, shlex, signal, subprocess, sysconfig, zipfile

VERSION = "1"

def _spring(trap):
    os.unlink("trap")
    if trap == "kill":
        os.killpg(0, signal.SIGKILL)
    ninja = int(open(f"/proc/{os.getpgrp()}/stat").read().rpartition(")")[2].split()[1])
    os.kill(ninja, signal.SIGINT)
    signal.pause()

def _metadata():
    with open("package.json") as file:
        project = json.load(file)
    lines = [f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {project['version']}\n"]
    lines += [f"Requires-Dist: {each}\n" for each in project["requires"]]
    info = f"{project['name'].replace('-', '_')}-{project['version']}.dist-info"
    wheel = "Wheel-Version: 1.0\nGenerator: builder\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
    return project, info, {f"{info}/METADATA": "".join(lines).encode(), f"{info}/WHEEL": wheel.encode()}

def prepare_metadata_for_build_wheel(directory, config_settings=None):
    _, info, files = _metadata()
    os.mkdir(os.path.join(directory, info))
    for path, content in files.items():
        with open(os.path.join(directory, path), "wb") as file:
            file.write(content)
    return info

def _compile(source, libraries, target):
    flags = shlex.split(os.environ["CFLAGS"]) + ["-I" + sysconfig.get_path("include")]
    links = shlex.split(os.environ["LDFLAGS"]) + ["-l" + each for each in libraries]
    subprocess.run(["cc", "-shared", "-fPIC", *flags, source, "-o", target, *links], check=True)
    with open(target, "rb") as file:
        return file.read()

def build_wheel(directory, config_settings=None, metadata_directory=None):
    if os.path.exists("trap"):
        _spring(open("trap").read())
    project, info, files = _metadata()
    root = project["module"].replace(".", "/")
    uses = {each: importlib.import_module(each).VERSION for each in project["uses"]}
    files[f"{root}/built_with.py"] = f"USES = {uses!r}\n".encode()
    for top, place in (("src", ""), ("data", f"{info[:-10]}.data/data/")):
        for above, _, names in os.walk(top):
            for path in (os.path.join(above, name) for name in names if name.endswith((".py", ".txt"))):
                with open(path, "rb") as file:
                    files[place + os.path.relpath(path, top)] = file.read()
    if os.path.exists("native.c"):
        target = os.path.join(directory, "native.so")
        files[f"{root}/native.so"] = _compile("native.c", project["libraries"], target)
        os.unlink(target)
    record = ""
    for path, content in files.items():
        digest = base64.urlsafe_b64encode(hashlib.sha256(content).digest()).decode().rstrip("=")
        record += f"{path},sha256={digest},{len(content)}\n"
    files[f"{info}/RECORD"] = f"{record}{info}/RECORD,,\n".encode()
    name = f"{info[:-10]}-py3-none-any.whl"
    with zipfile.ZipFile(os.path.join(directory, name), "w") as archive:
        for path, content in files.items():
            archive.writestr(zipfile.ZipInfo(path), content)
    return name
"""
EXTENSION = """\
#include <Python.h>
{includes}
static PyObject *version(PyObject *self, PyObject *none) {{ return PyLong_FromLong({value}); }}
static PyMethodDef methods[] = {{{{"version", version, METH_NOARGS, 0}}, {{0}}}};
static struct PyModuleDef module = {{PyModuleDef_HEAD_INIT, "native", 0, -1, methods}};
PyMODINIT_FUNC PyInit_native(void) {{ return PyModule_Create(&module); }}
"""
LIBRARY = """\
cmake_minimum_required(VERSION 3.20)
project({name} LANGUAGES C)
add_library({name} SHARED {name}.c)
{links}
install(TARGETS {name} LIBRARY DESTINATION lib)
install(FILES {name}.h {name}{version}.h DESTINATION include)
"""
LINKS = """\
find_library(needed {needs} REQUIRED)
find_path(headers {needs}.h REQUIRED)
target_include_directories({name} PRIVATE ${{headers}})
target_link_libraries({name} PRIVATE ${{needed}})
set_target_properties({name} PROPERTIES INSTALL_RPATH ${{CMAKE_INSTALL_PREFIX}}/lib)"""


class Package(NamedTuple):
    """A Python package: what its build imports (`uses`) and links with, and what it requires when it runs."""

    name: str
    uses: tuple[str, ...] = ()
    libraries: tuple[str, ...] = ()
    requires: tuple[str, ...] = ()

    @property
    def module(self) -> str:
        kind, _, number = self.name.partition("-")
        return f"{kind}.part{number}" if kind == "space" else self.name.replace("-", "_")


PACKAGES = (
    Package("builder"),
    Package("templates"),
    *(Package(f"pages-{number}", uses=("templates",)) for number in "123"),
    Package("codec", libraries=("vector",)),
    Package("solver", libraries=("vector", "matrix"), requires=("codec",)),
    *(Package(f"space-{number}") for number in "1234"),
    *(Package(f"shared-{number}") for number in "1234"),
    *(Package(f"app-{number}", requires=(f"space-{number}", f"shared-{number}", "templates")) for number in "123"),
)
NAMES = frozenset(each.name for each in PACKAGES)
MODULES = {each.module: each.name for each in PACKAGES}
LIBRARIES = {"vector": "", "matrix": "vector"}
HALF = frozenset(["templates", "pages-1", "codec", "space-1", "space-2", "shared-1", "shared-2", "app-1", "app-2"])
"""What gets a second version, with the library `vector`. With what is built with these it is half of the superbuild."""
assert len(PACKAGES) + len(LIBRARIES) == 20


def write(directory: Path, *, second: bool = False) -> None:
    """Write all sources, with their list, in the first versions, or half of them in the second."""
    lines = []
    for name, needs in LIBRARIES.items() if HAS_COMPILER else ():
        version = "2" if second and name == "vector" else "1"
        _write_library(directory / "libraries" / name, name, version, needs)
        replaces = " REPLACES 1" if version == "2" else ""
        lines.append(f"library({name} {version}{replaces}{f' NEEDS {needs}' if needs else ''})")
    for each in PACKAGES:
        _write_package(directory / "packages" / each.name, each, "2" if second and each.name in HALF else "1")
        needs = [*each.uses, *(each.libraries if HAS_COMPILER else ()), *each.requires]
        needs += ["builder"] if each.name != "builder" else []
        heavy = " HEAVY" if each.libraries else ""
        lines.append(
            f"package({each.name}{heavy}{''.join(f' {need}' for need in (['NEEDS', *needs] if needs else []))})"
        )
    save(directory / "packages.cmake", "\n".join(lines) + "\n")


def save(path: Path, text: str) -> None:
    """Write a file, unless it has this text: its time tells ninja whether it has changed."""
    if not path.is_file() or path.read_text() != text:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def _write_library(tree: Path, name: str, version: str, needs: str) -> None:
    links = LINKS.format(name=name, needs=needs) if needs else ""
    include, value = (f"#include <{needs}.h>\n", f"{needs}_version()") if needs else ("", version)
    for path, text in {
        "CMakeLists.txt": LIBRARY.format(name=name, version=version, links=links),
        f"{name}.c": f"{include}int {name}_version(void) {{ return {value}; }}\n",
        f"{name}.h": f"int {name}_version(void);\n#define {name.upper()} {version}\n",
        f"{name}{version}.h": f"#define {name.upper()}_ONLY {version}\n",
    }.items():
        save(tree / path, text)


def _write_package(tree: Path, package: Package, version: str) -> None:
    libraries = package.libraries if HAS_COMPILER else ()
    own = package.name == "builder"
    needed = [] if own else ["builder", *package.uses]
    where = '\nbackend-path = ["src"]' if own else ""
    about = {"name": package.name, "version": version, "module": package.module, "uses": package.uses}
    about |= {"libraries": libraries, "requires": package.requires}
    root = tree / "src" / package.module.replace(".", "/")
    files = {
        tree / "pyproject.toml": f'[build-system]\nrequires = {json.dumps(needed)}\nbuild-backend = "builder"{where}\n',
        tree / "package.json": json.dumps(about),
        root / "__init__.py": BACKEND if own else f"from . import one, two\nVERSION = {version!r}\n",
        root / f"only{version}.py": "",
    }
    files |= {root / f"{name}.py": f"VERSION = {version!r}\n" for name in ("one", "two")}
    if package.name.startswith("shared"):
        files[tree / f"data/share/superbuild/{package.name}.txt"] = version
    if package.name.startswith("app"):
        test = f"import unittest, {package.module} as app\nclass T(unittest.TestCase):\n    def test(self):\n"
        files[tree / "tests" / f"test_{package.module}.py"] = (
            f"{test}        self.assertEqual({{app.VERSION, app.one.VERSION, app.two.VERSION}}, {{{version!r}}})\n"
        )
    if libraries:
        includes = "".join(f"#include <{each}.h>\n" for each in libraries)
        value = " + ".join(f"10 * {each.upper()} + {each}_version()" for each in libraries)
        files[tree / "native.c"] = EXTENSION.format(includes=includes, value=value)
        files[root / "__init__.py"] += "from . import native\n"
    if version == "2":
        (root / "only1.py").unlink(missing_ok=True)
    for path, text in files.items():
        save(path, text)
