"""Chebyshev scalarization: derivatives of the largest loss, and ties."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from mtlopt import TaskGrads
from mtlopt.weightings.chebyshev import chebyshev_weights, weight_by_chebyshev
from tests.weightings import scalarizations

PREFERENCE = np.array([0.1, 2.0, 0.7, 0.2])
REFERENCE = np.array([0.05, -1.0, 0.3, 0.0])


def weights_of(losses):
    return chebyshev_weights(losses, PREFERENCE, REFERENCE)


def combined(losses):
    return jnp.max(PREFERENCE * (losses - REFERENCE))


def test_weights_are_derivatives(float64):
    scalarizations.assert_derivatives(weights_of, combined)


def test_descends_the_largest_loss(float64):
    preference, reference = PREFERENCE[:3], REFERENCE[:3]
    scalarizations.assert_descends(
        weight_by_chebyshev(3, preference, reference),
        lambda losses: jnp.max(preference * (losses - reference)),
    )


def test_ties_share_a_subgradient():
    """S(L + h) >= S(L) + <w, h>, and tied tasks weigh the same."""
    losses = np.float32([3, 1, 3, 3])
    weights = jax.jit(chebyshev_weights)(losses)
    np.testing.assert_allclose(weights, [1 / 12, 0, 1 / 12, 1 / 12], rtol=1e-6)
    steps = np.random.default_rng(0).normal(size=(100, 4))
    change = np.max((losses + steps) / 4, axis=1) - 3 / 4
    assert np.all(change >= steps @ np.asarray(weights) - 1e-6)


def test_only_the_order_matters():
    """Weights are the same at all common scales, in float32."""
    losses = np.array([1.0, 3.0, 2.0], np.float32)
    weigh = jax.jit(chebyshev_weights)
    expected = weigh(losses)
    for scale in (1e-30, 1e-12, 1e12, 1e30):
        found = weigh((losses * scale).astype(np.float32))
        np.testing.assert_array_equal(found, expected)


def test_absent_tasks_are_left_out():
    """Also where the default preference is one over the number of present tasks."""
    scalarizations.assert_absent_are_left_out(chebyshev_weights)
    rng = np.random.default_rng(2)
    scalarizations.assert_absent_are_left_out(
        chebyshev_weights, preference=rng.random(5), reference=rng.random(5)
    )


def test_an_absent_task_is_not_a_zero_loss():
    """Where all present losses are below the reference, the largest is still one."""
    there = np.array([True, True, False])
    losses = np.float32([-2, -3, 0])
    weights = jax.jit(chebyshev_weights)(losses, np.ones(3), present=there)
    np.testing.assert_array_equal(weights, [1, 0, 0])


def test_finite_at_every_scale():
    scalarizations.assert_finite_at_every_scale(chebyshev_weights)


def test_special_losses():
    """One task weighs p; losses that are not finite are not hidden by the maximum."""
    np.testing.assert_array_equal(jax.jit(chebyshev_weights)(np.float32([7])), [1.0])
    scalarizations.assert_nan_stays_visible(chebyshev_weights)


def test_preference_may_be_injected():
    tx = optax.inject_hyperparams(weight_by_chebyshev, static_args="num_tasks")(
        2, preference=lambda count: jnp.array([1.0, 3.0 - 2.5 * count])
    )
    update = jax.jit(
        lambda state: tx.update(TaskGrads.from_rows(jnp.eye(2), [1.0, 1.0]), state)
    )
    state = tx.init(jnp.zeros(2))
    for expected in ([0, 3], [1, 0]):
        scaled, state = update(state)
        np.testing.assert_array_equal(scaled.loss_scales, expected)


@pytest.mark.parametrize("name", ["preference", "reference"])
def test_bad_arguments(name):
    with pytest.raises(ValueError, match=f"`{name}` must have one entry per task"):
        weight_by_chebyshev(2, **{name: [1.0, 2.0, 3.0]})
