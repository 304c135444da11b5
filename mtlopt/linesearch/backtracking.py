"""Multi-task backtracking line search in parameter space (BLS)."""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from mtlopt.linesearch.armijo import Search
from mtlopt.linesearch.states import LineSearchState
from mtlopt.rows.protocol import Leaves
from mtlopt.slopes import slopes
from mtlopt.task_grads import TaskGrads


def backtracking(
    direction: optax.GradientTransformation,
    *,
    beta: Any = 0.1,
    shrink: Any = 0.5,
    upper: Any = 1.0,
    floor: Any = 1e-10,
    warm_start: bool = False,
) -> optax.GradientTransformationExtraArgs:
    r"""Steps along a direction as far as every task's loss falls enough.

    .. math:: L_t(\theta_{sh} - \eta d_{sh}, \theta_t - \eta g_t) \le L_t
        - \eta \beta |g_t|^2 - \eta \beta \langle \nabla_{sh} L_t, d_{sh} \rangle
        \quad \forall t, \qquad g_t = \nabla_{\theta_t} L_t

    The step size `eta` is the first of `upper`, `shrink * upper`, ... that meets this
    condition of Armijo for every present task; each trial starts at the parameters as
    they are. A complete optimizer: it needs no learning rate and comes last in a chain.

    A trial evaluates all losses on the same batch, with the same keys and model state
    as the gradients: one forward pass each, and one for the losses before the step.
    (With several microbatches the gradients have keys and batch statistics of the
    parts, the trials those of the whole batch.) The slopes cost one pushforward, about
    two forward passes, whatever the number of tasks; it needs an encoder whose backward
    pass is linear, which a `jax.custom_vjp` that clips is not. A trial with a NaN or
    infinite loss fails. If no trial above `floor` passes, or the direction does not
    lower every loss to first order (a sum of conflicting gradients), the step is
    `floor` long and `hit_floor` is set.

    Args:
      direction: an aggregator, or weightings chained with one: MGDA, EDM and UPGrad
        return descent directions for every task, a plain sum or PCGrad may not. What
        else is chained with it must keep the sign, so no `optax.sgd`; with momentum or
        weight decay the direction may raise a loss.
      beta: share of the linear decrease that is asked for, between 0 and 1.
      shrink: factor between two trials, between 0 and 1. The paper leaves it open.
      upper: first trial; a number, or a schedule of the step count. The paper halves it
        every ten epochs: `optax.exponential_decay(1.0, 10 * n, 0.5, staircase=True)`.
      floor: smallest trial.
      warm_start: begin one trial above the last step size instead of at `upper`.

    Returns:
      A transform from `TaskGrads` to the step; its `update` needs `params`. Its state
      is a `LineSearchState`.

    Raises:
      ValueError: if a number is out of range; at the first update, if the gradients do
        not come from `task_grad`.

    Examples:
      >>> import jax.numpy as jnp
      >>> import mtlopt, optax
      >>> oracle = mtlopt.task_grad(
      ...     {"a": lambda w: (w - 1.0) ** 2, "b": lambda w: 8 * (w + 1.0) ** 2},
      ...     "shared",
      ... )
      >>> tx, w = mtlopt.backtracking(mtlopt.mgda(2)), jnp.array(3.0)
      >>> updates, state = tx.update(oracle(w), tx.init(w), w)
      >>> print(jnp.round(updates), state.step_size, state.trials)
      -2.0 0.5 2

    References:
      Fast line search for multi-task learning, 2021, Algorithm 1 and equation 4. The
      listing shrinks the step size before the first test; here `upper` is tried too.
      Fliege and Svaiter, *Steepest descent methods for multicriteria optimization*,
      Math. Methods Oper. Res. 51, 2000.
    """
    search = Search(beta, shrink, upper, floor, warm_start)
    search.check()
    finder = as_finder(direction)

    def init_fn(params: Any) -> LineSearchState:
        common = search.initial(finder.init(params))
        return LineSearchState(**common, decrease=jnp.zeros([]))

    def update_fn(
        updates: Any, state: Any, params: Any = None, **extra_args: Any
    ) -> tuple[Any, LineSearchState]:
        grads = check_searchable(updates, params)
        found, direction_state = finder.update(
            grads, state.direction_state, params, **extra_args
        )
        check_direction(found, grads)
        slope = slopes(grads, found)
        upper, floor = search.bounds(state)
        shared, heads, _ = grads.partition.split(found)
        trial = search.armijo(
            lambda step: grads.losses_at(moved_by(grads, params, shared, heads, step)),
            slope.total,
            jnp.where(slope.descends(), search.first(state, upper), 0),
            floor,
            grads.present,
        )
        state = LineSearchState(
            **search.after(state, trial, floor, direction_state),
            decrease=trial.decrease.astype(state.decrease.dtype),
        )
        return update_by(grads, shared, heads, state.step_size), state

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)


