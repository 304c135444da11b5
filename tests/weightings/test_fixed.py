"""Linear scalarization."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import mtlopt
from mtlopt import TaskGrads
from tests.problems import (
    assert_close,
    first,
    losses_of,
    make_batches,
    make_oracle,
    make_params,
)

PARAMS, ARGS = make_params(), first(make_batches())


def test_is_the_gradient_of_the_weighted_loss(float64):
    """chain(weight_by_fixed(w), sum_tasks) = grad of sum_i w_i L_i, heads included."""
    weights = np.array([0.2, 3.0, -1.0])
    tx = optax.chain(mtlopt.weight_by_fixed(weights), mtlopt.sum_tasks(3))

    @jax.jit
    def both(params):
        updates, _ = tx.update(make_oracle()(params, *ARGS), tx.init(params), params)
        return updates, jax.grad(lambda p: losses_of(p, *ARGS) @ weights)(params)

    assert_close(*both(PARAMS), 1e-12)


def test_weights_may_be_injected():
    """A schedule of loss weights, by optax.inject_hyperparams."""
    tx = optax.inject_hyperparams(mtlopt.weight_by_fixed)(
        weights=lambda count: jnp.array([1.0, 1.0]) * count
    )
    update = jax.jit(lambda state: tx.update(TaskGrads.from_rows(jnp.eye(2)), state))
    state = tx.init(jnp.zeros(2))
    for count in range(3):
        scaled, state = update(state)
        np.testing.assert_array_equal(scaled.loss_scales, [count, count])


@pytest.mark.parametrize("weights", [1.0, [], [[1.0, 2.0]]])
def test_weights_are_a_vector(weights):
    with pytest.raises(ValueError, match=r"`weights` must be a vector \[tasks\]"):
        mtlopt.weight_by_fixed(weights)


def test_one_weight_per_task():
    tx = mtlopt.weight_by_fixed([1.0, 2.0, 3.0])
    grads = TaskGrads.from_rows(jnp.eye(2))
    with pytest.raises(
        ValueError, match=r"`weights` must have one entry.*\(2,\).*got.*3"
    ):
        tx.update(grads, tx.init(jnp.zeros(2)))
