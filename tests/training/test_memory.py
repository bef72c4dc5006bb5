"""What cannot fit into memory is refused in one sentence, and nothing else is."""

import json
import re
import shutil

import jax
import pytest
import train
from support import ROOT

import gpt_jax
from gpt_jax.config import Config
from gpt_jax.devices import hardware, make_batch_layout, make_mesh
from gpt_jax.errors import UserError
from gpt_jax.runs.checkpoints import Checkpoints
from gpt_jax.training import evaluation, loop
from gpt_jax.training.memory import _run_needs, check_run
from gpt_jax.training.state import abstract_state
from gpt_jax.training.step import jit_train_step

SMALL = [
    *("--config.model.block_size=16", "--config.model.n_layer=1", "--config.model.n_embd=16"),
    *("--config.train.steps=2", "--config.train.batch_size=2", "--config.mesh.cpu_devices=1"),
    "--config.sample.max_new_tokens=5",
]


@pytest.fixture(autouse=True)
def memory(monkeypatch):
    """A machine with 8 GB."""
    monkeypatch.setattr(hardware, "memory_bytes", lambda device: 8 * 10**9)


@pytest.fixture
def command(tmp_path, text_file, capsys):
    """Runs train.py with more flags, in a folder `run`. Returns its status and standard error."""

    def run(*flags):
        recipe = f"--config={ROOT / 'configs' / 'tiny.py'}"
        own = [f"--config.data.corpus={text_file}", f"--workdir={tmp_path / 'run'}"]
        status = train.main(["scripts/train.py", recipe, *SMALL, *own, *flags])
        return status, capsys.readouterr().err

    return run


