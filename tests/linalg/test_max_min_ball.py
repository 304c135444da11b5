"""The max-min direction in a ball: optimality, closed forms, degenerate input."""

import jax
import numpy as np
import pytest

from mtlopt.linalg.max_min_ball import max_min_direction
from tests.linalg.matrices import KINDS, gramian, padded_gramian, structured

solve = jax.jit(max_min_direction)


def direction_of(rows, radius, dtype):
    """`d`, from the rows among more tasks of which the others are absent."""
    matrix, present = padded_gramian(rows, dtype)
    found = solve(matrix, dtype(radius), present)
    weights = np.asarray(found.weights, np.float64)
    assert np.all(weights[len(rows) :] == 0)
    return weights[: len(rows)] @ rows, weights[: len(rows)]


def cosines(rows, direction, size):
    """Inner products with the unit rows, relative to `size`; zero for zero rows."""
    norms = np.linalg.norm(rows, axis=1)
    return rows @ direction / np.where(norms == 0, 1, norms * size)


def scales(num_tasks, exponent):
    order = np.random.default_rng(1).permutation(num_tasks)
    return np.logspace(0, -exponent, num_tasks)[order]


@pytest.mark.parametrize("radius", [0.4, 1.5])
@pytest.mark.parametrize("exponent", [0, 6])
def test_optimal(radius, exponent, dtype):
    """d is in the ball, d - g0 = J'y with y >= 0, and only the worst tasks have y.

    `min_i <g_i, d> = mu`, with y_i > 0 only where <g_i, d> = mu; and |d - g0| is the
    radius, unless mu is zero. That is sufficient.
    """
    rtol = 3e-4 if dtype == np.float32 else 1e-9
    for kind in [*KINDS, "near_opposed"]:
        for num_tasks in (1, 2, 3, 8, 40):
            rows = structured(kind.replace("near_opposed", "random"), num_tasks)
            if kind == "near_opposed":
                rows = rows - 0.9 * rows.mean(axis=0)
            rows = rows * scales(num_tasks, exponent)[:, None]
            rows = rows.astype(dtype).astype(np.float64)
            found, weights = direction_of(rows, radius, dtype)
            mean = rows.mean(axis=0)
            size = np.linalg.norm(mean)
            norms = np.linalg.norm(rows, axis=1)
            if size <= 1e-2 * np.linalg.norm(norms) / num_tasks:
                np.testing.assert_allclose(found, mean, atol=rtol * max(norms))
                continue
            case = kind, num_tasks
            assert np.linalg.norm(found - mean) <= (1 + rtol) * radius * size, case
            added = (weights - 1 / num_tasks) * norms / size
            assert np.all(added >= -rtol), case
            inner = rows @ found
            active = added > 1e-3 if dtype == np.float32 else added > 1e-9
            # The level as the shortest active row has it: rounding is least there.
            order = np.argsort(np.where(norms == 0, np.inf, norms))
            tight = [inner[i] for i in order if active[i]]
            level = tight[0] if tight else np.min(inner)
            level = min(level, 0) if np.any(norms == 0) else level
            slack = (inner - level) / np.where(norms == 0, 1, norms * size)
            assert np.all(slack >= -rtol), case
            assert np.all(slack[active] <= rtol), case
            inside = np.linalg.norm(found - mean) < (1 - rtol) * radius * size
            if inside and np.any(active):
                assert np.max(np.abs(cosines(rows[active], found, size))) <= rtol, case


def test_two_equally_long_rows(float64):
    """Closed form: d bisects, as far along g1 + g2 as the ball allows."""
    rows = np.array([[1.0, 0.0], [np.cos(2.0), np.sin(2.0)]])
    mean = rows.mean(axis=0)
    found, _ = direction_of(rows, 0.7, float64)
    np.testing.assert_allclose(found, 1.7 * mean, rtol=1e-12)


@pytest.mark.parametrize("radius", [0.0, 0.1, 0.4, 0.99, 1.0, 1.5, 10.0])
def test_two_tasks(radius, float64):
    """The closed form is what the path of more tasks gives, of which one is absent."""
    angles = [-1, -1 + 1e-6, -0.9, -0.3, 0, 0.2, 0.7, 0.99, 1 - 1e-4, 1]
    norms = [1e-6, 1e-3, 0.3, 0.9, 0.9999, 1, 1.0001, 1.5, 30, 1e3, 1e6]
    sine = np.sqrt(1 - np.square(angles))
    units = np.stack([angles, sine], axis=1)
    rows = np.array([[[1, 0], norm * unit] for norm in norms for unit in units])
    rows = np.concatenate([rows, rows * [[1], [0]], rows * [[0], [1]], 0 * rows[:1]])
    matrices = rows @ rows.transpose(0, 2, 1)
    found = jax.jit(jax.vmap(max_min_direction, (0, None)))(matrices, radius)
    many = jax.jit(jax.vmap(max_min_direction, (0, None, None)))
    padded = np.pad(matrices, ((0, 0), (0, 1), (0, 1)))
    expected = many(padded, radius, np.arange(3) < 2).weights[:, :2]
    change = ((found.weights - expected)[:, :, None] * rows).sum(axis=1)
    size = np.linalg.norm(rows.mean(axis=1), axis=1) * max(radius, 1)
    assert np.all(np.linalg.norm(change, axis=1) <= 1e-9 * size)
    assert np.all(found.residual <= 1e-11)


