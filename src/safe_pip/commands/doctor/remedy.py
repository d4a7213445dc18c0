"""What would repair what was found: pure decisions."""

import json
import os
from collections.abc import Mapping
from typing import Any, NamedTuple
from urllib.parse import unquote, urlsplit

from safe_pip.commands.doctor.checkup import Finding, Installed, Kind, named, same_version
from safe_pip.records import canonical

_REINSTALLED = (
    *(Kind.MISSING_FILE, Kind.CHANGED_FILE, Kind.WRONG_METADATA, Kind.MISSING_RECORD, Kind.UNREADABLE_RECORD),
    Kind.MISSING_METADATA,
)
_REMOVED = (Kind.LEFTOVER, Kind.OWNERLESS_SCRIPT, Kind.ABANDONED)


class Requirement(NamedTuple):
    """What `install` is to be told: one word, or `-e` and one."""

    words: tuple[str, ...]

    def __str__(self) -> str:
        return " ".join(self.words)


def requirement(installed: Installed) -> Requirement | None:
    """What reinstalls a distribution as it was, from where it came from; None if that is not known.

    https://packaging.python.org/en/latest/specifications/direct-url/
    """
    name, version = installed.name, installed.version
    stem, said = named(installed.info)
    if canonical(stem) != installed.project or (said and not same_version(said, version)):
        # METADATA was exchanged; the name of the directory stands in RECORD.
        name, version = stem, said
    if not name or not version:
        return None
    try:
        words = _from_origin(name, json.loads(installed.origin)) if installed.origin else None
    except (ValueError, LookupError, TypeError, AttributeError):
        words = None
    return Requirement(words or (f"{name}=={version}",))


def _from_origin(name: str, origin: Mapping[str, Any]) -> tuple[str, ...]:
    url = str(origin["url"])
    fragments = [f"subdirectory={origin['subdirectory']}"] if origin.get("subdirectory") else []
    if origin.get("dir_info", {}).get("editable"):
        path = unquote(urlsplit(url).path)
        return ("-e", os.path.join(path, origin.get("subdirectory", "")) if fragments else path)
    vcs = origin.get("vcs_info")
    if vcs:
        url = f"{vcs['vcs']}+{url}@{vcs['commit_id']}"
    hashes = origin.get("archive_info", {}).get("hashes") or {}
    fragments += [f"sha256={hashes['sha256']}"] if "sha256" in hashes else []
    return (f"{name} @ {url}" + ("#" + "&".join(fragments) if fragments else ""),)


def is_hopeless(installed: Installed) -> bool:
    """Whether nothing tells what a metadata directory is of: neither METADATA nor RECORD."""
    return not installed.is_legacy and installed.metadata is None and installed.rows is None


def needs_reinstalling(finding: Finding, installed: Installed) -> bool:
    """Whether a reinstall of the distribution would repair it, and is ours to do."""
    return finding.kind in _REINSTALLED and not installed.is_managed_elsewhere and not is_hopeless(installed)


def described(
    finding: Finding,
    installed: Installed | None,
    wanted: Requirement | None,
    *,
    is_damaged: bool = False,
    is_elsewhere: bool = False,
) -> str:
    """What `--repair` would do, in a few words; empty if it can do nothing.

    `installed` is the distribution that the finding is about, `wanted` what reinstalls it, `is_damaged` whether there
    is more wrong with it; `is_elsewhere`: whether the project of a leftover is installed all the same.
    """
    if finding.kind in _REMOVED:
        again = finding.kind is Kind.LEFTOVER and finding.version and not is_elsewhere
        return f"reinstall `{finding.project}=={finding.version}`, then remove it" if again else "remove it"
    if installed is None:
        return ""
    if finding.kind is Kind.DOUBLED_PROJECT:
        return f"remove the others, then reinstall `{wanted}`" if is_damaged and wanted else "remove the others"
    if is_hopeless(installed):
        return "remove the directory"
    return f"reinstall `{wanted}`" if wanted and needs_reinstalling(finding, installed) else ""
