"""GLS against the reference and the geometric mean that it descends."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mtlopt.weightings.geometric_mean import (
    geometric_mean_weights,
    weight_by_geometric_mean,
)
from tests import reference
from tests.weightings import scalarizations


def combined(losses):
    return jnp.prod(losses) ** (1 / len(losses))


@pytest.mark.parametrize("sequence", reference.sequences())
def test_reference_sequence(sequence, float64):
    """w = (prod L)^(1/T) / (T L), step by step."""
    losses = reference.weighting(f"{sequence}/losses")
    weights, _ = scalarizations.run(weight_by_geometric_mean(3), losses)
    expected = reference.weighting(f"{sequence}/gls/weights")
    np.testing.assert_allclose(weights, expected, rtol=1e-10)


def test_weights_are_derivatives(float64):
    scalarizations.assert_derivatives(geometric_mean_weights, combined)


def test_descends_the_geometric_mean(float64):
    scalarizations.assert_descends(weight_by_geometric_mean(3), combined)


def test_weighted_losses_are_equal(dtype):
    """w_i L_i = S / T, at ratios of 1e24; so units change no task's share."""
    losses = np.array([1e-12, 3.0, 1e12], dtype)
    products = jax.jit(geometric_mean_weights)(losses) * losses
    np.testing.assert_allclose(products, np.cbrt(3.0) / 3, rtol=1e-5)


def test_absent_tasks_are_left_out():
    scalarizations.assert_absent_are_left_out(geometric_mean_weights)


def test_finite_at_every_scale():
    scalarizations.assert_finite_at_every_scale(geometric_mean_weights)


def test_no_scale_overflows():
    """Products that float32 does not hold: equal losses weigh 1/T."""
    for scale in (1e-30, 1e30):
        weights = jax.jit(geometric_mean_weights)(np.full(40, scale, np.float32))
        np.testing.assert_allclose(weights, 1 / 40, rtol=1e-5)


def test_special_losses():
    """One task weighs 1; a zero loss is the minimum of S; bad losses are NaN."""
    weigh = jax.jit(geometric_mean_weights)
    np.testing.assert_allclose(weigh(np.float32([7])), [1.0], 1e-6)
    np.testing.assert_array_equal(weigh(np.float32([0, 2])), 0)
    scalarizations.assert_nan_stays_visible(geometric_mean_weights)
    assert np.all(np.isnan(weigh(np.float32([-1, 2]))))


def test_bad_arguments():
    with pytest.raises(ValueError, match="`num_tasks` must be at least 1, got 0"):
        weight_by_geometric_mean(0)
