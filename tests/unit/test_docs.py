"""The reference pages can be made from the program's own tables; `tox -e docs` makes the site."""

import re
import runpy
from pathlib import Path

import pytest

from safe_pip import errors
from safe_pip.commands import VERBS
from safe_pip.launch import settings

DOCS = Path(__file__).parents[2] / "docs"
GENERATED = runpy.run_path(str(DOCS / "conf.py"))["GENERATED"]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("commands", [f"## safe-pip {verb}\n" for verb in VERBS]),
        ("settings", [f"`{each.variable}`" for each in settings.TABLE]),
        ("exit-statuses", [f"| {status} |" for status in (1, 2, 74, 75, 76, 78)]),
        ("json", [f"## `safe-pip {verb} --json`\n" for verb in ("doctor", "merge", "status", "unmerge")]),
    ],
)
def test_a_reference_page_has_all_that_there_is(name: str, expected: list[str]) -> None:
    text = "\n".join(GENERATED[name]())
    assert [each for each in expected if each not in text] == []
    page = DOCS / "json.md" if name == "json" else DOCS / "reference" / f"{name}.md"
    assert f"<!-- {name} -->" in page.read_text()


def test_every_status_of_the_readme_is_one_of_an_error() -> None:
    told = set(
        map(int, re.findall(r"\b7[4-8]\b", (DOCS.parent / "README.md").read_text().rpartition("Exit status")[2]))
    )
    assert told == {each.exit_status for each in vars(errors).values() if getattr(each, "exit_status", 0) > 70}
