"""What the seams put off until it is wanted."""

import os
import subprocess
import sys
from pathlib import Path

from safe_pip.pip_seams import seams


def test_what_draws_tracebacks_is_imported_when_something_of_it_is_wanted(tmp_path: Path) -> None:
    package = tmp_path / "pip" / "_vendor" / "rich"
    package.mkdir(parents=True)
    for directory in (package.parent.parent, package.parent, package):
        (directory / "__init__.py").touch()
    (package / "traceback.py").write_text("print('imported')\ndef install(): print('installed')\n")
    program = (
        "from safe_pip.pip_seams.seams import _put_tracebacks_off\n"
        "_put_tracebacks_off()\nfrom pip._vendor.rich import traceback\n"
        "import pip._vendor.rich.traceback\nprint('later')\ntraceback.install()\n"
    )
    source = str(Path(seams.__file__).parents[2])
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), source])}
    shown = subprocess.run([sys.executable, "-c", program], env=environment, stdout=subprocess.PIPE, text=True)
    assert shown.stdout.split() == ["later", "imported", "installed"]
