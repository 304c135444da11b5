"""SoftAdapt: weights by how fast the losses change (Heydari et al., 2019)."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from mtlopt.common.epoch_means import by_epochs
from mtlopt.common.task_weights import everyone
from mtlopt.linalg.normalise import safe_divide
from mtlopt.linalg.simplex import shares_of
from mtlopt.weightings.by_losses import only_there


class WeightBySoftadaptState(NamedTuple):
    """State of `weight_by_softadapt`, with the fields of `WeightByDwaState`."""

    task_weights: jax.Array
    count: jax.Array
    total: jax.Array
    seen: jax.Array
    last: jax.Array
    before: jax.Array


def softadapt_weights(
    last: jax.Array,
    before: jax.Array,
    beta: Any = 0.1,
    *,
    normalised: bool = False,
    loss_weighted: bool = False,
    present: jax.Array | None = None,
) -> jax.Array:
    """Returns the weights `w` `[tasks]` of `weight_by_softadapt`.

    The weights sum to the number of present tasks. `last` and `before` are the mean
    losses `[tasks]` of the last two epochs.

    Examples:
      >>> import jax.numpy as jnp
      >>> last, before = jnp.array([1.0, 3.0]), jnp.array([2.0, 3.0])
      >>> print(*softadapt_weights(last, before, jnp.log(3.0)))  # doctest: +NUMBER
      0.5 1.5
    """
    there = everyone(len(last), present)
    slopes = jnp.where(there, last - before, 0)
    if normalised:
        slopes = safe_divide(slopes, jnp.sum(jnp.abs(slopes)))
    shares = jax.nn.softmax(only_there(beta * slopes, there))
    if loss_weighted:
        shares = shares_of(shares * (last + before), present)
    return jnp.where(there, jnp.sum(there, dtype=shares.dtype) * shares, 0)


def weight_by_softadapt(
    num_tasks: int,
    beta: Any = 0.1,
    *,
    normalised: bool = False,
    loss_weighted: bool = False,
    steps_per_epoch: int = 1,
) -> optax.GradientTransformationExtraArgs:
    r"""Gives more weight to losses that rise, or that fall least: SoftAdapt.

    .. math:: w_i = T \, \mathrm{softmax}_i(\beta s), \qquad s_i = L_i[t-1] - L_i[t-2]

    Here `L_i[t]` is the mean loss of epoch t. In the first two epochs all weights are
    1. Slopes have the unit of the losses. Slopes below `1 / beta` hardly change the
    weights, so without `normalised`, small losses are simply summed. A task that is
    absent for a whole epoch keeps its last slope.

    Args:
      num_tasks: number of tasks T.
      beta: how much slopes count. 0 gives the summed loss; a negative number favours
        the losses that fall fastest. The paper's code uses 0.1.
      normalised: whether slopes are divided by `sum_j |s_j|`.
      loss_weighted: whether to multiply weights by the (non-negative) mean losses.
      steps_per_epoch: number of updates that make an epoch, a Python int.

    Raises:
      ValueError: if `steps_per_epoch` is not positive.

    Examples:
      >>> import jax.numpy as jnp, mtlopt
      >>> weighting = mtlopt.weight_by_softadapt(2, beta=1.0)
      >>> state = weighting.init(jnp.zeros(2))
      >>> for losses in ([4.0, 4.0], [2.0, 4.0], [1.0, 4.0]):
      ...     grads = mtlopt.TaskGrads.from_rows(jnp.eye(2), losses=losses)
      ...     grads, state = weighting.update(grads, state)
      >>> print(*state.task_weights)  # doctest: +NUMBER
      0.238 1.762

    References:
      Heydari, Thompson and Mehmood, *SoftAdapt*, arXiv:1912.12355, section 3.1; here
      weights sum to T instead of 1, and the slope is the first difference.
    """

    def weights_of(last: jax.Array, before: jax.Array, there: jax.Array) -> jax.Array:
        return softadapt_weights(
            last,
            before,
            beta,
            normalised=normalised,
            loss_weighted=loss_weighted,
            present=there,
        )

    return by_epochs(
        "weight_by_softadapt",
        num_tasks,
        steps_per_epoch,
        WeightBySoftadaptState,
        weights_of,
    )
