"""The table of all settings, generated from sections.py: for --help_config and docs/config.md."""

import dataclasses
import inspect

from gpt_jax.config.config import SECTIONS, on_resume

HEADINGS = ("field", "default", "range", "meaning", "may change on resume")
Row = tuple[str, str, str, str, str]


def section_rows(section: str) -> list[Row]:
    """One row per setting of a section, with the columns of `HEADINGS`."""
    return [
        (
            f"{section}.{field.name}",
            str(field.default) or '""',
            field.metadata["rule"].text,
            field.metadata["meaning"],
            on_resume(f"{section}.{field.name}"),
        )
        for field in dataclasses.fields(SECTIONS[section])
    ]


def markdown() -> str:
    """All sections as Markdown, each with a heading, a sentence and a table."""
    return "\n".join(_section(section) for section in SECTIONS)


def _section(section: str) -> str:
    lines = [f"## {section}", "", inspect.getdoc(SECTIONS[section]) or "", ""]
    rows = [(f"`{name}`", f"`{default}`", *rest) for name, default, *rest in section_rows(section)]
    table = [HEADINGS, ("---",) * len(HEADINGS), *rows]
    lines += ["| " + " | ".join(row) + " |" for row in table]
    return "\n".join(lines) + "\n"
