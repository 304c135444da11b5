"""The weights of an update, found in any state. For all methods: test_interface.py."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import mtlopt

PARAMS = {"trunk": jnp.zeros(2), "left": jnp.zeros(1), "right": jnp.zeros(1)}
LABELS = {"trunk": "shared", "left": "left", "right": "right"}
LOSSES = {
    "left": lambda params, z: 2 + z[0] + params["left"][0],
    "right": lambda params, z: 4 + 2 * z[1] + params["right"][0],
}
ORACLE = mtlopt.task_grad(LOSSES, LABELS, encode=lambda params: params["trunk"])
FACTORS = jnp.array([1 / 2, 1 / 4])  # of weight_by_log: one over the losses


def step(tx):
    grads = ORACLE(PARAMS)
    updates, state = jax.jit(tx.update)(grads, tx.init(PARAMS), PARAMS)
    return updates, mtlopt.task_weights(state)


def chained(*after):
    return optax.chain(mtlopt.weight_by_log(2), mtlopt.mgda(2), *after)


@pytest.mark.parametrize(
    "tx",
    [
        chained(optax.adam(0.1)),
        chained(optax.chain(optax.clip(1.0), optax.sgd(0.1))),
        chained(mtlopt.per_label(optax.adam(0.1), LABELS)),
        chained(optax.MultiSteps(optax.sgd(0.1), 2).gradient_transformation()),
        chained(optax.apply_if_finite(optax.sgd(0.1), 3)),
        chained(mtlopt.track_distance(LABELS)),
        optax.chain(mtlopt.weight_by_log(2), mtlopt.in_latent_space(mtlopt.mgda(2))),
        optax.chain(
            mtlopt.weight_by_log(2),
            optax.inject_hyperparams(mtlopt.mgda, static_args="num_tasks")(num_tasks=2),
        ),
        optax.named_chain(("log", mtlopt.weight_by_log(2)), ("mgda", mtlopt.mgda(2))),
    ],
)
def test_weighting_times_aggregator(tx):
    """Rows (1/2, 0) and (0, 2/4) after the weighting: MGDA takes the half of each."""
    np.testing.assert_allclose(step(tx)[1], FACTORS / 2, rtol=1e-6)


def test_update_of_shared_leaves_and_of_heads():
    """Shared: sum of the gradients times the weights. Heads: the weighting's alone."""
    updates, weights = step(chained())
    np.testing.assert_allclose(updates["trunk"], weights * jnp.array([1.0, 2.0]))
    np.testing.assert_allclose([*updates["left"], *updates["right"]], FACTORS)


def test_of_a_line_search():
    state = mtlopt.backtracking(mtlopt.mgda(2)).init(PARAMS)
    np.testing.assert_allclose(mtlopt.task_weights(state), [0.5, 0.5])


def test_of_all_seeds():
    states = jax.vmap(lambda _: chained().init(PARAMS))(jnp.arange(3))
    assert mtlopt.task_weights(states).shape == (3, 2)


def test_inside_jit():
    weights = jax.jit(lambda: step(chained(optax.adam(0.1)))[1])()
    np.testing.assert_allclose(weights, FACTORS / 2, rtol=1e-6)


def test_of_the_summed_loss():
    """Constants, which loggers want as well; absent tasks have no part."""
    tx = optax.chain(mtlopt.weight_by_fixed([1.0, 3.0]), mtlopt.sum_tasks(2))
    state = tx.init(PARAMS)
    np.testing.assert_array_equal(mtlopt.task_weights(state), [1.0, 3.0])
    grads = mtlopt.TaskGrads.from_rows(jnp.eye(2), present=[False, True])
    _, state = tx.update(grads, state)
    np.testing.assert_array_equal(mtlopt.task_weights(state), [0.0, 3.0])


def test_states_without_weights():
    with pytest.raises(ValueError, match="has `task_weights`, got a state without"):
        mtlopt.task_weights(optax.adam(0.1).init(PARAMS))


def test_weights_of_different_tasks():
    states = [mtlopt.mgda(num_tasks).init(PARAMS) for num_tasks in (2, 3)]
    with pytest.raises(ValueError, match=r"got shapes \[\(2,\), \(3,\)\]"):
        mtlopt.task_weights(states)
