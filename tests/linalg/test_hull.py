"""The linear program over the convex hull: SciPy's value, closed forms, corners."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.optimize import linprog

from mtlopt.linalg.hull import furthest_in_hull
from tests.linalg.matrices import KINDS, structured

solve = jax.jit(furthest_in_hull)
SIZE = 12


def program(kind, num_tasks, seed, exponent=0):
    """Unit rows, lengths, `<u, p>` for p in their span, and bounds, some -inf."""
    rng = np.random.default_rng([seed, num_tasks])
    rows = structured(kind, num_tasks, seed)
    rows *= 10.0 ** -rng.permutation(np.linspace(0, exponent, num_tasks))[:, None]
    lengths = np.linalg.norm(rows, axis=1)
    lengths /= np.max(lengths) or 1
    unit = rows / np.where(lengths > 0, np.linalg.norm(rows, axis=1), 1)[:, None]
    along = unit @ (rng.normal(size=num_tasks) @ unit)
    bounds = rng.choice([0, -0.1, -np.inf], num_tasks)
    return unit, lengths, along, np.where(lengths > 0, bounds, 0)


def by_scipy(unit, lengths, along, bounds):
    """The largest `<p, d>`, in the variables `beta |g| / shortest`."""
    units = np.where(lengths > 0, lengths, np.min(lengths[lengths > 0], initial=1))
    held = np.isfinite(bounds)
    found = linprog(
        -along,
        -(unit @ unit.T)[held],
        -bounds[held],
        (1 / units)[None],
        [1],
        method="highs",
        options={"primal_feasibility_tolerance": 1e-10},
    )
    assert found.status == 0
    return -found.fun


def weights_of(unit, lengths, along, bounds, dtype):
    """The weights; but for two tasks among more, of which the others are absent."""
    more = 0 if len(lengths) == 2 else SIZE - len(lengths)
    present = np.arange(len(lengths) + more) < len(lengths)
    matrix = np.pad(unit @ unit.T, (0, more)).astype(dtype)
    vectors = [np.pad(x, (0, more)).astype(dtype) for x in (lengths, along, bounds)]
    weights = np.asarray(solve(matrix, *vectors, present), np.float64)
    assert np.all(weights >= 0)
    assert np.all(weights[len(lengths) :] == 0)
    np.testing.assert_allclose(np.sum(weights), 1, rtol=1e-6)
    return weights[: len(lengths)]


@pytest.mark.parametrize("num_tasks", [1, 2, 3, SIZE])
def test_equals_scipy(num_tasks, dtype):
    """Feasible, and as far along p as the solution of `scipy.optimize.linprog`."""
    allowed = 3e-5 if dtype == np.float32 else 1e-8
    for kind in KINDS:
        for seed in range(5):
            unit, lengths, along, bounds = program(kind, num_tasks, seed)
            weights = weights_of(unit, lengths, along, bounds, dtype)
            direction = (weights * lengths) @ unit
            assert np.all(unit @ direction >= bounds - allowed), (kind, seed)
            best = by_scipy(unit, lengths, along, bounds)
            reached = (weights * lengths) @ along
            assert abs(reached - best) <= allowed * (1 + np.abs(along).max()), kind


def test_rows_of_any_length(float64):
    """Lengths 1e6 apart: the violation and the gap are relative to the terms."""
    for num_tasks in (2, 3, 8):
        for seed in range(8):
            unit, lengths, along, bounds = program("random", num_tasks, seed, 6)
            bounds = np.minimum(bounds, 0) * np.min(lengths)
            weights = weights_of(unit, lengths, along, bounds, float64)
            terms = np.sum(weights * lengths)
            slack = unit @ ((weights * lengths) @ unit) - bounds
            assert np.all(slack >= -1e-9 * terms)
            best = by_scipy(unit, lengths, along, bounds)
            assert abs((weights * lengths) @ along - best) <= 1e-6 * abs(best)


def test_two_opposed_tasks(dtype):
    """cos = -1/2, lengths 1 and 1e-3: b_1 = 0 asks for beta_1 l_1 / 2 = beta_0 l_0."""
    unit = np.array([[1, 0], [-0.5, 0.75**0.5]])
    lengths, along = np.array([1, 1e-3]), np.array([1, -0.5])
    weights = weights_of(unit, lengths, along, np.array([-np.inf, 0]), dtype)
    np.testing.assert_allclose(weights, np.array([2e-3, 1]) / 1.002, rtol=1e-5)


def test_nobody_is_there():
    args = jnp.zeros((SIZE, SIZE)), *(jnp.zeros(SIZE),) * 3, np.zeros(SIZE, bool)
    np.testing.assert_array_equal(solve(*args), 0)


def test_nan_stays_visible():
    for num_tasks in (2, SIZE):
        matrix = jnp.full((num_tasks, num_tasks), jnp.nan)
        there = np.ones(num_tasks, bool)
        weights = solve(matrix, *(jnp.ones(num_tasks),) * 3, there)
        assert np.all(np.isnan(weights))


@pytest.mark.parametrize("num_tasks", [2, 3])
def test_derivative(num_tasks, float64):
    """Equal to central differences, where one bound holds with equality."""
    unit, lengths, along, _ = program("random", num_tasks, 0)
    unit -= 0.9 * unit.mean(axis=0)
    unit /= np.linalg.norm(unit, axis=1)[:, None]
    args = unit @ unit.T, lengths, along, np.full(num_tasks, -0.01)
    assert np.sum(np.asarray(solve(*args)) > 1e-6) > 1
    rng = np.random.default_rng(0)
    turn = rng.normal(size=(num_tasks, num_tasks))
    changes = 0.1 * (turn + turn.T), *(rng.normal(size=num_tasks) for _ in range(3))
    moved = jax.jit(lambda *a: jax.jvp(furthest_in_hull, *a)[1])(args, changes)

    def at(step):
        return solve(
            *(x + step * change for x, change in zip(args, changes, strict=True))
        )

    np.testing.assert_allclose(moved, (at(1e-6) - at(-1e-6)) / 2e-6, rtol=1e-5)
