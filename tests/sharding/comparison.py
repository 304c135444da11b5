"""All methods in one program, and their updates beside those of one device."""

import functools
import gc
import re

import jax
import numpy as np
from jax.sharding import NamedSharding

import mtlopt
from tests.problems import QUICK
from tests.sharding import network

# As for pytest, whose settings processes of their own do not read.
gc.set_threshold(100_000, 20, 100)


@functools.cache  # not at import: the devices are not settled then
def all_methods():
    """All methods, for the network's tasks."""
    return {
        name: method.make(len(network.TASKS), labels=network.LABELS)
        for name, method in mtlopt.METHODS.items()
    }


def make_step(oracle, methods):
    """Returns `step(states, params, batch)`: updates and states of the methods."""

    def step(states, params, batch):
        grads, updates, new = oracle(params, batch), {}, {}
        for name, method in methods.items():
            with jax.named_scope(name):  # shown by the operations of the program
                updates[name], new[name] = method.update(grads, states[name], params)
        return updates, new

    return step


def init_states(params, methods):
    return {name: method.init(params) for name, method in methods.items()}


def init_at_once(params, methods):
    """The same in one program, which forgets how the parameters are sharded."""
    return jax.jit(functools.partial(init_states, methods=methods))(params)


def one_device(methods=None, **options):
    """Updates of every method at the second of two batches, by one device."""
    params = jax.device_put(network.make_params())
    methods = methods or all_methods()
    oracle = network.make_oracle(**options)
    step = jax.jit(make_step(oracle, methods), compiler_options=QUICK)
    states, updates = init_at_once(params, methods), {}
    for batch in network.make_batches():
        updates, states = step(states, params, batch)
    return jax.device_get(updates)


def many_devices(mesh, *, fully, put_batch, methods=None, **options):
    """The same on a mesh, with data in parallel and replicated or sharded parameters.

    Args:
      mesh: all devices, its axis named `network.AXIS`.
      fully: whether the encoder's leaves are sharded.
      put_batch: function that places a batch on the mesh.
      methods: by name; None for all.
      **options: of `task_grad`.

    Returns:
      The updates, the states and the text of the compiled program.
    """
    methods = methods or all_methods()
    batch_sharding = network.by_batch(mesh)

    def constrain(array):
        return jax.lax.with_sharding_constraint(array, batch_sharding)

    shardings = network.param_shardings(mesh, fully=fully)
    params = jax.device_put(network.make_params(), shardings)

    def on_mesh(leaf):
        kept = isinstance(leaf.sharding, NamedSharding)
        return leaf.sharding if kept else network.replicated(mesh)

    states = init_states(params, methods)
    state_shardings = jax.tree.map(on_mesh, states)
    states = jax.jit(lambda states: states, out_shardings=state_shardings)(states)
    step = jax.jit(
        make_step(network.make_oracle(constrain, **options), methods),
        out_shardings=(dict.fromkeys(methods, shardings), state_shardings),
    )
    batches = [put_batch(batch) for batch in network.make_batches()]
    compiled = step.lower(states, params, batches[0]).compile(QUICK)
    updates = {}
    for batch in batches:
        updates, states = compiled(states, params, batch)
    return updates, states, compiled.as_text()


def errors(updates, expected):
    """Lengths of the differences, relative to the update's, `{name: error}`."""

    def length(tree):
        leaves = [np.asarray(leaf, float).ravel() for leaf in jax.tree.leaves(tree)]
        return float(np.linalg.norm(np.concatenate(leaves)))

    return {
        name: length(jax.tree.map(np.subtract, update, expected[name]))
        / length(expected[name])
        for name, update in updates.items()
    }


def collectives(text, kind):
    """Shapes that the collectives of a kind produce, `[(shape, operation), ...]`."""
    found = []
    for line in text.splitlines():
        match = re.search(rf"= (.*?) {kind}(-start)?\(", line)
        name = re.search(r'op_name="([^"]*)"', line)
        for shape in re.findall(r"\w+\[([\d,]*)\]", match[1]) if match else []:
            sizes = [int(size) for size in shape.split(",") if size]
            found.append((sizes, name[1] if name else ""))
    return found
