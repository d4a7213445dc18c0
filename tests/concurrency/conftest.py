import os
import pwd
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A directory that holds distributions, with nobody in it yet."""
    made = tmp_path / "venv" / "lib" / "python3" / "site-packages"
    made.mkdir(parents=True)
    return made


@pytest.fixture
def nobody() -> str:
    """The name of a second, unprivileged user whom this process may become."""
    if os.geteuid() != 0:
        pytest.skip("needs root, to become another user")
    try:
        pwd.getpwnam("nobody")
    except KeyError:
        pytest.skip("there is no user `nobody`")
    return "nobody"


@pytest.fixture
def common(nobody: str) -> Iterator[Path]:
    """A directory that the second user can reach, and that this one owns."""
    made = Path(tempfile.mkdtemp(prefix="safe-pip-test-"))
    made.chmod(0o755)
    yield made
    shutil.rmtree(made)
