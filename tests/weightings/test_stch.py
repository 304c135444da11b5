"""STCH and its form of log-losses, against the reference and their combined losses."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mtlopt.weightings.chebyshev import chebyshev_weights
from mtlopt.weightings.stch import (
    log_stch_weights,
    stch_weights,
    weight_by_log_stch,
    weight_by_stch,
)
from tests import reference
from tests.weightings import scalarizations

PREFERENCE = np.array([0.1, 2.0, 0.7, 0.2])
REFERENCE = np.array([0.05, -1.0, 0.3, 0.0])
NADIR = np.array([0.5, 2.0, 1.0, 7.0])


def combine(losses, mu, preference, reference):
    """mu log sum exp(p (L - z) / mu), as defined."""
    values = preference * (losses - reference)
    return mu * jax.nn.logsumexp(values / mu)


def combine_logs(losses, mu, nadir):
    """T mu log sum (L / n)^(1 / mu), as defined."""
    return len(losses) * mu * jax.nn.logsumexp(jnp.log(losses / nadir) / mu)


def log_weights_of(losses, **keywords):
    nadir = keywords.pop("nadir", jnp.ones(len(losses)))
    return log_stch_weights(losses, nadir, 0.5, **keywords)


@pytest.mark.parametrize("sequence", reference.sequences())
@pytest.mark.parametrize("name", ["stch_mu01", "stch_mu1_pref"])
def test_reference_sequence(sequence, name, float64):
    """w = p softmax(p (L - z) / mu), step by step."""
    options = {"mu": 0.1}
    if name == "stch_mu1_pref":
        options = {
            "mu": 1.0,
            "preference": reference.weighting(f"{sequence}/{name}/pref"),
            "reference": reference.weighting(f"{sequence}/{name}/reference"),
        }
    losses = reference.weighting(f"{sequence}/losses")
    weights, _ = scalarizations.run(weight_by_stch(3, **options), losses)
    expected = reference.weighting(f"{sequence}/{name}/weights")
    np.testing.assert_allclose(weights, expected, rtol=1e-10)


@pytest.mark.parametrize("sequence", reference.sequences())
@pytest.mark.parametrize(("name", "mu"), [("stchlog_mu1", 1.0), ("stchlog_mu02", 0.2)])
def test_log_reference_sequence(sequence, name, mu, float64):
    """With the nadir of two steps' warm-up: 1 / L in them, then the reference."""
    losses = reference.weighting(f"{sequence}/losses")
    expected = reference.weighting(f"{sequence}/{name}/weights")
    weighting = weight_by_log_stch(3, mu, warmup_steps=2)
    weights, states = scalarizations.run(weighting, losses)
    np.testing.assert_allclose(weights[:2], 1 / losses[:2], rtol=1e-12)
    np.testing.assert_allclose(weights[2:], expected[2:], rtol=1e-10)
    nadir = reference.weighting(f"{sequence}/{name}/nadir")
    np.testing.assert_allclose(states[-1].nadir, nadir, rtol=1e-12)
    at_once = jax.jit(jax.vmap(lambda row: log_stch_weights(row, nadir, mu)))(losses)
    np.testing.assert_allclose(at_once, expected, rtol=1e-10)


@pytest.mark.parametrize("mu", [0.3, 2.0])
def test_weights_are_derivatives(mu, float64):
    scalarizations.assert_derivatives(
        lambda losses: stch_weights(losses, mu, PREFERENCE, REFERENCE),
        lambda losses: combine(losses, mu, PREFERENCE, REFERENCE),
    )
    scalarizations.assert_derivatives(
        lambda losses: log_stch_weights(losses, NADIR, mu),
        lambda losses: combine_logs(losses, mu, NADIR),
    )


def test_descends_the_smooth_maximum(float64):
    scalarizations.assert_descends(
        weight_by_stch(3, 0.4), lambda losses: combine(losses, 0.4, 1 / 3, 0.0)
    )


def test_descends_the_sum_of_logs_in_the_warm_up(float64):
    scalarizations.assert_descends(
        weight_by_log_stch(3), lambda losses: jnp.sum(jnp.log(losses))
    )


def test_small_mu_is_chebyshev_and_large_mu_a_fixed_sum():
    losses, weigh = np.float32([1, 3, 2]), jax.jit(stch_weights)
    for mu in (1e-3, 1e-30):
        expected = jax.jit(chebyshev_weights)(losses)
        np.testing.assert_allclose(weigh(losses, mu), expected, atol=1e-7)
    preference = np.float32([1, 3, 2])
    soft = weigh(losses, 1e9, preference)
    np.testing.assert_allclose(soft, preference / 3, rtol=1e-6)


