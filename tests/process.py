"""One of two processes that writes what it saw into a file of its own: for test_meeting.py."""

import json
from pathlib import Path

import forks
import numpy as np

from gpt_jax.config.cluster import Cluster
from gpt_jax.config.config import Config
from gpt_jax.devices import processes
from gpt_jax.devices.batch_layout import make_batch_layout
from gpt_jax.devices.device_count import start_devices
from gpt_jax.devices.mesh import make_mesh
from gpt_jax.errors import UserError
from gpt_jax.runs import digest
from gpt_jax.training import meeting
from gpt_jax.training.state import abstract_state, init_state


class Windows:
    """Windows of zeros that know which rows were read."""

    shape, dtype, read = (8, 17), np.dtype(np.int32), []

    def __len__(self):
        return 8

    def __getitem__(self, rows):
        self.read += rows.ravel().tolist()
        return np.zeros((*rows.shape, 17), np.int32)


def refused(action):
    """The message of the UserError that `action` raises."""
    try:
        action()
    except UserError as error:
        return str(error)


def examine(number: int, output: Path, folder: Path, port: int, config: Config) -> None:
    """Joins the other process and writes found-<number>.json."""
    forks.write_output_to(output)
    with meeting.joined(Cluster(f"localhost:{port}", 2, number), config, folder / "examined"):
        found = arrays(config) | agreement(number, folder)
        (folder / f"found-{number}.json").write_text(json.dumps(found))


def arrays(config):
    """What this process holds of a state and reads of a batch."""
    mesh = make_mesh(config.mesh, start_devices(config.mesh, 8))
    state = init_state(config, abstract_state(config, mesh))
    kernel = state.params["h_0"]["mlp"]["c_fc"]["kernel"]
    make_batch_layout(config, mesh).place(Windows(), np.arange(8))
    return {
        "digests": digest.digests(state),
        "here": [shard.data.shape for shard in kernel.addressable_shards],
        "whole": processes.gathered(kernel).shape,
        "rows": sorted(set(Windows.read)),
    }


def agreement(number, folder):
    """What the processes tell each other."""

    def fail():
        if number == 1:
            raise UserError("only here")

    def hold_another_folder():
        with meeting._one_writer(folder / ("one", "another")[number]):
            pass

    return {
        "greatest": processes.greatest(10 + number),
        "first": processes.on_first(lambda: [number, "text " * 2000])(),
        "together": refused(processes.on_all(fail)),
        "same": refused(lambda: processes.check_same("the number", number)),
        "folder": refused(hold_another_folder),
    }
