"""Puts into a distribution what the source tree does not hold: the manual pages and, of a release, the project's URLs.

The pages are made from the program's own tables, so they are never out of date. The URLs are those of the repository
whose workflow builds the release, as GitHub tells it.
"""

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface
from hatchling.metadata.plugin.interface import MetadataHookInterface


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


class ProjectURLs(MetadataHookInterface):
    """Where the source, its issues, the documentation and the changelog are; none in a build outside of a workflow."""

    def update(self, metadata: dict[str, Any]) -> None:
        metadata["urls"] = {}
        if repository := os.environ.get("GITHUB_REPOSITORY"):
            url = f"{os.environ.get('GITHUB_SERVER_URL', 'https://github.com')}/{repository}"
            metadata["urls"] = {
                "Source": url,
                "Issues": f"{url}/issues",
                "Documentation": f"{url}/tree/HEAD/docs",
                "Changelog": f"{url}/blob/HEAD/CHANGELOG.md",
            }
