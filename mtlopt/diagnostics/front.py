"""Measures of a Pareto front: its dominated volume, its spread, and its points."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from mtlopt._checks import as_task_vector
from mtlopt.linalg.normalise import safe_divide, safe_root


class FrontSpread(NamedTuple):
    """Measures of how a set of points covers a Pareto front.

    Attributes:
      extent: `[tasks]`, largest minus smallest value of each loss.
      largest_gap: scalar, the largest distance between neighbours.
      unevenness: scalar, mean deviation of the distances between neighbours from their
        mean, divided by this mean; 0 if all distances are equal.
    """

    extent: jax.Array
    largest_gap: jax.Array
    unevenness: jax.Array


def hypervolume(losses: jax.Array, reference: Any) -> jax.Array:
    r"""Returns the volume that points dominate, up to a reference point.

    .. math:: V = \mathrm{vol} \bigcup_k \, \prod_i \, [L_{ki}, r_i]

    A larger volume is better: every point that no other point dominates adds to it. A
    point that is not below the reference in every loss adds nothing. The value is
    exact: the function cuts the volume into slices along one loss after the other. This
    takes `K log K` operations for K points and two tasks. For T > 2 tasks, it takes
    `K^(T-1)` operations and memory for `K^(T-2)` points, so use few points if there are
    more than four tasks. The function works under `jit`, and is differentiable if no
    two values are equal. If a loss is NaN, so is the result.

    Args:
      losses: `L`, `[points, tasks]`.
      reference: `r`, `[tasks]`, such as the losses of an untrained network. Compare
        volumes only if they have the same reference.

    Returns:
      A scalar.

    Raises:
      ValueError: if a shape does not fit.

    Examples:
      >>> import jax.numpy as jnp
      >>> losses = jnp.array([[0.0, 2.0], [1.0, 1.0], [2.0, 2.0]])
      >>> print(hypervolume(losses, jnp.array([3.0, 3.0])))
      5.0

    References:
      Zitzler and Thiele, *Multiobjective Evolutionary Algorithms: A Comparative Case
      Study and the Strength Pareto Approach*, IEEE Transactions on Evolutionary
      Computation 3, 1999. The slices follow While et al., *A Faster Algorithm for
      Calculating Hypervolume*, in the same journal, volume 10, 2006.
    """
    losses = _points(losses)
    reference = as_task_vector("reference", reference, losses.shape[1])
    return _union(reference - jnp.minimum(losses, reference))


def _union(sizes: jax.Array) -> jax.Array:
    """Returns the volume of the union of boxes `[boxes, axes]` from the origin."""
    if sizes.shape[1] == 1:
        return jnp.max(sizes)
    order = jnp.argsort(sizes[:, -1], descending=True)
    sizes = sizes[order]
    # The slice from a box's height to the next lower one lies in all boxes so far.
    thickness = sizes[:, -1] - jnp.append(sizes[1:, -1], 0)
    if sizes.shape[1] == 2:
        areas = jax.lax.cummax(sizes[:, 0])
    else:
        upto = jnp.tri(len(sizes), dtype=bool)
        areas = jax.vmap(
            lambda there: _union(jnp.where(there[:, None], sizes[:, :-1], 0))
        )(upto)
    return jnp.sum(thickness * areas)


def non_dominated(losses: jax.Array) -> jax.Array:
    """Returns which points no other point dominates.

    A point dominates another point if none of its losses is larger and at least one
    loss is smaller. So two equal points are both kept. Points that are not finite are
    left out. The function takes `K^2 T` operations for K points and T tasks.

    Args:
      losses: `[points, tasks]`.

    Returns:
      bool `[points]`.

    Raises:
      ValueError: if the shape does not fit.

    Examples:
      >>> import jax.numpy as jnp
      >>> non_dominated(jnp.array([[0.0, 2.0], [1.0, 1.0], [1.0, 2.0]]))
      Array([ True,  True, False], dtype=bool)
    """
    losses = _points(losses)
    first, second = losses[:, None], losses[None]  # first may dominate second
    dominates = jnp.all(first <= second, axis=2) & jnp.any(first < second, axis=2)
    return ~jnp.any(dominates, axis=0) & jnp.all(jnp.isfinite(losses), axis=1)


def front_spread(losses: jax.Array) -> FrontSpread:
    """Returns how evenly points cover a Pareto front, and how far they extend.

    Two points are neighbours if an edge of the minimum spanning tree connects them. On
    a front of two tasks, the neighbours of a point are the next points along the front.
    So a hole shows in `largest_gap` even if the points around it are close together.
    Losses are not rescaled: if their units differ, rescale them first. The function
    takes `K^2 T` operations for K points and T tasks.

    Args:
      losses: `[points, tasks]`, at least two points; see `non_dominated`.

    Returns:
      The extent, the largest gap and the unevenness; NaN if a loss is NaN.

    Raises:
      ValueError: if the shape does not fit.

    Examples:
      >>> import jax.numpy as jnp
      >>> spread = front_spread(jnp.array([[0.0, 3.0], [3.0, 0.0], [1.0, 2.0]]))
      >>> print(spread.extent, round(float(spread.largest_gap / 2**0.5), 4))
      [3. 3.] 2.0

    References:
      The unevenness is the spread of Deb et al., *A Fast and Elitist Multiobjective
      Genetic Algorithm: NSGA-II*, IEEE Transactions on Evolutionary Computation 6,
      2002, section V-C, without its terms for the ends of the true front.
    """
    losses = _points(losses)
    if len(losses) < 2:
        raise ValueError(f"`losses` must have at least two points, got {len(losses)}.")
    between = safe_root(jnp.sum((losses[:, None] - losses[None]) ** 2, axis=2))

    def grow(distances: jax.Array, _: None) -> tuple[jax.Array, jax.Array]:
        """Adds the nearest point to the tree, whose own points have distance -inf."""
        outside = distances >= 0
        nearest = jnp.argmin(jnp.where(outside, distances, jnp.inf))
        closer = jnp.minimum(distances, between[nearest])
        return closer.at[nearest].set(-jnp.inf), distances[nearest]

    start = between[0].at[0].set(-jnp.inf)
    _, edges = jax.lax.scan(grow, start, length=len(losses) - 1)
    mean = jnp.mean(edges)
    found = FrontSpread(
        extent=jnp.ptp(losses, axis=0),
        largest_gap=jnp.max(edges),
        unevenness=safe_divide(jnp.mean(jnp.abs(edges - mean)), mean),
    )
    unknown = 0 * jnp.sum(losses)  # NaN if any loss is not finite
    return jax.tree.map(lambda measure: measure + unknown, found)


def _points(losses: Any) -> jax.Array:
    losses = jnp.asarray(losses)
    if losses.ndim != 2 or not losses.size:
        raise ValueError(
            f"`losses` must have shape [points, tasks], got shape {losses.shape}."
        )
    return losses
