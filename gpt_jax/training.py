"""The training run: what happens, and in which order. Nothing numeric.

    prepare: corpus -> tokens, devices -> mesh, all choices made and recorded
    train:   step after step; now and then a line in the log, an evaluation, a checkpoint
    finish:  the final loss, its picture, a sample
"""

import dataclasses
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np

from gpt_jax import corpus, data, report, sampling, sharding, train_step
from gpt_jax.checkpoint import Checkpoints
from gpt_jax.config import Config, UserError
from gpt_jax.metrics import Clock, Display, MetricsLog, read_metrics
from gpt_jax.run_folder import (
    Record,
    check_same_corpus,
    check_same_run,
    read_record,
    with_recorded_choices,
    write_record,
)
from gpt_jax.tokenizer import Tokenizer, load_tokenizer, make_tokenizer, save_tokenizer


@dataclasses.dataclass(frozen=True)
class Run:
    """Everything a run needs, made once: its resolved configuration and what follows from it."""

    config: Config
    workdir: Path
    tokenizer: Tokenizer
    train_tokens: np.ndarray
    val_tokens: np.ndarray
    layout: sharding.BatchLayout
    abstract: train_step.TrainState
    train_step: Callable[..., Any]
    eval_step: Callable[..., Any]

    def batch(self, step: int) -> jax.Array:
        """The batch of a step, on the devices."""
        c = self.config
        windows_BW = data.train_batch(
            self.train_tokens, c.model.block_size, c.train.batch_size, c.train.seed, step
        )
        return self.layout.place(windows_BW)

    def evaluate(self, state: train_step.TrainState) -> float:
        """Loss over all disjoint windows of the held-out text, in nats per token."""
        windows_NW = data.evaluation_windows(self.val_tokens, self.config.model.block_size)
        return train_step.mean_loss(self.eval_step, state.params, windows_NW, self.layout)


def train(config: Config, workdir: Path) -> bool:
    """Trains, from the start or from the newest checkpoint in `workdir`, to the last step.

    Returns: False when the run was finished before, and nothing was done.

    Raises:
      UserError: for whatever the user can mend; see the modules this one calls.
    """
    workdir = workdir.absolute()
    record = read_record(workdir)
    if record is not None:
        config = with_recorded_choices(config, record)
        check_same_run(config, record, workdir)
    devices = sharding.start_devices(config.mesh, config.train.batch_size)
    with Checkpoints(workdir / "checkpoints") as checkpoints:
        saved = checkpoints.all() if record else []
        if saved and saved[-1].step >= config.train.steps:
            return False
        run = prepare(config, workdir, record, devices)
        if saved:
            state = checkpoints.restore(saved[-1].step, run.abstract)
        else:
            state = train_step.init_state(run.config, run.abstract)
        display = Display(run.config.train.steps)
        _introduce(run, state, display)
        state = run_steps(run, state, checkpoints, display)
        finish(run, state, display)
    return True


def prepare(
    config: Config, workdir: Path, record: Record | None, devices: list[jax.Device]
) -> Run:
    """Reads the corpus, lays out the devices, settles what was left to choose, and records it."""
    text = _load_text(config, record)
    if record is None:
        tokenizer = make_tokenizer(config.data.tokenizer, text.text)
    else:
        check_same_corpus(text.sha256, record, workdir)
        tokenizer = load_tokenizer(workdir / "tokenizer.json")
    tokens = tokenizer.encode(text.text)
    train_tokens, val_tokens = data.split(tokens, config.data.val_fraction, config.model.block_size)

    mesh = sharding.make_mesh(config.mesh, devices)
    layout = sharding.make_batch_layout(config, mesh)
    resolved = _resolve(config, text, tokenizer, mesh, layout)
    if record is None:
        new = Record(resolved, config.data.corpus, text.sha256, devices[0].platform, len(devices))
        write_record(workdir, new)
        save_tokenizer(tokenizer, workdir / "tokenizer.json")

    abstract = train_step.abstract_state(resolved, mesh)
    return Run(
        config=resolved,
        workdir=workdir,
        tokenizer=tokenizer,
        train_tokens=train_tokens,
        val_tokens=val_tokens,
        layout=layout,
        abstract=abstract,
        train_step=train_step.jit_train_step(resolved, abstract, layout),
        eval_step=train_step.jit_eval_step(resolved, abstract, layout),
    )


