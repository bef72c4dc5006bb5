"""Digests change with every bit and are the same on every mesh."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from gpt_jax.runs.digest import describe, differences, digests


@pytest.mark.parametrize("dtype", ["float32", "int32", "bfloat16", "uint8"])
def test_flipping_any_bit_changes_the_digest(dtype):
    x = np.asarray(jnp.arange(6).reshape(2, 3).astype(dtype))
    digest, size = digests({"x": x})["x"], x.nbytes
    for bit in range(8 * size):
        data = bytearray(x.tobytes())
        data[bit // 8] ^= 1 << bit % 8
        changed = np.frombuffer(bytes(data), x.dtype).reshape(x.shape)
        assert digests({"x": changed})["x"] != digest


def test_moving_elements_changes_the_digest():
    x = jnp.arange(12.0).reshape(3, 4)
    assert digests({"x": x}) != digests({"x": x[::-1]})
    assert digests({"x": x}) != digests({"x": x.at[0, 0].set(1).at[0, 1].set(0)})


def test_a_digest_is_the_same_on_every_mesh():
    tree = {"w": jnp.sin(jnp.arange(64.0)).reshape(8, 8), "key": jax.random.key(3)}
    mesh = jax.make_mesh((2, 4), ("a", "b"), (AxisType.Auto,) * 2)
    for spec in (PartitionSpec("a", "b"), PartitionSpec(("a", "b")), PartitionSpec(None, "a")):
        laid_out = tree | {"w": jax.device_put(tree["w"], NamedSharding(mesh, spec))}
        assert digests(laid_out) == digests(tree)


def test_keys_are_described_as_their_integers():
    assert describe({"key": jax.random.key(0)}) == {"key": ((2,), "uint32")}


def test_differences_cover_the_expected_parts_only():
    saved = {"params/w": ((2,), "float32"), "step": ((), "int32")}
    assert differences(saved, {"params/w": ((2,), "float32")}) == []
    assert differences(saved, {"params/v": ((), "int32")}) == [
        "params/v is missing there and () int32 here",
        "params/w is (2,) float32 there and missing here",
    ]