@pytest.mark.parametrize("num_tasks", [2, 3])
def test_nearly_equal_rows_of_equal_length(num_tasks, float64):
    """A tie, in which constraints took each other's place for ever."""
    rows = np.array([[1, 0], [0.9999, np.sqrt(1 - 0.9999**2)], [0.0, 0.0]])
    there = np.arange(3) < 2
    args = rows[:num_tasks] @ rows[:num_tasks].T, 0.1, there[:num_tasks]
    expected = np.where(there, 0.55, 0)[:num_tasks]
    np.testing.assert_allclose(solve(*args).weights, expected, rtol=1e-9)


def test_beats_other_points_of_the_ball(float64):
    """min_i <g_i, d> is at least that of 10000 random points of the ball."""
    rng = np.random.default_rng(0)
    rows = structured("random", 3)[:, :3] * np.array([[1.0], [30.0], [0.01]])
    mean = rows.mean(axis=0)
    found, _ = direction_of(rows, 0.5, float64)
    points = rng.normal(size=(10_000, 3))
    points *= rng.uniform(size=(10_000, 1)) / np.linalg.norm(points, axis=1)[:, None]
    others = mean + 0.5 * np.linalg.norm(mean) * points
    best = np.max(np.min(others @ rows.T, axis=1))
    worst = np.min(rows @ found)
    assert best <= worst <= best + 0.2 * np.linalg.norm(mean) * np.max(np.abs(rows))


def test_ball_that_reaches_the_origin_leaves_no_conflict(dtype):
    """For c >= 1, <g_i, d> >= 0 for all i, at scale ratios up to 1e6."""
    for kind in KINDS:
        for exponent in (0, 6):
            rows = structured(kind, 40) * scales(40, exponent)[:, None]
            rows = rows.astype(dtype).astype(np.float64)
            found, _ = direction_of(rows, 1.0, dtype)
            size = np.linalg.norm(rows.mean(axis=0))
            if size > 1e-3 * np.max(np.abs(rows)):
                allowed = 3e-4 if dtype == np.float32 else 1e-10
                assert np.min(cosines(rows, found, size)) >= -allowed, kind


def test_zero_row_asks_for_no_conflict_only(dtype):
    """With a zero row the answer is g0 if nothing conflicts, else the nearest point."""
    rows = np.array([[0.0, 0.0], [3.0, 1.0], [1.0, 2.0]])
    found, _ = direction_of(rows, 0.4, dtype)
    np.testing.assert_allclose(found, rows.mean(axis=0), rtol=1e-6)
    rows = np.array([[0.0, 0.0], [4.0, 1.0], [-1.0, 0.0]])
    found, _ = direction_of(rows, 0.99, dtype)  # |g0|^2 is 10/9: x = 0 is in the ball
    np.testing.assert_allclose(found, [0, 1 / 3], atol=1e-6)


def test_opposed_rows_are_left_at_right_angles(dtype):
    """u and -u force <u, d> = 0; the others are served within that."""
    rows = np.array([[1.0, 0.0, 0.0], [-0.5, 0.0, 0.0], [0.0, 2.0, 0.0]])
    found, _ = direction_of(rows, 0.5, dtype)
    np.testing.assert_allclose(found, [0, 2 / 3, 0], atol=1e-6)


def test_nothing_to_do(dtype):
    """Radius zero gives the mean, one row (1 + c) g, zeros zero."""
    rows = structured("random", 8)
    np.testing.assert_allclose(
        direction_of(rows, 0.0, dtype)[1], np.full(8, 1 / 8), rtol=1e-6
    )
    np.testing.assert_allclose(direction_of(rows[:1], 0.4, dtype)[1], [1.4], rtol=1e-6)
    equal = np.tile(rows[:1], (8, 1))
    found = direction_of(equal, 0.4, dtype)[0]
    np.testing.assert_allclose(found, 1.4 * rows[0], rtol=1e-5)
    assert np.all(direction_of(0 * rows, 0.4, dtype)[0] == 0)


@pytest.mark.parametrize("scale", [1e-12, 1e12])
def test_degree_one(scale, dtype):
    """Weights do not depend on the scale of all rows."""
    matrix, present = padded_gramian(structured("random", 40), dtype)
    expected = solve(matrix, dtype(0.4), present).weights
    found = solve(matrix * dtype(scale) ** 2, dtype(0.4), present).weights
    np.testing.assert_allclose(found, expected, rtol=2e-4, atol=1e-5)


def test_not_finite_stays_visible():
    """One bad entry: NaN out; not if the task is absent."""
    matrix = np.eye(40, dtype=np.float32)
    matrix[3, 7] = matrix[7, 3] = np.nan
    found = solve(matrix, np.float32(0.4), np.ones(40, bool))
    assert all(np.all(np.isnan(leaf)) for leaf in found)
    found = solve(matrix, np.float32(0.4), np.arange(40) != 7)
    assert np.all(np.isfinite(found.weights))
    assert found.weights[7] == 0


def test_vmap_agrees():
    """A batch, whose loops end at different times, gives the single answers."""
    matrices = np.stack([gramian(structured(k, 8), np.float32) for k in KINDS])
    single = [solve(matrix, np.float32(0.4)).weights for matrix in matrices]
    batch = jax.jit(jax.vmap(lambda m: max_min_direction(m, 0.4)))(matrices)
    np.testing.assert_allclose(batch.weights, single, atol=1e-4)
    assert np.max(batch.residual) <= 1e-5


def test_shapes_are_checked():
    """A `gramian` or `present` of the wrong shape raises."""
    with pytest.raises(ValueError, match="`gramian` must be square"):
        max_min_direction(np.ones((2, 3)), 0.4)
    with pytest.raises(ValueError, match="`present` must have shape"):
        max_min_direction(np.eye(2), 0.4, np.ones(3, bool))
