"""What a run prints before its first step: the model, the text, the steps, the devices.

Also, at every start and at the end: that it trains on the play in place of another text.
"""

from gpt_jax.config import Config
from gpt_jax.runs import Record
from gpt_jax.training.display import short_path
from gpt_jax.training.monitor import Monitor
from gpt_jax.training.plan import count_parameters
from gpt_jax.training.run import Run
from gpt_jax.training.state import TrainState


def introduce(run: Run, state: TrainState, monitor: Monitor) -> None:
    """Prints what will be trained on what, and where a resumed run continues."""
    c = run.config
    rows = [
        ("model", _model(run, state)),
        *(_tuning(run) if run.is_tuned else _text(run)),
        ("tokens", f"{short_path(c.data.tokenizer, 50)}, vocabulary {c.model.vocab_size:,}"),
        ("steps", _steps(run)),
        *([("", _warmup(c))] if c.is_warmup_shortened else []),
        ("devices", _devices(run)),
    ]
    if step := int(state.step):
        rows.append(("resumes", f"after step {step:,}"))
    monitor.say_facts(rows)
    monitor.say("")


def stand_in(record: Record | None) -> str:
    """A sentence if the play stands in for the text of a run; empty if it does not."""
    wanted = record.requested_corpus if record else ""
    if record is None or (wanted, record.config.data.corpus) != ("tinyshakespeare", "builtin"):
        return ""
    return (
        "this run trains on the built-in play, because Tiny Shakespeare could not be downloaded "
        "when it began; to train on Tiny Shakespeare, start a new run with another --workdir"
    )


def _text(run: Run) -> list[tuple[str, str]]:
    tokens, teachers = f"{len(run.train_tokens):,} tokens to train", run.config.train.teachers
    learned = f"the mean of {teachers.count(',') + 1} teacher(s), {short_path(teachers, 60)}"
    return [
        ("text", short_path(run.config.data.corpus, 70)),
        ("", f"{tokens}, {len(run.val_tokens):,} to validate"),
        *([("learns", learned)] if teachers else []),
    ]


def _tuning(run: Run) -> list[tuple[str, str]]:
    c, origin = run.config.tune, run.origin
    began = "random parameters"
    if origin:
        step = "" if origin.step is None else f", step {origin.step:,}"
        began = f"{short_path(origin.folder, 60)}{step}"
    learned = f"the task {c.task}" if c.task else short_path(c.data, 60)
    return [("begins", f"from {began}"), ("learns", f"{c.objective} of {learned}")]


def _model(run: Run, state: TrainState) -> str:
    c = run.config.model
    return (
        f"{count_parameters(state.params):,} parameters: {c.n_layer} blocks x {c.n_head} heads x "
        f"width {c.n_embd}, context {c.block_size}"
    )


def _steps(run: Run) -> str:
    c = run.config
    if run.is_tuned:
        return f"{c.train.steps:,} of {c.train.batch_size} rows"
    epochs = c.train.steps * run.tokens_per_step / len(run.train_tokens)
    return (
        f"{c.train.steps:,} of {c.train.batch_size} x {c.model.block_size} = "
        f"{run.tokens_per_step:,} tokens: {epochs:.1f} epochs"
    )


def _warmup(c: Config) -> str:
    """Says that a warm-up is shorter than the default, with the flag that makes it shorter."""
    return (
        f"the warm-up takes all {c.train.steps:,} steps (by default "
        f"{Config().optimizer.warmup_steps}); --config.optimizer.warmup_steps makes it shorter"
    )


def _devices(run: Run) -> str:
    layout = run.layout
    return (
        f"{layout.sharding.mesh.size} x {run.device.platform}, "
        f"each with {layout.microbatches} microbatches of {layout.rows_per_device} windows, "
        f"products in {run.config.model.matmul_dtype}"
    )
