"""campaign.py: it sees what ends badly, harms and undoes, and knows every setting and flag.

The commands here are Python code, called as `exec(code)` in a fork, like a script's main.
"""

import importlib
import random
import re
import shutil
import signal

import campaign
import pytest
from hostile import harm, on_runs, process, settings, trial
from hostile.process import Command
from hostile.trial import Bad, Base, Trial

SENTENCE = "import sys; print('error: wrong', file=sys.stderr); sys.exit(2)"
WAIT = "import signal; signal.pause()"


@pytest.fixture
def base(trained, tmp_path):
    """A base whose finished run and whose stopped run are the same."""
    for name in ("finished", "stopped"):
        shutil.copytree(trained, tmp_path / "base" / name)
    return Base(tmp_path / "base", 0.0)


@pytest.fixture
def one(base, tmp_path):
    """A trial."""
    (tmp_path / "trial").mkdir()
    return Trial(base, tmp_path / "trial", random.Random(0))


def test_every_trial_is_counted_once(capsys):
    status = campaign.main(["scripts/campaign.py", "--trials=3", "--seed=0", "--kind=odd texts"])
    out, err = capsys.readouterr()
    assert (status, err) == (0, "")
    [*_, row, total] = out.splitlines()
    assert row.startswith("| odd texts | 3 | ")
    tried, *columns = map(int, re.findall(r"\| (\d+)(?= )", total))
    assert tried == sum(columns) == 3 and columns[-1] == 0


def test_a_trial_that_ends_badly_is_told_with_its_number_and_gives_status_1(monkeypatch, capsys):
    def fails(trial):
        raise Bad("a traceback")

    monkeypatch.setitem(campaign.KINDS, "planted", (1, fails))
    monkeypatch.setattr(campaign.base, "make", lambda folder: Base(folder, 0.0))
    flags = ["--trials=2", "--first=7", "--kind=planted"]
    assert campaign.main(["scripts/campaign.py", *flags]) == 1
    out = capsys.readouterr().out
    assert "--first=7, planted: a traceback" in out and "--first=8, planted: a traceback" in out
    assert "| planted | 2 | 0 | 0 | 0 | 0 | 2 |" in out


@pytest.mark.parametrize(
    ("code", "how", "fault"),
    [
        ("", {}, ""),
        (SENTENCE, {}, ""),
        ("raise KeyError('deep')", {}, "a traceback"),
        ("print('Traceback (most recent call last):')", {}, "a traceback"),
        ("import sys; sys.exit(1)", {}, "exit status 1"),
        ("import os; os.abort()", {}, f"exit status -{signal.SIGABRT:d}"),
        ("import sys; sys.exit(2)", {}, "without a sentence"),
        ("import sys; print('\\n' * 20, 'x', file=sys.stderr)", {}, ""),
        ("import sys; print('x\\n' * 20, file=sys.stderr)", {}, "20 lines"),
        (WAIT, {"signals": [(0.0, signal.SIGTERM)]}, ""),
        ("import sys; sys.exit(143)", {"signals": [(0.0, signal.SIGCONT)]}, "exit status 143"),
    ],
)
def test_the_end_of_a_command_is_judged(one, code, how, fault):
    command = Command(exec, [code], **how)
    found = process.fault(command, process.run(command, one.folder))
    assert fault in found if fault else found == ""


def test_a_command_that_hangs_ends_badly_and_one_that_may_work_for_long_does_not(one, monkeypatch):
    monkeypatch.setattr(process, "END_S", 0.1)
    with pytest.raises(Bad, match="had not ended"):
        one.run(exec, WAIT)
    quiet = f"import signal; signal.signal(signal.SIGINT, signal.SIG_DFL); {WAIT}"
    assert one.run(exec, quiet, patience_s=0.1).stopped == "time"


def test_a_command_that_takes_too_much_memory_ends_badly(one, monkeypatch):
    monkeypatch.setattr(process, "MOST_BYTES", 0)
    with pytest.raises(Bad, match="too much size"):
        one.run(exec, WAIT)


