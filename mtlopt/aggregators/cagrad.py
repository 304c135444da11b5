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
    """Returns the exact weights `[tasks]` of `cagrad`, at least `1/T` if not rescaled.

    The maximum in `cagrad` is zero if a gradient is zero, and at some Pareto-stationary
    points. Several directions then reach the maximum, and the weights give the one
    nearest to the mean `g_0`. This direction is orthogonal to opposed gradients if the
    ball allows it. Every duplicate counts. If the mean is zero, `d` is zero. For a
    single gradient `g`, or equal gradients `g`, `d` is `(1 + c) g`.

    Raises:
      ValueError: if an argument is out of range.

    Examples:
      >>> import jax, jax.numpy as jnp
      >>> weights = jax.jit(cagrad_weights)(jnp.diag(jnp.array([4.0, 1.0])), c=0.5)
      >>> print(*weights)  # doctest: +NUMBER
      0.5 1.059
    """
    _check(c, rescale)
    weights = max_min_direction(gramian, c, present).weights
    return weights / (1.0, 1 + c**2, 1 + c)[rescale]


def cagrad(
    num_tasks: int, c: Any = 0.4, rescale: Rescale = 0
) -> optax.GradientTransformationExtraArgs:
    r"""Stays near the mean gradient, but helps the worst task the most: CAGrad.

    .. math:: d = \mathrm{argmax}_d \min_i \langle s_i g_i, d \rangle
        \quad \text{subject to} \quad |d - g_0| \le c |g_0|, \qquad
        g_0 = \frac{1}{T} \sum_i s_i g_i

    For `c < 1`, `d` is zero only if `g_0` is zero, so CAGrad converges to stationary
    points of the mean loss. For `c >= 1`, `d` conflicts with no task, but only a
    Pareto-stationary limit is guaranteed. One zero gradient does not stop CAGrad.

    Args:
      num_tasks: number of tasks T.
      c: radius of the ball divided by `|g_0|`, at least 0. The paper uses 0.2 to 0.9.
      rescale: 0 keeps `d` (the paper's algorithm), 1 divides it by `1 + c^2` (its
        experiments), 2 divides it by `1 + c` (its toy example; scales like an average).

    Raises:
      ValueError: if `c` is negative or `rescale` is not 0, 1 or 2.

    Examples:
      >>> import jax, jax.numpy as jnp, mtlopt
      >>> grads = mtlopt.TaskGrads.from_rows(jnp.array([[3.0, 0.0], [0.0, 4.0]]))
      >>> aggregator = mtlopt.cagrad(2, c=0.0)
      >>> print(jax.jit(aggregator.update)(grads, aggregator.init(jnp.zeros(2)))[0])
      [1.5 2. ]

    References:
      Liu et al., *Conflict-Averse Gradient Descent for Multi-task Learning*, NeurIPS
      2021, equation 2, algorithm 1 and theorem 3.2.
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
