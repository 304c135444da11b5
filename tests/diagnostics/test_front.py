"""Hypervolume, spread and dominance of points: closed forms and plain counting."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import mtlopt

hypervolume = jax.jit(mtlopt.hypervolume)
front_spread = jax.jit(mtlopt.front_spread)


def by_inclusion_and_exclusion(losses, reference):
    """The sum over all sets of points of plus or minus the box that they share."""
    volume = 0.0
    for size in range(1, len(losses) + 1):
        for chosen in itertools.combinations(losses, size):
            shared = np.prod(np.maximum(reference - np.max(chosen, axis=0), 0))
            volume -= (-1) ** size * shared
    return volume


@pytest.mark.parametrize("num_tasks", [1, 2, 3, 4])
def test_hypervolume(num_tasks, float64):
    """Equal to inclusion and exclusion, with points beyond the reference and twice."""
    for seed in range(4):
        rng = np.random.default_rng(seed)
        losses = rng.uniform(0, 1.2, (8, num_tasks))
        losses[3] = losses[5]
        reference = rng.uniform(0.9, 1.1, num_tasks)
        found = hypervolume(losses, reference)
        expected = by_inclusion_and_exclusion(losses, reference)
        np.testing.assert_allclose(found, expected, rtol=1e-12)


def test_hypervolume_of_known_fronts():
    """x + y = 1 in n steps: (1 - 1/n) / 2 up to (1, 1); one point in five: its box."""
    x = np.linspace(0, 1, 101)
    line = np.stack([x, 1 - x], axis=1)
    np.testing.assert_allclose(hypervolume(line, np.ones(2)), 0.495, rtol=1e-5)
    box = hypervolume(np.full((1, 5), 0.5), np.ones(5))
    np.testing.assert_allclose(box, 2.0**-5)
    assert hypervolume(2 * line + 1, np.ones(2)) == 0
    assert np.isnan(hypervolume(line * np.nan, np.ones(2)))


def test_hypervolume_by_counting():
    """Three tasks, forty points: the share of random points that one dominates."""
    rng = np.random.default_rng(0)
    losses, drawn = rng.uniform(size=(40, 3)), rng.uniform(size=(40_000, 3))
    hits = np.any(np.all(losses[:, None] <= drawn[None], axis=2), axis=0)
    found = hypervolume(losses, np.ones(3))
    np.testing.assert_allclose(found, np.mean(hits), atol=4 * 0.5 / 200)


def test_hypervolume_has_a_derivative(float64):
    """That of a point is minus the length of its edge that no other covers."""
    losses = jnp.array([[0.2, 0.7], [0.5, 0.4], [0.8, 0.1]])
    found = jax.jit(jax.grad(hypervolume))(losses, jnp.ones(2))
    expected = [[-0.3, -0.3], [-0.3, -0.3], [-0.3, -0.2]]
    np.testing.assert_allclose(found, expected, rtol=1e-9)


def test_non_dominated():
    """By comparing all pairs; equal points are both kept, NaN and infinity are not."""
    losses = np.random.default_rng(0).integers(0, 5, (60, 3)).astype(float)
    expected = [
        not any(np.all(b <= a) and np.any(b < a) for b in losses) for a in losses
    ]
    np.testing.assert_array_equal(mtlopt.non_dominated(losses), expected)
    assert np.sum(expected) > len(np.unique(losses[expected], axis=0))
    odd = np.array([[1.0, 2.0], [np.nan, 0.0], [0.0, np.inf]])
    np.testing.assert_array_equal(mtlopt.non_dominated(odd), [True, False, False])


def test_spread_of_two_tasks(float64):
    """Neighbours are those along the front, in any order of the points."""
    x = np.array([0, 0.1, 0.2, 0.7, 1.0])
    points = np.stack([x, 1 - x], axis=1)[[3, 0, 4, 2, 1]]
    found = front_spread(points)
    edges = np.sqrt(2) * np.diff(x)
    np.testing.assert_allclose(found.largest_gap, np.sqrt(2) * 0.5)
    np.testing.assert_allclose(found.extent, 1)
    expected = np.mean(np.abs(edges - edges.mean())) / edges.mean()
    np.testing.assert_allclose(found.unevenness, expected)


def test_spread_of_three_tasks():
    """A grid has equal edges; two far groups have one long edge; NaN stays visible."""
    grid = np.array(list(itertools.product([0, 1, 2], [0, 1], [5])), float)
    found = front_spread(grid)
    np.testing.assert_allclose(found.extent, [2, 1, 0])
    np.testing.assert_allclose([found.largest_gap, found.unevenness], [1, 0], atol=1e-6)
    groups = np.concatenate([grid, grid + np.array([10, 0, 0])])
    np.testing.assert_allclose(front_spread(groups).largest_gap, 8)
    same = front_spread(np.ones((12, 3)))
    np.testing.assert_array_equal([same.largest_gap, same.unevenness], 0)
    assert np.isnan(front_spread(grid * np.nan).largest_gap)


@pytest.mark.parametrize("measure", [mtlopt.non_dominated, mtlopt.front_spread])
def test_bad_points(measure):
    with pytest.raises(ValueError, match=r"`losses` must have shape \[points, tasks\]"):
        measure(jnp.ones(3))
    with pytest.raises(ValueError, match=r"`reference` must have one entry per task"):
        mtlopt.hypervolume(jnp.ones((3, 2)), jnp.ones(3))
    with pytest.raises(ValueError, match="at least two points"):
        mtlopt.front_spread(jnp.ones((1, 2)))
