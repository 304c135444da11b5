"""`python -m tests.sharding.on_eight_devices REFERENCE KIND`: prints what was found.

KIND is "few", one method for each way of reading gradients, and the other options; or
"others", the other methods.

A process of its own, because the number of devices is settled once for a process.
"""

import json
import pickle
import sys
from pathlib import Path

import jax
import numpy as np
import optax
from jax.sharding import AxisType, PartitionSpec, reshard

import mtlopt
from tests import test_samples
from tests.problems import QUICK
from tests.sharding import comparison, network


def run(expected, *, fully, **options):
    mesh = network.make_mesh()
    updates, states, text = comparison.many_devices(
        mesh,
        fully=fully,
        put_batch=lambda batch: jax.device_put(batch, network.by_batch(mesh)),
        **options,
    )
    return {
        "errors": comparison.errors(jax.device_get(updates), expected),
        "all-gather": comparison.collectives(text, "all-gather"),
        "all-reduce": comparison.collectives(text, "all-reduce"),
        "row states": [
            [list(leaf.shape), list(leaf.addressable_shards[0].data.shape)]
            for leaf in jax.tree.leaves(states)
            if leaf.ndim > 1 and leaf.shape[1] != len(network.TASKS)
        ],
    }


def microbatches(expected):
    """One method of each kind."""
    mesh = network.make_mesh()
    everything = comparison.all_methods()
    updates, _, text = comparison.many_devices(
        mesh,
        fully=False,
        put_batch=lambda batch: jax.device_put(batch, network.by_batch(mesh)),
        methods={name: everything[name] for name in ("sum_tasks", "mgda", "mgda_ub")},
        microbatches=4,
    )
    return {
        "errors": comparison.errors(jax.device_get(updates), expected),
        "all-gather": comparison.collectives(text, "all-gather"),
    }


def shard_map(expected):
    """Errors of methods inside `jax.shard_map`, with losses of all shards."""
    mesh, batch = network.make_mesh(), PartitionSpec(network.AXIS)
    oracle = network.make_oracle(reduce=lambda loss: jax.lax.pmean(loss, network.AXIS))
    everything = comparison.all_methods()
    some = {name: everything[name] for name in ("sum_tasks", "mgda", "pcgrad", "moco")}
    step = jax.jit(
        jax.shard_map(
            comparison.make_step(oracle, some),
            mesh=mesh,
            in_specs=(PartitionSpec(), PartitionSpec(), batch),
            out_specs=PartitionSpec(),
        ),
        compiler_options=QUICK,
    )
    params = network.make_params()
    states = comparison.init_at_once(params, some)
    for one in network.make_batches():
        updates, states = step(states, params, one)
    return {"errors": comparison.errors(jax.device_get(updates), expected)}


def one_task_per_sample():
    """Each device has a part of the samples; the same by one loss a task, unsharded."""
    mesh = network.make_mesh()
    methods = {
        name: mtlopt.METHODS[name].make(4, labels=test_samples.LABELS)
        for name in ("sum_tasks", "mgda", "aligned_mtl", "mgda_ub", "moco")
    }
    params = jax.tree.map(np.float32, test_samples.make_params())
    states = comparison.init_at_once(params, methods)
    rng = np.random.default_rng(0)
    batch = {
        "x": np.float32(rng.normal(size=(32, test_samples.INPUTS))),
        "y": np.float32(rng.normal(size=32)),
        "task": rng.permutation(np.arange(32, dtype=np.int32) % 4),
    }

    def updates(oracle, *args):
        step = comparison.make_step(oracle, methods)
        return jax.jit(lambda *args: step(*args)[0]).lower(*args).compile(QUICK)

    expected = updates(test_samples.taskwise(), states, params, batch)
    whole = network.replicated(mesh)
    placed = (
        *jax.device_put((states, params), whole),
        jax.device_put(batch, network.by_batch(mesh)),
    )
    found = updates(test_samples.samplewise(), *placed)
    return {
        "errors": comparison.errors(
            jax.device_get(found(*placed)),
            jax.device_get(expected(states, params, batch)),
        ),
        "all-gather": comparison.collectives(found.as_text(), "all-gather"),
    }


def frozen_leaf():
    """The same where one leaf is frozen, by an optimizer and a method with states."""
    tasks, labels = len(network.TASKS), network.BIAS_FROZEN
    adamw = mtlopt.per_label(optax.adamw(0.1), labels)
    methods = {
        "mgda": optax.chain(mtlopt.mgda(tasks), adamw),
        "moco": mtlopt.moco(tasks, labels),
    }
    expected = comparison.one_device(methods, labels=labels)
    found = run(expected, fully=True, methods=methods, labels=labels)
    return {**found, "explicit": explicit_specs(methods, labels)}


def explicit_specs(methods, labels):
    """Specs of the updates on a mesh with explicit axes: traced only."""
    mesh = network.make_mesh(AxisType.Explicit)

    def whole(leaf):
        return reshard(leaf, PartitionSpec())

    with jax.set_mesh(mesh):
        shardings = network.param_shardings(mesh, fully=True)
        params = jax.device_put(network.make_params(), shardings)
        batch = jax.device_put(network.make_batches()[0], network.by_batch(mesh))
        oracle = network.make_oracle(whole=whole, labels=labels)
        step = comparison.make_step(oracle, methods)

        def first(params, batch):
            updates, _ = step(comparison.init_states(params, methods), params, batch)
            return updates

        updates = jax.eval_shape(first, params, batch)
        return {
            name: jax.tree.map(lambda leaf: str(leaf.sharding.spec), update["encoder"])
            for name, update in updates.items()
        }


def main():
    jax.config.update("jax_num_cpu_devices", 8)
    expected = pickle.loads(Path(sys.argv[1]).read_bytes())
    methods = {name: comparison.all_methods()[name] for name in expected}
    found = {
        "data": run(expected, fully=False, methods=methods),
        # The pullbacks as on accelerators.
        "fully": run(expected, fully=True, methods=methods, batching="vmap"),
    }
    if sys.argv[2] == "few":
        found |= {
            "explicit": explicit_specs(comparison.all_methods(), network.LABELS),
            "frozen": frozen_leaf(),
            "microbatches": microbatches(expected),
            "samples": one_task_per_sample(),
            "shard_map": shard_map(expected),
        }
    print(json.dumps(found))


if __name__ == "__main__":
    main()
