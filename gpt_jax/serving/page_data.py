"""What the page shows of a run besides its texts: probabilities, attention, the loss curve."""

import base64
from pathlib import Path
from typing import Any

import numpy as np

from gpt_jax.api import TrainedModel
from gpt_jax.devices import pinned_settings
from gpt_jax.files import read_file
from gpt_jax.inspection import attention_maps, text_scores
from gpt_jax.runs import Record, read_record
from gpt_jax.sampling import encode_prompt
from gpt_jax.serving.choice import Token, Tokens
from gpt_jax.training import curves, log

Json = dict[str, Any]

LONGEST_MAP = 64  # Tokens: the page draws a map for every layer and head.
MOST_NEXT = 512  # Tokens in the bars; the page needs more than it shows for top-p.
MOST_POINTS = 400  # Of a curve.
MOST_SAMPLES, LONGEST_SAMPLE = 5, 4000  # Files; characters.


@pinned_settings()
def prompt_tokens(model: TrainedModel, ids: np.ndarray, best: int) -> list[Token]:
    """The tokens of a text, each with the probability that the model gave it.

    They are those of `TrainedModel.token_losses`: -ln p. The first token has none.
    """
    tokens, found = Tokens(model.tokenizer, best), ids.tolist()
    n_tokens = model.tokenizer.vocab_size
    scores = text_scores(model.config.model, model.params, ids, n_tokens)
    return [tokens.unscored(i) for i in found[:1]] + tokens.scored(found[1:], scores)


def inspect(model: TrainedModel, text: str, best: int = 5) -> Json:
    """The tokens of a text with their log-probabilities, and what may come next.

    Raises:
      UserError: for a character that is not in the vocabulary.
    """
    ids = model.tokenizer.encode(text)
    tokens = prompt_tokens(model, ids, best) if len(ids) else []
    return {
        "tokens": [
            {"text": token.text, "logprob": token.logprob, "best": token.best} for token in tokens
        ],
        "next": model.next_token(text)[:MOST_NEXT],
    }


def attention(model: TrainedModel, text: str) -> Json:
    """The maps of attention over the last tokens of a text, as bytes: 255 is a weight of 1.

    Raises:
      UserError: for a character that is not in the vocabulary.
    """
    tokenizer, most = model.tokenizer, min(LONGEST_MAP, model.config.model.block_size)
    ids = encode_prompt(tokenizer, text)[-most:]
    with pinned_settings():
        maps = attention_maps(model.config.model, model.params, ids)
    weights = np.round(255 * maps).astype(np.uint8)
    return {
        "tokens": [tokenizer.decode([i]) for i in ids],
        "layers": maps.shape[0],
        "heads": maps.shape[1],
        "weights": base64.b64encode(weights.tobytes()).decode("ascii"),
    }


def describe(name: str, folder: Path) -> Json:
    """A run as its record describes it; only its name and an error if that cannot be read."""
    try:
        record = read_record(folder)
        if record is None:
            raise FileNotFoundError(f"{folder} holds no run any more")
        return {"id": name, "error": None} | _facts(record)
    except (OSError, ValueError) as error:
        return {"id": name, "error": str(error)}


def _facts(record: Record) -> Json:
    model, sample = record.config.model, record.config.sample
    return {
        "layers": model.n_layer,
        "heads": model.n_head,
        "block_size": model.block_size,
        "tokenizer": record.config.data.tokenizer,
        "steps": record.config.train.steps,
        "is_chat": record.template is not None,
        "prompt": sample.prompt,
        "max_tokens": sample.max_new_tokens,
        "temperature": sample.temperature,
        "top_k": sample.top_k,
        "top_p": sample.top_p,
    }


def progress(folder: Path) -> Json:
    """The curves of a run, and its newest samples, as they are now."""
    entries = log.read_metrics(folder / "metrics.jsonl")
    return {
        "step": entries[-1]["step"] if entries else 0,
        "train": _curve(entries, "train/loss"),
        "val": _curve(entries, "val/loss"),
        "samples": _samples(folder),
    }


def _curve(entries: list[log.Entry], name: str) -> curves.Points:
    found = curves.points(entries, "step", name)
    return [(step, round(loss, 4)) for step, loss in curves.averaged(found, MOST_POINTS)]


def _samples(folder: Path) -> list[Json]:
    """The newest samples, newest first."""
    paths = [path for path in (folder / "samples").glob("*.txt") if path.stem.isdecimal()]
    newest = sorted(paths, key=lambda path: -int(path.stem))[:MOST_SAMPLES]
    texts = [(path, read_file(path)[: 4 * LONGEST_SAMPLE]) for path in newest]
    return [
        {"step": int(path.stem), "text": text.decode("utf-8", "replace")[:LONGEST_SAMPLE]}
        for path, text in texts
    ]
