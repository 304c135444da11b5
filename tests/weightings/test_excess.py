"""ExcessMTL against its formulas in NumPy, units, absent tasks."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mtlopt import TaskGrads
from mtlopt.weightings.excess import weight_by_excess
from tests.linalg.matrices import random_rows


def run(weighting, batches, presents=None):
    """Weights in force at every step and the last state."""
    update = jax.jit(
        lambda rows, present, state: weighting.update(
            TaskGrads.from_rows(rows, present=present), state
        )
    )
    state, weights = weighting.init(jnp.zeros(batches[0].shape[1])), []
    for i, rows in enumerate(batches):
        present = None if presents is None else jnp.asarray(presents[i])
        grads, state = update(jnp.asarray(rows), present, state)
        np.testing.assert_array_equal(grads.loss_scales, state.task_weights)
        weights.append(np.asarray(grads.loss_scales))
    return np.stack(weights), state


def noisy(dtype=np.float32, steps=5, num_tasks=3):
    """Gradients that shrink at different rates."""
    rates = np.array([[0.5], [0.9], [1.0]])[:num_tasks]
    return [
        (rates**step * random_rows(step, num_tasks)).astype(dtype)
        for step in range(steps)
    ]


def test_trajectory(dtype):
    """S += g^2; E = g S^(-1/2) g; w <- T w exp(eta E / E_0) / sum; ones at first."""
    batches = noisy(dtype)
    found, state = run(weight_by_excess(3, "shared", 0.7), batches)
    total, first, weights = 0.0, None, np.ones(3)
    for step, rows in enumerate(np.asarray(batches, np.float64)):
        total = total + rows**2
        excess = np.sum(rows**2 / np.sqrt(total), axis=1)
        first = excess if first is None else first
        weights = weights * np.exp(0.7 * excess / first)
        weights *= 3 / weights.sum()
        np.testing.assert_allclose(found[step], weights, rtol=1e-4)
    np.testing.assert_array_equal(found[0], 1)
    np.testing.assert_allclose(state.squares[0], total, rtol=1e-5)
    assert np.ptp(found[-1]) > 0.5


@pytest.mark.parametrize("units", [[1e-12] * 3, [1e12] * 3, [1e-3, 1.0, 1e3]])
def test_units_of_the_losses_cancel(units, dtype):
    units = np.array(units, dtype)[:, None]
    expected, _ = run(weight_by_excess(3, "shared", 0.7), noisy(dtype))
    scaled = [units * rows for rows in noisy(dtype)]
    found, _ = run(weight_by_excess(3, "shared", 0.7), scaled)
    np.testing.assert_allclose(found, expected, rtol=1e-4)


def test_zero_gradients_count_as_unchanged():
    """A task without a first risk has ratio 1, elements that never moved none."""
    first, later = np.float32([[3, 0], [0, 0]]), np.float32([[3, 0], [0, 5]])
    weights, state = run(weight_by_excess(2, "shared", 1.0), [first, later, 0 * later])
    np.testing.assert_array_equal(weights[0], 1)
    growth = np.exp([1 / np.sqrt(2), 1.0])  # the first risk of task 1 is that of step 2
    np.testing.assert_allclose(weights[1], 2 * growth / growth.sum(), rtol=1e-5)
    np.testing.assert_allclose(weights[2], weights[1], rtol=1e-5)
    np.testing.assert_allclose(state.initial, [3, 5], rtol=1e-6)
    single, _ = run(weight_by_excess(1, "shared"), [first[:1]] * 3)
    np.testing.assert_array_equal(single, 1)


def test_a_weight_can_come_back():
    """After steps that drive it to nothing, as far as float32 goes."""
    low, high = np.float32([[1, 0], [0, 0]]), np.float32([[0, 0], [0, 9]])
    low_first = np.float32([[1, 0], [0, 1]])
    batches = [low_first] + [low] * 3 + [high] * 3
    weights, _ = run(weight_by_excess(2, "shared", 300.0), batches)
    assert np.all(np.isfinite(weights))
    assert weights[3, 1] < 1e-30
    assert weights[-1, 1] > 1.9


def test_absent_tasks_keep_their_weight():
    """The same bits, NaN or not; the others share what is left as if alone."""
    batches, keep = noisy(), np.array([True, False, True])
    spoilt = [np.where(keep[:, None], rows, np.nan) for rows in batches]
    masked, state = run(weight_by_excess(3, "shared", 0.7), spoilt, [keep] * 5)
    alone, _ = run(weight_by_excess(2, "shared", 0.7), [rows[keep] for rows in batches])
    np.testing.assert_allclose(masked[:, keep], alone, rtol=1e-5)
    np.testing.assert_array_equal(masked[:, 1], 1)
    np.testing.assert_array_equal(state.squares[0][1], 0)
    presents = [np.ones(3, bool)] * 2 + [keep] * 2 + [np.zeros(3, bool)]
    mixed, _ = run(weight_by_excess(3, "shared", 0.7), batches, presents)
    np.testing.assert_array_equal(mixed[2:, 1], mixed[1, 1])
    np.testing.assert_array_equal(mixed[4], mixed[3])
    np.testing.assert_allclose(mixed.sum(axis=1), 3, rtol=1e-6)
    assert abs(mixed[3, 0] - mixed[1, 0]) > 0.05


def test_nan_stays_visible():
    batches = [rows * np.float32([[1], [np.nan], [1]]) for rows in noisy(steps=1)]
    assert np.all(np.isnan(run(weight_by_excess(3, "shared"), batches)[0]))


def test_bad_arguments():
    with pytest.raises(ValueError, match="`learning_rate` must be positive, got 0"):
        weight_by_excess(2, "shared", 0)
    weighting = weight_by_excess(2, "shared")
    grads = TaskGrads.from_rows(jnp.ones((2, 3)))
    with pytest.raises(ValueError, match="`labels` must be the labels that"):
        weighting.update(grads, weighting.init(jnp.zeros(4)))
