"""SDMGrad: the minimiser that it goes to, scales, two batches, absent tasks."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mtlopt import TaskGrads
from mtlopt.aggregators.mgda import mgda_weights
from mtlopt.aggregators.sdmgrad import sdmgrad, sdmgrad_weights
from tests.linalg.matrices import KINDS, padded_gramian, random_rows, structured

SIZE = 5
EQUAL = np.full(SIZE, 1 / SIZE)
STEPS = 4000


@jax.jit
def settle(products, start, preference, regularization, present):
    """`w` after many steps, and the weights of the direction."""
    return sdmgrad_weights(
        products,
        start,
        preference,
        regularization,
        num_steps=STEPS,
        present=present,
    )


def settled(rows, dtype, preference, regularization):
    """Weights for fewer rows among absent tasks."""
    count = len(rows)
    gramian, present = padded_gramian(rows, dtype, SIZE)
    padded = np.pad(preference, (0, SIZE - count)).astype(dtype)
    start = EQUAL.astype(dtype)
    found = settle(gramian, start, padded, dtype(regularization), present)
    found = np.asarray(found, np.float64)
    assert np.all(found[count:] == 0)
    return found[:count]


@pytest.mark.parametrize("regularization", [0.0, 0.3, 10.0])
@pytest.mark.parametrize("kind", KINDS)
def test_goes_to_the_minimiser(kind, regularization, dtype):
    """KKT of |J^T (w + lambda p)| on the simplex: <g_i, d> >= <w, J d> for all i."""
    for num_tasks in (1, 3, SIZE):
        rows = structured(kind, num_tasks)
        preference = np.arange(1.0, num_tasks + 1) / np.arange(1, num_tasks + 1).sum()
        found = settled(rows, dtype, preference, regularization)
        np.testing.assert_allclose(found.sum(), 1, rtol=1e-5)
        inner = (1 + regularization) * found - regularization * preference
        assert np.all(inner >= -1e-5)
        slope = rows @ (found @ rows)
        size = np.max(np.linalg.norm(rows, axis=1)) ** 2 or 1.0
        tolerance = 1e-4 if dtype == np.float32 else 1e-5
        assert np.all(slope >= inner @ slope - tolerance * size)


def test_no_pull_is_the_min_norm_point(float64):
    rows = random_rows(0, SIZE, shift=0.5)
    found = settled(rows, float64, EQUAL, 0.0)
    expected = jax.jit(mgda_weights)(rows @ rows.T)
    np.testing.assert_allclose(found @ rows, expected @ rows, atol=1e-8)


def test_large_pull_is_the_preference(float64):
    rows, preference = random_rows(0, 3), np.array([0.5, 0.2, 0.3])
    found = settled(rows, float64, preference, 1e6)
    np.testing.assert_allclose(found, preference, atol=1e-5)


few = jax.jit(sdmgrad_weights)


@pytest.mark.parametrize("scale", [1e-12, 1e-6, 1e6, 1e12])
def test_scale_equivariant(scale, dtype):
    """The weights do not depend on the unit of the losses."""
    rows = random_rows(1, SIZE)
    matrix, start = (rows @ rows.T).astype(dtype), EQUAL.astype(dtype)
    expected = few(matrix, start)
    assert np.max(np.abs(expected - EQUAL)) > 0.01
    np.testing.assert_allclose(few(matrix * dtype(scale) ** 2, start), expected, 1e-4)


@pytest.mark.parametrize("kind", ["random", "opposed", "zero_row", "all_zero"])
def test_feasible_for_unequal_rows_and_noise(kind, dtype):
    """Norm ratios up to 1e6, products of no sign: positive weights that sum to 1."""
    for seed in range(3):
        left, right = structured(kind, SIZE, seed), structured(kind, SIZE, seed + 5)
        scales = np.logspace(0, -6, SIZE)[:, None]
        products = ((scales * left) @ (scales * right).T).astype(dtype)
        found = np.asarray(few(products, EQUAL.astype(dtype)), np.float64)
        assert np.all(found >= 0.3 / 1.3 / SIZE * (1 - 1e-5))
        np.testing.assert_allclose(found.sum(), 1, rtol=1e-5)


def test_steps_are_projected_momentum():
    """Two tasks in one number: x - 1/2 follows heavy ball, clipped to [0, 1]."""
    gramian = np.array([[1.0, 0.25], [0.25, 2.0]])
    bound, rate, momentum = 2.25, 0.4, 0.5
    weights, velocity = np.array([0.1, 0.9]), np.zeros(2)
    for _ in range(3):
        slope = gramian @ (weights + 0.3 * np.array([0.5, 0.5])) / bound
        velocity = momentum * velocity + slope
        moved = weights - rate * velocity
        first = np.clip((1 + moved[0] - moved[1]) / 2, 0, 1)
        weights = np.array([first, 1 - first])
    three = jax.jit(functools.partial(sdmgrad_weights, learning_rate=rate, num_steps=3))
    found = three(np.float32(gramian), np.float32([0.1, 0.9]))
    np.testing.assert_allclose(found, (weights + 0.15) / 1.3, rtol=1e-5)


def test_no_overshoot():
    """Orthogonal gradients: each step is closer to the minimiser (2/3, 1/3)."""
    options = {"regularization": 0.0, "momentum": 0.0, "num_steps": 1}
    one = jax.jit(functools.partial(sdmgrad_weights, **options))
    matrix, weights, gaps = np.diag(np.float32([1, 2])), np.float32([0, 1]), []
    for _ in range(5):
        weights = one(matrix, weights)
        gaps.append(float(abs(weights[0] - 2 / 3)))
    assert gaps == sorted(gaps, reverse=True)


def test_vmap_is_the_loop_and_nan_stays():
    matrices = np.stack(
        [rows @ rows.T for rows in (random_rows(seed, SIZE) for seed in range(4))]
    ).astype(np.float32)
    matrices[1, 0, 3] = np.nan
    start = EQUAL.astype(np.float32)
    batch = jax.jit(jax.vmap(sdmgrad_weights, in_axes=(0, None)))(matrices, start)
    single = [few(matrix, start) for matrix in matrices]
    np.testing.assert_allclose(batch, single, atol=1e-6)
    assert np.all(np.isnan(batch[1]))
    assert np.all(np.isfinite(np.delete(batch, 1, axis=0)))


def run(tx, batches, seconds=None, present=None):
    @jax.jit
    def step(state, rows, second, present):
        second = None if second is None else TaskGrads.from_rows(second)
        grads = TaskGrads.from_rows(rows, present=present)
        return tx.update(grads, state, second=second)

    state, history = tx.init(jnp.zeros(batches[0].shape[1])), []
    for i, rows in enumerate(batches):
        second = None if seconds is None else seconds[i]
        updates, state = step(state, rows, second, present)
        history.append((updates, state))
    return history


def test_update_takes_two_batches_and_goes_on():
    """w by J_1 J_2^T from where it was; d = J_1^T (w + lambda p) / (1 + lambda)."""
    batches, seconds = (
        [random_rows(seed + offset, 3).astype(np.float32) for seed in range(3)]
        for offset in (0, 7)
    )
    share = np.full(3, 1 / 3, np.float32)
    for rows, other, (updates, state) in zip(
        batches, seconds, run(sdmgrad(3), batches, seconds), strict=True
    ):
        weights = few(jnp.asarray(rows @ other.T), share)
        share = np.asarray(1.3 * weights - 0.1)
        np.testing.assert_allclose(state.task_weights, weights, atol=1e-5)
        np.testing.assert_allclose(state.shares, share, atol=1e-5)
        np.testing.assert_allclose(updates, weights @ rows, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("preference", [None, np.array([0.2, 0.5, 0.3])])
def test_absent_tasks_are_left_out(preference):
    """Masked NaN rows are as if there were none, and keep their share."""
    batches = [random_rows(seed, 3).astype(np.float32) for seed in range(3)]
    keep = np.array([True, False, True])
    spoilt = [np.where(keep[:, None], rows, np.nan) for rows in batches]
    small = None if preference is None else preference[keep]
    masked = run(sdmgrad(3, preference), spoilt, present=keep)
    alone = run(sdmgrad(2, small), [rows[keep] for rows in batches])
    for (found, state), (expected, _) in zip(masked, alone, strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
        assert state.task_weights[1] == 0
        np.testing.assert_allclose(state.shares[1], 1 / 3, rtol=1e-6)


def test_equal_gradients_give_the_gradient():
    """T equal gradients g give g; one task gives its gradient."""
    for num_tasks in (1, 3):
        rows = np.tile(np.float32([3.0, -4.0]), (num_tasks, 1))
        np.testing.assert_allclose(
            run(sdmgrad(num_tasks), [rows])[0][0], rows[0], rtol=1e-6
        )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"regularization": -0.1}, r"`regularization` must be at least 0, got -0\.1"),
        ({"learning_rate": 0}, "`learning_rate` must be positive, got 0"),
        ({"momentum": 1}, "`momentum` must be at least 0 and below 1, got 1"),
        ({"num_steps": 0}, "`num_steps` must be a positive int, got 0"),
        ({"num_steps": 2.0}, r"`num_steps` must be a positive int, got 2\.0"),
        ({"preference": [1.0]}, "`preference` must have one entry per task"),
    ],
)
def test_bad_arguments(options, message):
    with pytest.raises(ValueError, match=message):
        sdmgrad(2, **options)
