"""GradDrop for given draws, and over many draws."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import mtlopt
from mtlopt.aggregators.graddrop import drop_signs, graddrop
from tests.linalg.matrices import KINDS, structured


@jax.jit
def drop(rows, uniform, leak=None, present=None):
    """The sum and the weights of one leaf."""
    leak = jnp.zeros(len(rows)) if leak is None else leak
    (total,), weights = drop_signs([rows], [uniform], leak, present)
    return total, weights


LEAK = np.array([0.0, 0.25, 1.0, 0.5], np.float32)


def plain_loop(rows, uniform, leak):
    """Lines 10 to 15 of Algorithm 1, entry by entry."""
    total, weights = np.zeros(rows.shape[1]), np.zeros(len(rows))
    for k, column in enumerate(rows.T):
        size = np.abs(column).sum()
        purity = 0.5 * (1 + column.sum() / size) if size else 0
        for task, value in enumerate(column):
            passes = value >= 0 if purity > uniform[k] else value <= 0
            weight = 1 if passes else leak[task]
            total[k] += weight * value
            weights[task] += weight
    return total, weights


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("unit", [1e-12, 1.0, 1e12])
@pytest.mark.parametrize("leak", [None, LEAK], ids=["none", "leaks"])
def test_equals_plain_loop(kind, unit, leak):
    """Norms up to 1e6 apart in any unit."""
    rows = structured(kind, 4) * np.logspace(0, -6, 4)[:, None] * unit
    rows = rows.astype(np.float32).astype(np.float64)
    uniform = np.random.default_rng(0).uniform(size=rows.shape[1]).astype(np.float32)
    total, weights = drop(rows.astype(np.float32), uniform, leak)
    leak = 0 * LEAK if leak is None else leak
    expected, expected_weights = plain_loop(rows, uniform, leak)
    np.testing.assert_allclose(total, expected, rtol=1e-5, atol=1e-13 * unit)
    np.testing.assert_allclose(weights, expected_weights, rtol=1e-5)


def test_many_tasks_equal_the_plain_loop():
    """More than are written out."""
    rows = structured("random", 40).astype(np.float32)
    uniform = np.random.default_rng(0).uniform(size=rows.shape[1]).astype(np.float32)
    leak = np.linspace(0, 1, 40, dtype=np.float32)
    for found, expected in zip(
        drop(rows, uniform, leak), plain_loop(rows, uniform, leak), strict=True
    ):
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def test_one_sign_passes_and_pure_entries_always():
    """Whatever is drawn: 0, just below 1, and where all agree all pass."""
    rows = np.array([[1, -1, 3, 1e-9], [2, -2, -1, -1.0]], np.float32)
    for draw in (0.0, 0.5, np.nextafter(np.float32(1), np.float32(0))):
        total, weights = drop(rows, np.full(4, draw, np.float32))
        np.testing.assert_array_equal(total[:2], [3, -3])
        assert total[2] == (3 if draw < 0.75 else -1)
        assert np.all(np.asarray(total) != 0)
        positive = draw < 0.75
        entries = [[1, 1, positive, draw == 0], [1, 1, not positive, draw > 0]]
        np.testing.assert_array_equal(weights, np.sum(entries, axis=1))


def test_leak_of_one_is_the_sum_and_absent_tasks_do_not_exist():
    """An absent row holds NaN; a NaN that is present stays visible."""
    rows = structured("random", 4).astype(np.float32)
    uniform = np.random.default_rng(0).uniform(size=rows.shape[1]).astype(np.float32)
    total, _ = drop(rows, uniform, np.ones(4, np.float32))
    np.testing.assert_allclose(total, rows.sum(axis=0), rtol=1e-5, atol=1e-6)
    spoilt, present = rows.copy(), np.arange(4) != 1
    spoilt[1] = np.nan
    total, weights = drop(spoilt, uniform, LEAK, present)
    expected, counts = plain_loop(rows[present], uniform, LEAK[present])
    np.testing.assert_allclose(total, expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(weights[present], counts, rtol=1e-5)
    assert weights[1] == 0
    assert np.all(np.isnan(drop(spoilt, uniform, LEAK)[0]))
    # Compiled, a product with 0 is a select.
    assert np.all(np.isnan(drop(spoilt, uniform)[0]))


@pytest.mark.parametrize("leak", [None, LEAK], ids=["none", "leaks"])
def test_not_finite_stays_visible_whatever_sign_is_drawn(leak):
    rows = np.ones((4, 6), np.float32)
    rows[1] = [np.inf, -np.inf, np.nan, 1, -1, 0]
    rows[2] = [-1, 1, 1, -1, 1, 1]
    for draw in (0.0, 0.999):
        total, _ = drop(rows, np.full(6, draw, np.float32), leak)
        np.testing.assert_array_equal(np.isnan(total), [1, 1, 1, 0, 0, 0])


@pytest.fixture(scope="module")
def run():
    """Updates and states over `[steps, tasks, ...]` rows."""
    tx = graddrop(3, key=7)

    def step(state, rows):
        updates, state = tx.update(mtlopt.TaskGrads.from_rows(rows), state)
        return state, (updates, state.task_weights)

    return jax.jit(lambda rows: jax.lax.scan(step, tx.init(jnp.zeros(2)), rows)[1])


def test_mean_over_draws_is_the_sum(run):
    """E d = sum_i g_i, to five standard errors of 4000 draws."""
    rows = structured("random", 3).astype(np.float32)
    updates, weights = run(np.tile(rows, (4000, 1, 1)))
    error = np.abs(np.mean(updates, axis=0) - rows.sum(axis=0))
    assert np.all(error <= 5 * np.std(updates, axis=0) / np.sqrt(4000) + 1e-5)
    assert np.any(np.std(updates, axis=0) > 0.1)
    assert np.all((np.asarray(weights) >= 0) & (np.asarray(weights) <= 1))


def test_every_entry_and_leaf_draws_for_itself(run):
    """Opposed rows: entries of two equal leaves come out independent."""
    ones = np.ones((2000, 5), np.float32)
    leaf = np.stack([ones, -ones, 0 * ones], axis=1)
    updates, _ = run({"a": leaf, "b": leaf})
    signs = np.concatenate([updates["a"], updates["b"]], axis=1)
    assert set(np.unique(signs)) == {-1.0, 1.0}
    correlation = np.corrcoef(signs.T) - np.eye(10)
    assert np.max(np.abs(correlation)) < 0.15
    assert abs(np.corrcoef(signs[1:, 0], signs[:-1, 0])[0, 1]) < 0.15  # and each step


def test_one_key_one_sequence():
    rows = jnp.asarray(structured("random", 3), jnp.float32)

    @jax.jit
    def first(key):
        tx = graddrop(3, key=key)
        return tx.update(mtlopt.TaskGrads.from_rows(rows), tx.init(jnp.zeros(2)))[0]

    seeded = graddrop(3, key=3).init(jnp.zeros(2))
    assert seeded.key == graddrop(3, key=jax.random.key(3)).init(jnp.zeros(2)).key
    same, again, other = (first(jax.random.key(seed)) for seed in (3, 3, 4))
    np.testing.assert_array_equal(same, again)
    assert np.any(same != other)


def test_types_and_conventions():
    """bfloat16 stays; equal gradients give T g; one task g; zeros zero."""

    @jax.jit
    def run(rows):
        tx = graddrop(len(rows), leak=jnp.zeros(len(rows)))
        return tx.update(mtlopt.TaskGrads.from_rows(rows), tx.init(jnp.zeros(2)))

    row = jnp.array([1, -2, 0, 3], jnp.bfloat16)
    update, state = run(jnp.stack([row, row, row]))
    assert update.dtype == jnp.bfloat16
    np.testing.assert_array_equal(update, 3 * row)
    np.testing.assert_array_equal(state.task_weights, 1)
    np.testing.assert_array_equal(run(row[None])[0], row)
    np.testing.assert_array_equal(run(jnp.zeros((3, 4)))[0], 0)


def test_bad_arguments():
    with pytest.raises(ValueError, match="`leak` must have one entry per task"):
        graddrop(2, leak=[0.5])
