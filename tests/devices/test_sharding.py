"""Devices: how many, what they support, the mesh, the rules, the layout of a batch."""

import jax
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from gpt_jax.devices import device_count, hardware
from gpt_jax.devices.batch_layout import make_batch_layout
from gpt_jax.devices.mesh import make_mesh
from gpt_jax.errors import UserError
from gpt_jax.training.state import abstract_state


def mesh_of(config, **sizes):
    config = config.with_values("mesh", **({"cpu_devices": 8} | sizes))
    return make_mesh(config.mesh, device_count.start_devices(config.mesh, 8))


def test_the_data_axis_takes_the_remaining_devices(small):
    assert dict(mesh_of(small).shape) == {"data": 8, "fsdp": 1, "tensor": 1}
    assert dict(mesh_of(small, fsdp=2, tensor=2).shape) == {"data": 2, "fsdp": 2, "tensor": 2}
    assert dict(mesh_of(small, cpu_devices=1).shape) == {"data": 1, "fsdp": 1, "tensor": 1}


def test_mesh_axes_are_automatic(small):
    """A linen model needs Auto, whatever the default of jax.make_mesh is."""
    assert set(mesh_of(small).axis_types) == {jax.sharding.AxisType.Auto}


@pytest.mark.parametrize("sizes", [{"data": 3}, {"fsdp": 3}, {"tensor": 16}, {"data": 16}])
def test_a_mesh_that_does_not_fit_the_devices_is_rejected(small, sizes):
    with pytest.raises(UserError, match="multiply to the 8 available devices"):
        mesh_of(small, **sizes)


def test_more_devices_than_jax_runs_with_are_rejected(small):
    with pytest.raises(UserError, match=r"mesh\.cpu_devices = 9, but JAX already runs with 8"):
        mesh_of(small, cpu_devices=9)


def test_golden_shardings_of_parameters_and_moments(small):
    mesh = mesh_of(small, data=2, fsdp=2, tensor=2)
    abstract = abstract_state(small.with_values("model", vocab_size=12), mesh)
    block = {
        "ln_1": {"bias": P("fsdp"), "scale": P("fsdp")},
        "ln_2": {"bias": P("fsdp"), "scale": P("fsdp")},
        "attn": {
            "q": {"kernel": P("fsdp", "tensor", None)},
            "k": {"kernel": P("fsdp", "tensor", None)},
            "v": {"kernel": P("fsdp", "tensor", None)},
            "c_proj": {"bias": P("fsdp"), "kernel": P("tensor", None, "fsdp")},
        },
        "mlp": {
            "c_fc": {"bias": P("tensor"), "kernel": P("fsdp", "tensor")},
            "c_proj": {"bias": P("fsdp"), "kernel": P("tensor", "fsdp")},
        },
    }
    expected = {
        "wte": {"embedding": P("tensor", "fsdp")},
        "wpe": {"embedding": P(None, "fsdp")},
        "h_0": block,
        "ln_f": {"bias": P("fsdp"), "scale": P("fsdp")},
        "lm_head": {"kernel": P("fsdp", "tensor")},
    }
    specs = jax.tree.map(lambda leaf: leaf.sharding.spec, abstract)
    normal = jax.tree.map(lambda spec: tuple(spec), expected, is_leaf=lambda x: isinstance(x, P))

    def flat(tree):
        return jax.tree.map(
            lambda spec: tuple(axes[0] if isinstance(axes, tuple) else axes for axes in spec),
            tree,
            is_leaf=lambda x: isinstance(x, P),
        )

    assert flat(specs.params) == normal
    adam = specs.opt_state[1][0]
    assert flat(adam.mu) == flat(adam.nu) == normal
    assert specs.step == specs.key == adam.count == P()


def test_an_axis_that_the_mesh_does_not_divide_is_not_sharded(small, capsys):
    abstract = abstract_state(small, mesh_of(small, data=1, fsdp=1, tensor=8))
    assert abstract.params["wte"]["embedding"].sharding.spec == P(None, None)
    assert abstract.params["h_0"]["mlp"]["c_fc"]["kernel"].sharding.spec == P(None, ("tensor",))
    notes = capsys.readouterr().err.splitlines()
    assert (
        "note: vocab = 11 is not sharded, because mesh axis tensor = 8 does not divide it" in notes
    )
    assert len(notes) == len(set(notes))


@pytest.mark.parametrize(
    ("devices", "microbatch", "expected"),
    [(1, 0, (1, 8, 8)), (2, 0, (1, 8, 4)), (1, 2, (4, 2, 2)), (4, 1, (2, 4, 1)), (8, 1, (1, 8, 1))],
)
def test_layout_of_a_batch(small, devices, microbatch, expected):
    config = small.with_values("train", microbatch_size=microbatch)
    layout = make_batch_layout(config, mesh_of(small, cpu_devices=devices))
    assert (layout.microbatches, layout.rows, layout.rows_per_device) == expected
    windows = np.arange(8 * 17, dtype=np.int32).reshape(8, 17)
    placed = layout.place(windows)
    assert placed.shape == (*expected[:2], 17)
    np.testing.assert_array_equal(np.asarray(placed).reshape(8, 17), windows)
    assert {shard.data.shape for shard in placed.addressable_shards} == {
        (expected[0], expected[2], 17)
    }


