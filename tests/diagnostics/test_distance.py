"""Covered and shortest distance."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import mtlopt

LABELS = {"trunk": "shared", "head": "a"}
PARAMS = {"trunk": {"w": jnp.zeros((2, 2)), "b": jnp.zeros(2)}, "head": jnp.zeros(3)}


def walk(steps, params=PARAMS):
    tx = mtlopt.track_distance(LABELS)
    state = tx.init(params)
    update = jax.jit(tx.update)
    for step in steps:
        updates, state = update(step, state, params)
        assert all(
            np.array_equal(a, b)
            for a, b in zip(
                jax.tree.leaves(updates), jax.tree.leaves(step), strict=True
            )
        )
        params = optax.apply_updates(params, updates)
    return params, state


def test_distances_are_those_of_the_shared_leaves():
    """covered = sum_t |theta_{t+1} - theta_t|, shortest = |theta_t - theta_0|."""
    rng = np.random.default_rng(0)
    start = jax.tree.map(lambda leaf: jnp.asarray(rng.normal(size=leaf.shape)), PARAMS)
    steps = [
        jax.tree.map(lambda leaf: jnp.asarray(rng.normal(size=leaf.shape)), PARAMS)
        for _ in range(5)
    ]
    end, state = walk(steps, start)

    def norm(tree):
        return np.linalg.norm([np.linalg.norm(leaf) for leaf in jax.tree.leaves(tree)])

    covered = sum(norm(step["trunk"]) for step in steps)
    moved = jax.tree.map(jnp.subtract, end["trunk"], start["trunk"])
    np.testing.assert_allclose(state.covered, covered, rtol=1e-5)
    np.testing.assert_allclose(state.shortest, norm(moved), rtol=1e-5)
    assert state.shortest < state.covered


def test_there_and_back():
    """The shortest distance of a closed path is zero."""
    step = jax.tree.map(jnp.ones_like, PARAMS)
    back = jax.tree.map(jnp.negative, step)
    _, state = walk([step, back])
    assert state.shortest == 0
    np.testing.assert_allclose(state.covered, 2 * np.sqrt(6), rtol=1e-6)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16, jnp.float32])
def test_accumulates_in_float32(dtype):
    """300 steps of 1: bfloat16 would stop at 256."""
    params = {"trunk": jnp.zeros(1, dtype), "head": jnp.zeros(1, dtype)}
    step = {"trunk": jnp.ones(1, dtype), "head": jnp.ones(1, dtype)}
    tx = mtlopt.track_distance(LABELS)

    @jax.jit
    def run(state):
        return jax.lax.fori_loop(
            0, 300, lambda _, state: tx.update(step, state, params)[1], state
        )

    assert run(tx.init(params)).covered == 300


def test_chained_last_it_sees_what_is_added():
    tx = optax.chain(
        mtlopt.sum_tasks(2), optax.sgd(0.5), mtlopt.track_distance("shared")
    )
    params = {"w": jnp.zeros(2)}
    grads = mtlopt.TaskGrads.from_rows({"w": jnp.array([[3.0, 0.0], [0.0, 4.0]])})
    _, state = tx.update(grads, tx.init(params), params)
    np.testing.assert_allclose(state[-1].covered, 2.5)


def test_params_and_state_may_be_donated():
    """The start is a copy, and no two leaves of the state share a buffer."""
    tx = mtlopt.track_distance(LABELS)

    def step(params, state):
        updates = jax.tree.map(jnp.ones_like, params)
        updates, state = tx.update(updates, state, params)
        return optax.apply_updates(params, updates), state

    params = jax.tree.map(jnp.copy, PARAMS)
    state = tx.init(params)
    donating = jax.jit(step, donate_argnums=(0, 1))
    for _ in range(2):
        params, state = donating(params, state)
    np.testing.assert_allclose(state.shortest, 2 * np.sqrt(6), rtol=1e-6)

    # In a loop every leaf is read, also what a single step only writes.
    def run(carry):
        return jax.lax.fori_loop(0, 2, lambda _, carry: step(*carry), carry)

    params = jax.tree.map(jnp.copy, PARAMS)
    _, state = jax.jit(run, donate_argnums=0)((params, tx.init(params)))
    np.testing.assert_allclose(state.shortest, 2 * np.sqrt(6), rtol=1e-6)


def test_needs_params():
    tx = mtlopt.track_distance(LABELS)
    with pytest.raises(ValueError, match=r"`params` must be given.*track_distance"):
        tx.update(PARAMS, tx.init(PARAMS))
