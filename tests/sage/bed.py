"""A tree of Sage's own build scripts, filled in for some of its smaller Python packages; it comes from the index."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import threading
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from tests.support.pages import Page, shell
from tests.support.venvs.checker import normalize
from tests.support.venvs.template import Venv, clean_environment, offline
from tests.support.wheels.tiny import Project
from tests.support.wheels.wheelhouse import IndexOutOfReach, any_pip, fetch_once, user_cache

VERSION = "10.7"
PROGRAMS = ("bash", "make", "sed", "cc")
WHEELS = ("pip", "setuptools", "wheel", "packaging", "pyproject_hooks", "python_build", "flit_core")
WHEELS += ("six", "attrs", "jinja2")
SDISTS = ("ptyprocess", "markupsafe")
SCRIPT = "sage_conf"
"""A part of Sage that lies in the tree itself: installed as editable, and its wheel is built without isolation."""
PACKAGES = (*WHEELS, *SDISTS, SCRIPT)
REBUILT = (*SDISTS, SCRIPT, "setuptools", "packaging", "attrs", "jinja2")
PROJECTS = {"python_build": "build"}
MODULES = {"python_build": "build", "sage_conf": "_sage_conf", "attrs": "attr"}
USERS_OWN = "example-alpha"
"""What a user installs with `sage -pip`."""
USES = "import importlib, sys; [importlib.import_module(name) for name in sys.argv[1:]]"


def obstacle() -> str:
    """Why Sage's scripts cannot run on this machine; empty if they can."""
    if sys.version_info >= (3, 13):
        return f"Sage {VERSION} is for Python 3.12 and older: `tox -e sage`"
    missing = [name for name in PROGRAMS if shutil.which(name) is None]
    if missing:
        return f"{', '.join(missing)} not found: apt-get install bash make sed gcc libc6-dev"
    sed = subprocess.run(["sed", "--version"], capture_output=True, text=True, check=False)
    return "" if "GNU" in sed.stdout else "the page's edits are for GNU sed"


def fetch() -> Path:
    """Sage's scripts, with what the packages are made of in `upstream`; fetched from the index once."""
    path = user_cache() / "safe-pip-tests" / f"sage-{VERSION}-2"
    return path if path.is_dir() else fetch_once(path, _fetch)


def _fetch(directory: Path) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        pip = [*any_pip(Path(scratch)), "download", "-q", "--no-deps"]
        parts = [f"sage-conf=={VERSION}", f"sagemath-environment=={VERSION}"]
        _download([*pip, "--no-binary", "sage-conf,sagemath-environment", *parts], Path(scratch))
        for archive in Path(scratch).glob("sage*.tar.gz"):
            with tarfile.open(archive) as members:
                members.extraction_filter = getattr(tarfile, "data_filter", None)
                members.extractall(scratch)
        shutil.copytree(Path(scratch, f"sage_conf-{VERSION}", "sage_root"), directory, dirs_exist_ok=True)
        shutil.copy(Path(scratch, f"sagemath_environment-{VERSION}", "bin", "sage"), directory / "src" / "bin")
    for names, kind in ((WHEELS, "--only-binary"), (SDISTS, "--no-binary")):
        pins = [f"{PROJECTS.get(name, name)}=={_version(directory, name).read_text().strip()}" for name in names]
        chosen = ":all:" if names is WHEELS else ",".join(names)
        _download([*pip, kind, chosen, "-d", str(directory / "upstream"), *pins], directory)


def _download(command: list[str], directory: Path) -> None:
    done = subprocess.run(command, cwd=directory, capture_output=True, text=True, check=False)
    if done.returncode:
        raise IndexOutOfReach(f"`{' '.join(command)}` exited {done.returncode}:\n{done.stdout}{done.stderr}")


def _version(root: Path, package: str) -> Path:
    return root / "build" / "pkgs" / package / "package-version.txt"


