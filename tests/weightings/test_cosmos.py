"""COSMOS: derivatives of the sum and of the cosine."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mtlopt.weightings.cosmos import cosmos_weights, weight_by_cosmos
from tests.weightings import scalarizations

PREFERENCE = np.array([0.1, 2.0, 0.7, 0.2])


def combine(losses, penalty, preference):
    """<p, L> - lambda cos(p, L), as defined."""
    total = preference @ losses
    lengths = jnp.linalg.norm(preference) * jnp.linalg.norm(losses)
    return total - penalty * total / lengths


def test_weights_are_derivatives(float64):
    scalarizations.assert_derivatives(
        lambda losses: cosmos_weights(losses, 3.0, PREFERENCE),
        lambda losses: combine(losses, 3.0, PREFERENCE),
    )


def test_descends_cosmos(float64):
    scalarizations.assert_descends(
        weight_by_cosmos(3, 2.0), lambda losses: combine(losses, 2.0, jnp.ones(3) / 3)
    )


def test_the_penalty_turns_and_does_not_lengthen():
    """w - p is at right angles to L, and raises the cosine: <w - p, p> <= 0."""
    losses, preference = np.float32([4, 0.5, 1, 2]), np.float32(PREFERENCE)
    weigh = jax.jit(cosmos_weights)
    turn = np.asarray(weigh(losses, 8.0, preference)) - preference
    assert abs(turn @ losses) < 1e-5
    assert turn @ preference < -0.1
    np.testing.assert_allclose(weigh(losses, 0.0, preference), PREFERENCE, rtol=1e-6)


def test_along_the_preference_there_is_no_turn(dtype):
    """w = p where L is parallel to p but for rounding; 1 / |L| is up to 1e12."""
    rng = np.random.default_rng(0)
    preference = rng.uniform(0.1, 3.0, size=(50, 7))
    scale = 10.0 ** rng.integers(-12, 12, size=(50, 1))
    losses = (preference * scale).astype(dtype)
    weigh = jax.jit(jax.vmap(lambda losses, p: cosmos_weights(losses, 1.0, p)))
    np.testing.assert_allclose(weigh(losses, preference), preference, rtol=1e-6)


def test_the_penalty_has_the_unit_of_the_losses(dtype):
    losses = np.array([1.0, 3.0, 2.0, 0.1], dtype)
    weigh = jax.jit(cosmos_weights)
    expected = weigh(losses, 2.0, PREFERENCE)
    for unit in (1e-12, 1e12):
        found = weigh((losses * unit).astype(dtype), 2.0 * unit, PREFERENCE)
        np.testing.assert_allclose(found, expected, rtol=1e-4)


def test_absent_tasks_are_left_out():
    scalarizations.assert_absent_are_left_out(cosmos_weights)
    preference = np.random.default_rng(2).random(5)
    scalarizations.assert_absent_are_left_out(cosmos_weights, preference=preference)


def test_finite_at_every_scale():
    scalarizations.assert_finite_at_every_scale(cosmos_weights)


def test_special_losses():
    """One task weighs p; zero losses have no direction and weigh p."""
    weigh = jax.jit(cosmos_weights)
    np.testing.assert_array_equal(weigh(np.float32([7])), [1.0])
    np.testing.assert_allclose(weigh(np.zeros(4)), 0.25, rtol=1e-6)
    scalarizations.assert_nan_stays_visible(cosmos_weights)


def test_bad_arguments():
    with pytest.raises(ValueError, match="`penalty` must be at least 0, got -1"):
        weight_by_cosmos(2, -1)
    with pytest.raises(ValueError, match="`preference` must have one entry per task"):
        weight_by_cosmos(2, preference=[1.0])
