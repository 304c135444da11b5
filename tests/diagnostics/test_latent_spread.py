"""How far the latent stands for the parameters, against explicit Jacobians."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import mtlopt

TASKS = ("a", "b", "c")
LATENT, PARAMS = 6, 9


def make_oracle(jacobian, latent_grads):
    """Linear: latent `J w`, and losses whose gradients there are the given rows."""
    losses = {
        task: lambda _, z, task=task: jnp.dot(latent_grads[TASKS.index(task)], z)
        for task in TASKS
    }
    return mtlopt.task_grad(losses, "shared", encode=lambda p: jacobian @ p["w"])


@jax.jit
def spread(jacobian, latent_grads, present=None):
    oracle = make_oracle(jacobian, latent_grads)
    return mtlopt.latent_spread(oracle({"w": jnp.ones(PARAMS)}, present=present))


def random_problem(seed=0):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(LATENT, PARAMS)), rng.normal(size=(3, LATENT))


def condition(jacobian, latent_grads):
    basis, _ = np.linalg.qr(latent_grads.T)
    return np.linalg.cond(jacobian.T @ basis)


@pytest.mark.parametrize("seed", range(5))
def test_it_is_the_condition_of_the_jacobian_on_the_span(seed, float64):
    jacobian, rows = random_problem(seed)
    expected = condition(jacobian, rows)
    found = spread(jacobian, rows)
    np.testing.assert_allclose(found, expected, rtol=1e-8)
    lengths = np.array([[1e4], [1.0], [1e-4]])
    found = spread(jacobian, lengths * rows)
    np.testing.assert_allclose(found, expected, rtol=1e-8)


def test_lengths_do_not_matter_in_float32():
    jacobian, rows = random_problem()
    found = spread(jacobian, np.array([[1e6], [1.0], [1e-6]]) * rows)
    np.testing.assert_allclose(found, condition(jacobian, rows), rtol=1e-3)


def test_it_is_the_dominance_that_alignment_in_the_latent_leaves(float64):
    jacobian, rows = random_problem()
    left, _, right = np.linalg.svd(rows, full_matrices=False)
    aligned = left @ right @ jacobian
    expected = jax.jit(mtlopt.dominance_rate)(aligned @ aligned.T)
    found = spread(jacobian, rows)
    np.testing.assert_allclose(found, expected, rtol=1e-8)


def test_a_scaled_isometry_has_spread_one(float64):
    _, rows = random_problem()
    isometry, _ = np.linalg.qr(np.random.default_rng(1).normal(size=(PARAMS, LATENT)))
    found = spread(5 * isometry.T, rows)
    np.testing.assert_allclose(found, 1, rtol=1e-8)


def test_absent_and_dependent_tasks_do_not_count(float64):
    jacobian, rows = random_problem()
    expected = condition(jacobian, rows[:2])
    found = spread(jacobian, rows, np.array([True, True, False]))
    np.testing.assert_allclose(found, expected, rtol=1e-8)
    dependent = np.stack([rows[0], rows[1], rows[0] - rows[1]])
    found = spread(jacobian, dependent)
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_a_lost_direction_and_no_gradient(float64):
    lost = np.eye(LATENT, PARAMS)
    lost[0] = 0
    found = spread(lost, np.eye(3, LATENT))
    assert np.isinf(found)
    assert np.isnan(spread(lost, np.zeros((3, LATENT))))


def test_bad_arguments():
    jacobian, rows = random_problem()
    oracle = make_oracle(np.float32(jacobian), np.float32(rows))
    grads = oracle({"w": jnp.ones(PARAMS)})
    with pytest.raises(ValueError, match="`grads` must hold gradients of the shared"):
        mtlopt.latent_spread(grads.in_latent_space())
    with pytest.raises(TypeError, match=r"must be a mtlopt\.TaskGrads, got dict"):
        mtlopt.latent_spread({})
    with pytest.raises(ValueError, match="encode"):
        mtlopt.latent_spread(mtlopt.TaskGrads.from_rows(jnp.ones((2, 3))))