def as_finder(direction: Any) -> optax.GradientTransformationExtraArgs:
    """Returns a direction finder, or raises unless it is a transform."""
    if not isinstance(direction, optax.GradientTransformation):
        raise TypeError(
            "`direction` must be a gradient transformation, got "
            f"{type(direction).__name__}. Build it first, as in mgda(2)."
        )
    return optax.with_extra_args_support(direction)


def check_direction(found: Any, grads: TaskGrads) -> None:
    """Raises unless a direction finder made an update of the gradients."""
    if jax.tree.structure(found) != grads.partition.treedef:
        raise TypeError(
            "`direction` must be an aggregator, or weightings chained with one, got "
            f"one that makes a {type(found).__name__} of the gradients."
        )


def check_searchable(updates: Any, params: Any) -> TaskGrads:
    """Returns `updates` if their losses can be evaluated elsewhere, or raises."""
    if not isinstance(updates, TaskGrads):
        raise TypeError(
            f"`updates` must be a mtlopt.TaskGrads, got {type(updates).__name__}: a "
            "line search takes the gradients of the tasks and comes last in a chain."
        )
    if params is None:
        raise ValueError("`params` must be passed to the update of a line search.")
    if updates.losses_at is None:
        raise ValueError(
            "`updates` must come from mtlopt.task_grad: a line search evaluates the "
            "losses at other parameters, which a bare Jacobian does not have."
        )
    return updates


def update_by(
    grads: TaskGrads, shared: Leaves, heads: Leaves, step_size: jax.Array
) -> Any:
    """Returns the update of a step down a direction of shared and heads' leaves."""
    steps = _scale(shared, step_size), _scale(heads, step_size)
    return grads.partition.update(*steps, grads.frozen)


def moved_by(
    grads: TaskGrads, params: Any, shared: Leaves, heads: Leaves, step_size: jax.Array
) -> Any:
    """Returns the parameters after that step; the frozen ones are not copied."""
    trunk, own, frozen = grads.partition.split(params)
    moved = move(trunk, shared, step_size), move(own, heads, step_size)
    return grads.partition.merge(*moved, frozen)


def move(point: Leaves, direction: Leaves, step_size: jax.Array) -> Leaves:
    """Returns the point after a step down a direction, to the last digit."""
    moved: Any = optax.apply_updates(point, _scale(direction, step_size))
    return [_stored(leaf) for leaf in moved]


def _scale(direction: Leaves, step_size: jax.Array) -> Leaves:
    return [
        _stored(-_stored(step_size.astype(leaf.dtype)) * _stored(leaf))
        for leaf in direction
    ]


def _stored(leaf: jax.Array) -> jax.Array:
    """Rounds a leaf of half precision: XLA may compute with more digits than it keeps.

    A trial would then see losses of parameters that no step reaches.
    """
    dtype = jnp.finfo(leaf.dtype)
    if dtype.bits >= 32:
        return leaf
    return jax.lax.reduce_precision(leaf, dtype.nexp, dtype.nmant)
