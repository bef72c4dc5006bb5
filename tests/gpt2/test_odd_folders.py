"""GPT-2 folders that are broken, odd or hostile: each is read, or refused in one sentence."""

import json
import os
import shutil
import struct

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from support import GPT2_TINY

from gpt_jax.errors import UserError
from gpt_jax.gpt2.folder import open_folder

WEIGHT = "transformer.h.1.mlp.c_fc.weight"
INDEX = "model.safetensors.index.json"
SHARDS = {"a.safetensors": lambda name: "h.0" in name, "b.safetensors": lambda name: True}


@pytest.fixture
def folder(tmp_path):
    """A copy that a test may change."""
    return shutil.copytree(GPT2_TINY, tmp_path / "gpt2")


def refused(folder):
    """The sentence with which a folder is refused."""
    with pytest.raises(UserError) as error:
        open_folder(folder).digest()
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 1000
    return str(error.value)


def change_config(folder, **values):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def change_tensor(folder, change, name=WEIGHT):
    tensors = load_file(folder / "model.safetensors")
    save_file(tensors | {name: change(tensors[name])}, folder / "model.safetensors")


def split(folder):
    """Splits model.safetensors into two files and an index. Returns the index."""
    tensors, places = load_file(folder / "model.safetensors"), {}
    for file, takes in SHARDS.items():
        part = {name: t for name, t in tensors.items() if name not in places and takes(name)}
        save_file(part, folder / file)
        places |= dict.fromkeys(part, file)
    (folder / "model.safetensors").unlink()
    (folder / INDEX).write_text(json.dumps({"weight_map": places}))
    return places


@pytest.mark.parametrize("number", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16, np.float32, np.float64])
def test_a_tensor_with_a_number_that_is_not_finite_is_named(folder, dtype, number):
    def spoil(tensor):
        tensor[-1, -1] = number
        return tensor.astype(dtype)

    change_tensor(folder, spoil)
    assert f"holds numbers in {WEIGHT} that are not finite" in refused(folder)


def test_a_number_too_large_for_float32_is_not_finite(folder):
    change_tensor(folder, lambda tensor: np.full_like(tensor, 1e300, np.float64))
    assert f"holds numbers in {WEIGHT} that are not finite" in refused(folder)


def test_64_bit_tensors_become_float32(folder):
    change_tensor(folder, lambda tensor: tensor.astype(np.float64))
    found = open_folder(folder).read("h_1/mlp/c_fc/kernel", (12, 48))
    np.testing.assert_array_equal(found, load_file(GPT2_TINY / "model.safetensors")[WEIGHT])
    assert found.dtype == np.float32


@pytest.mark.parametrize(
    ("dtype", "words"),
    [
        *((np.bool_, "BOOL"), (np.uint8, "U8"), (np.int8, "I8"), (np.int64, "I64")),
        *((ml_dtypes.float8_e4m3fn, "F8_E4M3"), (ml_dtypes.float8_e5m2, "F8_E5M2")),
        (np.complex64, "C64"),
    ],
)
def test_a_tensor_that_does_not_hold_floats_is_named(folder, dtype, words):
    change_tensor(folder, lambda tensor: tensor.astype(dtype))
    assert f"not floats of 16, 32 or 64 bits ({WEIGHT} {words})" in refused(folder)


def header(content, n_bytes=0):
    """A file of tensors with this header and `n_bytes` of data."""
    return struct.pack("<Q", len(content)) + content + bytes(n_bytes)


ONE = b'{"%s":{"dtype":"F32","shape":%s,"data_offsets":[0,4]}}'


@pytest.mark.parametrize(
    "content",
    [
        *(b"", b"abc", bytes(8), struct.pack("<Q", 2**60) + b"{}", struct.pack("<Q", 2**40)),
        *(header(b"{"), header(b"[]"), header(b"\xff{}"), header(b"[" * 100_000)),
        header(b'{"__metadata__":' + b'{"a":' * 100_000),
        *(header(ONE % (name, b"[1]"), 4) for name in (b"\\ud800", b"\xff", b"x\n\x1b[31m")),
        *(header(ONE % (b"wte.weight", shape), 4) for shape in (b"[-1]", b"null", b"[1e0]")),
        *(header(ONE % (b"wte.weight", shape), 4) for shape in (b"[]", b"[1,1]", b"[2,2]")),
        header(ONE % (b"wte.weight", b"[1099511627776,1099511627776]"), 4),
        header(ONE % (b"x\\n\\u001b[31m" * 1000, b"[1]"), 4),
    ],
)
def test_a_broken_file_of_tensors_is_refused(folder, content):
    (folder / "model.safetensors").write_bytes(content)
    assert str(folder) in refused(folder)


@pytest.mark.parametrize("n_bytes", [0, 7, 8, 100, 3000, 32_000, 32_695])
def test_a_truncated_file_of_tensors_is_refused(folder, n_bytes):
    os.truncate(folder / "model.safetensors", n_bytes)
    assert "model.safetensors cannot be read" in refused(folder)


SHAPE = ("n_embd", "n_layer", "n_head", "n_positions", "vocab_size")
ODD = [None, "12", "x" * 10**5, 12.0, 1e999, True, [], {}, [[12]], 0, -12, 10**400]


