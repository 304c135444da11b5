"""The probability simplex: projection onto it, and weights normalised to it."""

import jax
import jax.numpy as jnp

from mtlopt.linalg.normalise import safe_divide
from mtlopt.linalg.reductions import reduce_each


def project_to_simplex(point: jax.Array, present: jax.Array | None = None) -> jax.Array:
    r"""Returns the closest weights that are non-negative and sum to one.

    .. math:: \mathrm{argmin}_w \, |w - v|^2
        \quad \text{subject to} \quad w \ge 0, \; 1^T w = 1

    The answer is `max(v - t, 0)` for some number `t`. Subtracting the same number from
    all entries does not change the answer. So the largest entry is subtracted first,
    and entries of any size lose no digits. The result is exact to rounding and takes
    one sort. Equal entries get equal weights. NaN or infinity in the input gives NaN.
    The projection is differentiable almost everywhere.

    Args:
      point: `v`, `[tasks]`.
      present: Tasks that take part, bool `[tasks]`; the others get weight zero,
        whatever their entries are.

    Returns:
      The weights `[tasks]`; zeros if no task is present.

    Raises:
      ValueError: If `point` is not a vector.

    Examples:
      >>> import jax.numpy as jnp
      >>> print(project_to_simplex(jnp.array([0.5, 1.0, -2.0])))
      [0.25 0.75 0.  ]

    References:
      Held, Wolfe and Crowder, *Validation of subgradient optimization*, Mathematical
      Programming 6, 1974. Duchi et al., *Efficient projections onto the l1-ball*, ICML
      2008, figure 1.
    """
    point = jnp.asarray(point)
    if point.ndim != 1:
        raise ValueError(f"`point` must be a vector [tasks], got shape {point.shape}.")
    there = jnp.ones(point.shape, bool) if present is None else present
    # The result does not depend on this shift, so it needs no derivative.
    largest = jax.lax.stop_gradient(jnp.max(point, where=there, initial=-jnp.inf))
    shifted = jnp.where(there, point - largest, -jnp.inf)
    sums = jnp.cumsum(jnp.sort(shifted, descending=True))
    # The positive weights belong to the k largest entries; k has the largest threshold.
    sizes = jnp.arange(1, len(point) + 1).astype(point.dtype)
    (threshold,) = reduce_each(maxima=[(sums - 1) / sizes])
    return jnp.where(there, jnp.maximum(shifted - threshold, 0), 0)


def shares_of(weights: jax.Array, present: jax.Array | None = None) -> jax.Array:
    """Returns the weights of the present tasks divided by their sum.

    If this sum is zero, because only absent tasks have weight, the shares are equal.

    Args:
      weights: Non-negative weights, `[tasks]`.
      present: Tasks that take part, bool `[tasks]`; the others get share zero.

    Returns:
      Shares `[tasks]`, non-negative and summing to one.

    Examples:
      >>> import jax.numpy as jnp
      >>> print(shares_of(jnp.array([0.2, 0.6, 0.2]), jnp.array([True, True, False])))
      [0.25 0.75 0.  ]
    """
    there = jnp.ones(weights.shape, bool) if present is None else present
    kept = jnp.where(there, weights, 0)
    total = jnp.sum(kept)
    count = jnp.maximum(jnp.sum(there, dtype=weights.dtype), 1)
    equal = there.astype(weights.dtype) / count
    return jnp.where(total == 0, equal, safe_divide(kept, total))


def share_out(
    shares: jax.Array, weights: jax.Array, total: float, present: jax.Array | None
) -> jax.Array:
    """Redistributes the weight of the present tasks; absent tasks keep their weights.

    A method that stores weights can then treat present tasks as if the absent tasks did
    not exist. The sum of all weights does not change.

    Args:
      shares: New shares of the present tasks, summing to one, `[tasks]`.
      weights: The weights before, `[tasks]`.
      total: The sum of all weights, present or absent.
      present: Tasks that take part, bool `[tasks]`; None for all.

    Returns:
      The weights after, `[tasks]`.

    Examples:
      >>> import jax.numpy as jnp
      >>> shares, present = jnp.array([1.0, 0.0, 0.0]), jnp.array([True, True, False])
      >>> print(share_out(shares, jnp.array([0.25, 0.25, 0.5]), 1.0, present))
      [0.5 0.  0.5]
    """
    if present is None:
        return total * shares
    # Computed from the absent tasks, so that rounding does not add up over the steps.
    left = jnp.maximum(total - jnp.sum(jnp.where(present, 0, weights)), 0)
    return jnp.where(present, left * shares, weights)
