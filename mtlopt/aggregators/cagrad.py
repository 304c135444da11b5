"""CAGrad: conflict-averse gradient descent (Liu et al., NeurIPS 2021)."""

from typing import Any, Literal

import jax
import optax

from mtlopt._checks import check_range
from mtlopt.aggregators.by_weights import aggregate_by_weights
from mtlopt.linalg.max_min_ball import max_min_direction
from mtlopt.linalg.normalise import Gramian

Rescale = Literal[0, 1, 2]


def cagrad_weights(
    gramian: Gramian,
    c: Any = 0.4,
    rescale: Rescale = 0,
    present: jax.Array | None = None,
) -> jax.Array:
    r"""Weights of CAGrad: near the mean, best for the worst task.

    .. math:: d = \mathrm{argmax}_d \min_i \langle g_i, d \rangle
        \quad \text{subject to} \quad |d - g_0| \le c |g_0|

    with `g_0` the mean. Exact (see `max_min_direction`), by raising the worst inner
    product along the path of nearest points; the dual `min_w <g_w, g_0> + c |g_0|
    |g_w|` on the simplex is what other codes solve, approximately. Where the best
    worst product is zero (a zero row; some Pareto-stationary points) many `d` are best:
    this is the one nearest to `g_0`, where TorchJD returns zero. Opposed rows are then
    left by `d` at right angles if the ball allows. Duplicates count as often as they
    are there. A zero mean gives zero, one task `(1 + c) g`. NaN in, NaN out.

    Args:
      gramian: `G`, inner products of the task gradients, `[tasks, tasks]`.
      c: radius of the ball relative to `|g_0|`, not negative. 0 is the mean.
      rescale: 0 as above; 1 divides by `1 + c^2`, 2 by `1 + c`.
      present: Tasks that take part, bool `[tasks]`; the others get weight zero.

    Returns:
      The weights, `[tasks]`, at least `1/T` (before rescaling) for present tasks.

    Raises:
      ValueError: If a shape does not fit, or an argument is out of range.

    Examples:
      >>> import jax, jax.numpy as jnp
      >>> weights = jax.jit(cagrad_weights)(jnp.diag(jnp.array([4.0, 1.0])), c=0.5)
      >>> print(jnp.round(weights, 4))
      [0.5   1.059]

    References:
      Liu et al., *Conflict-Averse Gradient Descent for Multi-task Learning*, NeurIPS
      2021, equation 2 and Algorithm 1.
    """
    _check(c, rescale)
    weights = max_min_direction(gramian, c, present).weights
    return weights / (1.0, 1 + c**2, 1 + c)[rescale]


def cagrad(
    num_tasks: int, c: Any = 0.4, rescale: Rescale = 0
) -> optax.GradientTransformationExtraArgs:
    r"""Goes near the mean gradient, as far as possible for the worst task.

    .. math:: d = \mathrm{argmax}_d \min_i \langle s_i g_i, d \rangle
        \quad \text{subject to} \quad |d - g_0| \le c |g_0|, \qquad
        g_0 = \frac{1}{T} \sum_i s_i g_i

    For `c < 1` it is zero only where the mean is, so it converges to stationary points
    of the mean loss. For `c >= 1` no task's inner product with `d` is negative, and
    it converges to Pareto-stationary points only. A zero gradient does not stop it.
    On T equal gradients g it returns `(1 + c) g`, one task included. Costs one backward
    pass per task.

    `rescale` is 0 by default: the paper's Algorithm 1, and TorchJD's. The authors'
    experiments divide by `1 + c^2`, their toy example by `1 + c`, with which T equal
    gradients g give g: the fair choice beside methods that average, at one learning
    rate.

    The weights act on shared leaves only; heads keep their own task's gradient.

    Args:
      num_tasks: number of tasks T.
      c: radius of the ball relative to `|g_0|`, not negative; the paper's are 0.2 to
        0.9.
      rescale: 0, 1 (divides by `1 + c^2`) or 2 (by `1 + c`).

    Returns:
      An aggregator: `TaskGrads` in, an update with the structure of the parameters out.

    Raises:
      ValueError: if `c` is negative or `rescale` none of the three.

    Examples:
      >>> import jax, jax.numpy as jnp
      >>> import mtlopt
      >>> grads = mtlopt.TaskGrads.from_rows(jnp.array([[3.0, 0.0], [0.0, 4.0]]))
      >>> aggregator = mtlopt.cagrad(2, c=0.0)
      >>> jax.jit(aggregator.update)(grads, aggregator.init(jnp.zeros(2)))[0]
      Array([1.5, 2. ], dtype=float32)

    References:
      Liu et al., *Conflict-Averse Gradient Descent for Multi-task Learning*, NeurIPS
      2021, equation 2, Algorithm 1 and theorem 3.2.
    """
    _check(c, rescale)
    return aggregate_by_weights(
        "cagrad",
        num_tasks,
        lambda rows, present: cagrad_weights(
            rows.scaled_gramian(present), c, rescale, present
        ),
    )


def _check(c: Any, rescale: int) -> None:
    check_range("c", c)
    if rescale not in (0, 1, 2):
        raise ValueError(f"`rescale` must be one of 0, 1, 2, got {rescale!r}.")
