"""SoftAdapt: its formula and variants in NumPy, its epochs, absent tasks."""

import jax.numpy as jnp
import numpy as np
import pytest

import mtlopt
from tests.weightings.trajectories import check_every, random_run, weights_over

VARIANTS = [
    {"normalised": normalised, "loss_weighted": weighted}
    for normalised in (False, True)
    for weighted in (False, True)
]


def by_formula(last, before, beta, *, normalised, loss_weighted):
    slopes = last - before
    if normalised:
        slopes = slopes / np.sum(np.abs(slopes))
    exponentials = np.exp(beta * slopes) * (last + before if loss_weighted else 1)
    return len(last) * exponentials / np.sum(exponentials)


@pytest.mark.parametrize("variant", VARIANTS)
def test_step_by_step(variant, float64):
    """Ones in the first two updates, then from the two losses before."""
    rows, losses = random_run()
    expected = [np.ones(3), np.ones(3)]
    expected += [
        by_formula(losses[t - 1], losses[t - 2], 0.8, **variant) for t in range(2, 6)
    ]
    found = weights_over(mtlopt.weight_by_softadapt(3, 0.8, **variant), rows, losses)
    np.testing.assert_allclose(found, expected, rtol=1e-12)


def test_losses_that_rise_weigh_more():
    """The authors' example: slopes +1, -50 and -500 at beta 0.1, to five digits."""
    before, last = jnp.array([4.0, 60.0, 600.0]), jnp.array([5.0, 10.0, 100.0])
    found = mtlopt.softadapt_weights(last, before, 0.1) / 3
    np.testing.assert_allclose(found, [0.99394, 0.00606, 0], atol=1e-5)
    # All fall: divided by their plain sum, which is negative, the order would turn.
    falling = mtlopt.softadapt_weights(
        jnp.array([1.0, 1.0]), jnp.array([2.0, 9.0]), 1.0, normalised=True
    )
    expected = 2 / (1 + np.exp([1 / 9 - 8 / 9, 8 / 9 - 1 / 9]))
    np.testing.assert_allclose(falling, expected, rtol=1e-6)


@pytest.mark.parametrize("variant", VARIANTS)
def test_corners(variant):
    """Zero losses, no change, and a beta of zero are equal weights."""
    zeros, ones = jnp.zeros(3), jnp.ones(3)
    for last, before in ((zeros, zeros), (ones, ones)):
        found = mtlopt.softadapt_weights(last, before, **variant)
        np.testing.assert_allclose(found, 1, rtol=1e-6)
    nobody = mtlopt.softadapt_weights(ones, zeros, present=zeros > 0, **variant)
    np.testing.assert_array_equal(nobody, 0)


def test_epochs_are_means_over_their_steps(float64):
    rows, losses = random_run(12)
    weighting = mtlopt.weight_by_softadapt(3, 2.0)
    means = losses.reshape(6, 2, 3).mean(axis=1)
    expected = weights_over(weighting, rows[::2], means)
    weighting = mtlopt.weight_by_softadapt(3, 2.0, steps_per_epoch=2)
    found = weights_over(weighting, rows, losses)
    np.testing.assert_allclose(found[::2], expected, rtol=1e-12)
    np.testing.assert_allclose(found[1::2], expected, rtol=1e-12)


@pytest.mark.parametrize("variant", VARIANTS)
def test_absent_tasks_weigh_nothing(variant, float64):
    """The others are weighed as if they were alone."""
    rows, losses = random_run()
    present = np.ones((6, 3), bool)
    present[:, 1] = False
    spoilt = np.where(present, losses, np.nan)
    weighting = mtlopt.weight_by_softadapt(3, 0.8, **variant)
    found = weights_over(weighting, rows, spoilt, present)
    np.testing.assert_array_equal(found[:, 1], 0)
    alone = mtlopt.weight_by_softadapt(2, 0.8, **variant)
    expected = weights_over(alone, rows[:, ::2], losses[:, ::2])
    np.testing.assert_allclose(found[:, ::2], expected, rtol=1e-12)


def test_intervals():
    check_every(mtlopt.weight_by_softadapt(3, 2.0), steps=8, interval=2)


def test_bad_arguments():
    with pytest.raises(ValueError, match="`steps_per_epoch` must be a positive int"):
        mtlopt.weight_by_softadapt(2, steps_per_epoch=0)
