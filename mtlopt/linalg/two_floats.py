"""Arithmetic with two floats per number, for differences that one float rounds away.

A number is kept as the unrounded sum of two floats, which doubles its digits (Dekker,
*A floating-point technique for extending the available precision*, 1971).
"""

import jax
import jax.numpy as jnp

Pair = tuple[jax.Array, jax.Array]


def two_sum(left: jax.Array, right: jax.Array) -> Pair:
    """Returns `left + right` and its rounding error."""
    left, right = _rounded(left), _rounded(right)
    total = left + right
    part = total - left
    return total, (left - (total - part)) + (right - part)


def two_product(left: jax.Array, right: jax.Array) -> Pair:
    """Returns `left * right` and its rounding error."""
    left, right = _rounded(left), _rounded(right)
    (left_high, left_low), (right_high, right_low) = _halves(left), _halves(right)
    product = _rounded(left * right)
    error = left_high * right_high - product
    error += left_high * right_low + left_low * right_high
    return product, error + left_low * right_low


def _rounded(number: jax.Array) -> jax.Array:
    """Returns the same number in a form that compilers cannot fuse with a sum.

    If `number` is a product, compilers would add its unrounded value to one term (by a
    fused multiply-add) and its rounded value to another, and the error of the sum would
    be lost.
    """
    return jnp.where(jnp.abs(number) <= jnp.inf, number, 0 * number)


def _halves(number: jax.Array) -> Pair:
    """Splits a number into two numbers of half its digits, whose products are exact."""
    info = jnp.finfo(number.dtype)
    high = jax.lax.reduce_precision(number, info.nexp, info.nmant // 2)
    return high, number - high


def add(left: Pair, right: Pair) -> Pair:
    """Returns the sum of two pairs."""
    total, error = two_sum(left[0], right[0])
    return two_sum(total, error + left[1] + right[1])


def multiply(left: Pair, right: Pair) -> Pair:
    """Returns the product of two pairs."""
    product, error = two_product(left[0], right[0])
    return two_sum(product, error + left[0] * right[1] + left[1] * right[0])


def sqrt(square: Pair) -> Pair:
    """Returns the square root of a pair, by one Newton step, and zero for zero."""
    root = jnp.sqrt(square[0])
    high, low = two_product(root, root)
    missing = (square[0] - high) - low + square[1]
    divisor = jnp.where(root == 0, 1, 2 * root)
    return two_sum(root, missing / divisor)


def matmul(left: Pair, right: Pair) -> Pair:
    """Returns the product of two matrices `[rows, inner]`, `[inner, columns]`."""

    def add_products(index: jax.Array, total: Pair) -> Pair:
        column = [x[:, index][:, None] for x in left]
        row = [x[index][None] for x in right]
        return add(total, multiply((column[0], column[1]), (row[0], row[1])))

    zeros = jnp.zeros((left[0].shape[0], right[0].shape[1]), left[0].dtype)
    return jax.lax.fori_loop(0, right[0].shape[0], add_products, (zeros, zeros))


def exactly(number: jax.Array) -> Pair:
    """Returns the pair for a number that a single float holds exactly."""
    return number, jnp.zeros_like(number)
