"""The exact min-norm point: optimality, invariances, degenerate input."""

import itertools

import jax
import numpy as np
import pytest

from mtlopt.linalg.min_norm import min_norm_point
from tests.linalg.matrices import (
    KINDS,
    gramian,
    padded_gramian,
    random_rows,
    structured,
)

solve = jax.jit(min_norm_point)
SIZES = [1, 2, 3, 8, 40, 128]


def solve_padded(rows, dtype):
    """Weights of the rows among more tasks, of which the others are absent."""
    point = solve(*padded_gramian(rows, dtype))
    weights = np.asarray(point.weights, np.float64)
    assert np.all(weights[len(rows) :] == 0)
    return weights[: len(rows)]


def assert_optimal(weights, rows, dtype):
    """KKT: w feasible and <g_i, d> >= |d|^2 for all i, or d = 0 to rounding."""
    single = np.dtype(dtype) == np.float32
    assert np.all(weights >= 0)
    np.testing.assert_allclose(weights.sum(), 1, rtol=1e-5 if single else 1e-12)
    direction = weights @ rows
    norm, norms = np.linalg.norm(direction), np.linalg.norm(rows, axis=1)
    if norm <= (1e-5 * norms.max() if single else 1e-10 * norms.min()):
        return  # zero is in the hull
    violation = np.max((norm**2 - rows @ direction) / (norm * norms))
    assert violation <= (1e-5 if single else 1e-10)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("num_tasks", SIZES)
def test_optimal(kind, num_tasks, dtype):
    for seed in range(3):
        rows = structured(kind, num_tasks, seed)
        assert_optimal(solve_padded(rows, dtype), rows, dtype)


@pytest.mark.parametrize("order", ["descending", "ascending", "two"])
@pytest.mark.parametrize("num_tasks", [2, 3, 8, 40, 128])
def test_optimal_for_unequal_rows(num_tasks, order, dtype):
    """Row norms from 1 to 1e-6 (float32) and 1e-12 (float64)."""
    smallest = -6 if np.dtype(dtype) == np.float32 else -12
    scales = np.logspace(0, smallest, num_tasks)
    if order == "ascending":
        scales = scales[::-1]
    elif order == "two":
        scales = np.where(np.arange(num_tasks) % 2, 1, 10.0**smallest)
    for seed in range(3):
        rows = random_rows(seed, num_tasks) * scales[:, None]
        rows = rows.astype(dtype).astype(np.float64)
        assert_optimal(solve_padded(rows, dtype), rows, dtype)


def enumerate_supports(rows):
    """Min-norm point by brute force: the affine minimiser of every support."""
    best, best_norm = None, np.inf
    for size in range(1, len(rows) + 1):
        for support in itertools.combinations(range(len(rows)), size):
            chosen = rows[list(support)]
            edges = (chosen[1:] - chosen[0]).T
            coefficients = np.linalg.lstsq(edges, -chosen[0], rcond=None)[0]
            weights = np.concatenate([[1 - coefficients.sum()], coefficients])
            norm = np.linalg.norm(weights @ chosen)
            if np.all(weights >= -1e-12) and norm < best_norm:
                best, best_norm = weights @ chosen, norm
    return best


@pytest.mark.parametrize("num_tasks", [1, 2, 3, 4])
def test_equals_brute_force(num_tasks, float64):
    """d is the smallest of the affine minimisers of all supports."""
    for seed in range(25):
        rng = np.random.default_rng(seed)
        rows = random_rows(seed, num_tasks, num_params=1 + seed % 5, shift=0.3)
        rows *= 10.0 ** rng.integers(-3, 4, size=(num_tasks, 1))
        direction = solve_padded(rows, float64) @ rows
        error = np.linalg.norm(direction - enumerate_supports(rows))
        assert error <= 1e-10 * np.linalg.norm(rows, axis=1).min()


