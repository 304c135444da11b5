"""FairGrad: reference values, identities, edge cases of the transform."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mtlopt.aggregators.fairgrad import fairgrad, fairgrad_weights
from mtlopt.aggregators.nash_mtl import nash_mtl_weights
from mtlopt.task_grads import TaskGrads
from tests import reference
from tests.linalg.matrices import gramian, structured

solve = jax.jit(fairgrad_weights)


@pytest.mark.parametrize("alpha", [1, 2])
def test_reference_vector(alpha, dtype):
    """A(J) is the 512-bit value, in both precisions."""

    def weights_of(_case, matrix, present):
        return solve(matrix, dtype(alpha), present)

    assert not reference.beyond_tolerance(f"fairgrad_a{alpha}", weights_of, dtype)


def test_is_nash_for_alpha_one(dtype):
    """alpha = 1 is Nash-MTL without clipping."""
    matrix = gramian(structured("random", 8), dtype)
    np.testing.assert_allclose(
        solve(matrix, dtype(1), None), nash_mtl_weights(matrix), rtol=1e-5
    )


@functools.partial(jax.jit, static_argnums=0)
def step(aggregator, rows, present=None):
    grads = TaskGrads.from_rows(rows, present=present)
    return aggregator.update(grads, aggregator.init(jnp.zeros(2)))


@pytest.mark.parametrize("alpha", [0.5, 1.0, 2.0])
def test_length_on_equal_gradients(alpha):
    """T^(1/(1+alpha)) |g|^(-2 alpha/(1+alpha)) g."""
    gradient = np.array([3.0, 4.0])
    rows = np.tile(gradient, (3, 1)).astype(np.float32)
    update, state = step(fairgrad(3, alpha), rows)
    power = 1 / (1 + alpha)
    np.testing.assert_allclose(update, 3**power * 5 ** (2 * power - 2) * gradient, 1e-5)
    assert state.task_weights.shape == (3,)


def test_an_absent_task_is_as_if_it_did_not_exist():
    """Its row may be NaN; the others get what they get alone."""
    rows = np.array([[1.0, 2.0], [np.nan, np.nan], [2.0, -0.5]], np.float32)
    update, state = step(fairgrad(3, 2.0), rows, np.array([True, False, True]))
    weights = jax.jit(fairgrad_weights)(gramian(rows[[0, 2]], np.float32), 2.0)
    np.testing.assert_allclose(update, weights @ rows[[0, 2]], rtol=1e-5)
    assert state.task_weights[1] == 0


def test_a_saturated_task_does_not_stop_the_others():
    """A zero row gets weight zero; the others bargain as if alone."""
    rows = np.array([[1.0, 2.0], [0.0, 0.0], [2.0, -0.5]], np.float32)
    weigh = jax.jit(fairgrad_weights)
    found = np.asarray(weigh(gramian(rows, np.float32), 2.0))
    expected = weigh(gramian(rows[[0, 2]], np.float32), 2.0)
    assert found[1] == 0
    np.testing.assert_allclose(found[[0, 2]], expected, rtol=1e-5)


def test_bad_arguments():
    with pytest.raises(ValueError, match="`alpha` must be positive, got 0"):
        fairgrad(2, alpha=0)
    with pytest.raises(ValueError, match="`num_tasks` must be at least 1, got 0"):
        fairgrad(0)
    fairgrad(2, alpha=jnp.float32(1.0))  # an injected hyperparameter passes


def test_preference_by_name():
    """w = (p / |g|^(2 alpha))^(1 / (1 + alpha)) on orthogonal gradients."""
    rows = np.diag([2.0, 0.5]).astype(np.float32)
    for alpha in (1.0, 2.0):
        tx = fairgrad(2, alpha, preference={"1": 1.0, "0": 8.0})
        _, state = step(tx, rows)
        expected = (np.array([8, 1]) / np.diag(rows) ** (2 * alpha)) ** (
            1 / (1 + alpha)
        )
        np.testing.assert_allclose(state.task_weights, expected, rtol=1e-5)
