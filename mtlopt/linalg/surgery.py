"""Gradient surgery in task space: projections of conflicting gradients."""

import jax
import jax.numpy as jnp

from mtlopt.linalg.normalise import nan_unless_finite, normalise, safe_divide


def project_conflicts(
    gramian: jax.Array, order: jax.Array, present: jax.Array | None = None
) -> jax.Array:
    r"""Projects every task gradient off the gradients that it conflicts with.

    .. math:: p_i \leftarrow p_i - \frac{\min(\langle p_i, g_j \rangle, 0)}{|g_j|^2} g_j
        \quad \text{for } j = \mathrm{order}_{i1}, \dots, \mathrm{order}_{iT}

    starting from `p_i = g_i` and skipping `j = i`. The gradients are never touched:
    each `p_i` is kept by its cosines to all unit rows, so that one step for all tasks
    at once adds a row of `C` to each, and the whole costs `tasks^3`. Scale-free; ends
    after `tasks` steps.

    A zero row changes nothing and is not changed. Rows that oppose each other give
    zero, duplicates give the same. NaN in, NaN out. Differentiable away from
    `<p_i, g_j> = 0`.

    Args:
      gramian: `G`, inner products of the task gradients, `[tasks, tasks]`.
      order: Row `i` is the order in which task `i` meets the others, int
        `[tasks, tasks]`; `i` itself is skipped wherever it stands.
      present: Tasks that take part, bool `[tasks]`; the others change nothing.

    Returns:
      The sum of the projected gradients as weights of the original ones, `[tasks]`:
      `sum_i p_i = sum_j weights_j g_j`. At least 1 for present tasks, 0 for absent.

    Raises:
      ValueError: If a shape does not fit.

    Examples:
      >>> import jax.numpy as jnp
      >>> gramian = jnp.array([[1.0, -1.0], [-1.0, 4.0]])
      >>> print(project_conflicts(gramian, jnp.array([[0, 1], [0, 1]])))
      [2.   1.25]

    References:
      Yu et al., *Gradient Surgery for Multi-Task Learning*, NeurIPS 2020, Algorithm 1.
    """
    cosines, norms = normalise(gramian, present)
    order = jnp.asarray(order)
    if order.shape != cosines.shape:
        raise ValueError(f"`order` must have shape {cosines.shape}, got {order.shape}.")
    # inner[i, j] is <p_i, u_j> / |g_i|.
    _, added = jax.lax.scan(_meet, (cosines, cosines), order.T)  # [positions, tasks]
    # p_i gained added |g_i| u_j, which is added |g_i| / |g_j| of g_j.
    gained = jnp.zeros_like(norms).at[order.T].add(added * norms)
    weights = 1 + safe_divide(gained, norms)
    if present is not None:
        weights = jnp.where(present, weights, 0)
    return nan_unless_finite(weights, cosines)


def _meet(
    carry: tuple[jax.Array, jax.Array], other: jax.Array
) -> tuple[tuple[jax.Array, jax.Array], jax.Array]:
    """Every task `i` meets task `other[i]`; returns how much of that it gains."""
    inner, cosines = carry
    met = jnp.take_along_axis(inner, other[:, None], axis=1)[:, 0]
    is_self = other == jnp.arange(other.shape[0])
    gain = jnp.where(is_self, 0, -jnp.minimum(met, 0))
    return (inner + gain[:, None] * cosines[other], cosines), gain
