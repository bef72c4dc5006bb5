"""The parameters of a model: their shapes, and their paths."""

import jax
import jax.numpy as jnp

from gpt_jax.model.gpt import GPT


def shapes_of(config):
    """The parameters of a model as shapes, in Flax's boxes."""
    tokens = jnp.zeros((1, 1), jnp.int32)
    return jax.eval_shape(lambda: GPT(config).init(jax.random.key(0), tokens))["params"]


def paths_of(tree):
    flat = jax.tree_util.tree_flatten_with_path(tree)[0]
    return {"/".join(k.key for k in path if hasattr(k, "key")): leaf for path, leaf in flat}