INT_32 = "must be below 2\\*\\*31"


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (
            ["model.n_inner=2000000000"],
            r"1,056\.0 GB of it for the model and its optimizer, but this machine has 8\.0 GB",
        ),
        (["model.n_inner=2147483647", "model.n_embd=2147483644"], "GB of it for the model and"),
        (["model.n_embd=2147483647", "model.n_head=1"], "GB of it for the model and its optim"),
        (["model.vocab_size=2147483647"], "smaller model .n_embd, n_inner, n_layer, vocab_size"),
        (["model.n_layer=16", "model.scan_layers=true", "model.n_inner=99999999"], "the model"),
        (
            ["train.batch_size=1000000000"],
            r"68\.0 GB of it for the tokens .* lower train.batch_size",
        ),
        (["train.batch_size=2147483647"], "lower train.batch_size"),
        (["train.batch_size=60000000", "train.microbatch_size=60000000"], "GB of it for activ"),
        (["train.steps=4294967296"], f"train.steps = 4294967296 is out of range: it {INT_32}"),
        (["train.batch_size=2147483648"], INT_32),
        (["train.microbatch_size=9223372036854775808"], INT_32),
        (["model.block_size=2147483648"], INT_32),
        (["sample.max_new_tokens=10000000000"], INT_32),
        (["model.n_layer=100000"], "must be 1 to 256"),
        (["data.bpe_vocab_size=2147483647", "data.tokenizer=bpe"], r"must be 257 .* to 2\*\*24"),
        (["mesh.cpu_devices=2000000000"], "must be 0 to 1024"),
        (["model.block_size=2147483647", "model.position=rotary"], "or a smaller model.block_size"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_an_impossible_size_is_refused_in_one_sentence(settings, words, command, tmp_path):
    status, err = command(*(f"--config.{setting}" for setting in settings))
    assert status == 2
    assert re.fullmatch(r"error: [^\n]+\n", err) and re.search(words, err), err
    assert not (tmp_path / "run").exists()


def short(*args):
    raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 9 bytes.")


def test_after_a_refusal_or_if_jax_lacks_memory_the_corrected_command_trains(
    command, tmp_path, monkeypatch
):
    """The second try has written its record, which must not bind the third."""
    assert command("--config.model.n_inner=2000000000")[0] == 2
    with monkeypatch.context() as patch:
        patch.setattr(loop.Loop, "run_steps", short)
        status, err = command("--config.train.batch_size=4")
    assert status == 2
    assert re.fullmatch(r"error: memory is short \(RESOURCE_EXHAUSTED.*\): lower train.*\n", err)
    assert (tmp_path / "run" / "config.json").exists()
    assert command("--config.train.batch_size=2")[0] == 0
    record = json.loads((tmp_path / "run" / "config.json").read_text(encoding="utf-8"))
    assert record["config"]["train"]["batch_size"] == 2


def test_a_run_that_has_logged_a_step_is_not_replaced(command):
    assert command("--config.train.log_every=1")[0] == 0
    status, err = command("--config.train.batch_size=4")
    assert status == 2 and "train.batch_size was 2 and is now 4" in err


def test_a_checkpoint_for_which_memory_is_short_is_not_taken_for_damage(
    trained, tmp_path, monkeypatch
):
    run = shutil.copytree(trained, tmp_path / "run")
    config = Config.from_dict(json.loads((run / "config.json").read_text())["config"])
    config = config.with_values("train", steps=300)
    with Checkpoints.for_training(run / "checkpoints") as checkpoints:
        monkeypatch.setattr(type(checkpoints._checkpointer), "load_checkpointables", short)
    (run / "samples" / "200.txt").unlink()
    with pytest.raises(UserError, match="memory is short"):
        loop.train(config, run, resume_allow=["train.steps"])
    assert (run / "checkpoints" / "200").exists()


LAYOUTS = [
    {},
    {"train": {"microbatch_size": 8}},
    {"model": {"remat": True, "scan_layers": True, "n_layer": 3}},
    {"model": {"block_size": 512, "n_head": 4}, "train": {"microbatch_size": 1}},
    {"model": {"vocab_size": 5000, "tie_embeddings": True}, "optimizer": {"average_decay": 0.9}},
    {"model": {"n_inner": 2000}, "optimizer": {"name": "muon"}, "mesh": {"cpu_devices": 2}},
    {"model": {"matmul_dtype": "bfloat16"}, "mesh": {"cpu_devices": 4, "fsdp": 2, "tensor": 2}},
]


@pytest.mark.parametrize("changes", LAYOUTS, ids=str)
def test_the_memory_that_is_asked_for_is_less_than_the_compiled_step_needs(small, changes):
    config = small
    for section, values in changes.items():
        config = config.with_values(section, **values)
    mesh = make_mesh(config.mesh, jax.devices()[: config.mesh.cpu_devices])
    layout, abstract = make_batch_layout(config, mesh), abstract_state(config, mesh)
    shape = (layout.microbatches, layout.rows, config.model.block_size + 1)
    batch_AMW = jax.ShapeDtypeStruct(shape, "int32", sharding=layout.sharding)
    found = jit_train_step(config, abstract, layout).lower(abstract, batch_AMW).compile()
    sizes = found.memory_analysis()
    needed = sum(_run_needs(config, abstract, layout, trains=True).values())
    assert needed < sizes.argument_size_in_bytes + sizes.temp_size_in_bytes
    assert needed > 0.9 * sizes.argument_size_in_bytes


def test_exactly_the_memory_that_is_needed_is_enough(small, monkeypatch):
    config = small.with_values("mesh", cpu_devices=2)
    mesh = make_mesh(config.mesh, jax.devices()[:2])
    layout, abstract = make_batch_layout(config, mesh), abstract_state(config, mesh)
    for trains in (True, False):
        needed = sum(_run_needs(config, abstract, layout, trains).values())
        monkeypatch.setattr(hardware, "memory_bytes", lambda _, needed=needed: 2 * needed)
        check_run(config, abstract, layout, trains)
        monkeypatch.setattr(hardware, "memory_bytes", lambda _, needed=needed: 2 * needed - 1)
        with pytest.raises(UserError, match=r"(training|evaluation) needs at least 0\.0 GB"):
            check_run(config, abstract, layout, trains)


@pytest.fixture
def strange(trained, tmp_path):
    """Changes the config.json of a copy of a run, and returns its folder."""

    def change(section, **values):
        run = shutil.copytree(trained, tmp_path / "run", dirs_exist_ok=True)
        content = json.loads((run / "config.json").read_text(encoding="utf-8"))
        content.pop("digests", None)  # Else the change would be noticed.
        content["config"][section] |= values
        (run / "config.json").write_text(json.dumps(content), encoding="utf-8")
        return run

    return change


def test_more_samples_than_fit_are_refused(trained):
    model = gpt_jax.load(trained)
    for count in (10**9, 2**31 - 1):
        with pytest.raises(UserError, match=r"sampling needs at least [\d,.]+ GB .*fewer samples"):
            model.generate_batch("The ", count)
    with pytest.raises(UserError, match="num_samples = 2147483648 is out of range"):
        model.generate_batch("The ", 2**31)


def test_a_run_that_claims_a_huge_batch_is_not_evaluated(strange):
    run = strange("train", batch_size=2**31 - 8, microbatch_size=0)
    with pytest.raises(UserError, match=r"evaluation needs .* GB of it for the tokens of a batch"):
        evaluation.evaluate(run, "latest")


def test_a_loaded_model_that_claims_a_huge_window_computes_nothing(trained):
    """No array of a model with rotary positions has the length of its window."""
    model = gpt_jax.load(trained)
    huge = model.config.with_values("model", block_size=2**31 - 1, position="rotary")
    object.__setattr__(model, "config", huge)
    for use in (model.generate, model.loss, model.next_token):
        with pytest.raises(UserError, match=r"needs at least [\d,]+\.\d GB of memory"):
            use("The night")
