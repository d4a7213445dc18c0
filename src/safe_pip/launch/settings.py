"""safe-pip's own settings: from the command line, the environment, and pip's configuration files.

The files are read here and not by pip, because the first lock is taken before pip can be imported. `configparser` and
`locale` are imported only if there is such a file, `difflib` only if there is a name that is no setting.
"""

import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, Any, NamedTuple

from safe_pip.errors import UsageError

if TYPE_CHECKING:
    from configparser import RawConfigParser

_PREFIX = "SAFE_PIP_"
_SET_BY_US = ("SAFE_PIP_ATTEMPT", "SAFE_PIP_FROZEN", "SAFE_PIP_FROZEN_ORIGIN", "SAFE_PIP_HELD")
"""Variables that are no settings: safe-pip sets them for its children."""


class Settings(NamedTuple):
    """What the user asked of safe-pip itself; the defaults stand here."""

    lock_timeout: float | None = None
    durable: bool = False
    verify: str | None = None
    link_mode: str = "clone"
    cache_limit: int = 10_000_000_000
    fast_start: bool = True
    trace: str | None = None
    prefix_output: str | None = None

    def for_child(self) -> dict[str, str]:
        """The settings in force, as variables for another interpreter's safe-pip."""
        values = {each.variable: getattr(self, each.name) for each in TABLE}
        return {
            variable: str(int(value) if isinstance(value, bool) else value)
            for variable, value in values.items()
            if value is not None
        }


def seconds(text: str, source: str) -> float:
    """A time, 0 or more seconds; or `UsageError`, which names the `source` of the text."""
    with suppress(ValueError):
        if 0 <= (value := float(text)) <= 10**9:
            return value
    raise UsageError(f"`{text}` is not a number of seconds ({source})")


def switch(text: str, source: str) -> bool:
    """Yes or no, in the words that pip's configuration takes; or `UsageError`."""
    words = ("n", "no", "f", "false", "off", "0", "y", "yes", "t", "true", "on", "1")
    if text.lower() not in words:
        raise UsageError(f"`{text}` is neither yes nor no ({source})")
    return words.index(text.lower()) > 5


def either(*words: str) -> Callable[[str, str], str | None]:
    """A parser of one of these words, which raises `UsageError` for others; `none` gives None."""

    def parse(text: str, source: str) -> str | None:
        if text not in words:
            *others, last = (f"`{word}`" for word in words)
            raise UsageError(f"`{text}` is neither {', '.join(others)} nor {last} ({source})")
        return None if text == "none" else text

    return parse


def label(text: str, source: str) -> str:
    """What stands in one line of a terminal; or `UsageError`."""
    if text.isprintable():
        return text
    raise UsageError(f"{text!r} cannot be printed in a line ({source})")


def size(text: str, source: str) -> int:
    """A number of bytes, or of kB, MB, GB or TB with that first letter behind it; raises `UsageError`."""
    number, unit = (text[:-1], text[-1:].upper()) if text[-1:].isalpha() else (text, "")
    with suppress(ValueError):
        if 0 <= (value := float(number) * 1000 ** ["", "K", "M", "G", "T"].index(unit)) <= 10**18:
            return int(value)
    raise UsageError(f"`{text}` is not a size like `500M` or `10G` ({source})")


def directory(text: str, source: str) -> str:
    """The absolute path of a directory, which may be missing; raises `UsageError`."""
    if not text:
        raise UsageError(f"the name of a directory is empty ({source})")
    return os.path.abspath(text)


class Setting(NamedTuple):
    """One setting: the field of `Settings`, the parser of its value, and what help says."""

    name: str
    parse: Callable[[str, str], Any]
    help: str
    option: str | None = None
    """What help calls the value of its option; empty if that takes none, None if there is no such option."""

    @property
    def key(self) -> str:
        """The key in section `[safe-pip]` of pip's configuration; the option is `--key`."""
        return self.name.replace("_", "-")

    @property
    def variable(self) -> str:
        """The environment variable."""
        return f"{_PREFIX}{self.name.upper()}"


TABLE = (
    Setting("lock_timeout", seconds, "Seconds to wait for locks; 0: do not wait.", "SECONDS"),
    Setting("durable", switch, "Changes survive a loss of power, not only the death of the process.", ""),
    Setting(
        "verify",
        either("import", "record", "none"),
        "`import`: import what is new once before it is put in. `record`: refuse wheels that differ from their RECORD.",
        "import|record|none",
    ),
    Setting("link_mode", either("clone", "copy"), "How prepared wheels get into an environment: `clone` or `copy`."),
    Setting("cache_limit", size, "What the store of prepared wheels may take, like `500M`; 0: no store."),
    Setting("fast_start", switch, "Whether pip's start is made cheaper (see docs/performance.md)."),
    Setting("trace", directory, "Note what happens when in files in DIR, for `safe-pip trace DIR`.", "DIR"),
    Setting("prefix_output", label, "Begin each line of output with NAME and `|`; no progress bars.", "NAME"),
)

