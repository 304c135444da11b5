"""The bargaining solution: its equation, closed forms, no solution, invariances."""

import jax
import numpy as np
import pytest

from mtlopt.linalg.bargaining import bargain
from tests.linalg.matrices import KINDS, gramian, padded_gramian, structured

solve = jax.jit(bargain)
solve_all = jax.jit(jax.vmap(bargain, (0, None)))
# Kinds whose hull does not hold zero: random rows have more params than tasks.
SOLVABLE = ["random", "aligned", "duplicated", "all_equal", "zero_row"]


def weights_of(rows, alpha, dtype):
    """The weights, from the rows among more tasks of which the others are absent."""
    matrix, present = padded_gramian(rows, dtype)
    weights = np.asarray(solve(matrix, dtype(alpha), present).weights, np.float64)
    assert np.all(weights[len(rows) :] == 0)
    assert np.all(np.isfinite(weights))
    return weights[: len(rows)]


def scaled(rows, exponent, dtype):
    """Rows with norms from 1 down to `10^-exponent`, in no order."""
    order = np.random.default_rng(1).permutation(len(rows))
    scales = np.logspace(0, -exponent, len(rows))[order]
    return (rows * scales[:, None]).astype(dtype).astype(np.float64)


def conflicting(num_tasks):
    rows = structured("random", num_tasks)
    rows = rows - 0.98 * rows.mean(axis=0)
    return rows.astype(np.float32).astype(np.float64)


@pytest.mark.parametrize("exponent", [0, 6])
@pytest.mark.parametrize("num_tasks", [1, 2, 8, 40, 64, 128])
def test_nash_equation(num_tasks, exponent, dtype):
    """|w_i (G w)_i - 1| <= 2e-6 max_i sum_j |w_i G_ij w_j|, and at least 2e-6."""
    cases = [structured(kind, num_tasks) for kind in SOLVABLE]
    for rows in [*cases, conflicting(num_tasks)]:
        rows = scaled(rows, exponent, dtype)
        weights = weights_of(rows, 1.0, dtype)
        norms = np.linalg.norm(rows, axis=1)
        assert np.all((weights > 0) == (norms > 0))
        gains = weights[:, None] * (rows @ rows.T) * weights
        terms = np.max(np.sum(np.abs(gains), axis=1), initial=0)
        missed = np.max(np.abs(np.sum(gains, axis=1) - (norms > 0)))
        assert missed <= 2e-6 * max(1, terms)


@pytest.mark.parametrize("alpha", [0.5, 2.0])
@pytest.mark.parametrize("exponent", [0, 3])
def test_fair_equation(alpha, exponent, dtype):
    """w_i^(1/alpha) (G w)_i = 1."""
    for kind in SOLVABLE:
        for num_tasks in (1, 2, 8, 40):
            rows = scaled(structured(kind, num_tasks), exponent, dtype)
            weights = weights_of(rows, alpha, dtype)
            there = np.linalg.norm(rows, axis=1) > 0
            gains = weights ** (1 / alpha) * (rows @ rows.T @ weights)
            allowed = 3e-3 if dtype == np.float32 else 1e-6
            np.testing.assert_allclose(gains[there], 1, atol=allowed)


@pytest.mark.parametrize("alpha", [0.25, 1.0, 4.0])
def test_closed_forms(alpha, dtype):
    """Orthogonal rows |g|^(-2/(q+1)); T equal rows T^(-1/(q+1)) times that."""
    power = 1 / alpha
    norms = np.array([3.0, 0.1, 20.0])
    alone = norms ** (-2 / (power + 1))
    np.testing.assert_allclose(
        weights_of(np.diag(norms), alpha, dtype), alone, rtol=1e-5
    )
    equal = np.tile([[3.0, 0.0]], (5, 1))
    expected = 5 ** (-1 / (power + 1)) * alone[0]
    np.testing.assert_allclose(weights_of(equal, alpha, dtype), expected, rtol=1e-5)


@pytest.mark.parametrize("scale", [1e-12, 1e12])
@pytest.mark.parametrize("alpha", [0.5, 1.0, 2.0])
def test_scale(alpha, scale, dtype):
    """w is of degree -2 / (1 + 1/alpha) in the rows, in float32 too."""
    matrix, present = padded_gramian(structured("random", 40), dtype)
    expected = np.asarray(solve(matrix, dtype(alpha), present).weights)
    found = solve(matrix * dtype(scale) ** 2, dtype(alpha), present).weights
    degree = -2 / (1 + 1 / alpha)
    np.testing.assert_allclose(found, expected * scale**degree, rtol=1e-4)


