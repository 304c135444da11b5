"""Nash-MTL: reference values, clipping, reuse of weights, edge cases."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mtlopt.aggregators.nash_mtl import nash_mtl, nash_mtl_weights
from mtlopt.task_grads import TaskGrads
from tests import reference
from tests.linalg.matrices import gramian, structured

solve = jax.jit(nash_mtl_weights)


def run(aggregator, steps, present=None):
    """Updates and states on one Jacobian `[tasks, params]` after the other."""

    @jax.jit
    def step(state, rows, present):
        grads = TaskGrads.from_rows(rows, present=present)
        return aggregator.update(grads, state)

    state = aggregator.init(jnp.zeros(steps[0].shape[1]))
    if present is None:
        present = np.ones((len(steps), len(steps[0])), bool)
    out = []
    for rows, there in zip(steps, present, strict=True):
        update, state = step(state, jnp.asarray(rows, jnp.float32), there)
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


def test_weights_are_reused():
    """Every third update solves, those between use its weights; nothing else stays."""
    steps = jacobians(7)
    out = run(nash_mtl(3, update_every=3, max_norm=None), steps)
    for i, (update, state) in enumerate(out):
        expected = np.asarray(solve(gramian(steps[i - i % 3], np.float32)))
        np.testing.assert_allclose(state.task_weights, expected, rtol=1e-4)
        np.testing.assert_allclose(update, expected @ steps[i], rtol=1e-3, atol=1e-5)
        assert state.count == (i + 1) % 3


def test_clips_reused_weights_too():
    """Old weights on longer gradients: never longer than `max_norm`."""
    (rows,) = jacobians(1)
    out = run(nash_mtl(3, update_every=2), [rows, 100 * rows])
    for update, _ in out:
        np.testing.assert_allclose(np.linalg.norm(update), 1, rtol=1e-5)


def test_absent_tasks():
    """Weight zero while absent, and until solved again if absent at the solving."""
    steps = jacobians(4)
    present = np.array([[1, 1, 1], [1, 0, 1], [0, 1, 1], [1, 1, 1]], bool)
    steps[1][1] = steps[2][0] = np.nan
    out = run(nash_mtl(3, update_every=2, max_norm=None), steps, present)
    weights = np.stack([state.task_weights for _, state in out])
    expected = [[1, 1, 1], [1, 0, 1], [0, 1, 1], [0, 1, 1]]
    np.testing.assert_array_equal(weights > 0, expected)
    np.testing.assert_array_equal(weights[1, [0, 2]], weights[0, [0, 2]])
    assert all(np.all(np.isfinite(update)) for update, _ in out)


def test_a_step_that_is_not_finite_is_not_kept():
    """NaN is visible, and the next update solves, instead of reusing it."""
    steps = [np.full((3, 8), np.nan, np.float32), *jacobians(1)]
    bad, good = run(nash_mtl(3, update_every=5, max_norm=None), steps)
    assert np.all(np.isnan(bad[0]))
    expected = np.asarray(solve(gramian(steps[1], np.float32)))
    np.testing.assert_allclose(good[1].task_weights, expected, rtol=1e-4)


def test_one_saturated_task_does_not_stop_the_others():
    """A zero row gets weight zero; all zeros give a zero update."""
    (rows,) = jacobians(1)
    rows[1] = 0
    (update, state), (still, _) = run(nash_mtl(3, max_norm=None), [rows, 0 * rows])
    np.testing.assert_allclose(np.linalg.norm(update), np.sqrt(2), rtol=1e-4)
    assert state.task_weights[1] == 0
    assert np.all(still == 0)


def test_bad_arguments():
    with pytest.raises(ValueError, match="`update_every` must be a positive int"):
        nash_mtl(2, update_every=0)
    with pytest.raises(ValueError, match="`max_norm` must be at least 0, got -1"):
        nash_mtl(2, max_norm=-1)
    with pytest.raises(ValueError, match="`num_tasks` must be at least 1, got 0"):
        nash_mtl(0)
    nash_mtl(2, max_norm=jnp.float32(1.0))  # an injected hyperparameter passes
