"""evaluate.py: the losses of the log, a table or JSON, and bad input."""

import json
import math
import re
import shutil

import evaluate
import jax
import pytest
from tuned import INSTRUCTIONS, instructed, make_config, train

import gpt_jax
from gpt_jax.config.config import Config
from gpt_jax.text import corpus, play
from gpt_jax.training import evaluation, loop
from gpt_jax.training.log import read_metrics
from gpt_jax.tuning.judging import Share
from gpt_jax.tuning.tasks import Verdict
from gpt_jax.tuning.tasks.sums import Sums


@pytest.fixture
def run(trained, capsys):
    def call(*flags, workdir=trained):
        status = evaluate.main(["scripts/evaluate.py", f"--workdir={workdir}", *flags])
        return status, *capsys.readouterr()

    return call


def test_json_has_the_losses_of_the_log(run, trained):
    log = {
        entry["step"]: entry.get("val/loss") for entry in read_metrics(trained / "metrics.jsonl")
    }
    for step, flags in ((200, []), (200, ["--step=latest"]), (100, ["--step=best"])):
        status, out, err = run("--json", *flags)
        assert err == f"evaluating {trained}\n{trained}, step {step}\n"
        found = json.loads(out)
        assert (status, found["step"]) == (0, step)
        # Another layout over devices sums in another order.
        assert found["loss"] == pytest.approx(log[step], rel=1e-6)
        assert found["perplexity"] == pytest.approx(math.exp(found["loss"]))
        assert found["bits_per_byte"] == pytest.approx(found["loss"] / math.log(2))  # ASCII
        assert found["tokens"] == 124 * 16
        assert found["source_loss"] is found["mean_loss"] is None
        assert 0 < found["tutorial_estimate"] < math.log(99)


def test_without_json_it_prints_a_table(run, trained):
    _, out, _ = run()
    loss = json.loads(run("--json")[1])["loss"]
    corpus = trained.parent.parent / "corpus.txt"
    assert f"step 200, validation text: the end of {corpus}\n" in out
    assert re.search(rf"loss +{loss:.4f} +nats per token, over 1,984 tokens", out)
    assert re.search(r"bits per byte +\d\.\d{4}.*\n +perplexity +\d+\.\d{4}", out)
    assert "entropy of the play" not in out
    assert max(map(len, out.splitlines()[1:])) <= 80


def test_the_mean_of_equal_models_has_their_loss(run, trained):
    found = json.loads(run("--json", "--step=best", f"--mean_with={trained},{trained}")[1])
    assert found["mean_loss"] == pytest.approx(found["loss"], rel=1e-5)
    assert re.search(r"mean of models +\d\.\d{4} ", run(f"--mean_with={trained}")[1])


def test_a_model_without_a_run_is_an_error(run, tmp_path):
    status, out, err = run(f"--mean_with={tmp_path / 'none'}")
    assert (status, out) == (2, "")
    assert re.search(r"\nerror: [^\n]*none[^\n]*\n$", err)


def test_the_entropy_of_the_play_is_printed(small, tmp_path, run):
    config = small.with_values("model", vocab_size=0, block_size=64)
    config = config.with_values("data", corpus="builtin", val_fraction=0.01)
    loop.train(config.with_values("train", steps=2), tmp_path / "run")
    status, out, _ = run("--json", workdir=tmp_path / "run")
    first = int(len(corpus.load_corpus("builtin").text) * 0.99)
    assert status == 0
    assert json.loads(out.splitlines()[-1])["source_loss"] == play.source_loss(first)
    assert "entropy of the play" in run(workdir=tmp_path / "run")[1]


def test_a_corpus_that_is_gone_or_another_is_an_error_that_names_the_flag(trained, tmp_path, run):
    status, out, err = run(f"--corpus={tmp_path / 'gone.txt'}")
    assert (status, out) == (2, "")
    assert re.search(r"\nerror: data\.corpus = .*gone\.txt' matches no text .* --corpus\)\n$", err)
    (tmp_path / "other.txt").write_text("another text " * 1000, encoding="utf-8")
    status, out, err = run(f"--corpus={tmp_path / 'other.txt'}")
    assert (status, out) == (2, "")
    assert re.search(r"\nerror: the text at .*other\.txt is not .* --corpus\), or .*\n$", err)


