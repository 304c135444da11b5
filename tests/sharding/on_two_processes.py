"""`python -m tests.sharding.on_two_processes REFERENCE ADDRESS INDEX`: prints errors.

One of two processes with one device each, which hold half of the batch and half of the
encoder.
"""

import json
import pickle
import sys
from pathlib import Path

import jax
from jax.experimental import multihost_utils

from tests.problems import ROUTES
from tests.sharding import comparison, network


def main():
    reference, address, index = sys.argv[1:]
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.distributed.initialize(
        address, num_processes=2, process_id=int(index), initialization_timeout=120
    )
    mesh, half = network.make_mesh(), network.BATCH // 2
    own = slice(half * int(index), half * (int(index) + 1))

    def put_batch(batch):
        return tuple(
            jax.make_array_from_process_local_data(network.by_batch(mesh), leaf[own])
            for leaf in batch
        )

    everything = comparison.all_methods()  # all of which run on eight devices
    updates, _, _ = comparison.many_devices(
        mesh,
        fully=True,
        put_batch=put_batch,
        methods={name: everything[name] for name in ROUTES},
    )
    updates = multihost_utils.process_allgather(updates, tiled=True)
    expected = pickle.loads(Path(reference).read_bytes())
    found = {
        "devices": [jax.local_device_count(), jax.device_count()],
        "errors": comparison.errors(updates, expected),
    }
    jax.distributed.shutdown()
    print(json.dumps(found))


if __name__ == "__main__":
    main()
