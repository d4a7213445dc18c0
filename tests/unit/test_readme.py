"""README.md keeps to a page, its commands are the ones that CI runs, and what it points at is there."""

import re
from pathlib import Path

PROJECT = Path(__file__).parents[2]
README = (PROJECT / "README.md").read_text()


def commands() -> list[str]:
    return re.findall(r"^```sh\n(.+)\n```$", README, re.MULTILINE)


def test_the_readme_is_at_most_a_page():
    assert len(README.splitlines()) <= 70


def test_the_readme_sets_up_and_runs_the_main_job_in_one_line_and_the_tests_in_another():
    main_job, tests = commands()
    assert "safe-pip install" in main_job
    assert tests.endswith("tox")


def test_what_the_readme_commands_make_is_ignored_by_git():
    assert "/.venv/" in (PROJECT / ".gitignore").read_text().split()


def test_every_link_between_the_documents_leads_somewhere():
    documents = [PROJECT / "README.md", PROJECT / "CHANGELOG.md", *(PROJECT / "docs").rglob("*.md")]
    dead = {
        f"{document.relative_to(PROJECT)}: {link}"
        for document in documents
        for link in re.findall(r"\]\(([^)#]+)\)", document.read_text())
        if "://" not in link and not (document.parent / link).exists()
    }
    assert not dead