def test_a_microbatch_on_a_cpu_has_about_256_tokens_and_at_least_two_windows(small):
    config = small.with_values("train", batch_size=96, microbatch_size=0)
    for block_size, expected in ((16, 16), (128, 2), (100, 2), (1000, 2)):
        config = config.with_values("model", block_size=block_size)
        layout = make_batch_layout(config, mesh_of(small, cpu_devices=2))
        assert layout.rows_per_device == expected


def test_a_batch_that_cannot_be_shared_evenly_is_rejected(small):
    with pytest.raises(
        UserError, match=r"train\.batch_size = 6 is not a multiple of the 4 devices"
    ):
        config = small.with_values("train", batch_size=6)
        make_batch_layout(config, mesh_of(small, cpu_devices=4))
    with pytest.raises(
        UserError, match=r"train\.microbatch_size = 3 does not divide the 4 windows .* to 2 or 4$"
    ):
        config = small.with_values("train", microbatch_size=3)
        make_batch_layout(config, mesh_of(small, cpu_devices=2))


def test_the_chosen_number_of_cores_divides_the_batch(small, monkeypatch):
    """Before JAX runs, the cores decide. The patched update stands in for a JAX that starts."""
    counts = []
    monkeypatch.setattr(jax.config, "update", lambda name, value: counts.append(value))
    monkeypatch.setattr(device_count, "usable_cores", lambda: 6)
    for batch_size in (32, 12, 35, 7):
        device_count.start_devices(small.with_values("mesh", cpu_devices=0).mesh, batch_size)
    assert counts == [4, 6, 5, 1]


def test_the_chosen_number_of_running_devices_divides_the_batch(small):
    mesh = small.with_values("mesh", cpu_devices=0).mesh
    counts = [len(device_count.start_devices(mesh, batch_size)) for batch_size in (32, 6, 7, 11)]
    assert counts == [8, 6, 7, 1]


def test_automatic_dtype_of_accelerators():
    class Accelerator:
        platform = "gpu"

    device = Accelerator()
    assert hardware.best_matmul_dtype(device) == "bfloat16"
    for capability, dtype in (("7.5", "float32"), ("8.0", "bfloat16"), ("12.0", "bfloat16")):
        device.compute_capability = capability
        assert hardware.best_matmul_dtype(device) == dtype


class Device:
    """An accelerator as JAX describes it."""

    def __init__(self, device_kind, compute_capability):
        self.device_kind, self.compute_capability = device_kind, compute_capability


H100, T4, MI300 = Device("H100", "9.0"), Device("T4", "7.5"), Device("MI300", "gfx942")


def test_cudnn_attention_needs_a_recent_nvidia_gpu():
    assert hardware.has_cudnn_attention(H100)
    assert hardware.has_cudnn_attention(Device("B200", "10.0"))
    assert not any(hardware.has_cudnn_attention(one) for one in (T4, MI300, jax.devices()[0]))


@pytest.mark.parametrize(
    ("device", "values", "message"),
    [
        (T4, {}, "but the device is T4: change"),
        (H100, {"dropout": 0.1}, r"but model\.dropout = 0\.1: change"),
        (H100, {"matmul_dtype": "float32"}, r"but model\.matmul_dtype = float32: change"),
        (H100, {"n_embd": 24, "dropout": 0.1}, r"but .*0\.1, a head has 12 numbers: change"),
        (H100, {"n_embd": 272}, "but a head has 136 numbers: change"),
    ],
)
def test_unsupported_attention_is_rejected_with_all_reasons(small, device, values, message):
    good = {"attention": "cudnn", "dropout": 0.0, "matmul_dtype": "bfloat16"}
    hardware.check_attention(small.with_values("model", **good).model, H100)
    config = small.with_values("model", **good | values)
    with pytest.raises(UserError, match=message):
        hardware.check_attention(config.model, device)
    hardware.check_attention(config.with_values("model", attention="xla").model, device)


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ("flags\t: fpu avx512f avx512_bf16 clzero", True),
        ("flags\t: amx_bf16 amx_tile", True),
        ("flags\t: fpu avx2 avx512f avx512_vnni", False),
        ("", False),
    ],
)
def test_cpu_flags_show_bfloat16(flags, expected):
    assert hardware.cpu_has_bfloat16(flags) == expected


@pytest.mark.parametrize(
    ("content", "cores"),
    [("max 100000", None), ("200000 100000", 2), ("290000 100000", 2), ("50000 100000", 1)],
)
def test_a_container_quota_limits_the_cores(content, cores, tmp_path, monkeypatch):
    path = tmp_path / "cpu.max"
    assert device_count.container_cores(path) is None
    path.write_text(content + "\n")
    assert device_count.container_cores(path) == cores
    monkeypatch.setattr(device_count, "CPU_QUOTA", path)
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: set(range(64)), raising=False)
    monkeypatch.setattr("os.cpu_count", lambda: 64)
    assert device_count.usable_cores() == (cores or device_count.MAX_CPU_DEVICES)
