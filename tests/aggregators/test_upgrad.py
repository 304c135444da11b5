"""UPGrad: reference values, closed forms and its guarantees at any ratio of norms."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import mtlopt
from mtlopt.aggregators.pcgrad import pcgrad_weights
from mtlopt.aggregators.upgrad import upgrad, upgrad_weights
from tests import reference
from tests.linalg.matrices import KINDS, padded_gramian, random_rows, structured

SIZE = reference.MAX_TASKS
solve = jax.jit(upgrad_weights)


def weights_of(rows, dtype, preference=None):
    """Weights of the rows among more tasks, of which the others are absent."""
    num_tasks = len(rows)
    preference = np.full(num_tasks, 1 / num_tasks) if preference is None else preference
    padded = reference.padded(preference, dtype)
    matrix, present = padded_gramian(rows, dtype, SIZE)
    weights = solve(matrix, padded, present)
    return np.asarray(weights, np.float64)[:num_tasks]


def update_of(rows, dtype, preference=None):
    return weights_of(rows, dtype, preference) @ rows


@pytest.mark.parametrize("method", ["upgrad", "upgrad_pref"])
def test_reference_vector(method, dtype):
    """A(J) is the reference value to its tolerance, also for rows 1e6 apart."""

    def run(case, matrix, present):
        preference = (present / np.sum(present)).astype(dtype)
        if method == "upgrad_pref":
            preference = reference.padded(reference.preference(case), dtype)
        return solve(matrix, preference, present)

    assert not reference.beyond_tolerance(method, run, dtype)


@pytest.mark.parametrize("kind", ["random", "aligned", "low_rank"])
@pytest.mark.parametrize("num_tasks", [2, 3, 8, 40])
def test_never_conflicts(kind, num_tasks, dtype):
    """<g_i, A(J)> >= -1e-4 |g_i| |A(J)|, 1e-6 in float64, with norms 1e6 apart."""
    slack = 1e-4 if dtype == np.float32 else 1e-6
    for seed in range(5):
        scales = np.logspace(0, 6, num_tasks)[:, None]
        rows = structured(kind, num_tasks, seed)
        for factor in (1, scales, scales[::-1]):
            given = (rows * factor).astype(dtype).astype(np.float64)
            weights = weights_of(given, dtype)
            update = weights @ given
            norms = np.linalg.norm(given, axis=1)
            size = np.linalg.norm(update)
            if size > (1e-2 if dtype == np.float32 else 1e-6) * (weights @ norms):
                assert np.all(given @ update >= -slack * norms * size)


def test_linear_under_scaling(dtype):
    """A(diag(a + b) J) = A(diag(a) J) + A(diag(b) J), for factors 1e6 apart."""
    tolerance = 1e-5 if dtype == np.float32 else 1e-11
    rows = random_rows(0, 8)
    for seed in range(4):
        left, right = 10.0 ** np.random.default_rng(seed).uniform(-3, 3, (2, 8, 1))
        parts = update_of(left * rows, dtype) + update_of(right * rows, dtype)
        error = np.linalg.norm(update_of((left + right) * rows, dtype) - parts)
        assert error <= tolerance * np.linalg.norm(parts)


def test_linear_in_the_preference(dtype):
    """A is linear in w, and each weight is at least its preference, exactly."""
    rows = random_rows(0, 8)
    first, second = np.random.default_rng(0).random((2, 8))
    first[3] = 0
    first, second = (np.asarray(w, dtype).astype(np.float64) for w in (first, second))
    parts = update_of(rows, dtype, first) + 3 * update_of(rows, dtype, second)
    combined = update_of(rows, dtype, first + 3 * second)
    np.testing.assert_allclose(combined, parts, atol=1e-4)
    assert np.all(weights_of(rows, dtype, first) >= first)


def test_two_tasks_are_pcgrad(dtype):
    """With preference (1, 1): each gradient is projected off the other."""
    pcgrad = jax.jit(pcgrad_weights)
    for seed in range(10):
        rows = random_rows(seed, 2, 3) * np.array([[1.0], [1e3]])
        expected = pcgrad(rows @ rows.T, np.array([[0, 1], [0, 1]]))
        found = weights_of(rows, dtype, np.ones(2))
        np.testing.assert_allclose(found, expected, rtol=2e-6)


def test_no_conflict_is_the_mean(dtype):
    rows = np.abs(random_rows(0, 8))
    preference = np.arange(8.0)
    np.testing.assert_array_equal(weights_of(rows, dtype, preference), preference)
    np.testing.assert_allclose(weights_of(rows, dtype), 1 / 8, rtol=1e-6)


def test_stationary_jacobians(dtype):
    """Zero where all rows cancel; not where a zero row alone makes it stationary."""
    tolerance = 1e-5 if dtype == np.float32 else 1e-12
    rows = structured("sum_zero", 8)
    update = update_of(rows, dtype)
    assert np.linalg.norm(update) <= tolerance * np.linalg.norm(rows)
    rows = structured("zero_row", 8)
    weights = weights_of(rows, dtype)
    assert np.linalg.norm(weights @ rows) >= 0.1
    np.testing.assert_allclose(weights[4], 1 / 8, rtol=1e-6)
    others = update_of(np.delete(rows, 4, axis=0), dtype) * 7 / 8
    np.testing.assert_allclose(weights @ rows, others, atol=2e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_finite_and_nan_visible(kind, dtype):
    rows = structured(kind, 8)
    assert np.all(np.isfinite(weights_of(rows, dtype)))
    rows[2, 0] = np.nan
    assert np.all(np.isnan(weights_of(rows, dtype)))


def test_absent_tasks_and_the_default_preference():
    """The same as without them; None is one over the number of present tasks."""
    rows = random_rows(0, 3, 5)
    tx = upgrad(5)
    padded = np.full((5, 5), np.nan)
    padded[[4, 0, 2]] = rows
    grads = mtlopt.TaskGrads.from_rows(
        jnp.asarray(padded, jnp.float32), present=[True, False, True, False, True]
    )
    update, state = jax.jit(lambda: tx.update(grads, tx.init(None)))()
    np.testing.assert_allclose(update, update_of(rows, np.float32), atol=1e-5)
    weights = weights_of(rows, np.float32)
    np.testing.assert_allclose(state.task_weights[jnp.array([4, 0, 2])], weights, 1e-4)
    assert state.task_weights[1] == state.task_weights[3] == 0


def test_one_task_and_equal_tasks():
    """One task gives w g, equal ones the mean."""
    gradient = np.float32([3, -4])
    tx = upgrad(1, preference=[2.5])
    grads = mtlopt.TaskGrads.from_rows(gradient[None])
    update, state = jax.jit(lambda: tx.update(grads, tx.init(None)))()
    np.testing.assert_array_equal(update, 2.5 * gradient)
    np.testing.assert_array_equal(state.task_weights, [2.5])
    equal = np.tile(gradient, (5, 1))
    np.testing.assert_allclose(update_of(equal, np.float32), gradient, rtol=1e-6)


def test_arguments_are_checked():
    with pytest.raises(ValueError, match="`preference` must have one entry per task"):
        upgrad(3, preference=[1.0, 2.0])
    with pytest.raises(ValueError, match="`preference` must have one entry per task"):
        upgrad_weights(jnp.eye(3), jnp.ones(2))
    with pytest.raises(TypeError, match="`num_tasks` must be an int"):
        upgrad(2.0)
