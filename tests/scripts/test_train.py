"""train.py: its flags, messages and exit status, and bad input."""

import errno
import json
import os
import re
import shlex
import signal
import subprocess
import sys

import pytest
import train
from support import ROOT

import gpt_jax
from gpt_jax.config.config import SECTIONS
from gpt_jax.config.table import section_rows
from gpt_jax.training import loop

SMALL = [
    "--config.model.block_size=16",
    "--config.model.n_layer=1",
    "--config.model.n_embd=16",
    "--config.train.steps=2",
    "--config.train.batch_size=2",
    "--config.optimizer.warmup_steps=1",
    "--config.mesh.cpu_devices=1",
    "--config.sample.max_new_tokens=5",
]


def run(*flags):
    return train.main(["scripts/train.py", f"--config={ROOT / 'configs' / 'tiny.py'}", *flags])


@pytest.fixture
def no_training(monkeypatch):
    """Fails the test if training begins."""
    monkeypatch.setattr(loop.Loop, "run_steps", lambda *args: pytest.fail("it trains"))


def test_a_finished_run_prints_commands_to_extend_it_and_for_a_new_one(tmp_path, text_file, capsys):
    flags = [*SMALL, f"--config.data.corpus={text_file}", f"--workdir={tmp_path / 'run'}"]
    assert run(*flags) == 0
    capsys.readouterr()
    assert run(*flags) == 0
    out = capsys.readouterr().out
    assert "run is finished: 2 steps" in out and "(the default)" not in out
    _, longer, _, new = out.splitlines()[-4:]
    assert f"--workdir={tmp_path / 'run-2'}" in new
    assert new.count("--workdir") == 1
    assert train.main(shlex.split(longer)[1:]) == 0
    assert (tmp_path / "run" / "samples" / "4.txt").exists()


def test_a_run_out_of_patience_prints_the_command_that_lets_it_continue(
    tmp_path, text_file, capsys, monkeypatch
):
    monkeypatch.setattr(loop.Loop, "evaluate", lambda self, state: {"loss": 1.0})
    flags = [*SMALL, f"--config.data.corpus={text_file}", f"--workdir={tmp_path / 'run'}"]
    flags += ["--config.train.steps=5", "--config.train.eval_every=1", "--config.train.patience=1"]
    assert run(*flags) == 0
    assert "ended     after step 2 of 5" in capsys.readouterr().out
    assert run(*flags) == 0
    out = capsys.readouterr().out
    assert "run is finished: it ended after step 2 of 5, because 1 evaluation(s) in a row" in out
    longer = out.splitlines()[-3]
    assert longer.endswith("--config.train.patience=2 --resume_allow=train.patience")
    assert train.main(shlex.split(longer)[1:]) == 0
    assert (tmp_path / "run" / "samples" / "3.txt").exists()


def test_when_the_time_is_up_it_says_how_to_resume(tmp_path, text_file, capsys):
    flags = [*SMALL, f"--config.data.corpus={text_file}", f"--workdir={tmp_path / 'run'}"]
    assert run(*flags, "--config.train.max_minutes=1e-6") == 0
    told = "stopped by train.max_minutes after step 1: the same command resumes the run\n"
    assert told in capsys.readouterr().err
    assert run(*flags) == 0
    assert (tmp_path / "run" / "samples" / "2.txt").exists()


@pytest.mark.parametrize("name", ["a\\b", os.fsdecode(b"caf\xe9")])
def test_a_folder_that_would_lose_checkpoints_is_refused_and_nothing_is_written(
    name, tmp_path, text_file, capsys
):
    (tmp_path / "runs").mkdir()
    workdir = tmp_path / "runs" / name
    assert run(*SMALL, f"--config.data.corpus={text_file}", f"--workdir={workdir}") == 2
    assert re.fullmatch(r"error: [^\n]+: use another folder\n", capsys.readouterr().err)
    assert not any((tmp_path / "runs").iterdir())


def test_a_short_run_shortens_its_warmup_says_so_and_resumes(tmp_path, text_file, capsys):
    flags = [flag for flag in SMALL if "warmup" not in flag]
    flags += [f"--config.data.corpus={text_file}", f"--workdir={tmp_path / 'run'}"]
    assert run(*flags) == 0
    assert "the warm-up takes all 2 steps (by default 100)" in capsys.readouterr().out
    record = json.loads((tmp_path / "run" / "config.json").read_text(encoding="utf-8"))
    assert record["config"]["optimizer"]["warmup_steps"] == 2
    assert run(*flags) == 0
    assert "run is finished" in capsys.readouterr().out
    for steps in (3, 4, 101):
        capsys.readouterr()
        assert run(*flags, f"--config.train.steps={steps}", "--resume_allow=train.steps") == 0
        assert run(*flags, f"--config.train.steps={steps}") == 0
        assert "run is finished" in capsys.readouterr().out
    record = json.loads((tmp_path / "run" / "config.json").read_text(encoding="utf-8"))
    assert record["config"]["optimizer"]["warmup_steps"] == 2