def test_a_corpus_that_moved_is_evaluated_where_it_is_now(trained, tmp_path, monkeypatch, run):
    """The run itself is elsewhere, too, and stays as it is."""
    copy = shutil.copytree(trained, tmp_path / "run")
    shutil.copy(trained.parent.parent / "corpus.txt", tmp_path / "renamed.txt")
    monkeypatch.chdir(tmp_path)
    before = (copy / "config.json").read_bytes()
    status, out, _ = run("--json", "--corpus=renamed.txt", workdir=copy)
    found = json.loads(out)
    assert (status, found["corpus"]) == (0, str(tmp_path / "renamed.txt"))
    assert found["loss"] == json.loads(run("--json")[1])["loss"]
    assert (copy / "config.json").read_bytes() == before


def test_an_edited_run_is_refused(trained, tmp_path, run):
    copy = shutil.copytree(trained, tmp_path / "run")
    path = copy / "config.json"
    path.write_text(path.read_text().replace('"val_fraction": 0.1', '"val_fraction": 0.2'))
    status, out, err = run(workdir=copy)
    assert (status, out) == (2, "")
    assert re.search(r"\nerror: .*config\.json is not what the run wrote: [^\n]+\n$", err)


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--step=7"], "no step '7': the steps are 100 and 200; give"),
        (["--jason"], "jason.*json"),
        (["runs/tiny"], "'runs/tiny' is not a flag"),
    ],
)
def test_bad_input_gets_one_sentence_and_status_2(run, flags, words):
    status, out, err = run(*flags)
    assert (status, out) == (2, "")
    assert re.fullmatch(r"(evaluating .*\n)?error: [^\n]+\n", err), err
    assert re.search(words, err)


def test_a_folder_without_a_run_or_a_checkpoint_is_an_error(run, tmp_path, trained):
    assert re.search(r"error: .*nothing holds no run .*\n", run(workdir=tmp_path / "nothing")[2])
    copy = shutil.copytree(trained, tmp_path / "run")
    shutil.rmtree(copy / "checkpoints")
    assert re.search(r"error: .* holds no checkpoint: train first.*\n", run(workdir=copy)[2])


@pytest.mark.parametrize(("devices", "batch_size"), [(1, 12), (5, 15), (8, 16)])
def test_a_batch_grows_until_the_devices_share_it_evenly(devices, batch_size):
    """Another machine may have a number of devices that does not divide the run's batch."""
    config = Config().with_values("train", batch_size=12, microbatch_size=4)
    fitted = evaluation._fitted(config, jax.devices()[:devices])
    assert fitted.train.batch_size == batch_size


@pytest.fixture
def tuned(tmp_path_factory):
    return instructed(tmp_path_factory)


@pytest.fixture
def lenient(monkeypatch):
    """A judge of sums that also this small model pleases now and then."""

    def judge(self, prompt, answer):
        return Verdict({"sum": len(answer) == len(prompt.answer), "first": answer[:1] == "1"})

    monkeypatch.setattr(Sums, "judge", judge)


def expected_shares(workdir, count, size):
    """What the judge says, counted here."""
    model = gpt_jax.load(workdir, "latest")
    prompts = [Sums().prompt(0, number, True) for number in range(count)]
    groups = model.answer_groups([prompt.text for prompt in prompts], size, seed=7)
    judged = [
        [(Sums().judge(prompt, a.text).conditions, a.ended) for a in group]
        for prompt, group in zip(prompts, groups, strict=True)
    ]
    every = [pair for group in judged for pair in group]
    right = [[all(found.values()) and ended for found, ended in group] for group in judged]
    return {
        "fulfilled": Share(sum(map(sum, right)), count * size),
        "sum": Share(sum(found["sum"] for found, _ in every), count * size),
        "first": Share(sum(found["first"] for found, _ in every), count * size),
        "ended": Share(sum(ended for _, ended in every), count * size),
        "pass_at_k": Share(sum(map(any, right)), count),
    }


