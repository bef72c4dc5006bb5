"""A trained model from Python: text in, text and losses out."""

import asyncio
import dataclasses
import json
import shutil

import jax
import numpy as np
import pytest

import gpt_jax
from gpt_jax.errors import UserError
from gpt_jax.model.gpt import GPT
from gpt_jax.training.log import read_metrics


@pytest.fixture(scope="module")
def run(trained):
    return gpt_jax.load(trained)


@pytest.fixture
def copy(trained, tmp_path):
    return shutil.copytree(trained, tmp_path / "copy")


def test_load_records_step_and_validation_loss(trained, run):
    losses = {
        entry["step"]: entry["val/loss"]
        for entry in read_metrics(trained / "metrics.jsonl")
        if "val/loss" in entry
    }
    assert run.step == min(losses, key=losses.get) == 100
    assert run.val_loss == losses[run.step]
    assert run.described_loss == f"validation loss {run.val_loss:.4f} nats per token"
    assert gpt_jax.load(str(trained), "latest").step == gpt_jax.load(trained, 200).step == 200
    assert str(trained) in repr(run)
    assert "Array" not in repr(run)


def test_generate_continues_the_prompt(run):
    text = run.generate("KING", max_new_tokens=30)
    assert text.startswith("KING")
    assert len(text) == len("KING") + 30
    assert text == run.generate("KING", max_new_tokens=30, seed=0)
    assert text != run.generate("KING", max_new_tokens=30, seed=1)


def test_defaults_are_those_recorded_by_the_run(run):
    assert len(run.generate()) == len("The ") + 20
    assert run.generate().startswith("The ")
    assert run.sample_config("x", top_k=3).top_k == 3


def test_an_empty_prompt_adds_nothing_to_the_text(run):
    assert len(run.generate("", max_new_tokens=7)) == 7


@pytest.fixture(scope="module")
def logits_after(run):
    """Uncached logits after the tokens of a window. The padding comes later, where none sees it."""
    apply = jax.jit(GPT(run.config.model).apply)

    def call(window):
        padded = np.pad(window, (0, 16 - len(window)))
        return apply({"params": run.params}, padded[None])[0, len(window) - 1]

    return call


def test_greedy_text_is_the_argmax_of_the_uncached_model(run, logits_after):
    ids = run.tokenizer.encode(run.generate("The ", max_new_tokens=60, temperature=0))
    window = list(ids[:4])
    for new in ids[4:]:
        if len(window) > 16:
            window = window[-8:]
        assert int(logits_after(window).argmax()) == new
        window.append(int(new))


def test_a_batch_contains_the_single_samples(run):
    texts = run.generate_batch("The ", 4, max_new_tokens=40, seed=3)
    assert len(set(texts)) == 4
    assert run.generate_batch("The ", 2, max_new_tokens=40, seed=3) == texts[:2]
    assert run.generate("The ", max_new_tokens=40, seed=3) == texts[0]


def test_streamed_pieces_join_to_the_texts(run):
    pieces = list(run.stream("The ", 2, max_new_tokens=40, seed=3, piece=3))
    assert pieces[0] == ["The ", "The "]
    assert len(pieces) > 13
    texts = ["".join(parts) for parts in zip(*pieces, strict=True)]
    assert texts == run.generate_batch("The ", 2, max_new_tokens=40, seed=3)


def test_a_text_ends_before_the_stop_string(run, monkeypatch):
    whole = run.generate("The ", max_new_tokens=200, seed=3)
    stop = whole[30:33]
    assert run.generate("The ", max_new_tokens=200, seed=3, stop=stop) == whole.split(stop)[0]
    pieces = run.stream("The ", 1, max_new_tokens=10**9, seed=3, stop=stop)
    assert len(list(pieces)) < 50


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"prompt": "Theπ"}, r"'π' \(U\+03C0\) in line 1, column 4"),
        ({"temperature": -1}, r"sample\.temperature = -1\.0"),
        ({"temperature": float("nan")}, r"sample\.temperature = nan"),
        ({"top_k": -1}, r"sample\.top_k = -1"),
        ({"top_p": 0.0}, r"sample\.top_p = 0\.0"),
        ({"top_p": 1.5}, r"sample\.top_p = 1\.5"),
        ({"max_new_tokens": -1}, r"sample\.max_new_tokens = -1"),
        ({"stop": ["x"]}, r"stop = \['x'\] is not of type str"),
        ({"seed": -1}, "seed = -1"),
        ({"seed": 1.5}, "seed = 1.5"),
    ],
)
def test_bad_arguments_are_rejected_at_the_call(run, arguments, words):
    with pytest.raises(UserError, match=words):
        run.generate(**arguments)
    with pytest.raises(UserError, match=words):
        run.stream(**arguments)