@dataclass
class Sage:
    """One tree of Sage: what `./configure` would have filled in is filled in for `PACKAGES`."""

    root: Path
    seconds: float = 0.0
    """The processor time of all builds."""
    actions: int = 0
    errors: list[str] = field(default_factory=list)
    """What users met; they took as many `actions`."""

    @classmethod
    def copy(cls, fetched: Path, root: Path) -> Sage:
        shutil.copytree(fetched, root, symlinks=True)
        (root / "build" / "pkgs" / SCRIPT / "src").symlink_to(root / "pkgs" / "sage-conf")
        (root / "local" / "var" / "lib" / "sage" / "installed").mkdir(parents=True)
        Project(USERS_OWN).write_wheel(root.with_name("wheels"))
        made = cls(root)
        made.configure()
        return made

    def configure(self) -> None:
        """Write the files that Sage makes of its templates."""
        needs = {name: _version(self.root, name).with_name("dependencies").read_text() for name in PACKAGES}
        needs = {name: text.splitlines()[0] for name, text in needs.items()}
        words = {word for line in needs.values() for word in line.split() if word.isidentifier()}
        # What the Makefile itself names. A dummy is a package that Sage takes from the system.
        words |= {"setuptools_scm", "hatchling", "zlib", "gmp", "mpfr", "mpc"}
        versions = [f"vers_{name} = {_version(self.root, name).read_text().strip()}" for name in PACKAGES]
        values = {
            "SAGE_PACKAGE_VERSIONS": "\n".join(versions),
            "SAGE_PACKAGE_DEPENDENCIES": "\n".join(f"deps_{name} = {line}" for name, line in needs.items()),
            "SAGE_PACKAGE_TREES": "\n".join(f"trees_{name} = SAGE_VENV" for name in PACKAGES),
            "SAGE_BUILT_PACKAGES": " ".join(PACKAGES),
            "SAGE_OPTIONAL_INSTALLED_PACKAGES": " ".join(PACKAGES),
            "SAGE_DUMMY_PACKAGES": " ".join(sorted(words - {*PACKAGES})),
            "SAGE_NORMAL_PACKAGES": " ".join([*WHEELS, *SDISTS]),
            "SAGE_SCRIPT_PACKAGES": SCRIPT,
            "SHELL": shutil.which("bash") or "",
            "SAGE_ROOT": str(self.root),
            "prefix": str(self.root / "local"),
            "SAGE_VENV": str(self.prefix),
            "PYTHON_FOR_VENV": os.path.realpath(sys.executable),
            "PYTHON_MINOR": str(sys.version_info.minor),
            "CC": "cc",
            "SAGE_EDITABLE": "yes",
            "SAGE_WHEELS": "yes",
        }
        for template in self.root.rglob("*.in"):
            if not template.name.startswith("spkg-"):
                text = template.read_text()
                template.with_suffix("").write_text(re.sub(r"@(\w+)@", lambda name: values.get(name[1], ""), text))

    def edit(self, page: Page, wheel: Path, links: Path) -> None:
        """Change the scripts as the page says; safe-pip is installed from its wheel, pip from `links`."""
        page.save(self.root)
        for commands in page.commands[:2]:
            shell(commands, self.root, self.variables(SAFE_PIP=str(wheel), **offline(links)))

    def variables(self, **more: str) -> dict[str, str]:
        path = os.pathsep.join([os.path.dirname(os.path.realpath(sys.executable)), os.environ["PATH"]])
        return clean_environment(self.root.with_name("home"), PATH=path, MAKE="make -j4", V="0") | more

    @property
    def prefix(self) -> Path:
        return self.root / "local" / "venv"

    @property
    def venv(self) -> Venv:
        """What no distribution brings is not compared: the interpreter, and Sage's own records."""
        path = self.prefix
        own = [each for each in path.rglob("*") if {"var", "python3"} & {*each.relative_to(path).parts}]
        own += [*path.glob("bin/python*"), path / "pyvenv.cfg"]
        return Venv(path, frozenset(str(each.relative_to(path)) for each in own))

    def make(self, target: str = "all-build-venv") -> int:
        """Have Sage build a target; returns the exit status."""
        with self.log.open("wb") as output:
            process = subprocess.Popen(
                ["./install", target],
                cwd=self.root / "build" / "make",
                env=self.variables(),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
            )
            _, status, used = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        self.seconds += used.ru_utime + used.ru_stime
        return process.returncode

    @property
    def log(self) -> Path:
        """What the last build printed."""
        return self.root / "make.log"

    @contextmanager
    def killed(self, package: str) -> Iterator[None]:
        """Within, the recipe of a package is killed at its beginning: the old version is gone by then, as shipped."""
        script = self.root / "build" / "pkgs" / package / "spkg-install.in"
        text = script.read_text()
        script.write_text("kill -9 $$\n" + text)
        try:
            yield
        finally:
            script.write_text(text)

    def in_shell(self, command: str) -> subprocess.CompletedProcess[str]:
        """Run a command with the variables that Sage gives to its recipes."""
        names = "src/bin/sage-{src-env-config,env-config,env} build/bin/sage-build-env{-config,}"
        recipe = 'export SAGE_SPKG_WHEELS="$SAGE_VENV/var/lib/sage/wheels"'
        script = ["bash", "-c", f"for each in {names}; do . $each; done; {recipe}; {command}"]
        variables = self.variables(SAGE_ROOT=str(self.root))
        return subprocess.run(script, cwd=self.root, env=variables, capture_output=True, text=True, check=False)

    def raise_versions(self, packages: Collection[str]) -> None:
        """Give packages a patch level that Sage has not built yet."""
        for name in packages:
            path = _version(self.root, name)
            version, _, level = path.read_text().strip().partition(".p")
            path.write_text(f"{version}.p{int(level or 0) + 1}\n")
        self.configure()

    def stamps(self) -> set[str]:
        """The packages that are built, with their versions, as Sage notes them."""
        names = {path.name for path in self.prefix.glob("var/lib/sage/installed/*")}
        return {name for name in names if not name.startswith("python3_venv")}

    def files(self) -> set[str]:
        """What lies in the environment, without bytecode, locks and the user's own project."""
        path = self.prefix
        found = {each.relative_to(path) for each in path.rglob("*") if not each.is_dir()}
        names = {str(each) for each in found if not {"__pycache__", ".safe-pip", "manifests", "lock"} & {*each.parts}}
        return {name for name in names if USERS_OWN.replace("-", "_") not in name}

    @contextmanager
    def users(self) -> Iterator[None]:
        """Within, a user imports all packages, lists them and installs a project of its own, again and again."""
        over = threading.Event()
        modules = [MODULES.get(name, name) for name in PACKAGES]
        pip = [str(self.root / "src" / "bin" / "sage"), "-pip"]
        wheels = ["--no-index", "--find-links", str(self.root.with_name("wheels"))]
        listing = [*pip, "list", "--format", "json"]
        actions = (
            [str(self.prefix / "bin" / "python"), "-Ic", USES, *modules],
            listing,
            [*pip, "install", "--force-reinstall", *wheels, USERS_OWN],
        )

        def work() -> None:
            while True:
                for command in actions:
                    done = subprocess.run(command, env=self.variables(), capture_output=True, text=True, check=False)
                    self.actions += 1
                    missing = _missing(done.stdout) if command is listing and not done.returncode else []
                    if done.returncode or missing:
                        told = f"not listed: {missing}" if missing else done.stderr[-1500:].strip()
                        self.errors.append(f"{' '.join(command[1:3])}: {done.returncode}: {told}")
                if over.is_set():
                    return

        user = threading.Thread(target=work)
        user.start()
        try:
            yield
        finally:
            over.set()
            user.join()

    def told(self) -> str:
        lines = [each.splitlines()[-1] for each in self.errors]
        used = f"{self.seconds:.0f} s of processor time for its builds"
        told = f"{self.actions} actions of users, {len(self.errors)} errors, {used}"
        return "\n".join([told, *(f"  user: {line}" for line in lines)])


def _missing(listed: str) -> list[str]:
    """Which of the packages `pip list --format json` left out."""
    there = {normalize(each["name"]) for each in json.loads(listed)}
    return sorted({normalize(PROJECTS.get(name, name)) for name in PACKAGES} - there)
