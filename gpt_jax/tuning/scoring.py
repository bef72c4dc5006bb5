"""log p of given tokens, by the policy or by the reference."""

from collections.abc import Callable
from typing import Any

import jax
from jax import Array, lax
from jax.sharding import Mesh

from gpt_jax.devices import activations_over
from gpt_jax.model import GPT
from gpt_jax.training.objective import Parts
from gpt_jax.training.state import state_shardings
from gpt_jax.tuning.losses import log_probabilities

Score = Callable[[Any, Array], Array]


def make_score(parts: Parts, temperature: float = 1.0) -> Score:
    """The jitted function (params, tokens (A, M, ..., W)) -> log p (A, M, ..., T), no dropout."""
    model, mesh = GPT(parts.config.model), parts.layout.sharding.mesh

    def score(params: Any, tokens: Array) -> Array:
        def microbatch(tokens: Array) -> Array:
            flat_MW = tokens.reshape(-1, tokens.shape[-1])
            logps_MT = log_probabilities(model, params, flat_MW, temperature)
            return logps_MT.reshape(*tokens.shape[:-1], -1)

        assert isinstance(mesh, Mesh)
        with activations_over(mesh, parts.config.model):
            return lax.map(microbatch, tokens)

    shardings = state_shardings(parts.abstract).evaluated
    return jax.jit(
        score,
        in_shardings=(shardings, parts.layout.sharding),
        out_shardings=parts.layout.sharding,
    )
