"""DWA: dynamic weight average (Liu et al., 2019)."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from mtlopt._checks import check_positive
from mtlopt.common.epoch_means import by_epochs
from mtlopt.common.task_weights import everyone
from mtlopt.linalg.normalise import safe_divide


class WeightByDwaState(NamedTuple):
    """State of `weight_by_dwa`.

    Attributes:
      task_weights: `[tasks]`, weights of the last update.
      count: number of updates so far, int32.
      total: `[tasks]`, sum of this epoch's losses.
      seen: `[tasks]`, how many losses of each task are summed in `total`.
      last: `[tasks]`, mean loss of the last epoch.
      before: `[tasks]`, mean loss of the epoch before it.
    """

    task_weights: jax.Array
    count: jax.Array
    total: jax.Array
    seen: jax.Array
    last: jax.Array
    before: jax.Array


def dwa_weights(
    last: jax.Array,
    before: jax.Array,
    temperature: Any = 2.0,
    present: jax.Array | None = None,
) -> jax.Array:
    """Returns the weights `w` `[tasks]` of `weight_by_dwa`.

    They sum to the number of present tasks. `last` and `before` are the mean losses
    `[tasks]` of the last two epochs. A task whose `before` is zero counts as unchanged.

    Examples:
      >>> import jax.numpy as jnp
      >>> print(dwa_weights(jnp.array([1.0, 1.0]), jnp.array([1.0, 1.0])))
      [1. 1.]
    """
    there = everyone(len(last), present)
    # A loss that was zero has no ratio: it counts as unchanged.
    ratio = jnp.where(before == 0, 1, safe_divide(last, before))
    shares = jax.nn.softmax(jnp.where(there, ratio / temperature, -jnp.inf))
    return jnp.where(there, jnp.sum(there, dtype=shares.dtype) * shares, 0)


def weight_by_dwa(
    num_tasks: int, *, temperature: Any = 2.0, steps_per_epoch: int = 1
) -> optax.GradientTransformationExtraArgs:
    r"""Gives more weight to losses that fall slowly: dynamic weight average, DWA.

    .. math:: w_i = T \, \mathrm{softmax}_i(r / \tau), \qquad
        r_i = L_i[t-1] / L_i[t-2]

    Here `L_i[t]` is the mean loss of epoch t. In the first two epochs all weights are
    1. The ratios have no unit. A task that is absent for an epoch keeps its last ratio.

    Args:
      num_tasks: number of tasks T.
      temperature: `tau`, positive; a large value gives equal weights. The paper uses 2.
      steps_per_epoch: number of updates that make an epoch, a Python int.

    Raises:
      ValueError: if an argument is not positive.

    Examples:
      >>> import jax.numpy as jnp, mtlopt
      >>> weighting = mtlopt.weight_by_dwa(2)
      >>> state = weighting.init(jnp.zeros(2))
      >>> for losses in ([4.0, 4.0], [2.0, 4.0], [1.0, 4.0]):
      ...     grads = mtlopt.TaskGrads.from_rows(jnp.eye(2), losses=losses)
      ...     grads, state = weighting.update(grads, state)
      >>> print(*state.task_weights)  # doctest: +NUMBER
      0.876 1.124

    References:
      Liu, Johns and Davison, *End-to-end multi-task learning*, CVPR 2019, equation 7.
    """
    check_positive("temperature", temperature)
    return by_epochs(
        "weight_by_dwa",
        num_tasks,
        steps_per_epoch,
        WeightByDwaState,
        lambda last, before, there: dwa_weights(last, before, temperature, there),
    )
