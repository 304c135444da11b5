"""Trimmed mean: reference values, absent tasks, precision, arguments."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import mtlopt
from mtlopt.aggregators.trimmed_mean import trim_entries, trimmed_mean
from tests import reference
from tests.linalg.matrices import structured

TASKS, PARAMS = 40, 200
trim_leaf = jax.jit(trim_entries, static_argnums=1)


def padded(rows, dtype):
    """Rows of one shape for all cases; the absent tasks hold NaN."""
    full = np.full((TASKS, PARAMS), np.nan, dtype)
    full[: len(rows)] = 0
    full[: len(rows), : rows.shape[1]] = rows
    return full, np.arange(TASKS) < len(rows)


def run(rows, trim, dtype=np.float32):
    full, present = padded(rows, dtype)
    mean, weights = trim_leaf(full, trim, present)
    assert np.all(weights[len(rows) :] == 0)
    return np.asarray(mean)[: rows.shape[1]]


@pytest.mark.parametrize("trim", [1, 2])
def test_reference_vector(trim, dtype):
    """On every case with enough tasks, the ill-conditioned ones too."""
    checked = 0
    for case in reference.cases():
        if reference.entry(case, f"trimmedmean_t{trim}").status != "exact":
            continue
        found = run(reference.jacobian(case), trim, dtype)
        tol = 1e-5 if dtype == np.float32 else 1e-13
        assert reference.error(case, f"trimmedmean_t{trim}", found) <= tol, case
        checked += 1
    assert checked >= 10


@pytest.mark.parametrize("unit", [1e-12, 1.0, 1e12])
def test_equals_sorting(unit):
    """Each column's sorted values without the ends, norms up to 1e6 apart."""
    rows = structured("random", 9) * np.logspace(0, -6, 9)[:, None] * unit
    expected = np.sort(rows, axis=0)[3:-3].mean(axis=0)
    np.testing.assert_allclose(run(rows, 3), expected, rtol=1e-4, atol=1e-13 * unit)


def test_too_few_present_tasks():
    """Down to one or two values per entry; nobody gives zero."""
    rows = structured("random", 4)
    for num_tasks in (1, 2, 3, 4):
        expected = np.median(rows[:num_tasks], axis=0)
        np.testing.assert_allclose(run(rows[:num_tasks], 2), expected, rtol=1e-5)
    np.testing.assert_array_equal(run(rows[:0], 2), 0)


def test_not_finite():
    """NaN stays visible in its entry; an infinity is an extreme like another."""
    rows = np.ones((5, 3), np.float32) * np.arange(5)[:, None]
    rows[1, 0], rows[2, 1] = np.nan, np.inf
    found = run(rows, 1)
    assert np.isnan(found[0])
    np.testing.assert_allclose(found[1:], [np.mean([1, 3, 4]), 2])


def test_weights_give_the_mean():
    """Without ties the weights are 1 / (T - 2 b) for the kept values, else 0."""
    full, present = padded(structured("random", 7), np.float32)
    mean, weights = trim_leaf(full, 2, present)
    size = structured("random", 7).shape[1]
    kept = np.asarray(weights)[:7, :size]
    np.testing.assert_allclose(np.sort(kept, axis=0)[-3:], 1 / 3)
    np.testing.assert_allclose(
        np.sum(kept * full[:7, :size], axis=0), mean[:size], atol=1e-6
    )


@pytest.fixture(scope="module")
def update():
    tx = trimmed_mean(5)

    def step(rows, present):
        grads = mtlopt.TaskGrads.from_rows(rows, present=present)
        return tx.update(grads, tx.init(jnp.zeros(2)))

    return jax.jit(step)


def test_aggregator(update):
    """Leaf by leaf, absent tasks left out; weights averaged over all entries."""
    rows = {"a": structured("random", 5)[:, :4], "b": structured("random", 5)[:, 4:]}
    rows = jax.tree.map(lambda leaf: leaf.astype(np.float32).reshape(5, 2, -1), rows)
    spoilt = jax.tree.map(lambda leaf: leaf.copy(), rows)
    for leaf in spoilt.values():
        leaf[3] = np.nan
    present = np.arange(5) != 3
    updates, state = update(spoilt, present)
    for name, leaf in rows.items():
        expected = np.sort(leaf[present], axis=0)[1:-1].mean(axis=0)
        np.testing.assert_allclose(updates[name], expected, rtol=1e-5)
    flat = np.concatenate([leaf.reshape(5, -1) for leaf in rows.values()], axis=1)
    ranks = np.argsort(np.argsort(flat[present], axis=0), axis=0)
    shares = np.mean((ranks >= 1) & (ranks <= 2), axis=1) / 2
    np.testing.assert_allclose(state.task_weights[present], shares, rtol=1e-5)
    assert state.task_weights[3] == 0


def test_bfloat16_is_averaged_in_float32(update):
    """256 + 1 + 1 in bfloat16 would lose the ones."""
    column = jnp.array([[-999], [256], [1.5], [1.5], [999]], jnp.bfloat16)
    updates, _ = update(column, jnp.ones(5, bool))
    assert updates.dtype == jnp.bfloat16
    np.testing.assert_array_equal(updates, jnp.asarray([259 / 3], jnp.bfloat16))


def test_one_task_and_equal_gradients():
    rows = structured("all_equal", 8)
    np.testing.assert_allclose(run(rows, 3), rows[0], rtol=1e-6)
    np.testing.assert_array_equal(run(rows[:1], 0), rows[0].astype(np.float32))


def test_bad_arguments():
    with pytest.raises(ValueError, match=r"`num_tasks` must be at least 2 trim \+ 1"):
        trimmed_mean(4, trim=2)
    with pytest.raises(ValueError, match="`trim` must be an int"):
        trimmed_mean(4, trim=-1)