FLAGS = ("--task=sums", "--num_prompts=60", "--num_answers=2", "--seed=7")


def test_a_task_is_judged_and_the_corpus_loss_stands_beside_it(run, tuned, lenient):
    status, out, err = run(*FLAGS, "--json", workdir=tuned)
    assert (status, err) == (0, f"evaluating {tuned}\n{tuned}, step 40\n")
    found, shares = json.loads(out), expected_shares(tuned, 60, 2)
    assert 0 < shares["fulfilled"].value < shares["pass_at_k"].value < 1
    for name, share in shares.items():
        assert found[name] == share.value
        assert found[f"{name}_interval"] == pytest.approx(share.interval)
    log = read_metrics(tuned / "metrics.jsonl")[-1]
    assert found["loss"] == pytest.approx(log["val/corpus_loss"], rel=1e-5)
    assert found["step"] == 40


def test_without_json_a_task_has_a_table_with_intervals(run, tuned, lenient):
    _, out, _ = run(*FLAGS, workdir=tuned)
    assert re.search(r"\n +loss +\d\.\d{4} +nats per token", out)
    assert "\nanswers to 60 held-out prompts of sums, in %\n" in out
    for name, share in expected_shares(tuned, 60, 2).items():
        low, high = (100 * bound for bound in share.interval)
        line = rf"\n +{name} +{100 * share.value:.1f} +{low:.1f} to +{high:.1f}  \S"
        assert re.search(line, out), (line, out)
    assert "one of 2 answers is right" in out
    assert max(map(len, out.splitlines()[1:])) <= 80


def test_a_run_without_a_corpus_is_judged_by_its_task_alone(run, tmp_path, lenient):
    config = make_config(INSTRUCTIONS, train={"steps": 2})
    train(config, tmp_path / "run")
    status, out, _ = run(*FLAGS, "--json", workdir=tmp_path / "run")
    found = json.loads(out)
    assert status == 0
    assert "loss" not in found and 0 <= found["ended"] <= 1
    assert "nats per token" not in run(*FLAGS, workdir=tmp_path / "run")[1]
    status, out, err = run(workdir=tmp_path / "run")
    assert (status, out) == (2, "")
    assert "was tuned without a corpus, so there is no text to evaluate it on: give --task" in err
    status, _, err = run("--task=sums", "--mean_with=runs/other", workdir=tmp_path / "run")
    assert status == 2 and "was tuned without a corpus" in err


def test_the_options_of_sampling_reach_the_answers(run, tuned):
    """Greedy answers are the same for every seed; cut after one token, none of them has ended."""
    greedy = [run("--task=sums", "--num_prompts=9", "--temperature=0", f"--seed={seed}", "--json",
                  workdir=tuned)[1] for seed in (1, 2)]  # fmt: skip
    assert greedy[0] == greedy[1]
    shares = [json.loads(run("--task=sums", "--num_prompts=60", f"--top_k={k}", "--temperature=9",
                             "--json", workdir=tuned)[1])["ended"] for k in (1, 0)]  # fmt: skip
    assert shares[0] != shares[1]


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--task=chess"], "task.*chess.*play.*sums"),
        (["--task=play"], "is not one of the 13 characters"),
        (["--task=sums", "--num_prompts=0"], "num_prompts = 0"),
        (["--task=sums", "--num_answers=0"], "num_answers = 0"),
        (["--task=sums", "--seed=-1"], "seed = -1"),
        (["--task=sums", "--temperature=-1"], r"sample\.temperature = -1\.0"),
        (["--task=sums", "--top_k=-1"], r"sample\.top_k = -1"),
    ],
)
def test_a_bad_task_gets_one_sentence_and_status_2(run, tuned, flags, words):
    status, out, err = run(*flags, workdir=tuned)
    assert (status, out) == (2, "")
    assert re.fullmatch(r"(evaluating .*\n)?error: [^\n]+\n", err), err
    assert re.search(words, err)


def test_a_run_that_was_not_tuned_is_not_judged(run, trained):
    status, out, err = run("--task=play", "--num_prompts=2")
    assert (status, out) == (2, "")
    assert f"error: {trained} was not tuned to answer" in err