@pytest.mark.parametrize("num_tasks", [1, 2, 8])
def test_absent_tasks_leave_the_sub_matrix(num_tasks):
    """Present tasks anywhere, and no padding: the same point."""
    rows = structured("aligned", num_tasks)
    expected = solve(gramian(rows, np.float32))
    places = np.random.default_rng(0).permutation(40)[:num_tasks]
    padded = np.full((40, 40), np.nan, np.float32)
    padded[np.ix_(places, places)] = gramian(rows, np.float32)
    present = np.isin(np.arange(40), places)
    point = solve(padded, present)
    np.testing.assert_allclose(point.weights[places], expected.weights, atol=1e-6)
    np.testing.assert_allclose(point.norm, expected.norm, rtol=1e-6)
    assert np.all(np.asarray(point.weights)[~present] == 0)


def test_permutation_equivariant(dtype):
    """The point does not depend on the order of the tasks."""
    rows = structured("random", 40)
    order = np.random.default_rng(0).permutation(40)
    weights, permuted = solve_padded(rows, dtype), solve_padded(rows[order], dtype)
    np.testing.assert_allclose(permuted, weights[order], atol=1e-6)


@pytest.mark.parametrize("scale", [1e-12, 1e-6, 1e6, 1e12])
def test_scale_equivariant(scale, dtype):
    """The weights do not depend on the unit of the losses, |d| is linear in it."""
    matrix, present = padded_gramian(structured("aligned", 40), dtype)
    expected, point = solve(matrix, present), solve(matrix * dtype(scale) ** 2, present)
    np.testing.assert_allclose(point.weights, expected.weights, atol=5e-6)
    np.testing.assert_allclose(point.norm, expected.norm * scale, rtol=1e-5)


def test_zero_rows_share_the_weight(dtype):
    rows = structured("random", 8)
    rows[[2, 5]] = 0
    np.testing.assert_array_equal(
        solve_padded(rows, dtype), np.isin(np.arange(8), [2, 5]) / 2
    )
    np.testing.assert_array_equal(solve_padded(0 * rows, dtype), np.full(8, 1 / 8))


def test_dominated_task_leaves_a_vertex(float64):
    """A vertex is reached exactly, not to 0.001 as by clipped line searches."""
    rows = np.array([[1.0, 0.0], [1000.0, 1.0]])
    np.testing.assert_array_equal(solve_padded(rows, float64), [1, 0])


def test_residual_and_norm_report_the_point(float64):
    rows = structured("random", 40)
    point = solve(*padded_gramian(rows, float64))
    norm = np.linalg.norm(np.asarray(point.weights)[:40] @ rows)
    np.testing.assert_allclose(point.norm, norm, rtol=1e-12)
    assert 0 <= point.residual <= 1e-12
    assert solve(*padded_gramian(structured("opposed", 8), float64)).norm <= 1e-7


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_not_finite_stays_visible(bad):
    """One bad entry: NaN out, at once."""
    matrix = np.eye(40, dtype=np.float32)
    matrix[3, 7] = matrix[7, 3] = bad
    point = solve(matrix, np.ones(40, bool))
    assert all(np.all(np.isnan(leaf)) for leaf in point)
    absent = solve(matrix, np.arange(40) != 7)
    assert np.all(np.isfinite(absent.weights))


def test_jit_vmap_and_scan_agree():
    """The point is unique; where the rows are dependent its weights are not."""
    rows = np.stack([structured(kind, 8) for kind in KINDS])
    matrices = np.stack([gramian(each, np.float32) for each in rows])
    single = np.stack([solve(matrix).weights for matrix in matrices])
    batch = jax.jit(jax.vmap(min_norm_point))(matrices).weights
    scanned = jax.lax.scan(lambda c, x: (c, min_norm_point(x)), None, matrices)[1]
    sizes = 1e-6 + np.linalg.norm(rows, axis=2).max(axis=1)[:, None]
    for weights in (batch, scanned.weights):
        moved = np.einsum("kt,ktp->kp", weights - single, rows) / sizes
        np.testing.assert_allclose(moved, 0, atol=1e-6)


def test_shapes_are_checked():
    with pytest.raises(ValueError, match="`gramian` must be square"):
        min_norm_point(np.ones((2, 3)))
    with pytest.raises(ValueError, match="`present` must have shape"):
        min_norm_point(np.eye(2), np.ones(3, bool))
