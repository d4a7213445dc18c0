"""The documentation as a site: `tox -e docs`.

The pages are Markdown, readable as they are. The reference of commands, settings and exit statuses is made here from
the program's own tables, where a page has a line such as `<!-- commands -->`.
"""

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))

import manpages  # puts `src` on the path

import safe_pip
from safe_pip.commands import options
from safe_pip.launch import settings

SCHEMAS = Path(safe_pip.__file__).parent / "schemas"

project = "safe-pip"
author = "The safe-pip developers"
project_copyright = author
version = release = safe_pip.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinxcontrib.mermaid"]
exclude_patterns = ["_build"]
html_theme = "furo"
html_title = f"safe-pip {version}"

myst_enable_extensions = ["colon_fence"]
myst_fence_as_directive = ["mermaid"]
myst_heading_anchors = 3
# Code fences name the file that they hold, and Makefiles with pip's `$*` are no shell.
suppress_warnings = ["misc.highlighting_failure"]

# Pages elsewhere are not fetched: the check has to work without a network, and their absence is no fault of a change.
# Links between the pages, and to headings in them, are checked by the build itself.
linkcheck_ignore = [r"https?://"]


def paragraphs(text: str) -> str:
    """Help text as Markdown: words with dashes and stars are no markup."""
    return text.strip().replace("<", "&lt;").replace("*", r"\*")


def commands() -> Iterator[str]:
    """Each verb: what it does, its usage, its arguments."""
    for verb, described in options.TABLE.items():
        parser = options.parser(verb)
        yield f"## safe-pip {verb}\n"
        yield f"```text\n{parser.format_usage()}```\n"
        yield f"{paragraphs(described.description)}\n"
        yield from (f"- `{names}`: {paragraphs(told)}" for names, told in manpages.arguments(parser))
        yield f"\n{paragraphs(described.epilog)}\n" if described.epilog else ""


def table_of_settings() -> Iterator[str]:
    """Each setting with its three names, and what it means."""
    defaults = settings.Settings()
    yield "| option | variable | key in `[safe-pip]` | default | |"
    yield "|---|---|---|---|---|"
    for each in settings.TABLE:
        default = {None: "none", True: "yes", False: "no"}.get(value := getattr(defaults, each.name), value)
        option = f"--{each.key} {each.option}".strip() if each.option is not None else ""
        shown = f"`{option}`".replace("|", r"\|") if option else ""
        yield f"| {shown} | `{each.variable}` | `{each.key}` | {default} | {paragraphs(each.help)} |"


def exit_statuses() -> Iterator[str]:
    """Each error that safe-pip reports by itself."""
    yield "| status | error | meaning |"
    yield "|---:|---|---|"
    yield from (f"| {status} | `{code}` | {paragraphs(told)} |" for status, code, told in manpages.statuses())


def json_documents() -> Iterator[str]:
    """Each document that `--json` prints, from its schema."""
    for file in sorted(SCHEMAS.glob("*.json")):
        schema = json.loads(file.read_text(encoding="utf-8"))
        yield f"## `{schema['title']}`\n"
        yield f"{{download}}`{file.name} <../src/safe_pip/schemas/{file.name}>`: {schema['description']}.\n"
        yield from keys(schema, schema.get("$defs", {}), "")
        yield ""


def keys(schema: dict[str, Any], definitions: dict[str, Any], indent: str) -> Iterator[str]:
    for name, each in schema["properties"].items():
        values = "one of " + ", ".join(f"`{json.dumps(value)}`" for value in each["enum"]) if "enum" in each else ""
        kinds = [each.get("type", "")] if isinstance(each.get("type", ""), str) else each["type"]
        what = "always 1" if "const" in each else values or " or ".join(kinds)
        yield f"{indent}- `{name}` ({what}): {each['description']}"
        if below := each.get("items", {}).get("$ref"):
            yield from keys(definitions[below.rpartition("/")[2]], definitions, f"{indent}  ")


GENERATED = {
    "commands": commands,
    "settings": table_of_settings,
    "exit-statuses": exit_statuses,
    "json": json_documents,
}


def fill(app: Any, docname: str, source: list[str]) -> None:
    """Put what is generated in the place of its comment."""
    for name, lines in GENERATED.items():
        source[0] = source[0].replace(f"<!-- {name} -->", "\n".join(lines()))


def mark_code(app: Any, what: str, name: str, value: object, options: object, lines: list[str]) -> None:
    """Docstrings have Markdown's back quotes; in reStructuredText these are two."""
    lines[:] = [line.replace("`", "``") for line in lines]


def setup(app: Any) -> None:
    app.connect("autodoc-process-docstring", mark_code)
    app.connect("source-read", fill)
