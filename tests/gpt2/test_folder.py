"""Reading GPT-2's folders: the numbers match transformers', and errors name what is wrong.

make_gpt2_tiny.py made gpt2_tiny, which holds weights, logits and gradients of transformers.
"""

import dataclasses
import json
import shutil

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from flax import linen as nn
from flax import traverse_util
from safetensors.numpy import load_file, save_file
from support import GPT2_TINY

from gpt_jax.errors import UserError
from gpt_jax.gpt2.folder import open_folder
from gpt_jax.gpt2.names import stored_name, stored_shapes
from gpt_jax.model.gpt import GPT
from gpt_jax.training.step import window_losses


def read(path):
    """The model of a folder, in float32, and its parameters by our paths."""
    folder = open_folder(path)
    model = GPT(dataclasses.replace(folder.config, matmul_dtype="float32"))
    tokens = jnp.zeros((1, 1), jnp.int32)
    boxed = jax.eval_shape(lambda: model.init(jax.random.key(0), tokens))["params"]
    shapes = traverse_util.flatten_dict(nn.unbox(boxed), sep="/")
    return model, {name: folder.read(name, leaf.shape) for name, leaf in shapes.items()}


def nested(params):
    return traverse_util.unflatten_dict(params, sep="/")


def logits_of(path):
    """The logits of the windows in expected.npz."""
    model, params = read(path)
    return jax.jit(model.apply)({"params": nested(params)}, expected()["windows"][:, :-1])


def expected():
    return np.load(GPT2_TINY / "expected.npz")


@pytest.fixture
def folder(tmp_path):
    """A copy that a test may change."""
    return shutil.copytree(GPT2_TINY, tmp_path / "gpt2")


def change_config(folder, **values):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def tensors_of(folder):
    return load_file(folder / "model.safetensors")


def test_logits_match_transformers():
    np.testing.assert_allclose(logits_of(GPT2_TINY), expected()["logits"], atol=1e-4, rtol=0)


def test_loss_and_gradients_match_transformers():
    model, params = read(GPT2_TINY)
    windows = jnp.asarray(expected()["windows"])

    def loss_of(params):
        return window_losses(model, params, windows)[0].mean()

    loss, grads = jax.jit(jax.value_and_grad(loss_of))(nested(params))
    np.testing.assert_allclose(loss, expected()["loss"], atol=1e-5)
    found = {
        name: np.zeros(shape, np.float32) for name, shape in stored_shapes(model.config).items()
    }
    width = model.config.n_embd
    for path, grad in traverse_util.flatten_dict(grads, sep="/").items():
        name, part = stored_name(path)
        columns = slice(None) if part is None else slice(part * width, (part + 1) * width)
        place = found[name][..., columns]
        place[...] = np.reshape(grad, place.shape)
    for name, grad in found.items():
        np.testing.assert_allclose(grad, expected()[name], atol=1e-4, err_msg=name)


def test_old_files_read_the_same(folder):
    """Old files have no prefix, and also hold the masks of attention."""
    tensors = {name.removeprefix("transformer."): t for name, t in tensors_of(folder).items()}
    for layer in range(2):
        tensors[f"h.{layer}.attn.bias"] = np.tril(np.ones((1, 1, 24, 24), np.float32))
        tensors[f"h.{layer}.attn.masked_bias"] = np.full((), -1e4, np.float32)
    save_file(tensors, folder / "model.safetensors")
    np.testing.assert_array_equal(logits_of(folder), logits_of(GPT2_TINY))


def test_several_files_read_as_one(folder):
    tensors = tensors_of(folder)
    names = sorted(tensors)
    (folder / "model.safetensors").unlink()
    places = {}
    for number, part in enumerate((names[:9], names[9:]), start=1):
        file = f"model-0000{number}-of-00002.safetensors"
        save_file({name: tensors[name] for name in part}, folder / file)
        places |= dict.fromkeys(part, file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))
    np.testing.assert_array_equal(logits_of(folder), logits_of(GPT2_TINY))
    (folder / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(UserError, match=r"model-00002-of-00002.safetensors cannot be read"):
        open_folder(folder)


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16])
def test_16_bit_tensors_become_float32(folder, dtype):
    halves = {name: tensor.astype(dtype) for name, tensor in tensors_of(folder).items()}
    save_file(halves, folder / "model.safetensors")
    _, params = read(folder)
    want = halves["transformer.h.1.attn.c_attn.weight"][:, 12:24].astype(np.float32)
    np.testing.assert_array_equal(params["h_1/attn/k/kernel"].reshape(12, 12), want)
    assert {param.dtype for param in params.values()} == {np.dtype("float32")}


