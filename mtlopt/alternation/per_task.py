"""A stack of optimizer states, one per task, and a loop that uses them in turn."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from mtlopt.step import Run

PyTree = Any


class PerTask(NamedTuple):
    """States of an optimizer, one per task (or group).

    Attributes:
      states: every leaf has a leading axis of tasks.
    """

    states: PyTree

    def take(self, task: Any) -> PyTree:
        """Returns the state of a task, whose index may be traced."""
        return jax.tree.map(lambda leaf: leaf[task], self.states)

    def put(self, task: Any, state: PyTree) -> "PerTask":
        """Returns the states, with the state of one task replaced."""
        return PerTask(
            jax.tree.map(lambda all_, one: all_.at[task].set(one), self.states, state)
        )


class InTurn(NamedTuple):
    """The state of the task whose turn it is, in place of the states in a `PerTask`."""

    state: PyTree

    def take(self, _task: Any) -> PyTree:
        """Returns the state."""
        return self.state

    def put(self, _task: Any, state: PyTree) -> "InTurn":
        """Returns the new state."""
        return InTurn(state)


def scan_turns(
    turn: Callable[[Run, jax.Array], tuple[Run, PyTree]],
    run: Run,
    num_turns: int,
    order: jax.Array | None = None,
) -> tuple[Run, PyTree]:
    """Runs a `lax.scan` of `turn(run, index)` over the tasks.

    States that the optimizer keeps per task go through the scan as its inputs and
    outputs. If they were a part of the carry, XLA would copy all tasks' states in every
    turn.

    Args:
      turn: returns the next run and an output.
      run: a run whose optimizer state contains a `PerTask`.
      num_turns: number of tasks.
      order: a permutation of the tasks, int32 `[tasks]`; None for the tasks' own order,
        which saves two copies of all states.

    Returns:
      The run, and the outputs with a leading axis of turns.
    """
    stacks, rest, join = _split(run.opt_state, PerTask)
    indices = jnp.arange(num_turns) if order is None else order
    if order is not None:
        stacks = jax.tree.map(lambda leaf: leaf[order], stacks)

    def body(run: Run, now: tuple[jax.Array, PyTree]) -> tuple[Run, Any]:
        index, own = now
        opt_state = join([InTurn(state) for (state,) in own], run.opt_state)
        run, out = turn(run._replace(opt_state=opt_state), index)
        own, rest, _ = _split(run.opt_state, InTurn)
        return run._replace(opt_state=rest), ([PerTask(one) for (one,) in own], out)

    run, (stacks, outs) = jax.lax.scan(
        body, run._replace(opt_state=rest), (indices, stacks)
    )
    if order is not None:
        inverse = jnp.argsort(order)
        stacks = jax.tree.map(lambda leaf: leaf[inverse], stacks)
    return run._replace(opt_state=join(stacks, run.opt_state)), outs


def _split(tree: PyTree, kind: type) -> tuple[list[Any], list[Any], Callable[..., Any]]:
    """Returns the nodes of a kind, the other leaves, and a function that joins them."""
    leaves, treedef = jax.tree.flatten(tree, is_leaf=lambda x: isinstance(x, kind))
    chosen = [isinstance(leaf, kind) for leaf in leaves]

    def join(nodes: list[Any], others: list[Any]) -> PyTree:
        left, right = iter(nodes), iter(others)
        return treedef.unflatten([next(left if here else right) for here in chosen])

    nodes = [leaf for leaf, here in zip(leaves, chosen, strict=True) if here]
    others = [leaf for leaf, here in zip(leaves, chosen, strict=True) if not here]
    return nodes, others, join
