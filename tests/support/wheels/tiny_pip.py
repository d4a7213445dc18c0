"""A pip of five files: it can be frozen, but does nothing."""

from __future__ import annotations

from pathlib import Path

from tests.support.wheels.tiny import digest


def install_tiny_pip(
    site: Path,
    version: str = "26.3",
    *,
    script: str = "#!/usr/bin/python",
    debundled: bool = False,
    requires_python: str = ">=3.10",
    more: dict[str, str] | None = None,
) -> Path:
    """Put a pip into the directory `site`, as an installer would; on return its dist-info.

    `script` is what the console script begins with, which differs between installations.
    """
    files = {
        "pip/__init__.py": f'__version__ = "{version}"\n',
        "pip/__main__.py": "raise SystemExit('this must not run')\n",
        "pip/_internal/__init__.py": "",
        "pip/_internal/cli.py": "def main():\n    return 0\n",
        "pip/_vendor/__init__.py": f"DEBUNDLED = {debundled}\n",
        f"pip-{version}.dist-info/METADATA": f"Name: pip\nVersion: {version}\nRequires-Python: {requires_python}\n",
        **(more or {}),
    }
    rows = [f"../../../bin/pip,{digest(script.encode())},{len(script)}"]
    for name, content in files.items():
        (site / name).parent.mkdir(parents=True, exist_ok=True)
        (site / name).write_text(content)
        rows.append(f"{name},{digest(content.encode())},{len(content)}")
    dist_info = site / f"pip-{version}.dist-info"
    (dist_info / "INSTALLER").write_text("pip\n")
    rows += [f"pip/__pycache__/__init__.cpython-313.pyc,,\n{dist_info.name}/INSTALLER,{digest(b'pip')},4"]
    (dist_info / "RECORD").write_text("\n".join([*rows, f"{dist_info.name}/RECORD,,", ""]))
    return dist_info