GOOD = ("n_inner None", "n_inner 0", "tie_word_embeddings True")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        (name, value)
        for name in (*SHAPE, "n_inner", "tie_word_embeddings")
        for value in ODD
        if f"{name} {value}" not in GOOD
    ],
    ids=lambda value: repr(value)[:25],
)
def test_an_odd_value_of_the_shape_is_named(folder, name, value):
    change_config(folder, **{name: value})
    assert str(folder) in refused(folder)


@pytest.mark.parametrize("value", [*ODD, "relu", "\ud800", "x" * 10**6], ids=lambda v: repr(v)[:9])
@pytest.mark.parametrize("name", ["model_type", "activation_function", "layer_norm_epsilon"])
def test_an_odd_option_is_named(folder, name, value):
    change_config(folder, **{name: value})
    assert str(folder) in refused(folder)


@pytest.mark.parametrize("n_layer", [25, 10**9, 10**18])
def test_more_layers_than_the_folder_has_tensors_are_refused_at_once(folder, n_layer):
    change_config(folder, n_layer=n_layer)
    assert "n_layer = " in refused(folder) or "missing" in refused(folder)


DEEP = b'{"a":' * 100_000 + b"1" + b"}" * 100_000


TWICE = b'{"model_type": "gpt2", "model_type": "gpt2"}'


@pytest.mark.parametrize("file", ["config.json", INDEX])
@pytest.mark.parametrize(
    "content", [TWICE, b"", b"\xff", b"{", b"[]", b"null", b"1" * 5000, DEEP, b"\0"]
)
def test_json_that_is_no_object_is_refused(folder, file, content):
    split(folder)
    (folder / file).write_bytes(content)
    assert f"{file} cannot be read" in refused(folder)


PATHS = ["", "..", "/a.safetensors", "../a.safetensors", "sub/a.safetensors", "..\\a.safetensors"]
PATHS += ["a\0.safetensors", "\ud800.safetensors", "a.safetensors\n", "pytorch_model.bin"]
PATHS += ["x" * 10**6]


@pytest.mark.parametrize(
    "places",
    [
        *(None, [], {}, "a.safetensors", 1, [["wte.weight", "a.safetensors"]]),
        *({"wte.weight": file} for file in (None, 1, [], {}, *PATHS)),
        *({name: "a.safetensors"} for name in ("", "\ud800", "x\n\x1b[31m", "x" * 10**6)),
        {"wte.weight": "missing.safetensors"},
    ],
    ids=lambda places: repr(places)[:40],
)
def test_an_odd_index_is_refused(folder, places):
    split(folder)
    shutil.copy(folder / "a.safetensors", folder.parent)  # Where a path could lead.
    (folder / INDEX).write_text(json.dumps({"weight_map": places}))
    assert str(folder) in refused(folder)


def test_a_tensor_that_its_file_lacks_is_named(folder):
    places = split(folder) | {WEIGHT: "a.safetensors"}
    (folder / INDEX).write_text(json.dumps({"weight_map": places}))
    assert "missing: h.1.mlp.c_fc.weight)" in refused(folder)


@pytest.mark.parametrize("places", [{}, None, {WEIGHT: "missing-00001-of-00002.safetensors"}])
def test_an_old_index_beside_a_whole_file_is_not_read(folder, places):
    (folder / INDEX).write_text(json.dumps({"weight_map": places}))
    assert open_folder(folder).tensors == open_folder(GPT2_TINY).tensors | {
        name: tensor._replace(file=folder / "model.safetensors")
        for name, tensor in open_folder(GPT2_TINY).tensors.items()
    }


def test_names_that_differ_only_in_the_prefix_are_refused(folder):
    tensors = load_file(folder / "model.safetensors")
    save_file(tensors | {"wpe.weight": np.ones((24, 12))}, folder / "model.safetensors")
    assert "differ only in 'transformer.'" in refused(folder)


@pytest.mark.parametrize("file", ["config.json", "model.safetensors", INDEX, "a.safetensors"])
@pytest.mark.parametrize("kind", ["pipe", "folder", "loop"])
def test_a_pipe_a_folder_or_a_loop_in_place_of_a_file_is_refused(folder, file, kind):
    if file in (INDEX, "a.safetensors"):
        split(folder)
    (folder / file).unlink()
    make = {"pipe": os.mkfifo, "folder": os.mkdir, "loop": lambda path: os.symlink(path, path)}
    make[kind](folder / file)
    assert str(folder) in refused(folder)


def test_a_folder_that_does_not_exist_is_told_what_one_is(tmp_path):
    for path in (tmp_path / "gpt2", GPT2_TINY / "config.json"):
        assert f"there is no folder {path}: " in refused(path)
        assert "docs/gpt2.md" in refused(path)


def test_any_changed_byte_is_read_or_refused(folder):
    """Of each file, bytes are changed, removed or repeated at random, from a seed."""
    random = np.random.default_rng(0)
    split(folder)
    refusals = 0
    for number in range(300):
        file = folder / ("config.json", INDEX, *SHARDS)[number % 4]
        whole = file.read_bytes()
        end = 3000 if file.suffix == ".safetensors" else len(whole)  # Most in the header.
        first, last = np.sort(random.integers(0, end, 2))
        middle = whole[first:last] * int(random.integers(0, 3)) + random.bytes(number % 4)
        file.write_bytes(whole[:first] + middle + whole[last:])
        try:
            open_folder(folder).digest()
        except UserError as error:
            refusals += 1
            assert "\n" not in str(error)
        file.write_bytes(whole)
    assert refusals > 200
