"""EPO: the paper's linear program by SciPy, closed forms, and where it ends."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy.optimize import linprog

import mtlopt
from mtlopt.aggregators.epo import epo_weights
from tests.linalg.matrices import padded_gramian
from tests.test_range import jacobians

solve = jax.jit(epo_weights)
SIZE = 6


def program(rows, losses, preference, tolerance=1e-4):
    """Objective and bounds of the linear program, as the paper has them."""
    gramian = rows @ rows.T
    shares = preference * losses / np.sum(preference * losses)
    logs = np.log(len(losses) * shares)
    non_uniformity = np.sum(shares * logs)
    if non_uniformity <= tolerance:
        return np.sum(gramian, axis=0), np.zeros(len(losses))
    gains = gramian @ (preference * (logs - non_uniformity))
    bounds = np.where(gains > 0, -np.inf, gains if np.any(gains > 0) else 0)
    bounds[preference * losses == np.max(preference * losses)] = 0
    return gains, bounds


def solution(rows, losses, preference):
    """The weights, by `scipy.optimize.linprog`."""
    gains, bounds = program(rows, losses, preference)
    held = np.isfinite(bounds)
    ones = np.ones((1, len(losses)))
    found = linprog(-gains, -(rows @ rows.T)[held], -bounds[held], ones, [1])
    assert found.status == 0
    return found.x


def problems(num_tasks):
    """Random rows in conflict and not, losses and preferences."""
    for seed in range(12):
        rng = np.random.default_rng([seed, num_tasks])
        rows = rng.normal(size=(num_tasks, 8))
        rows -= rng.choice([0, 0.9]) * rows.mean(axis=0)
        losses, preference = rng.uniform(0.2, 2, (2, num_tasks))
        if seed % 4 == 0:  # balanced
            losses = 1 / preference
        yield rows, losses, preference


@pytest.mark.parametrize("num_tasks", [1, 2, 3, 6])
def test_solves_the_program_of_the_paper(num_tasks, dtype):
    """The solution is unique here, so the direction is that of SciPy."""
    allowed = 1e-4 if dtype == np.float32 else 1e-7
    for rows, losses, preference in problems(num_tasks):
        matrix, present = padded_gramian(rows, dtype, SIZE)
        vectors = np.full((2, SIZE), 7, dtype)  # of absent tasks: read by nobody
        vectors[:, :num_tasks] = losses, preference
        weights = np.asarray(solve(matrix, *vectors, 1e-4, present), float)
        assert np.all(weights[num_tasks:] == 0)
        expected = solution(rows, losses, preference) @ rows
        found = weights[:num_tasks] @ rows
        np.testing.assert_allclose(found, expected, atol=allowed * np.linalg.norm(rows))


def test_two_tasks(dtype):
    """The closed form, also for balanced losses, equal and opposed rows."""
    cases = [*problems(2)]
    cases += [(np.array([[1, 2], [1, 2]]), np.array([1, 3]), np.ones(2))]
    cases += [(np.array([[1, 2], [-2, -4]]), np.array([1, 3]), np.ones(2))]
    for rows, losses, preference in cases:
        vectors = losses.astype(dtype), preference.astype(dtype)
        weights = solve((rows @ rows.T).astype(dtype), *vectors)
        expected = solution(rows, losses, preference) @ rows
        np.testing.assert_allclose(
            np.asarray(weights) @ rows, expected, atol=1e-5 * np.linalg.norm(rows)
        )


def test_moves_along_a_front():
    """At a stationary point off the ray it moves: the one loss falls, the other rises.

    Opposed gradients, and q = (3/4, 1/4): h_2 < 0 bounds nothing but the rise.
    """
    gramian = jnp.array([[1.0, -1.0], [-1.0, 1.0]])
    weights = solve(gramian, jnp.array([3.0, 1.0]))
    assert weights[0] > weights[1]
    np.testing.assert_allclose(solve(gramian, jnp.ones(2)), 0.5, atol=1e-6)


def test_losses_and_preferences_of_zero():
    """A loss of zero is finite; without preference a task has no share."""
    gramian = jnp.eye(3)
    weights = solve(gramian, jnp.array([1.0, 0.0, 0.5]))
    np.testing.assert_allclose(weights, [1, 0, 0], atol=1e-6)
    weights = solve(gramian, jnp.array([1.0, 9.0, 2.0]), jnp.array([1.0, 0.0, 1.0]))
    np.testing.assert_allclose(weights, [0, 0, 1], atol=1e-6)
    assert np.all(np.isfinite(solve(gramian, jnp.zeros(3))))
    assert np.all(np.isnan(solve(gramian, jnp.array([1.0, jnp.nan, 1.0]))))


def losses_of(kind):
    """Two convex losses, and two whose front is concave in the middle."""
    ends = jnp.array([[1.0, 0.0, 0.0], [-1.0, 0.0, 0.0]])

    def losses(x):
        squares = jnp.sum((x - ends) ** 2, axis=1)
        return squares if kind == "convex" else 1 - jnp.exp(-squares)

    return losses


@pytest.mark.parametrize("kind", ["convex", "concave"])
def test_ends_at_the_preference(kind):
    """On the segment between the minima, with p_1 L_1 = p_2 L_2, from any start."""
    losses = losses_of(kind)
    oracle = mtlopt.task_grad(losses, "shared", tasks=("a", "b"))

    def train(preference, start):
        tx = optax.chain(mtlopt.epo(2, preference, tolerance=1e-6), optax.sgd(0.02))
        step = mtlopt.train_step(oracle, tx)
        body = lambda run, _: (step(run)[0], None)  # noqa: E731
        run = mtlopt.Run(start, tx.init(start))
        return jax.lax.scan(body, run, length=600)[0].params

    preferences = jnp.array([[1.0, 1.0], [1.0, 2.0], [0.6, 0.4]])
    starts = jnp.array([[0.3, 0.5, -0.2], [0.9, 0.1, 0.0], [-0.5, -0.3, 0.4]])
    ends = jax.jit(jax.vmap(train))(preferences, starts)
    reached = preferences * jax.vmap(losses)(ends)
    np.testing.assert_allclose(reached[:, 0], reached[:, 1], rtol=0.02)
    np.testing.assert_allclose(ends[:, 1:], 0, atol=0.02)


def test_reads_scaled_losses():
    """Weights before it scale losses and gradients alike."""
    rows = jnp.array([[1.0, 0.0, 1.0], [0.0, 1.0, -1.0]])
    losses, factors = jnp.array([1.0, 3.0]), jnp.array([4.0, 0.5])
    tx = optax.chain(mtlopt.weight_by_fixed(factors), mtlopt.epo(2))
    alone = mtlopt.epo(2)

    @jax.jit
    def updates():
        grads = mtlopt.TaskGrads.from_rows(rows, losses)
        scaled = mtlopt.TaskGrads.from_rows(factors[:, None] * rows, factors * losses)
        params = jnp.zeros(3)
        return [
            transform.update(given, transform.init(params))[0]
            for transform, given in ((tx, grads), (alone, scaled))
        ]

    np.testing.assert_allclose(*updates(), rtol=1e-6)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tolerance": -1.0}, "`tolerance` must be at least 0"),
        ({"preference": jnp.array([1.0, -1.0])}, r"`preference\[1\]` must be finite"),
        ({"preference": jnp.zeros(2)}, "`preference` must have a positive entry"),
    ],
)
def test_bad_arguments(options, message):
    with pytest.raises(ValueError, match=message):
        mtlopt.epo(2, **options)


@pytest.mark.slow
@pytest.mark.parametrize("num_tasks", [3, 8])
def test_lengths_may_be_1e5_apart(num_tasks):
    """In either direction: single and double precision take the same solution."""
    powers = [(sign * power, 0) for sign in (-1, 1) for power in range(6)]
    rows, found = jacobians(powers, num_tasks, 1000), {}
    for dtype in (np.float32, np.float64):
        with jax.enable_x64(dtype == np.float64):
            losses = jnp.ones(num_tasks, dtype)
            grams = jnp.asarray(rows @ rows.mT, dtype)
            weights = jax.jit(jax.vmap(lambda g, y=losses: epo_weights(g, y)))(grams)
        found[dtype] = np.einsum("ct,ctn->cn", np.float64(weights), rows)
    apart = np.linalg.norm(found[np.float32] - found[np.float64], axis=1)
    assert np.all(apart <= 1e-4 * np.linalg.norm(found[np.float64], axis=1))
