"""What a run prints before its first step: the model, the text, the layout."""

import jax

from gpt_jax.training.monitor import Monitor
from gpt_jax.training.run import Run
from gpt_jax.training.state import TrainState


def introduce(run: Run, state: TrainState, monitor: Monitor) -> None:
    """Prints sizes, layout, and how often the text will be read."""
    c, layout = run.config, run.layout
    parameters = sum(leaf.size for leaf in jax.tree.leaves(state.params))
    epochs = c.train.steps * run.tokens_per_step / len(run.train_tokens)
    monitor.say(
        f"{run.workdir}: {parameters:,} parameters, vocabulary {c.model.vocab_size}, corpus "
        f"{c.data.corpus} ({len(run.train_tokens):,} tokens, {len(run.val_tokens):,} held out)"
    )
    monitor.say(
        f"{c.train.steps:,} steps of {c.train.batch_size} x {c.model.block_size} = "
        f"{run.tokens_per_step:,} tokens: {epochs:.1f} epochs; "
        f"{layout.sharding.mesh.size} {run.device.platform} device(s), {layout.microbatches} "
        f"microbatch(es) of {layout.rows_per_device}, matrix products in {c.model.matmul_dtype}"
    )
    if step := int(state.step):
        monitor.say(f"resumes after step {step:,}")
