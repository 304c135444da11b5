"""MoDo: multi-objective gradients with double sampling (Chen et al., NeurIPS 2023)."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from mtlopt._checks import check_positive, check_range
from mtlopt.aggregators.by_weights import aggregate_with_state
from mtlopt.common.batch_products import batch_product, batch_products
from mtlopt.linalg.normalise import Gramian, common_scale
from mtlopt.linalg.products import dot, present_products
from mtlopt.linalg.simplex import (
    project_to_simplex,
    share_out,
    shares_of,
)
from mtlopt.rows.protocol import Rows
from mtlopt.task_grads import TaskGrads

# The longest step: weights are at most 1, and sums of such steps are finite.
_LONGEST = 1e30
# For up to this many tasks, rows cost no more than two pullbacks and a pushforward.
_FEW_TASKS = 3


class ModoState(NamedTuple):
    """State of `modo`: the next update starts from the weights `shares`, `[tasks]`."""

    task_weights: jax.Array
    shares: jax.Array


def modo_weights(
    products: Gramian,
    weights: jax.Array,
    learning_rate: Any = 0.1,
    regularization: Any = 0.0,
    present: jax.Array | None = None,
) -> jax.Array:
    r"""Returns the weights `[tasks]` of `modo` after one step. They sum to 1.

    .. math:: w \leftarrow \Pi_\Delta \left( w - \gamma (P + \rho I) w \right),
        \qquad P_{ij} = \langle g_i, h_j \rangle

    `g` and `h` are the gradients of two independent batches, so `P` is unbiased; noise
    makes the Gramian of one batch too large. Apart from the projection, the step is
    linear in `P`, so errors of the batches average out. The weight of a zero gradient
    changes only through the projection. Equal gradients keep equal weights. Weights are
    differentiable almost everywhere. `products` is `P`, or the Gramian of one batch.
    `weights` are at least 0 and are divided by their sum over the present tasks.

    Examples:
      >>> import jax.numpy as jnp
      >>> gramian, weights = jnp.diag(jnp.array([1.0, 3.0])), jnp.array([0.5, 0.5])
      >>> print(modo_weights(gramian, weights, learning_rate=0.25))
      [0.625 0.375]
    """
    products, scale = common_scale(products)
    products = present_products(products, present)
    weights = shares_of(weights, present)
    # XLA merges two divisions into one, and the square of the unit may overflow.
    unit = 1 / scale
    pull = dot(products, weights) * unit * unit
    return _step(pull, weights, learning_rate, regularization, present)


def _step(
    pull: jax.Array,
    weights: jax.Array,
    learning_rate: Any,
    regularization: Any,
    present: jax.Array | None,
) -> jax.Array:
    """Returns the weights after a projected step against `P w`."""
    slope = pull + regularization * weights
    # A step this long ends in a corner of the simplex; infinite steps have no order.
    step = jnp.clip(learning_rate * slope, -_LONGEST, _LONGEST)
    return project_to_simplex(weights - step, present)


def modo(
    num_tasks: int, learning_rate: Any = 0.1, regularization: Any = 0.0
) -> optax.GradientTransformationExtraArgs:
    r"""Moves the task weights one step per batch towards the min-norm weights: MoDo.

    .. math:: w \leftarrow \Pi_\Delta \left( w - \gamma (J J_2^\top + \rho I) w \right),
        \qquad d = J^\top w

    `Pi_Delta` projects onto the simplex. The weights start equal and are kept between
    updates, so they average over batches; MGDA computes new weights for each batch. For
    equal gradients g, `d` is g. Unlike in MGDA, `d` may conflict with a task until the
    weights have settled. `J` holds the task gradients. `J_2` holds the task gradients
    of a second batch, which you pass to `update` as `second` (see the guide *Methods*).
    Without `second`, `J_2 = J`. For more than three tasks, only the product `J J_2^T w`
    is computed, by two backward passes and one forward derivative.

    The step depends on the scale of the gradients, as in the paper: if the losses are
    ten times as large, the learning rate must be a hundred times smaller. `d` is not
    homogeneous in the gradients. If squared norms overflow, the step ends in a corner
    of the simplex; if they underflow, only `rho` moves the weights.

    Args:
      num_tasks: number of tasks T.
      learning_rate: `gamma`, positive, in units of one over a squared gradient norm.
      regularization: `rho`, at least 0; it makes the weights more equal.

    Raises:
      ValueError: if an argument is out of range, or `second` does not fit.

    Examples:
      >>> import jax.numpy as jnp, mtlopt
      >>> grads = mtlopt.TaskGrads.from_rows(jnp.array([[1.0, 0.0], [0.0, 2.0]]))
      >>> other = mtlopt.TaskGrads.from_rows(jnp.array([[1.0, 0.0], [0.0, 1.0]]))
      >>> aggregator = mtlopt.modo(2, learning_rate=0.25)
      >>> state = aggregator.init(jnp.zeros(2))
      >>> print(aggregator.update(grads, state, second=other)[0])
      [0.5625 0.875 ]

    References:
      Chen et al., *Three-Way Trade-Off in Multi-Objective Learning*, NeurIPS 2023,
      algorithm 1; `rho` is in the journal version.
    """
    check_positive("learning_rate", learning_rate)
    check_range("regularization", regularization)

    def initial() -> ModoState:
        # Two arrays, because the caller may donate the state.
        first, shares = (jnp.full(num_tasks, 1 / num_tasks, float) for _ in range(2))
        return ModoState(first, shares)

    def weigh(
        grads: TaskGrads,
        rows: Rows,
        state: ModoState,
        *,
        params: Any,
        second: TaskGrads | None = None,
        **_: Any,
    ) -> tuple[jax.Array, ModoState]:
        if num_tasks <= _FEW_TASKS:
            products, both = batch_products(grads, rows, second, params)
            moved = modo_weights(
                products, state.shares, learning_rate, regularization, both
            )
        else:
            pull, weights, both = batch_product(
                grads, rows, second, lambda both: shares_of(state.shares, both), params
            )
            moved = _step(pull, weights, learning_rate, regularization, both)
        moved = moved.astype(state.shares.dtype)
        shares = share_out(moved, state.shares, 1.0, both)
        return shares_of(shares, grads.present), state._replace(shares=shares)

    return aggregate_with_state("modo", num_tasks, initial, weigh)
