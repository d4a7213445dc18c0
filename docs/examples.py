"""Makes the projects that the pages install: `python docs/examples.py DIR` writes their wheels into DIR.

No index has them, and nothing is built, so it takes no time. Each has a module that tells its version.
"""

import base64
import hashlib
import sys
import zipfile
from pathlib import Path

PROJECTS = {
    "example-alpha": (),
    "example-beta": ("example-alpha",),
    "example-gamma": ("example-alpha", "example-beta"),
    "example-common": (),
    "example-delta": (),
    "example-helper": (),
}
"""Each project with what it requires. Each has the versions 1 and 2."""


def digest(text: str) -> str:
    """A digest as RECORD has it."""
    return "sha256=" + base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest()).decode().rstrip("=")


def write_wheel(directory: Path, name: str, version: str, requires: tuple[str, ...]) -> None:
    """Write one wheel; nothing in it depends on the time or the machine."""
    module = name.replace("-", "_")
    info = f"{module}-{version}.dist-info"
    lines = ["Metadata-Version: 2.1", f"Name: {name}", f"Version: {version}"]
    lines += [f"Requires-Dist: {each}" for each in requires]
    files = {
        f"{module}.py": f"__version__ = {version!r}\n",
        f"{info}/METADATA": "".join(f"{line}\n" for line in lines),
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: example\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    files[f"{info}/RECORD"] = "".join(f"{path},{digest(text)},{len(text)}\n" for path, text in files.items())
    files[f"{info}/RECORD"] += f"{info}/RECORD,,\n"
    with zipfile.ZipFile(directory / f"{module}-{version}-py3-none-any.whl", "w") as archive:
        for path, text in files.items():
            archive.writestr(zipfile.ZipInfo(path), text)


def main(directory: Path) -> None:
    """Write all wheels."""
    directory.mkdir(parents=True, exist_ok=True)
    for name, requires in PROJECTS.items():
        for version in "12":
            write_wheel(directory, name, version, requires)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
