"""Uncertainty weighting against the reference trajectories and its own loss."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import mtlopt
from mtlopt import TaskGrads
from tests import reference
from tests.weightings import scalarizations


def run(weighting, losses, present=None):
    """Weights in force at every step, and the states after it."""
    update = jax.jit(
        lambda losses, present, state: weighting.update(
            TaskGrads.from_rows(jnp.eye(len(losses)), losses, present), state
        )
    )
    state, weights, states = weighting.init(jnp.zeros(2)), [], []
    for step, row in enumerate(losses):
        mask = None if present is None else jnp.asarray(present[step])
        grads, state = update(jnp.asarray(row), mask, state)
        weights.append(np.asarray(grads.loss_scales))
        states.append(state)
    return np.stack(weights), states


def scan(weighting, losses):
    """The states after every step, stacked."""

    def step(state, losses):
        grads = TaskGrads.from_rows(jnp.eye(len(losses)), losses)
        state = weighting.update(grads, state)[1]
        return state, state

    init = weighting.init(None)
    return jax.device_get(
        jax.jit(jax.lax.scan, static_argnums=0)(step, init, losses)[1]
    )


@pytest.mark.parametrize("sequence", reference.sequences())
def test_reference_trajectory(sequence, float64):
    """w = exp(-s) / 2; s <- s - 0.1 (1 - exp(-s) L) / 2, step by step."""
    losses = reference.weighting(f"{sequence}/losses")
    weighting = mtlopt.weight_by_uncertainty(3, optimizer=optax.sgd(0.1))
    weights, states = run(weighting, losses)
    np.testing.assert_allclose(
        weights, reference.weighting(f"{sequence}/uw/weights"), rtol=1e-10
    )
    np.testing.assert_allclose(
        states[-1].log_variance,
        reference.weighting(f"{sequence}/uw/log_var_final"),
        rtol=1e-10,
    )


@pytest.mark.parametrize("kind", ["regression", "classification"])
def test_steps_are_those_of_the_combined_loss(kind, float64):
    """s follows the gradient of c exp(-s) L + s / 2, with any optimizer."""
    losses, factor = np.array([0.3, 7.0]), {"regression": 0.5}.get(kind, 1.0)
    inner = optax.adam(0.3)
    _, states = run(mtlopt.weight_by_uncertainty(2, kind, inner), [losses] * 5)

    def combined(s):
        return jnp.sum(factor * jnp.exp(-s) * losses + s / 2)

    @jax.jit
    def descend(s, state):
        updates, state = inner.update(jax.grad(combined)(s), state, s)
        return optax.apply_updates(s, updates), state

    s = jnp.zeros(2)
    state = inner.init(s)
    for step in range(5):
        s, state = descend(s, state)
        np.testing.assert_allclose(states[step].log_variance, s, rtol=1e-10)


def test_fixed_point_is_the_mean_loss():
    """exp(s) = L for a regression loss, 2 L for a classification loss."""
    losses = np.array([0.5, 3.0], np.float32)
    kinds = ["regression", "classification"]
    weighting = mtlopt.weight_by_uncertainty(2, kinds, optax.sgd(0.3))
    state = run(weighting, [losses] * 200)[1][-1]
    np.testing.assert_allclose(jnp.exp(state.log_variance), [0.5, 6.0], rtol=1e-4)
    np.testing.assert_allclose(state.task_weights * losses, [0.5, 0.5], rtol=1e-4)


def test_absent_tasks_stand_still():
    """Their s and their optimizer's moments are the same bits; NaN does not enter."""
    losses = np.array([[1.0, 4.0], [2.0, np.nan], [3.0, np.nan]], np.float32)
    present = np.array([[1, 1], [1, 0], [1, 0]], bool)
    _, states = run(mtlopt.weight_by_uncertainty(2), losses, present)
    learned = [(state.log_variance, state.inner_state) for state in states]
    for leaf in zip(*map(jax.tree.leaves, learned), strict=True):
        before, *later = (np.asarray(value) for value in leaf)
        for value in later:
            assert value[1] == before[1]
    assert states[0].log_variance[0] != states[2].log_variance[0]
    np.testing.assert_array_equal(
        optax.tree.get(states[-1].inner_state, "count"), [3, 1]
    )


@pytest.mark.parametrize("huge", [1e30, 3e38, np.inf])
@pytest.mark.parametrize(
    ("make", "learned"),
    [
        (mtlopt.weight_by_uncertainty, "log_variance"),
        (mtlopt.weight_by_imtl_l, "log_scale"),
    ],
)
def test_one_huge_loss_is_outlived(make, learned, huge):
    """The moments stay finite, one step is as long as any, and the weights come back.

    The other task's numbers are the same bits as without.
    """
    losses = np.ones((4000, 2), np.float32) * [1.0, 4.0]
    quiet = scan(make(2), losses)
    losses[20, 0] = huge
    loud = scan(make(2), losses)
    assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(loud))
    values, expected = getattr(loud, learned), getattr(quiet, learned)
    np.testing.assert_array_equal(values[:, 1], expected[:, 1])
    assert np.max(np.abs(np.diff(values[:, 0]))) < 0.1
    moved = np.abs(values[-1, 0] - expected[-1, 0])
    assert moved < 0.3 * np.max(np.abs(values - expected))


def test_slopes_up_to_a_thousand_are_not_touched(float64):
    """The slope at s = 0 is 0.5 - L / 2, which is cut from 2001 on."""
    for loss, slope in ((3.0, -1.0), (2001.0, -1000.0), (9000.0, -1000.0)):
        _, (state,) = run(
            mtlopt.weight_by_uncertainty(1, optimizer=optax.sgd(1.0)), [[loss]]
        )
        assert state.log_variance[0] == -slope


def test_weight_decay_of_the_model_does_not_touch_it():
    """s has its own optimizer (weights in the model's optimizer decay to nothing)."""
    weighting = mtlopt.weight_by_uncertainty(2)
    scalarizations.assert_decay_does_not_touch(weighting, "log_variance")


def test_bad_arguments():
    with pytest.raises(ValueError, match="`kind` must be one of 'regression', 'clas"):
        mtlopt.weight_by_uncertainty(2, "ranking")
    with pytest.raises(
        ValueError, match="`kind` must have one entry per task, 2, got 1"
    ):
        mtlopt.weight_by_uncertainty(2, ["regression"])
    with pytest.raises(ValueError, match="`num_tasks` must be at least 1, got 0"):
        mtlopt.weight_by_uncertainty(0)
    with pytest.raises(TypeError, match="`num_tasks` must be an int, got float"):
        mtlopt.weight_by_uncertainty(2.0)
