"""Balanced norms, and DB-MTL made of them."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from mtlopt import TaskGrads
from mtlopt.aggregators.balance_norms import balance_norms, balance_norms_weights
from mtlopt.weightings.log import weight_by_log
from tests.linalg.matrices import KINDS, padded_gramian, random_rows, structured

SIZE = 8
solve = jax.jit(balance_norms_weights)


def weights_of(rows, dtype):
    weights = solve(*padded_gramian(rows, dtype, SIZE))
    weights = np.asarray(weights, np.float64)
    assert np.all(weights[len(rows) :] == 0)
    return weights[: len(rows)]


@pytest.mark.parametrize("scale", [1e-12, 1.0, 1e12])
@pytest.mark.parametrize("kind", KINDS)
def test_all_rows_get_the_largest_norm(kind, scale, dtype):
    """|w_i g_i| = max |g_j|, at norm ratios up to 1e6; zero rows have no weight."""
    for num_tasks in (1, 3, 8):
        rows = structured(kind, num_tasks) * np.logspace(0, -6, num_tasks)[:, None]
        norms = np.linalg.norm(rows, axis=1)
        found = weights_of(scale * rows, dtype) * norms
        expected = np.where(norms > 0, norms.max(), 0)
        np.testing.assert_allclose(found, expected, rtol=1e-5)


def run(tx, batches, losses=None, presents=None):
    update = jax.jit(
        lambda rows, losses, present, state: tx.update(
            TaskGrads.from_rows(rows, losses, present), state
        )
    )
    state, history = tx.init(jnp.zeros(batches[0].shape[1])), []
    for i, rows in enumerate(batches):
        present = None if presents is None else jnp.asarray(presents[i])
        loss = None if losses is None else jnp.asarray(losses[i])
        updates, state = update(jnp.asarray(rows), loss, present, state)
        history.append((updates, state))
    return history


def balanced(rows):
    norms = np.linalg.norm(rows, axis=1, keepdims=True)
    return norms.max() * (rows / norms).sum(axis=0)


def noisy(steps=4):
    scales = np.float32([[1e3], [1.0], [1e-3]])
    return [scales * random_rows(seed, 3).astype(np.float32) for seed in range(steps)]


def test_update_is_the_sum_of_the_balanced_rows():
    """max |g| sum g_i / |g_i|, with and without state."""
    for tx in (balance_norms(3), balance_norms(3, "shared")):
        for rows, (updates, _) in zip(noisy(), run(tx, noisy()), strict=True):
            np.testing.assert_allclose(updates, balanced(rows), rtol=1e-4, atol=1e-2)


def test_averages_are_balanced():
    """y <- b y + (1 - b) g from y = g, then the same of y."""
    average, history = noisy()[0], run(balance_norms(3, "shared", 0.7), noisy())
    for rows, (updates, state) in zip(noisy(), history, strict=True):
        average = 0.7 * average + 0.3 * rows
        np.testing.assert_allclose(updates, balanced(average), rtol=1e-4, atol=1e-2)
        np.testing.assert_allclose(state.average[0], average, rtol=1e-4)


def test_equal_and_opposed_gradients():
    """T equal gradients g give T g; g and -2 g cancel; zeros give zero."""
    rows = np.tile(np.float32([3.0, -4.0]), (3, 1))
    np.testing.assert_allclose(run(balance_norms(3), [rows])[0][0], 3 * rows[0])
    opposed = np.float32([[1], [-2]]) * rows[:2]
    np.testing.assert_allclose(run(balance_norms(2), [opposed])[0][0], 0, atol=1e-5)
    np.testing.assert_array_equal(run(balance_norms(3), [0 * rows])[0][0], 0)


@pytest.mark.parametrize("options", [{}, {"labels": "shared", "decay": 0.7}])
def test_absent_tasks_are_left_out(options):
    """NaN or not, the others do as if it did not exist; its average is kept."""
    batches, keep = noisy(), np.array([True, False, True])
    spoilt = [np.where(keep[:, None], rows, np.nan) for rows in batches]
    masked = run(balance_norms(3, **options), spoilt, presents=[keep] * 4)
    alone = run(balance_norms(2, **options), [rows[keep] for rows in batches])
    for (found, state), (expected, _) in zip(masked, alone, strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-2)
        assert state.task_weights[1] == 0
    if options:
        presents = [np.ones(3, bool), keep]
        kept = run(balance_norms(3, **options), [batches[0], spoilt[1]], None, presents)
        np.testing.assert_array_equal(kept[1][1].average[0][1], batches[0][1])


@pytest.mark.parametrize("options", [{}, {"labels": "shared", "decay": 0.5}])
def test_db_mtl_does_not_see_the_units_of_the_losses(options):
    """chain(log, balance): losses times c, and so their gradients, change nothing."""
    units = np.array([1e-3, 1.0, 1e3], np.float32)
    losses = np.random.default_rng(0).uniform(0.5, 2, (4, 3)).astype(np.float32)
    tx = optax.chain(weight_by_log(3), balance_norms(3, **options))
    expected = run(tx, noisy(), losses)
    scaled = [units[:, None] * rows for rows in noisy()]
    for (found, _), (plain, _) in zip(
        run(tx, scaled, units * losses), expected, strict=True
    ):
        size = np.abs(plain).max()
        np.testing.assert_allclose(found, plain, rtol=0, atol=1e-4 * size)


def test_nan_stays_visible():
    assert np.all(np.isnan(solve(jnp.full((3, 3), jnp.nan))))
    one = np.eye(3, dtype=np.float32)
    one[1, 1] = np.nan
    assert np.all(np.isnan(solve(one)))


def test_state_can_be_donated():
    tx, rows = balance_norms(2, "shared", 0.5), jnp.eye(2)
    update = jax.jit(
        lambda s: tx.update(TaskGrads.from_rows(rows), s)[1], donate_argnums=0
    )
    assert np.all(np.isfinite(update(update(tx.init(rows[0]))).task_weights))


def test_bad_arguments():
    with pytest.raises(ValueError, match="`decay` must be at least 0 and below 1, got"):
        balance_norms(2, "shared", decay=1.0)
    with pytest.raises(ValueError, match="`labels` must be given if `decay` is not 0"):
        balance_norms(2, decay=0.5)
    tx = balance_norms(2, "shared", 0.5)
    grads = TaskGrads.from_rows(jnp.ones((2, 3)))
    with pytest.raises(ValueError, match="`labels` must be the labels that"):
        tx.update(grads, tx.init(jnp.zeros(4)))
