"""Quadratic programs over non-negative vectors, against an active-set method."""

import jax
import numpy as np
import pytest
from scipy.optimize import nnls

from mtlopt.linalg.nonnegative import least_distance, minimise_nonnegative
from tests.linalg.matrices import KINDS, bundle, random_rows, structured

solve, shortest = jax.jit(minimise_nonnegative), jax.jit(least_distance)


def unit_rows(rows):
    return rows / np.maximum(np.linalg.norm(rows, axis=1), 1e-300)[:, None]


def cosines_of(rows):
    return unit_rows(rows) @ unit_rows(rows).T


def violation(matrix, linear, solution):
    """Of the optimality conditions, relative to `1 + sum y`."""
    gradient = solution @ matrix + linear
    left = np.where(solution > 0, gradient, np.minimum(gradient, 0))
    return np.max(np.abs(left), axis=-1) / (1 + np.sum(solution, axis=-1))


@pytest.mark.parametrize("num_tasks", [1, 2, 3, 8])
def test_equals_non_negative_least_squares(num_tasks, float64):
    """min |U'y - b| over y >= 0 is the problem with q = -U b."""
    for seed in range(20):
        rows = random_rows(seed, num_tasks, 2 * num_tasks)
        rows /= np.linalg.norm(rows, axis=1)[:, None]
        target = np.random.default_rng(seed).normal(size=2 * num_tasks)
        expected, _ = nnls(rows.T, target)
        found = solve(rows @ rows.T, -rows @ target).solution
        np.testing.assert_allclose(found, expected, atol=1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_optimal(kind, dtype):
    """The optimality conditions hold to rounding, here in the range of the matrix."""
    matrix = cosines_of(structured(kind, 8)).astype(dtype)
    for linear in np.random.default_rng(0).normal(size=(5, 8)).astype(dtype) @ matrix:
        found = np.asarray(solve(matrix, linear).solution, np.float64)
        exact = matrix.astype(np.float64), linear.astype(np.float64)
        assert violation(*exact, found) <= 64 * np.finfo(dtype).eps


def test_a_batch_gives_what_each_gives(float64):
    """One that is solved at once, y = 0, beside one that takes many steps."""
    matrix = cosines_of(random_rows(0, 40))
    hard = -np.ones(40)
    easy = np.stack([np.zeros(40), np.ones(40), hard])
    solution, residual = jax.vmap(minimise_nonnegative, (None, 0))(matrix, easy)
    np.testing.assert_array_equal(solution[:2], 0)
    np.testing.assert_allclose(solution[2], solve(matrix, hard).solution, atol=1e-12)
    assert np.all(residual <= 4 * np.finfo(np.float64).eps)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("num_tasks", [1, 2, 3, 8])
def test_least_distance_equals_least_squares(kind, num_tasks, float64):
    """min |U'y|^2 + (1 - b'y / sqrt T)^2 over y >= 0, by an active-set method."""
    unit = unit_rows(structured(kind, num_tasks))
    bounds = np.random.default_rng(1).uniform(-1, 1, num_tasks) * np.any(unit, axis=1)
    system = np.concatenate([unit.T, bounds[None] / num_tasks**0.5])
    last = np.eye(len(system))[-1]
    expected, _ = nnls(system, last)
    found = shortest(unit @ unit.T, bounds).coefficients
    np.testing.assert_allclose(system @ found, system @ expected, atol=1e-10)


def test_least_distance_meets_its_bounds(dtype):
    """<u_i, d> >= b_i, with equality where the row has a part in d."""
    for seed in range(10):
        unit = unit_rows(random_rows(seed, 8))
        bounds = np.random.default_rng(seed).uniform(-1, 1, 8).astype(dtype)
        coefficients, slack = shortest((unit @ unit.T).astype(dtype), bounds)
        reached = unit @ (np.asarray(coefficients) @ unit) / float(slack)
        rounding = 1e2 * np.finfo(dtype).eps
        assert np.all(reached >= bounds - rounding)
        assert np.all((coefficients == 0) | (reached <= bounds + rounding))


@pytest.mark.parametrize("num_tasks", [3, 8, 128])
def test_contradictory_bounds_show(num_tasks, dtype):
    """Rows whose sum is zero cannot all have positive products with a vector."""
    for seed in range(3):
        matrix = cosines_of(structured("sum_zero", num_tasks, seed))
        bounds = np.random.default_rng(seed).uniform(0.1, 1, num_tasks).astype(dtype)
        coefficients, slack = shortest(matrix.astype(dtype), bounds)
        rounding = 64 * np.finfo(dtype).eps * np.sum(coefficients)
        assert np.max(np.abs(matrix @ coefficients)) <= rounding
        assert abs(slack) <= rounding


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("num_tasks", [2, 8, 128])
def test_nearly_dependent_pairs(sign, num_tasks, dtype):
    """Nearly equal and nearly opposed ones, on the edge of having no solution."""
    for seed in range(3):
        rows = random_rows(seed, num_tasks)
        half = num_tasks // 2
        rows[:half] = sign * rows[half:] + 1e-2 * rows[:half]
        lengths = np.linalg.norm(rows, axis=1)
        matrix, bounds = cosines_of(rows), min(lengths) / lengths
        found = shortest(matrix.astype(dtype), bounds.astype(dtype)).coefficients
        scaled = bounds / num_tasks**0.5
        system, found = matrix + np.outer(scaled, scaled), np.asarray(found, np.float64)
        assert violation(system, -scaled, found) <= 64 * np.finfo(dtype).eps


def test_equal_rows_share(dtype):
    """Parallel rows get equal weights to rounding, in whatever order they come."""
    unit = cosines_of(random_rows(0, 2) + 1)
    rows = np.linalg.cholesky(unit)[[0, 1, 0, 1, 0, 1, 0, 1]]
    found = solve((rows @ rows.T).astype(dtype), -np.ones(8, dtype)).solution
    np.testing.assert_allclose(found[::2], found[0], atol=1e3 * np.finfo(dtype).eps)
    np.testing.assert_allclose(found[1::2], found[1], atol=1e3 * np.finfo(dtype).eps)


def test_nearly_parallel_rows_in_double_precision(float64):
    """Conjugate gradients alone leave 1e-11 after 160 steps and 1e-12 after 32,000."""
    matrix = cosines_of(bundle(0, 16, 200, apart=1e-8))
    linear = -matrix @ np.abs(np.random.default_rng(1).normal(size=16))
    found = solve(matrix, linear)
    assert found.residual <= 4 * np.finfo(np.float64).eps
    assert violation(matrix, linear, np.asarray(found.solution)) <= 1e-14
