"""Tokens in added_tokens.json and tokenizer_config.json: kept with their ids, or refused."""

import json
import shutil

import pytest
import tokenizers
from support import GPT2_TINY

from gpt_jax.errors import UserError
from gpt_jax.text.tokenizer_file import make_tokenizer

END = {"content": "<|endoftext|>", "special": True, "lstrip": False, "normalized": False}
PAD = {"content": "<pad>", "special": True, "lstrip": False, "rstrip": False}


@pytest.fixture(params=["whole", "pair"])
def folder(tmp_path, request):
    """A folder with 288 tokens, as tokenizer.json or as vocab.json and merges.txt."""
    file = GPT2_TINY / "tokenizer.json"
    if request.param == "whole":
        shutil.copy(file, tmp_path)
    else:
        tokenizers.Tokenizer.from_file(str(file)).model.save(str(tmp_path))
    return tmp_path


def tokenizer_of(folder, added=None, config=None):
    for name, content in (("added_tokens", added), ("tokenizer_config", config)):
        if content is not None:
            (folder / f"{name}.json").write_text(json.dumps(content))
    return make_tokenizer(str(folder), [], 0)


@pytest.mark.parametrize(
    ("added", "config"),
    [
        ({"<user>": 289, "<pad>": 288}, None),
        (None, {"added_tokens_decoder": {"288": PAD, "0": END, "289": {"content": "<user>"}}}),
        ({"<user>": 289}, {"added_tokens_decoder": {"288": PAD}}),
        ({"<pad>": 288, "<user>": 289}, {"added_tokens_decoder": {"288": PAD}}),
    ],
)
def test_added_tokens_keep_their_ids(folder, added, config):
    before = tokenizer_of(folder)
    found = tokenizer_of(folder, added, config)
    assert (before.vocab_size, found.vocab_size) == (288, 290)
    text = "A king<user><pad> of<|endoftext|>"
    ids = found.encode(text).tolist()
    assert found.decode(ids) == text
    assert ids == [*before.encode("A king"), 289, 288, *before.encode(" of<|endoftext|>")]


@pytest.mark.parametrize("config", [{}, {"added_tokens_decoder": {"0": END}}, {"pad_token": None}])
def test_a_folder_that_adds_nothing_keeps_its_tokens(folder, config):
    assert tokenizer_of(folder, {}, config).vocab_size == 288


@pytest.mark.parametrize(
    ("added", "config", "words"),
    [
        ({"<pad>": 300}, None, "'<pad>' has the id 288 there, but 300 in a list"),
        ({"<pad>": 300_000_000}, None, "but 300000000 in a list"),
        ({"<pad>": 5}, None, "'<pad>' has the id 288 there, but 5 in a list"),
        ({"<|endoftext|>": 288}, None, "'<|endoftext|>' has the id 0 there"),
        ({"<pad>": None}, None, "has another form"),
        ({"<pad>": "x"}, None, "invalid literal"),
        (["<pad>"], None, "not a JSON object"),
        ({"two words": 288}, None, "an added token contains spaces"),
        (None, {"added_tokens_decoder": {"288": PAD | {"lstrip": True}}}, "absorbs the spaces"),
        (None, {"added_tokens_decoder": {"288": "<pad>"}}, "has another form"),
        (None, {"added_tokens_decoder": {"288": {"content": 5}}}, "no tokenizer can be read"),
        (None, {"added_tokens_decoder": {"288": {}}}, "has another form"),
        (None, {"added_tokens_decoder": [PAD]}, "has another form"),
        (None, {"add_prefix_space": True}, "add_prefix_space"),
    ],
)
def test_added_tokens_that_cannot_be_kept_are_refused(folder, added, config, words):
    with pytest.raises(UserError, match="no tokenizer can be read") as error:
        tokenizer_of(folder, added, config)
    assert words in str(error.value)
