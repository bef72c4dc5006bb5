"""Whole tiny runs of tuning: sums in one block of width 16, and what these runs share."""

import contextlib
import dataclasses
import io
import json
import random
import signal
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from jax import Array
from steps import SHARED

from gpt_jax.config import Config
from gpt_jax.devices import make_batch_layout, make_mesh, start_devices
from gpt_jax.training import finish, loop, run
from gpt_jax.training.objective import Parts
from gpt_jax.training.state import TrainState, abstract_state, init_state
from gpt_jax.training.step import jit_eval_step, jit_train_step
from gpt_jax.training.stopping import FINISHED, Stop, Stopper
from gpt_jax.tuning import instructions, make_maker, preferences, rewards
from gpt_jax.tuning.scoring import make_score

INSTRUCTIONS = {"objective": "instructions", "task": "sums"}
REWARDS = {"objective": "rewards", "task": "sums", "group_size": 4, "answer_tokens": 6}
SECTIONS: dict[str, dict[str, Any]] = {
    "model": {"block_size": 16, "n_layer": 1, "n_head": 2, "n_embd": 16, "dropout": 0.1}
    | {"position": "rotary", "matmul_dtype": "float32"},
    "data": {},
    "optimizer": {"learning_rate": 1e-2, "warmup_steps": 2, "schedule": "constant"},
    "train": {"steps": 4, "batch_size": 8, "microbatch_size": 4}
    | {"log_every": 1, "eval_every": 2, "checkpoint_every": 2},
    "tune": {},
    "sample": {"prompt": "1", "max_new_tokens": 8},
    "mesh": {"cpu_devices": 1},
}
RUNS: dict[str, Path] = {}


def make_config(tune: dict[str, Any], **sections: dict[str, Any]) -> Config:
    """Four steps on sums."""
    values = {name: known | sections.get(name, {}) for name, known in SECTIONS.items()}
    return Config.from_dict(values | {"tune": tune})


def train(
    config: Config, workdir: Path, init_from: Path | str = "", draws: bool = False, **options: Any
) -> Stop:
    """Trains as scripts/train.py does, without a word, and without a picture unless it `draws`."""
    maker = make_maker(config, bool(init_from))
    with contextlib.redirect_stdout(io.StringIO()), pytest.MonkeyPatch.context() as patch:
        share_steps(patch)
        if not draws:  # A third of a second.
            patch.setattr(finish, "_draw_curve", lambda run: None)
        return loop.train(config, workdir, init_from=str(init_from), maker=maker, **options)


def stop_after(
    step: int, config: Config, workdir: Path, init_from: Path | str = "", begun: int = 0
) -> Stop:
    """Trains a run that is at step `begun`; it is asked to stop during step `step`."""
    stopper, waits, wait = Stopper(), [], loop._wait

    def wait_and_stop(metrics: Any) -> None:
        waits.append(metrics)
        stopper.signum = stopper.signum or signal.SIGTERM * (begun + len(waits) == step)
        wait(metrics)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "_wait", wait_and_stop)
        return train(config, workdir, init_from, stopper=stopper)


def share_steps(patch: pytest.MonkeyPatch) -> None:
    """Runs of a kind share their compiled steps; tracing them takes a second a run."""
    patch.setattr(run, "jit_train_step", lambda *args: shared(jit_train_step, *args))
    for module in (run, instructions, preferences):
        patch.setattr(module, "jit_eval_step", lambda *args: shared(jit_eval_step, *args))
    for module in (preferences, rewards):
        patch.setattr(module, "make_score", _shared_score)


def shared(make: Any, config: Config, abstract: Any, layout: Any, *losses: Any) -> Any:
    """What `make` makes for a kind of run. The settings of the losses stand for the losses."""
    c = config.tune
    settings = c.objective, c.beta, c.chosen_weight, c.clip, c.temperature, len(losses)
    key = make, config.model, config.optimizer, config.train.steps, settings, layout
    if key not in SHARED:
        SHARED[key] = make(config, abstract, layout, *losses)
    return SHARED[key]


def _shared_score(parts: Parts, temperature: float = 1.0) -> Any:
    decay = parts.config.optimizer.average_decay
    key = make_score, parts.config.model, decay, parts.layout, temperature
    if key not in SHARED:
        SHARED[key] = make_score(parts, temperature)
    return SHARED[key]


def pretrained(factory: pytest.TempPathFactory) -> Path:
    """The folder of a run pre-trained on a text of sums, for the whole session."""
    if "pretrained" not in RUNS:
        folder = factory.mktemp("pretrained")
        draw = random.Random(0)
        sums = [(draw.randrange(1000), draw.randrange(1000)) for _ in range(400)]
        text = "".join(f"{a:03}+{b:03}={f'{a + b}'[::-1]}\n" for a, b in sums)
        (folder / "sums.txt").write_text(text, encoding="utf-8")
        config = make_config({}, data={"corpus": str(folder / "sums.txt")})
        assert train(config, folder / "base") == FINISHED
        RUNS["pretrained"] = folder / "base"
    return RUNS["pretrained"]


def instructed(factory: pytest.TempPathFactory) -> Path:
    """The folder of the same run after instructions. Tests must not change it."""
    if "instructed" not in RUNS:
        origin, folder = pretrained(factory), factory.mktemp("instructed")
        config = make_config(INSTRUCTIONS, train={"steps": 40, "eval_every": 20})
        assert train(config, folder / "run", origin) == FINISHED
        RUNS["instructed"] = folder / "run"
    return RUNS["instructed"]


def pairs_file(folder: Path, count: int = 20) -> Path:
    """Preferences as JSON lines: right sums before sums of 0."""
    rows = [
        {"prompt": f"{a:03}+{a + 3:03}=", "chosen": f"{2 * a + 3}"[::-1], "rejected": "0"}
        for a in range(100, 100 + count)
    ]
    path = folder / "pairs.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def reward_file(folder: Path) -> Path:
    """A user's reward, which also an untrained model gets some of."""
    path = folder / "my_reward.py"
    path.write_text(
        "def score(prompt, answer):\n    return answer.count('1') - 0.1 * len(answer)\n"
    )
    return path


def make_parts(config: Config, tokenizer: Any, **values: Any) -> tuple[Parts, TrainState]:
    """The parts of an objective on one device without a run, and a first state.

    The reference is the parameters of this state.
    """
    devices = start_devices(config.mesh, config.train.batch_size)
    mesh = make_mesh(config.mesh, devices)
    layout = make_batch_layout(config, mesh)
    abstract = abstract_state(config, mesh)
    state = init_state(config, abstract)
    first = jax.tree.map(lambda leaf: leaf.copy(), state.params)
    parts = Parts(
        config=config,
        tokenizer=tokenizer,
        train_tokens=np.zeros(0, np.uint8),
        val_tokens=np.zeros(0, np.uint8),
        layout=layout,
        abstract=abstract,
        eval_step=jit_eval_step(config, abstract, layout),
        reference=lambda: first,
        template=None,
        origin_template=None,
    )
    return dataclasses.replace(parts, **values), state


def flat(batch: dict[str, Array]) -> dict[str, np.ndarray]:
    """The arrays of a batch with one axis of rows, on the host."""
    metrics = {k: v for k, v in batch.items() if k != "metrics"}
    return {
        name: np.asarray(array).reshape(-1, *array.shape[2:]) for name, array in metrics.items()
    }
