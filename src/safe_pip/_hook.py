"""What `safe-pip adopt` writes into an environment: Python runs it when it may have been started to be pip.

It stays there when safe-pip changes or goes, so it does little, and needs only `os` and `sys`. It needs one thing of
safe-pip: that `_runner.py` has a `main`. This text is never imported.
"""

import os
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, NoReturn


def is_pip(argv: "list[str]", word: str, tree: str) -> bool:
    """Whether this interpreter was started for pip: `-m pip`, one of pip's scripts, or `tree`/pip itself.

    `word` is what stands on the command line in the place of `argv[0]`: with `-m` the module, perhaps `-Impip`.
    """
    if argv[0] == "-m":
        return (word.partition("m")[2] if word.startswith("-") else word) in ("pip", "pip.__main__")
    if word != argv[0]:
        return False
    name = os.path.basename(word)
    if name == "__main__.py" or os.path.isdir(word):
        place = os.path.dirname(word) if name == "__main__.py" else word
        return os.path.realpath(place) == os.path.realpath(os.path.join(tree, "pip"))
    # A link to the script may have any name.
    if not any(map(is_name, (name, os.path.basename(os.path.realpath(word))))):
        return False
    try:
        with open(word, "rb") as script:
            return name.endswith(".exe") or b"from pip" in script.read(4096)
    except OSError:
        return False


def is_name(name: str) -> bool:
    """Whether a script of pip's may have this name."""
    version = name.replace("-", "").replace(".exe", "").replace(".", "")[3:]
    return name.startswith("pip") and (not version or version.isdigit())


def begin(tree: str, home: str, name: str) -> None:
    """Have this process run the safe-pip at `home` (relative to `tree`, or absolute) when its program asks for pip."""
    word = "".join(sys.orig_argv[-len(sys.argv) :][:1])
    finder = Pip(tree, home, name)
    was_read = any(getattr(each, "file", None) == finder.file for each in sys.meta_path)  # `site` may read it twice
    if sys.argv and is_pip(sys.argv, word, tree) and os.path.exists(finder.file) and not was_read:
        sys.meta_path.insert(0, finder)


def was_removed(home: str) -> bool:
    """Whether the safe-pip at `home` was uninstalled or moved. While it is replaced, its metadata stays."""
    try:
        os.stat(os.path.join(home, "_runner.py"))
    except (FileNotFoundError, NotADirectoryError):
        try:
            beside = os.listdir(os.path.dirname(home))
        except OSError:
            return True
        return not any(each.startswith("parallel_safe_pip-") and each.endswith(".dist-info") for each in beside)
    except OSError:
        pass
    return False


class Pip:
    """Finds and loads `pip`, only for the program that this interpreter was started for."""

    def __init__(self, tree: str, home: str, name: str) -> None:
        self.tree = tree
        self.home = os.path.join(tree, home)
        self.file = os.path.join(tree, name)
        self.was_removed = was_removed(self.home)
        self.has_told = False
        self.spec: Any = type(sys.__spec__)

    def find_spec(self, name: str, path: "Any" = None, target: "Any" = None) -> "Any":
        # An isolated build takes the environment off the path: the pip of the build is its own affair.
        if name.partition(".")[0] != "pip" or self.tree not in sys.path:
            return None
        asker = sys._getframe(1)
        while asker.f_back and "importlib" in asker.f_globals.get("__name__", ""):
            asker = asker.f_back
        if asker.f_globals.get("__name__") not in ("__main__", "runpy"):
            return None  # another `.pth` file, or `sitecustomize`
        if self.was_removed:
            if not self.has_told and sys.stderr:
                sys.stderr.write(
                    f"safe-pip: the safe-pip that `{self.file}` names was removed, so `pip` is plain pip\n"
                )
            self.has_told = True
            return None
        return self.spec(name, self, origin=os.path.join(self.tree, "pip", "__main__.py"))

    def create_module(self, spec: "Any") -> None:
        return None

    def exec_module(self, module: "Any") -> None:
        self.run()  # a script that imports from pip

    def get_code(self, name: str) -> "Any":
        return compile("__loader__.run()", self.file, "exec")  # `-m pip`

    def run(self) -> "NoReturn":
        sys.meta_path.remove(self)
        own = os.path.join(self.tree, "pip")
        program = os.path.join(own, "__main__.py") if sys.argv[0] == "-m" else sys.argv[0]
        # Started as a directory, or by its file, it has itself on the path: no place of distributions.
        sys.path[:] = [each for each in sys.path if os.path.realpath(each) != os.path.realpath(own)]
        runner = os.path.join(self.home, "_runner.py")
        space: dict[str, Any] = {"__name__": "safe_pip._runner", "__file__": runner}
        try:
            with open(runner, "rb") as file:
                exec(compile(file.read(), runner, "exec"), space)
        except (OSError, ImportError) as error:
            sys.stderr.write(
                f"safe-pip: error: `pip` of this environment is safe-pip, which cannot be run any more from "
                f"`{self.home}` ({error}). Nothing was changed. Put safe-pip back there, or delete `{self.file}` "
                "to have plain pip again\n"
            )
            sys.exit(78)
        sys.argv[0] = program
        sys.exit(space["main"]())