def _load_text(config: Config, record: Record | None) -> corpus.Corpus:
    """The corpus; for a new run whose default cannot be downloaded, the built-in play."""
    try:
        return corpus.load_corpus(config.data.corpus)
    except corpus.DownloadError as error:
        if record is not None:
            raise
        print(f"note: {error}; training goes on with the built-in play", file=sys.stderr)
        return corpus.load_corpus("builtin")


def _resolve(
    config: Config,
    text: corpus.Corpus,
    tokenizer: Tokenizer,
    mesh: jax.sharding.Mesh,
    layout: sharding.BatchLayout,
) -> Config:
    """The configuration with every choice made."""
    vocab_size, device = tokenizer.vocab_size, mesh.devices.flat[0]
    if config.model.vocab_size not in (0, vocab_size):
        raise UserError(
            f"model.vocab_size = {config.model.vocab_size}, but the tokenizer has {vocab_size} tokens: "
            "leave it at 0"
        )
    dtype = config.model.matmul_dtype
    if dtype == "auto":
        dtype = sharding.best_matmul_dtype(device)
    config = config.with_values("model", vocab_size=vocab_size, matmul_dtype=dtype)
    config = config.with_values("data", corpus=text.source)
    config = config.with_values("train", microbatch_size=layout.rows_per_device)
    cpu_devices = mesh.size if device.platform == "cpu" else 0
    return config.with_values("mesh", cpu_devices=cpu_devices, data=mesh.shape["data"])


def _introduce(run: Run, state: train_step.TrainState, display: Display) -> None:
    """Says what is about to happen: sizes, layout, how often the text will be read."""
    c, layout = run.config, run.layout
    parameters = sum(leaf.size for leaf in jax.tree.leaves(state.params))
    tokens = c.train.batch_size * c.model.block_size
    epochs = c.train.steps * tokens / len(run.train_tokens)
    devices = layout.sharding.mesh.devices
    display.say(
        f"{run.workdir}: {parameters:,} parameters, vocabulary {c.model.vocab_size}, "
        f"corpus {c.data.corpus} ({len(run.train_tokens):,} + {len(run.val_tokens):,} tokens)"
    )
    display.say(
        f"{c.train.steps:,} steps of {c.train.batch_size} x {c.model.block_size} = {tokens:,} tokens: "
        f"{epochs:.1f} epochs; {devices.size} {devices.flat[0].platform} device(s), {layout.microbatches} "
        f"microbatch(es) of {layout.rows_per_device}, products in {c.model.matmul_dtype}"
    )
    if state.step > 0:
        display.say(f"going on after step {int(state.step)}")


def run_steps(
    run: Run, state: train_step.TrainState, checkpoints: Checkpoints, display: Display
) -> train_step.TrainState:
    """Trains to the last step: every so often, and at the end, evaluates, saves and logs."""
    c, step = run.config.train, int(state.step)
    log = MetricsLog(run.workdir / "metrics.jsonl", step)
    clock = Clock(log.elapsed_s)
    with display.bar():
        while step < c.steps:
            state, metrics = run.train_step(state, run.batch(step))
            _wait(run, metrics)
            step += 1
            clock.step_done()
            val_loss = None
            with clock.pause():
                if _is_due(step, c.eval_every, c.steps):
                    val_loss = run.evaluate(state)
                if _is_due(step, c.checkpoint_every, c.steps):
                    checkpoints.save(step, state, val_loss)
                if _is_due(step, c.log_every, c.steps) or val_loss is not None or step == 1:
                    _tell(run, step, metrics, val_loss, log, clock, display)
    return state


