"""One of two processes that tells of itself, in a file of its own: for test_distributed.py."""

import json
import sys
from pathlib import Path

import numpy as np

from gpt_jax import digest, distributed, sharding, train_step
from gpt_jax.cluster import Cluster
from gpt_jax.config import Config
from gpt_jax.setting import UserError

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


with distributed.joined(Cluster(f"localhost:{port}", 2, number), config, folder / "run"):
    mesh = sharding.make_mesh(config.mesh, sharding.start_devices(config.mesh, 8))
    state = train_step.init_state(config, train_step.abstract_state(config, mesh))
    kernel = state.params["h_0"]["mlp"]["c_fc"]["kernel"]
    told["digests"] = digest.digests(state)
    told["here"] = [shard.data.shape for shard in kernel.addressable_shards]
    told["whole"] = distributed.gathered(kernel).shape
    layout = sharding.make_batch_layout(config, mesh)
    layout.place(Windows(), np.arange(8))
    told["rows"] = sorted(set(Windows.read))
    told["greatest"] = distributed.greatest(10 + number)
    told["first"] = distributed.first(lambda: [number, "text " * 2000])
    told["together"] = refused(lambda: distributed.together(fail))
    told["same"] = refused(lambda: distributed.check_same("the number", number))
    (folder / f"told-{number}.json").write_text(json.dumps(told))
