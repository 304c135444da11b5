"""Sums and products in two floats, against twice the digits."""

import jax
import numpy as np
import pytest

from mtlopt.linalg import two_floats

SIZES = [2, 3, 8, 17]


def pair(random, *shape):
    """A pair in float32, of which the second float is not zero."""
    high, low = np.float32(random.normal(size=(2, *shape)))
    return high, np.float32(1e-8) * low


def number(pair):
    return np.float64(pair[0]) + np.float64(pair[1])


@pytest.mark.parametrize("size", SIZES)
def test_each_operation(size):
    """To 48 bits: 1e-13 where one float has 6e-8."""
    random = np.random.default_rng(size)
    a, b = pair(random, size, size), pair(random, size, size)
    left, right = number(a), number(b)
    close = {"rtol": 0, "atol": 1e-12}
    for found, expected in (
        (jax.jit(two_floats.two_sum)(a[0], b[0]), np.float64(a[0]) + b[0]),
        (jax.jit(two_floats.two_product)(a[0], b[0]), np.float64(a[0]) * b[0]),
    ):
        np.testing.assert_array_equal(number(found), expected)
    np.testing.assert_allclose(
        number(jax.jit(two_floats.add)(a, b)), left + right, **close
    )
    np.testing.assert_allclose(
        number(jax.jit(two_floats.multiply)(a, b)), left * right, **close
    )
    np.testing.assert_allclose(
        number(jax.jit(two_floats.matmul)(a, b)), left @ right, **close
    )
    square = np.abs(a[0]), a[1]
    np.testing.assert_allclose(
        number(jax.jit(two_floats.sqrt)(square)), np.sqrt(number(square)), **close
    )


@pytest.mark.parametrize("size", SIZES)
def test_a_product_that_is_made_in_the_same_kernel(size):
    """Its rounded value counts, which an FMA would not make."""
    random = np.random.default_rng(size)
    a, b, c = np.float32(random.normal(size=(3, size, size)))
    rounded = np.float64(a * b)
    product, total = jax.jit(
        lambda a, b, c: (
            two_floats.two_product(a * b, c),
            two_floats.two_sum(a * b, c),
        )
    )(a, b, c)
    np.testing.assert_array_equal(number(product), rounded * c)
    np.testing.assert_array_equal(number(total), rounded + c)


def test_zero_has_a_root():
    zero = np.zeros(3, np.float32)
    np.testing.assert_array_equal(number(two_floats.sqrt((zero, zero))), 0)
