"""Templates: conversations as text, and the end of an answer."""

import pytest

from gpt_jax.errors import UserError
from gpt_jax.text import ByteTokenizer
from gpt_jax.tuning.template import TEMPLATES, Template, Turn

TURNS = (Turn("user", "Who?"), Turn("assistant", "I."))


def text_of(template: Template, turns: tuple[Turn, ...]) -> str:
    return "".join(text for text, _ in template.pieces(turns))


def test_the_form_of_the_play() -> None:
    assert text_of(TEMPLATES["play"], TURNS) == "PROMPTER:\nWho?\n\nI.\n\n"


def test_chatml() -> None:
    expected = "<|im_start|>user\nWho?<|im_end|>\n<|im_start|>assistant\nI.<|endoftext|>"
    assert text_of(TEMPLATES["chatml"], TURNS) == expected


@pytest.mark.parametrize("name", TEMPLATES)
def test_only_the_answer_and_its_end_are_learned(name: str) -> None:
    template = TEMPLATES[name]
    learned = "".join(text for text, is_learned in template.pieces(TURNS) if is_learned)
    assert learned == "I." + template.end


@pytest.mark.parametrize("name", TEMPLATES)
def test_a_prompt_is_the_conversation_up_to_the_answer(name: str) -> None:
    template, tokenizer = TEMPLATES[name], ByteTokenizer()
    prompt = tokenizer.decode(template.prompt_ids(tokenizer, TURNS[:1]))
    assert prompt + "I." + template.end == text_of(template, TURNS)


@pytest.mark.parametrize("name", TEMPLATES)
def test_a_template_is_data(name: str) -> None:
    assert Template.from_dict(TEMPLATES[name].to_dict()) == TEMPLATES[name]


PLAY = TEMPLATES["play"].to_dict()


@pytest.mark.parametrize(
    "content",
    [
        *(None, [], {}, {"user": ["", ""]}),
        *(PLAY | {"user": ["a"]}, PLAY | {"user": [1, 2]}, PLAY | {"assistant": ["", ""]}),
    ],
)
def test_other_data_is_refused(content: object) -> None:
    with pytest.raises(UserError):
        Template.from_dict(content)
