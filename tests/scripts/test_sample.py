"""sample.py: texts on standard output, messages on stderr, and bad input."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import evaluate
import pytest
import sample
import train
from support import ROOT
from tuned import instructed

import gpt_jax


@pytest.fixture
def run(trained, capsys):
    def call(*flags, workdir=trained):
        status = sample.main(["scripts/sample.py", f"--workdir={workdir}", *flags])
        return status, *capsys.readouterr()

    return call


def test_standard_output_gets_only_text(run, trained):
    model = gpt_jax.load(trained)
    status, out, err = run("--max_new_tokens=30", "--seed=2")
    assert status == 0
    assert out == model.generate(max_new_tokens=30, seed=2) + "\n"
    assert err.splitlines() == [
        f"loading {trained}",
        f"{trained}, step {model.step:,}: {model.described_loss}",
    ]


def test_every_flag_reaches_the_model(run, trained):
    flags = ["--prompt=KING", "--max_new_tokens=50", "--temperature=1.3", "--top_k=5"]
    flags += ["--top_p=0.9", "--seed=4", "--step=200"]
    model = gpt_jax.load(trained, 200)
    options = {"max_new_tokens": 50, "temperature": 1.3, "top_k": 5, "top_p": 0.9, "seed": 4}
    expected = model.generate("KING", **options)
    assert run(*flags)[1] == expected + "\n"
    stop = expected[40:44]
    stopped = "KING" + expected.removeprefix("KING").split(stop)[0]
    assert run(*flags, f"--stop={stop}")[1] == stopped + "\n"


def test_temperature_0_is_greedy(run):
    assert run("--temperature=0", "--seed=1")[1] == run("--temperature=0", "--seed=2")[1]


def test_samples_are_separated_by_a_line_that_none_of_them_has(run, trained):
    texts = gpt_jax.load(trained).generate_batch(num_samples=3, max_new_tokens=30)
    out = run("--num_samples=3", "--max_new_tokens=30")[1]
    assert re.split(r"\n=+ sample \d of 3 =+\n", out.removesuffix("\n")) == texts
    assert "\n======== sample 2 of 3 ========\n" in out


def test_texts_with_bars_are_separated_by_a_longer_bar():
    texts = ["a\n=========\nb", "========c"]
    out = sample.joined(texts)
    assert out.removesuffix("\n").split("\n========== sample 2 of 2 ==========\n") == texts


def test_out_writes_all_texts_into_one_file(run, tmp_path):
    path = tmp_path / "texts.txt"
    path.write_text("old")
    status, out, err = run("--num_samples=2", f"--out={path}")
    assert (status, out) == (0, "")
    assert err.endswith(f"written to {path}\n")
    assert path.read_text(encoding="utf-8") == run("--num_samples=2")[1]
    assert list(tmp_path.iterdir()) == [path]


def test_without_workdir_the_run_saved_last_is_used(trained, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for number, name in enumerate(["old", "new", "older"]):
        shutil.copytree(trained, tmp_path / "runs" / name)
        age = [2e9, 3e9, 1e9][number]
        for path in (tmp_path / "runs" / name / "checkpoints").iterdir():
            os.utime(path, (age, age))
    (tmp_path / "runs" / "just begun").mkdir()
    assert sample.main(["scripts/sample.py", "--max_new_tokens=1"]) == 0
    assert f"{os.path.join('runs', 'new')}, step " in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--prompt=Theπ"], r"'π' \(U\+03C0\) in line 1, column 4 .* remove it"),
        (["--temperature=-1"], r"sample\.temperature = -1\.0 .* 0 to 1000"),
        (["--temperature=nan"], r"sample\.temperature = nan"),
        (["--temperature=warm"], "temperature=warm"),
        (["--top_k=-1"], r"sample\.top_k = -1 .* 0 or more"),
        (["--top_k=2.5"], "top_k=2.5"),
        (["--top_p=0"], r"sample\.top_p = 0\.0 .* in \(0, 1\]"),
        (["--top_p=1.01"], r"sample\.top_p = 1\.01"),
        (["--max_new_tokens=-1"], r"sample\.max_new_tokens = -1"),
        (["--num_samples=0"], "num_samples = 0"),
        (["--seed=-1"], "seed = -1"),
        (["--step=7"], "no step '7': the steps are 100 and 200; give"),
        (["--promt=x"], "promt.*prompt"),
        (["ROMEO:"], "'ROMEO:' is not a flag"),
        (["--interactive", "--num_samples=2"], "leave out --num_samples"),
        (["--interactive", "--out=x"], "leave out .*--out"),
    ],
)
def test_bad_input_gets_one_sentence_and_status_2(run, flags, words):
    status, out, err = run(*flags)
    assert (status, out) == (2, "")
    assert re.fullmatch(r"(loading .*\n)?(\S+, step .*\n)?error: [^\n]+\n", err), err
    assert re.search(words, err)


def test_an_unwritable_out_is_refused_before_a_text_is_drawn(run, tmp_path, monkeypatch):
    monkeypatch.setattr(sample, "joined", lambda texts: pytest.fail("it draws a text"))
    for path in (tmp_path, "/", tmp_path / "no folder" / "x.txt"):
        status, _, err = run(f"--out={path}")
        assert status == 2
        assert re.search(rf"error: --out={path} cannot be written .*\n", err)
    assert list(tmp_path.iterdir()) == []


def test_out_may_be_a_device(run, tmp_path):
    link = tmp_path / "link"
    link.symlink_to("/dev/null")
    assert run(f"--out={link}")[0] == 0
    assert link.is_symlink()
    assert Path("/dev/null").is_char_device()


@pytest.mark.parametrize(("terminal", "piece"), [(True, sample.STREAMED_TOKENS), (False, 0)])
def test_a_terminal_shows_the_text_while_it_is_drawn(run, monkeypatch, terminal, piece):
    flushed, sizes = [], []
    original = gpt_jax.api.TrainedModel.stream

    def spy(*args, **kwargs):
        sizes.append(kwargs["piece"])
        for texts in original(*args, **kwargs):
            flushed.append(texts)
            yield texts

    monkeypatch.setattr(gpt_jax.api.TrainedModel, "stream", spy)
    monkeypatch.setattr(sys.stdout, "isatty", lambda: terminal)
    assert run("--max_new_tokens=24")[0] == 0
    assert sizes == [piece]
    longest = max(len(texts[0]) for texts in flushed)
    assert longest == 4 if terminal else longest > 4


ESCAPE, SHOWN = "\x1b]0;title\x07\x9b31m", r"\x1b]0;title\x07\x9b31m"


@pytest.mark.parametrize(("terminal", "shown"), [(True, SHOWN), (False, ESCAPE)])
def test_a_strangers_control_characters_do_not_reach_a_terminal(
    run, tmp_path, monkeypatch, terminal, shown
):
    """In a text, in the name of a folder, and in a message that quotes it."""

    def texts(*args, **kwargs):
        yield from [["A\n\tking ", "B"], [ESCAPE, ESCAPE], ["\n", "\n"]]

    monkeypatch.setattr(gpt_jax.api.TrainedModel, "stream", texts)
    monkeypatch.setattr(sys.stdout, "isatty", lambda: terminal)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: terminal)
    assert run()[1].startswith(f"A\n\tking {shown}\n\n===")
    assert run()[1].endswith(f"B{shown}\n\n")
    path = tmp_path / f"texts{ESCAPE}"
    assert run(f"--out={path}")[2].endswith(f"texts{shown}\n")
    assert ESCAPE.encode() in path.read_bytes()
    status, _, err = run(workdir=tmp_path / f"no run{ESCAPE}")
    assert (status, err.count(f"no run{shown}")) == (2, 2)


@pytest.mark.parametrize("script", [sample, evaluate, train])
def test_a_damaged_run_gets_one_sentence(script, trained, tmp_path, capsys):
    """Its configuration, its tokenizer, or a checkpoint of another model."""
    record = json.loads((trained / "config.json").read_text(encoding="utf-8"))
    overrides = [
        f"--config.{section}.{name}={value}"
        for section, values in record["config"].items()
        for name, value in values.items()
    ]
    damages = [
        ("config.json", lambda text: text[:-20]),
        ("tokenizer.json", lambda text: text[:-20]),
    ]
    if script is not train:  # train.py compares the configuration first.
        damages.append(("config.json", lambda text: text.replace('"n_layer": 2', '"n_layer": 1')))
    for number, (name, damage) in enumerate(damages):
        copy = shutil.copytree(trained, tmp_path / str(number))
        (copy / "samples" / "200.txt").unlink()  # Otherwise the run is finished.
        path = copy / name
        path.write_text(damage(path.read_text(encoding="utf-8")), encoding="utf-8")
        flags = [f"--workdir={copy}", *(overrides if script is train else [])]
        assert script.main([script.__file__, *flags]) == 2
        err = capsys.readouterr().err
        assert re.fullmatch(r"((loading|evaluating) .*\n)?error: [^\n]+\n", err), err
        assert "restore the" in err


def test_a_folder_without_a_run_is_an_error(run, tmp_path, monkeypatch, capsys):
    status, _, err = run(workdir=tmp_path / "nothing")
    assert status == 2
    assert re.search(r"error: .*nothing holds no run .*\n", err)
    monkeypatch.chdir(tmp_path)
    assert sample.main(["scripts/sample.py"]) == 2
    assert re.search("no run with a checkpoint in .*runs: train one", capsys.readouterr().err)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("also_stderr", [False, True])
@pytest.mark.parametrize(
    ("script", "flags"),
    [
        ("sample.py", ["--workdir={run}", "--max_new_tokens=300000"]),
        ("train.py", ["--help_config"]),
        ("compare.py", ["{run}", "--out=/dev/null"]),
    ],
)
def test_a_closed_pipe_ends_the_script_without_a_word(trained, script, flags, also_stderr):
    """sample.py | head, and sample.py 2>&1 | head"""
    command = [sys.executable, ROOT / "scripts" / script]
    command += [flag.format(run=trained) for flag in flags]
    read, write = os.pipe()
    os.close(read)
    err = write if also_stderr else subprocess.PIPE
    process = subprocess.run(command, stdout=write, stderr=err, text=True)
    os.close(write)
    assert process.returncode == 141  # 128 + SIGPIPE
    if not also_stderr:
        assert not re.search("error|pipe|Traceback", process.stderr), process.stderr


def test_a_platform_that_is_not_here_is_not_taken_for_damage(trained):
    command = [sys.executable, ROOT / "scripts" / "sample.py", f"--workdir={trained}"]
    odd = os.environ | {"JAX_PLATFORMS": "nonsense", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, capture_output=True, text=True, env=odd)
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith("error: JAX_PLATFORMS=nonsense names")


def test_closed_streams_give_no_traceback(trained):
    """sample.py >&-, sample.py --interactive <&-"""
    script = f"{sys.executable} {ROOT}/scripts/sample.py --workdir={trained} --max_new_tokens=2"
    for command in (f"{script} >&-", f"{script} --interactive <&-"):
        done = subprocess.run(["sh", "-c", command], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert "Traceback" not in done.stderr


def test_characters_a_terminal_lacks_become_question_marks(trained, tmp_path):
    run = shutil.copytree(trained, tmp_path / "run")
    record = json.loads((run / "config.json").read_text(encoding="utf-8"))
    del record["digests"]  # As in an older version; otherwise the edit is refused.
    (run / "config.json").write_text(json.dumps(record), encoding="utf-8")
    tokenizer = run / "tokenizer.json"
    text = tokenizer.read_text(encoding="utf-8")
    characters = gpt_jax.load(trained).tokenizer.characters
    assert "z" in characters
    tokenizer.write_text(text.replace("z", "東"), encoding="utf-8")  # It stays the last in order.
    command = [sys.executable, ROOT / "scripts" / "sample.py", f"--workdir={run}"]
    flags = ["--prompt=東", "--max_new_tokens=0"]
    ascii_only = os.environ | {"PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0"}
    done = subprocess.run([*command, *flags], capture_output=True, env=ascii_only)
    assert (done.returncode, done.stdout) == (0, b"?\n")


@pytest.fixture
def tuned(tmp_path_factory):
    return gpt_jax.load(instructed(tmp_path_factory))


ASKED = "123+456="


def test_an_instruction_gets_the_answer_alone_on_standard_output(run, tuned):
    status, out, err = run(f"--instruction={ASKED}", "--seed=3", workdir=tuned.workdir)
    assert (status, out) == (0, tuned.answer(ASKED, seed=3) + "\n")
    assert out == tuned.answers([ASKED], seed=3)[0] + "\n"
    assert err.splitlines()[-1].startswith(f"{tuned.workdir}, step ")


def test_the_options_of_sampling_reach_an_answer(run, tuned):
    flags = ["--temperature=3", "--top_k=0", "--max_new_tokens=3", "--seed=1", "--step=40"]
    options = {"temperature": 3.0, "top_k": 0, "max_new_tokens": 3, "seed": 1}
    model = gpt_jax.load(tuned.workdir, 40)
    found = run(f"--instruction={ASKED}", *flags, workdir=tuned.workdir)[1]
    assert found == model.answer(ASKED, **options) + "\n"


def test_several_answers_to_one_instruction_differ_and_the_first_is_the_answer_alone(
    run, tuned, tmp_path
):
    flags = [f"--instruction={ASKED}", "--num_samples=3", "--temperature=3", "--top_k=0"]
    status, out, _ = run(*flags, workdir=tuned.workdir)
    assert status == 0
    texts = re.split(r"\n=+ sample \d of 3 =+\n", out.removesuffix("\n"))
    [group] = tuned.answer_groups([ASKED], 3, temperature=3.0, top_k=0)
    assert texts == [answer.text for answer in group]
    assert texts[0] == tuned.answer(ASKED, temperature=3.0, top_k=0)
    assert len(set(texts)) == 3
    assert run(*flags, f"--out={tmp_path / 'a.txt'}", workdir=tuned.workdir)[1] == ""
    assert (tmp_path / "a.txt").read_text() == out


def test_a_terminal_shows_an_answer_while_it_is_drawn(run, tuned, monkeypatch):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    found = run(f"--instruction={ASKED}", workdir=tuned.workdir)[1]
    assert found == tuned.answer(ASKED) + "\n"


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ([f"--instruction={ASKED}", "--prompt=1"], "leave out --prompt and --stop"),
        ([f"--instruction={ASKED}", "--prompt="], "leave out --prompt and --stop"),
        ([f"--instruction={ASKED}", "--stop=1"], "leave out --prompt and --stop"),
        ([f"--instruction={ASKED}", "--interactive"], "leave out --instruction"),
        (["--instruction=1 + 1"], r"character ' ' \(U\+0020\)"),
        ([f"--instruction={'1' * 16}"], "has 16 tokens, which leaves no room"),
        ([f"--instruction={'1' * 16}", "--num_samples=3"], "has 16 tokens, which leaves no room"),
        (["--instruction="], "empty"),
        ([f"--instruction={ASKED}", "--max_new_tokens=0"], "max_new_tokens = 0"),
    ],
)
def test_bad_instructions_get_one_sentence_and_status_2(run, tuned, flags, words):
    status, out, err = run(*flags, workdir=tuned.workdir)
    assert (status, out) == (2, "")
    assert re.fullmatch(r"(loading .*\n)?(\S+, step .*\n)?error: [^\n]+\n", err), err
    assert re.search(words, err)


def test_a_run_that_was_not_tuned_refuses_an_instruction(run, trained):
    for flags in ([], ["--num_samples=3"]):
        status, out, err = run("--instruction=Who?", *flags)
        assert (status, out) == (2, "")
        assert f"error: {trained} was not tuned to answer: use a tuned run" in err