def test_nash_ignores_task_scales(float64):
    """w_i |g_i| does not change when a row is rescaled."""
    rows = structured("random", 8)
    factors = np.logspace(-5, 5, 8)
    expected = weights_of(rows, 1.0, float64)
    found = weights_of(rows * factors[:, None], 1.0, float64)
    np.testing.assert_allclose(found * factors, expected, rtol=1e-9)


@pytest.mark.parametrize("kind", ["opposed", "low_rank", "sum_zero", "all_zero"])
def test_bounded_where_there_is_no_solution(kind, dtype):
    """Zero in the hull: finite, |d|^2 <= T, and w_i |g_i| <= sqrt(T / (2 eps))."""
    for num_tasks in (2, 8, 40, 128):
        for exponent in (0, 6):
            rows = scaled(structured(kind, num_tasks), exponent, dtype)
            weights = weights_of(rows, 1.0, dtype)
            norms = np.linalg.norm(rows, axis=1)
            eps = np.finfo(dtype).eps
            assert np.all(weights * norms <= np.sqrt(num_tasks / (2 * eps)))
            assert np.linalg.norm(weights @ rows) <= 1.01 * np.sqrt(num_tasks)


def test_what_cancels_leaves_the_rest(dtype):
    """u, -u and an orthogonal row: the direction is that of the third alone."""
    rows = np.array([[1.0, 0.0], [-1e-3, 0.0], [0.0, 5.0]])
    direction = weights_of(rows, 1.0, dtype) @ rows
    np.testing.assert_allclose(direction, [0, 1], atol=1e-2)


def test_zero_and_absent_rows_do_not_count(dtype):
    """Zero rows and rows that are not there leave the others' weights as they are."""
    rows = structured("random", 8)
    expected = weights_of(rows, 1.0, dtype)
    with_zeros = np.concatenate([rows[:3], 0 * rows[:2], rows[3:]])
    found = weights_of(with_zeros, 1.0, dtype)
    assert np.all(found[3:5] == 0)
    np.testing.assert_allclose(np.delete(found, [3, 4]), expected, rtol=1e-4)


def test_residual_tells_whether_there_is_a_solution(float64):
    """Below 1e-9 with a solution, of order 1 without."""
    matrix, present = padded_gramian(structured("random", 8), float64)
    assert solve(matrix, 1.0, present).residual <= 1e-9
    matrix, present = padded_gramian(structured("opposed", 8), float64)
    assert solve(matrix, 1.0, present).residual >= 0.5


def test_not_finite_stays_visible():
    """One bad entry: NaN out; not if the task is absent."""
    matrix = np.eye(40, dtype=np.float32)
    matrix[3, 7] = matrix[7, 3] = np.nan
    found = solve(matrix, np.float32(1), np.ones(40, bool))
    assert all(np.all(np.isnan(leaf)) for leaf in found)
    found = solve(matrix, np.float32(1), np.arange(40) != 7)
    assert np.all(np.isfinite(found.weights))


def test_vmap_agrees():
    """A batch, whose loops end at different times, gives the single answers."""
    matrices = np.stack([gramian(structured(k, 8), np.float32) for k in SOLVABLE])
    single = [solve(matrix, np.float32(1)).weights for matrix in matrices]
    batch = solve_all(matrices, np.float32(1)).weights
    np.testing.assert_allclose(batch, single, rtol=1e-4)
    every = np.stack([gramian(structured(k, 8), np.float32) for k in KINDS])
    assert np.all(np.isfinite(solve_all(every, np.float32(1)).weights))


def test_shapes_are_checked():
    """A `gramian` or `present` of the wrong shape raises."""
    with pytest.raises(ValueError, match="`gramian` must be square"):
        bargain(np.ones((2, 3)))
    with pytest.raises(ValueError, match="`present` must have shape"):
        bargain(np.eye(2), 1.0, np.ones(3, bool))


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("size", [1, 3])
def test_a_lone_task_that_is_not_finite_stays_visible(bad, size):
    """No other row shows it, for all others are absent."""
    matrix = np.eye(size, dtype=np.float32)
    matrix[0, 0] = bad
    found = bargain(matrix, 1.0, np.arange(size) == 0)
    assert np.isnan(found.weights[0])
    assert np.isnan(found.residual)


