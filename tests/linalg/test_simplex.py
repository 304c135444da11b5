"""Projection on the simplex: optimality, any size of entries, absent tasks."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mtlopt._checks import check_range
from mtlopt.linalg.simplex import (
    project_to_simplex,
    share_out,
    shares_of,
)

SIZE = 8
project = jax.jit(project_to_simplex)


def project_some(point, dtype):
    """Projects a shorter vector among absent tasks that hold NaN."""
    padded = np.full(SIZE, np.nan, dtype)
    padded[: len(point)] = point
    weights = np.asarray(project(padded, np.arange(SIZE) < len(point)), np.float64)
    assert np.all(weights[len(point) :] == 0)
    return weights[: len(point)]


@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e3])
@pytest.mark.parametrize("num_tasks", [1, 2, 5, 8])
def test_optimal(num_tasks, scale, dtype):
    """KKT: w >= 0, sum 1, and v - w is t where w > 0, at most t elsewhere."""
    eps = np.finfo(dtype).eps
    for seed in range(5):
        point = scale * np.random.default_rng(seed).normal(size=num_tasks)
        point = point.astype(dtype).astype(np.float64)
        weights = project_some(point, dtype)
        assert np.all(weights >= 0)
        np.testing.assert_allclose(weights.sum(), 1, rtol=8 * eps)
        gap = point - weights
        threshold = gap[weights > 0].max()
        allowed = 8 * eps * (1 + scale)
        assert np.all(gap <= threshold + allowed)
        assert np.all(gap[weights > 0] >= threshold - allowed)


@pytest.mark.parametrize("size", [1e12, -1e30])
def test_entries_of_any_size(size, dtype):
    """The largest entry takes all; equal ones share exactly."""
    np.testing.assert_array_equal(project_some([size, 2 * size, 0.0], dtype).sum(), 1)
    winner = np.argmax([size, 2 * size, 0.0])
    assert project_some([size, 2 * size, 0.0], dtype)[winner] == 1
    np.testing.assert_array_equal(project_some([size] * 4, dtype), np.full(4, 0.25))


def test_feasible_points_stay(dtype):
    """A projection: w = P(w), and P(w + c) = P(w)."""
    point = np.array([0.5, 0.125, 0.0, 0.375])
    np.testing.assert_array_equal(project_some(point, dtype), point)
    np.testing.assert_allclose(project_some(point + 4, dtype), point, atol=1e-6)


def test_derivative(float64):
    """On its support S the projection is v -> v - mean_S v."""
    point = np.array([0.5, 0.4, 0.3, -2.0])
    on = np.array([1.0, 1.0, 1.0, 0.0])
    expected = np.diag(on) - np.outer(on, on) / 3
    found = jax.jit(jax.jacobian(project_to_simplex))(point)
    np.testing.assert_allclose(found, expected, atol=1e-12)


def test_vmap_is_the_loop():
    points = np.random.default_rng(0).normal(size=(5, SIZE)).astype(np.float32)
    present = np.random.default_rng(1).random((5, SIZE)) < 0.6
    batch = jax.jit(jax.vmap(project_to_simplex))(points, present)
    single = [project(*pair) for pair in zip(points, present, strict=True)]
    np.testing.assert_allclose(batch, single, atol=1e-7)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_not_finite_stays_visible(bad):
    point = np.array([0.1, bad, 0.2, 0, 0, 0, 0, 0], np.float32)
    assert np.all(np.isnan(project(point, np.ones(SIZE, bool))))


def test_nobody_there():
    nobody = np.zeros(SIZE, bool)
    np.testing.assert_array_equal(project(np.ones(SIZE, np.float32), nobody), 0)
    np.testing.assert_array_equal(shares_of(jnp.ones(SIZE), nobody), 0)


def test_sharing_out_keeps_the_total_and_the_absent():
    """Absent weights are the same bits; the sum is the total, over many steps."""
    rng = np.random.default_rng(0)
    step = jax.jit(
        lambda w, new, there: share_out(shares_of(new, there), w, 3.0, there)
    )
    weights = np.full(4, 0.75, np.float32)
    for _ in range(50):
        there, new = rng.random(4) < 0.5, rng.random(4).astype(np.float32)
        before, weights = weights, np.array(step(weights, new, there))
        np.testing.assert_array_equal(weights[~there], before[~there])
        np.testing.assert_allclose(weights.sum(), 3, rtol=1e-6)
        if there.any():
            ratio = weights[there] / new[there]
            np.testing.assert_allclose(ratio, ratio[0], rtol=1e-5)


def test_shares_without_weight_are_equal():
    there = np.array([True, True, False])
    np.testing.assert_array_equal(
        shares_of(jnp.array([0, 0, 1.0]), there), [0.5, 0.5, 0]
    )


def test_bad_arguments():
    with pytest.raises(ValueError, match=r"`point` must be a vector \[tasks\]"):
        project_to_simplex(jnp.eye(2))
    with pytest.raises(ValueError, match="`rho` must be at least 0, got -1"):
        check_range("rho", -1)
    with pytest.raises(
        ValueError, match=r"`b` must be at least 0 and below 1, got 1\.0"
    ):
        check_range("b", 1.0, below=1)
    check_range("traced", jnp.array(-1.0))
