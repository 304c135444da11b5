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
    """State of `pcgrad`.

    Attributes:
      task_weights: `[tasks]`, weights of the last update.
      key: PRNG key of the orders to come.
    """

    task_weights: jax.Array
    key: jax.Array


def pcgrad_weights(
    gramian: Gramian, order: jax.Array, present: jax.Array | None = None
) -> jax.Array:
    r"""Weights of PCGrad for a given order of projections.

    .. math:: d = \sum_i p_i = \sum_j \alpha_j g_j

    `p_i` starts as `g_i` and, for each other task `j` in `order[i]`, loses its
    component along `g_j` if `<p_i, g_j> < 0`. As in the paper, a task never meets
    itself and the result is a sum, not a mean: on `T` equal gradients `g` it is
    `T g`. A zero row is skipped; NaN in, NaN out. Differentiable away from
    `<p_i, g_j> = 0`.

    Args:
      gramian: `G`, inner products of the task gradients, `[tasks, tasks]`.
      order: Row `i` is the order in which task `i` meets the others, int
        `[tasks, tasks]`. The paper draws each row at random.
      present: Tasks that take part, bool `[tasks]`; the others get weight zero.

    Returns:
      The weights `alpha`, `[tasks]`, each at least 1 for a present task.

    Raises:
      ValueError: If a shape does not fit.

    Examples:
      >>> import jax.numpy as jnp
      >>> gramian = jnp.array([[1.0, -1.0], [-1.0, 4.0]])
      >>> print(pcgrad_weights(gramian, jnp.array([[0, 1], [0, 1]])))
      [2.   1.25]

    References:
      Yu et al., *Gradient Surgery for Multi-Task Learning*, NeurIPS 2020, Algorithm 1.
    """
    return project_conflicts(gramian, order, present)


def pcgrad(
    num_tasks: int, key: int | jax.Array = 0
) -> optax.GradientTransformationExtraArgs:
    r"""Projects conflicting task gradients onto each other's normal planes.

    Each task's gradient loses its component along every other gradient that it
    conflicts with, one after the other, in a random order of its own; the results are
    summed.

    .. math:: p_i \leftarrow p_i - \min(0, \langle p_i, g_j \rangle) \, g_j / |g_j|^2,
        \qquad d = \sum_i p_i

    With two tasks `d` conflicts with neither; with more it may. Without conflicts it is
    the sum of the gradients: on T equal gradients g it returns T g. A zero gradient is
    skipped. Solved on the T x T Gramian; costs one backward pass per task.

    The weights act on shared leaves only; heads keep their own task's gradient. Inner
    products are over all shared leaves together, so how parameters are cut into leaves
    does not matter.

    Args:
      num_tasks: number of tasks T.
      key: seed or key of the random orders.

    Returns:
      An aggregator: `TaskGrads` in, an update with the structure of the parameters out.

    Examples:
      >>> import jax.numpy as jnp
      >>> import mtlopt
      >>> grads = mtlopt.TaskGrads.from_rows(jnp.array([[1.0, 0.0], [-1.0, 1.0]]))
      >>> aggregator = mtlopt.pcgrad(2)
      >>> updates, state = aggregator.update(grads, aggregator.init(jnp.zeros(2)))
      >>> print(updates, state.task_weights)
      [0.5 1.5] [2.  1.5]

    References:
      Yu et al., *Gradient Surgery for Multi-Task Learning*, NeurIPS 2020, Algorithm 1:
      independent orders, a task never meets itself, sum. The authors' code lets a task
      meet itself and draws no random order.
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
