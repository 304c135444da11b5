"""FBLS with trials that move the latent as the encoder will, and BLS on the batch."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import mtlopt

UNEVEN = np.array([1.0, 1.0, 0.3, 0.1, 0.03])


def descend(oracle, tx, params, *args, steps=60):
    """Losses `[steps, tasks]` and the states of the search."""

    def step(carry, _):
        params, state = carry
        grads = oracle(params, *args)
        updates, state = tx.update(grads, state, params)
        params = optax.apply_updates(params, updates)
        return (params, state), (oracle.losses(params, *args), state)

    run = jax.jit(lambda carry: jax.lax.scan(step, carry, length=steps)[1])
    return run((params, tx.init(params)))


def linear_problem(x, targets):
    return mtlopt.task_grad(
        {
            "a": lambda w, z: jnp.sum((z - targets[0]) ** 2),
            "b": lambda w, z: jnp.sum((z - targets[1]) ** 2),
        },
        "shared",
        encode=lambda w: x @ w,
    )


@pytest.mark.parametrize("direction", [mtlopt.mgda, mtlopt.upgrad])
def test_of_a_linear_encoder_it_is_the_search_in_parameter_space(direction, float64):
    """Trials that lower every loss there are the encoder's own: the same step size."""
    rng = np.random.default_rng(0)
    x, targets = rng.normal(size=(32, 5)) * UNEVEN, rng.normal(size=(2, 32, 3))
    oracle = linear_problem(x, targets)
    tx = mtlopt.fast_backtracking(direction(2), calibrate=True)

    @jax.jit
    def search(w):
        grads = oracle(w)
        updates, state = tx.update(grads, tx.init(w), w)
        # What the pulled-back direction does as a direction of its own.
        along = optax.stateless(lambda grads, _: jax.tree.map(jnp.negative, updates))
        other = mtlopt.backtracking(along, upper=1 / state.step_size)
        same, _ = other.update(grads, other.init(w), w)
        return updates, same, oracle.losses(w), oracle.losses(w + updates)

    for seed in range(5):
        w = np.random.default_rng(seed).normal(size=(5, 3)) + 3
        updates, same, before, after = search(w)
        np.testing.assert_allclose(same, updates, rtol=1e-9)
        assert np.all(after < before)


def test_one_task_on_an_uneven_encoder_never_rises(float64):
    """A single number for the stretch would overshoot along the first axis."""
    target = jnp.array([0.99, 0.0])
    oracle = mtlopt.task_grad(
        {"a": lambda w, z: jnp.sum((z - target) ** 2)},
        "shared",
        encode=lambda w: jnp.array([1.0, 0.01]) * w,
    )
    tx = mtlopt.fast_backtracking(mtlopt.mgda(1), calibrate=True)
    losses, _ = descend(oracle, tx, jnp.array([1.0, 100.0]))
    assert np.all(np.diff(losses[:, 0]) < 0)


def test_where_the_encoder_cannot_lower_all_losses_the_search_goes_on(float64):
    """Along `d_z` then, which lowers all: no step is at the floor."""
    rng = np.random.default_rng(0)
    x, targets = rng.normal(size=(32, 5)) * UNEVEN, rng.normal(size=(2, 32, 3))
    tx = mtlopt.fast_backtracking(mtlopt.mgda(2), calibrate=True)
    losses, state = descend(
        linear_problem(x, targets), tx, 3 * jnp.ones((5, 3)), steps=50
    )
    assert not np.any(state.hit_floor)
    assert np.all(losses[-1] < 0.6 * losses[0])


@pytest.mark.parametrize("batch_size", [16, 1024])
def test_progress_does_not_shrink_with_the_batch(batch_size, float64):
    """Mean losses: gradients of the latent are as small as the batch is large."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(batch_size, 8))
    y = np.stack([np.sin(x[:, 0]), x[:, 1]], axis=1)
    heads = rng.normal(size=(2, 32)) / 5

    def loss(task):
        return lambda params, z: jnp.mean((z @ heads[task] - y[:, task]) ** 2)

    oracle = mtlopt.task_grad(
        {"a": loss(0), "b": loss(1)}, "shared", encode=lambda w: jnp.tanh(x @ w)
    )
    w = rng.normal(size=(8, 32)) / 3
    tx = mtlopt.fast_backtracking(mtlopt.mgda(2), calibrate=True)
    losses, _ = descend(oracle, tx, w)
    assert np.all(losses[-1] < 0.3 * oracle.losses(w))


def test_accepted_steps_lower_the_losses_of_the_whole_batch(float64):
    """With microbatches the gradients' batch statistics are those of the parts."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(64, 4))

    def encode(params, x):
        z = x @ params["w"]
        return (z - jnp.mean(z, axis=0)) / (jnp.std(z, axis=0) + 0.1)

    oracle = mtlopt.task_grad(
        {
            "a": lambda params, z, x: jnp.mean((z @ params["a"] - x[:, 0]) ** 2),
            "b": lambda params, z, x: jnp.mean((z @ params["b"] - x[:, 1]) ** 2),
        },
        {"w": "shared", "a": "a", "b": "b"},
        encode=encode,
        microbatches=2,
    )
    params = {
        "w": rng.normal(size=(4, 3)),
        "a": rng.normal(size=3),
        "b": rng.normal(size=3),
    }
    tx = mtlopt.backtracking(mtlopt.upgrad(2))
    losses, state = descend(oracle, tx, params, x)
    rose = np.any(np.diff(losses, axis=0) > 0, axis=1)
    assert np.sum(~state.hit_floor) > 10
    assert not np.any(rose & ~state.hit_floor[1:])


def test_the_last_digits_do_not_end_a_descent():
    """Losses before and after come from one program: no floor near the minimum."""
    rng = np.random.default_rng(1)
    x = jnp.asarray(rng.normal(size=(64, 8)), jnp.float32)

    def encode(params):
        z = x @ params["w"]
        z = (z - jnp.mean(z, axis=0)) / jnp.sqrt(jnp.var(z, axis=0) + 1e-5)
        return jnp.tanh(z)

    oracle = mtlopt.task_grad(
        {
            "a": lambda params, z: jnp.mean((z @ params["a"] - x[:, 0]) ** 2),
            "b": lambda params, z: jnp.mean((z @ params["b"] - x[:, 1]) ** 2),
        },
        {"w": "shared", "a": "a", "b": "b"},
        encode=encode,
    )
    params = {
        "w": jnp.asarray(rng.normal(size=(8, 8)), jnp.float32),
        "a": jnp.zeros(8),
        "b": jnp.zeros(8),
    }
    _, state = descend(oracle, mtlopt.backtracking(mtlopt.mgda(2)), params, steps=100)
    assert np.mean(state.hit_floor) < 0.1
