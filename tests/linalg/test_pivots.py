"""Principal pivots against the inverse, and against an active-set method."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.optimize import nnls

from mtlopt.linalg.pivots import minimise_by_pivots, sweep
from tests.linalg.matrices import random_rows


def test_sweeps_solve_and_undo(float64):
    """All tasks swept: minus the inverse, and the solution; one again: as before it."""
    rows = random_rows(0, 6)
    matrix = rows @ rows.T
    right = np.arange(12.0).reshape(6, 2)
    tableau = jnp.concatenate([matrix, right], axis=1)
    for task in range(6):
        is_chosen, before = jnp.arange(6) == task, tableau
        tableau = sweep(before, is_chosen, before[task, task], jnp.array(False))
        undone = sweep(tableau, is_chosen, tableau[task, task], jnp.array(True))
        np.testing.assert_allclose(undone, before, atol=1e-12)
        square = np.asarray(tableau[:, :6])
        np.testing.assert_array_equal(square, square.T)
    inverse = np.linalg.inv(matrix)
    expected = np.concatenate([-inverse, inverse @ right], axis=1)
    np.testing.assert_allclose(tableau, expected, atol=1e-12)


@pytest.mark.parametrize("num_tasks", [1, 3, 8])
def test_equals_non_negative_least_squares(num_tasks, float64):
    """min |U'y - b| over y >= 0 is the problem with q = -U b."""
    solve = jax.jit(minimise_by_pivots)
    for seed in range(20):
        rows = random_rows(seed, num_tasks, 2 * num_tasks)
        rows /= np.linalg.norm(rows, axis=1)[:, None]
        target = np.random.default_rng(seed).normal(size=2 * num_tasks)
        expected, _ = nnls(rows.T, target)
        found = solve(rows @ rows.T, -rows @ target)
        np.testing.assert_allclose(found, expected, atol=1e-12)
