"""IMTL-G: reference values, equal projections, and zero where there are none."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import mtlopt
from mtlopt.aggregators.imtl_g import imtl_g, imtl_g_weights
from tests import reference
from tests.linalg.matrices import KINDS, gramian, padded_gramian, structured

SIZE = reference.MAX_TASKS
solve = jax.jit(imtl_g_weights)


def weights_of(rows, dtype):
    weights = np.asarray(solve(*padded_gramian(rows, dtype, SIZE)), np.float64)
    assert np.all(weights[len(rows) :] == 0)
    return weights[: len(rows)]


def test_reference_vector(dtype):
    assert not reference.beyond_tolerance(
        "imtlg", lambda _, matrix, present: solve(matrix, present), dtype
    )


def test_reference_conventions(dtype):
    """Duplicates, zero rows and sums to zero are as there; the rest is below."""
    cases = ("all_equal_m3", "duplicate_row_m5", "zero_row_m3", "sum_zero_m3")
    for case in (*cases, "all_zero_m5"):
        rows = reference.jacobian(case)
        error = reference.error(case, "imtlg", weights_of(rows, dtype) @ rows)
        assert error <= (1e-4 if dtype == np.float32 else 1e-10), case


def test_of_rows(dtype):
    """Right on unequal rows, and on near-duplicates, which no Gramian shows."""
    single = dtype == np.float32
    tx = imtl_g(3)
    update = jax.jit(
        lambda rows: tx.update(mtlopt.TaskGrads.from_rows(rows), tx.init(jnp.zeros(2)))[
            0
        ]
    )

    def error(case):
        rows = np.pad(reference.jacobian(case), ((0, 0), (0, 20)))[:, :12]
        size = reference.jacobian(case).shape[1]
        vector = np.asarray(update(rows.astype(dtype)), np.float64)
        return reference.error(case, "imtlg", vector[:size])

    for case in ("dominate_1e3_m3", "tiny_m3", "sum_zero_m3", "all_equal_m3"):
        assert error(case) <= (1e-4 if single else 1e-9), case
    assert error("near_duplicate_m3") <= (1e-2 if single else 1e-9)


@pytest.mark.parametrize("unit", [1e-12, 1.0, 1e12])
def test_equal_projections(unit, dtype):
    """sum w = 1 and <u_i, d> equal, whatever their sign; scales up to 1e6."""
    rng = np.random.default_rng(0)
    for num_tasks in (1, 2, 8, 40):
        scales = rng.permutation(np.logspace(0, -6, num_tasks))[:, None]
        rows = structured("random", num_tasks) * scales * unit
        weights = weights_of(rows, dtype)
        projections = weights @ rows @ rows.T / np.linalg.norm(rows, axis=1)
        tol = 1e-3 if dtype == np.float32 else 1e-10
        np.testing.assert_allclose(projections, projections.mean(), rtol=tol)
        np.testing.assert_allclose(weights.sum(), 1, rtol=1e-5)


def test_projections_may_all_be_negative(float64):
    """Where 1' G^-1 n < 0, a hand-made case."""
    cosines = np.array([[1, 0.6, 0.88], [0.6, 1, 0.88], [0.88, 0.88, 1]])
    norms = np.array([10.0, 10.0, 0.5])
    rows = np.linalg.cholesky(cosines) * norms[:, None]
    weights = weights_of(rows, float64)
    np.testing.assert_allclose(weights.sum(), 1, rtol=1e-10)
    assert np.all(rows @ (weights @ rows) < 0)


@pytest.mark.parametrize("case", ["tall_m8", "tall_stationary_m20", "sum_zero_m3"])
def test_zero_where_nothing_else_has_equal_projections(case, dtype):
    """Then it is also the limit: with rank restored by `small`, it falls with it."""
    rows = reference.jacobian(case)
    np.testing.assert_array_equal(weights_of(rows, dtype), 0)
    if dtype == np.float64:
        extra = np.random.default_rng(0).normal(size=(len(rows), len(rows)))
        near = []
        for small in (1e-2, 1e-3, 1e-4):
            full = np.concatenate([rows, small * extra], axis=1)
            near.append(np.linalg.norm(weights_of(full, dtype) @ full))
        assert near[1] <= 0.2 * near[0]
        assert near[2] <= 0.2 * near[1]


def test_zero_where_positive_weights_cancel(dtype):
    """Strongly stationary: rows scaled after they summed to zero, opposed rows."""
    rows = structured("sum_zero", 8) * np.logspace(0, -6, 8)[:, None]
    np.testing.assert_array_equal(weights_of(rows, dtype), 0)
    opposed = structured("opposed", 8)
    np.testing.assert_array_equal(weights_of(opposed, dtype), 0)


def test_conventions(dtype):
    """Equal gradients share, a zero row is left out, one task, no rows, NaN."""
    tol = 1e-4 if dtype == np.float32 else 1e-10
    equal = weights_of(structured("all_equal", 8), dtype)
    np.testing.assert_allclose(equal, 1 / 8, rtol=tol)
    rows = structured("zero_row", 3)
    weights = weights_of(rows, dtype)
    assert weights[1] == 0
    np.testing.assert_allclose(weights[[0, 2]], weights_of(rows[[0, 2]], dtype), tol)
    np.testing.assert_allclose(weights_of(rows[:1], dtype), [1], rtol=tol)
    np.testing.assert_array_equal(weights_of(0 * rows, dtype), 0)
    spoilt = np.array([[1.0, 2], [np.nan, 0]])
    assert np.all(np.isnan(solve(*padded_gramian(spoilt, dtype, SIZE))))


def test_vmap_agrees_with_absent_tasks():
    """A batch of bare Gramians, and each among absent tasks."""
    batch = np.stack([gramian(structured(kind, 8), np.float32) for kind in KINDS])
    both = jax.jit(jax.vmap(imtl_g_weights))(batch)
    for kind, left in zip(KINDS, both, strict=True):
        rows = structured(kind, 8)
        right = weights_of(rows, np.float32)
        assert np.all(np.isfinite(right))
        np.testing.assert_allclose(left @ rows, right @ rows, atol=1e-3, err_msg=kind)
