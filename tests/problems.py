"""Toy multi-task problems, and every method run on them."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax

import mtlopt
from mtlopt import METHODS

TASKS = ("a", "b", "c")


# One method for each way in which methods read the gradients, and the first ones:
# what they do with rows and heads is what all others do, in the same few functions.
ROUTES = (
    "sum_tasks",
    "mean_tasks",
    "uncertainty",  # weights by losses
    "excess_mtl",  # keeps sums shaped like rows
    "mgda",
    "mgda_ub",
    "pcgrad",  # random
    "trimmed_mean",  # element by element
    "moco",  # keeps rows
    "modo",  # products of two batches
    "db_mtl",  # a weighting and an aggregator of rows
    "aligned_mtl",
    "aligned_mtl_ub",
)


def methods_of(num_tasks):
    """Names of the methods that so many tasks are enough for."""
    return [name for name in METHODS if METHODS[name].min_tasks <= num_tasks]


def in_parts(names, most=10):
    """The names in equal parts: several programs compile faster than a large one."""
    names = tuple(names)
    count = -(-len(names) // most)
    return [names[i::count] for i in range(count)]


STEPS, BATCH, INPUTS, WIDTH = 4, 8, 4, 5
# Compiling takes longer than all the rest.
QUICK = {
    "xla_backend_optimization_level": 0,
    "xla_llvm_disable_expensive_passes": True,
}
LABELS = {"encoder": "shared", **{f"heads/{task}": task for task in TASKS}}


def make_params(seed=0):
    """Parameters of one tanh layer and three linear heads, float64."""
    rng = np.random.default_rng(seed)
    return {
        "encoder": {
            "w": rng.normal(size=(INPUTS, WIDTH)),
            "b": rng.normal(size=WIDTH),
        },
        "heads": {
            task: {"w": rng.normal(size=WIDTH), "b": rng.normal(size=())}
            for task in TASKS
        },
    }


def make_batches(seed=1, steps=STEPS):
    """`steps` batches `(x, y, mask)`; every task has labels in every sample or not."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(steps, BATCH, INPUTS))
    y = rng.normal(size=(steps, BATCH, len(TASKS))) * [1.0, 3.0, 0.5]
    mask = rng.random((steps, BATCH, len(TASKS))) < [0.9, 0.5, 0.7]
    mask[:, 0] = True
    return x, y, mask


def first(batches):
    return jax.tree.map(lambda leaf: leaf[0], batches)


def encode(params, x, y, mask):
    return jnp.tanh(x @ params["encoder"]["w"] + params["encoder"]["b"][None])


def squared_error(head, z, y):
    return jnp.mean((z @ head["w"] + head["b"] - y) ** 2)


def make_loss(task):
    index = TASKS.index(task)

    def loss(params, z, x, y, mask):
        return squared_error(params["heads"][task], z, y[:, index])

    return loss


LOSSES = {task: make_loss(task) for task in TASKS}


def make_oracle(**options):
    """The oracle of the problem written with an encoder and three heads."""
    return mtlopt.task_grad(LOSSES, LABELS, encode=encode, **options)


def losses_of(params, *args):
    """The losses as plain functions of the parameters, `[tasks]`."""
    z = encode(params, *args)
    return jnp.stack([LOSSES[task](params, z, *args) for task in TASKS])


def gradient_of(task, params, *args):
    """jax.grad of one task's loss over all leaves."""
    return jax.grad(lambda params: losses_of(params, *args)[TASKS.index(task)])(params)


def stack_heads(params, axis=0):
    heads = [params["heads"][task] for task in TASKS]
    stacked = jax.tree.map(lambda *leaves: np.stack(leaves, axis), *heads)
    return {"encoder": params["encoder"], "heads": stacked}


def make_forty_heads():
    """Params, labels, oracle and batch: forty latent rows are twenty times a batch."""
    num_tasks, batch_size, width = 40, 64, 64
    params = {"trunk": jnp.ones((width, width)), "heads": jnp.ones((num_tasks, width))}
    labels = {"trunk": "shared", "heads": "stacked"}

    def head(params, z, task, x):
        return jnp.mean((z @ params["heads"]) ** 2)

    oracle = mtlopt.task_grad(
        mtlopt.stacked(head, num_tasks),
        labels,
        encode=lambda params, x: jnp.tanh(x @ params["trunk"]),
    )
    return params, labels, oracle, jnp.ones((batch_size, width))


