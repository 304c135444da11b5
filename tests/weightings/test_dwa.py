"""DWA against the reference trajectories, and its epochs."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import mtlopt
from mtlopt import TaskGrads
from tests import reference


def weights_over(weighting, losses, present=None):
    """Weights in force at every step, `[steps, tasks]`."""
    state, weights = weighting.init(jnp.zeros(2)), []
    update = jax.jit(
        lambda losses, present, state: weighting.update(
            TaskGrads.from_rows(jnp.eye(len(losses)), losses, present), state
        )
    )
    for step, row in enumerate(losses):
        mask = None if present is None else jnp.asarray(present[step])
        grads, state = update(jnp.asarray(row), mask, state)
        np.testing.assert_array_equal(grads.loss_scales, state.task_weights)
        weights.append(np.asarray(grads.loss_scales))
    return np.stack(weights)


@pytest.mark.parametrize("sequence", reference.sequences())
def test_reference_trajectory(sequence, float64):
    """w = T softmax(r / 2), r = L[t-1] / L[t-2], step by step."""
    losses = reference.weighting(f"{sequence}/losses")
    expected = reference.weighting(f"{sequence}/dwa/weights")
    found = weights_over(mtlopt.weight_by_dwa(3), losses)
    np.testing.assert_allclose(found, expected, rtol=1e-10)


def test_epochs_are_means_over_their_steps(float64):
    """With two steps an epoch, the rates are those of the epochs' mean losses."""
    losses = reference.weighting("seq3/losses")
    per_epoch = weights_over(mtlopt.weight_by_dwa(3), losses.reshape(6, 2, 3).mean(1))
    found = weights_over(mtlopt.weight_by_dwa(3, steps_per_epoch=2), losses)
    np.testing.assert_allclose(found[::2], per_epoch, rtol=1e-12)
    np.testing.assert_allclose(found[1::2], per_epoch, rtol=1e-12)


def test_units_of_the_losses_cancel(float64):
    losses = reference.weighting("seq3/losses")
    scaled = losses * [1e-6, 1.0, 1e6]
    weighting = mtlopt.weight_by_dwa(3)
    np.testing.assert_allclose(
        weights_over(weighting, scaled), weights_over(weighting, losses), rtol=1e-10
    )


def test_temperature_is_the_softness():
    """Towards infinity all weights are 1; small, the slowest task takes all."""
    losses = [[4.0, 4.0], [2.0, 4.0], [1.0, 4.0]]
    soft = weights_over(mtlopt.weight_by_dwa(2, temperature=1e6), losses)
    np.testing.assert_allclose(soft, np.ones((3, 2)), rtol=1e-5)
    hard = weights_over(mtlopt.weight_by_dwa(2, temperature=0.01), losses)
    np.testing.assert_allclose(hard[-1], [0, 2], atol=1e-6)


def test_weights_of_present_tasks_sum_to_their_number():
    losses = reference.weighting("seq3/losses").astype(np.float32)
    present = np.random.default_rng(0).random(losses.shape) < 0.6
    present[:, 0] = True
    spoilt = np.where(present, losses, np.nan)
    weights = weights_over(mtlopt.weight_by_dwa(3), spoilt, present)
    np.testing.assert_allclose(weights.sum(axis=1), present.sum(axis=1), rtol=1e-5)
    np.testing.assert_array_equal(weights[~present], 0)


def test_absent_for_an_epoch_keeps_the_last_rate():
    """Task 1 misses epoch 2: at step 3 its rate is still L[1] / L[0]."""
    losses = np.array([[4.0, 4.0], [4.0, 2.0], [4.0, np.nan], [4.0, 1.0]], np.float32)
    present = np.array([[1, 1], [1, 1], [1, 0], [1, 1]], bool)
    found = weights_over(mtlopt.weight_by_dwa(2), losses, present)[-1]
    expected = mtlopt.dwa_weights(jnp.array([4.0, 2.0]), jnp.array([4.0, 4.0]))
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_zero_losses_have_no_rate():
    np.testing.assert_allclose(
        mtlopt.dwa_weights(jnp.zeros(2), jnp.zeros(2)), [1.0, 1.0]
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temperature": 0.0}, "`temperature` must be positive, got 0.0"),
        ({"temperature": -1}, "`temperature` must be positive, got -1"),
        ({"steps_per_epoch": 0}, "`steps_per_epoch` must be a positive int, got 0"),
        ({"steps_per_epoch": 1.5}, "`steps_per_epoch` must be a positive int, got 1.5"),
    ],
)
def test_bad_arguments(options, message):
    with pytest.raises(ValueError, match=message):
        mtlopt.weight_by_dwa(2, **options)


def test_a_mean_is_over_the_labelled_steps():
    """Absent in one of an epoch's two steps: its mean is the other step's loss."""
    losses = np.array([[4, 4]] * 2 + [[4, 2], [4, np.nan], [4, 1]], np.float32)
    present = np.isfinite(losses)
    weighting = mtlopt.weight_by_dwa(2, steps_per_epoch=2)
    found = weights_over(weighting, losses, present)[-1]
    expected = mtlopt.dwa_weights(jnp.array([4.0, 2.0]), jnp.array([4.0, 4.0]))
    np.testing.assert_allclose(found, expected, rtol=1e-6)
