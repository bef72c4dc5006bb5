"""The end of a run, whatever its log holds."""

from types import SimpleNamespace

import pytest

from gpt_jax.training.finish import _print_loss

ENTRY = '{"step": 9, "elapsed_s": 4.5, "val/loss": %s}\n'


@pytest.mark.parametrize(
    ("log", "loss"),
    [
        (ENTRY % 2.5, "2.5000"),
        (ENTRY % "null", "nan"),
        ("", "nan"),
        ("?\n", "nan"),
        ('{"step": 9}\n', "nan"),
        (ENTRY % "1e999", "nan"),
        (ENTRY % "true", "nan"),
    ],
)
def test_the_final_loss_is_that_of_the_last_line_or_nan(tmp_path, log, loss):
    (tmp_path / "metrics.jsonl").write_text(log)
    objective = SimpleNamespace(shown=("loss",))
    run, said = SimpleNamespace(workdir=tmp_path, bits_per_byte=lambda loss: loss), []
    run.objective, run.is_tuned = objective, False
    _print_loss(run, SimpleNamespace(say=said.append, say_facts=said.append))
    assert said[1][0] == ("result", f"validation loss {loss} nats per token, {loss} bits per byte")
