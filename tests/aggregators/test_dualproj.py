"""DualProj: reference values, the nearest point without conflict, conventions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import mtlopt
from mtlopt.aggregators.dualproj import dualproj, dualproj_weights
from tests import reference
from tests.linalg.matrices import KINDS, padded_gramian, random_rows, structured

SIZE = reference.MAX_TASKS
solve = jax.jit(dualproj_weights)


def weights_of(rows, dtype, preference=None):
    """Weights of the rows among more tasks, of which the others are absent."""
    num_tasks = len(rows)
    preference = np.full(num_tasks, 1 / num_tasks) if preference is None else preference
    matrix, present = padded_gramian(rows, dtype, SIZE)
    weights = solve(matrix, reference.padded(preference, dtype), present)
    return np.asarray(weights, np.float64)[:num_tasks]


@pytest.mark.parametrize("method", ["dualproj", "dualproj_pref"])
def test_reference_vector(method, dtype):
    """A(J) is the reference value to its tolerance, also for rows 1e6 apart."""

    def run(case, matrix, present):
        preference = (present / np.sum(present)).astype(dtype)
        if method == "dualproj_pref":
            preference = reference.padded(reference.preference(case), dtype)
        return solve(matrix, preference, present)

    assert not reference.beyond_tolerance(method, run, dtype)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("ratio", [1, 1e6])
def test_nearest_point_without_conflict(kind, ratio, dtype):
    """KKT: v >= w; <g_i, d> >= 0, and zero where v_i > w_i; relative to the terms."""
    slack = 5e-6 if dtype == np.float32 else 1e-14
    preference = np.asarray(np.random.default_rng(0).random(8), dtype)
    rows = structured(kind, 8) * np.logspace(0, np.log10(ratio), 8)[:, None]
    rows = rows.astype(dtype).astype(np.float64)
    weights = weights_of(rows, dtype, preference)
    norms = np.linalg.norm(rows, axis=1)
    inner, size = rows @ (weights @ rows), norms * (weights @ norms)
    assert np.all(weights >= preference)
    assert np.all(inner >= -slack * size)
    assert np.all((weights == preference) | (norms == 0) | (inner <= slack * size))


def test_gem_in_closed_form(dtype):
    """Of one task's gradient, the part off the other one where they conflict."""
    rows = np.array([[1.0, 0.0], [-3.0, 4.0]])
    weights = weights_of(rows, dtype, np.array([1.0, 0.0]))
    np.testing.assert_allclose(weights, [1, 3 / 25], rtol=1e-6)
    weights = weights_of(rows, dtype, np.array([0.0, 1.0]))
    np.testing.assert_allclose(weights, [3, 1], rtol=1e-6)


def test_a_mean_without_conflict_is_kept(dtype):
    """Even of gradients that conflict with each other, exactly."""
    rows = np.array([[1.0, 0.0], [-0.5, 1.0]])
    np.testing.assert_array_equal(weights_of(rows, dtype, np.ones(2)), 1)


def test_degenerate_jacobians(dtype):
    """Zero where all rows cancel; zero rows and zeros keep the preference."""
    tolerance = 1e-5 if dtype == np.float32 else 1e-12
    rows = structured("sum_zero", 8)
    update = weights_of(rows, dtype, np.arange(1.0, 9.0)) @ rows
    assert np.linalg.norm(update) <= 10 * tolerance * np.linalg.norm(rows)
    assert weights_of(structured("zero_row", 8), dtype, np.ones(8))[4] == 1
    np.testing.assert_array_equal(weights_of(0 * rows, dtype, np.ones(8)), 1)
    rows[2, 0] = np.nan
    assert np.all(np.isnan(weights_of(rows, dtype)))


def test_absent_tasks_and_the_default_preference():
    """The same as without them; None is one over the number of present tasks."""
    rows = random_rows(0, 3, 5)
    tx = dualproj(5)
    padded = np.full((5, 5), np.nan)
    padded[[4, 0, 2]] = rows
    grads = mtlopt.TaskGrads.from_rows(
        jnp.asarray(padded, jnp.float32), present=[True, False, True, False, True]
    )
    update, state = jax.jit(lambda: tx.update(grads, tx.init(None)))()
    expected = weights_of(rows, np.float32)
    np.testing.assert_allclose(update, expected @ rows, atol=1e-5)
    np.testing.assert_allclose(state.task_weights[jnp.array([4, 0, 2])], expected, 1e-4)
    assert state.task_weights[1] == state.task_weights[3] == 0


def test_one_task_and_equal_tasks():
    """One task gives w g, equal ones the mean."""
    gradient = np.array([3.0, -4.0])
    np.testing.assert_array_equal(
        weights_of(gradient[None], np.float32, np.array([2.5])), [2.5]
    )
    equal = np.tile(gradient, (5, 1))
    np.testing.assert_allclose(weights_of(equal, np.float32) @ equal, gradient, 1e-6)


def test_arguments_are_checked():
    with pytest.raises(ValueError, match="`preference` must have one entry per task"):
        dualproj(3, preference=[1.0, 2.0])
    with pytest.raises(TypeError, match="`num_tasks` must be an int"):
        dualproj(2.0)
