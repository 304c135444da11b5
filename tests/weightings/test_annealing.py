"""Gradient-norm weights and annealing: their formulas, step by step, in NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import mtlopt
from mtlopt import TaskGrads
from tests.problems import (
    TASKS,
    first,
    gradient_of,
    make_batches,
    make_oracle,
    make_params,
)
from tests.weightings.trajectories import check_every, random_run, weights_over


def test_norms_step_by_step(float64):
    """w <- b w + (1 - b) mean|g| / |g_i|, from ones."""
    rows, losses = random_run()
    expected, weights = [], np.ones(3)
    for now in rows:
        norms = np.sqrt(np.sum(now**2, axis=1))
        weights = 0.7 * weights + 0.3 * np.sum(norms) / 3 / norms
        expected.append(weights)
    found = weights_over(mtlopt.weight_by_norms(3, decay=0.7), rows, losses)
    np.testing.assert_allclose(found, expected, rtol=1e-12)


@pytest.mark.parametrize("residuals", [(0,), (2, 1)])
def test_annealing_step_by_step(residuals, float64):
    """w_i <- b w_i + (1 - b) max|g_r| / mean|g_i|; those of the residuals stay 1."""
    rows, losses = random_run()
    others = np.setdiff1d(np.arange(3), residuals)
    expected, weights = [], np.ones(3)
    for now in rows:
        largest = np.max(np.abs(sum(now[i] for i in residuals)))
        weights = weights.copy()
        for i in others:
            weights[i] = 0.6 * weights[i] + 0.4 * largest / np.mean(np.abs(now[i]))
        expected.append(weights)
    weighting = mtlopt.weight_by_annealing(3, residuals, decay=0.6)
    found = weights_over(weighting, rows, losses)
    np.testing.assert_allclose(found, expected, rtol=1e-12)
    np.testing.assert_array_equal(found[:, list(residuals)], 1)


def test_without_an_average_the_gradients_are_of_one_length(float64):
    rows, losses = random_run()
    found = weights_over(mtlopt.weight_by_norms(3, decay=0), rows, losses)
    lengths = found * np.linalg.norm(rows, axis=-1)
    np.testing.assert_allclose(lengths, lengths[:, :1] * np.ones(3), rtol=1e-12)


def test_gradients_are_over_all_shared_leaves(float64):
    """Of the parameters, not of the latent; residuals by name."""
    params, args = make_params(), first(make_batches())
    gradients = [gradient_of(task, params, *args)["encoder"] for task in TASKS]
    flat = [np.concatenate([np.ravel(leaf) for leaf in g.values()]) for g in gradients]
    norms = np.array([np.linalg.norm(g) for g in flat])
    means = np.array([np.mean(np.abs(g)) for g in flat])
    oracle = make_oracle()
    annealing = mtlopt.weight_by_annealing(3, ["b"], decay=0)

    @jax.jit
    def updates(params):
        grads = oracle(params, *args)
        return [
            tx.update(grads, tx.init(params))[1].task_weights
            for tx in (mtlopt.weight_by_norms(3, decay=0), annealing)
        ]

    by_norms, annealed = updates(params)
    np.testing.assert_allclose(by_norms, norms.mean() / norms, rtol=1e-9)
    expected = np.where(np.array(TASKS) == "b", 1, np.abs(flat[1]).max() / means)
    np.testing.assert_allclose(annealed, expected, rtol=1e-9)


def make(name):
    return getattr(mtlopt, name)(3, decay=0.5)


both = pytest.mark.parametrize("name", ["weight_by_norms", "weight_by_annealing"])


@both
def test_weights_stand_still_without_a_gradient(name, float64):
    """Absent, zero or no number: the others are weighed as if they were alone."""
    rows, losses = random_run()
    alone = getattr(mtlopt, name)(2, decay=0.5)
    expected = weights_over(alone, rows[:, ::2], losses[:, ::2])
    for spoilt in (np.nan, np.inf, 0.0, "absent"):
        present, now = np.ones((6, 3), bool), rows.copy()
        present[:, 1] = spoilt != "absent"
        now[:, 1] = np.nan if spoilt == "absent" else spoilt
        found = weights_over(make(name), now, losses, present)
        np.testing.assert_array_equal(found[:, 1], 1)
        np.testing.assert_allclose(found[:, ::2], expected, rtol=1e-12)


@both
def test_intervals(name):
    check_every(make(name))


@both
def test_weights_are_numbers_where_a_gradient_hardly_is(name):
    """Norms 60 powers of ten apart; the update is finite as well."""
    rows = np.float32([[1e30, 1e30], [1e-30, 0]])
    weighting = getattr(mtlopt, name)(2)

    @jax.jit
    def weighted(rows):
        grads = TaskGrads.from_rows(rows)
        grads, _ = weighting.update(grads, weighting.init(None))
        return grads.loss_scales, grads.combine(jnp.ones(2))

    assert all(np.isfinite(found).all() for found in weighted(rows))


def test_bad_arguments():
    for make_one in (mtlopt.weight_by_norms, mtlopt.weight_by_annealing):
        with pytest.raises(ValueError, match="`decay` must be at least 0 and below 1"):
            make_one(2, decay=1.0)
    grads = TaskGrads.from_rows(jnp.eye(2), tasks=("mass", "edge"))
    for residuals, message in (
        (["mas"], "`residuals` must be one of 'mass', 'edge', got 'mas'"),
        ([2], "`residuals` must be between 0 and 1, got 2"),
    ):
        weighting = mtlopt.weight_by_annealing(2, residuals)
        with pytest.raises(ValueError, match=message):
            weighting.update(grads, weighting.init(None))
