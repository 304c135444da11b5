"""Quadratic programs over non-negative vectors: both solvers, one and many problems."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.optimize import nnls

from mtlopt.linalg.nonnegative import minimise_nonnegative
from mtlopt.linalg.pivots import minimise_by_pivots, sweep
from tests.linalg.matrices import KINDS, random_rows, structured

solve, by_pivots = jax.jit(minimise_nonnegative), jax.jit(minimise_by_pivots)


def cosines_of(rows):
    rows = rows / np.maximum(np.linalg.norm(rows, axis=1), 1e-300)[:, None]
    return rows @ rows.T


def violation(matrix, linear, solution):
    """Of the optimality conditions, relative to `1 + sum y`."""
    gradient = solution @ matrix + linear
    left = np.where(solution > 0, gradient, np.minimum(gradient, 0))
    return np.max(np.abs(left), axis=-1) / (1 + np.sum(solution, axis=-1))


@pytest.mark.parametrize("num_tasks", [1, 3, 8])
def test_equals_non_negative_least_squares(num_tasks, float64):
    """min |U'y - b| over y >= 0 is the problem with q = -U b."""
    for seed in range(20):
        rows = random_rows(seed, num_tasks, 2 * num_tasks)
        rows /= np.linalg.norm(rows, axis=1)[:, None]
        target = np.random.default_rng(seed).normal(size=2 * num_tasks)
        expected, _ = nnls(rows.T, target)
        for found in (
            solve(rows @ rows.T, -rows @ target).solution,
            by_pivots(rows @ rows.T, -rows @ target),
        ):
            np.testing.assert_allclose(found, expected, atol=1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_optimal_and_many_at_once(kind, dtype):
    """Every problem of a batch meets its conditions, and alone as well."""
    matrix = cosines_of(structured(kind, 8)).astype(dtype)
    linear = np.random.default_rng(0).normal(size=(5, 8)).astype(dtype) @ matrix
    many = solve(matrix, linear)
    allowed = 64 * np.finfo(dtype).eps
    exact = matrix.astype(np.float64), linear.astype(np.float64)
    assert np.all(violation(*exact, np.asarray(many.solution, np.float64)) <= allowed)
    for problem in linear:
        found = np.asarray(solve(matrix, problem).solution, np.float64)
        assert violation(exact[0], problem.astype(np.float64), found) <= allowed


@pytest.mark.parametrize("num_tasks", [8, 128])
def test_ray_without_end_stays_finite(num_tasks, dtype):
    """Falls for ever along C z = 0: ends far out, where `C y` is zero to rounding."""
    for seed in range(3):
        matrix = cosines_of(structured("sum_zero", num_tasks, seed)).astype(dtype)
        found = solve(matrix, -np.ones(num_tasks, dtype))
        total = np.sum(found.solution)
        assert np.isfinite(total)
        assert total > 1e4
        image = matrix.astype(np.float64) @ np.asarray(found.solution, np.float64)
        assert np.max(np.abs(image)) <= 64 * np.finfo(dtype).eps * total


def test_solved_problems_wait_for_the_others(float64):
    """One that is solved at once, y = 0, beside one that takes many steps."""
    matrix = cosines_of(random_rows(0, 40))
    hard = -np.ones(40)
    easy = np.stack([np.zeros(40), np.ones(40), hard])
    solution, residual = solve(matrix, easy)
    np.testing.assert_array_equal(solution[:2], 0)
    np.testing.assert_allclose(solution[2], solve(matrix, hard).solution, atol=1e-12)
    assert np.all(residual <= 4 * np.finfo(np.float64).eps)


@pytest.mark.parametrize("sign", [1, -1])
def test_nearly_dependent_pairs(sign, dtype):
    """Nearly equal and nearly opposed ones, on the edge of having no minimum."""
    for seed in range(3):
        rows = random_rows(seed, 8)
        rows[:4] = sign * rows[4:] + 1e-2 * rows[:4]
        lengths = np.linalg.norm(rows, axis=1)
        matrix, linear = cosines_of(rows).astype(dtype), -(min(lengths) / lengths)
        found = solve(matrix, linear.astype(dtype))
        assert found.residual <= 64 * np.finfo(dtype).eps
        exact = np.asarray(found.solution, np.float64)
        assert violation(matrix.astype(np.float64), linear, exact) <= 1e-5


def test_equal_rows_share(dtype):
    """Parallel rows get equal weights to rounding, in whatever order they come."""
    unit = cosines_of(random_rows(0, 2) + 1)
    rows = np.linalg.cholesky(unit)[[0, 1, 0, 1, 0, 1, 0, 1]]
    found = solve((rows @ rows.T).astype(dtype), -np.ones(8, dtype)).solution
    np.testing.assert_allclose(found[::2], found[0], atol=1e3 * np.finfo(dtype).eps)
    np.testing.assert_allclose(found[1::2], found[1], atol=1e3 * np.finfo(dtype).eps)


def test_sweeps_solve_and_undo(float64):
    """All tasks swept: minus the inverse, and the solution; one again: as before it."""
    matrix = cosines_of(random_rows(0, 6))
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
