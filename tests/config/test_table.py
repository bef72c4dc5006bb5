"""The table of settings is complete, and docs/config.md has it."""

import dataclasses

from support import ROOT

from gpt_jax.config.config import SECTIONS
from gpt_jax.config.table import markdown, section_rows

HOW = 'python -c "from gpt_jax.config.table import markdown; print(markdown())"'


def test_every_setting_has_a_row():
    for section, cls in SECTIONS.items():
        rows = section_rows(section)
        assert [row[0] for row in rows] == [f"{section}.{f.name}" for f in dataclasses.fields(cls)]
        assert all(map(all, rows))
    assert ("train.batch_size", "32", "above 0") in [row[:3] for row in section_rows("train")]


def test_docs_config_has_this_table():
    document = (ROOT / "docs" / "config.md").read_text(encoding="utf-8")
    assert markdown() in document, f"replace the tables of docs/config.md with the output of {HOW}"
