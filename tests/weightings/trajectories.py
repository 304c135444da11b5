"""Weights of a weighting over the updates of a made-up run."""

import jax
import jax.numpy as jnp
import numpy as np

import mtlopt
from mtlopt import TaskGrads


def weights_over(weighting, jacobians, losses, present=None, **extra):
    """Weights in force at every step, `[steps, tasks]`; extra arguments are by step."""
    state, weights = weighting.init(jnp.zeros(2)), []

    @jax.jit
    def update(rows, losses, present, state, extra):
        grads = TaskGrads.from_rows(rows, losses, present)
        return weighting.update(grads, state, **extra)

    for step, (rows, row) in enumerate(zip(jacobians, losses, strict=True)):
        mask = None if present is None else jnp.asarray(present[step])
        now = {name: jnp.asarray(values[step]) for name, values in extra.items()}
        grads, state = update(jnp.asarray(rows), jnp.asarray(row), mask, state, now)
        seen = np.ones(len(row), bool) if mask is None else np.asarray(mask)
        np.testing.assert_array_equal(grads.loss_scales[seen], state.task_weights[seen])
        weights.append(np.asarray(state.task_weights))
    return np.stack(weights)


def random_run(steps=6, num_tasks=3, size=5, seed=0):
    """Jacobians `[steps, tasks, size]` of unequal rows, and positive losses."""
    rng = np.random.default_rng(seed)
    rows = rng.normal(size=(steps, num_tasks, size))
    rows *= 10.0 ** np.arange(num_tasks)[:, None]
    return rows, rng.uniform(0.5, 2.0, (steps, num_tasks))


def check_every(weighting, steps=7, interval=3, **extra):
    """Every third update computes: its state goes through those batches only.

    The others reuse its weights.
    """
    rows, losses = random_run(steps)
    found = weights_over(mtlopt.every(interval, weighting), rows, losses, **extra)
    due = slice(None, None, interval)
    some = {name: values[due] for name, values in extra.items()}
    expected = weights_over(weighting, rows[due], losses[due], **some)
    expected = np.repeat(expected, interval, axis=0)[:steps]
    np.testing.assert_allclose(found, expected, rtol=1e-6)
