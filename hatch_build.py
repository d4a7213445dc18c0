"""Puts the manual pages into the wheel. They are made from the program's own tables, so they are never out of date."""

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class ManualPages(BuildHookInterface):  # type: ignore[type-arg]
    """Makes them before the wheel is written, and deletes them after it."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        self._directory = tempfile.mkdtemp()
        if version != "editable":
            program = Path(self.root, "docs", "manpages.py")
            subprocess.run([sys.executable, "-IB", program, self._directory], check=True)
        for path in sorted(Path(self._directory).iterdir()):
            build_data["shared_data"][str(path)] = f"share/man/man1/{path.name}"

    def finalize(self, version: str, build_data: dict[str, Any], artifact_path: str) -> None:
        shutil.rmtree(self._directory)
