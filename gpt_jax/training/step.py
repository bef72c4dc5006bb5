"""One update of the parameters, and the loss of validation rows: pure functions, jitted.

    loss, gradients = mean over microbatches;  updates = optax(gradients);  params += updates

A row of a batch is a window of text; tuning has rows of its own, and losses of its own.

Shapes: A microbatches one after another, M rows in each, B = A M rows of a batch, W = T + 1
tokens of a window (see text/windows.py), V vocabulary. Losses are in nats per token.
"""

from collections.abc import Callable
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array, lax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from gpt_jax.config import Config
from gpt_jax.devices import BatchLayout, activations_over
from gpt_jax.model import GPT
from gpt_jax.training.optimizer import make_optimizer, make_schedule
from gpt_jax.training.state import TrainState, state_shardings

Metrics = dict[str, Array]
TrainStep = Callable[[TrainState, Any], tuple[TrainState, Metrics]]
EvalStep = Callable[[Any, Any], Array]
# The loss of every row of a microbatch, shape (M,), and metrics of every row.
RowLosses = Callable[[GPT, Any, Any, Array | None], tuple[Array, Metrics]]


def token_losses(
    model: GPT,
    params: Any,
    windows_BW: Array,
    keys_B: Array | None = None,
    temperature: float = 1.0,
) -> Array:
    """Cross-entropy of every target in nats, shape (B, T). Keys turn dropout on.

    `temperature`: divides the logits.
    """
    logits_BTV = cast(Array, model.apply({"params": params}, windows_BW[:, :-1], keys_B))
    return optax.softmax_cross_entropy_with_integer_labels(
        logits_BTV / temperature, windows_BW[:, 1:]
    )


def window_losses(
    model: GPT, params: Any, windows_BW: Array, keys_B: Array | None = None
) -> tuple[Array, Metrics]:
    """Mean cross-entropy of each window in nats per token, shape (B,). Keys turn dropout on."""
    return token_losses(model, params, windows_BW, keys_B).mean(-1), {}


def row_keys(key: Array, step: Array, a: int, m: int) -> Array:
    """A dropout key for each row of the global batch at a step, shape (a, m)."""
    rows_AM = jnp.arange(a * m).reshape(a, m)
    fold_in = jax.vmap(jax.vmap(jax.random.fold_in, (None, 0)), (None, 0))
    return fold_in(jax.random.fold_in(key, step), rows_AM)


def mean_loss_and_grads(
    losses: RowLosses, model: GPT, params: Any, batch: Any, keys_AM: Array
) -> tuple[tuple[Array, Metrics], Any]:
    """Mean loss of a batch and its gradient: gradient accumulation over microbatches.

    Sums are float32 and divided once. On a CPU this is cache blocking; on a GPU it saves memory.

    Args:
      batch: arrays (A, M, ...): what `losses` takes, for A microbatches.
      keys_AM: a typed key per row, see `row_keys`.

    Returns: the mean loss and the means of the metrics, scalars, and a tree like `params`.
    """

    def mean_losses(params: Any, rows: Any, keys_M: Array) -> tuple[Array, Metrics]:
        losses_M, metrics = losses(model, params, rows, keys_M)
        return losses_M.mean(), jax.tree.map(jnp.mean, metrics)

    def add_microbatch(total: Any, microbatch: tuple[Any, Array]) -> tuple[Any, None]:
        return jax.tree.map(jnp.add, total, loss_and_grads(params, *microbatch)), None

    loss_and_grads = jax.value_and_grad(mean_losses, has_aux=True)
    first = jax.tree.map(lambda x: x[0], (batch, keys_AM))
    zeros = jax.tree.map(jnp.zeros_like, jax.eval_shape(loss_and_grads, params, *first))
    total, _ = lax.scan(add_microbatch, zeros, (batch, keys_AM))
    return cast(Any, jax.tree.map(lambda x: x / len(keys_AM), total))


def mean_loss_and_grads_over(
    mesh: Mesh, losses: RowLosses, model: GPT, params: Any, batch: Any, keys_AM: Array
) -> tuple[tuple[Array, Metrics], Any]:
    """`mean_loss_and_grads` of the whole batch, with its rows spread over the devices of `mesh`.

    The compiler would sum gradients over the devices after every microbatch. Where each device has
    all parameters, they are summed once, at the end: configs/tiny.py on 2 cores takes 150 ms a step
    instead of 195. Other meshes would gain too, but XLA aborts on a look-up in a sharded table if
    one axis is automatic and another is not (jax 0.10.2).
    """
    if mesh.shape["data"] < mesh.size:
        with activations_over(mesh, model.config):
            return mean_loss_and_grads(losses, model, params, batch, keys_AM)

    def local(params: Any, batch: Any, keys_AM: Array) -> tuple[tuple[Array, Metrics], Any]:
        return lax.pmean(mean_loss_and_grads(losses, model, params, batch, keys_AM), "data")

    whole, rows = PartitionSpec(), PartitionSpec(None, "data")
    over_devices = jax.shard_map(
        local, mesh=mesh, in_specs=(whole, rows, rows), out_specs=whole, check_vma=False
    )
    return over_devices(params, batch, keys_AM)


