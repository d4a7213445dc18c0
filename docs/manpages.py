"""Manual pages, made from the program's own tables: `python docs/manpages.py DIR` writes `safe-pip.1` and one per verb.

The build of the wheel runs this, so the pages cannot be out of date. It needs only the standard library.
"""

import argparse
import inspect
import os
import re
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "src"))
os.environ["COLUMNS"] = "80"  # the width of usage lines

from safe_pip import __version__, commands, errors
from safe_pip.commands import options
from safe_pip.launch import settings

DESCRIPTION = """
safe-pip is pip for parallel builds: any number of commands may run on one Python environment at once, and the
environment ends as if they had run one after another. It takes every command of pip, with pip's arguments, output and
exit status.

It locks the environment only while it reads or changes it. One command is one transaction: if it is killed, the
environment is the old one or the new one.

`safe-pip help` lists the commands of pip, and `safe-pip COMMAND --help` shows the options of each.
"""


def statuses() -> Iterator[tuple[int, str, str]]:
    """Each error that safe-pip reports by itself: its exit status, its name, and what it means."""

    def below(kind: type[errors.SafePipError]) -> Iterator[type[errors.SafePipError]]:
        for each in kind.__subclasses__():
            yield each
            yield from below(each)

    for each in sorted(below(errors.SafePipError), key=lambda each: each.exit_status):
        yield each.exit_status, each.code, inspect.cleandoc(each.__doc__ or "").partition("\n")[0]


def arguments(parser: argparse.ArgumentParser) -> Iterator[tuple[str, str]]:
    """Each argument of a parser as help shows it, and its help."""
    for action in parser._actions:
        if action.help != argparse.SUPPRESS:
            value = "" if action.nargs == 0 else str(action.metavar or action.dest.upper())
            yield " ".join([", ".join(action.option_strings), value]).strip(), action.help or ""


def roff(text: str) -> str:
    """Text in the language of `man`: what stands in back quotes is bold, and a line break means nothing."""
    text = re.sub(r"`([^`]*)`", r"\\fB\1\\fR", text.replace("\\", "\\e").replace("-", "\\-"))
    text = textwrap.fill(" ".join(text.split()), 78, break_long_words=False, break_on_hyphens=False)
    return re.sub(r"^([.'])", r"\\&\1", text, flags=re.MULTILINE)


def paragraphs(text: str) -> Iterator[str]:
    for each in text.strip().split("\n\n"):
        yield f".PP\n{roff(each)}" if each.strip() else ""


def listed(entries: Iterator[tuple[str, str]]) -> Iterator[str]:
    for name, told in entries:
        yield f".TP\n\\fB{roff(name)}\\fR\n{roff(told)}"


def page(name: str, summary: str, synopsis: str, sections: dict[str, Iterator[str]], also: list[str]) -> str:
    """One manual page."""
    usage = [roff(line) for line in synopsis.strip().splitlines()]
    lines = [f'.TH {name.upper()} 1 "" "safe-pip {__version__}" "safe-pip manual"', ".SH NAME"]
    lines += [f"{roff(name)} \\- {roff(summary)}", ".SH SYNOPSIS", ".nf", *usage, ".fi"]
    for title, content in sections.items():
        if text := "\n".join(filter(None, content)):
            lines += [f".SH {title}", text.removeprefix(".PP\n")]
    lines += [".SH SEE ALSO", ",\n".join(f".BR {roff(each)} (1)" for each in also)]
    return "\n".join(lines) + "\n"


def of_verb(verb: str) -> str:
    """The page of one verb."""
    described, parser = options.TABLE[verb], options.parser(verb)
    sections = {
        "DESCRIPTION": paragraphs(described.description),
        "OPTIONS": listed(arguments(parser)),
        "EXIT STATUS": paragraphs(described.epilog),
    }
    synopsis = parser.format_usage().partition(": ")[2]
    return page(f"safe-pip-{verb}", commands.VERBS[verb].rstrip("."), synopsis, sections, ["safe-pip"])


def of_program() -> str:
    """The page of the program."""
    own = ((f"--{each.key} {each.option}".strip(), each.help) for each in settings.OPTIONS.values())
    key = "`{}` in section `[safe-pip]` of pip's configuration. {}"
    variables = ((each.variable, key.format(each.key, each.help)) for each in settings.TABLE)
    sections = {
        "DESCRIPTION": paragraphs(DESCRIPTION),
        "COMMANDS": listed((f"safe-pip {verb}", told) for verb, told in commands.VERBS.items()),
        "OPTIONS": listed(own),
        "ENVIRONMENT": listed(variables),
        "EXIT STATUS": listed((str(status), f"{told} (`{code}`)") for status, code, told in statuses()),
    }
    summary = "pip for parallel builds"
    synopsis = "safe-pip [OPTIONS] COMMAND [ARGUMENTS]"
    return page("safe-pip", summary, synopsis, sections, [f"safe-pip-{verb}" for verb in commands.VERBS])


def write(directory: Path) -> list[Path]:
    """Write all pages; their paths."""
    pages = {"safe-pip": of_program()} | {f"safe-pip-{verb}": of_verb(verb) for verb in options.TABLE}
    directory.mkdir(parents=True, exist_ok=True)
    for name, text in pages.items():
        (directory / f"{name}.1").write_text(text, encoding="utf-8")
    return [directory / f"{name}.1" for name in pages]


if __name__ == "__main__":
    write(Path(sys.argv[1]))
