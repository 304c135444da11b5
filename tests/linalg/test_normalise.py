"""Cosines and norms."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mtlopt.linalg.normalise import (
    ScaledGramian,
    nan_unless_finite,
    normalise,
    safe_divide,
)
from tests.linalg.matrices import gramian, structured

split_off = jax.jit(normalise)


def test_splits_the_gramian(dtype):
    """G = D C D with a unit diagonal and cosines in [-1, 1]."""
    matrix = gramian(structured("duplicated", 8), dtype)
    cosines, norms = jax.device_get(split_off(matrix))
    np.testing.assert_allclose(cosines * norms * norms[:, None], matrix, rtol=1e-5)
    np.testing.assert_array_equal(np.diagonal(cosines), 1)
    assert np.max(np.abs(cosines)) <= 1


def test_zero_and_absent_rows_give_zero_rows():
    matrix = np.array([[4.0, 0, np.nan], [0, 0, np.nan], [np.nan] * 3], np.float32)
    cosines, norms = split_off(matrix, np.array([True, True, False]))
    np.testing.assert_array_equal(cosines, np.diag([1, 0, 0]))
    np.testing.assert_array_equal(norms, [2, 0, 0])


def test_small_rows_do_not_underflow():
    """Norms of 1e-12 and 1e-18 in float32, whose product is not representable."""
    rows = np.array([[1e-12, 0], [6e-19, 8e-19]])
    cosines, _ = split_off(gramian(rows, np.float32))
    np.testing.assert_allclose(np.array(cosines)[0, 1], 0.6, rtol=1e-5)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_not_finite_is_not_a_zero_row(bad):
    matrix = np.diag([1.0, bad]).astype(np.float32)
    assert not np.all(np.isfinite(split_off(matrix)[0]))


def test_safe_divide_has_a_finite_gradient():
    both = jax.value_and_grad(lambda x: jnp.sum(safe_divide(x, x)))
    value, slope = jax.jit(both)(np.array([0.0, 2.0], np.float32))
    assert value == 1
    np.testing.assert_array_equal(slope, 0)


@pytest.mark.parametrize("scales", [None, [1.0, 1, 1, 1], [4.0, 0.5, 2**9, 1]])
def test_derivatives_at_a_zero_row(float64, scales):
    """Zero for the zero row, central differences for the others, in both modes."""
    rows = np.random.default_rng(0).normal(size=(2, 4, 5))
    rows[:, 1] = 0
    scales = None if scales is None else np.array(scales)

    @jax.jit
    def split(rows):
        if scales is None:
            return normalise(rows @ rows.T)
        scaled = scales[:, None] * rows
        return normalise(ScaledGramian(scaled @ scaled.T, jnp.asarray(scales)))

    rows, change = rows
    step = 1e-6
    differences = jax.tree.map(
        lambda a, b: (a - b) / (2 * step),
        jax.device_get(split(rows + step * change)),
        jax.device_get(split(rows - step * change)),
    )

    @jax.jit
    def derivatives(rows, change):
        _, moved = jax.jvp(split, (rows,), (change,))
        return moved, jax.jacrev(split)(rows)

    moved, jacobian = jax.device_get(derivatives(rows, change))
    for found, expected in zip(moved, differences, strict=True):
        np.testing.assert_allclose(found, expected, atol=1e-8)
    np.testing.assert_array_equal(jacobian[0][1], 0)
    for found, expected in zip(jacobian, moved, strict=True):
        product = np.tensordot(found, change, 2)
        np.testing.assert_allclose(product, expected, atol=1e-12)


def test_nan_unless_finite():
    np.testing.assert_array_equal(nan_unless_finite(jnp.ones(2), jnp.ones(3)), 1)
    assert np.all(np.isnan(nan_unless_finite(jnp.ones(2), jnp.array([1, np.inf]))))
