"""The how-to pages as the tests read them: the commands that a reader types, and the files that a reader saves.

A fenced block that is marked `sh` holds commands, run as they stand; one with a language and a file's name
(`makefile Makefile`) holds that file; any other (`text`: output) is only to be read.
"""

from __future__ import annotations

import re
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

PAGES = Path(__file__).resolve().parents[2] / "docs" / "how-to"

# A fence is closed by one that is at least as long, indented no further (CommonMark 0.31, section 4.5).
BLOCK = re.compile(r"^(?P<fence>`{3,})(?P<info>[^`\n]*)\n(?P<text>.*?)^(?P=fence)`*[ ]*$", re.MULTILINE | re.DOTALL)


@dataclass(frozen=True)
class Page:
    """One page: its files by name, and its commands in order."""

    name: str
    files: dict[str, str]
    commands: list[str]

    @classmethod
    def read(cls, name: str) -> Page:
        """The page docs/how-to/<name>.md; raises if it says two different things about one file."""
        return cls.parse(name, (PAGES / f"{name}.md").read_text())

    @classmethod
    def parse(cls, name: str, text: str) -> Page:
        """The page that is written as `text`."""
        files: dict[str, str] = {}
        commands: list[str] = []
        for block in BLOCK.finditer(text):
            language, _, file = block["info"].strip().partition(" ")
            if file:
                if files.setdefault(file, block["text"]) != block["text"]:
                    raise ValueError(f"{name}.md has two different texts for `{file}`")
            elif language == "sh":
                commands.append(block["text"])
        return cls(name, files, commands)

    def save(self, directory: Path) -> None:
        """Write the page's files below a directory."""
        for name, text in self.files.items():
            path = directory / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
            if text.startswith("#!"):
                path.chmod(0o755)

    def command(self, words: str) -> str:
        """The one block of commands in which these words occur; raises if there is none, or more than one."""
        found = [block for block in self.commands if words in block]
        if len(found) != 1:
            raise LookupError(f"{len(found)} blocks of commands in {self.name}.md have `{words}`")
        return found[0]


def shell(
    commands: str, directory: Path, variables: Mapping[str, str], *, status: int | None = 0, timeout: float = 300
) -> subprocess.CompletedProcess[str]:
    """Run a block of commands as a reader would, ending with the first that fails; it must exit with `status`."""
    done = subprocess.run(
        ["sh", "-e", "-c", commands],
        cwd=directory,
        env=dict(variables),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=timeout,
    )
    told = f"exited {done.returncode}:\n{commands}\n{done.stdout[-6000:]}\n{done.stderr[-6000:]}"
    assert status is None or done.returncode == status, told
    return done
