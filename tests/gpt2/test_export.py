"""Exported models give the same numbers when read back, and in transformers if installed."""

import dataclasses
import json
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax import traverse_util
from safetensors.numpy import load_file
from support import GPT2_TINY

import gpt_jax
from gpt_jax.config.sections import GPTConfig
from gpt_jax.errors import UserError
from gpt_jax.gpt2 import export
from gpt_jax.gpt2.folder import open_folder
from gpt_jax.model.gpt import GPT
from gpt_jax.text import bpe
from gpt_jax.text.tokenizer import BPETokenizer, ByteTokenizer, CharTokenizer

TEXT = "The king\r\n\tof <|endof|> Öland 王 \U0001f600  said: don't!\n\n"


def export_model(model, out):
    export.export_folder(model.config.model, model.params, model.tokenizer, out)


def imported(folder):
    """The model of a folder with our names: its config and parameters."""
    folder, tokens = open_folder(folder), jnp.zeros((1, 1), jnp.int32)
    config = dataclasses.replace(folder.config, matmul_dtype="float32")
    shapes = jax.eval_shape(lambda: GPT(config).init(jax.random.key(0), tokens)["params"])
    flat = traverse_util.flatten_dict(nn.unbox(shapes), sep="/")
    params = {name: folder.read(name, leaf.shape) for name, leaf in flat.items()}
    return config, traverse_util.unflatten_dict(params, sep="/")


def test_importing_and_exporting_keeps_every_bit(tmp_path):
    config, params = imported(GPT2_TINY)
    tokenizer = BPETokenizer(bpe.read(GPT2_TINY))
    export.export_folder(config, params, tokenizer, tmp_path / "out")
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        *("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"),
    }
    before, after = (load_file(p / "model.safetensors") for p in (GPT2_TINY, tmp_path / "out"))
    assert before.keys() == after.keys()
    for name, tensor in before.items():
        assert tensor.dtype == after[name].dtype
        np.testing.assert_array_equal(tensor, after[name], err_msg=name)
    old, new = (json.loads((p / "config.json").read_text()) for p in (GPT2_TINY, tmp_path / "out"))
    differing = {name for name, value in new.items() if old[name] != value}
    assert differing == {"embd_pdrop"}  # Our model has no dropout there.
    assert bpe.read(tmp_path / "out") == bpe.read(GPT2_TINY)


def test_another_width_of_the_mlp_is_exported(tmp_path):
    config, params = imported(GPT2_TINY)
    config = dataclasses.replace(config, n_inner=20)
    for name, block in params.items():
        if name.startswith("h_"):
            c_fc, c_proj = block["mlp"]["c_fc"], block["mlp"]["c_proj"]
            c_fc["kernel"], c_fc["bias"] = c_fc["kernel"][:, :20], c_fc["bias"][:20]
            c_proj["kernel"] = c_proj["kernel"][:20]
    export.export_folder(config, params, BPETokenizer(bpe.read(GPT2_TINY)), tmp_path / "out")
    assert imported(tmp_path / "out")[0].n_inner == 20


def test_a_character_model_is_exported_with_its_head_and_zero_biases(trained, tmp_path):
    model = gpt_jax.load(trained)
    export_model(model, tmp_path / "out")
    folder = open_folder(tmp_path / "out")
    assert not folder.config.tie_embeddings
    for name, param in traverse_util.flatten_dict(model.params, sep="/").items():
        np.testing.assert_array_equal(param, folder.read(name, param.shape), err_msg=name)
    np.testing.assert_array_equal(folder.read("h_1/attn/k/bias", (32,)), np.zeros(32, np.float32))
    content = json.loads((tmp_path / "out" / "config.json").read_text())
    assert content["bos_token_id"] is content["eos_token_id"] is None


def test_the_export_folder_must_be_new(trained, tmp_path):
    export_model(gpt_jax.load(trained, "latest"), tmp_path / "out")
    table = load_file(tmp_path / "out" / "model.safetensors")["transformer.wte.weight"]
    latest, best = gpt_jax.load(trained, "latest"), gpt_jax.load(trained)
    np.testing.assert_array_equal(table, latest.params["wte"]["embedding"])
    assert (table != np.asarray(best.params["wte"]["embedding"])).any()
    with pytest.raises(UserError, match="out exists: choose a new folder"):
        export_model(best, tmp_path / "out")
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"file/out cannot be written"):
        export_model(best, tmp_path / "file" / "out")
    assert {path.name for path in tmp_path.iterdir()} == {"out", "file"}


def test_a_folder_with_a_similar_name_is_left_alone(trained, tmp_path):
    (tmp_path / "out.part").mkdir()
    (tmp_path / "out.part" / "mine").write_text("precious")
    export_model(gpt_jax.load(trained), tmp_path / "out")
    assert (tmp_path / "out.part" / "mine").read_text() == "precious"
    assert {path.name for path in tmp_path.iterdir()} == {"out", "out.part"}


