"""Projection on the dual cone: optimality, an independent solver, degenerate input."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.optimize import lsq_linear

from mtlopt.linalg.dual_cone import project_dual_cone
from tests.linalg.matrices import KINDS, padded_gramian, random_rows, structured

PROBLEMS = 8
solve = jax.jit(project_dual_cone)


def sample(kind, num_tasks, seed=0):
    """A Jacobian; beside `KINDS` those that take more than first-order steps."""
    rows = random_rows(seed, num_tasks)
    half = num_tasks // 2
    if kind == "near_duplicate":
        rows[:half] = rows[half : 2 * half] + 1e-4 * rows[:half]
    elif kind == "near_opposed":
        rows[:half] = -rows[half : 2 * half] + 1e-4 * rows[:half]
    elif kind == "conflicting":
        rows -= 0.9 * rows.mean(axis=0)
    elif kind == "more_tasks_than_params":
        rows = random_rows(seed, num_tasks, max(1, half))
    elif kind == "dominated":
        rows *= np.logspace(0, -6, num_tasks)[:, None]
    else:
        rows = structured(kind, num_tasks, seed)
    return rows


HARD = [
    "near_duplicate",
    "near_opposed",
    "conflicting",
    "more_tasks_than_params",
    "dominated",
]


def combinations(num_tasks, seed=0):
    """Four rows `u`: two unit vectors, the mean and a random one with zeros."""
    drawn = np.random.default_rng(seed).random(num_tasks)
    first, last = np.eye(num_tasks)[[0, -1]]
    mean = np.full(num_tasks, 1 / num_tasks)
    return np.stack([first, last, mean, np.where(drawn < 0.3, 0, drawn)])


def solve_padded(rows, lower, dtype):
    """Weights of the rows among more tasks, of which the others are absent."""
    matrix, present = padded_gramian(rows, dtype)
    padded = np.full((PROBLEMS, len(matrix)), np.nan, dtype)
    padded[:, : len(rows)] = 0
    padded[: len(lower), : len(rows)] = lower
    projection = solve(matrix, padded, present)
    weights = np.asarray(projection.weights, np.float64)
    assert np.all(weights[:, len(rows) :] == 0)
    assert np.all(weights[len(lower) :] == 0)
    return weights[: len(lower), : len(rows)], projection


def project_by_bvls(rows, vector):
    """The projection by bounded least squares on the unit rows, an active-set method.

    The distance of `-vector` to the cone of the rows is the length of the projection.
    """
    norms = np.linalg.norm(rows, axis=1)
    unit = rows[norms > 0] / norms[norms > 0, None]
    if not len(unit):
        return vector
    size = np.linalg.norm(vector) or 1
    found = lsq_linear(
        unit.T, -vector / size, (0, np.inf), method="bvls", tol=1e-15, max_iter=3000
    )
    return vector + size * (unit.T @ found.x)


@pytest.mark.parametrize("kind", KINDS + HARD)
@pytest.mark.parametrize("num_tasks", [1, 2, 3, 8, 40])
def test_equals_bounded_least_squares(kind, num_tasks, float64):
    """J^T v is the projection, to 1e-6 of its length, or 1e-10 of u's where zero."""
    rows, lower = sample(kind, num_tasks), combinations(num_tasks)
    weights, _ = solve_padded(rows, lower, float64)
    sizes = lower @ np.linalg.norm(rows, axis=1)
    for vector, size, found in zip(lower @ rows, sizes, weights @ rows, strict=True):
        expected = project_by_bvls(rows, vector)
        error = np.linalg.norm(found - expected)
        assert error <= 1e-6 * max(np.linalg.norm(expected), 1e-4 * size)


@pytest.mark.parametrize("kind", KINDS + HARD)
@pytest.mark.parametrize("num_tasks", [1, 2, 3, 8, 40, 128])
def test_optimal(kind, num_tasks, dtype):
    """KKT: v >= u exactly; <g_i, d> >= 0, and = 0 where v_i > u_i, to rounding."""
    rows, lower = sample(kind, num_tasks), combinations(num_tasks)
    rows, lower = (x.astype(dtype).astype(np.float64) for x in (rows, lower))
    weights, projection = solve_padded(rows, lower, dtype)
    assert np.all(weights >= lower)
    norms = np.linalg.norm(rows, axis=1)
    inner = weights @ rows @ rows.T
    size = np.outer(weights @ norms, np.where(norms == 0, 1, norms))
    slack = 5e-6 if np.dtype(dtype) == np.float32 else 1e-14
    assert np.all(inner >= -slack * size)
    assert np.all((weights == lower) | (norms == 0) | (inner <= slack * size))
    assert np.all(projection.residual <= 8 * np.finfo(dtype).eps)


@pytest.mark.parametrize("kind", ["random", "dominated", "conflicting", "aligned"])
def test_does_not_conflict(kind, dtype):
    """Cosines to every row of at least -1e-4 in float32, -1e-6 in float64."""
    for num_tasks in (2, 8, 40, 128):
        rows = sample(kind, num_tasks).astype(dtype).astype(np.float64)
        weights, _ = solve_padded(rows, combinations(num_tasks), dtype)
        directions = weights @ rows
        lengths = np.linalg.norm(rows, axis=1) * np.linalg.norm(
            directions, axis=1, keepdims=True
        )
        slack = 1e-4 if np.dtype(dtype) == np.float32 else 1e-6
        assert np.all(directions @ rows.T >= -slack * lengths)


