"""PCD: the nearest direction to the first gradient that serves the others."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import mtlopt
from mtlopt.aggregators.pcd import pcd, pcd_weights
from tests.linalg.matrices import padded_gramian, random_rows, structured

SIZE = 8
solve = jax.jit(pcd_weights)


def weights_of(rows, dtype, tau=0.1, mean_norms=None):
    """Weights of the rows among more tasks, of which the others are absent."""
    num_tasks = len(rows)
    rest = (0, SIZE - num_tasks)
    tau = np.broadcast_to(np.asarray(tau, float), num_tasks - 1)
    tau = np.pad(tau, rest, constant_values=np.nan)
    norms = np.linalg.norm(rows, axis=1) if mean_norms is None else mean_norms
    norms = np.pad(norms, rest, constant_values=np.nan)
    matrix, present = padded_gramian(rows, dtype, SIZE)
    weights = solve(matrix, tau.astype(dtype), norms.astype(dtype), present)
    weights = np.asarray(weights, np.float64)
    assert np.all((weights[num_tasks:] == 0) | np.isnan(weights[0]))
    return weights[:num_tasks]


def enumerate_active_sets(rows, tau, mean_norms):
    """The result by brute force: the nearest feasible point of every active set."""
    scaled = rows / mean_norms[:, None]
    bounds = tau * np.sum(scaled[1:] ** 2, axis=1)
    best, least = scaled[0], np.inf
    for size in range(len(rows)):
        for active in itertools.combinations(range(1, len(rows)), size):
            chosen = scaled[np.array(active, int)]
            wanted = bounds[[j - 1 for j in active]] - chosen @ scaled[0]
            point = scaled[0] + np.linalg.pinv(chosen) @ wanted
            distance = np.linalg.norm(point - scaled[0])
            feasible = scaled[1:] @ point - bounds >= -1e-9 * (1 + distance)
            if np.all(feasible) and distance < least:
                best, least = point, distance
    return best / np.linalg.norm(best) * np.linalg.norm(rows[0])


@pytest.mark.parametrize("num_tasks", [1, 2, 3, 4])
def test_equals_brute_force(num_tasks, dtype):
    """The exact solution, with norms up to 1e6 apart and any averages of them."""
    for seed in range(15):
        rng = np.random.default_rng(seed)
        rows = random_rows(seed, num_tasks) * 10.0 ** rng.uniform(-3, 3, (num_tasks, 1))
        mean_norms = np.linalg.norm(rows, axis=1) * rng.uniform(0.5, 2, num_tasks)
        tau = rng.uniform(0, 0.5, num_tasks - 1)
        expected = enumerate_active_sets(rows, tau, mean_norms)
        found = weights_of(rows, dtype, tau, mean_norms) @ rows
        error = np.linalg.norm(found - expected) / np.linalg.norm(expected)
        assert error <= (1e-4 if dtype == np.float32 else 1e-10)


def test_guarantee(dtype):
    """Each other task gets tau of its own gradient's progress, of the unit of d~."""
    slack = 1e-5 if dtype == np.float32 else 1e-12
    for seed in range(5):
        rows = structured("aligned", 8, seed) * np.logspace(3, -3, 8)[:, None]
        rows[1:4] *= -1
        weights = weights_of(rows, dtype, 0.3)
        units = rows / np.linalg.norm(rows, axis=1, keepdims=True)
        made_of = weights * np.linalg.norm(rows, axis=1)
        scaled = made_of / made_of[0] @ units  # d~, in units of the scaled gradients
        assert np.all(weights >= 0)
        assert np.all(units[1:] @ scaled >= 0.3 - slack * np.sum(made_of / made_of[0]))


def test_the_scale_of_the_others_does_not_matter(dtype):
    """A(diag(c) J) = c_1 A(J) if the averages scale too."""
    rows = random_rows(0, 4)
    factors = np.array([[1e-3], [1e3], [1e-6], [1.0]])
    expected = weights_of(rows, dtype) @ rows * 1e-3
    found = weights_of(rows * factors, dtype) @ (rows * factors)
    np.testing.assert_allclose(found, expected, atol=1e-5 * np.linalg.norm(expected))


