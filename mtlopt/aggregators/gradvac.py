"""GradVac: raising cosines to their moving averages (Wang et al., ICLR 2021)."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from mtlopt._checks import as_key
from mtlopt.aggregators.by_weights import aggregate_with_state
from mtlopt.linalg.normalise import Gramian
from mtlopt.linalg.surgery import raise_cosines, random_orders
from mtlopt.rows.protocol import Rows
from mtlopt.task_grads import TaskGrads


class GradvacState(NamedTuple):
    """State of `gradvac`: targets `[tasks, tasks]`, and the key of the next orders."""

    task_weights: jax.Array
    targets: jax.Array
    key: jax.Array


def gradvac_weights(
    gramian: Gramian,
    targets: jax.Array,
    order: jax.Array,
    decay: Any = 0.5,
    present: jax.Array | None = None,
) -> tuple[jax.Array, jax.Array]:
    r"""Returns the weights `alpha` `[tasks]` of `gradvac`, and the next targets.

    .. math:: d = \sum_i p_i = \sum_j \alpha_j g_j, \qquad
        \tau_{ij} \leftarrow (1 - \beta) \tau_{ij} + \beta \phi_{ij}

    `phi_ij` is the cosine of `p_i` (see `gradvac`) and `g_j` just before `p_i` is
    updated for task `j`. The target `tau_ij` moves towards this cosine. If all targets
    are zero, the weights are PCGrad's. Weights are at least 1 for present tasks, and
    `T` equal gradients `g` give the direction `T g`. Opposed gradients cancel. A zero
    gradient is skipped, and a zero `p_i` has no cosine. A target does not move if there
    is no cosine or one of its tasks is absent. No target moves if the Gramian is not
    finite. `targets` and `order` (int) have shape `[tasks, tasks]`. Row `i` of `order`
    is the order in which `p_i` is updated for the other tasks.

    Examples:
      >>> import jax.numpy as jnp
      >>> gramian, order = jnp.array([[1.0, -1], [-1, 4]]), jnp.array([[0, 1], [0, 1]])
      >>> weights, targets = gradvac_weights(gramian, jnp.zeros((2, 2)), order)
      >>> print(weights, targets[0])
      [2.   1.25] [ 0.   -0.25]
    """
    weights, cosines = raise_cosines(gramian, targets, order, present)
    targets = jnp.asarray(targets, cosines.dtype)
    moved = targets + jnp.asarray(decay, cosines.dtype) * (cosines - targets)
    return weights, moved


def gradvac(
    num_tasks: int, decay: Any = 0.5, key: int | jax.Array = 0
) -> optax.GradientTransformationExtraArgs:
    r"""Raises the cosines between task gradients to their moving averages: GradVac.

    .. math:: p_i \leftarrow p_i + \frac{|p_i| \big( \tau_{ij} \sqrt{1 - \phi^2} -
        \phi \sqrt{1 - \tau_{ij}^2} \big)}{|g_j| \sqrt{1 - \tau_{ij}^2}} \, g_j
        \quad \text{if } \phi < \tau_{ij}, \qquad d = \sum_i p_i

    Here `phi` is the cosine between `p_i` and `g_j`. `p_i` starts as `g_i` and is
    updated for each other task `j` in turn, in a random order for each `i`. All targets
    start at zero, so the first update is PCGrad's. Each target then follows the cosine
    of its two tasks, so gradients change if they agree less than they used to. `d` may
    conflict with a task. If two gradients have long agreed, their target is close
    to 1. If one of them then turns away, a large multiple of the other is added to it,
    as far as the precision allows. There is one target per pair, for the whole model.

    Args:
      num_tasks: number of tasks T.
      decay: `beta`, from 0 (always PCGrad) to 1 (the targets are the last cosines).
      key: seed or key of the random orders.

    Raises:
      ValueError: if `decay` is not from 0 to 1.

    Examples:
      >>> import jax, jax.numpy as jnp, mtlopt
      >>> grads = mtlopt.TaskGrads.from_rows(jnp.array([[1.0, 0.0], [-1.0, 1.0]]))
      >>> aggregator = mtlopt.gradvac(2)
      >>> print(jax.jit(aggregator.update)(grads, aggregator.init(jnp.zeros(2)))[0])
      [0.5 1.5]

    References:
      Wang et al., *Gradient Vaccine*, ICLR 2021, equations 2 and 3, algorithm 1.
    """
    if isinstance(decay, int | float) and not 0 <= decay <= 1:
        raise ValueError(f"`decay` must be from 0 to 1, got {decay}.")
    first_key = as_key(key)

    def initial() -> GradvacState:
        return GradvacState(
            task_weights=jnp.ones(num_tasks, float),
            targets=jnp.zeros((num_tasks, num_tasks), float),
            key=jnp.copy(first_key),
        )

    def weigh(
        grads: TaskGrads, rows: Rows, state: GradvacState, **_: Any
    ) -> tuple[jax.Array, GradvacState]:
        key, order = random_orders(state.key, num_tasks)
        gramian = rows.scaled_gramian(grads.present)
        weights, targets = gradvac_weights(
            gramian, state.targets, order, decay, grads.present
        )
        targets = targets.astype(state.targets.dtype)
        return weights, state._replace(targets=targets, key=key)

    return aggregate_with_state("gradvac", num_tasks, initial, weigh)