def test_the_folder_and_the_recipe_are_printed_before_jax_is_loaded(tmp_path):
    code = (
        "import sys; sys.modules['jax'] = None; sys.path[:0] = ['scripts', '.']\n"
        "import train; train.main(['scripts/train.py', '--workdir=' + sys.argv[1]])"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "run")]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert "import of jax halted" in done.stderr
    folder, recipe = done.stdout.splitlines()
    assert folder.split()[0] == "run" and folder.endswith("/run")
    assert recipe.split() == ["recipe", "configs/tiny.py", "(the", "default)"]


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--config.model.n_layers=3"], "n_layers.*n_layer"),
        (["--config.modle.n_layer=3"], "modle.*model"),
        (["--config.steps=3"], "config.steps does not exist: did you mean train.steps"),
        (["--config.sample=3"], "config.sample is a group of settings"),
        (["--config.model.n_layer=x"], "n_layer.*x"),
        (["--config.model.n_layer=2.5"], "n_layer.*2.5"),
        (["--config.model.n_head=3"], "n_embd = 128.*n_head = 3"),
        (["--config.model.n_layer=0"], r"model\.n_layer = 0"),
        (["--config.train.batch_size=-4"], r"train\.batch_size = -4"),
        (["--config.model.dropout=1"], r"model\.dropout = 1\.0"),
        (["--config.model.dropout=-0.1"], r"model\.dropout = -0\.1"),
        (["--config.optimizer.learning_rate=nan"], "learning_rate = nan"),
        (["--config.optimizer.b2=inf"], "b2 = inf"),
        (["--config.sample.top_p=0"], r"sample\.top_p = 0\.0"),
        (["--config.train.steps=50", "--config.optimizer.warmup_steps=51"], "warmup_steps = 51"),
        (["--config.train.steps=5k"], "--config.train.steps=5k is not a whole number in digits: "),
        (["--config.train.steps="], "--config.train.steps= is not a whole number"),
        (["--config.model.dropout=low"], "--config.model.dropout=low is not a number: give one"),
        (["--config.model.bias=maybe"], "--config.model.bias=maybe is neither true nor false"),
        (["--num_processes=x"], "--num_processes=x is not a whole number"),
        (["--steps=5"], r"--steps does not exist: did you mean --config\.train\.steps\?"),
        (["--train.steps=5"], r"--train\.steps does not .* --config\.train\.steps\?"),
        (["--n_layer=5"], r"--n_layer does not .* --config\.model\.n_layer\?"),
        (["--config=config/tiny.py"], r"no file 'config/tiny.py': .*=\S*configs/tiny.py\?"),
        (["--config=tinny"], r"no file 'tinny': did you mean --config=\S*configs/tiny.py\?"),
        ([f"--config={ROOT}/configs/gpt2.py:x"], r"error: \S+:x: there is no GPT-2 of size 'x'"),
        ([f"--config={ROOT}/configs/tiny.py:x"], r"tiny.py has no sizes to choose from: leave out"),
        (["--config=gpt2:small"], r"no file 'gpt2': .* --config=\S*configs/gpt2.py:small\?"),
        (["--config=nothing.py"], r"no file 'nothing.py': choose one of \S*configs/baby.py, "),
        (["--config=/"], r"no file '/': choose one of "),
        (["--config=/dev/null"], "--config=/dev/null is a device: name a file"),
        (["--config.data.corpus=-"], r"data\.corpus = '-' is the input of one process"),
        (["--config.data.corpus=~nobody-here/a"], "~nobody-here/a begins with a home folder that"),
        (
            ["--config.data.tokenizer=~nobody-here/a", "--config.data.corpus=builtin"],
            "~nobody-here/a be",
        ),
        (["--init_from=~nobody-here/a"], "~nobody-here/a begins with a home folder that"),
        (["--workdir=~nobody-here/a"], "~nobody-here/a begins with a home folder that"),
        (["--workdir=/dev/null"], "/dev/null is not a folder"),
        (["--config.data.corpus=/nothing.txt"], "/nothing.txt"),
        (["--workdri=x"], "workdri.*workdir"),
        (["train"], "'train' is not a flag"),
        (["--config.mesh.cpu_devices=99"], r"mesh\.cpu_devices = 99"),
        (["--init_from=/no/gpt2"], "there is no folder /no/gpt2: name a folder with"),
        (["--init_from=/no/gpt2", "--plan"], "there is no folder /no/gpt2: name a folder with"),
        (["--plan", "--distributed"], "--plan needs no other process"),
    ],
)
def test_bad_input_gets_one_sentence_and_status_2(flags, words, capsys, tmp_path, no_training):
    assert run(f"--workdir={tmp_path / 'run'}", *flags) == 2
    out, err = capsys.readouterr()
    assert re.fullmatch(r"error: [^\n]+\n", err), err
    assert re.search(words, err)
    assert "Traceback" not in err + out
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "content",
    [
        "",  # The file does not exist.
        "import nothing_such",
        "1/0",
        "def get_config(:",
        "x = 1",
        "def get_config(): return 3",
        "def get_config(n): return 3",
        "from gpt_jax.config import *\nget_config = lambda: default_config().model.n_layers",
    ],
)
def test_a_broken_config_file_is_named_in_one_sentence(content, tmp_path, capsys, no_training):
    path = tmp_path / "mine.py"
    if content:
        path.write_text(content)
    for words in ([f"--config={path}"], ["--config", str(path)]):
        assert train.main(["scripts/train.py", *words]) == 2
        err = capsys.readouterr().err
        assert re.fullmatch(r"error: [^\n]+\n", err), err
        assert "mine.py" in err or "get_config() returned" in err


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "is empty: give a text"),
        (b"to be", r"it has 5 tokens, .* give 171 tokens or more \(characters"),
        (b"good" * 99 + b"\xff" + b"text", "is not UTF-8: byte 0xff at offset 396"),
    ],
)
def test_an_unusable_text_gets_one_sentence(content, words, capsys, tmp_path, no_training):
    path = tmp_path / "my.txt"
    path.write_bytes(content)
    flags = [*SMALL, f"--config.data.corpus={path}", f"--workdir={tmp_path / 'run'}"]
    assert run(*flags) == 2
    err = capsys.readouterr().err
    assert re.fullmatch(r"error: [^\n]+\n", err), err
    assert re.search(words, err)
    assert not (tmp_path / "run").exists()


