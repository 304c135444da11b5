"""One turn of a task or a group: the step that follows its gradient."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from mtlopt.alternation.blocks import only_state
from mtlopt.alternation.individual import IndividualOptimizersState
from mtlopt.alternation.per_task import PerTask
from mtlopt.grad import Grad
from mtlopt.oracle import Oracle
from mtlopt.step import Run, keep_finite, keep_frozen

PyTree = Any


def move(
    oracle: Oracle,
    optimizer: optax.GradientTransformationExtraArgs,
    run: Run,
    grad: Grad,
    index: Any,
    moving: Any,
    all_move: bool,
    extra_args: dict[str, Any],
) -> Run:
    """Returns the run after one turn.

    Args:
      oracle: the oracle of the gradient.
      optimizer: a chain with `individual_optimizers`.
      run: the run before the turn.
      grad: gradient of the task, or of the group's summed loss.
      index: index of the state to use for the shared leaves; it may be traced.
      moving: `[tasks]` bool, the tasks whose heads move.
      all_move: whether every turn moves at least one task, whatever the batch.
      extra_args: further arguments for the optimizer.
    """
    partition = oracle.partition(run.params)
    updates, opt_state = optimizer.update(
        grad.grad,
        run.opt_state,
        run.params,
        task=index,
        active=oracle.active(run.params, moving),
        partition=partition,
        **extra_args,
    )
    updates = keep_frozen(updates, partition.labels)
    state = keep_finite(run, opt_state, grad.state)
    if not all_move and not isinstance(moving, np.ndarray):
        there = jnp.any(moving)  # a turn without a present task moves nothing
        state = jax.tree.map(
            lambda new, old: jnp.where(there, new, old), state, run.state
        )
    return Run(optax.apply_updates(run.params, updates), opt_state, state)


def check_states(opt_state: PyTree, turns: int) -> None:
    """Raises unless there is one state for all turns, or one state for each turn."""
    state = only_state(opt_state, IndividualOptimizersState, "individual_optimizers")
    if not isinstance(state.shared, PerTask):
        return
    for leaf in jax.tree.leaves(state.shared):
        if len(leaf) != turns:
            raise ValueError(
                f"`optimizer` must be `individual_optimizers` for {turns} tasks or "
                f"groups, one for each turn, got {len(leaf)}."
            )
