"""Isolation: from here on nothing is imported from the environment, which other commands change while this one runs.

`site` and `.pth` files have run before our first line, and starting again with `-I -S` would lose `sys.prefix`, the
user site and PYTHONPATH. So the process is isolated from within, by `sys` alone: any other module could come from the
environment (a `json.py` on PYTHONPATH). Modules that are loaded already (coverage, debuggers) stay, except those that
have the name of a standard or a vendored module and come from elsewhere.
"""

import sys

TYPE_CHECKING = False  # as `typing` has it, which is not imported before the path is safe
if TYPE_CHECKING:
    from types import ModuleType
    from typing import Any

    from safe_pip.launch.restart import Start

#: pip, and what it or we vendor under a name that an environment may have as well.
SHADOWED = frozenset(("pip", "filelock", "typing_extensions"))

#: What `sys.path` would be for pip in this interpreter: where it finds, and installs, distributions.
environment_path: tuple[str, ...] = ()

#: (st_dev, st_ino) of our own package directory when this process began; (0, 0) if it was gone by then.
package_identity: tuple[int, int] = (0, 0)

#: How to start this command once more, noted before anything could change it.
start: "Start"

_isolated = False


def isolate() -> None:
    """Import from the standard library alone from now on, and note what the environment was.

    On return `environment_path`, `package_identity` and `start` are set. A second call does nothing.
    """
    global environment_path, package_identity, start, _isolated
    if _isolated:
        return
    _isolated = True
    if sys.version_info >= (3, 15):
        # With `-X lazy_imports=all` each import would wait for the first use: a seam is not there when it is checked.
        sys.set_lazy_imports("normal")
    before = list(sys.path)
    library = standard_library()
    sys.path[:] = library
    _take_finders_off()
    # Built into the interpreter; `os` may still be an impostor.
    system = __import__("nt" if "nt" in sys.builtin_module_names else "posix")
    package_identity = _identity(system.stat, sys.modules["safe_pip"].__path__[0])
    _forget_impostors(library, system.stat)

    import os

    from safe_pip.launch.restart import Start

    start = Start.now()
    environment_path = tuple(_with_user_site(before[1:] if _is_of_the_start(before, os) else before))


def is_current() -> bool:
    """Whether the package on disk is still the one that this process began with: its modules are loaded one by one."""
    import os

    return _identity(os.stat, sys.modules["safe_pip"].__path__[0]) == package_identity


def standard_library() -> list[str]:
    """The directories of the interpreter's own modules, in its order; not all of them need exist."""
    major, minor = sys.version_info[:2]
    if sys.platform == "win32":
        base = sys.base_prefix
        return [f"{base}\\python{major}{minor}.zip", f"{base}\\DLLs", f"{base}\\Lib"]
    threading = "t" if "t" in sys.abiflags else ""
    below = f"{sys.platlibdir}/python{major}.{minor}{threading}"
    library = getattr(sys, "_stdlib_dir", None) or f"{sys.base_prefix}/{below}"
    archive = f"{sys.base_prefix}/{sys.platlibdir}/python{major}{minor}{threading}.zip"
    return [archive, library, f"{sys.base_exec_prefix}/{below}/lib-dynload"]


def _take_finders_off() -> None:
    """Leave only the interpreter's own importers, without hooks of editable installs and without caches."""
    importlib: Any = sys.modules["_frozen_importlib"]
    external: Any = sys.modules["_frozen_importlib_external"]
    sys.meta_path[:] = [importlib.BuiltinImporter, importlib.FrozenImporter, external.PathFinder]
    loaders = (
        (external.ExtensionFileLoader, __import__("_imp").extension_suffixes()),
        (external.SourceFileLoader, external.SOURCE_SUFFIXES),
        (external.SourcelessFileLoader, external.BYTECODE_SUFFIXES),
    )
    sys.path_hooks[:] = [__import__("zipimport").zipimporter, external.FileFinder.path_hook(*loaders)]
    sys.path_importer_cache.clear()


def _forget_impostors(library: list[str], stat: "Any") -> None:
    """Drop loaded modules that are not what their name says, so that the next import finds the real ones."""
    identities = {_identity(stat, directory) for directory in library} - {(0, 0)}
    forgotten = set()
    for name, module in list(sys.modules.items()):
        if name in SHADOWED:
            forgotten.add(name)
        elif name in sys.stdlib_module_names and not name.startswith("_frozen_importlib"):
            # The import system itself is compiled in, but `importlib` gives it a `__file__` of its own.
            directory = _directory(module)
            if directory is not None and directory not in library and _identity(stat, directory) not in identities:
                forgotten.add(name)
    if forgotten:
        for name in list(sys.modules):
            if name.partition(".")[0] in forgotten:
                del sys.modules[name]


def _directory(module: "ModuleType") -> str | None:
    """The directory that a top-level module was found in; None for one that is built in, or was made by hand."""
    try:
        # Not `vars` or `getattr`: a lazy module would load itself, from the environment, when asked.
        attributes = object.__getattribute__(module, "__dict__")
    except AttributeError:
        return None
    path = attributes.get("__file__")
    if attributes.get("__path__") is not None:
        path = next(iter(attributes["__path__"]), None)
    if not isinstance(path, str):
        return None
    separator = "\\" if sys.platform == "win32" and "\\" in path else "/"
    return path.rpartition(separator)[0]


def _with_user_site(path: list[str]) -> list[str]:
    """`path` with the user site in its place if that may be used and does not exist, where `site` leaves it out.

    The first `--user` install makes it, and a command that began before has to see it.
    """
    site: Any = sys.modules.get("site")
    user = getattr(site, "ENABLE_USER_SITE", None) and getattr(site, "USER_SITE", None)
    if not user or user in path:
        return path
    systems = site.getsitepackages([sys.base_prefix, sys.base_exec_prefix])
    place = next((number for number, entry in enumerate(path) if entry in systems), len(path))
    return [*path[:place], user, *path[place:]]


def _identity(stat: "Any", directory: str) -> tuple[int, int]:
    try:
        found = stat(directory)
    except (OSError, ValueError):
        return (0, 0)
    return found.st_dev, found.st_ino


def _is_of_the_start(path: list[str], os: "Any") -> bool:
    """Whether `path` begins with the directory of a console script or, with `-m`, the working directory.

    With `-I` or `-P`, or if the working directory is gone, the interpreter puts neither there.
    """
    if not path or sys.flags.isolated or getattr(sys.flags, "safe_path", False):
        return False
    main = sys.modules.get("__main__")
    if getattr(main, "__spec__", None) is None and getattr(main, "__file__", None) is not None:
        return True
    try:
        return path[0] in ("", os.getcwd())
    except OSError:
        return path[0] == ""
