"""One of two processes that writes what it saw into a file of its own: for test_meeting.py."""

import json
import sys
from pathlib import Path

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

folder, port, number = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
config, told = Config.from_dict(json.loads(sys.argv[4])), {}


class Windows:
    shape, read = (8, 17), []

    def __getitem__(self, rows):
        self.read += rows.ravel().tolist()
        return np.zeros((*rows.shape, 17), np.int32)


def refused(action):
    try:
        action()
    except UserError as error:
        return str(error)


def fail():
    if number == 1:
        raise UserError("only here")


with meeting.joined(Cluster(f"localhost:{port}", 2, number), config, folder / "run"):
    mesh = make_mesh(config.mesh, start_devices(config.mesh, 8))
    state = init_state(config, abstract_state(config, mesh))
    kernel = state.params["h_0"]["mlp"]["c_fc"]["kernel"]
    told["digests"] = digest.digests(state)
    told["here"] = [shard.data.shape for shard in kernel.addressable_shards]
    told["whole"] = processes.gathered(kernel).shape
    layout = make_batch_layout(config, mesh)
    layout.place(Windows(), np.arange(8))
    told["rows"] = sorted(set(Windows.read))
    told["greatest"] = processes.greatest(10 + number)
    told["first"] = processes.on_first(lambda: [number, "text " * 2000])()
    told["together"] = refused(lambda: processes.on_all(fail)())
    told["same"] = refused(lambda: processes.check_same("the number", number))
    (folder / f"told-{number}.json").write_text(json.dumps(told))
