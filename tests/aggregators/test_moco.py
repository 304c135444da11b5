"""MoCo: tracked gradients and the weights that follow them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import mtlopt
from mtlopt import TaskGrads
from mtlopt.aggregators.moco import moco
from mtlopt.aggregators.modo import modo
from mtlopt.rows.arithmetic import moving_average
from tests.aggregators.test_modo import project
from tests.linalg.matrices import random_rows


def run(tx, batches, presents=None):
    update = jax.jit(
        lambda rows, present, state: tx.update(
            TaskGrads.from_rows(rows, present=present), state
        )
    )
    state, history = tx.init(jnp.zeros(batches[0].shape[1])), []
    for i, rows in enumerate(batches):
        present = None if presents is None else jnp.asarray(presents[i])
        updates, state = update(jnp.asarray(rows), present, state)
        history.append((updates, state))
    return history


def noisy(steps=5, num_tasks=3):
    return [random_rows(seed, num_tasks).astype(np.float32) for seed in range(steps)]


@pytest.mark.parametrize("ratio", [1.0, 1e3])
def test_trajectory(ratio):
    """y <- b y + (1-b) g; w <- P(w - gamma (Y Y' + rho) w); d = Y' w, y[0] = g[0]."""
    batches = [rows * np.float32([[ratio], [1], [1]]) for rows in noisy()]
    tracked, weights, rate = batches[0], np.full(3, 1 / 3), 0.02 / ratio**2
    history = run(moco(3, "shared", 0.7, rate, 0.5), batches)
    for rows, (updates, state) in zip(batches, history, strict=True):
        tracked = 0.7 * tracked + 0.3 * rows
        slope = tracked @ (weights @ tracked) + 0.5 * weights
        weights = project(weights - rate * slope)
        np.testing.assert_allclose(state.tracked[0], tracked, rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose(state.task_weights, weights, rtol=1e-3, atol=1e-5)
        expected = weights @ tracked
        np.testing.assert_allclose(updates, expected, rtol=1e-3, atol=1e-4 * ratio)


def test_without_memory_it_is_modo_on_one_batch():
    pairs = zip(
        run(moco(3, "shared", decay=0.0), noisy()), run(modo(3), noisy()), strict=True
    )
    for (left, state), (right, expected) in pairs:
        np.testing.assert_allclose(left, right, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(state.shares, expected.shares, atol=1e-6)


def test_first_update_and_equal_gradients_are_of_full_length():
    rows = np.tile(np.float32([3.0, -4.0]), (4, 1))
    for updates, state in run(moco(4, "shared"), [rows] * 3):
        np.testing.assert_allclose(updates, rows[0], rtol=1e-6)
        np.testing.assert_allclose(state.task_weights, 0.25, rtol=1e-6)
    single = run(moco(1, "shared"), [rows[:1], 0 * rows[:1]])
    np.testing.assert_allclose(single[1][0], 0.5 * rows[0], rtol=1e-6)


def test_degenerate_rows_stay_finite():
    """Zero, opposed and huge gradients; NaN stays visible."""
    for rows in (np.zeros((3, 2)), [[1, 1], [-1, -1], [0, 0]], 1e12 * np.ones((3, 2))):
        rows = np.asarray(rows, np.float32)
        updates, state = run(moco(3, "shared"), [rows] * 3)[-1]
        assert np.all(np.isfinite(updates))
        np.testing.assert_allclose(state.shares.sum(), 1, rtol=1e-6)
    assert np.all(np.isnan(run(moco(3, "shared"), [np.nan * rows])[-1][0]))


def test_absent_tasks_keep_their_average():
    """The same bits, NaN or not; the others do as if it did not exist."""
    batches, keep = noisy(), np.array([True, False, True])
    spoilt = [np.where(keep[:, None], rows, np.nan) for rows in batches]
    first = batches[0]
    presents = [np.ones(3, bool)] + [keep] * 4
    history = run(moco(3, "shared", learning_rate=0.02), [first, *spoilt[1:]], presents)
    for _, state in history:
        np.testing.assert_array_equal(state.tracked[0][1], first[1])
        assert state.shares[1] == history[0][1].shares[1]
    assert state.task_weights[1] == 0
    never = run(moco(3, "shared", learning_rate=0.02), spoilt, [keep] * 5)
    alone = run(moco(2, "shared", learning_rate=0.02), [rows[keep] for rows in batches])
    for (found, state), (expected, _) in zip(never, alone, strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
        np.testing.assert_array_equal(state.seen, keep)


def test_late_tasks_start_at_their_first_gradient():
    batches, late = noisy(3), np.array([True, False, True])
    presents = [late, late, np.ones(3, bool)]
    state = run(moco(3, "shared"), batches, presents)[-1][1]
    np.testing.assert_allclose(state.tracked[0][1], batches[2][1], rtol=1e-6)


def test_the_average_is_kept_wide():
    """bfloat16 rows, float32 average, bfloat16 updates."""
    rows = jax.ShapeDtypeStruct((2, 3), jnp.bfloat16)
    tx = moco(2, "shared")
    updates, state = jax.eval_shape(
        lambda rows: tx.update(TaskGrads.from_rows(rows), tx.init(rows[0])), rows
    )
    assert updates.dtype == jnp.bfloat16
    assert state.tracked[0].dtype == jnp.float32


def test_moving_average_decays_geometrically(float64):
    """After n steps of g the start has weight b^n, for any shape of leaf."""
    start, rows = np.random.default_rng(0).normal(size=(2, 3, 2, 4))
    kept, seen = [jnp.asarray(start)], np.ones(3, bool)
    step = jax.jit(moving_average)
    for _ in range(4):
        kept = step(kept, [rows], seen, 0.9)
    expected = 0.9**4 * start + (1 - 0.9**4) * rows
    np.testing.assert_allclose(kept[0], expected, rtol=1e-12)


def test_only_where_the_rows_are_those_of_the_labels():
    """Latent rows of another shape are refused."""
    tx = mtlopt.in_latent_space(moco(2, "shared"))
    oracle = mtlopt.task_grad(
        mtlopt.stacked(lambda p, z, task: jnp.sum(z) * (task + 1.0), 2),
        "shared",
        encode=lambda p: jnp.outer(p, p),
    )
    params = jnp.ones(3)
    with pytest.raises(ValueError, match="`labels` must be the labels that"):
        tx.update(oracle(params), tx.init(params), params)


def test_state_can_be_donated():
    tx, rows = moco(2, "shared"), jnp.eye(2)
    update = jax.jit(
        lambda s: tx.update(TaskGrads.from_rows(rows), s)[1], donate_argnums=0
    )
    assert np.all(np.isfinite(update(update(tx.init(rows[0]))).shares))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"decay": 1.0}, r"`decay` must be at least 0 and below 1, got 1\.0"),
        ({"learning_rate": -1}, "`learning_rate` must be positive, got -1"),
        ({"regularization": -1}, "`regularization` must be at least 0, got -1"),
    ],
)
def test_bad_arguments(options, message):
    with pytest.raises(ValueError, match=message):
        moco(2, "shared", **options)
