"""tox finds every interpreter that pyenv has installed, not only the ones that are switched on in this directory.

Without pyenv this does nothing: tox then finds what is on PATH, and skips the rest by name.
"""

import os
from pathlib import Path

versions = Path(os.environ.get("PYENV_ROOT") or Path.home() / ".pyenv") / "versions"
numbered = [path.name for path in versions.glob("3.*") if path.name.replace(".", "").isdigit()]
if numbered:
    newest_first = sorted(numbered, key=lambda name: [int(part) for part in name.split(".")], reverse=True)
    os.environ.setdefault("PYENV_VERSION", ":".join(newest_first))