def test_exported_files_have_the_mode_of_the_umask(trained, tmp_path):
    old = os.umask(0o027)
    try:
        export_model(gpt_jax.load(trained), tmp_path / "out")
    finally:
        os.umask(old)
    modes = {path.stat().st_mode & 0o777 for path in (tmp_path / "out").iterdir()}
    assert modes == {0o640}
    assert (tmp_path / "out").stat().st_mode & 0o777 == 0o750


FULL = """
import resource, signal, sys
from pathlib import Path
import gpt_jax
from gpt_jax.errors import UserError
from gpt_jax.gpt2 import export_folder
model = gpt_jax.load(Path(sys.argv[1]))
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, resource.RLIM_INFINITY))
try:
    export_folder(model.config.model, model.params, model.tokenizer, Path(sys.argv[2]))
except UserError as error:
    print(error)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="no limits there")
def test_a_full_disk_is_reported_in_one_sentence_and_leaves_nothing(trained, tmp_path):
    """A limit on the file size stands in for a full disk."""
    out = tmp_path / "new" / "out"
    out.parent.mkdir()
    command = [sys.executable, "-c", FULL, str(trained), str(out)]
    message = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert message.startswith(f"{out} cannot be written (") and "File too large" in message
    assert message.endswith("): choose a new folder on a disk with room\n")
    assert message.count("\n") == 1
    assert list(out.parent.iterdir()) == []


def test_a_failure_after_the_tensors_leaves_nothing(trained, tmp_path, monkeypatch):
    def full(path, content):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(export, "_write_json", full)
    with pytest.raises(UserError, match=r"out cannot be written \(No space left on device\)"):
        export_model(gpt_jax.load(trained), tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_a_model_that_is_not_a_gpt2_is_rejected_with_all_reasons(trained, tmp_path):
    llama = {"position": "rotary", "norm": "rms", "qk_norm": True, "activation": "swiglu"}
    llama |= {"n_kv_head": 1, "logit_softcap": 15.0, "short_convolution": 3}
    fields = {field.name: field.default for field in dataclasses.fields(GPTConfig)}
    switches = {name for name, default in fields.items() if default is False} - export.EXPORTED
    llama |= dict.fromkeys(switches, True)
    assert fields.keys() - export.EXPORTED <= llama.keys()
    model = gpt_jax.load(trained)
    object.__setattr__(model, "config", model.config.with_values("model", **llama))
    with pytest.raises(UserError) as error:
        export_model(model, tmp_path / "out")
    for name, value in llama.items():
        assert f"model.{name} = {value!r}" in str(error.value)
    assert not (tmp_path / "out").exists()


def library(tokenizer):
    import tokenizers

    return tokenizers.Tokenizer.from_str(json.dumps(export.library_tokenizer(tokenizer)))


@pytest.mark.parametrize(
    "tokenizer",
    [CharTokenizer(TEXT), ByteTokenizer(), BPETokenizer(bpe.read(GPT2_TINY))],
    ids=["char", "byte", "bpe"],
)
def test_exported_tokenizers_encode_and_decode_like_ours(tokenizer):
    exported = library(tokenizer)
    assert exported.get_vocab_size() == tokenizer.vocab_size
    assert exported.encode(TEXT).ids == tokenizer.encode(TEXT).tolist()
    assert exported.decode(tokenizer.encode(TEXT)) == TEXT


def test_an_exported_tokenizer_rejects_unknown_characters():
    with pytest.raises(Exception, match="Missing"):
        library(CharTokenizer("abc")).encode("abd")


def greedy(model, prompt):
    """The ids of the prompt, and of our greedy text up to the context length."""
    ids = model.tokenizer.encode(prompt)
    new = model.config.model.block_size - len(ids)
    text = model.generate(prompt, max_new_tokens=new, temperature=0)
    return ids, model.tokenizer.encode(text)


def test_transformers_generates_our_greedy_text(trained, tmp_path):
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    model = gpt_jax.load(trained)
    export_model(model, tmp_path / "out")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out").eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    ids, want = greedy(model, "The ")
    assert tokenizer("The ")["input_ids"] == ids.tolist()
    with torch.no_grad():
        found = theirs.generate(
            torch.tensor([ids.tolist()]), max_length=len(want), do_sample=False
        )[0]
        logits = theirs(found[None]).logits[0].numpy()
    assert found.tolist() == want.tolist()
    assert tokenizer.decode(found) == model.tokenizer.decode(want)
    in_float32 = GPT(GPTConfig(**vars(model.config.model) | {"matmul_dtype": "float32"}))
    ours = in_float32.apply({"params": model.params}, want[None].astype(np.int32))[0]
    np.testing.assert_allclose(logits, ours, atol=1e-4)
