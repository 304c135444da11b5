"""CR-MOGM: the exponential average of another method's weights."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mtlopt import TaskGrads
from mtlopt.aggregators.cr_mogm import cr_mogm
from mtlopt.aggregators.mgda import mgda_weights
from mtlopt.aggregators.pcgrad import pcgrad_weights
from tests.linalg.matrices import random_rows

min_norm = jax.jit(mgda_weights)


@functools.partial(jax.jit, static_argnames="method")
def update(rows, present, state, decay, method):
    """One program for all decays."""
    tx = cr_mogm(len(rows), method, decay)
    return tx.update(TaskGrads.from_rows(rows, present=present), state)


def run(batches, decay=0.9, method=mgda_weights, presents=None):
    num_tasks, size = batches[0].shape
    state, history = cr_mogm(num_tasks).init(jnp.zeros(size)), []
    for i, rows in enumerate(batches):
        present = np.ones(num_tasks, bool) if presents is None else presents[i]
        updates, state = update(rows, present, state, decay, method)
        history.append((updates, state))
    return history


def noisy(steps=4, num_tasks=3):
    scales = np.float32([[1e3], [1.0], [1e-3]])[:num_tasks]
    return [
        scales * random_rows(seed, num_tasks).astype(np.float32)
        for seed in range(steps)
    ]


def in_order(gramian, present):
    return pcgrad_weights(gramian, jnp.tile(jnp.arange(3), (3, 1)), present)


@pytest.mark.parametrize("method", [mgda_weights, in_order])
def test_average_of_the_weights(method):
    """a <- b a + (1 - b) w(G), from w(G) of the first batch; d = J^T a."""
    batches, average = noisy(), None
    for rows, (updates, state) in zip(batches, run(batches, 0.8, method), strict=True):
        found = np.asarray(jax.jit(method)(rows @ rows.T, None), np.float64)
        average = found if average is None else 0.8 * average + 0.2 * found
        np.testing.assert_allclose(state.task_weights, average, rtol=1e-3, atol=1e-6)
        size = np.linalg.norm(average[:, None] * rows, axis=1).sum()
        np.testing.assert_allclose(updates, average @ rows, atol=1e-3 * size)


def test_without_memory_it_is_the_method():
    for rows, (updates, _) in zip(noisy(), run(noisy(), 0.0), strict=True):
        expected = min_norm(rows @ rows.T) @ rows
        np.testing.assert_allclose(updates, expected, rtol=1e-3, atol=1e-6)


def test_gradients_that_do_not_change():
    """All is as without the average, at every step."""
    rows = noisy()[0]
    expected = min_norm(rows @ rows.T) @ rows
    for updates, _ in run([rows] * 3):
        np.testing.assert_allclose(updates, expected, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("rows", [np.zeros((3, 8)), np.ones((3, 8)), [[2.0, 1.0]]])
def test_degenerate_rows(rows):
    """Zero rows give zero, equal rows and a single task their gradient."""
    rows = np.asarray(rows, np.float32)
    updates, state = run([rows] * 2)[-1]
    np.testing.assert_allclose(updates, rows[0], rtol=1e-5)
    np.testing.assert_allclose(state.task_weights.sum(), 1, rtol=1e-5)


def test_absent_tasks_keep_their_average():
    """The same bits, from NaN too; the others do as if it did not exist."""
    batches, keep = noisy(), np.array([True, False, True])
    spoilt = [np.where(keep[:, None], rows, np.nan) for rows in batches]
    masked = run(spoilt, presents=[keep] * 4)
    alone = run([rows[keep] for rows in batches])
    for (found, state), (expected, small) in zip(masked, alone, strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose(
            state.task_weights[keep], small.task_weights, atol=1e-6
        )
        assert state.task_weights[1] == 0
    presents = [keep, *[np.ones(3, bool)] * 3]
    joined = run([*spoilt[:1], *batches[1:]], presents=presents)
    first = min_norm(batches[1] @ batches[1].T)
    np.testing.assert_allclose(joined[1][1].task_weights[1], first[1], rtol=1e-3)


def test_nan_stays_visible():
    assert np.all(np.isnan(run([np.full((3, 8), np.nan, np.float32)])[0][0]))


def test_bad_arguments():
    with pytest.raises(ValueError, match="`decay` must be at least 0 and below 1, got"):
        cr_mogm(2, decay=1)
    tx = cr_mogm(2, lambda gramian, present: gramian)
    with pytest.raises(ValueError, match="`weights` must return one weight per task"):
        tx.update(TaskGrads.from_rows(jnp.eye(2)), tx.init(jnp.zeros(2)))