def averaged(decay: float, state: TrainState, params: Any) -> Any:
    """The exponential moving average, updated with new parameters.

    After n updates the decay is at most (1 + n) / (10 + n), as in TensorFlow's
    ExponentialMovingAverage: a young average would otherwise keep the initial parameters.
    """
    updates = (state.step - state.skipped).astype(jnp.float32)
    kept = jnp.minimum(decay, (1 + updates) / (10 + updates))
    return jax.tree.map(lambda a, p: p + kept * (a - p), state.average, params)


def apply_if_finite(
    ok: Array, state: TrainState, params: Any, opt_state: optax.OptState, average: Any
) -> TrainState:
    """The next state: with the new arrays if `ok`, else with the old ones and the step skipped."""

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


def make_train_step(config: Config, mesh: Mesh, losses: RowLosses = window_losses) -> TrainStep:
    """The pure function `train_step(state, batch) -> (state, metrics)`.

    The batch is what `losses` takes, with leading axes (A, M). Metrics are scalars: `loss` in nats
    per token, `grad_norm` before clipping, `lr` of this update, and those of `losses`.
    """
    model, schedule = GPT(config.model), make_schedule(config)
    optimizer = make_optimizer(config, mesh)

    def train_step(state: TrainState, batch: Any) -> tuple[TrainState, Metrics]:
        keys_AM = row_keys(state.key, state.step, *jax.tree.leaves(batch)[0].shape[:2])
        (loss, more), grads = mean_loss_and_grads_over(
            mesh, losses, model, state.params, batch, keys_AM
        )
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        metrics = more | {
            "loss": loss,
            "grad_norm": optax.tree.norm(grads),
            # The optimizer counts only its own updates; a skipped step is not one.
            "lr": jnp.asarray(schedule(state.step - state.skipped)),
        }
        ok = jnp.isfinite(loss) & jnp.isfinite(metrics["grad_norm"])
        decay = config.optimizer.average_decay
        average = averaged(decay, state, params) if decay else ()
        return apply_if_finite(ok, state, params, opt_state, average), metrics

    return train_step


def jit_train_step(
    config: Config, abstract: TrainState, layout: BatchLayout, losses: RowLosses = window_losses
) -> TrainStep:
    """`make_train_step`, jitted: the state sharded and donated, the batch in its layout."""
    shardings, mesh = state_shardings(abstract), cast(Mesh, layout.sharding.mesh)
    return jax.jit(
        make_train_step(config, mesh, losses),
        in_shardings=(shardings, layout.sharding),
        out_shardings=(shardings, NamedSharding(mesh, PartitionSpec())),
        donate_argnums=0,
    )


def jit_eval_step(
    config: Config, abstract: TrainState, layout: BatchLayout, losses: RowLosses = window_losses
) -> EvalStep:
    """The function `eval_step(params, batch) -> losses_AM`, without dropout, jitted.

    Each loss is that of a row in nats per token. Parameters are sharded as in training; every
    device gets all losses.
    """
    model, mesh = GPT(config.model), cast(Mesh, layout.sharding.mesh)

    def eval_step(params: Any, batch: Any) -> Array:
        with activations_over(mesh, config.model):
            return lax.map(lambda rows: losses(model, params, rows, None)[0], batch)

    return jax.jit(
        eval_step,
        in_shardings=(state_shardings(abstract).evaluated, layout.sharding),
        out_shardings=NamedSharding(mesh, PartitionSpec()),
    )


def mean_loss(
    eval_step: EvalStep,
    params: Any,
    rows: Any,
    layout: BatchLayout,
    poll: Callable[[], None] = lambda: None,
) -> float:
    """Mean loss over all rows, such as windows (N, W), in nats per token, summed in float64.

    Evaluates one batch of rows at a time. The last batch is filled up with rows that are not
    counted. Waits for each batch, as CPU devices require (see training/loop.py).

    Args:
      eval_step: from `jit_eval_step`.
      poll: called before each batch; may raise.
    """
    batch_size, count = layout.microbatches * layout.rows, len(jax.tree.leaves(rows)[0])
    losses = []
    for first in range(0, count, batch_size):
        poll()
        chosen = np.arange(first, min(first + batch_size, count))
        batch = layout.place(rows, np.resize(chosen, batch_size))
        losses_AM = jax.block_until_ready(eval_step(params, batch))
        losses.append(np.asarray(losses_AM).reshape(-1)[: len(chosen)])
    return float(np.concatenate(losses).mean(dtype=np.float64))