@pytest.mark.parametrize(
    ("printed", "names", "good"),
    [
        ("right", [], True),
        ("wrong", [], False),
        ("wrong", ["checkpoints/20/d"], False),
        ("the other's", [], False),
        ("the other's", ["checkpoints/40/d"], False),
        ("the other's", ["checkpoints/20/d"], True),
    ],
)
def test_another_answer_with_status_0_is_silently_wrong(one, monkeypatch, printed, names, good):
    monkeypatch.setitem(trial.USES, "sample", (exec, (f'print("{printed}")',)))
    for step, answer in (("best", "right"), ("latest", "the other's")):
        one.base.answers["sample", step] = f"{answer}\n\n"
    if good:
        on_runs.read(one, one.folder, "sample", "best", names)
    else:
        with pytest.raises(Bad, match="another answer"):
            on_runs.read(one, one.folder, "sample", "best", names)


def change(path, old, new):
    path.write_text(path.read_text().replace(old, new, 1))


@pytest.mark.parametrize(
    ("part", "spoil"),
    [
        (
            "arrays",
            lambda run: change(run / "checkpoints/200/_CHECKPOINT_METADATA", 'bias": ', 'bias": 1'),
        ),
        ("text", lambda run: (run / "samples" / "200.txt").write_text("another")),
        ("log", lambda run: change(run / "metrics.jsonl", '"train/loss": ', '"train/loss": 1')),
        ("not whole", lambda run: shutil.rmtree(run / "checkpoints" / "200")),
    ],
)
def test_a_run_that_ends_differently_is_silently_wrong(one, part, spoil):
    run = one.copy("finished")
    one.same_end(run, "finished", 200)
    spoil(run)
    with pytest.raises(Bad, match=part):
        one.same_end(run, "finished", 200)


@pytest.mark.parametrize(
    ("harmed", "fault"),
    [
        ("checkpoints/20/d", "one checkpoint was harmed"),
        ("config.json", "the corrected command ends with 2"),
    ],
)
def test_a_run_that_is_lost_ends_badly(one, monkeypatch, harmed, fault):
    refused = process.Ending(2, "", "error: no checkpoint\n")
    monkeypatch.setattr(Trial, "train", lambda trial, run, *words: refused)
    monkeypatch.setattr(on_runs, "do_harm", lambda *_: [harmed])
    with pytest.raises(Bad, match=fault):
        on_runs.resume(one, "flip")


@pytest.mark.parametrize("kind", on_runs.HARMS)
def test_every_harm_is_a_function_of_the_seed_and_can_be_undone(one, kind):
    untouched = one.base.folder / "finished"
    before = harm.snapshot(untouched)
    for seed in range(10):
        changes = []
        for _ in range(2):
            run = one.copy("finished")
            one.dice = random.Random(seed)
            names = on_runs.do_harm(one, kind, run)
            changes.append((names, {name: harm.snapshot(run).get(name) for name in names}))
            harm.undo(run, untouched, names)
            assert harm.snapshot(run) == before, one.told[-1]
            shutil.rmtree(run)
        assert changes[0] == changes[1]


@pytest.mark.parametrize("script", sorted(set(settings.SCRIPTS)))
def test_every_flag_and_every_setting_gets_odd_values(script):
    dice = random.Random(0)
    words = [word for _ in range(3000) for word in settings.odd_words(script, dice)]
    wanted = {name for name, *_ in importlib.import_module(script).FLAGS}
    if script in ("train", "benchmark"):
        wanted |= set(settings.FIELDS)
    assert wanted <= {word.removeprefix("--").partition("=")[0] for word in words}


@pytest.mark.parametrize(
    "flag", ["--trials=0", "--minutes=0", "--seed=-1", "--first=-1", "--workers=0", "--kind=none"]
)
def test_bad_input_gets_one_sentence_and_status_2(capsys, flag):
    assert campaign.main(["scripts/campaign.py", flag]) == 2
    assert re.fullmatch(r"error: [^\n]+\n", capsys.readouterr().err)
