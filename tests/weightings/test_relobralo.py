"""ReLoBRaLo: its formula in NumPy, its lookbacks and key, absent tasks."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import mtlopt
from tests.weightings.trajectories import check_every, random_run, weights_over


def balance(losses, reference, temperature):
    ratio = np.exp(losses / (temperature * reference))
    return len(losses) * ratio / np.sum(ratio)


def by_formula(losses, lookbacks, temperature, decay):
    """Weights of the authors' rule, with the first losses as L(0)."""
    weights = [np.ones(losses.shape[1])]
    for t in range(1, len(losses)):
        history = balance(losses[t], losses[0], temperature)
        history = history if lookbacks[t] else weights[-1]
        alpha = 0 if t == 1 else decay
        new = balance(losses[t], losses[t - 1], temperature)
        weights.append(alpha * history + (1 - alpha) * new)
    return np.stack(weights)


@pytest.mark.parametrize("keep", [0.0, 1.0])
def test_step_by_step(keep, float64):
    """With a lookback at every update, and with none."""
    rows, losses = random_run()
    weighting = mtlopt.weight_by_relobralo(3, 0.7, decay=0.8, keep=keep)
    found = weights_over(weighting, rows, losses)
    expected = by_formula(losses, [keep == 0] * 6, 0.7, 0.8)
    np.testing.assert_allclose(found, expected, rtol=1e-12)
    np.testing.assert_allclose(found.sum(axis=1), 3, rtol=1e-12)


def test_lookbacks_are_drawn_by_the_key(float64):
    """Each update is one of the two rules, with the probability that was asked for."""
    rows, losses = random_run(200)

    def run(key, steps=20):
        weighting = mtlopt.weight_by_relobralo(3, decay=0.5, keep=0.7, key=key)
        return weights_over(weighting, rows[:steps], losses[:steps])

    found, lookbacks = run(3, 200), []
    for t in range(2, 200):
        new = balance(losses[t], losses[t - 1], 0.1)
        kept = 0.5 * found[t - 1] + 0.5 * new
        back = 0.5 * balance(losses[t], losses[0], 0.1) + 0.5 * new
        lookbacks.append(np.allclose(found[t], back, rtol=1e-9))
        assert lookbacks[-1] != np.allclose(found[t], kept, rtol=1e-9)
    # Four standard errors.
    np.testing.assert_allclose(np.mean(lookbacks), 0.3, atol=4 * (0.21 / 198) ** 0.5)
    np.testing.assert_array_equal(run(jax.random.key(3)), found[:20])
    assert np.abs(run(4) - found[:20]).max() > 0.05


def test_units_of_the_losses_cancel(float64):
    rows, losses = random_run()
    weighting = mtlopt.weight_by_relobralo(3)
    found = weights_over(weighting, rows, losses * [1e-6, 1.0, 1e6])
    np.testing.assert_allclose(found, weights_over(weighting, rows, losses), rtol=1e-9)


def test_zero_losses_have_no_rate():
    found = mtlopt.relobralo_weights(jnp.zeros(2), jnp.zeros(2))
    np.testing.assert_array_equal(found, 1)
    nobody = mtlopt.relobralo_weights(
        jnp.ones(2), jnp.ones(2), present=jnp.zeros(2) > 0
    )
    np.testing.assert_array_equal(nobody, 0)


def test_an_absent_tasks_weight_stands_still(float64):
    """A task that joins is measured by its first loss; the others never saw it."""
    rows, losses = random_run(8)
    present = np.ones((8, 3), bool)
    present[:3, 1] = False
    spoilt = np.where(present, losses, np.nan)
    options = {"temperature": 0.7, "decay": 0.8, "keep": 0.0}
    found = weights_over(
        mtlopt.weight_by_relobralo(3, **options), rows, spoilt, present
    )
    alone = mtlopt.weight_by_relobralo(2, **options)
    expected = weights_over(alone, rows[:, ::2], losses[:, ::2])
    np.testing.assert_allclose(found[:3, ::2], expected[:3], rtol=1e-12)
    np.testing.assert_array_equal(found[:4, 1], 1)
    # At its second loss it has no average, and looks back at its first one.
    first = np.array([losses[0, 0], losses[3, 1], losses[0, 2]])
    new = balance(losses[4], losses[3], 0.7)
    back = 0.8 * balance(losses[4], first, 0.7) + 0.2 * new
    np.testing.assert_allclose(found[4], [back[0], new[1], back[2]], rtol=1e-12)


def test_a_loss_that_is_no_number_is_passed_over(float64):
    """Weights stand still for as long as it is one of the two losses."""
    rows, losses = random_run(8)
    losses[3, 1] = np.nan
    found = weights_over(mtlopt.weight_by_relobralo(3, decay=0.5), rows, losses)
    np.testing.assert_array_equal(found[3:5], found[[2, 2]])
    assert np.isfinite(found).all()
    assert np.abs(found[5] - found[4]).max() > 1e-3


def test_intervals():
    check_every(mtlopt.weight_by_relobralo(3, decay=0.5))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temperature": 0.0}, "`temperature` must be positive, got 0.0"),
        ({"decay": 1.0}, "`decay` must be at least 0 and below 1, got 1.0"),
        ({"keep": 1.1}, "`keep` must be between 0 and 1, got 1.1"),
    ],
)
def test_bad_arguments(options, message):
    with pytest.raises(ValueError, match=message):
        mtlopt.weight_by_relobralo(2, **options)
