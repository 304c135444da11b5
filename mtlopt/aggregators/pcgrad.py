"""PCGrad: projecting conflicting gradients (Yu et al., NeurIPS 2020)."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from mtlopt._checks import as_key
from mtlopt.aggregators.by_weights import aggregate_with_state
from mtlopt.linalg.normalise import Gramian
from mtlopt.linalg.surgery import project_conflicts, random_orders
from mtlopt.rows.protocol import Rows
from mtlopt.task_grads import TaskGrads


class PcgradState(NamedTuple):
    """State of `pcgrad`: the last weights `[tasks]`, and the key of the next orders."""

    task_weights: jax.Array
    key: jax.Array


def pcgrad_weights(
    gramian: Gramian, order: jax.Array, present: jax.Array | None = None
) -> jax.Array:
    r"""Returns the weights `alpha` `[tasks]` of `pcgrad` for given orders.

    .. math:: d = \sum_i p_i = \sum_j \alpha_j g_j

    `pcgrad` defines `p_i`. Weights are at least 1 for present tasks. As in the paper, a
    task is not compared with itself and `d` is a sum, so `T` equal gradients `g` give
    `d = T g`. A zero gradient is skipped, and opposed gradients cancel. The weights are
    differentiable if no `<p_i, g_j>` is 0. `order` is an int array `[tasks, tasks]`.
    Its row `i` is the order in which `p_i` is updated for the other tasks.

    Examples:
      >>> import jax.numpy as jnp
      >>> gramian = jnp.array([[1.0, -1.0], [-1.0, 4.0]])
      >>> print(pcgrad_weights(gramian, jnp.array([[0, 1], [0, 1]])))
      [2.   1.25]
    """
    return project_conflicts(gramian, order, present)


def pcgrad(
    num_tasks: int, key: int | jax.Array = 0
) -> optax.GradientTransformationExtraArgs:
    r"""Projects conflicting task gradients onto each other's normal planes: PCGrad.

    .. math:: p_i \leftarrow p_i - \min(0, \langle p_i, g_j \rangle) \, g_j / |g_j|^2,
        \qquad d = \sum_i p_i

    `p_i` starts as `g_i` and is updated for each other task `j` in turn, in a random
    order for each `i`. With two tasks, `d` conflicts with no task. With more tasks, `d`
    may conflict with some tasks. Without conflicts, `d` is the sum of the gradients.

    Args:
      num_tasks: number of tasks T.
      key: seed or key of the random orders.

    Examples:
      >>> import jax.numpy as jnp, mtlopt
      >>> grads = mtlopt.TaskGrads.from_rows(jnp.array([[1.0, 0.0], [-1.0, 1.0]]))
      >>> aggregator = mtlopt.pcgrad(2)
      >>> print(aggregator.update(grads, aggregator.init(jnp.zeros(2)))[0])
      [0.5 1.5]

    References:
      Yu et al., *Gradient Surgery for Multi-Task Learning*, NeurIPS 2020, algorithm 1.
    """
    first_key = as_key(key)

    def initial() -> PcgradState:
        return PcgradState(jnp.ones(num_tasks, float), jnp.copy(first_key))

    def weigh(
        grads: TaskGrads, rows: Rows, state: PcgradState, **_: Any
    ) -> tuple[jax.Array, PcgradState]:
        key, order = random_orders(state.key, num_tasks)
        gramian, present = rows.scaled_gramian(grads.present), grads.present
        return pcgrad_weights(gramian, order, present), state._replace(key=key)

    return aggregate_with_state("pcgrad", num_tasks, initial, weigh)
