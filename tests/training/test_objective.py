"""The objective of pre-training: the loss of training and that of evaluation."""

from typing import Any, cast

import jax
import numpy as np
import pytest
from steps import TOKENS, setting, windows

from gpt_jax.model.gpt import GPT
from gpt_jax.text.windows import evaluation_windows
from gpt_jax.training.objective import Language, Parts
from gpt_jax.training.state import abstract_state
from gpt_jax.training.step import jit_eval_step


def at_temperature(logits, targets, temperature):
    """Cross-entropies in NumPy, in float64."""
    scaled = np.asarray(logits, np.float64) / temperature
    chosen = np.take_along_axis(scaled, np.asarray(targets)[..., None], -1)[..., 0]
    return np.log(np.exp(scaled).sum(-1)) - chosen


@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_training_divides_the_logits_by_its_temperature_and_evaluation_does_not(small, temperature):
    config = small.with_values("train", temperature=temperature)
    state, _, layout = setting(small)
    params = jax.tree.map(lambda leaf: 5 * leaf, state.params)  # Losses far from those of chance.
    abstract = abstract_state(small, layout.sharding.mesh)
    rest = dict.fromkeys(("tokenizer", "reference", "template", "origin_template"))
    parts = Parts(
        config=config,
        train_tokens=TOKENS,
        val_tokens=TOKENS,
        layout=layout,
        abstract=abstract,
        eval_step=jit_eval_step(small, abstract, layout),
        **cast(Any, rest),
    )
    objective, model = Language(parts), GPT(small.model)

    def logits(windows_NW):
        return model.apply({"params": params}, windows_NW[:, :-1])

    batch_MW = windows(small, 0)
    losses_M, _ = objective.losses(model, params, batch_MW, None)
    expected_MT = at_temperature(logits(batch_MW), batch_MW[:, 1:], temperature)
    np.testing.assert_allclose(losses_M, expected_MT.mean(-1), rtol=1e-5)
    cut_NW = np.asarray(evaluation_windows(TOKENS, 16), np.int32)
    expected_NT = at_temperature(logits(cut_NW), cut_NW[:, 1:], 1.0)
    assert objective.evaluate(params)["loss"] == pytest.approx(expected_NT.mean(), rel=1e-5)