def test_two_tasks_in_closed_form(dtype):
    """A conflict is projected off, <g_1, g_2> / |g_2|^2 of the other gradient."""
    rows = np.array([[1.0, 0.0], [-1e3, 1e3]])
    weights, _ = solve_padded(rows, np.eye(2), dtype)
    np.testing.assert_allclose(weights, [[1, 0.5e-3], [1e3, 1]], rtol=1e-6)
    weights, _ = solve_padded(np.abs(rows), np.eye(2), dtype)
    np.testing.assert_array_equal(weights, np.eye(2))


def test_lower_of_any_sign(float64):
    """Of -g what is left conflicts with no gradient: nothing, if g is alone."""
    weights, _ = solve_padded(np.array([[3.0, 4.0]]), np.array([[-2.0]]), float64)
    np.testing.assert_allclose(weights, 0, atol=1e-15)
    rows = random_rows(0, 8)
    weights, _ = solve_padded(rows, -np.eye(8), float64)
    for found, vector in zip(weights @ rows, -rows, strict=True):
        np.testing.assert_allclose(found, project_by_bvls(rows, vector), atol=1e-9)


def test_degenerate_rows(dtype):
    """Zero rows keep u; opposed rows cancel; duplicates act as one row."""
    rows = random_rows(0, 8)
    rows[3] = 0
    weights, _ = solve_padded(rows, np.full((1, 8), 0.5), dtype)
    assert weights[0, 3] == 0.5
    weights, _ = solve_padded(0 * rows, np.eye(8), dtype)
    np.testing.assert_array_equal(weights, np.eye(8))
    opposed = np.stack([rows[0], -2 * rows[0]])
    weights, _ = solve_padded(opposed, np.eye(2), dtype)
    np.testing.assert_allclose(weights @ opposed, 0, atol=1e-6)
    twice = np.concatenate([rows, rows])
    single, _ = solve_padded(rows, np.eye(8), dtype)
    double, _ = solve_padded(twice, np.eye(8, 16), dtype)
    np.testing.assert_allclose(double @ twice, single @ rows, atol=2e-5)


def test_absent_tasks_leave_the_sub_matrix(dtype):
    """Present tasks anywhere: the same weights."""
    rows, lower = random_rows(0, 8), combinations(8)
    expected, _ = solve_padded(rows, lower, dtype)
    places = np.random.default_rng(0).permutation(40)[:8]
    matrix = np.full((40, 40), np.nan, dtype)
    matrix[np.ix_(places, places)] = rows.astype(dtype) @ rows.astype(dtype).T
    padded = np.full((PROBLEMS, 40), np.nan, dtype)
    padded[:, places] = 0
    padded[:4, places] = lower
    present = np.isin(np.arange(40), places)
    weights = np.asarray(solve(matrix, padded, present).weights)[:4]
    np.testing.assert_allclose(weights[:, places], expected, atol=1e-5)
    assert np.all(weights[:, ~present] == 0)


def test_permutation_equivariant(dtype):
    """v does not depend on the order of the tasks."""
    rows, lower = random_rows(0, 40), combinations(40)
    order = np.random.default_rng(0).permutation(40)
    weights, _ = solve_padded(rows, lower, dtype)
    permuted, _ = solve_padded(rows[order], lower[:, order], dtype)
    np.testing.assert_allclose(permuted, weights[:, order], atol=2e-5)


@pytest.mark.parametrize("scale", [1e-12, 1e-6, 1e6, 1e12])
def test_scales(scale, dtype):
    """v is linear in u and does not depend on the unit of the losses."""
    rows, lower = random_rows(0, 40), combinations(40)
    expected, _ = solve_padded(rows, lower, dtype)
    weights, _ = solve_padded(rows * scale, lower, dtype)
    np.testing.assert_allclose(weights, expected, atol=2e-5)
    weights, _ = solve_padded(rows, lower * scale, dtype)
    np.testing.assert_allclose(weights, expected * scale, atol=2e-5 * scale)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_not_finite_stays_visible(bad):
    """One bad entry: NaN out, at once."""
    rows = random_rows(0, 8)
    rows[2, 3] = bad
    matrix, present = padded_gramian(rows, np.float32)
    padded = np.pad(combinations(8), ((0, 4), (0, 32))).astype(np.float32)
    assert all(np.all(np.isnan(leaf)) for leaf in solve(matrix, padded, present))
    absent = solve(matrix, padded, present & (np.arange(40) != 2))
    assert np.all(np.isfinite(absent.weights))


def test_vmap_and_scan_agree_with_single_calls():
    rows = np.stack([sample(kind, 8) for kind in KINDS]).astype(np.float32)
    matrices, lower = (
        rows @ rows.swapaxes(1, 2),
        jnp.asarray(combinations(8), "float32"),
    )

    @jax.jit
    def scanned(matrices):
        return jax.lax.scan(
            lambda _, matrix: (None, project_dual_cone(matrix, lower).weights),
            None,
            matrices,
        )[1]

    batched = jax.jit(jax.vmap(project_dual_cone, (0, None)))(matrices, lower).weights
    single = [solve_padded(matrix, lower, np.float32)[0] for matrix in rows]
    sizes = np.linalg.norm(rows, axis=2).max(axis=1)[:, None, None]
    for weights in (batched, scanned(matrices)):
        assert np.all(np.abs(weights @ rows - np.stack(single) @ rows) <= 3e-5 * sizes)


def test_shapes_are_checked():
    def trace(*shapes):
        jax.eval_shape(project_dual_cone, *(jnp.ones(shape) for shape in shapes))

    with pytest.raises(ValueError, match="`gramian` must be square"):
        trace((2, 3), (2, 2))
    with pytest.raises(ValueError, match="`lower` must have shape"):
        trace((2, 2), (2,))
    with pytest.raises(ValueError, match="`present` must have shape"):
        trace((2, 2), (2, 2), (3,))
