"""Absent tasks: a method acts as if the problem did not have them."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import mtlopt
from mtlopt import METHODS
from tests.problems import (
    LABELS,
    LOSSES,
    QUICK,
    TASKS,
    assert_close,
    encode,
    first,
    make_batches,
    make_oracle,
    make_params,
    methods_of,
    updates_of,
)

PARAMS, BATCHES = make_params(), make_batches()
PRESENT = np.array([True, False, True])


def spoilt(batches):
    """The labels of task b are NaN, and so are its loss and all its gradients."""
    x, y, mask = batches
    y = y.copy()
    y[..., 1] = np.nan
    return x, y, mask


@functools.cache
def masked():
    return updates_of(
        make_oracle(), PARAMS, spoilt(BATCHES), present=PRESENT, names=methods_of(2)
    )


@functools.cache
def without():
    """The problem of tasks a and c alone."""
    few = ("a", "c")
    oracle = mtlopt.task_grad(
        {task: LOSSES[task] for task in few},
        {"encoder": "shared", **{f"heads/{task}": task for task in few}},
        encode=encode,
    )
    heads = {task: PARAMS["heads"][task] for task in few}
    params = PARAMS | {"heads": heads}
    return updates_of(oracle, params, BATCHES, names=methods_of(2))


@pytest.mark.parametrize("name", methods_of(2))
def test_absent_task_is_left_out(name):
    """A(J with row b masked) = A(J without row b), also where b is NaN."""
    expected, found = without()[name], masked()[name]
    assert_close(found["encoder"], expected["encoder"])
    assert_close({t: found["heads"][t] for t in "ac"}, expected["heads"])
    assert all(np.all(leaf == 0) for leaf in jax.tree.leaves(found["heads"]["b"]))


@pytest.mark.parametrize("name", ["mgda", "mean_tasks"])
def test_absent_is_not_zero(name):
    """A zero gradient stops MGDA and shortens the mean; an absent one does not."""
    rows = np.random.default_rng(0).normal(size=(3, 4))
    rows[1] = 0
    grads = mtlopt.TaskGrads.from_rows(rows)
    absent = mtlopt.TaskGrads.from_rows(rows, present=PRESENT)
    method = METHODS[name].make(3)
    state = method.init(np.zeros(4))
    zero = method.update(grads, state)[0]
    left_out = method.update(absent, state)[0]
    assert np.linalg.norm(left_out) > 1.4 * np.linalg.norm(zero)


@functools.cache
def options_run(option):
    """Masked runs by every route that handles absent rows on its own."""
    oracle = {
        "streaming": lambda: make_oracle(streaming=True),
        "vmap": lambda: make_oracle(batching="vmap"),
        "independent": lambda: mtlopt.task_grad(
            {
                task: lambda params, *args, loss=loss: loss(
                    params, encode(params, *args), *args
                )
                for task, loss in LOSSES.items()
            },
            LABELS,
        ),
        "microbatches": lambda: mtlopt.task_grad(
            {
                task: lambda params, z, batch, loss=loss: loss(params, z, *batch)
                for task, loss in LOSSES.items()
            },
            LABELS,
            encode=lambda params, batch: encode(params, *batch),
            microbatches=2,
        ),
    }[option]()
    names = ["sum_tasks", "aligned_mtl"]
    names += [] if option == "independent" else ["aligned_mtl_ub"]
    batches = (spoilt(BATCHES),) if option == "microbatches" else spoilt(BATCHES)
    return updates_of(oracle, PARAMS, batches, present=PRESENT, names=names)


@pytest.mark.parametrize("option", ["streaming", "vmap", "independent", "microbatches"])
def test_absent_nan_task_is_left_out_on_every_route(option):
    for name, found in options_run(option).items():
        assert_close(found, masked()[name])


def test_stacked_heads(float64):
    """The absent task's slice of a stacked leaf gets zeros."""
    params = {"w": np.array([1.0, 2.0]), "heads": np.ones((3, 2))}
    oracle = mtlopt.task_grad(
        mtlopt.stacked(
            lambda p, z, task, y: jnp.vdot(p["heads"], z) * jnp.asarray(y)[task], 3
        ),
        {"w": "shared", "heads": "stacked"},
        encode=lambda p, y: p["w"],
    )
    grads = oracle(params, np.array([1.0, np.nan, 3.0]), present=PRESENT)
    total = grads.total()
    np.testing.assert_allclose(total["heads"], [[1, 2], [0, 0], [3, 6]])
    np.testing.assert_allclose(total["w"], [4, 4])


def test_nobody_present_moves_nothing(float64):
    for name in methods_of(3):
        tx = METHODS[name].make(3, labels=LABELS)

        def update(params):
            grads = make_oracle()(params, *first(BATCHES), present=np.zeros(3, bool))
            return tx.update(grads, tx.init(params), params)[0]

        for leaf in jax.tree.leaves(jax.jit(update, compiler_options=QUICK)(PARAMS)):
            assert np.all(leaf == 0), name


def test_present_may_be_traced(float64):
    """One program for all masks."""
    oracle = make_oracle()
    step = jax.jit(
        lambda present: oracle(PARAMS, *first(BATCHES), present=present).total()
    )
    for task, mask in zip(TASKS, np.eye(3, dtype=bool), strict=True):
        heads = step(mask)["heads"]
        moved = {name for name in TASKS if np.any(heads[name]["w"])}
        assert moved == {task}
    assert step._cache_size() == 1


def test_active_names_what_moves(float64):
    """The mapping that `per_label` takes: only labels that have leaves."""
    oracle = make_oracle()
    assert oracle(PARAMS, *first(BATCHES)).active is None
    active = oracle(PARAMS, *first(BATCHES), present=PRESENT).active
    assert {key: bool(value) for key, value in active.items()} == {
        "shared": True,
        "a": True,
        "b": False,
        "c": True,
    }
    nobody = oracle(PARAMS, *first(BATCHES), present=np.zeros(3)).active
    assert not any(nobody.values())

    headless = mtlopt.task_grad(
        {"a": lambda p, z: p["a"] * z, "b": lambda p, z: z},
        {"w": "shared", "a": "a"},
        encode=lambda p: p["w"],
        headless=["b"],
    )
    params = {"w": 1.0, "a": 1.0}
    assert set(headless(params, present=[True, True]).active) == {"shared", "a"}
    stacked = mtlopt.task_grad(
        mtlopt.stacked(lambda p, z, task: jnp.sum(p["heads"] * z), 2),
        {"w": "shared", "heads": "stacked"},
        encode=lambda p: p["w"],
    )
    params = {"w": jnp.ones(()), "heads": jnp.ones((2, 1))}
    active = stacked(params, present=[True, False]).active
    np.testing.assert_array_equal(active["stacked"], [True, False])
