"""The speed of training and sampling, beside that of the machine's matrix products.

Figures are medians without compilation and warm-up; the compile time is a figure of its own. On a
shared machine a single run means little: compare ratios of runs made side by side.
"""

import dataclasses
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from gpt_jax.config import Config, GPTConfig
from gpt_jax.devices import hardware, make_batch_layout, make_mesh, pinned_settings, start_devices
from gpt_jax.model import einsum, unrolled
from gpt_jax.sampling import generate
from gpt_jax.text.windows import train_batch
from gpt_jax.training.memory import check_run, check_sampling
from gpt_jax.training.plan import count_parameters, flops_per_token
from gpt_jax.training.state import abstract_state, init_state
from gpt_jax.training.step import jit_train_step

VOCAB = 65
WARM_UP_STEPS = 3
GEMM_ROWS = 4096


@pinned_settings()
def train(config: Config, steps: int) -> dict[str, Any]:
    """Times training steps on random tokens. Returns the figures by name."""
    config, mesh = _prepared(config)
    layout, abstract = make_batch_layout(config, mesh), abstract_state(config, mesh)
    check_run(config, abstract, layout, True)
    c, state = config.model, init_state(config, abstract)
    step = jit_train_step(config, abstract, layout)
    tokens = np.random.default_rng(0).integers(0, VOCAB, 100 * c.block_size + 10_000)

    def one(number: int) -> None:
        nonlocal state
        windows = train_batch(tokens, c.block_size, config.train.batch_size, 0, number)
        state, metrics = step(state, layout.place(windows))
        jax.block_until_ready(metrics)

    timed, trained = _timed(one, steps), config.train.batch_size * c.block_size
    flops = flops_per_token(c, count_parameters(abstract.params))
    return {"mode": "train"} | _figures(config, mesh, timed, trained, flops)


@pinned_settings()
def sample(config: Config, num_samples: int, tokens: int, prompt_tokens: int) -> dict[str, Any]:
    """As `train`, for sampling `num_samples` texts of `tokens` tokens with random parameters.

    The time of a text includes reading its prompt.
    """
    config, mesh = _prepared(config)
    whole = NamedSharding(mesh, PartitionSpec())
    abstract = abstract_state(config, mesh)
    check_run(config, abstract, make_batch_layout(config, mesh), True)
    check_sampling(config.model, num_samples, mesh.local_devices)
    params = init_state(config, abstract).params
    model, params = unrolled(config.model, jax.device_put(params, whole))
    options = dataclasses.replace(config.sample, max_new_tokens=tokens)

    prompt = np.zeros(prompt_tokens, np.int32)

    def one(number: int) -> None:
        generate(model, params, prompt, options, number, num_samples)

    compile_s, seconds = _timed(one, 5)
    timed = compile_s, [total / tokens for total in seconds]
    config = config.with_values("model", matmul_dtype="float32")  # As in sampling.
    flops = flops_per_token(model, count_parameters(params)) // 3  # A third: no backward pass.
    figures = _figures(config, mesh, timed, num_samples, flops)
    more = {"num_samples": num_samples, "prompt_tokens": prompt_tokens}
    return {"mode": "sample"} | figures | more | {"temperature": options.temperature}


def gemm_gflops(config: GPTConfig, mesh: Mesh) -> float:
    """The ceiling: the MLP's first product on all CPU devices, the best of 30, in GFLOP/s.

    A GPU computes it in less time than it takes to launch: on an H100 whole steps reached 1.5 and
    2 times this figure.
    """
    rows = NamedSharding(mesh, PartitionSpec(None, mesh.axis_names))
    x = jax.device_put(jnp.ones((1, GEMM_ROWS, config.n_embd)), rows)
    kernel = jnp.ones((config.n_embd, 4 * config.n_embd))
    product = jax.jit(lambda x, kernel: einsum("btc,cf->btf", x, kernel, config.matmul_dtype))
    _, seconds = _timed(lambda _: jax.block_until_ready(product(x, kernel)), 30)
    return 2 * GEMM_ROWS * kernel.size / min(seconds) / 1e9


def _prepared(config: Config) -> tuple[Config, Mesh]:
    devices = start_devices(config.mesh, config.train.batch_size)
    dtype = config.model.matmul_dtype
    dtype = hardware.best_matmul_dtype(devices[0]) if dtype == "auto" else dtype
    config = config.with_values("model", vocab_size=VOCAB, matmul_dtype=dtype)
    hardware.check_attention(config.model, devices[0])
    return config, make_mesh(config.mesh, devices)


def _timed(one: Callable[[int], None], count: int) -> tuple[float, list[float]]:
    """Seconds of the first call, and of each of `count` calls after the warm-up."""
    seconds = []
    for number in range(WARM_UP_STEPS + count):
        begin = time.perf_counter()
        one(number)
        seconds.append(time.perf_counter() - begin)
    return seconds[0], seconds[WARM_UP_STEPS:]


def _figures(
    config: Config, mesh: Mesh, timed: tuple[float, list[float]], tokens: int, flops: int
) -> dict[str, Any]:
    """The figures of every mode, from the tokens per step and the operations per token."""
    step_s, platform = statistics.median(timed[1]), mesh.devices.flat[0].platform
    gflops = tokens * flops / step_s / 1e9
    figures = {
        "ms_per_step": round(1e3 * step_s, 3),
        "tokens_per_s": round(tokens / step_s),
        "compile_s": round(timed[0], 2),
        "peak_rss_mb": peak_rss_mb(),
        "dropout": config.model.dropout,
        "matmul_dtype": config.model.matmul_dtype,
        "devices": mesh.size,
        "platform": platform,
        "gflops": round(gflops, 1),
    }
    if platform != "cpu":
        return figures
    ceiling = gemm_gflops(config.model, mesh)
    fraction = round(gflops / ceiling, 3)
    return figures | {"gemm_gflops": round(ceiling, 1), "fraction_of_ceiling": fraction}


def peak_rss_mb() -> int | None:
    """The peak memory of this process in MB; None where the system does not report it."""
    try:
        import resource
    except ImportError:  # Windows.
        return None
    unit = 1e6 if sys.platform == "darwin" else 1e3
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit)
