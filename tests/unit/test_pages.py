"""What the tests read from a how-to page is what its reader would type and save."""

from __future__ import annotations

import re
import runpy
import shlex
from pathlib import Path

import pytest

from tests.support.pages import PAGES, Page, shell

TEXT = """# Title

```sh
echo one
echo two
```

```ini tox.ini
[tox]
```

`````markdown deep/page.md
```sh
echo not a command of this page
```
`````

```text
output
```

    ```sh

```sh
echo three
```

```python run.py
#!/usr/bin/env python
```
"""


def test_commands_stand_in_their_order_and_output_is_none_of_them() -> None:
    assert Page.parse("page", TEXT).commands == ["echo one\necho two\n", "echo three\n"]


def test_files_have_the_name_that_stands_beside_the_language(tmp_path: Path) -> None:
    page = Page.parse("page", TEXT)
    page.save(tmp_path)
    assert (tmp_path / "tox.ini").read_text() == "[tox]\n"
    assert (tmp_path / "deep" / "page.md").read_text().startswith("```sh\n")
    assert set(page.files) == {"tox.ini", "deep/page.md", "run.py"}
    assert (tmp_path / "run.py").stat().st_mode & 0o111
    assert not (tmp_path / "tox.ini").stat().st_mode & 0o111


def test_a_page_may_show_a_file_twice_but_not_differently() -> None:
    block = "```ini tox.ini\n[tox]\n```\n"
    assert Page.parse("page", block * 2).files == {"tox.ini": "[tox]\n"}
    with pytest.raises(ValueError, match=r"tox\.ini"):
        Page.parse("page", block + block.replace("[tox]", "[testenv]"))


def test_a_block_is_found_by_its_words() -> None:
    page = Page.parse("page", TEXT)
    assert page.command("three") == "echo three\n"
    for words in ("echo", "four"):
        with pytest.raises(LookupError):
            page.command(words)


def test_commands_end_with_the_first_that_fails(tmp_path: Path) -> None:
    done = shell("echo one\nfalse\necho two\n", tmp_path, {"PATH": "/usr/bin:/bin"}, status=1)
    assert done.stdout == "one\n"


def test_no_page_leaves_a_fence_open() -> None:
    for path in PAGES.glob("*.md"):
        lines = [line for line in path.read_text().splitlines() if line.startswith("```")]
        assert len(lines) % 2 == 0, path.name


def test_every_page_that_a_page_leads_to_is_there() -> None:
    for path in PAGES.glob("*.md"):
        for target in re.findall(r"\]\(([^)#:]+)\)", path.read_text()):
            assert (path.parent / target).exists(), (path.name, target)


def test_a_page_installs_nothing_that_a_stranger_may_have_published() -> None:
    """A reader may paste a command where pip asks the index: a name there would be a real project."""
    made = set(runpy.run_path(str(PAGES.parent / "examples.py"))["PROJECTS"])
    valued = ("--find-links", "-r", "--wheel-dir", "--prefix")
    for path in PAGES.glob("*.md"):
        page = Page.read(path.stem)
        assert set(re.findall(r"\bexample-[a-z]+", path.read_text())) <= made, path.name
        text = "\n".join([*page.commands, *page.files.values()]).replace("{opts} {packages}", "")
        for command in re.findall(r"\bpip3? install ([^\n;&|#>]*)", text):
            words = shlex.split(command)
            for before, word in zip(["", *words], words, strict=False):
                is_local = word.startswith(("-", "$", "./", "/wheels/", "sources/", "wheels/")) or before in valued
                assert is_local or word.partition("==")[0] in made, (path.name, word)
