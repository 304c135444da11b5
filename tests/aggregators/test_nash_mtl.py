"""Nash-MTL: reference values, clipping, edge cases."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mtlopt.aggregators.nash_mtl import nash_mtl, nash_mtl_weights
from mtlopt.task_grads import TaskGrads
from tests import reference
from tests.linalg.matrices import gramian, structured

solve = jax.jit(nash_mtl_weights)


def run(aggregator, steps):
    """Updates and states on one Jacobian `[tasks, params]` after the other."""

    @jax.jit
    def step(state, rows):
        return aggregator.update(TaskGrads.from_rows(rows), state)

    state = aggregator.init(jnp.zeros(steps[0].shape[1]))
    out = []
    for rows in steps:
        update, state = step(state, jnp.asarray(rows, jnp.float32))
        out.append((np.asarray(update), state))
    return out


def jacobians(count):
    return [structured("random", 3, seed).astype(np.float32) for seed in range(count)]


def test_reference_vector(dtype):
    """A(J) is the 512-bit value, in both precisions."""

    def weights_of(_case, matrix, present):
        return solve(matrix, present)

    assert not reference.beyond_tolerance("nashmtl", weights_of, dtype)


@pytest.mark.parametrize("kind", ["random", "aligned", "duplicated", "all_equal"])
def test_length_is_the_root_of_the_number_of_tasks(kind, dtype):
    """|A(J)| = sqrt(T) wherever there is a solution."""
    rows = structured(kind, 8)
    direction = np.asarray(solve(gramian(rows, dtype))) @ rows
    np.testing.assert_allclose(np.linalg.norm(direction), np.sqrt(8), rtol=1e-4)


@pytest.mark.parametrize("max_norm", [None, 0, 0.5, 1.0, 10.0])
def test_clipping(max_norm):
    """The update is the solution, shortened to `max_norm`; the weights with it."""
    (rows,) = jacobians(1)
    [(update, state)] = run(nash_mtl(3, max_norm=max_norm), [rows])
    expected = np.asarray(solve(gramian(rows, np.float32)))
    factor = min(1, max_norm / np.sqrt(3)) if max_norm else 1
    np.testing.assert_allclose(state.task_weights, factor * expected, rtol=1e-4)
    np.testing.assert_allclose(update, factor * expected @ rows, rtol=1e-3, atol=1e-5)


def test_one_saturated_task_does_not_stop_the_others():
    """A zero row gets weight zero; all zeros give a zero update."""
    (rows,) = jacobians(1)
    rows[1] = 0
    (update, state), (still, _) = run(nash_mtl(3, max_norm=None), [rows, 0 * rows])
    np.testing.assert_allclose(np.linalg.norm(update), np.sqrt(2), rtol=1e-4)
    assert state.task_weights[1] == 0
    assert np.all(still == 0)


def test_bad_arguments():
    with pytest.raises(ValueError, match="`max_norm` must be at least 0, got -1"):
        nash_mtl(2, max_norm=-1)
    with pytest.raises(ValueError, match="`num_tasks` must be at least 1, got 0"):
        nash_mtl(0)
    nash_mtl(2, max_norm=jnp.float32(1.0))  # an injected hyperparameter passes


def test_preference_maximises_the_product_of_powers(float64):
    """No direction of the same length has a larger sum of p_i log <g_i, d>."""
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(3, 5)) + 0.5
    preference = np.array([3.0, 1.0, 0.2])
    tx = nash_mtl(3, max_norm=None, preference=preference)
    grads = TaskGrads.from_rows(jnp.asarray(rows))
    update, _ = jax.jit(tx.update)(grads, tx.init(jnp.zeros(5)))
    np.testing.assert_allclose(np.linalg.norm(update) ** 2, 4.2, rtol=1e-9)
    value = preference @ np.log(rows @ update)
    for scale in (1e-3, 1e-1):
        others = update + scale * rng.normal(size=(200, 5))
        others *= np.sqrt(4.2) / np.linalg.norm(others, axis=1, keepdims=True)
        gains = np.maximum(others @ rows.T, 1e-300)
        assert np.all(np.log(gains) @ preference < value)
