"""Rotations of columns against NumPy's decomposition in float64."""

import jax
import numpy as np
import pytest

from mtlopt.linalg.jacobi import rotate_columns
from tests.linalg.matrices import random_rows

rotate = jax.jit(rotate_columns)


def graded(size, kind, dtype):
    """Lower triangular, its columns by length: shares of 1 to 1e-6, or only those."""
    rows = random_rows(size, size, size)
    scales = np.logspace(0, -6, size)
    if kind == "two":
        scales = np.where(np.arange(size) < size // 2, 1.0, 1e-6)
    return (np.linalg.qr(rows.T, mode="r") * scales).T.astype(dtype)


@pytest.mark.parametrize("kind", ["even", "two"])
@pytest.mark.parametrize("size", [1, 2, 5, 8, 64])
def test_every_singular_pair_is_right(size, kind, dtype):
    """`U^T M = Sigma V^T`, relative to each singular value and not to the largest."""
    matrix = graded(size, kind, dtype)
    left, singular = (np.asarray(x, np.float64) for x in rotate(matrix))
    tolerance = 1000 * float(np.finfo(dtype).eps)
    np.testing.assert_allclose(left.T @ left, np.eye(size), atol=tolerance)
    assert np.all(np.diff(singular) <= 0)
    lengths = np.linalg.norm(left.T @ matrix, axis=1)
    np.testing.assert_allclose(lengths, singular, rtol=tolerance)
    if dtype == np.float32:
        expected_left, expected, _ = np.linalg.svd(np.float64(matrix))
        np.testing.assert_allclose(singular, expected, rtol=tolerance)
        signs = np.sign(np.sum(expected_left * left, axis=0))
        np.testing.assert_allclose(left * signs, expected_left, atol=tolerance)


def test_lost_rank_has_zero_columns(dtype):
    matrix = np.zeros((6, 6), dtype)
    matrix[:, 1] = matrix[:, 4] = [1, 0, 2, 0, 3, 0]
    matrix[5, 2] = 1e-6
    left, singular = rotate(matrix)
    np.testing.assert_allclose(singular, [28**0.5, 1e-6, 0, 0, 0, 0], rtol=1e-6)
    np.testing.assert_array_equal(np.abs(left[:, 1]), np.eye(6)[5])
    np.testing.assert_array_equal(left[:, 2:], 0)
    for out in rotate(0 * matrix):
        np.testing.assert_array_equal(out, 0)


@pytest.mark.parametrize("unit", [1e-30, 1e30])
def test_no_square_overflows(unit):
    matrix = graded(5, "even", np.float32)
    (left, singular), (expected, scaled) = (
        rotate(matrix * np.float32(unit)),
        rotate(matrix),
    )
    np.testing.assert_allclose(left, expected, atol=1e-5)
    np.testing.assert_allclose(singular / np.float32(unit), scaled, rtol=1e-5)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_not_finite_stays_visible(bad):
    matrix = graded(5, "even", np.float32)
    matrix[3, 2] = bad
    assert all(np.all(np.isnan(out)) for out in rotate(matrix))


def test_batch_equals_single_ones():
    """One of them is done at once, one never begins."""
    kinds = graded(8, "two", np.float32), np.eye(8, dtype=np.float32)
    stack = np.stack([*kinds, 0 * kinds[0]])
    batch = jax.vmap(rotate)(stack)
    for index, matrix in enumerate(stack):
        for found, expected in zip(batch, rotate(matrix), strict=True):
            np.testing.assert_allclose(found[index], expected, atol=1e-6)