def temporary_bytes(function, *args):
    """XLA's count of what a compiled function needs beside arguments and results."""
    compiled = jax.jit(function).lower(*args).compile()
    return compiled.memory_analysis().temp_size_in_bytes


def in_parameter_space():
    """Those that any problem can be given to."""
    return [name for name in ROUTES if not METHODS[name].latent]


def make_run(oracle, names=None, known=None):
    """`run_methods` as a function of the rest: its programs are of any batch and mask.

    Returns:
      `run(params, batches, mask=None)`.
    """
    parts = in_parts(ROUTES if names is None else names)
    programs = [make_program(oracle, part, known) for part in parts]

    def run(params, batches, mask=None):
        updates, states = {}, {}
        with jax.enable_x64(True):
            for program in programs:
                found = program(params, batches, mask)
                updates |= jax.device_get(found[0])
                states |= found[1]
        return updates, states

    return run


def make_program(oracle, names, known):
    """Of parameters, batches and a mask, to updates and states after each batch."""
    methods = {
        name: METHODS[name].make(oracle.num_tasks, labels=oracle.labels)
        for name in names
    }

    def step(params, mask, carry, batch):
        grads = oracle(params, *batch, present=known or mask)
        results = {
            name: method.update(grads, carry[name], params)
            for name, method in methods.items()
        }
        carry = {name: state for name, (_, state) in results.items()}
        return carry, ({name: out for name, (out, _) in results.items()}, carry)

    @functools.partial(jax.jit, compiler_options=QUICK)
    def run(params, batches, mask):
        init = {name: method.init(params) for name, method in methods.items()}
        return jax.lax.scan(functools.partial(step, params, mask), init, batches)[1]

    return run


def run_methods(oracle, params, batches, *, names=None, present=None):
    """Methods over the batches at the same parameters, their state carried along.

    Float64. A mask `present` is traced, a mapping of bools is known.

    Returns:
      `{name: updates [steps, ...]}` and `{name: states [steps, ...]}` after each step.
    """
    known = present if isinstance(present, dict) else None
    run = make_run(oracle, names, known)
    return run(params, batches, None if known else present)


def updates_of(*args, **options):
    """The updates of `run_methods` alone."""
    return run_methods(*args, **options)[0]


@functools.cache
def plain_program(few):
    """`make_run` of the toy problem, with the methods of `ROUTES` or the others."""
    names = [name for name in methods_of(len(TASKS)) if (name in ROUTES) == few]
    return make_run(make_oracle(), names)


@functools.cache
def plain_run(few):
    """Updates and states of those methods at the problem's own parameters."""
    return plain_program(few)(make_params(), make_batches())


def matrix_oracle(num_tasks):
    """Losses with a given Jacobian: `oracle(w, rows, losses)` at w = 0.

    The encoder is the identity, so latent and parameter space are the same.
    """

    def head(params, z, task, rows, losses):
        return jnp.vdot(jnp.asarray(rows)[task], z) + jnp.asarray(losses)[task]

    return mtlopt.task_grad(
        mtlopt.stacked(head, num_tasks), "shared", encode=lambda w, rows, losses: w
    )


def remembers(state):
    """Whether a method's state is more than its last weights: these change nothing."""
    weights = optax.tree.get_all_with_path(state, "task_weights")
    return len(jax.tree.leaves(state)) > len(weights)


def assert_close(actual, expected, rtol=1e-9):
    """Trees agree, leaf by leaf, relative to the largest entry of the leaf."""
    paths, treedef = jax.tree_util.tree_flatten_with_path(expected)
    assert jax.tree.structure(actual) == treedef
    for (path, right), left in zip(paths, jax.tree.leaves(actual), strict=True):
        size = np.max(np.abs(right), initial=0.0)
        assert np.shape(left) == np.shape(right), path
        np.testing.assert_allclose(
            left, right, rtol=0, atol=rtol * size, err_msg=jax.tree_util.keystr(path)
        )
