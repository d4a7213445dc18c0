"""safe-pip's own settings: from the command line, the environment, and pip's configuration files.

The files are read here and not by pip, because the first lock is taken before pip can be imported.
"""

import os
import sys
from collections.abc import Mapping
from typing import NamedTuple

from safe_pip.errors import UsageError


class Settings(NamedTuple):
    """What the user asked of safe-pip itself."""

    lock_timeout: float | None = None
    """Seconds to wait for locks; None waits for ever, 0 does not wait."""
    proxies: tuple[str, ...] = ()
    """Every proxy that pip may be told to use; only looked at to see whether one is a SOCKS proxy."""
    durable: bool = False
    """Whether a change is to survive a loss of power, not only the death of the process."""
    verify: str | None = None
    """`import`: what is new is imported once before it is put in; None: nothing is."""
    link_mode: str = "clone"
    """How files get from the store of prepared wheels into an environment: `clone` or `copy`."""
    cache_limit: int = 10_000_000_000
    """The bytes that the store of prepared wheels may take; with 0 there is none."""


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
        user = [
            os.path.join(home, ".pip"),
            os.path.join(environ.get("XDG_CONFIG_HOME") or os.path.join(home, ".config"), "pip"),
        ]
    directories = list(system)
    if not isolated and not (named and os.path.exists(named)):
        directories += user
    directories.append(sys.prefix)
    files = [os.path.join(directory, name) for directory in directories]
    return files + [named] if named else files


def load(
    environ: Mapping[str, str],
    *,
    lock_timeout: str | None = None,
    durable: bool = False,
    verify: str | None = None,
    proxy: str | None = None,
    isolated: bool = False,
) -> Settings:
    """The settings in force; the option wins over the environment, the environment over the files.

    Raises `UsageError` for a value that is none. A file that cannot be read or parsed is left to pip, which says so.
    """
    settings = Settings()
    for file in configuration_files(environ, isolated=isolated):
        if os.path.isfile(file):
            settings = _with_file(settings, file)
    variables = {} if isolated else environ
    if variables.get("SAFE_PIP_LOCK_TIMEOUT"):
        settings = settings._replace(lock_timeout=seconds(variables["SAFE_PIP_LOCK_TIMEOUT"], "SAFE_PIP_LOCK_TIMEOUT"))
    if variables.get("SAFE_PIP_DURABLE"):
        settings = settings._replace(durable=switch(variables["SAFE_PIP_DURABLE"], "SAFE_PIP_DURABLE"))
    if variables.get("SAFE_PIP_VERIFY"):
        settings = settings._replace(verify=check(variables["SAFE_PIP_VERIFY"], "SAFE_PIP_VERIFY"))
    if variables.get("SAFE_PIP_LINK_MODE"):
        settings = settings._replace(link_mode=link_mode(variables["SAFE_PIP_LINK_MODE"], "SAFE_PIP_LINK_MODE"))
    if variables.get("SAFE_PIP_CACHE_LIMIT"):
        settings = settings._replace(cache_limit=size(variables["SAFE_PIP_CACHE_LIMIT"], "SAFE_PIP_CACHE_LIMIT"))
    if lock_timeout is not None:
        settings = settings._replace(lock_timeout=seconds(lock_timeout, "--lock-timeout"))
    if verify is not None:
        settings = settings._replace(verify=check(verify, "--verify"))
    settings = settings._replace(durable=durable or settings.durable)
    named = ("PIP_PROXY", "ALL_PROXY", "all_proxy", "HTTPS_PROXY", "https_proxy", "HTTP_PROXY", "http_proxy")
    proxies = [proxy, *(environ.get(name) for name in named)]
    return settings._replace(proxies=settings.proxies + tuple(value for value in proxies if value))


def _with_file(settings: Settings, file: str) -> Settings:
    import configparser
    import locale

    parser = configparser.RawConfigParser()
    try:
        parser.read(file, encoding=locale.getpreferredencoding(False))
    except (configparser.Error, OSError, UnicodeDecodeError):
        return settings
    timeout = parser.get("safe-pip", "lock-timeout", fallback=None)
    if timeout is not None:
        settings = settings._replace(lock_timeout=seconds(timeout, f"lock-timeout in {file}"))
    durable = parser.get("safe-pip", "durable", fallback=None)
    if durable is not None:
        settings = settings._replace(durable=switch(durable, f"durable in {file}"))
    verify = parser.get("safe-pip", "verify", fallback=None)
    if verify is not None:
        settings = settings._replace(verify=check(verify, f"verify in {file}"))
    mode = parser.get("safe-pip", "link-mode", fallback=None)
    if mode is not None:
        settings = settings._replace(link_mode=link_mode(mode, f"link-mode in {file}"))
    limit = parser.get("safe-pip", "cache-limit", fallback=None)
    if limit is not None:
        settings = settings._replace(cache_limit=size(limit, f"cache-limit in {file}"))
    found = tuple(parser.get(section, "proxy") for section in parser.sections() if parser.has_option(section, "proxy"))
    return settings._replace(proxies=settings.proxies + found)


def seconds(text: str, source: str) -> float:
    """A time of the user's, 0 or more; raises `UsageError`, which names its source."""
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value <= 10**9:
        raise UsageError(f"`{text}` is not a number of seconds ({source})")
    return value


def switch(text: str, source: str) -> bool:
    """A choice between yes and no, in the words that pip's configuration takes; raises `UsageError`."""
    if text.lower() in ("y", "yes", "t", "true", "on", "1"):
        return True
    if text.lower() in ("n", "no", "f", "false", "off", "0"):
        return False
    raise UsageError(f"`{text}` is neither yes nor no ({source})")


def check(text: str, source: str) -> str | None:
    """What is to be checked of new distributions before they are put in; raises `UsageError`."""
    if text == "import":
        return text
    if text == "none":
        return None
    raise UsageError(f"`{text}` is neither `import` nor `none` ({source})")


def link_mode(text: str, source: str) -> str:
    """How files get from the store into an environment; raises `UsageError`."""
    if text in ("clone", "copy"):
        return text
    raise UsageError(f"`{text}` is neither `clone` nor `copy` ({source})")


def size(text: str, source: str) -> int:
    """A number of bytes, or of kB, MB, GB or TB with the first letter behind it; raises `UsageError`."""
    number, unit = (text[:-1], text[-1:].upper()) if text[-1:].isalpha() else (text, "")
    try:
        value = float(number) * 1000 ** ["", "K", "M", "G", "T"].index(unit)
    except ValueError:
        value = -1.0
    if not 0 <= value <= 10**18:
        raise UsageError(f"`{text}` is not a size like `500M` or `10G` ({source})")
    return int(value)
