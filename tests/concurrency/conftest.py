import os
import pwd
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A directory for distributions that no process uses yet."""
    made = tmp_path / "venv" / "lib" / "python3" / "site-packages"
    made.mkdir(parents=True)
    return made


@pytest.fixture
def nobody() -> str:
    """The name of a second, unprivileged user for child processes."""
    if os.geteuid() != 0:
        pytest.skip("needs root, to become another user")
    try:
        pwd.getpwnam("nobody")
    except KeyError:
        pytest.skip("there is no user `nobody`")
    return "nobody"


@pytest.fixture
def common(nobody: str) -> Iterator[Path]:
    """A directory of this user that the second user can reach."""
    made = Path(tempfile.mkdtemp(prefix="safe-pip-test-"))
    made.chmod(0o755)
    yield made
    shutil.rmtree(made)