def test_an_unwritable_folder_gets_one_sentence(tmp_path, text_file, capsys, monkeypatch):
    flags = [*SMALL, f"--config.data.corpus={text_file}"]
    (tmp_path / "file").write_text("")
    assert run(*flags, f"--workdir={tmp_path / 'file' / 'run'}") == 2
    assert re.fullmatch(
        r"error: .*file is not a folder: use another folder\n", capsys.readouterr().err
    )

    def read_only(*args, **kwargs):
        raise PermissionError(errno.EACCES, "Permission denied", "runs/tiny/metrics.part")

    monkeypatch.setattr(loop, "Monitor", read_only)
    assert run(*flags, f"--workdir={tmp_path / 'run'}") == 2
    err = capsys.readouterr().err
    assert re.fullmatch(r"error: runs/tiny/metrics.part .*Permission denied.*\n", err)


def run_with(flags, text_file, **environment):
    """The result of `train.py` in a process of its own, with these variables set."""
    command = [sys.executable, ROOT / "scripts" / "train.py", *SMALL, *flags]
    command.append(f"--config.data.corpus={text_file}")
    variables = os.environ | {"PYTHONPATH": str(ROOT)} | environment
    return subprocess.run(command, capture_output=True, text=True, env=variables, timeout=300)


def test_odd_variables_of_other_programs_change_nothing(tmp_path, text_file):
    """A file gets no escape sequences, and a picture needs neither a backend nor a cache."""
    run = tmp_path / "run"
    odd = {"FORCE_COLOR": "1", "MPLBACKEND": "nonsense"}
    odd |= dict.fromkeys(["HOME", "XDG_CONFIG_HOME", "XDG_CACHE_HOME", "TMPDIR"], str(text_file))
    done = run_with([f"--workdir={run}"], text_file, **odd)
    assert (done.returncode, done.stderr) == (0, "")
    assert "\x1b" not in done.stdout
    assert (run / "loss.png").exists()


