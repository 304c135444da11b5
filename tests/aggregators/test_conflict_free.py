"""ConFIG: reference values, cosines in the ratios of the preference, both solvers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import mtlopt
from mtlopt.aggregators.conflict_free import conflict_free, conflict_free_weights
from tests import reference
from tests.linalg.matrices import KINDS, gramian, padded_gramian, structured

SIZE = reference.MAX_TASKS
solve = jax.jit(conflict_free_weights)


def weights_of(rows, dtype, preference=None):
    preference = np.ones(len(rows)) if preference is None else preference
    matrix, present = padded_gramian(rows, dtype, SIZE)
    preference = reference.padded(preference, dtype)
    weights = solve(matrix, preference, present=present)
    return np.asarray(weights, np.float64)[: len(rows)]


@pytest.mark.parametrize("method", ["config", "config_pref"])
def test_reference_vector(method, dtype):
    def run(case, matrix, present):
        preference = present.astype(dtype)
        if method == "config_pref":
            preference = reference.padded(reference.preference(case), dtype)
        return solve(matrix, preference, present=present)

    assert not reference.beyond_tolerance(method, run, dtype)


def test_reference_zero_rows(dtype):
    """Our convention is theirs: a zero row is left out, zeros give zero."""
    for case in ("zero_row_m3", "all_zero_m5"):
        rows = reference.jacobian(case)
        vector = weights_of(rows, dtype) @ rows
        assert reference.error(case, "config", vector) <= 1e-5


def test_of_rows(dtype):
    """Right on unequal rows, and on near-duplicates, which no Gramian shows."""
    single = dtype == np.float32
    tx = conflict_free(3)
    update = jax.jit(
        lambda rows: tx.update(mtlopt.TaskGrads.from_rows(rows), tx.init(jnp.zeros(2)))[
            0
        ]
    )

    def error(case):
        rows = np.pad(reference.jacobian(case), ((0, 0), (0, 20)))[:, :12]
        size = reference.jacobian(case).shape[1]
        vector = np.asarray(update(rows.astype(dtype)), np.float64)
        return reference.error(case, "config", vector[:size])

    for case in ("dominate_1e3_m3", "tiny_m3", "sum_zero_m3", "all_equal_m3"):
        assert error(case) <= (1e-4 if single else 1e-9), case
    assert error("near_duplicate_m3") <= (1e-2 if single else 1e-9)


@pytest.mark.parametrize("unit", [1e-12, 1.0, 1e12])
def test_cosines_are_as_preferred(unit, dtype):
    """<u_i, d> in the ratios of p, and |d| = sum_i <g_i, d> / |d|; scales to 1e6."""
    rng = np.random.default_rng(0)
    for num_tasks in (1, 2, 8, 40):
        scales = rng.permutation(np.logspace(0, -6, num_tasks))[:, None]
        rows = structured("random", num_tasks) * scales * unit
        preference = rng.uniform(0.5, 2, num_tasks)
        direction = weights_of(rows, dtype, preference) @ rows
        size = np.linalg.norm(direction)
        cosines = rows @ direction / size / np.linalg.norm(rows, axis=1)
        tol = 1e-3 if dtype == np.float32 else 1e-10
        ratios = cosines / preference
        np.testing.assert_allclose(ratios, ratios.mean(), rtol=tol)
        np.testing.assert_allclose(size, np.sum(rows @ direction) / size, rtol=tol)


def test_linear_under_scaling(float64):
    """A(diag(c) J) = sum_i c_i A_i for c > 0, also without full rank."""
    for kind in ("random", "low_rank", "duplicated", "zero_row"):
        rows = structured(kind, 8)
        rng = np.random.default_rng(1)
        scales = rng.uniform(0.1, 3, (3, 8))
        scales[2] = scales[0] + 2 * scales[1]
        first, second, both = (
            weights_of(rows * c[:, None], float64) @ (rows * c[:, None]) for c in scales
        )
        np.testing.assert_allclose(first + 2 * second, both, atol=1e-9)


def test_conventions(dtype):
    """Equal gradients, opposed pairs, one task, no rows, NaN."""
    tol = 1e-4 if dtype == np.float32 else 1e-10
    rows = structured("all_equal", 8)
    np.testing.assert_allclose(weights_of(rows, dtype) @ rows, 8 * rows[0], rtol=tol)
    pairs = np.concatenate([structured("random", 3), -structured("random", 3)])
    np.testing.assert_array_equal(weights_of(pairs, dtype), 0)
    np.testing.assert_array_equal(weights_of(0 * pairs, dtype), 0)
    np.testing.assert_allclose(weights_of(rows[:1], dtype), [1], rtol=tol)
    assert np.all(np.isnan(weights_of(np.array([[1.0, 2], [np.nan, 0]]), dtype)))


def test_vmap_agrees_with_absent_tasks():
    """A batch of bare Gramians, and each among absent tasks."""
    batch = np.stack([gramian(structured(kind, 8), np.float32) for kind in KINDS])
    both = jax.jit(jax.vmap(conflict_free_weights))(batch)
    for kind, left in zip(KINDS, both, strict=True):
        rows = structured(kind, 8)
        right = weights_of(rows, np.float32)
        assert np.all(np.isfinite(right))
        np.testing.assert_allclose(left @ rows, right @ rows, atol=1e-3, err_msg=kind)


def test_bad_arguments():
    with pytest.raises(ValueError, match="`preference` must have one entry per task"):
        conflict_free(2, jnp.ones(3))
    with pytest.raises(ValueError, match="`preference` must have one entry per task"):
        conflict_free_weights(jnp.eye(2), jnp.ones(3))
