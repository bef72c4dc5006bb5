"""One update of the parameters, and the loss of held-out windows: pure functions, jitted.

    loss, gradients = mean over microbatches;  updates = optax(gradients);  params += updates

Shapes: A microbatches in a row, M windows of each, B = A M windows of a batch, W = T + 1 tokens
of a window (see data.py), V vocabulary. Losses are in nats per token.
"""

from collections.abc import Callable
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from gpt_jax.config import Config
from gpt_jax.devices import BatchLayout, activations_over
from gpt_jax.model import GPT
from gpt_jax.training.optimizer import make_optimizer, make_schedule
from gpt_jax.training.state import TrainState, state_shardings

Metrics = dict[str, jax.Array]


def token_losses(
    model: GPT, params: Any, windows_BW: jax.Array, keys_B: jax.Array | None = None
) -> jax.Array:
    """Cross-entropy of every target in nats, shape (B, T); keys turn dropout on."""
    logits_BTV = model.apply({"params": params}, windows_BW[:, :-1], keys_B)
    return optax.softmax_cross_entropy_with_integer_labels(logits_BTV, windows_BW[:, 1:])


def window_losses(
    model: GPT, params: Any, windows_BW: jax.Array, keys_B: jax.Array | None = None
) -> jax.Array:
    """Mean cross-entropy of each window in nats per token, shape (B,); keys turn dropout on."""
    return token_losses(model, params, windows_BW, keys_B).mean(-1)


def row_keys(key: jax.Array, step: jax.Array, a: int, m: int) -> jax.Array:
    """A dropout key for each row of the global batch at a step, laid out as (a, m)."""
    rows_AM = jnp.arange(a * m).reshape(a, m)
    fold_in = jax.vmap(jax.vmap(jax.random.fold_in, (None, 0)), (None, 0))
    return fold_in(jax.random.fold_in(key, step), rows_AM)


def mean_loss_and_grads(
    model: GPT, params: Any, batch_AMW: jax.Array, keys_AM: jax.Array
) -> tuple[jax.Array, Any]:
    """Mean loss of a batch and its gradient, one microbatch after another.

    Sums are float32 and divided once. On a CPU this is cache blocking, on a GPU it saves memory.

    Args:
      batch_AMW: ids, int32; keys_AM: a typed key per window, see `row_keys`.

    Returns: the loss, a scalar in nats per token, and a tree like `params`.
    """

    def loss_fn(params: Any, windows_MW: jax.Array, keys_M: jax.Array) -> jax.Array:
        return window_losses(model, params, windows_MW, keys_M).mean()

    def add_microbatch(total: Any, microbatch: tuple[jax.Array, jax.Array]) -> tuple[Any, None]:
        return jax.tree.map(jnp.add, total, jax.value_and_grad(loss_fn)(params, *microbatch)), None

    zeros = jnp.zeros(()), jax.tree.map(jnp.zeros_like, params)
    total, _ = lax.scan(add_microbatch, zeros, (batch_AMW, keys_AM))
    loss, grads = jax.tree.map(lambda x: x / len(batch_AMW), total)
    return loss, grads


def shared_loss_and_grads(
    model: GPT, mesh: Mesh, params: Any, batch_AMW: jax.Array, keys_AM: jax.Array
) -> tuple[jax.Array, Any]:
    """`mean_loss_and_grads` of the whole batch, whose rows the devices of `mesh` share.

    Left to the compiler, gradients are summed over the devices after every microbatch. Where each
    device has all parameters, they are summed once, at the end: 150 ms instead of 195 for the step
    of configs/tiny.py on 2 cores. (On other meshes, too, would be better, but XLA aborts on a
    look-up in a sharded table where an axis is left to it and another is not: jax 0.10.2.)
    """
    if mesh.shape["data"] < mesh.size:
        with activations_over(mesh, model.config):
            return mean_loss_and_grads(model, params, batch_AMW, keys_AM)

    def local(params: Any, batch_AMW: jax.Array, keys_AM: jax.Array) -> tuple[jax.Array, Any]:
        return lax.pmean(mean_loss_and_grads(model, params, batch_AMW, keys_AM), "data")

    whole, rows = PartitionSpec(), PartitionSpec(None, "data")
    shared = jax.shard_map(
        local, mesh=mesh, in_specs=(whole, rows, rows), out_specs=whole, check_vma=False
    )
    return shared(params, batch_AMW, keys_AM)


def averaged(decay: float, state: TrainState, params: Any) -> Any:
    """The average with new parameters in it.

    A young average forgets faster, (1 + n) / (10 + n) after n updates (TensorFlow's rule for
    ExponentialMovingAverage): it would keep the parameters of the beginning.
    """
    updates = (state.step - state.skipped).astype(jnp.float32)
    kept = jnp.minimum(decay, (1 + updates) / (10 + updates))
    return jax.tree.map(lambda a, p: p + kept * (a - p), state.average, params)


