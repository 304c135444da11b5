"""Log-transformed losses against the gradient of their logarithms."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import mtlopt
from mtlopt import TaskGrads
from mtlopt.weightings.log import log_weights, weight_by_log
from tests.problems import (
    assert_close,
    first,
    losses_of,
    make_batches,
    make_oracle,
    make_params,
)


def test_update_is_the_gradient_of_the_summed_logarithms(float64):
    """All leaves, heads too: grad of sum_i log L_i."""
    params, args = make_params(), first(make_batches())
    tx = optax.chain(weight_by_log(3), mtlopt.sum_tasks(3))

    @jax.jit
    def both(params):
        found = tx.update(make_oracle()(params, *args), tx.init(params))
        log = lambda params: jnp.sum(jnp.log(losses_of(params, *args)))  # noqa: E731
        return *found, jax.grad(log)(params), losses_of(params, *args)

    updates, (state, _), expected, losses = both(params)
    assert_close(updates, expected)
    np.testing.assert_allclose(state.task_weights, 1 / losses)


@pytest.mark.parametrize("scale", [1e-12, 1.0, 1e12])
def test_weights_are_inverse_losses(scale, dtype):
    losses = scale * np.array([1e-3, 1.0, 1e3], dtype)
    np.testing.assert_allclose(jax.jit(log_weights)(losses) * losses, 1, rtol=1e-6)


def test_losses_without_logarithm():
    """A zero loss has no weight, a negative one NaN, a NaN stays."""
    found = jax.jit(log_weights)(np.float32([2, 0, -1, np.nan]))
    np.testing.assert_array_equal(found, [0.5, 0, np.nan, np.nan])


def test_absent_tasks_have_finite_weights():
    """Whatever their loss holds."""
    losses, present = [4.0, np.nan, -1.0, 0.0], np.array([1, 0, 0, 0], bool)
    weighting = weight_by_log(4)

    @jax.jit
    def update(losses, present):
        grads = TaskGrads.from_rows(jnp.eye(4), losses=losses, present=present)
        return weighting.update(grads, weighting.init(jnp.zeros(4)))

    grads, state = update(np.float32(losses), present)
    np.testing.assert_array_equal(grads.loss_scales, [0.25, 0, 0, 0])
    np.testing.assert_array_equal(state.task_weights, [0.25, 0, 0, 0])


def test_bad_arguments():
    with pytest.raises(ValueError, match="`num_tasks` must be at least 1, got 0"):
        weight_by_log(0)
