"""What a run prints before its first step: the model, the text, the steps, the devices."""

import jax

from gpt_jax.training.display import LABEL_WIDTH, short_path
from gpt_jax.training.monitor import Monitor
from gpt_jax.training.run import Run
from gpt_jax.training.state import TrainState


def introduce(run: Run, state: TrainState, monitor: Monitor) -> None:
    """Prints what will be trained on what, and where a resumed run continues."""
    rows = [("model", _model(run, state)), *_text(run, monitor.width), ("steps", _steps(run))]
    rows.append(("devices", _devices(run)))
    if step := int(state.step):
        rows.append(("resumes", f"after step {step:,}"))
    monitor.say_facts(rows)
    monitor.say("")


def _model(run: Run, state: TrainState) -> str:
    c = run.config.model
    parameters = sum(leaf.size for leaf in jax.tree.leaves(state.params))
    return (
        f"{parameters:,} parameters: {c.n_layer} blocks x {c.n_head} heads x width {c.n_embd}, "
        f"context {c.block_size}"
    )


def _text(run: Run, width: int) -> list[tuple[str, str]]:
    c, room, size = run.config.data, width - LABEL_WIDTH, run.config.model.vocab_size
    return [
        ("text", short_path(c.corpus, room)),
        ("", f"{len(run.train_tokens):,} tokens to train, {len(run.val_tokens):,} to validate"),
        ("tokens", f"{short_path(c.tokenizer, room - 20)}, vocabulary {size:,}"),
    ]


def _steps(run: Run) -> str:
    c = run.config
    epochs = c.train.steps * run.tokens_per_step / len(run.train_tokens)
    return (
        f"{c.train.steps:,} of {c.train.batch_size} x {c.model.block_size} = "
        f"{run.tokens_per_step:,} tokens: {epochs:.1f} epochs"
    )


def _devices(run: Run) -> str:
    layout = run.layout
    return (
        f"{layout.sharding.mesh.size} x {run.device.platform}, "
        f"each with {layout.microbatches} microbatches of {layout.rows_per_device} windows, "
        f"products in {run.config.model.matmul_dtype}"
    )