OPTIONS = {f"--{each.key}": each for each in TABLE if each.option is not None}
"""Those that are options, before and after each command."""


def configuration_files(environ: Mapping[str, str], *, isolated: bool = False) -> list[str]:
    """The files that pip reads, those that win last (https://pip.pypa.io/en/stable/topics/configuration/)."""
    name = "pip.ini" if sys.platform == "win32" else "pip.conf"
    home = os.path.expanduser("~")
    named = environ.get("PIP_CONFIG_FILE")
    if named == os.devnull:
        return []
    if sys.platform == "win32":
        system = [os.path.join(environ.get("PROGRAMDATA", r"C:\ProgramData"), "pip")]
        user = [os.path.join(home, "pip"), os.path.join(environ.get("APPDATA", home), "pip")]
    elif sys.platform == "darwin":
        support = os.path.join(home, "Library", "Application Support", "pip")
        system = ["/Library/Application Support/pip"]
        user = [os.path.join(home, ".pip"), support if os.path.isdir(support) else os.path.join(home, ".config", "pip")]
    else:
        shared = (environ.get("XDG_CONFIG_DIRS") or "/etc/xdg").split(os.pathsep)
        system = [*(os.path.join(directory, "pip") for directory in shared), "/etc"]
        settings = environ.get("XDG_CONFIG_HOME") or os.path.join(home, ".config")
        user = [os.path.join(home, ".pip"), os.path.join(settings, "pip")]
    is_users = not isolated and not (named and os.path.exists(named))
    files = [os.path.join(directory, name) for directory in (*system, *(user if is_users else ()), sys.prefix)]
    return files + [named] if named else files


def suggestion(word: str, known: Iterable[str], prefix: str = "--") -> str | None:
    """A hint for a word that is a slip of the pen for one of those that are `known`; all begin with `prefix`."""
    import difflib

    found = difflib.get_close_matches(word.removeprefix(prefix), [each.removeprefix(prefix) for each in known], 1, 0.7)
    return f"Did you mean `{prefix}{found[0]}`?" if found else None


def load(
    environ: Mapping[str, str],
    *,
    isolated: bool = False,
    warn: Callable[[str], object] = str,
    **options: str | bool | None,
) -> Settings:
    """The settings in force: an option wins over the environment, the environment over the files.

    `options` has None or False for one that was not given. Raises `UsageError` for a value that cannot be parsed. A
    file that cannot be read or parsed is left to pip, which says so. `warn` is called for a name that is no setting.
    """
    found: dict[str, Any] = {}
    keys, variables = [each.key for each in TABLE], [each.variable for each in TABLE]
    for name in [] if isolated else [name for name in environ if name.startswith(_PREFIX) and name not in _SET_BY_US]:
        if name not in variables and (meant := suggestion(name, variables, _PREFIX)):
            warn(f"warning: there is no variable `{name}`. {meant}")
    for file, parser in _parsed(environ, isolated=isolated):
        for key in sorted(set(parser["safe-pip"]).difference(keys, parser.defaults())) if "safe-pip" in parser else ():
            meant = suggestion(key, keys, "") or f"There are {', '.join(f'`{each}`' for each in keys)}"
            warn(f"warning: there is no setting `{key}` ([safe-pip] in `{file}`). {meant}")
        for each in TABLE:
            if (value := parser.get("safe-pip", each.key, fallback=None)) is not None:
                found[each.name] = each.parse(value, f"{each.key} in {file}")
    for each in TABLE:
        value, given = environ.get(each.variable), options.get(each.name)
        if value and not isolated:
            found[each.name] = each.parse(value, each.variable)
        if given not in (None, False):
            found[each.name] = each.parse(given, f"--{each.key}") if isinstance(given, str) else given
    return Settings(**found)


def of_install(environ: Mapping[str, str], *, isolated: bool) -> dict[str, str]:
    """What pip's configuration and variables say of the options of `pip install`, by their long names."""
    found: dict[str, str] = {}
    parsers = [parser for _, parser in _parsed(environ, isolated=isolated)]
    for section in ("global", "install"):
        for parser in parsers:
            found.update(parser.items(section) if parser.has_section(section) else ())
    for name, value in () if isolated else environ.items():
        if name.startswith("PIP_") and value:
            found[name.removeprefix("PIP_").lower().replace("_", "-")] = value
    return found


def _parsed(environ: Mapping[str, str], *, isolated: bool) -> "Iterator[tuple[str, RawConfigParser]]":
    """Those of the files that there are and that can be parsed."""
    for file in configuration_files(environ, isolated=isolated):
        if os.path.isfile(file):
            import configparser
            import locale

            parser = configparser.RawConfigParser()
            with suppress(configparser.Error, OSError, UnicodeDecodeError):
                parser.read(file, encoding=locale.getpreferredencoding(False))
                yield file, parser
