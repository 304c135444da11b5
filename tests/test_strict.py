"""Every method under JAX's strict settings, in one process: a lane of `.ci/run`.

Without `-m "slow or not slow"`, as in other lanes, only what is traced, not compiled.
"""

import contextlib

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import mtlopt
from mtlopt import METHODS
from tests.problems import (
    LABELS,
    QUICK,
    ROUTES,
    first,
    make_batches,
    make_oracle,
    make_params,
    matrix_oracle,
    remembers,
)

# Subtracts the power of an integer from a Python number: Optax's own line
# `1 - decay**count` in `optax.tree.bias_correction`, of `optax.adam`.
MIXES_DTYPES_IN_OPTAX = {"uncertainty", "imtl_l", "famo"}

methods = pytest.mark.parametrize("name", METHODS)


@contextlib.contextmanager
def strict(dtype, promotion="strict"):
    """No implicit promotion, of ranks or of dtypes."""
    with (
        jax.enable_x64(dtype == "float64"),
        jax.numpy_rank_promotion("raise"),
        jax.numpy_dtype_promotion(promotion),
    ):
        yield


def updates_and_state(name, rows, losses, present=None):
    options = {"num_steps": 3} if name == "sdmgrad" else {}  # all do the same
    method = METHODS[name].make(len(rows), **options)
    oracle = matrix_oracle(len(rows))
    params = jnp.zeros(rows.shape[1:], rows.dtype)
    state = method.init(params)

    def step(state, _):
        grads = oracle(params, rows, losses, present=present)
        return method.update(grads, state, params)[::-1]

    state, updates = jax.lax.scan(step, state, length=2 if remembers(state) else 1)
    return updates, state


def cases(name, dtype):
    """Rows, losses and who is present: generic; all zero; a zero row; an absent one."""
    num_tasks = max(3, METHODS[name].min_tasks)
    rows = np.random.default_rng(0).normal(size=(num_tasks, 6)).astype(dtype)
    losses, everybody = np.ones(num_tasks, dtype), np.ones(num_tasks, bool)
    but_one = np.arange(num_tasks) > 0
    each = [
        (rows, losses, everybody),
        (0 * rows, 0 * losses, everybody),
        (rows * but_one[:, None].astype(dtype), losses, everybody),
        (rows, losses, but_one),
    ]
    return tuple(jnp.stack(leaves) for leaves in zip(*each, strict=True))


@methods
@pytest.mark.parametrize("dtype", ["bfloat16", "float64"])
def test_no_implicit_promotion(name, dtype):
    """It would raise as the program is traced: nothing is compiled."""
    with strict(dtype, "standard" if name in MIXES_DTYPES_IN_OPTAX else "strict"):
        case = [leaf[0] for leaf in cases(name, jnp.dtype(dtype))]
        jax.eval_shape(lambda: updates_and_state(name, *case))


def of_wrappers(params, args):
    """An update of each: line searches, `per_label`, alternation; and of each route."""
    oracle, sgd = make_oracle(), optax.sgd(0.1, momentum=0.9)
    grads = oracle(params, *args)
    transforms = [
        mtlopt.backtracking(mtlopt.mgda(3)),
        mtlopt.fast_backtracking(mtlopt.mgda(3), calibrate=True),
        optax.chain(mtlopt.upgrad(3), mtlopt.per_label(sgd, LABELS)),
    ]
    names = sorted(set(ROUTES) - MIXES_DTYPES_IN_OPTAX)
    transforms += [METHODS[name].make(3, labels=LABELS) for name in names]
    for transform in transforms:
        transform.update(grads, transform.init(params), params)
    blocks = mtlopt.alternate_blocks(sgd, sgd, LABELS)
    mtlopt.block_step(oracle, blocks)(mtlopt.Run(params, blocks.init(params)), *args)
    tasks = mtlopt.individual_optimizers(sgd, 3, LABELS)
    run = mtlopt.Run(params, tasks.init(params))
    return mtlopt.individual_step(oracle, tasks)(run, *args)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_no_implicit_promotion_with_an_encoder(dtype):
    with strict(dtype):
        problem = make_params(), first(make_batches())
        problem = jax.tree.map(lambda leaf: jnp.asarray(leaf, dtype), problem)
        jax.eval_shape(of_wrappers, *problem)


@pytest.mark.slow
def test_nothing_is_nan_in_double_precision():
    """Compiled, where `jax_debug_nans` sees results only."""

    def run(inputs):
        each = lambda name: lambda case: updates_and_state(name, *case)  # noqa: E731
        return {name: jax.lax.map(each(name), inputs[name]) for name in METHODS}

    with jax.enable_x64(True), jax.debug_nans(True):
        inputs = {name: cases(name, np.float64) for name in METHODS}
        found = jax.jit(run, compiler_options=QUICK)(inputs)
        for leaf in jax.tree.leaves(found):
            if jnp.issubdtype(leaf.dtype, jnp.inexact):
                assert np.all(np.isfinite(leaf))


@pytest.mark.slow
@methods
def test_nothing_is_nan_operation_by_operation(name):
    """Nor is any intermediate result, which a later `where` would hide."""
    with jax.debug_nans(True), jax.disable_jit():
        for case in zip(*cases(name, np.float32), strict=True):
            updates_and_state(name, *case)
