"""CAGrad: reference values, rescaling, guarantees, edge cases of the transform."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mtlopt.aggregators.cagrad import cagrad, cagrad_weights
from mtlopt.task_grads import TaskGrads
from tests import reference
from tests.linalg.matrices import gramian, structured


@jax.jit
def solve(matrix, c, present=None):
    return cagrad_weights(matrix, c, present=present)


@pytest.mark.parametrize("c", [0.4, 0.5])
def test_reference_vector(c, dtype):
    """A(J) is the 512-bit value, in both precisions."""

    def weights_of(_case, matrix, present):
        return solve(matrix, dtype(c), present)

    method = "cagrad_c" + str(c).replace(".", "")
    assert not reference.beyond_tolerance(method, weights_of, dtype)


@pytest.mark.parametrize("c", [0.4, 0.5])
def test_a_zero_row_leaves_the_nearest_best_direction(c, dtype):
    """Where many directions are best: the reference's choice, nearest to the mean."""
    rows = reference.jacobian("zero_row_m3")
    weights = solve(gramian(rows, dtype), dtype(c))
    method = "cagrad_c" + str(c).replace(".", "")
    assert reference.error("zero_row_m3", method, np.asarray(weights) @ rows) <= 1e-5


@functools.partial(jax.jit, static_argnums=0)
def step(aggregator, rows, present=None):
    grads = TaskGrads.from_rows(rows, present=present)
    return aggregator.update(grads, aggregator.init(jnp.zeros(2)))


@pytest.mark.parametrize(("rescale", "factor"), [(0, 1.4), (1, 1.4 / 1.16), (2, 1.0)])
def test_length_on_equal_gradients(rescale, factor):
    """(1 + c) g, divided by 1, 1 + c^2 or 1 + c."""
    gradient = np.array([3.0, -4.0], np.float32)
    update, state = step(cagrad(3, c=0.4, rescale=rescale), np.tile(gradient, (3, 1)))
    np.testing.assert_allclose(update, factor * gradient, rtol=1e-5)
    assert state.task_weights.shape == (3,)


def test_improves_the_worst_task():
    """min_i <g_i, d> grows with c, and is that of the mean for c = 0."""
    rows = structured("random", 8)
    rows = rows - 0.9 * rows.mean(axis=0)
    matrix = gramian(rows, np.float32)
    worst = [
        np.min(rows @ (np.asarray(solve(matrix, np.float32(c))) @ rows))
        for c in (0.0, 0.3, 0.6, 0.9)
    ]
    np.testing.assert_allclose(worst[0], np.min(rows @ rows.mean(axis=0)), rtol=1e-4)
    assert np.all(np.diff(worst) > 0)


def test_zero_mean_gives_zero(dtype):
    """Rows that sum to zero: the ball is a point."""
    rows = structured("sum_zero", 8)
    direction = np.asarray(solve(gramian(rows, dtype), dtype(0.4))) @ rows
    assert np.linalg.norm(direction) <= 1e-5 * np.linalg.norm(rows)


def test_an_absent_task_is_as_if_it_did_not_exist():
    """Its row may be NaN, and the mean is that of the others."""
    rows = np.array([[1.0, 2.0], [np.nan, np.nan], [2.0, -0.5]], np.float32)
    update, state = step(cagrad(3), rows, np.array([True, False, True]))
    weights = solve(gramian(rows[[0, 2]], np.float32), np.float32(0.4))
    np.testing.assert_allclose(update, weights @ rows[[0, 2]], rtol=1e-5)
    assert state.task_weights[1] == 0


def test_bad_arguments():
    with pytest.raises(ValueError, match="`c` must be at least 0, got -1"):
        cagrad(2, c=-1)
    with pytest.raises(ValueError, match="`rescale` must be one of 0, 1, 2, got 3"):
        cagrad(2, rescale=3)  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="`num_tasks` must be at least 1, got 0"):
        cagrad(0)
    cagrad(2, c=jnp.float32(0.4))  # an injected hyperparameter passes
