"""Weights by the neural tangent kernel (Wang, Yu and Perdikaris, 2022)."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from mtlopt._checks import check_num_tasks, check_range, named_vector
from mtlopt.common.task_weights import everyone
from mtlopt.grad import check_task_grads
from mtlopt.linalg.normalise import safe_divide
from mtlopt.weightings.by_sizes import move_to_equal

# This many gradients of points are made and held at a time: faster than one by one.
_AT_A_TIME = 16


class WeightByNtkState(NamedTuple):
    """State of `weight_by_ntk`: the moving average of the weights, `[tasks]`."""

    task_weights: jax.Array


def weight_by_ntk(
    num_tasks: int, decay: Any = 0.9
) -> optax.GradientTransformationExtraArgs:
    r"""Weights losses by a moving average of how slowly gradient descent lowers them.

    .. math:: w_i \leftarrow \beta w_i + (1 - \beta) \,
        \frac{\mathrm{mean}_j \rho_j}{\rho_i}, \qquad
        \rho_i = \frac{\mathrm{tr} K_i}{N_i}, \quad K_i = J_i J_i^\top

    Each loss must be a mean of squared residuals, `L_i = |r_i|^2 / N_i`, and
    `J_i = dr_i / dtheta`. `rho_i`, the mean of the kernel's diagonal, does not depend
    on the direction of `r_i`. Pass `rho` to the update as `traces`: numbers `[tasks]`
    or by name, or a function that returns them, such as
    `lambda: ntk_traces(residuals, params, *batch)`. The function is called only if
    weights are computed: with `every(1000, weight_by_ntk(T))`, every 1000th update.

    Without `traces`, the weighting uses the kernel along the current residual:

    .. math:: \rho_i = \frac{|g_i|^2}{L_i}
        = \frac{4}{N_i} \frac{r_i^\top K_i r_i}{r_i^\top r_i}

    Along its own gradient, loss i falls at this rate, relative to L_i. This costs a
    backward pass per task. With one point per task, the formulas agree up to a factor
    of 4, which cancels. Weights start at 1. Each update first moves the weights, then
    uses them. A weight moves only if its rate is positive and finite.

    Args:
      num_tasks: number of tasks T.
      decay: `beta`, at least 0 and below 1; 0 means no average. jaxpi uses 0.9.

    Raises:
      ValueError: if `decay` is out of range; at the update, if `traces` does not fit.

    Examples:
      >>> import jax.numpy as jnp, mtlopt
      >>> weighting = mtlopt.weight_by_ntk(2, decay=0.5)
      >>> grads = mtlopt.TaskGrads.from_rows(jnp.eye(2), losses=[1.0, 1.0])
      >>> state, traces = weighting.init(jnp.zeros(2)), jnp.array([1.0, 4.0])
      >>> print(weighting.update(grads, state, traces=traces)[1].task_weights)
      [1.75   0.8125]

    References:
      Wang, Yu and Perdikaris, *When and Why PINNs Fail to Train*, Journal of
      Computational Physics, 2022, algorithm 1, with jaxpi's means.
    """
    check_num_tasks(num_tasks)
    check_range("decay", decay, 1)

    def init_fn(params: Any) -> WeightByNtkState:
        del params
        return WeightByNtkState(jnp.ones(num_tasks))

    def update_fn(
        updates: Any,
        state: Any,
        params: Any = None,
        *,
        traces: Any = None,
        **extra_args: Any,
    ) -> tuple[Any, WeightByNtkState]:
        del extra_args
        grads = check_task_grads(updates, num_tasks, params, state, "weight_by_ntk")
        weights = state.task_weights
        if traces is None:
            grads = grads.keep_rows()
            norms = grads.rows().norms().astype(weights.dtype)
            losses = grads.losses.astype(weights.dtype) * grads.loss_scales
            rates = norms * safe_divide(norms, losses)
        else:
            found = traces() if callable(traces) else traces
            rates = named_vector("traces", found, grads.tasks) * grads.loss_scales
        there = everyone(num_tasks, grads.present)
        weights = move_to_equal(weights, rates, there, decay)
        return grads.scale_by(weights), WeightByNtkState(weights)

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)


def ntk_traces(residuals: Callable[..., Any], params: Any, *args: Any) -> Any:
    r"""Returns the mean of the diagonal of each task's neural tangent kernel.

    .. math:: \frac{\mathrm{tr} K_i}{N_i}
        = \frac{1}{N_i} \sum_n \left| \frac{\partial r_{in}}{\partial \theta} \right|^2

    `ntk_traces` computes one gradient per point, 16 at a time. This costs a backward
    pass for every point of every task, so use few points or call it rarely. The
    result is exact, because the weights contain its inverse. An estimate from a random
    vector can be near zero if one eigenvalue dominates, and its inverse has no mean.

    Args:
      residuals: function from `(params, *args)` to a mapping from task to residuals, or
        a sequence in task order. The residuals at the points may have any shape.
      params: a pytree of arrays; the kernel is computed over all of them.
      *args: further arguments of `residuals`.

    Returns:
      One number for each entry, in the same mapping or sequence as the residuals.

    Raises:
      ValueError: if all residuals are scalars, as losses are.

    Examples:
      >>> import jax.numpy as jnp, mtlopt
      >>> def residuals(w, x):
      ...     return {"equation": w * x, "edge": w - x[:1]}
      >>> found = mtlopt.ntk_traces(residuals, 3.0, jnp.array([1.0, 2.0, 4.0]))
      >>> print(found["equation"], found["edge"])
      7.0 1.0
    """
    out, pullback = jax.vjp(lambda params: residuals(params, *args), params)
    leaves, treedef = jax.tree.flatten(out)
    if all(not leaf.shape for leaf in leaves):
        raise ValueError(
            "`residuals` must return the residuals of each task at points, not its "
            "loss, got scalars."
        )

    def mean_square(number: int) -> jax.Array:
        own = leaves[number]

        def square(place: jax.Array) -> jax.Array:
            seeds = [jnp.zeros_like(leaf) for leaf in leaves]
            one_there = jax.nn.one_hot(place, own.size, dtype=own.dtype)
            seeds[number] = one_there.reshape(own.shape)
            (grad,) = pullback(treedef.unflatten(seeds))
            return optax.tree.norm(grad, squared=True)

        squares = jax.lax.map(square, jnp.arange(own.size), batch_size=_AT_A_TIME)
        return jnp.mean(squares)

    return treedef.unflatten(map(mean_square, range(len(leaves))))
