"""What every weighting that descends a combined loss S has to satisfy."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax

import mtlopt
from mtlopt import TaskGrads
from tests.problems import (
    QUICK,
    assert_close,
    first,
    losses_of,
    make_batches,
    make_oracle,
    make_params,
)


def run(weighting, losses, present=None, **per_step):
    """Weights in force at every step `[steps, tasks]`, and the states after it."""

    def update(losses, present, state, keywords):
        grads = TaskGrads.from_rows(jnp.eye(len(losses)), losses, present)
        return weighting.update(grads, state, **keywords)

    step = jax.jit(update, compiler_options=QUICK)
    state, weights, states = weighting.init(jnp.zeros(2)), [], []
    for i, row in enumerate(losses):
        mask = None if present is None else jnp.asarray(present[i])
        keywords = {name: jnp.asarray(values[i]) for name, values in per_step.items()}
        grads, state = step(jnp.asarray(row), mask, state, keywords)
        np.testing.assert_array_equal(grads.loss_scales, state.task_weights)
        weights.append(np.asarray(grads.loss_scales))
        states.append(state)
    return np.stack(weights), states


def assert_derivatives(weights_of, combined, rtol=1e-10):
    """w = dS/dL by automatic differentiation, at random positive losses. Float64."""
    losses = np.exp(np.random.default_rng(0).normal(0, 2, size=(20, 4)))
    found = jax.jit(jax.vmap(weights_of))(losses)
    expected = jax.jit(jax.vmap(jax.grad(combined)))(losses)
    np.testing.assert_allclose(found, expected, rtol=rtol, atol=1e-14)


def assert_descends(weighting, combined):
    """chain(weighting, sum_tasks) = the gradient of S, heads included. Float64."""
    params, args = make_params(), first(make_batches())
    tx = optax.chain(weighting, mtlopt.sum_tasks(3))

    @functools.partial(jax.jit, compiler_options=QUICK)
    def both(params):
        updates, _ = tx.update(make_oracle()(params, *args), tx.init(params), params)
        return updates, jax.grad(lambda params: combined(losses_of(params, *args)))(
            params
        )

    assert_close(*both(params), 1e-11)


def assert_absent_are_left_out(weights_of, **vectors):
    """w of a masked problem, NaN where masked, = w of the problem without those."""
    rng = np.random.default_rng(1)
    losses = rng.uniform(0.5, 4.0, size=5)
    there = np.array([True, False, True, True, False])
    weights_of = jax.jit(weights_of)
    masked = weights_of(np.where(there, losses, np.nan), present=there, **vectors)
    few = {name: vector[there] for name, vector in vectors.items()}
    np.testing.assert_allclose(masked[there], weights_of(losses[there], **few), 1e-6)
    np.testing.assert_array_equal(masked[~there], 0)
    nobody = weights_of(np.full(5, np.nan), present=np.zeros(5, bool), **vectors)
    np.testing.assert_array_equal(nobody, 0)


def assert_finite_at_every_scale(weights_of):
    """Float32, losses of 1e-12 to 1e12, together and beside each other, and zeros."""
    plain = np.array([1.0, 2.0, 0.5], np.float32)
    losses = [plain * scale for scale in (1e-12, 1e-6, 1.0, 1e6, 1e12)]
    losses += [plain * [1e-12, 1.0, 1e12], plain * [1.0, 0.0, 1.0], plain * 0]
    weights = jax.jit(jax.vmap(weights_of))(np.stack(losses).astype(np.float32))
    assert weights.dtype == np.float32
    assert np.all(np.isfinite(weights)), weights


def assert_nan_stays_visible(weights_of):
    """A NaN loss of a task that is present gives NaN weights."""
    assert np.any(np.isnan(jax.jit(weights_of)(np.array([1.0, np.nan, 2.0]))))


def assert_decay_does_not_touch(weighting, learned):
    """What a weighting learns is the same with AdamW behind it and alone."""
    losses = np.array([[2.0, 5.0], [1.0, 4.0], [0.5, 4.0]], np.float32)
    alone = getattr(run(weighting, losses)[1][-1], learned)
    tx = optax.chain(weighting, mtlopt.sum_tasks(2), optax.adamw(0.1, weight_decay=0.9))

    @jax.jit
    def step(row, params, state):
        grads = TaskGrads.from_rows(jnp.eye(2), row)
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    params = jnp.ones(2)
    state = tx.init(params)
    for row in losses:
        params, state = step(row, params, state)
    np.testing.assert_allclose(getattr(state[0], learned), alone, rtol=1e-6)
    assert np.any(alone != 0)