def test_variables_of_jax_change_no_number(tmp_path, text_file):
    """devices/test_jax_settings.py does the same with jax.config, as in a notebook."""
    odd = {
        **{"JAX_THREEFRY_PARTITIONABLE": "0", "JAX_DEFAULT_PRNG_IMPL": "rbg"},
        **{"JAX_ENABLE_X64": "1", "JAX_NUMPY_DTYPE_PROMOTION": "strict"},
        **{"JAX_NUMPY_RANK_PROMOTION": "raise", "JAX_DEFAULT_MATMUL_PRECISION": "bfloat16"},
        **{"JAX_DISABLE_JIT": "1", "JAX_DEBUG_NANS": "1", "JAX_TRANSFER_GUARD": "disallow"},
    }
    found = []
    for name, variables in (("plain", {}), ("odd", odd)):
        done = run_with([f"--workdir={tmp_path / name}"], text_file, **variables)
        assert done.returncode == 0, done.stderr
        line = json.loads((tmp_path / name / "metrics.jsonl").read_text(encoding="utf-8"))
        found.append((line["train/loss"], line["val/loss"], line["grad_norm"]))
        found[-1] += ((tmp_path / name / "samples" / "2.txt").read_bytes(),)
    assert found[0] == found[1]


@pytest.mark.parametrize("platform", ["nonsense", "cuda,nonsense"])
def test_an_unknown_platform_is_named_in_one_sentence(tmp_path, text_file, platform):
    run = tmp_path / "run"
    done = run_with([f"--workdir={run}"], text_file, JAX_PLATFORMS=platform)
    assert done.returncode == 2
    assert re.fullmatch(rf"error: JAX_PLATFORMS={platform} names a platform .*\n", done.stderr)
    assert not run.exists()


@pytest.mark.parametrize(("flag", "package"), [("tensorboard", "tensorboardX"), ("wandb", "wandb")])
def test_what_needs_a_missing_package_is_refused_at_once(
    tmp_path, capsys, monkeypatch, flag, package
):
    monkeypatch.setitem(sys.modules, package, None)
    assert run(f"--{flag}", f"--workdir={tmp_path / 'run'}") == 2
    assert f'pip install -e ".[{flag}]"' in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_tensorboard_writes_event_files(tmp_path, text_file, capsys):
    flags = [*SMALL, f"--config.data.corpus={text_file}", f"--workdir={tmp_path / 'run'}"]
    assert run(*flags, "--tensorboard") == 0
    assert len(list((tmp_path / "run" / "tensorboard").glob("events.*"))) == 1


def test_help_config_shows_every_setting(capsys):
    assert run("--help_config") == 0
    out = capsys.readouterr().out
    assert max(map(len, out.splitlines())) <= 80
    shown = " ".join(out.split())
    for section in SECTIONS:
        for name, default, allowed, meaning, _ in section_rows(section):
            assert f"{name}={default} {meaning} [{allowed};" in shown, name


@pytest.mark.parametrize(
    ("signum", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130), (signal.SIGHUP, 129)]
)
def test_after_a_signal_it_says_how_to_resume(tmp_path, monkeypatch, capsys, signum, status):
    before = signal.getsignal(signum)

    def interrupted(config, workdir, tensorboard, resume_allow, asked, *origin_and_maker):
        signal.raise_signal(signum)
        return asked.poll()

    monkeypatch.setattr(loop, "train", interrupted)
    assert run(f"--workdir={tmp_path / 'run'}") == status
    assert f"stopped by {signum.name} after step 0: the same command" in capsys.readouterr().err
    assert signal.getsignal(signum) == before


@pytest.mark.parametrize(
    ("recipe", "init_from", "teachers", "workdir"),
    [
        ("configs/tiny.py", "", "", "runs/tiny"),
        ("/a b/gpt2.py:small", "", "", "runs/gpt2-small"),
        ("configs/tiny.py", "/a b/gpt2", "", "runs/gpt2"),
        ("configs/small.py", "{run}", "", "runs/run-small"),
        ("configs/tiny.py", "", "runs/a,runs/b", "runs/tiny-distilled"),
    ],
)
def test_the_default_folder_is_named_after_what_the_run_begins_from(
    recipe, init_from, teachers, workdir, tmp_path
):
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    init_from = init_from.format(run=tmp_path / "run")
    assert str(train.default_workdir(recipe, init_from, teachers)) == workdir


def test_the_command_for_a_new_run_names_a_folder_that_does_not_exist(tmp_path):
    (tmp_path / "run-2").mkdir()
    for words in (["--workdir=x", "--a=b"], ["--workdir", "x", "--a=b"]):
        command = train.new_run_command(["scripts/train.py", *words], tmp_path / "run")
        expected = [sys.executable, "scripts/train.py", "--a=b", f"--workdir={tmp_path / 'run-3'}"]
        assert shlex.split(command) == expected


def test_the_changelog_has_this_version():
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert f"## {gpt_jax.__version__} " in changelog
