"""Multi-task backtracking line search in parameter space (BLS)."""

from typing import Any

import jax.numpy as jnp
import optax

from mtlopt._checks import as_transform
from mtlopt.linesearch.armijo import Search
from mtlopt.linesearch.finder import check_direction, check_searchable
from mtlopt.linesearch.states import LineSearchState
from mtlopt.linesearch.steps import params_after, step_update
from mtlopt.slopes import slopes


def backtracking(
    direction: optax.GradientTransformation,
    *,
    beta: Any = 0.1,
    shrink: Any = 0.5,
    upper: Any = 1.0,
    floor: Any = 1e-10,
    warm_start: bool = False,
) -> optax.GradientTransformationExtraArgs:
    r"""Shortens a step along a direction until every task's loss falls enough.

    .. math:: L_t(\theta_{sh} - \eta d_{sh}, \theta_t - \eta g_t) \le L_t
        - \eta \beta |g_t|^2 - \eta \beta \langle \nabla_{sh} L_t, d_{sh} \rangle
        \quad \forall t, \qquad g_t = \nabla_{\theta_t} L_t

    Here `theta_sh` are the shared parameters, `theta_t` is the head of task t, and
    `d_sh` is the direction. The step size `eta` is the first of `upper`,
    `shrink * upper`, ... that meets this Armijo condition for every present task. Each
    trial starts from the current parameters. `backtracking` is a complete optimizer: it
    needs no learning rate and comes last in a chain.

    A trial evaluates all losses on the same batch, with the same keys and model state
    as the gradients. Each trial costs one forward pass, and the losses before the step
    cost one more. (With several microbatches, the gradients use the keys and batch
    statistics of the parts, and the trials use the keys and batch statistics of the
    whole batch.) The slopes of the losses along the direction cost one Jacobian-vector
    product, which takes about as long as two forward passes, whatever the number of
    tasks. This product needs an encoder whose backward pass is linear; the backward
    pass of a `jax.custom_vjp` that clips gradients is not linear. A trial with a NaN or
    infinite loss fails. If no trial above `floor` passes, the step size is `floor`, and
    the state's `hit_floor` is True. The same happens if the direction does not lower
    every loss to first order, for example if it is a sum of conflicting gradients.

    Args:
      direction: an aggregator, or weightings chained with one. MGDA, EDM and UPGrad
        return a descent direction for all tasks; `sum_tasks` or PCGrad may not. Any
        other transform in this chain must keep the sign of the direction, so do not use
        `optax.sgd`. With momentum or weight decay, a step along the direction may raise
        a loss.
      beta: fraction of the first-order decrease that each loss must reach, between 0
        and 1.
      shrink: factor from one trial step size to the next, between 0 and 1. The paper
        gives no value.
      upper: the first step size to try; a number, or a schedule of the step count. The
        paper halves it every ten epochs (of `n` steps): `optax.exponential_decay(1.0,
        10 * n, 0.5, staircase=True)`.
      floor: the smallest step size to try.
      warm_start: whether the first trial is the last step size divided by `shrink`, if
        that is below `upper`. In the first step, and after a step without an accepted
        trial, the first trial is `upper` nevertheless.

    Returns:
      A transform from `TaskGrads` to the step. Its `update` needs `params`, and its
      state is a `LineSearchState`.

    Raises:
      ValueError: if a number is out of range; at the first update, if the gradients do
        not come from `task_grad`.

    Examples:
      >>> import jax, jax.numpy as jnp
      >>> import mtlopt, optax
      >>> oracle = mtlopt.task_grad(
      ...     {"a": lambda w: (w - 1.0) ** 2, "b": lambda w: 8 * (w + 1.0) ** 2},
      ...     "shared",
      ... )
      >>> tx, w = mtlopt.backtracking(mtlopt.mgda(2)), jnp.array(3.0)
      >>> step = jax.jit(lambda w: tx.update(oracle(w), tx.init(w), w))
      >>> updates, state = step(w)
      >>> print(jnp.round(updates), state.step_size, state.trials)
      -2.0 0.5 2

    References:
      Fast line search for multi-task learning, 2021, Algorithm 1 and equation 4.
      Algorithm 1 shrinks the step size before the first test; here, `upper` itself is
      tried first. Fliege and Svaiter, *Steepest descent methods for multicriteria
      optimization*, Math. Methods Oper. Res. 51, 2000.
    """
    search = Search(beta, shrink, upper, floor, warm_start)
    search.check()
    finder = as_transform("direction", direction)

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
        parts = grads.partition.split(found)[:2]
        trial = search.armijo(
            lambda step: grads.losses_at(params_after(grads, params, *parts, step)),
            slope.total,
            jnp.where(slope.descends(), search.first(state, upper), 0),
            floor,
            grads.present,
        )
        state = LineSearchState(
            **search.after(state, trial, floor, direction_state),
            decrease=trial.decrease.astype(state.decrease.dtype),
        )
        return step_update(grads, *parts, state.step_size), state

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)
