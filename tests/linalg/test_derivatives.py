"""Every solver differentiates, in both modes, for two tasks and for more."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mtlopt.linalg.bargaining import bargain
from mtlopt.linalg.dual_cone import project_dual_cone
from mtlopt.linalg.max_min_ball import max_min_direction
from mtlopt.linalg.min_norm import min_norm_point
from mtlopt.linalg.nonnegative import minimise_nonnegative
from mtlopt.linalg.surgery import project_conflicts, raise_cosines
from tests.linalg.derivatives import (
    assert_differentiates,
    assert_equal,
    assert_transposed,
    derivatives,
)
from tests.linalg.matrices import KINDS, random_rows, structured
from tests.marks import slow


def min_norm(gramian, present):
    return min_norm_point(gramian, present).weights


def dual_cone(gramian, present):
    lower = jnp.diag(jnp.arange(1.0, 1 + len(gramian), dtype=gramian.dtype))
    return jnp.sum(project_dual_cone(gramian, lower, present).weights, axis=0)


def of_bargain(alpha):
    return lambda gramian, present: bargain(gramian, alpha, present).weights


def max_min_ball(radius):
    def weights(gramian, present):
        return max_min_direction(gramian, radius, present).weights

    return weights


def orders(num_tasks):
    return jnp.stack([jnp.roll(jnp.arange(num_tasks), i) for i in range(num_tasks)])


def surgery(gramian, present):
    return project_conflicts(gramian, orders(len(gramian)), present)


def vaccine(gramian, present):
    targets = jnp.full(gramian.shape, 0.3, gramian.dtype)
    return raise_cosines(gramian, targets, orders(len(gramian)), present).weights


SOLVERS = {
    "min_norm": min_norm,
    "dual_cone": dual_cone,
    "nash": of_bargain(1.0),
    "fair": of_bargain(0.5),
    "fairer": of_bargain(3.0),
    "ball": max_min_ball(0.4),
    "large_ball": max_min_ball(1.5),
    "surgery": surgery,
    "vaccine": vaccine,
}
# The others are slow.
FIRST = ("min_norm", "surgery")
sizes = pytest.mark.parametrize("num_tasks", [2, 5])


@sizes
@pytest.mark.parametrize(
    "solver",
    [solver if solver in FIRST else slow(solver) for solver in SOLVERS],
)
def test_direction(solver, num_tasks, float64):
    """Equal to central differences, in a batch, with absent tasks.

    Never NaN: beside them are rows that depend on each other, rows of zeros, and rows
    for which there is no solution.
    """
    rng, count = np.random.default_rng(7), 5
    rows = [random_rows(seed, num_tasks, shift=0.2 * seed) for seed in range(count)]
    rows = np.stack(rows + [structured(kind, num_tasks) for kind in KINDS])
    rows[:count] *= rng.uniform(0.5, 2, (count, num_tasks, 1))
    change = rng.normal(size=rows.shape)
    present = np.ones(rows.shape[:2], bool)
    present[3, 0] = present[4, 1] = False

    @jax.vmap
    def combine(rows, present):
        rows = jnp.where(present[:, None], rows, 0)
        return SOLVERS[solver](rows @ rows.T, present) @ rows

    def directions(rows):
        found = combine(rows, present)
        return found[:count], found[count:]

    moved, expected, pulled, weights = derivatives(directions, [rows], [change])
    assert all(np.all(np.isfinite(leaf)) for leaf in (*moved, *pulled))
    assert_equal(moved[:1], expected[:1])
    pulled, change = pulled[0][:count], change[:count]
    assert_transposed(moved[:1], weights[:1], [pulled], [change])


@sizes
def test_nonnegative_minimum(num_tasks, float64):
    """On the active set; with positive and zero entries in the solution."""

    def minimum(rows, target):
        return minimise_nonnegative(rows @ rows.T, -rows @ target).solution

    for seed in range(3):
        rng = np.random.default_rng(100 + seed)
        rows, target = random_rows(seed, num_tasks), rng.normal(size=2 * num_tasks + 2)
        rows /= np.linalg.norm(rows, axis=1)[:, None]
        tangents = rng.normal(size=rows.shape), rng.normal(size=target.shape)
        assert_differentiates(minimum, (rows, target), tangents)


@sizes
def test_alpha_and_radius(num_tasks, float64):
    """With respect to the fairness of a bargain and to the radius of the ball."""
    rows = random_rows(0, num_tasks) * np.arange(1, 1 + num_tasks)[:, None]

    def weights(alpha):
        ball = max_min_direction(rows @ rows.T, alpha).weights
        return bargain(rows @ rows.T, alpha).weights, ball

    assert_differentiates(weights, [np.array(0.5)], [np.array(1.0)])


def test_norm_of_the_min_norm_point(float64):
    """|d| moves as d does, and has a derivative of zero at d = 0."""

    def norms(some, opposed):
        return [min_norm_point(rows @ rows.T).norm for rows in (some, opposed)]

    rng = np.random.default_rng(0)
    rows = random_rows(0, 2) + 1, np.array([[3.0, 4.0], [-3.0, -4.0]])
    changes = [rng.normal(size=a.shape) for a in rows]
    moved, expected, pulled, _ = derivatives(norms, rows, changes)
    assert_equal(moved[:1], expected[:1])
    assert moved[1] == 0
    np.testing.assert_array_equal(pulled[1], 0)
