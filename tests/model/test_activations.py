"""Activation functions against their formulas."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gpt_jax.model.activations import ACTIVATIONS, gelu, softcap


@pytest.mark.parametrize(
    ("name", "formula"),
    [
        ("gelu_tanh", lambda x: x / 2 * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))),
        ("relu2", lambda x: np.maximum(x, 0) ** 2),
        ("swiglu", lambda x: x / (1 + np.exp(-x))),
    ],
)
def test_activations_match_their_formulas(name, formula):
    x = np.linspace(-6, 6, 1001)
    np.testing.assert_allclose(ACTIVATIONS[name](jnp.asarray(x)), formula(x), atol=1e-5)


def test_gelu_and_its_gradient_are_exact():
    x = jnp.linspace(-6, 6, 1001)
    for of in (lambda f: f, lambda f: jax.vmap(jax.grad(f))):
        expected = of(partial(jax.nn.gelu, approximate=False))(x)
        np.testing.assert_allclose(of(gelu)(x), expected, rtol=1e-5, atol=1e-6)


def test_softcap_matches_tanh():
    x = jnp.array([-1e4, -3.0, 0.0, 0.01, 5.0])
    np.testing.assert_allclose(softcap(x, 5.0), 5 * np.tanh(x / 5), rtol=1e-6)
    np.testing.assert_array_equal(softcap(x, 0.0), x)
