"""Steps of one task or group after another, on the same batch (IUS and IO)."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.core import Tracer

from mtlopt._checks import as_int, as_key, as_transform, named_vector
from mtlopt.alternation.per_task import scan_turns
from mtlopt.alternation.turn import check_states, move
from mtlopt.grad import Grad
from mtlopt.oracle import Oracle
from mtlopt.step import Run, StepOutput, check_names, check_oracle, with_state

PyTree = Any


def individual_step(
    oracle: Oracle,
    optimizer: optax.GradientTransformation,
    num_groups: int | None = None,
    *,
    shuffle: bool = False,
    draws: int | None = None,
) -> Callable[..., tuple[Run, StepOutput]]:
    r"""Builds a training step in which every task, or group of tasks, moves in turn.

    All gradients use the same batch. Each gradient is computed at the parameters after
    the previous turn. A group moves by the gradient of its members' summed loss
    (equation 8). So one group of all tasks makes a step on the summed loss, and groups
    of one task each give IUS or IO (see `individual_optimizers`).

    In a fixed order the turns are unrolled, unless heads are stacked. In a random
    order, or with stacked heads, the turns run in a `lax.scan`. With stacked heads, the
    scan compiles only one turn, whatever the number of tasks. Groups may change from
    step to step, so each turn runs the heads of all tasks or, without `encode`, the
    whole network once for each task.

    With `draws`, each turn belongs to a task, or group, that is drawn uniformly and
    independently of all other turns. Theorem 1 of the paper holds for this scheme; in a
    fixed order, the theorem's bound can fail. `draws=1` makes one turn of one task on
    each batch. With `draws`, the states of all tasks are copied in every turn.

    For a head, a schedule in the optimizer counts the head's own steps. For the shared
    parameters, it counts each task's own steps if each task has its own state, and it
    counts turns if all tasks use one state (`share_state=True`). A schedule in a
    transform that you chain after `individual_optimizers` also counts turns. Each batch
    has as many turns as there are tasks, groups or draws.

    Args:
      oracle: an oracle from `task_grad`.
      optimizer: `individual_optimizers` with as many states as there are tasks or
        groups, or a chain with it.
      num_groups: number of groups; None means one task at a time.
      shuffle: whether every step draws a new order.
      draws: number of turns. Each turn belongs to a task or group that is drawn with
        replacement. None means one turn per task or group.

    Returns:
      `step(run, *args, groups=None, key=None, present=None, **extra_args)`, which
      returns a run and a `StepOutput` as in `train_step`. With `num_groups`, pass
      `groups`: the group number of each task, `[tasks]` or a mapping by task (see
      `random_groups`). To shuffle or draw, pass `key`. Absent tasks take no step, do
      not count in their group, and have loss 0. If a task has no turn because it was
      not drawn or its group does not exist, its loss is NaN. A task's loss is the loss
      before its group's move, or the mean of these losses if it was drawn more than
      once. The encoder's state moves in each turn, and a head's state in its own turns.
      `aux` is a list with one `Aux` per turn (None for a task that is known at trace
      time to be absent); a scan returns one `Aux` with a leading axis of turns.

    Raises:
      TypeError: if `oracle` is not an `mtlopt.Oracle`; at a step, if `run` is not a
        `Run`.
      ValueError: if `num_groups` does not fit the tasks, if `draws` is not a positive
        int, or if you pass both `draws` and `shuffle`; at the first step, if `groups`
        or `key` is missing or not expected, if the labels of `optimizer` and oracle
        differ, or if the numbers of states and tasks differ.

    Examples:
      >>> import jax, jax.numpy as jnp
      >>> import mtlopt, optax
      >>> params = {"trunk": jnp.array(1.0), "a": jnp.array(2.0), "b": jnp.array(3.0)}
      >>> labels = {"trunk": "shared", "a": "a", "b": "b"}
      >>> oracle = mtlopt.task_grad(
      ...     {"a": lambda p, z: p["a"] * z, "b": lambda p, z: p["b"] * z},
      ...     labels,
      ...     encode=lambda p: p["trunk"],
      ... )
      >>> tx = mtlopt.individual_optimizers(optax.sgd(0.1), 2, labels)
      >>> step = jax.jit(mtlopt.individual_step(oracle, tx))
      >>> run, output = step(mtlopt.Run(params, tx.init(params)))
      >>> print(output.losses, {k: round(float(v), 3) for k, v in run.params.items()})
      [2.  2.4] {'a': 1.9, 'b': 2.92, 'trunk': 0.5}

    References:
      Pascal et al., *Improved optimization strategies for deep multi-task networks*,
      2021, equations 4, 7 and 8; section 6.1 for `draws`.
    """
    check_oracle(oracle)
    num_tasks = oracle.num_tasks
    if num_groups is not None:
        num_groups = as_int("num_groups", num_groups, high=num_tasks)
    if draws is not None:
        draws = as_int("draws", draws)
        if shuffle:
            raise ValueError(
                "`shuffle` must be False with `draws`, got True. Drawn tasks have no "
                "order to shuffle, so leave `shuffle` out."
            )
    optimizer = as_transform("optimizer", optimizer)
    turns = num_tasks if num_groups is None else num_groups
    separate = not oracle.problem.takes_traced_task
    random = shuffle or draws is not None
    unroll = not random and not oracle.problem.stacked

    def step(
        run: Run,
        *args: Any,
        groups: Any = None,
        key: Any = None,
        present: Any = None,
        **extra_args: Any,
    ) -> tuple[Run, StepOutput]:
        whole = with_state(oracle, args, run)
        check_names(extra_args, "groups", "key")
        _check_asked("groups", groups, num_groups is not None)
        _check_asked("key", key, random)
        check_states(run.opt_state, turns)
        if groups is not None:
            groups = _as_groups(groups, oracle.tasks, turns)
        present = oracle.present(whole, present)

        def turn(run: Run, index: Any) -> tuple[Run, StepOutput]:
            params, state = run.params, run.state
            whole = with_state(oracle, args, run)
            members = (np.arange(num_tasks) if groups is None else groups) == index
            moving = members if present is None else members & present
            if isinstance(moving, np.ndarray) and not moving.any():
                # The functions of an absent task are not run, because this batch may
                # not suit them. The other parts of the update go on.
                still = jax.tree.map(jnp.zeros_like, params)
                grad = Grad(jnp.zeros([]), still, None, state)
            elif groups is None:
                grad = _task(oracle, index, separate, params, whole)
            else:
                weights = members.astype(float)
                grad = oracle.task(weights, params, *whole, present=present)
            all_move = groups is None and present is None
            run = move(
                oracle, optimizer, run, grad, index, moving, all_move, extra_args
            )
            return run, StepOutput(jnp.where(moving, grad.losses, 0), grad.aux)

        drawn = None
        if unroll:
            outs = []
            for index in range(turns):
                run, out = turn(run, index)
                outs.append(out)
            losses = jnp.stack([losses for losses, _ in outs])
            aux = [aux for _, aux in outs]
        elif draws is not None:
            drawn = jax.random.randint(as_key(key), (draws,), 0, turns)
            run, (losses, aux) = jax.lax.scan(turn, run, drawn)
        else:
            order = None
            if shuffle:
                order = jax.random.permutation(as_key(key), jnp.arange(turns))
            run, (losses, aux) = scan_turns(turn, run, turns, order)
        losses = jnp.sum(losses, axis=0)
        if drawn is not None:
            own = np.arange(num_tasks) if groups is None else groups
            times = jnp.sum(drawn[:, None] == own, axis=0)
            counted = True if present is None else present
            losses = losses / jnp.maximum(times, 1)
            losses = jnp.where((times == 0) & counted, jnp.nan, losses)
        if groups is not None:  # a task in no group gets NaN
            in_one = (groups >= 0) & (groups < turns)
            losses = jnp.where(in_one, losses, jnp.nan)
        return run, StepOutput(losses, aux)

    return step


def _task(
    oracle: Oracle, index: Any, separate: bool, params: PyTree, args: Any
) -> Grad:
    """Returns the gradient of one task, whose index may be traced."""
    if not separate or isinstance(index, int):
        return oracle.task(index, params, *args)

    def branch(task: int) -> Grad:
        grad = oracle.task(task, params, *args)
        if grad.aux is None:
            return grad
        # Drop the task's name, so that all branches return the same structure.
        (own,) = grad.aux.tasks.values()
        return grad._replace(aux=grad.aux._replace(tasks=own))

    tasks = range(oracle.num_tasks)
    return jax.lax.switch(index, [functools.partial(branch, task) for task in tasks])


def _check_asked(name: str, value: Any, asked: bool) -> None:
    option = {"groups": "`num_groups`", "key": "`shuffle` or `draws`"}[name]
    if asked and value is None:
        raise ValueError(f"`{name}` must be passed to a step built with {option}.")
    if value is not None and not asked:
        raise ValueError(f"`{name}` needs a step built with {option}.")


def _as_groups(groups: Any, tasks: Sequence[str], num_groups: int) -> jax.Array:
    groups = named_vector("groups", groups, tasks)
    if not isinstance(groups, Tracer):
        for group in groups.tolist():
            if not 0 <= group < num_groups:
                raise ValueError(
                    f"`groups` must be between 0 and {num_groups - 1}, got {group}."
                )
    return groups
