"""GradVac: raising cosines to what they have been (Wang et al., ICLR 2021)."""

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
    """State of `gradvac`.

    Attributes:
      task_weights: `[tasks]`, weights of the last update.
      targets: `[tasks, tasks]`, moving averages of the cosines.
      key: PRNG key of the orders to come.
    """

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
    r"""Weights of GradVac for given targets and a given order.

    .. math:: d = \sum_i p_i = \sum_j \alpha_j g_j, \qquad
        \tau_{ij} \leftarrow (1 - \beta) \tau_{ij} + \beta \phi_{ij}

    `p_i` starts as `g_i` and, for each other task `j` in `order[i]`, gains what raises
    its cosine `phi_ij` with `g_j` to the target `tau_ij`, if it is lower. The target
    then moves towards the cosine from before that, whether or not it was lower. With
    targets zero these are PCGrad's weights.

    A sum, not a mean: on `T` equal gradients `g` it is `T g`. A zero row is skipped;
    opposed rows lose each other, and what is zero has no cosine. Targets without a
    cosine stand still: those of pairs with an absent or a zero task, and all where the
    Gramian is not finite. NaN in, NaN weights out.

    Args:
      gramian: `G`, inner products of the task gradients, `[tasks, tasks]`.
      targets: `tau`, cosines, `[tasks, tasks]`.
      order: Row `i` is the order in which task `i` meets the others, a permutation, int
        `[tasks, tasks]`.
      decay: `beta`, from 0 to 1.
      present: Tasks that take part, bool `[tasks]`; the others get weight zero.

    Returns:
      The weights `alpha`, `[tasks]`, each at least 1 for a present task; and the next
      targets, `[tasks, tasks]`.

    Raises:
      ValueError: If a shape does not fit.

    Examples:
      >>> import jax.numpy as jnp
      >>> gramian = jnp.array([[1.0, -1.0], [-1.0, 4.0]])
      >>> order = jnp.array([[0, 1], [0, 1]])
      >>> weights, targets = gradvac_weights(gramian, jnp.zeros((2, 2)), order)
      >>> print(weights, targets[0])
      [2.   1.25] [ 0.   -0.25]

    References:
      Wang et al., *Gradient Vaccine: Investigating and Improving Multi-task
      Optimization in Massively Multilingual Models*, ICLR 2021, equations 2 and 3,
      Algorithm 1.
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

    with `phi` the cosine between `p_i` and `g_j`, one task `j` after the other, in a
    random order of its own for each `i`. PCGrad with targets: it acts on gradients that
    agree too, if they used to agree more. All targets start at zero, so that the first
    update is PCGrad's; each pair's target then follows its cosines.

    Guarantees little: `d` may conflict, but weighs each task at least 1. Where a pair
    has long agreed, its target is near one, and a gradient that turns away gains a
    large multiple of the other; how large is bounded by the precision. On T equal
    gradients g it returns T g. A zero gradient is skipped, and its targets stand still
    like those of absent tasks. Solved on the T x T Gramian; costs one backward pass per
    task.

    The weights act on shared leaves only; heads keep their own task's gradient. Cosines
    are over all shared leaves together (the paper's whole-model granularity).

    Args:
      num_tasks: number of tasks T.
      decay: `beta`, from 0 (PCGrad for ever) to 1 (targets are the last cosines).
        TorchJD and LibMTL have 0.5 too.
      key: seed or key of the random orders.

    Returns:
      An aggregator: `TaskGrads` in, an update with the structure of the parameters out.

    Raises:
      ValueError: if `decay` is not from 0 to 1.

    Examples:
      >>> import jax, jax.numpy as jnp
      >>> import mtlopt
      >>> aggregator = mtlopt.gradvac(2)
      >>> state, update = aggregator.init(jnp.zeros(2)), jax.jit(aggregator.update)
      >>> for angle in (0.5, 1.5):
      ...     rows = jnp.array([[1.0, 0.0], [jnp.cos(angle), jnp.sin(angle)]])
      ...     grads = mtlopt.TaskGrads.from_rows(rows)
      ...     updates, state = update(grads, state)
      ...     print(jnp.round(state.task_weights, 3))
      [1. 1.]
      [1.416 1.416]

    References:
      Wang et al., *Gradient Vaccine: Investigating and Improving Multi-task
      Optimization in Massively Multilingual Models*, ICLR 2021, equations 2 and 3,
      Algorithm 1. TorchJD and LibMTL add 1e-8 to the denominators; this has no such
      constant and depends on no scale.
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
