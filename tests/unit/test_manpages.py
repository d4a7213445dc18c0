"""The manual pages have all that the program's tables have, and `man` can show them."""

import re
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from safe_pip.commands import VERBS, options
from safe_pip.launch import settings

DOCS = Path(__file__).parents[2] / "docs"


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    directory = tmp_path_factory.mktemp("man")
    subprocess.run([sys.executable, "-IB", DOCS / "manpages.py", directory], check=True)
    return {path.stem: path for path in directory.iterdir()}


def shown(path: Path) -> str:
    """The text of a page, without its markup."""
    text = re.sub(r"\\f[BR]|\\&", "", path.read_text())
    return " ".join(text.replace("\\-", "-").replace("\\e", "\\").split())


@pytest.mark.parametrize("verb", VERBS)
def test_the_page_of_a_verb_has_each_of_its_arguments_and_what_help_says(pages: dict[str, Path], verb: str) -> None:
    text = shown(pages[f"safe-pip-{verb}"])
    for action in options.parser(verb)._actions:
        assert all(name in text for name in action.option_strings)
        assert " ".join((action.help or "").replace("`", "").split()) in text
    assert " ".join(options.TABLE[verb].description.replace("`", "").split())[:60] in text
    assert f"safe-pip-{verb} - " in text


def test_the_page_of_the_program_has_each_verb_setting_and_status(pages: dict[str, Path]) -> None:
    text = shown(pages["safe-pip"])
    wanted = [*(f"safe-pip {verb}" for verb in VERBS), *settings.OPTIONS, *(each.variable for each in settings.TABLE)]
    assert [each for each in (*wanted, "78", "safe-pip-run (1)") if each not in text] == []


def test_each_page_is_good_markup(pages: dict[str, Path]) -> None:
    if shutil.which("groff") is None:
        pytest.skip("groff is not installed")
    done = subprocess.run(["groff", "-man", "-ww", "-z", *pages.values()], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_line_is_never_taken_for_a_request() -> None:
    roff = runpy.run_path(str(DOCS / "manpages.py"))["roff"]
    text = roff("`a` " * 20 + ".pth files of 'b' and \\ " * 20)
    assert all(line.startswith(("\\&.", "\\&'")) or line[0] not in ".'" for line in text.splitlines())
    assert ".pth" in text
    assert text.count("\\e") == 20