def apply_if_finite(
    ok: jax.Array, state: TrainState, params: Any, opt_state: optax.OptState, average: Any
) -> TrainState:
    """The next state: with the new arrays if `ok`, else with the old ones and the step counted."""

    def choose(new: Any, old: Any) -> Any:
        return jax.tree.map(lambda n, o: jnp.where(ok, n, o), new, old)

    return state.replace(
        step=state.step + 1,
        params=choose(params, state.params),
        opt_state=choose(opt_state, state.opt_state),
        average=choose(average, state.average),
        skipped=state.skipped + ~ok,
        skipped_in_a_row=jnp.where(ok, 0, state.skipped_in_a_row + 1),
    )


def make_train_step(
    config: Config, mesh: Mesh
) -> Callable[[TrainState, jax.Array], tuple[TrainState, Metrics]]:
    """The pure function `train_step(state, batch_AMW) -> (state, metrics)`.

    Metrics are scalars: `loss` in nats per token, `grad_norm` before clipping, `lr` of this update.
    """
    model, optimizer, schedule = GPT(config.model), make_optimizer(config), make_schedule(config)

    def train_step(state: TrainState, batch_AMW: jax.Array) -> tuple[TrainState, Metrics]:
        keys_AM = row_keys(state.key, state.step, *batch_AMW.shape[:2])
        loss, grads = shared_loss_and_grads(model, mesh, state.params, batch_AMW, keys_AM)
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        metrics = {
            "loss": loss,
            "grad_norm": optax.tree.norm(grads),
            # The optimizer counts its own updates, and a skipped step is none.
            "lr": jnp.asarray(schedule(state.step - state.skipped)),
        }
        ok = jnp.isfinite(loss) & jnp.isfinite(metrics["grad_norm"])
        decay = config.optimizer.average_decay
        average = averaged(decay, state, params) if decay else ()
        return apply_if_finite(ok, state, params, opt_state, average), metrics

    return train_step


def make_eval_step(config: Config, mesh: Mesh) -> Callable[[Any, jax.Array], jax.Array]:
    """The pure function `eval_step(params, batch_AMW) -> losses_AM`, without dropout.

    A loss is the mean of a window in nats per token.
    """
    model = GPT(config.model)

    def eval_step(params: Any, batch_AMW: jax.Array) -> jax.Array:
        with activations_over(mesh, config.model):
            return lax.map(lambda windows_MW: window_losses(model, params, windows_MW), batch_AMW)

    return eval_step


def jit_train_step(
    config: Config, abstract: TrainState, layout: BatchLayout
) -> Callable[[TrainState, jax.Array], tuple[TrainState, Metrics]]:
    """`make_train_step`, jitted: the state in its shards and donated, the batch in its layout."""
    shardings, mesh = state_shardings(abstract), cast(Mesh, layout.sharding.mesh)
    return jax.jit(
        make_train_step(config, mesh),
        in_shardings=(shardings, layout.sharding),
        out_shardings=(shardings, NamedSharding(mesh, PartitionSpec())),
        donate_argnums=0,
    )


def jit_eval_step(
    config: Config, abstract: TrainState, layout: BatchLayout
) -> Callable[[Any, jax.Array], jax.Array]:
    """`make_eval_step`, jitted: parameters sharded as in training, losses on all devices."""
    mesh = cast(Mesh, layout.sharding.mesh)
    return jax.jit(
        make_eval_step(config, mesh),
        in_shardings=(state_shardings(abstract).evaluated, layout.sharding),
        out_shardings=NamedSharding(mesh, PartitionSpec()),
    )


def mean_loss(
    eval_step: Callable[[Any, jax.Array], jax.Array],
    params: Any,
    windows_NW: np.ndarray,
    layout: BatchLayout,
    poll: Callable[[], None] = lambda: None,
) -> float:
    """Mean loss over all N windows in nats per token, summed in float64.

    Windows go through `eval_step` (of `jit_eval_step`) a batch at a time; the last batch is filled
    up with windows that do not count. Waits for each batch, as a CPU must (see training.py); `poll`
    is called before each and may raise.
    """
    batch_size = layout.microbatches * layout.rows
    losses = []
    for first in range(0, len(windows_NW), batch_size):
        poll()
        rows = np.arange(first, min(first + batch_size, len(windows_NW)))
        batch_AMW = layout.place(windows_NW, np.resize(rows, batch_size))
        losses_AM = jax.block_until_ready(eval_step(params, batch_AMW))
        losses.append(np.asarray(losses_AM).reshape(-1)[: len(rows)])
    return float(np.concatenate(losses).mean(dtype=np.float64))
