"""Derivatives in both modes, and central differences."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

STEP = 1e-6  # in float64; its error is about 1e-12 of the third derivative


def assert_differentiates(function, primals, tangents, tolerance=1e-6):
    """`jax.jvp` equals a central difference, and `jax.vjp` is its transpose.

    Args:
      function: of arrays, to a pytree of float arrays.
      primals: the arrays at which it is differentiated, float64.
      tangents: the direction, an array each.
      tolerance: relative to one and the largest entry of the derivative.
    """
    moved, expected, pulled, weights = derivatives(function, primals, tangents)
    assert_equal(moved, expected, tolerance)
    assert_transposed(moved, weights, pulled, tangents, tolerance)


def assert_equal(moved, expected, tolerance=1e-6):
    """The derivative equals the difference, leaf by leaf."""
    for found, difference in zip(moved, expected, strict=True):
        size = 1 + np.max(np.abs(difference), initial=0)
        np.testing.assert_allclose(found, difference, rtol=0, atol=tolerance * size)


def assert_transposed(moved, weights, pulled, tangents, tolerance=1e-6):
    """<weights, moved> = <pulled, tangents>."""
    slack = tolerance * (1 + sum(np.sum(np.abs(leaf)) for leaf in moved))
    np.testing.assert_allclose(
        _inner(pulled, tangents), _inner(weights, moved), rtol=0, atol=slack
    )


def derivatives(function, primals, tangents):
    """By leaves: the `jvp`, a central difference; the `vjp` of weights, and these."""
    primals, tangents = (tuple(map(np.asarray, a)) for a in (primals, tangents))

    def along(step):
        ends = tuple(p + step * t for p, t in zip(primals, tangents, strict=True))
        return jax.device_get(_both_modes(function, ends, tangents))

    _, moved, pulled, weights = along(0)
    differences = [
        (after - before) / (2 * STEP)
        for after, before in zip(along(STEP)[0], along(-STEP)[0], strict=True)
    ]
    return moved, differences, pulled, weights


@functools.partial(jax.jit, static_argnums=0)
def _both_modes(function, primals, tangents):
    """One program for the value too, which differences need."""
    value, moved = jax.jvp(function, primals, tangents)
    leaves, structure = jax.tree.flatten(value)
    weights = [
        jnp.cos(1 + jnp.arange(x.size, dtype=x.dtype)).reshape(x.shape) for x in leaves
    ]
    _, pull = jax.vjp(function, *primals)
    pulled = pull(jax.tree.unflatten(structure, weights))
    return leaves, jax.tree.leaves(moved), pulled, weights


def _inner(left, right):
    return sum(float(np.sum(a * b)) for a, b in zip(left, right, strict=True))