def _wait(run: Run, metrics: train_step.Metrics) -> None:
    """On CPU devices, until the step is over: never may two programs with collectives be in flight.

    They meet in a rendezvous that blocks threads; with steps dispatched one after another XLA:CPU
    sticks within seconds and aborts the process after 40. The wait costs little beside a step.
    """
    if run.layout.sharding.mesh.devices.flat[0].platform == "cpu":
        jax.block_until_ready(metrics)


def _is_due(step: int, every: int, last: int) -> bool:
    return step % every == 0 or step == last


def _tell(
    run: Run,
    step: int,
    metrics: train_step.Metrics,
    val_loss: float | None,
    log: MetricsLog,
    clock: Clock,
    display: Display,
) -> None:
    """Writes a line of the log, and shows it; after an evaluation draws the curve anew."""
    c = run.config.train
    values = {name: float(value) for name, value in metrics.items()}
    speed = clock.lap_steps_per_s()
    entry = {
        "step": step,
        "train/loss": values["loss"],
        "lr": values["lr"],
        "grad_norm": values["grad_norm"],
        "tokens_per_s": speed and round(speed * c.batch_size * run.config.model.block_size),
        "elapsed_s": round(clock.elapsed_s, 3),
    }
    if val_loss is not None:
        entry["val/loss"] = val_loss
    log.write(entry)
    display.show(entry, clock.seconds_left(c.steps - step))
    if val_loss is not None:
        _draw(run)


def _draw(run: Run) -> None:
    entries = read_metrics(run.workdir / "metrics.jsonl")
    report.draw_loss_curve(entries, run.config.model.vocab_size, run.workdir / "loss.png")


def finish(run: Run, state: train_step.TrainState, display: Display) -> None:
    """What a finished run leaves: its final losses and a sample of text."""
    block_size = run.config.model.block_size
    final = read_metrics(run.workdir / "metrics.jsonl")[-1]["val/loss"]
    windows = data.tutorial_windows(run.val_tokens, block_size)
    estimate = train_step.mean_loss(run.eval_step, state.params, windows, run.layout)
    bits = bits_per_byte(final, run.tokenizer, run.val_tokens)
    display.say(
        f"held-out loss {final:.4f} nats per token, {bits:.4f} bits per byte "
        f"(tutorial_estimate {estimate:.4f}, for comparison with the tutorial only)"
    )
    text = _sample(run, state)
    path = run.workdir / "samples" / f"{int(state.step)}.txt"
    path.parent.mkdir(exist_ok=True)
    path.write_text(text + "\n", encoding="utf-8")
    display.say(f"a sample, at temperature {run.config.sample.temperature}:\n\n{text}")


def bits_per_byte(loss: float, tokenizer: Tokenizer, tokens: np.ndarray) -> float:
    """A loss in nats per token as bits per byte of UTF-8, by the lengths of the held-out `tokens`."""
    return loss / np.log(2) * len(tokens) / tokenizer.count_bytes(tokens)


def _sample(run: Run, state: train_step.TrainState) -> str:
    """The prompt and its continuation; where the vocabulary lacks the prompt, from a line break."""
    options = run.config.sample
    try:
        prompt = sampling.prompt_ids(run.tokenizer, options.prompt)
    except UserError as error:
        print(f"note: the sample starts without sample.prompt ({error})", file=sys.stderr)
        prompt = sampling.prompt_ids(run.tokenizer, "")
    key = jax.random.key(run.config.train.seed)
    params = jax.device_put(state.params, run.layout.sharding.mesh.devices.flat[0])
    return run.tokenizer.decode(
        [*prompt, *sampling.generate(run.config.model, params, prompt, key, options)]
    )