@pytest.mark.parametrize("alpha", [0.01, 0.1, 0.5, 1.0, 2.0, 10.0])
def test_two_tasks(alpha, dtype):
    """G w = w^(-1/alpha) to rounding of both sides, nearly opposed to nearly equal."""
    eps = np.finfo(dtype).eps
    largest = 15 if alpha <= 2 else 3  # or the solution is no number of float32
    powers = [-largest, -3, -0.3, 0, 0.3, 3, largest]
    apart = [100 * eps, 1e3 * eps, 1e-3, 0.1, 0.6]
    cosines = [apart[0] - 1, *(a - 1 for a in apart), 0, *(1 - a for a in apart), 1]
    norms = np.array([[1, 10.0**power] for power in powers for _ in cosines])
    angles = np.array([[[1, c], [c, 1]] for _ in powers for c in cosines])
    matrices = (angles * norms[:, :, None] * norms[:, None]).astype(dtype)
    found = solve_all(matrices, dtype(alpha)).weights
    found = np.asarray(found, np.float64)[:, :, None]
    gains = (np.asarray(matrices, np.float64) @ found)[:, :, 0]
    terms = (np.abs(matrices) @ found)[:, :, 0]
    wanted = found[:, :, 0] ** (-1 / alpha)
    slack = terms + wanted * (1 + np.abs(np.log(found[:, :, 0])) / alpha)
    assert np.all(np.abs(gains - wanted) <= 64 * eps * slack)


@pytest.mark.parametrize("alpha", [0.01, 0.5, 1.0, 10.0, 100.0])
def test_two_tasks_are_finite(alpha):
    """Also if the solution is hardly a number of float32, or there is none."""
    norms = np.array([[1, s] for s in (0, 1e-15, 1, 10) for _ in range(5)])
    angles = np.array([[[1, c], [c, 1]] for c in (-1, -0.5, 0, 0.5, 1)] * 4)
    matrices = (angles * norms[:, :, None] * norms[:, None]).astype(np.float32)
    found = solve_all(matrices, np.float32(alpha)).weights
    np.testing.assert_array_equal(np.isfinite(found) & (found > 0), norms > 0)


def test_two_tasks_of_nash():
    """w_i = 1 / (|g_i| sqrt(1 + cos)), at any norms."""
    rows = np.array([[3e-14, 4e-14], [5e14, 0]], np.float32)
    found = bargain(gramian(rows, np.float32)).weights
    expected = 1 / (np.array([5e-14, 5e14]) * np.sqrt(1.6))
    np.testing.assert_allclose(found, expected, rtol=1e-6)


@pytest.mark.parametrize("alpha", [0.5, 1.0, 2.0])
def test_preference(alpha, float64):
    """(w / p)^(1/alpha) (G w) = 1; orthogonal rows have p^(1/(1+alpha)) more."""
    for num_tasks in (2, 3, 8):
        preference = np.random.default_rng(num_tasks).uniform(0.1, 5, num_tasks)
        for rows in (structured("random", num_tasks), conflicting(num_tasks)):
            found = solve(gramian(rows, float64), alpha, None, preference)
            weights = np.asarray(found.weights)
            gains = (weights / preference) ** (1 / alpha) * (rows @ rows.T @ weights)
            np.testing.assert_allclose(gains, 1, rtol=1e-6)
        found = solve(np.eye(num_tasks), alpha, None, preference).weights
        np.testing.assert_allclose(found, preference ** (1 / (1 + alpha)), rtol=1e-9)


def test_preference_of_zero_and_of_one(dtype):
    """Zero: as if the task were absent, also where two are left. One: as without."""
    matrix = gramian(structured("random", 3), dtype)
    with_zero = np.array([1, 0, 1], dtype)
    found = solve(matrix, dtype(1), None, with_zero).weights
    expected = solve(matrix, dtype(1), with_zero > 0).weights
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    found = solve(matrix[:2, :2], dtype(1), None, with_zero[:2]).weights
    np.testing.assert_allclose(found, [matrix[0, 0] ** -0.5, 0], rtol=1e-5)
    found = solve(matrix, dtype(1), None, np.ones(3, dtype)).weights
    np.testing.assert_allclose(found, solve(matrix, dtype(1)).weights, rtol=1e-6)
