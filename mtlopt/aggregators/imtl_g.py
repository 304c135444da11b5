"""IMTL-G: equal projections on every task gradient (Liu et al., ICLR 2021)."""

import jax
import jax.numpy as jnp
import optax

from mtlopt.aggregators.by_weights import aggregate_by_weights
from mtlopt.linalg.equiangular import equiangular_ray
from mtlopt.linalg.normalise import Gramian, normalise, safe_divide
from mtlopt.linalg.reductions import reduce_each
from mtlopt.linalg.unit_rows import GRAMIAN_RTOL, Rotated, rounding
from mtlopt.rows.protocol import Rows


def imtl_g_weights(gramian: Gramian, present: jax.Array | None = None) -> jax.Array:
    r"""Returns the weights `[tasks]` of `imtl_g`, which sum to 1 or are all zero.

    .. math:: w = \frac{G^{-1} n}{1^T G^{-1} n}, \qquad n_i = |g_i|

    `d` has the direction of ConFIG's update, up to the sign. If the denominator of `w`
    is negative, `d` conflicts with *every* task. The closer the denominator is to zero,
    the longer `d` is. All weights are zero if the denominator is zero up to rounding,
    or if no direction has equal projections. Examples are opposed gradients, gradients
    that cancel with positive weights, and more independent tasks than parameters. (`d`
    tends to zero as `G` loses rank.) Duplicates share one task's weight, and zero
    gradients get weight zero. For equal gradients `g`, `d` is `g`. A single task has
    weight 1. Weights may be negative. They are differentiable if the rank is fixed.

    Examples:
      >>> import jax.numpy as jnp
      >>> print(*imtl_g_weights(jnp.diag(jnp.array([9.0, 1.0]))))  # doctest: +NUMBER
      0.25 0.75
    """
    return _weights(gramian, present)


def _weights(
    gramian: Gramian, present: jax.Array | None, rotated: Rotated | None = None
) -> jax.Array:
    cosines, norms = normalise(gramian, present)
    ray = equiangular_ray(cosines, norms, rotated=rotated)
    there = norms != 0
    count, minus_shortest = reduce_each(
        sums=[there.astype(norms.dtype)], maxima=[jnp.where(there, -norms, -jnp.inf)]
    )
    lengths = safe_divide(-minus_shortest, norms)
    weights = ray.coefficients * jnp.where(there, lengths, 0)
    total, size, cosines, highest, minus_lowest = reduce_each(
        sums=[weights, jnp.abs(weights), ray.cosines],
        maxima=[jnp.where(there, c, -jnp.inf) for c in (ray.cosines, -ray.cosines)],
    )
    cancelled = jnp.abs(total) <= rounding(norms) * size
    mean = cosines / jnp.maximum(count, 1)
    spread = jnp.maximum(highest - mean, minus_lowest + mean)
    # The rank rule looks at the squares of these cosines.
    tolerance = (GRAMIAN_RTOL * float(jnp.finfo(norms.dtype).eps)) ** 0.5
    unequal = spread > tolerance * jnp.abs(mean)
    return jnp.where(cancelled | unequal, 0 * ray.cosines, safe_divide(weights, total))


def imtl_g(num_tasks: int) -> optax.GradientTransformationExtraArgs:
    r"""Takes a direction with equal projections on all task gradients: IMTL-G.

    .. math:: d = \sum_i w_i g_i, \qquad \sum_i w_i = 1, \qquad
        \langle d, g_i / |g_i| \rangle = \langle d, g_j / |g_j| \rangle

    The method follows no task's gradient more than another's. But the equal projections
    may be negative. In that case, `d` conflicts with all tasks at once. This happens
    for 3 % of random Jacobians of four tasks with unequal norms. `d` is long if the
    weights nearly cancel. `conflict_free` moves along the same line with the right
    sign. `d` is zero if only the zero vector has equal projections, for example if the
    gradients cancel with positive weights.

    Examples:
      >>> import jax.numpy as jnp, mtlopt
      >>> grads = mtlopt.TaskGrads.from_rows(jnp.array([[3.0, 0.0], [0.0, 1.0]]))
      >>> aggregator = mtlopt.imtl_g(2)
      >>> updates, _ = aggregator.update(grads, aggregator.init(jnp.zeros(2)))
      >>> print(*updates)  # doctest: +NUMBER
      0.75 0.75

    References:
      Liu et al., *Towards Impartial Multi-task Learning*, ICLR 2021, equations 5 and 6.
    """

    def weights(rows: Rows, present: jax.Array | None) -> jax.Array:
        return _weights(rows.scaled_gramian(present), present, rows.rotated())

    return aggregate_by_weights("imtl_g", num_tasks, weights)
