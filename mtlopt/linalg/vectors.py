"""Lengths and orthogonal parts of vectors with one number per task, at any scale."""

import jax
import jax.numpy as jnp

from mtlopt.linalg.normalise import safe_divide, safe_root


def unit_vector(vector: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Splits a vector into its direction and its length.

    Args:
      vector: `[tasks]`.

    Returns:
      The unit vector `[tasks]` and the length; zeros for the zero vector. NaN in the
      input gives NaN. A square overflows or underflows only if the length does. The
      derivative at the zero vector is zero.

    Examples:
      >>> import jax.numpy as jnp
      >>> direction, length = unit_vector(jnp.array([3e30, 4e30]))
      >>> print(*direction, length)  # doctest: +NUMBER
      0.6 0.8 5e+30
    """
    # The result does not depend on this scale, so it needs no derivative.
    largest = jax.lax.stop_gradient(jnp.max(jnp.abs(vector)))
    scaled = safe_divide(vector, largest)
    length = safe_root(jnp.sum(scaled**2))
    return safe_divide(scaled, length), largest * length


def off_axis(vector: jax.Array, axis: jax.Array) -> jax.Array:
    """Returns the part of a unit vector that is orthogonal to another unit vector.

    Because of rounding, even parallel vectors have such a part, and dividing the part
    by its length would make a direction from rounding errors. So the result is zero if
    the length of the part is at most the rounding error of subtracting two vectors of
    length one.

    Args:
      vector: `[tasks]`, of length one or zero.
      axis: `[tasks]`, of length one or zero.

    Returns:
      `vector - <vector, axis> axis`, `[tasks]`.

    Examples:
      >>> import jax.numpy as jnp
      >>> print(off_axis(jnp.array([0.6, 0.8]), jnp.array([1.0, 0.0])))
      [0.  0.8]
    """
    part = vector - jnp.sum(vector * axis) * axis
    rounding = 4 * len(vector) * jnp.finfo(part.dtype).eps
    return jnp.where(jnp.sqrt(jnp.sum(part**2)) <= rounding, 0, part)
