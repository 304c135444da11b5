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
    r"""Weights of IMTL-G: a sum of one, and equal projections on the unit gradients.

    .. math:: w = \frac{G^{-1} n}{1^T G^{-1} n}, \qquad n_i = |g_i|

    The direction is that of ConFIG, the length is set by the sum of the weights. That
    sum may be negative before it is made one, and then the direction conflicts with
    *every* task; the nearer it is to zero, the longer the direction.

    Without full rank: duplicate rows share, and zero rows have weight zero. If no
    direction has equal projections (opposed rows, rows with a positive combination that
    is zero, more independent tasks than parameters) only the zero vector has, and all
    weights are zero: it is what the direction tends to as rank is lost. So they are if
    the sum is zero to rounding. On equal gradients `g` the direction is `g`. One task
    has weight 1. NaN in, NaN out. Differentiable where the rank does not change.

    Args:
      gramian: `G`, inner products of the task gradients, `[tasks, tasks]`.
      present: Tasks that take part, bool `[tasks]`; the others get weight zero.

    Returns:
      The weights, `[tasks]`, summing to 1 or all zero. They may be negative.

    Raises:
      ValueError: If a shape does not fit.

    Examples:
      >>> import jax.numpy as jnp
      >>> weights = imtl_g_weights(jnp.diag(jnp.array([9.0, 1.0])))
      >>> print(jnp.round(weights, 4))
      [0.25 0.75]

    References:
      Liu et al., *Towards Impartial Multi-task Learning*, ICLR 2021, equations 5 and 6.
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
    # The cosines are roots of what the rank rule looks at.
    tolerance = (GRAMIAN_RTOL * float(jnp.finfo(norms.dtype).eps)) ** 0.5
    unequal = spread > tolerance * jnp.abs(mean)
    return jnp.where(cancelled | unequal, 0 * ray.cosines, safe_divide(weights, total))


def imtl_g(num_tasks: int) -> optax.GradientTransformationExtraArgs:
    r"""Has equal projections on every task gradient: IMTL-G.

    .. math:: d = \sum_i w_i g_i, \qquad \sum_i w_i = 1, \qquad
        \langle d, g_i / |g_i| \rangle = \langle d, g_j / |g_j| \rangle

    with the task gradients scaled by the weightings. Impartial: no task's gradient is
    followed more than another's. But weights may be negative and the equal projections
    too: `d` may conflict with all tasks at once (3 % of random Jacobians of four tasks
    with unequal norms), and is long where the weights nearly cancel. `conflict_free`
    has the same line and points the right way. On T equal gradients g it returns g. A
    zero gradient is left out. Where only the zero vector has equal projections `d` is
    zero, as at every point where positive weights make the gradients cancel. Costs one
    backward pass per task.

    The weights act on shared leaves only; heads keep their own task's gradient.

    Args:
      num_tasks: number of tasks T.

    Returns:
      An aggregator: `TaskGrads` in, an update with the structure of the parameters out.

    Examples:
      >>> import jax.numpy as jnp
      >>> import mtlopt
      >>> grads = mtlopt.TaskGrads.from_rows(jnp.array([[3.0, 0.0], [0.0, 1.0]]))
      >>> aggregator = mtlopt.imtl_g(2)
      >>> updates, _ = aggregator.update(grads, aggregator.init(jnp.zeros(2)))
      >>> print(jnp.round(updates, 4))
      [0.75 0.75]

    References:
      Liu et al., *Towards Impartial Multi-task Learning*, ICLR 2021, equations 5 and 6,
      whose formula gives the zero vector too where rank is missing and a pseudo-inverse
      is taken. TorchJD takes the pseudo-inverse of `G` in the formula for `w`: at
      missing rank its projections are not equal. Its rank depends on the tasks' scales.
    """

    def weights(rows: Rows, present: jax.Array | None) -> jax.Array:
        return _weights(rows.scaled_gramian(present), present, rows.rotated())

    return aggregate_by_weights("imtl_g", num_tasks, weights)
