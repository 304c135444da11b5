"""TaskGrads: what weightings and aggregators see, and that it is no gradient."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import mtlopt
from mtlopt import TaskGrads
from tests.problems import (
    LABELS,
    QUICK,
    TASKS,
    assert_close,
    first,
    gradient_of,
    losses_of,
    make_batches,
    make_oracle,
    make_params,
    stack_heads,
)

PARAMS, ARGS = make_params(), first(make_batches())
ROWS = {"w": jnp.array([[1.0, 0.0], [-2.0, 4.0]]), "b": jnp.array([3.0, 5.0])}


def test_from_rows_is_the_jacobian():
    """Rows, Gramian and combinations of given leaves `[tasks, ...]`."""
    grads = TaskGrads.from_rows(ROWS)
    assert_close(grads.rows().gramian(), np.array([[10.0, 13.0], [13.0, 45.0]]))
    assert_close(grads.jacobian(), ROWS)
    expected = {"w": jnp.array([-5.0, 12.0]), "b": jnp.array(18.0)}
    assert_close(grads.combine(jnp.array([1.0, 3.0])), expected)
    assert_close(grads.updates(grads.rows().combine(jnp.array([1.0, 3.0]))), expected)
    assert_close(grads.total(), jax.tree.map(lambda leaf: leaf.sum(axis=0), ROWS))
    assert grads.tasks == ("0", "1")


def stack_rows(gradients):
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *gradients)


@pytest.mark.parametrize("form", ["separate", "stacked"])
def test_from_rows_of_one_gradient_a_task_is_the_oracle(form, float64):
    """jax.grad of each loss, stacked: trunk and heads move as by `task_grad`."""
    gradients = [gradient_of(task, PARAMS, *ARGS) for task in TASKS]
    params, labels = PARAMS, LABELS
    if form == "stacked":
        gradients = [stack_heads(gradient) for gradient in gradients]
        params, labels = stack_heads(PARAMS), {"encoder": "shared", "heads": "stacked"}
    present = [True, False, True]
    for options in ({}, {"present": present}):
        grads = TaskGrads.from_rows(
            stack_rows(gradients),
            losses_of(PARAMS, *ARGS),
            labels=labels,
            tasks=TASKS,
            **options,
        )
        oracle = make_oracle()(PARAMS, *ARGS, **options)
        assert grads.tasks == oracle.tasks
        for name in ("sum_tasks", "aligned_mtl", "dwa"):
            tx = mtlopt.METHODS[name].make(3, labels=labels)
            found = tx.update(grads, tx.init(params), params)[0]
            tx = mtlopt.METHODS[name].make(3, labels=LABELS)
            expected = tx.update(oracle, tx.init(PARAMS), PARAMS)[0]
            if form == "stacked":
                expected = stack_heads(expected)
            assert_close(found, expected, 1e-8)


def test_rows_of_frozen_leaves_are_not_read():
    """Their gradients neither tell the tasks apart nor move them, whatever the type."""
    frozen = {"deep": jnp.full((2, 3), 7.0), "index": jnp.ones((2, 4), jnp.int8)}
    rows, labels = ROWS | {"frozen": frozen}, {"frozen": "frozen", "*": "shared"}
    grads, bare = TaskGrads.from_rows(rows, labels=labels), TaskGrads.from_rows(ROWS)
    assert_close(grads.rows().gramian(), bare.rows().gramian())
    assert grads.loss_scales.dtype == jnp.float32
    update = grads.total()
    for name, still in update.pop("frozen").items():
        assert still.dtype == frozen[name].dtype
        np.testing.assert_array_equal(still, np.zeros(frozen[name].shape[1:]))
    assert_close(update, bare.total())


@pytest.mark.parametrize(
    ("labels", "leaf"),
    [
        ({"w": "shared", "h": "a"}, jnp.array([1.0, 2.0])),
        ({"w": "shared", "h": "stacked"}, jnp.array([[1.0, 0.0], [3.0, 1.0]])),
    ],
)
def test_rows_of_a_head_that_another_task_moves_are_refused(labels, leaf):
    rows = {"w": jnp.eye(2), "h": leaf}
    with pytest.raises(ValueError, match=r"`rows` must be zero at `h`.*labelled"):
        TaskGrads.from_rows(rows, labels=labels, tasks=("a", "b"))


def test_scales_multiply():
    """Two weightings in a chain are the product of their factors."""
    grads = TaskGrads.from_rows(ROWS).scale_by(jnp.array([2.0, 3.0]))
    twice = grads.scale_by(jnp.array([0.5, -1.0]))
    assert_close(twice.loss_scales, jnp.array([1.0, -3.0]))
    assert_close(twice.total()["b"], jnp.array(3.0 - 15.0))
    assert_close(grads.jacobian()["b"], jnp.array([6.0, 15.0]))
    assert_close(twice.losses, grads.losses)


def test_absent_rows_are_zero_rows_even_from_nan():
    rows = {"w": jnp.array([[1.0, 2.0], [jnp.nan, jnp.inf]])}
    grads = TaskGrads.from_rows(rows, present=[True, False])
    assert_close(grads.jacobian()["w"], jnp.array([[1.0, 2.0], [0.0, 0.0]]))
    assert_close(grads.total()["w"], jnp.array([1.0, 2.0]))


def test_jacobian_over_the_shared_leaves(float64):
    """Row i is the gradient of loss i; None at the heads."""
    grads = make_oracle()(PARAMS, *ARGS).scale_by(jnp.array([1.0, 2.0, 4.0]))
    jacobian = grads.jacobian()
    assert jacobian["heads"]["a"] == {"w": None, "b": None}
    for i, scale in enumerate([1.0, 2.0, 4.0]):
        row = grads.combine(jnp.eye(3)[i])["encoder"]
        assert_close(
            jax.tree.map(lambda leaf: leaf[i], jacobian["encoder"]), row, 1e-12
        )
        alone = make_oracle().task(i, PARAMS, *ARGS).grad["encoder"]
        assert_close(row, jax.tree.map(lambda leaf: scale * leaf, alone), 1e-12)


@pytest.mark.slow
def test_crosses_jit_vmap_and_scan(float64):
    """A pytree: it may be made in one program and used in another."""
    oracle, tx = make_oracle(), mtlopt.aligned_mtl(3)

    def compiled(function):
        return jax.jit(function, compiler_options=QUICK)

    def update(grads):
        return tx.update(grads, tx.init(PARAMS), PARAMS)[0]

    expected = compiled(lambda *args: update(oracle(PARAMS, *args)))(*ARGS)
    grads = compiled(oracle)(PARAMS, *ARGS)
    assert_close(compiled(update)(grads), expected, 1e-10)

    seeds = [make_params(seed) for seed in (0, 1)]
    stacked = jax.tree.map(lambda *leaves: np.stack(leaves), *seeds)
    grads = compiled(jax.vmap(lambda params: oracle(params, *ARGS)))(stacked)
    updates = compiled(jax.vmap(update))(grads)
    assert_close(jax.tree.map(lambda leaf: leaf[0], updates), expected, 1e-10)

    @compiled
    def scanned(batches):
        return jax.lax.scan(lambda c, args: (c, oracle(PARAMS, *args)), 0, batches)[1]

    grads = scanned(jax.tree.map(lambda leaf: leaf[:2], make_batches()))
    updates = compiled(jax.vmap(update))(grads)
    assert_close(jax.tree.map(lambda leaf: leaf[0], updates), expected, 1e-10)


def test_is_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        TaskGrads.from_rows(ROWS).losses = 0


def test_guard_is_the_leaf_that_refuses_arithmetic():
    """A foreign transform meets a PRNG key among the leaves, and JAX raises."""
    grads = TaskGrads.from_rows(ROWS)
    keys = [
        leaf
        for leaf in jax.tree.leaves(grads)
        if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
    ]
    assert len(keys) == 1
    with pytest.raises(TypeError):
        jax.tree.map(lambda leaf: 0.5 * leaf, grads)
    # Without it the corruption would be silent.
    bare = dataclasses.replace(grads, guard=None)
    jax.tree.map(lambda leaf: 0.5 * leaf, bare)


def test_weighting_then_aggregator_then_optax(float64):
    """The one legal order: fixed weights w and a sum are SGD on sum_i w_i L_i."""
    tx = optax.chain(
        mtlopt.weight_by_fixed([2.0, 0.0, -1.0]), mtlopt.sum_tasks(3), optax.sgd(0.1)
    )
    updates, _ = tx.update(make_oracle()(PARAMS, *ARGS), tx.init(PARAMS), PARAMS)
    group = make_oracle().task(jnp.array([2.0, 0.0, -1.0]), PARAMS, *ARGS).grad
    assert_close(updates, jax.tree.map(lambda leaf: -0.1 * leaf, group), 1e-5)


@pytest.mark.parametrize(
    ("rows", "options", "message"),
    [
        ({}, {}, "`rows` must have at least one leaf"),
        (
            {"a": jnp.ones((2, 3)), "b": jnp.ones((3, 3))},
            {},
            r"same leading task axis.*\(2, 3\) at `a` and \(3, 3\) at `b`",
        ),
        ({"a": jnp.ones(())}, {}, r"same leading task axis.*\(\) at `a`"),
        (
            ROWS,
            {"losses": [1.0]},
            r"`losses` must have one entry per task, shape \(2,\)",
        ),
        (ROWS, {"present": [True]}, r"`present` must have one entry per task"),
        (ROWS, {"tasks": ("a",)}, "`tasks` must name the 2 rows, got 1"),
        (ROWS, {"tasks": ("a", "a")}, "in `tasks` must be different"),
        (ROWS, {"tasks": ("a", "frozen")}, "a string other than .*got 'frozen'"),
        (ROWS, {"labels": {"w": "shared", "b": "a"}}, "`b` must be one of.*got 'a'"),
        (ROWS, {"labels": {"w": "shared", "b": "stacked"}}, "`b` must have a leading"),
    ],
)
def test_bad_rows(rows, options, message):
    with pytest.raises(ValueError, match=message):
        TaskGrads.from_rows(rows, **options)