def test_a_head_is_tied_if_it_equals_the_embedding(folder):
    tensors = tensors_of(folder)
    table = tensors["transformer.wte.weight"]
    save_file(tensors | {"lm_head.weight": table}, folder / "model.safetensors")
    assert open_folder(folder).config.tie_embeddings
    save_file(tensors | {"lm_head.weight": table + 1}, folder / "model.safetensors")
    _, params = read(folder)
    np.testing.assert_array_equal(params["lm_head/kernel"], (table + 1).T)
    save_file(tensors | {"lm_head.weight": table}, folder / "model.safetensors")
    change_config(folder, tie_word_embeddings=False)
    assert not open_folder(folder).config.tie_embeddings
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(UserError, match=r"missing: lm_head.weight\)"):
        open_folder(folder)


def test_every_wrong_tensor_is_named(folder):
    tensors = tensors_of(folder)
    del tensors["transformer.ln_f.bias"], tensors["transformer.h.0.mlp.c_fc.weight"]
    tensors["transformer.h.2.ln_1.weight"] = np.ones(12, np.float32)
    tensors["transformer.wpe.weight"] = np.ones((23, 12), np.float32)
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(UserError) as error:
        open_folder(folder)
    assert "missing: h.0.mlp.c_fc.weight, ln_f.bias;" in str(error.value)
    assert "of another shape: wpe.weight (23, 12), not (24, 12);" in str(error.value)
    assert "unknown: h.2.ln_1.weight)" in str(error.value)


def test_a_long_list_of_tensors_is_shortened(folder):
    change_config(folder, n_layer=4)
    with pytest.raises(UserError, match=r"h\.2\.ln_2\.weight and 16 more\)"):
        open_folder(folder)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"model_type": "llama"}, "type 'llama': only 'gpt2'"),
        ({"activation_function": "relu"}, "activation_function = 'relu'"),
        ({"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx = True"),
        ({"reorder_and_upcast_attn": True}, "reorder_and_upcast_attn = True"),
        ({"layer_norm_epsilon": 1e-6}, "layer_norm_epsilon = 1e-06"),
        ({"n_head": "3"}, "model.n_head = '3'"),
        ({"n_head": 5}, "model.n_head = 5"),
    ],
)
def test_an_unsupported_model_is_rejected(folder, values, words):
    change_config(folder, **values)
    with pytest.raises(UserError, match=words):
        open_folder(folder)


def test_both_names_of_the_tanh_gelu_are_read(folder):
    change_config(folder, activation_function="gelu_pytorch_tanh")
    assert open_folder(folder).config.activation == "gelu_tanh"
    np.testing.assert_array_equal(logits_of(folder), logits_of(GPT2_TINY))


def test_exact_gelu_and_the_mlp_width_are_read(folder):
    change_config(folder, activation_function="gelu", n_inner=48)
    config = open_folder(folder).config
    assert (config.activation, config.n_inner) == ("gelu", 0)
    change_config(folder, n_inner=40)
    with pytest.raises(UserError, match=r"c_fc.weight \(12, 48\), not \(12, 40\)"):
        open_folder(folder)


@pytest.mark.parametrize(
    ("file", "content", "words"),
    [
        ("config.json", None, "config.json cannot be read"),
        ("config.json", b"{", "config.json cannot be read"),
        ("config.json", b"[]", "is not a JSON object"),
        ("config.json", b'{"model_type": "gpt2"}', "lacks 'vocab_size'"),
        ("model.safetensors", None, "no model.safetensors"),
        ("model.safetensors", b"no tensors", "model.safetensors cannot be read"),
    ],
)
def test_unreadable_files_are_named(folder, file, content, words):
    if content is None:
        (folder / file).unlink()
    else:
        (folder / file).write_bytes(content)
    with pytest.raises(UserError, match=words):
        open_folder(folder)


def test_a_missing_library_is_named(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "safetensors", None)
    with pytest.raises(UserError, match=r'pip install -e "\.\[gpt2\]"'):
        open_folder(GPT2_TINY)