def test_numbers_of_samples_and_pieces_and_option_names_are_checked(run):
    with pytest.raises(UserError, match="num_samples = 0"):
        run.generate_batch(num_samples=0)
    with pytest.raises(UserError, match="piece = -1"):
        run.stream(piece=-1)
    with pytest.raises(UserError, match="max_tokens does not exist: did you mean max_new_tokens"):
        run.generate_batch(max_tokens=3)


NO_TEXT = [5, None, True, b"To be", ["T"], np.zeros(3)]
NO_COUNT = [-1, 2.0, True, None, "2", [2], 1j, float("nan"), 2**63, 10**400]
BAD_CALLS = [
    *((name, (text,), {}) for name in ("loss", "token_losses", "next_token") for text in NO_TEXT),
    *(("generate", (text,), {}) for text in NO_TEXT if text is not None),
    *(("generate_batch", ("T", count), {}) for count in (0, *NO_COUNT)),
    *(("stream", ("T",), {name: n}) for name in ("piece", "seed", "top_k") for n in NO_COUNT),
    *(("stream", ("T",), {"max_new_tokens": count}) for count in NO_COUNT),
    *(("stream", ("T",), {"temperature": x}) for x in (-1, True, None, "hot", [1], 1j, 10**400)),
    *(("stream", ("T",), {"top_p": x}) for x in (-1, 0, 2, True, None, "x", [1], 10**400)),
    *(("stream", ("T",), {"stop": text}) for text in NO_TEXT),
    *(("stream", ("T",), {name: 1}) for name in ("foo", "", "__class__")),
]


@pytest.mark.parametrize(("method", "arguments", "options"), BAD_CALLS, ids=lambda x: repr(x)[:40])
def test_a_wrong_type_or_value_is_refused_at_the_call(run, method, arguments, options):
    with pytest.raises(UserError):
        getattr(run, method)(*arguments, **options)


@pytest.mark.parametrize("folder", [5, None, True, b"runs/tiny", ["runs/tiny"]])
def test_a_folder_that_is_no_path_is_a_type_error(folder):
    with pytest.raises(TypeError, match="str"):
        gpt_jax.load(folder)


@pytest.mark.parametrize("folder", ["", "a\0b", "~nobody-here/run", "\ud800", "x" * 10_000])
def test_a_path_without_a_run_is_refused(folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError):
        gpt_jax.load(folder)


@pytest.mark.parametrize("step", [None, True, 1.0, -1, b"best", "", "../200", [200], 10**400])
def test_a_step_of_another_kind_is_refused(trained, step):
    with pytest.raises(UserError, match="has no step"):
        gpt_jax.load(trained, step)


def test_numpy_numbers_are_accepted(run):
    expected = run.generate(temperature=0.5, top_k=5, seed=3, max_new_tokens=9)
    options = {"temperature": np.float64(0.5), "top_k": np.int64(5), "max_new_tokens": np.int32(9)}
    assert run.generate(seed=np.uint8(3), **options) == expected


@pytest.mark.parametrize("length", [2, 16, 17, 18, 300])
def test_token_losses_match_the_model_window_by_window(run, trained, logits_after, length):
    text = (trained.parent.parent / "corpus.txt").read_text(encoding="utf-8")[-length:]
    ids = run.tokenizer.encode(text)
    expected = [
        -jax.nn.log_softmax(logits_after(ids[i - i % 16 : i + 1]))[ids[i + 1]]
        for i in range(length - 1)
    ]
    np.testing.assert_allclose(run.token_losses(text), expected, atol=2e-5)
    assert run.loss(text) == pytest.approx(np.mean(expected), abs=1e-5)


def test_the_loss_of_the_validation_text_is_the_logged_one(run, trained):
    """Of 2,000 validation characters, the 124 windows use 1,985 as inputs and targets."""
    text = (trained.parent.parent / "corpus.txt").read_text(encoding="utf-8")[-2000:]
    assert run.loss(text[: 124 * 16 + 1]) == pytest.approx(run.val_loss, abs=1e-5)


@pytest.mark.parametrize(("text", "words"), [("", "0 token"), ("a", "1 token"), ("aπ", "'π'")])
def test_a_text_without_a_loss_is_rejected(run, text, words):
    with pytest.raises(UserError, match=words):
        run.loss(text)


