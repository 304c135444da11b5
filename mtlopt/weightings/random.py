"""RLW: random loss weights (Lin et al., TMLR 2022)."""

from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax

from mtlopt._checks import as_key, check_choice, check_num_tasks
from mtlopt.grad import check_task_grads

Distribution = Literal["normal", "dirichlet"]


class WeightByRandomState(NamedTuple):
    """State of `weight_by_random`: the last weights, and the key for new weights."""

    task_weights: jax.Array
    key: jax.Array


def weight_by_random(
    num_tasks: int, distribution: Distribution = "normal", key: int | jax.Array = 0
) -> optax.GradientTransformationExtraArgs:
    r"""Draws new loss weights for every update: RLW.

    .. math:: w = \mathrm{softmax}(\epsilon), \qquad \epsilon_i \sim N(0, 1)

    The weights are positive and sum to one, so on average you train on the averaged
    loss, with more noise. A method with learned weights has to beat this baseline. The
    present tasks get the same weights as if absent tasks did not exist.

    Args:
      num_tasks: number of tasks T.
      distribution: `"normal"` is a softmax of normal numbers, the paper's default.
        `"dirichlet"` is uniform on the simplex, with more variance.
      key: seed or key of the weights.

    Raises:
      ValueError: if `distribution` is unknown.

    Examples:
      >>> import jax.numpy as jnp, mtlopt
      >>> weighting = mtlopt.weight_by_random(2)
      >>> grads = mtlopt.TaskGrads.from_rows(jnp.eye(2))
      >>> _, state = weighting.update(grads, weighting.init(jnp.zeros(2)))
      >>> print(f"{state.task_weights.sum():.4f}")
      1.0000

    References:
      Lin et al., *Reasonable Effectiveness of Random Weighting*, TMLR 2022.
    """
    check_num_tasks(num_tasks)
    check_choice("distribution", distribution, ("normal", "dirichlet"))
    first_key = as_key(key)

    def init_fn(params: Any) -> WeightByRandomState:
        del params
        return WeightByRandomState(
            jnp.full(num_tasks, 1 / num_tasks, float), jnp.copy(first_key)
        )

    def update_fn(
        updates: Any, state: Any, params: Any = None, **extra_args: Any
    ) -> tuple[Any, WeightByRandomState]:
        del extra_args
        grads = check_task_grads(updates, num_tasks, params, state, "weight_by_random")
        key, draw_key = jax.random.split(state.key)
        dtype = state.task_weights.dtype
        if distribution == "normal":
            numbers = jax.random.normal(draw_key, (num_tasks,), dtype)
        else:  # a Gumbel number is minus the logarithm of an exponential number
            numbers = -jax.random.gumbel(draw_key, (num_tasks,), dtype)
        if grads.present is not None:  # the k-th present task has the k-th number
            places = jnp.cumsum(grads.present) - 1
            numbers = jnp.where(grads.present, numbers[places], -jnp.inf)
        weights = jax.nn.softmax(numbers)
        if grads.present is not None:  # zeros, not NaN, if all are absent
            weights = jnp.where(grads.present, weights, 0)
        return grads.scale_by(weights), WeightByRandomState(weights, key)

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)
