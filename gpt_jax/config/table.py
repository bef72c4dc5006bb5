"""The table of every setting, made from the dataclasses: for --help_config and docs/config.md."""

import dataclasses
import inspect

from gpt_jax.config.config import SECTIONS

HEADINGS = ("field", "default", "range", "meaning", "may change on resume")
Row = tuple[str, str, str, str, str]


def section_rows(section: str) -> list[Row]:
    """A row for each field of a section: name, default, range, meaning, on resume."""
    return [
        (
            f"{section}.{field.name}",
            str(field.default),
            field.metadata["rule"].text,
            field.metadata["meaning"],
            SECTIONS[section].on_resume(field.name),
        )
        for field in dataclasses.fields(SECTIONS[section])
    ]


def markdown() -> str:
    """All sections as Markdown: a heading, a sentence and a table each."""
    return "\n".join(_section(section) for section in SECTIONS)


def _section(section: str) -> str:
    lines = [f"## {section}", "", inspect.getdoc(SECTIONS[section]) or "", ""]
    rows = [(f"`{name}`", f"`{default}`", *rest) for name, default, *rest in section_rows(section)]
    table = [HEADINGS, ("---",) * len(HEADINGS), *rows]
    lines += ["| " + " | ".join(row) + " |" for row in table]
    return "\n".join(lines) + "\n"
