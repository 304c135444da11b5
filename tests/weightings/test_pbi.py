"""PBI: derivatives of both distances, and the ray where one has none."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mtlopt.weightings.pbi import pbi_weights, weight_by_pbi
from tests.weightings import scalarizations

PREFERENCE = np.array([0.1, 2.0, 0.7, 0.2])
REFERENCE = np.array([0.05, -1.0, 0.3, 0.0])


def combine(losses, penalty, preference, reference):
    """d_1 + theta d_2, as defined."""
    axis = preference / jnp.linalg.norm(preference)
    above = losses - reference
    along = above @ axis
    return along + penalty * jnp.linalg.norm(above - along * axis)


def test_weights_are_derivatives(float64):
    scalarizations.assert_derivatives(
        lambda losses: pbi_weights(losses, 3.0, PREFERENCE, REFERENCE),
        lambda losses: combine(losses, 3.0, PREFERENCE, REFERENCE),
    )


def test_descends_pbi(float64):
    scalarizations.assert_descends(
        weight_by_pbi(3), lambda losses: combine(losses, 5.0, jnp.ones(3), 0.0)
    )


def test_no_penalty_is_a_weighted_sum():
    weigh = jax.jit(pbi_weights)
    weights = weigh(np.float32([1, 9, 4]), 0.0, np.float32([3, 0, 4]))
    np.testing.assert_allclose(weights, [0.6, 0.0, 0.8], rtol=1e-6)


def test_on_the_ray_the_distance_has_no_part(dtype):
    """w = u for losses along p, which rounding takes off the ray; at all scales."""
    rng = np.random.default_rng(0)
    preference = rng.uniform(0.1, 3.0, size=(50, 7))
    scale = 10.0 ** rng.integers(-12, 12, size=(50, 1))
    losses = (preference * scale).astype(dtype)
    weigh = jax.jit(jax.vmap(lambda losses, p: pbi_weights(losses, 5.0, p)))
    found = weigh(losses, preference)
    unit = preference / np.linalg.norm(preference, axis=1, keepdims=True)
    np.testing.assert_allclose(found, unit, rtol=1e-5)


def test_just_off_the_ray_it_has():
    """Relative 1e-4 off the ray is no rounding, in float32: |w - u| = theta."""
    weights = jax.jit(pbi_weights)(np.float32([1, 1.0001, 0.9999]), 5.0)
    off = np.linalg.norm(np.asarray(weights) - 3**-0.5)
    np.testing.assert_allclose(off, 5.0, rtol=1e-4)


def test_length_of_the_preference_and_unit_of_the_losses_do_not_matter(dtype):
    losses, preference = np.array([1.0, 3.0, 2.0], dtype), PREFERENCE[:3]
    weigh = jax.jit(pbi_weights)
    expected = weigh(losses, 2.0, preference)
    for scale in (1e-12, 1e12):
        found = weigh((losses * scale).astype(dtype), 2.0, preference / scale)
        np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_absent_tasks_are_left_out():
    scalarizations.assert_absent_are_left_out(pbi_weights)
    rng = np.random.default_rng(2)
    scalarizations.assert_absent_are_left_out(
        pbi_weights, preference=rng.random(5), reference=rng.random(5)
    )


def test_finite_at_every_scale():
    scalarizations.assert_finite_at_every_scale(pbi_weights)


def test_special_losses():
    """One task weighs 1, whatever its preference; at the reference point w = u."""
    weigh = jax.jit(pbi_weights)
    alone = weigh(np.float32([7]), preference=np.float32([0.3]))
    np.testing.assert_allclose(alone, [1.0], rtol=1e-6)
    np.testing.assert_allclose(weigh(np.zeros(4)), 0.5, rtol=1e-6)
    scalarizations.assert_nan_stays_visible(pbi_weights)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"penalty": -1.0}, "`penalty` must be at least 0, got -1.0"),
        ({"preference": [1.0]}, "`preference` must have one entry per task"),
        ({"reference": [1.0]}, "`reference` must have one entry per task"),
    ],
)
def test_bad_arguments(options, message):
    with pytest.raises(ValueError, match=message):
        weight_by_pbi(2, **options)