def test_no_violated_constraint_is_the_first_gradient(dtype):
    rows = np.abs(random_rows(0, 4))
    weights = weights_of(rows, dtype, 0.02)
    np.testing.assert_allclose(weights, [1, 0, 0, 0], rtol=1e-6)


def test_degenerate_rows(dtype):
    """Zero primary, zero others, duplicates, contradictions, nothing left."""
    first, other = random_rows(0, 2, 4)
    zero = np.zeros(4)

    def update(*rows, tau=0.1):
        rows = np.stack(rows)
        return weights_of(rows, dtype, tau, np.ones(len(rows))) @ rows

    np.testing.assert_array_equal(update(zero, other), 0)
    np.testing.assert_array_equal(update(zero, zero), 0)
    expected = update(first, -other)
    np.testing.assert_allclose(update(first, -other, zero), expected, atol=1e-5)
    np.testing.assert_allclose(update(first, -other, -other), expected, atol=1e-5)
    # Opposed gradients cannot both be served: the first one alone.
    np.testing.assert_allclose(update(first, other, -other), first, rtol=1e-5)
    # Without a demand nothing is left of what the other opposes altogether.
    np.testing.assert_allclose(update(first, -2 * first, tau=0), 0, atol=1e-6)
    np.testing.assert_allclose(update(first), first, rtol=1e-6)
    np.testing.assert_allclose(update(first, first, first), first, rtol=1e-6)


def test_nan_stays_visible():
    rows = random_rows(0, 4)
    rows[2, 0] = np.nan
    assert np.all(np.isnan(weights_of(rows, np.float32)))


def test_vmap_agrees_with_single_calls():
    rows = np.stack([random_rows(seed, 4) for seed in range(6)]).astype(np.float32)
    matrices = rows @ rows.swapaxes(1, 2)
    found = jax.jit(jax.vmap(lambda matrix: pcd_weights(matrix, 0.1)))(matrices)
    single = [weights_of(matrix.astype(np.float64), np.float32) for matrix in rows]
    np.testing.assert_allclose(found, single, rtol=1e-4, atol=1e-5)


def test_moving_average(float64):
    """Bias-corrected per task; absent tasks and spoilt gradients leave it alone."""
    tx = pcd(3, tau=0.2, decay=0.9)
    steps = np.stack([random_rows(seed, 3) * (1 + seed) for seed in range(4)])
    present = np.ones((4, 3), bool)
    steps[1, 2], present[1, 2] = np.nan, False
    steps[2, 0, 0] = np.nan

    @jax.jit
    def run(state, rows, present):
        return tx.update(mtlopt.TaskGrads.from_rows(rows, present=present), state)

    state = tx.init(None)
    squares = np.sum(steps**2, axis=2)
    seen = [[0, 1, 3], [0, 1, 3], [0, 3]]
    for i in range(4):
        update, state = run(state, steps[i], present[i])
        assert np.all(np.isnan(update)) == (i == 2)
    means = []
    for task, times in enumerate(seen):
        powers = 0.9 ** np.arange(len(times))[::-1]
        means.append(np.sum(powers * squares[times, task]) / np.sum(powers))
    expected = weights_of(steps[3], float64, 0.2, np.sqrt(means)) @ steps[3]
    np.testing.assert_allclose(update, expected, rtol=1e-10)
    assert np.all(state.totals[:2] > state.totals[2])


def test_absent_primary_is_zero():
    tx = pcd(2)
    grads = mtlopt.TaskGrads.from_rows(jnp.eye(2), present=[False, True])
    update, state = jax.jit(lambda: tx.update(grads, tx.init(None)))()
    np.testing.assert_array_equal(update, 0)
    np.testing.assert_array_equal(state.task_weights, 0)


def test_arguments_are_checked():
    with pytest.raises(ValueError, match="`tau` must be between 0 and 1"):
        pcd(2, tau=1.5)
    with pytest.raises(ValueError, match="`tau` must be a scalar or have one entry"):
        pcd(3, tau=[0.1, 0.2, 0.3])
    with pytest.raises(ValueError, match="`decay` must be at least 0 and below 1"):
        pcd(2, decay=1.0)
    with pytest.raises(TypeError, match="`num_tasks` must be an int"):
        pcd(2.0)