def test_mu_has_the_unit_of_the_losses(dtype):
    losses = np.array([1.0, 3.0, 2.0], dtype)
    weigh = jax.jit(stch_weights)
    expected = weigh(losses, 0.5)
    for unit in (1e-12, 1e12):
        found = weigh((losses * unit).astype(dtype), 0.5 * unit)
        np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_units_cancel_in_the_form_of_logs(dtype):
    """w_i L_i is the same whatever each loss is multiplied by, 1e24 apart."""
    losses = np.array([[1.0, 2.0, 3.0], [0.5, 1.9, 1.0]], dtype)
    units = np.array([1e-12, 1.0, 1e12], dtype)
    weighting = weight_by_log_stch(3, 0.5)
    expected = scalarizations.run(weighting, losses)[0] * losses
    found = scalarizations.run(weighting, losses * units)[0] * losses * units
    np.testing.assert_allclose(found, expected, rtol=1e-4)


def test_nadir_is_of_the_last_warm_up_steps():
    """Of four steps the last two, over those where the task was present."""
    losses = np.array([[9, 9], [9, 9], [1, 4], [3, 5], [8, 8]], np.float32)
    present = np.ones((5, 2), bool)
    present[2, 1] = False
    weighting = weight_by_log_stch(2, warmup_steps=4, nadir_steps=2)
    _, states = scalarizations.run(weighting, losses, present)
    np.testing.assert_allclose(states[3].nadir, [2, 5])
    np.testing.assert_array_equal(states[4].nadir, states[3].nadir)


def test_a_task_first_seen_later_takes_that_loss_as_nadir():
    """And NaN of an absent task does not enter."""
    losses = np.array([[2, np.nan], [2, np.nan], [1, 6], [1, 3]], np.float32)
    weights, states = scalarizations.run(
        weight_by_log_stch(2), losses, np.isfinite(losses)
    )
    np.testing.assert_array_equal(weights[:2, 1], 0)
    np.testing.assert_array_equal(states[-1].nadir, [2, 6])
    np.testing.assert_allclose(weights[2], [2 / 3, 2 * 2 / 3 / 6], rtol=1e-5)
    np.testing.assert_allclose(weights[3], [1, 1 / 3], rtol=1e-5)


def test_absent_tasks_are_left_out():
    scalarizations.assert_absent_are_left_out(stch_weights)
    rng = np.random.default_rng(2)
    scalarizations.assert_absent_are_left_out(
        stch_weights, preference=rng.random(5), reference=rng.random(5)
    )
    scalarizations.assert_absent_are_left_out(
        log_weights_of, nadir=rng.uniform(1, 2, size=5)
    )


@pytest.mark.parametrize("weights_of", [stch_weights, log_weights_of])
def test_finite_at_every_scale(weights_of):
    scalarizations.assert_finite_at_every_scale(weights_of)


def test_special_losses():
    """One task weighs p, or 1 / L; equal losses share; zero weighs nothing in logs."""
    weigh, weigh_logs = jax.jit(stch_weights), jax.jit(log_weights_of)
    np.testing.assert_array_equal(weigh(np.float32([7])), [1.0])
    np.testing.assert_allclose(weigh_logs(np.float32([4])), [0.25], rtol=1e-6)
    np.testing.assert_allclose(weigh(np.full(4, 3, np.float32)), 1 / 16, rtol=1e-6)
    found = weigh_logs(np.float32([0, 2]))
    np.testing.assert_allclose(found, [0, 1], rtol=1e-6)
    found = weigh_logs(np.float32([2, 2]), nadir=np.float32([0, 1]))
    np.testing.assert_allclose(found, [0, 1], rtol=1e-6)
    scalarizations.assert_nan_stays_visible(stch_weights)
    scalarizations.assert_nan_stays_visible(log_weights_of)
    assert np.any(np.isnan(weigh_logs(np.float32([-1, 2]))))
    weights, _ = scalarizations.run(weight_by_log_stch(2), [[-1.0, 0.0]])
    np.testing.assert_array_equal(weights, [[np.nan, 0]])


@pytest.mark.parametrize(
    ("factory", "options", "message"),
    [
        (weight_by_stch, {"mu": 0.0}, "`mu` must be positive, got 0.0"),
        (weight_by_stch, {"preference": [1.0]}, "`preference` must have one entry per"),
        (weight_by_stch, {"reference": [1.0]}, "`reference` must have one entry per"),
        (weight_by_log_stch, {"mu": -1}, "`mu` must be positive, got -1"),
        (weight_by_log_stch, {"warmup_steps": 0}, "`warmup_steps` must be a positive"),
        (weight_by_log_stch, {"nadir_steps": 2}, "`nadir_steps` must be an int from 1"),
        (weight_by_log_stch, {"nadir_steps": 0}, "`nadir_steps` must be an int from 1"),
    ],
)
def test_bad_arguments(factory, options, message):
    with pytest.raises(ValueError, match=message):
        factory(2, **options)
