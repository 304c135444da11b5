"""IMTL-L against the reference trajectories and its own loss."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import mtlopt
from mtlopt.weightings.imtl_l import weight_by_imtl_l
from tests import reference
from tests.weightings import scalarizations


@pytest.mark.parametrize("sequence", reference.sequences())
def test_reference_trajectory(sequence, float64):
    """w = exp(s); s <- s - 0.1 (exp(s) L - 1), step by step."""
    losses = reference.weighting(f"{sequence}/losses")
    weights, states = scalarizations.run(weight_by_imtl_l(3, optax.sgd(0.1)), losses)
    expected = reference.weighting(f"{sequence}/imtll/weights")
    np.testing.assert_allclose(weights, expected, rtol=1e-10)
    final = reference.weighting(f"{sequence}/imtll/log_scale_final")
    np.testing.assert_allclose(states[-1].log_scale, final, rtol=1e-10)


def test_steps_are_those_of_the_combined_loss(float64):
    """s follows the gradient of sum exp(s) L - s, with any optimizer."""
    losses, inner = np.array([0.3, 7.0]), optax.adam(0.3)
    _, states = scalarizations.run(weight_by_imtl_l(2, inner), [losses] * 5)
    s = jnp.zeros(2)
    inner_state = inner.init(s)
    slope = jax.grad(lambda s: jnp.sum(jnp.exp(s) * losses - s))

    @jax.jit
    def descend(s, state):
        updates, state = inner.update(slope(s), state, s)
        return optax.apply_updates(s, updates), state

    for state in states:
        s, inner_state = descend(s, inner_state)
        np.testing.assert_allclose(state.log_scale, s, rtol=1e-10)


def test_descends_the_combined_loss(float64):
    """At s = 0 that is the plain sum."""
    scalarizations.assert_descends(weight_by_imtl_l(3), jnp.sum)


def test_is_twice_uncertainty_at_minus_s(float64):
    """With half its learning rate on s, as 2 UW(-s) is the same function."""
    losses = reference.weighting("seq3_wide/losses")
    ours, _ = scalarizations.run(weight_by_imtl_l(3, optax.sgd(0.05)), losses)
    theirs, _ = scalarizations.run(
        mtlopt.weight_by_uncertainty(3, optimizer=optax.sgd(0.1)), losses
    )
    np.testing.assert_allclose(ours, 2 * theirs, rtol=1e-12)


def test_weighted_losses_come_to_one():
    """exp(s) L = 1 at rest."""
    losses = np.array([0.5, 3.0], np.float32)
    _, states = scalarizations.run(weight_by_imtl_l(2, optax.sgd(0.3)), [losses] * 100)
    np.testing.assert_allclose(states[-1].task_weights * losses, [1, 1], rtol=1e-4)


def test_absent_tasks_stand_still():
    """Their s and their optimizer's moments are the same bits; NaN does not enter."""
    losses = np.array([[1.0, 4.0], [2.0, np.nan], [3.0, np.nan]], np.float32)
    present = np.array([[1, 1], [1, 0], [1, 0]], bool)
    weights, states = scalarizations.run(weight_by_imtl_l(2), losses, present)
    learned = [(state.log_scale, state.inner_state) for state in states]
    for leaf in zip(*map(jax.tree.leaves, learned), strict=True):
        before, *later = (np.asarray(value) for value in leaf)
        for value in later:
            assert value[1] == before[1]
    counts = optax.tree.get(states[-1].inner_state, "count")
    np.testing.assert_array_equal(counts, [3, 1])
    np.testing.assert_array_equal(weights[1:, 1], 0)


def test_weight_decay_of_the_model_does_not_touch_it():
    scalarizations.assert_decay_does_not_touch(weight_by_imtl_l(2), "log_scale")


@pytest.mark.parametrize("scale", [0.0, 1e-12, 1e12])
def test_finite_at_every_scale(scale):
    """Float32, with the default optimizer and a steep one."""
    losses = np.full((10, 1), scale, np.float32)
    for optimizer in (None, optax.sgd(0.1)):
        weights, states = scalarizations.run(weight_by_imtl_l(1, optimizer), losses)
        assert np.all(np.isfinite(weights))
        assert np.all(np.isfinite(states[-1].log_scale))


def test_nan_stays_visible():
    weights, _ = scalarizations.run(weight_by_imtl_l(2), [[1.0, np.nan]] * 2)
    np.testing.assert_array_equal(np.isnan(weights[-1]), [False, True])


def test_bad_arguments():
    with pytest.raises(ValueError, match="`num_tasks` must be at least 1, got 0"):
        weight_by_imtl_l(0)
