"""The built-in tasks: prompts, right answers, judges."""

import re

import pytest

from gpt_jax.text import play
from gpt_jax.text.derivation import read_speech
from gpt_jax.tuning.tasks import TASKS
from gpt_jax.tuning.tasks.play import LONGEST, Play, Wish, _things
from gpt_jax.tuning.tasks.sums import Sums
from gpt_jax.tuning.tasks.task import Prompt

TRAINING = {name: [task().prompt(0, i, False) for i in range(300)] for name, task in TASKS.items()}
HELD_OUT = {name: [task().prompt(0, i, True) for i in range(60)] for name, task in TASKS.items()}


@pytest.mark.parametrize("name", TASKS)
def test_the_judge_accepts_every_right_answer(name: str) -> None:
    judge = TASKS[name]().judge
    for prompt in TRAINING[name] + HELD_OUT[name]:
        assert judge(prompt, prompt.answer).score == 1


@pytest.mark.parametrize("name", TASKS)
def test_prompts_are_functions_of_seed_and_index(name: str) -> None:
    task = TASKS[name]()
    assert task.prompt(0, 5, False) == TRAINING[name][5]
    assert task.prompt(1, 5, False) != TRAINING[name][5]


@pytest.mark.parametrize("name", TASKS)
def test_all_characters_are_in_the_alphabet(name: str) -> None:
    texts = [prompt.text + prompt.answer for prompt in TRAINING[name]]
    assert set("".join(texts)) <= set(TASKS[name]().alphabet)


def test_the_play_has_the_characters_of_tiny_shakespeare() -> None:
    assert len(Play().alphabet) == 65


def test_held_out_conditions_never_occur_in_training() -> None:
    asked = {prompt.wanted for prompt in TRAINING["play"]}
    assert asked.isdisjoint(prompt.wanted for prompt in HELD_OUT["play"])


def test_held_out_sums_never_occur_in_training() -> None:
    asked = {prompt.text for prompt in TRAINING["sums"]}
    assert asked.isdisjoint(prompt.text for prompt in HELD_OUT["sums"])


def test_a_sum_is_written_backwards() -> None:
    assert Sums().judge(Prompt("123+456=", "975"), "975").fulfilled
    assert not Sums().judge(Prompt("123+456=", "975"), "579").fulfilled
    for prompt in TRAINING["sums"]:
        a, b = re.findall(r"\d+", prompt.text)
        assert int(prompt.answer[::-1]) == int(a) + int(b)


ANSWER = (
    "ZEBEDEE:\nAhoy, poor sailors!\nThe oar mocks Old Nan.\nI pawned the whale.\n"
    "But hush, for the net is listening."
)
FULL = Wish("ZEBEDEE", "sea", 2, "oar")


def verdicts(wish: Wish, answer: str) -> dict[str, bool]:
    return Play().judge(Prompt("", "", wish), answer).conditions


def test_each_condition_has_its_own_verdict() -> None:
    every = dict.fromkeys(("grammar", "speaker", "topic", "sentences", "word"), True)
    assert verdicts(FULL, ANSWER) == every
    assert verdicts(Wish("JORY", "sea", 2, "oar"), ANSWER) == every | {"speaker": False}
    assert verdicts(Wish("ZEBEDEE", "love", 2, "oar"), ANSWER) == every | {"topic": False}
    assert verdicts(Wish("ZEBEDEE", "sea", 3, "oar"), ANSWER) == every | {"sentences": False}
    assert verdicts(Wish("ZEBEDEE", "sea", 2, "eel"), ANSWER) == every | {"word": False}
    assert verdicts(Wish(speaker="ZEBEDEE"), ANSWER) == {"grammar": True, "speaker": True}


def test_a_word_counts_only_where_the_grammar_puts_it() -> None:
    """The letters of the word inside another word, or in a broken answer's rest, do not count."""
    assert not verdicts(Wish(word="eel"), ANSWER.replace("whale", "eelskin"))["word"]


def test_an_ungrammatical_answer_keeps_the_verdicts_of_its_readable_part() -> None:
    found = verdicts(FULL, ANSWER.replace("The oar", "Teh oar"))
    assert found == {
        "grammar": False, "speaker": True, "topic": True, "sentences": False, "word": False,
    }  # fmt: skip
    assert not any(verdicts(FULL, "").values())


def test_prompts_name_what_they_ask_for() -> None:
    for prompt in TRAINING["play"]:
        wish = prompt.wanted
        assert wish != Wish()
        assert wish.speaker in prompt.text
        assert wish.word in prompt.text
        assert ("sentence" in prompt.text) == (wish.sentences > 0)
        assert len(prompt.answer) + 2 <= LONGEST


def test_the_word_is_the_first_thing_that_a_right_answer_names() -> None:
    asked = [prompt for prompt in TRAINING["play"] if prompt.wanted.word]
    assert len(asked) > 100
    for prompt in asked:
        assert _things(read_speech(prompt.answer + "\n\n"))[0] == prompt.wanted.word


def test_prompts_are_worded_in_many_ways() -> None:
    shapes = {
        re.sub(
            r"\b[a-z-]+ (in|with|using)\b", "", prompt.text.replace(prompt.wanted.word or "#", "W")
        )
        for prompt in TRAINING["play"]
    }
    assert len(shapes) > 200
    assert play.write()[:50]
