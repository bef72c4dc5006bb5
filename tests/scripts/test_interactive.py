"""The interactive mode: prompts, commands, Ctrl-C."""

import sys

import pytest
import sample
from tuned import instructed

import gpt_jax


@pytest.fixture
def talk(trained, capsys, monkeypatch):
    """Types lines and returns the output; a line that is an exception is raised instead."""

    def call(*lines, flags=("--max_new_tokens=12",), workdir=trained):
        typed = iter([*lines, EOFError()])

        def read(prompt=""):
            line = next(typed)
            if isinstance(line, BaseException):
                raise line
            return line

        monkeypatch.setattr("builtins.input", read)
        status = sample.main(["scripts/sample.py", f"--workdir={workdir}", "--interactive", *flags])
        assert status == 0
        return capsys.readouterr()

    return call


@pytest.fixture
def model(trained):
    return gpt_jax.load(trained)


def test_each_text_continues_its_prompt_with_its_own_seed(talk, model):
    out = talk("KING", "KING").out
    texts = [model.generate("KING", max_new_tokens=12, seed=seed) for seed in (0, 1)]
    assert out == "".join(text + "\n" for text in texts)
    assert texts[0] != texts[1]


def test_the_help_says_that_it_completes_text(talk):
    assert "completes text, it does not chat" in talk().err


def test_enter_alone_continues_the_last_text(talk, model):
    first = model.generate("KING", max_new_tokens=12, seed=0)
    second = model.generate(first, max_new_tokens=12, seed=1)
    assert talk("KING", "").out == first + "\n" + second.removeprefix(first) + "\n"


def test_a_typed_backslash_n_is_a_line_break(talk, model):
    assert talk(r"KING\nThe").out == model.generate("KING\nThe", max_new_tokens=12) + "\n"


def test_commands_change_the_settings(talk, model):
    options = {"temperature": 2, "top_k": 7, "top_p": 0.9, "max_new_tokens": 30, "seed": 9}
    text = model.generate("KING", **options)
    out = talk("/t 2", "/k 7", "/p 0.9", "/n 30", "/s 9", f"/stop {text[20:24]}", "KING").out
    assert out == "KING" + text.removeprefix("KING").split(text[20:24])[0] + "\n"
    err = talk("/temperature 0", "/show").err
    assert "temperature=0.0" in err
    assert "max_new_tokens=12" in err


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("/t -1", "sample.temperature = -1.0 is out of range"),
        ("/t warm", "temperature = 'warm' is not a number"),
        ("/k", "top_k = '' is not a number"),
        ("/s -1", "seed = -1"),
        ("/prompt x", "/prompt is not a command: /help lists them"),
        ("Theπ", "'π' (U+03C0) in line 1, column 4"),
    ],
)
def test_a_mistake_gets_a_sentence_and_changes_nothing(talk, model, line, words):
    out, err = talk(line, "KING")
    assert "error: " in err
    assert words in err
    assert out == model.generate("KING", max_new_tokens=12) + "\n"


def test_a_terminal_gets_no_control_characters_of_a_text(talk, monkeypatch):
    pieces = [["KING"], ["\x1b[31m"], ["\a\n"]]
    monkeypatch.setattr(gpt_jax.api.TrainedModel, "stream", lambda *_, **__: iter(pieces))
    assert talk("KING").out == "KING\x1b[31m\a\n\n"
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    assert talk("KING").out == r"KING\x1b[31m\x07" + "\n\n"


def test_ctrl_c_stops_the_text_and_not_the_program(talk, model, monkeypatch):
    original = gpt_jax.api.TrainedModel.stream

    def interrupted(self, *args, **kwargs):
        for number, piece in enumerate(original(self, *args, **kwargs)):
            if number == 4:
                raise KeyboardInterrupt
            yield piece

    monkeypatch.setattr(gpt_jax.api.TrainedModel, "stream", interrupted)
    out, err = talk("KING", KeyboardInterrupt(), "/quit", "The")
    assert out == model.generate("KING", max_new_tokens=3) + "\n"
    assert "Ctrl-D leaves" in err


def test_a_prompt_on_the_command_line_comes_first(talk, model):
    out = talk(flags=("--max_new_tokens=12", "--prompt=KING")).out
    assert out == model.generate("KING", max_new_tokens=12) + "\n"


@pytest.fixture
def tuned(tmp_path_factory):
    return gpt_jax.load(instructed(tmp_path_factory))


def test_a_tuned_run_answers_each_instruction_with_its_own_seed(talk, tuned):
    """It says so, and the options reach it; an answer of its own never repeats the instruction."""
    out, err = talk("123+456=", "1+1=", "/t 2", "", workdir=tuned.workdir)
    asked = [("123+456=", 0, {}), ("1+1=", 1, {}), ("1+1=", 2, {"temperature": 2.0})]
    answers = [tuned.answer(text, seed=seed, **options) for text, seed, options in asked]
    assert out == "".join(f"{answer}\n" for answer in answers)
    assert "was tuned to answer: type an instruction" in err
    assert "another answer to the last instruction" in err
    assert "completes text" not in err


def test_a_mistake_in_an_instruction_gets_a_sentence(talk, tuned):
    out, err = talk("1 + 1", "1+1=", workdir=tuned.workdir)
    assert "error: character ' ' (U+0020)" in err
    assert out == tuned.answer("1+1=", seed=0) + "\n"


def test_enter_before_any_instruction_gets_a_sentence(talk, tuned):
    out, err = talk("", "1+1=", workdir=tuned.workdir)
    assert err.count("error: ") == 1
    assert out == tuned.answer("1+1=", seed=0) + "\n"


def test_stop_is_no_setting_of_a_tuned_run_because_its_template_ends_an_answer(talk, tuned):
    out, _ = talk("/stop 1", "123+456=", workdir=tuned.workdir)
    assert out == tuned.answer("123+456=", seed=0) + "\n"