@pytest.mark.parametrize("prompt", ["", "T", "The king and the queen of the realm "])
def test_probabilities_of_the_next_token(run, prompt):
    pairs = run.next_token(prompt)
    assert sorted(token for token, _ in pairs) == sorted(run.tokenizer.characters)
    probs = [p for _, p in pairs]
    assert probs == sorted(probs, reverse=True)
    assert sum(probs) == pytest.approx(1, abs=1e-5)
    half = run.config.with_values("model", matmul_dtype="bfloat16")
    assert dataclasses.replace(run, config=half).next_token(prompt) == pairs
    greedy = run.generate(prompt, max_new_tokens=1, temperature=0)
    assert greedy == prompt + pairs[0][0]


def test_it_works_inside_a_running_event_loop(trained):
    """A notebook has one."""

    async def cell():
        return gpt_jax.load(trained).generate("The ", max_new_tokens=5)

    assert len(asyncio.run(cell())) == 9


def test_loading_needs_only_the_run_and_changes_nothing(copy, trained, run, monkeypatch):
    """It needs no corpus and no current directory, and the folder stays as it was."""
    monkeypatch.chdir(copy.parent)
    before = sorted(path.relative_to(copy) for path in copy.rglob("*"))
    assert gpt_jax.load("copy").generate(max_new_tokens=9) == run.generate(max_new_tokens=9)
    assert sorted(path.relative_to(copy) for path in copy.rglob("*")) == before


def test_loading_keeps_a_checkpoint_that_is_being_saved(copy):
    unfinished = copy / "checkpoints" / "300.orbax-checkpoint-tmp"
    unfinished.mkdir()
    assert gpt_jax.load(copy, "latest").step == 200
    assert unfinished.exists()


def test_a_folder_without_a_run_is_rejected_and_not_made(tmp_path):
    with pytest.raises(UserError, match="nothing holds no run"):
        gpt_jax.load(tmp_path / "nothing")
    assert not (tmp_path / "nothing").exists()


def test_a_run_without_a_checkpoint_is_rejected(copy):
    shutil.rmtree(copy / "checkpoints")
    with pytest.raises(UserError, match="holds no checkpoint: train first"):
        gpt_jax.load(copy)
    assert not (copy / "checkpoints").exists()


def test_a_missing_step_is_rejected(trained):
    with pytest.raises(UserError, match="no step '7': the steps are 100 and 200; give"):
        gpt_jax.load(trained, 7)


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("n_layer", 1, r"h_1/.* is \(.*\) float32 there and missing here"),
        ("n_layer", 3, r"h_2/.* is missing there and \(.*\) float32 here"),
        ("n_embd", 64, r"\(32,\) float32 there and \(64,\) float32 here"),
        (
            "block_size",
            32,
            r"wpe/embedding is \(16, 32\) float32 there and \(32, 32\) float32 here",
        ),
        ("tie_embeddings", True, "lm_head/kernel"),
        ("vocab_size", 9, "tokenizer.json has .* tokens, the model in config.json only 9"),
    ],
)
def test_a_checkpoint_that_does_not_fit_its_config_is_rejected(copy, name, value, words):
    record = json.loads((copy / "config.json").read_text(encoding="utf-8"))
    record["config"]["model"][name] = value
    del record["digests"]  # As in an older version; otherwise the edit is refused.
    (copy / "config.json").write_text(json.dumps(record), encoding="utf-8")
    with pytest.raises(UserError, match=words) as error:
        gpt_jax.load(copy)
    assert "restore the" in str(error.value)


@pytest.mark.parametrize("part", ["state", "state/_METADATA", "metrics/metrics"])
def test_a_damaged_checkpoint_is_named(copy, part):
    damaged = copy / "checkpoints" / "200" / part
    if damaged.is_dir():
        shutil.rmtree(damaged)
    else:
        damaged.write_text("{")
    with pytest.raises(UserError, match=r"/200 cannot be restored .*(choose another|try again)"):
        gpt_jax.load(copy, "latest")


def test_attention_has_a_map_for_every_layer_and_head(run):
    maps = run.attention("The king")
    assert maps.shape == (2, 2, 8, 8) and maps.dtype == np.float32
    np.testing.assert_allclose(maps.sum(-1), 1, rtol=1e-5)
    # What comes later changes nothing, nor does the padding.
    np.testing.assert_allclose(run.attention("The k"), maps[:, :, :5, :5], atol=1e-6)


@pytest.mark.parametrize("text", ["", "a" * 17])
def test_attention_needs_a_text_that_fits_into_the_window(run, text):
    with pytest.raises(UserError, match=f"has {len(text)} tokens, but a window has 1 to 16"):
        run.attention(text)
