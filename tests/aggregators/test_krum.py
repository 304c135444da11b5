"""Krum against the reference and a plain loop; ties, absent tasks, arguments."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import mtlopt
from mtlopt.aggregators.krum import krum, krum_weights
from tests import reference
from tests.linalg.matrices import KINDS, gramian, padded_gramian, structured

SIZE = reference.MAX_TASKS
solve = jax.jit(
    krum_weights, static_argnames=("num_byzantine", "num_selected", "distance")
)
DISTANCES = {"squared": "krum", "plain": "krum_dist"}
distances = pytest.mark.parametrize("distance", DISTANCES)


def weights_of(rows, dtype, **options):
    matrix, present = padded_gramian(rows, dtype, SIZE)
    weights = np.asarray(solve(matrix, present=present, **options))
    if np.all(np.isfinite(rows)):
        assert np.all(weights[len(rows) :] == 0)
    return weights[: len(rows)]


@distances
@pytest.mark.parametrize("num_selected", [1, 3])
def test_reference_vector(distance, num_selected, dtype):
    """On every case with enough tasks."""

    def run(_, matrix, present):
        return solve(
            matrix, num_selected=num_selected, present=present, distance=distance
        )

    method = f"{DISTANCES[distance]}_f1_k{num_selected}"
    assert not reference.beyond_tolerance(method, run, dtype)


def plain_loop(rows, num_byzantine, num_selected, distance):
    scores = []
    for row in rows:
        apart = np.sort(np.linalg.norm(rows - row, axis=1))[1:]
        apart = apart[: len(rows) - num_byzantine - 2]
        scores.append(np.sum(apart ** (2 if distance == "squared" else 1)))
    weights = np.zeros(len(rows))
    weights[np.argsort(scores, kind="stable")[:num_selected]] = 1 / num_selected
    return weights


@distances
@pytest.mark.parametrize("unit", [1e-12, 1.0, 1e12])
def test_equals_plain_loop(distance, unit):
    """Norms up to 1e6 apart in any unit, float32: the same selection."""
    for seed in range(5):
        rows = structured("random", 12, seed) * np.logspace(0, -6, 12)[:, None]
        rows = np.random.default_rng(seed).permutation(rows)
        found = weights_of(
            rows * unit,
            np.float32,
            num_byzantine=3,
            num_selected=4,
            distance=distance,
        )
        np.testing.assert_allclose(found, plain_loop(rows, 3, 4, distance))


def test_distances_are_summed_squared_or_not():
    """Neighbours at 3 and 3 against 0.5 and 5: a case where the two differ."""
    rows = np.array([[0.0, 0], [3, 0], [0, 3], [100, 0], [100.5, 0], [105, 0]])
    squared = weights_of(rows, np.float32, num_byzantine=2, distance="squared")
    plain = weights_of(rows, np.float32, num_byzantine=2, distance="plain")
    np.testing.assert_array_equal(squared, [1, 0, 0, 0, 0, 0])
    np.testing.assert_array_equal(plain, [0, 0, 0, 0, 1, 0])


def test_outliers_are_never_selected():
    """f = 2 gradients a million times as long among 8."""
    rows = structured("aligned", 8)
    rows[[1, 5]] *= -1e6
    options = {"num_byzantine": 2, "num_selected": 6}
    found = weights_of(rows, np.float32, **options)
    np.testing.assert_allclose(found[[1, 5]], 0)
    np.testing.assert_allclose(found.sum(), 1, rtol=1e-6)


def test_conventions(dtype):
    """Ties to the lowest index, zero rows, few present tasks, none, NaN."""
    equal = weights_of(structured("all_equal", 8), dtype)
    np.testing.assert_array_equal(equal, np.eye(8)[0])
    np.testing.assert_array_equal(weights_of(np.zeros((8, 3)), dtype), np.eye(8)[0])
    # m = f + 3: the two closest rows tie.
    rows = np.array([[9.0, 0], [1, 0], [6, 5], [2, 0]])
    np.testing.assert_array_equal(weights_of(rows, dtype), [0, 1, 0, 0])
    # Fewer present tasks than the rule asks for.
    np.testing.assert_array_equal(weights_of(rows[:3], dtype), [1, 0, 0])
    np.testing.assert_array_equal(weights_of(rows[:1], dtype), [1])
    np.testing.assert_allclose(weights_of(rows[:2], dtype, num_selected=3), 0.5)
    nobody = solve(np.full((SIZE, SIZE), np.nan, dtype), present=np.zeros(SIZE, bool))
    np.testing.assert_array_equal(nobody, 0)
    assert np.all(np.isnan(weights_of(np.array([[1.0], [2], [np.nan]]), dtype)))


def test_aggregator_and_vmap():
    """The selected rows' mean; a batch equals one after the other."""
    tx = krum(8, num_selected=2)
    batch = np.stack([structured(kind, 8) for kind in KINDS]).astype(np.float32)

    def update(rows):
        return tx.update(mtlopt.TaskGrads.from_rows(rows), tx.init(jnp.zeros(2)))

    updates, states = jax.jit(jax.vmap(update))(batch)
    for i, rows in enumerate(batch):
        weights = solve(gramian(rows, np.float32), num_selected=2)
        np.testing.assert_array_equal(states.task_weights[i], weights)
        np.testing.assert_allclose(updates[i], weights @ rows, atol=1e-4)


def test_bad_arguments():
    with pytest.raises(ValueError, match=r"`num_tasks` must be at least num_byz.* 4"):
        krum(3)
    with pytest.raises(ValueError, match="`num_byzantine` must be an int"):
        krum(5, num_byzantine=-1)
    with pytest.raises(ValueError, match="`num_selected` must be an int from 1 to"):
        krum(5, num_selected=6)
    with pytest.raises(ValueError, match="`distance` must be one of"):
        krum_weights(jnp.eye(5), distance="cosine")  # pyright: ignore
