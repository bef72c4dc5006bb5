"""The table of settings is complete and is the one in the documents."""

import dataclasses

from support import ROOT

from gpt_jax.config.config import SECTIONS
from gpt_jax.config.table import markdown, section_rows

HOW = 'python -c "from gpt_jax import config_table; print(markdown())"'


def test_every_field_has_its_row():
    for section, cls in SECTIONS.items():
        rows = section_rows(section)
        assert [row[0] for row in rows] == [f"{section}.{f.name}" for f in dataclasses.fields(cls)]
        assert all(all(row[1:]) for row in rows if row[0] != "sample.prompt")
    [batch_size] = [row for row in section_rows("train") if "batch_size" in row[0]][:1]
    assert batch_size[1:3] == ("32", "above 0")


def test_the_documents_have_this_table():
    document = (ROOT / "docs" / "config.md").read_text(encoding="utf-8")
    assert markdown() in document, f"replace the tables of docs/config.md: {HOW}"
