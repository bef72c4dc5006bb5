"""Reading the log of a run."""

import pytest

from gpt_jax.training.log import read_metrics

LINE = '{"step": 1, "elapsed_s": 0.5}\n'


def test_a_missing_file_has_no_entries(tmp_path):
    assert read_metrics(tmp_path / "metrics.jsonl") == []


@pytest.mark.parametrize("torn", ['{"step": 2, "ela', "[" * 100_000, "3\n", '{"step": 2}\n'])
def test_reading_ends_before_a_line_that_is_not_an_entry(tmp_path, torn):
    (tmp_path / "metrics.jsonl").write_text(LINE + torn + "\n" + LINE)
    assert read_metrics(tmp_path / "metrics.jsonl") == [{"step": 1, "elapsed_s": 0.5}]
