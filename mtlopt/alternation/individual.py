"""One gradient step per task (IUS), with one optimizer state per task (IO)."""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.core import Tracer

from mtlopt._checks import (
    as_int,
    as_key,
    check_choice,
    check_num_tasks,
    check_state_tasks,
    is_int,
    named_vector,
)
from mtlopt.alternation.blocks import only_state
from mtlopt.alternation.per_task import PerTask, scan_turns
from mtlopt.grad import Grad, check_updates
from mtlopt.labels import SHARED, Partition, Rules, check_same_labels, label_params
from mtlopt.oracle import Oracle
from mtlopt.per_label import advance, join, per_label, select
from mtlopt.step import Run, StepOutput, check_oracle, keep_finite, with_state

PyTree = Any


class IndividualOptimizersState(NamedTuple):
    """State of `individual_optimizers`.

    Attributes:
      shared: state for the shared leaves; with one per task a `PerTask`, whose leaves
        have a leading axis of tasks (or groups).
      heads: state for the heads' leaves, one per label.
    """

    shared: Any
    heads: Any


def individual_optimizers(
    inner: optax.GradientTransformation,
    num_tasks: int,
    labels: Rules,
    *,
    share_state: bool = False,
) -> optax.GradientTransformationExtraArgs:
    r"""Gives each task its own state of an optimizer for the shared parameters.

    .. math:: w^{(k)} = w^{(k-1)} - \eta \, m^{(k)}(g^{(k)}(w^{(k-1)})),
        \qquad k = 1, \dots, T

    Tasks move the shared parameters in turn. With one moving average `m` for all
    (`share_state=True`, IUS) a task's step also follows the other tasks' gradients;
    with one per task (IO) it does not. For an optimizer without memory the two are the
    same. A head moves on its own task's turn only, with a state of its own, as in
    `per_label`. (With the authors' one Adam for all parameters, IUS moves the other
    tasks' heads too, by their momentum.)

    `update` takes the gradient of one task or group (`oracle.task`), and three
    keywords, which `individual_step` passes. `task` is the index of the state to use
    (it may be traced), `active` a mapping from label to bool of the labels that move.
    With `partition`, an oracle's (`oracle.partition(params)`), labels that differ from
    its are an error, and `task` may be a name: then no other task's head moves unless
    `active` says so.

    Memory: IO keeps T states of the shared leaves instead of one; with Adam, 2 T times
    their size. Groups of tasks divide that.

    Args:
      inner: any Optax optimizer.
      num_tasks: number of states: tasks, or groups of tasks.
      labels: who owns which leaf, see `label_params`.
      share_state: whether all tasks use one state for the shared leaves.

    Returns:
      A transform.

    Raises:
      ValueError: if `update` is not told the `task`, or a Python index is out of range.

    Examples:
      >>> import jax.numpy as jnp
      >>> import mtlopt, optax
      >>> params = {"trunk": jnp.zeros(()), "a": jnp.zeros(()), "b": jnp.zeros(())}
      >>> tx = mtlopt.individual_optimizers(
      ...     optax.sgd(1.0, momentum=0.5), 2, {"trunk": "shared", "a": "a", "b": "b"}
      ... )
      >>> state, ones = tx.init(params), {k: jnp.ones(()) for k in params}
      >>> for task, others in ((0, {"b": False}), (1, {"a": False}), (0, {"b": False})):
      ...     updates, state = tx.update(ones, state, params, task=task, active=others)
      ...     print(*(float(updates[name]) for name in ("trunk", "a", "b")))
      -1.0 -1.0 0.0
      -1.0 0.0 -1.0
      -1.5 -1.5 0.0

    References:
      Pascal, Michiardi, Bost, Huet and Zuluaga, *Improved optimization strategies for
      deep multi-task networks*, 2021, equations 4, 6 (IUS) and 7 (IO).
    """
    check_num_tasks(num_tasks)
    inner = optax.with_extra_args_support(inner)
    # The shared leaves are stepped here, the heads by `per_label`.
    heads = per_label(
        lambda label: optax.set_to_zero() if label == SHARED else inner, labels
    )

    def init_fn(params: PyTree) -> IndividualOptimizersState:
        own = select(params, label_params(params, labels), SHARED)
        if share_state:
            shared = inner.init(own)
        else:
            shared = PerTask(jax.vmap(lambda _: inner.init(own))(jnp.arange(num_tasks)))
        return IndividualOptimizersState(shared, heads.init(params))

    def update_fn(
        updates: PyTree,
        state: Any,
        params: PyTree = None,
        *,
        task: Any = None,
        active: Mapping[str, Any] | None = None,
        partition: Partition | None = None,
        **extra_args: Any,
    ) -> tuple[PyTree, IndividualOptimizersState]:
        check_updates(updates, "individual_optimizers")
        if isinstance(task, str):
            task, active = _by_name(task, active, partition, num_tasks)
        is_index = task is not None and not isinstance(task, bool)
        if not is_index or (is_int(task) and task not in range(num_tasks)):
            raise ValueError(
                f"`task` must be the index of a task, between 0 and {num_tasks - 1}, "
                f"got {task!r}."
            )
        if partition is not None:
            check_same_labels(labels, updates, partition)
        names = label_params(updates, labels)
        if isinstance(state.shared, PerTask):
            for leaf in jax.tree.leaves(state.shared):
                check_state_tasks("individual_optimizers", len(leaf), num_tasks)
        kept = state.shared if share_state else state.shared.take(task)
        moved, kept = advance(
            inner,
            select(updates, names, SHARED),
            kept,
            None if params is None else select(params, names, SHARED),
            (active or {}).get(SHARED),
            **extra_args,
        )
        if not share_state:
            kept = state.shared.put(task, kept)
        others, head_state = heads.update(
            updates, state.heads, params, active=active, **extra_args
        )
        owners = set(jax.tree.leaves(names))
        parts = {label: select(others, names, label) for label in owners}
        parts[SHARED] = moved
        return join(updates, names, parts), IndividualOptimizersState(kept, head_state)

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)


def random_groups(key: int | jax.Array, num_tasks: int, num_groups: int) -> jax.Array:
    """Deals the tasks into groups whose sizes differ by at most one, at random.

    Args:
      key: seed or key.
      num_tasks: number of tasks T.
      num_groups: number of groups, at most T.

    Returns:
      The group of every task, int32 `[tasks]`.

    Raises:
      ValueError: if there are more groups than tasks, or none.

    Examples:
      >>> import jax.numpy as jnp
      >>> jnp.bincount(random_groups(0, num_tasks=7, num_groups=3)).tolist()
      [3, 2, 2]

    References:
      Pascal et al., *Improved optimization strategies for deep multi-task networks*,
      2021, section 3.4.
    """
    check_num_tasks(num_tasks)
    num_groups = as_int("num_groups", num_groups, high=num_tasks)
    dealt = jnp.arange(num_tasks, dtype=jnp.int32) % num_groups
    return jax.random.permutation(as_key(key), dealt)


def individual_step(
    oracle: Oracle,
    optimizer: optax.GradientTransformation,
    num_groups: int | None = None,
    *,
    shuffle: bool = False,
    draws: int | None = None,
) -> Callable[..., tuple[Run, StepOutput]]:
    r"""Builds a training step that lets every task, or group, move in turn.

    Each gradient is taken at the parameters that the task before left, on the same
    batch. A group moves by the gradient of its members' summed loss (equation 8): one
    group of all tasks is a step on the summed loss, groups of one task each are IUS or
    IO.

    In a fixed order the steps are unrolled, unless heads are stacked; then, and in a
    random order, they are a `lax.scan`. With stacked heads that compiles one step
    whatever the number of tasks. Groups are read in the program: each turn runs all
    heads, and without `encode` every task's pass through the network.

    With `draws` each turn belongs to a task, or group, that is drawn uniformly and
    independently of all other turns: the scheme for which Theorem 1 is proved. For the
    fixed order its bound can fail. `draws=1` is one step of one task on each batch. The
    states of all tasks are then copied in every turn.

    A schedule in the optimizer counts a head's own steps and, with a state per task,
    each task's. With one state for all (`share_state=True`), and in a transform chained
    behind, it counts turns, as many to a batch as there are tasks, groups or draws.

    Args:
      oracle: from `task_grad`.
      optimizer: `individual_optimizers` for as many tasks as there are groups, or a
        chain with it.
      num_groups: number of groups; None for one task at a time.
      shuffle: whether the order is drawn anew in every step.
      draws: number of turns, each of a task or group drawn with replacement; None for
        one turn of each.

    Returns:
      `step(run, *args, groups=None, key=None, present=None, **extra_args)`, which
      returns what that of `train_step` does. `groups` `[tasks]`, or a mapping from task
      to group, are numbers (see `random_groups`), needed with `num_groups`; `key` is
      needed to shuffle or draw; absent tasks take no step, have no part in their
      group's, and loss 0; a task without a turn, because it was not drawn or its group
      does not exist, has loss NaN. A task's loss is that before its group's move, the
      mean of them if it was drawn more than once. The encoder's state moves in each
      turn, a head's in its own. `aux` is a list with one `Aux` a turn (None for a task
      that is known at trace time to be absent), and from a scan one `Aux` with a
      leading axis of turns.

    Raises:
      TypeError: if `oracle` is no `mtlopt.Oracle`; at a step, if `run` is no `Run`.
      ValueError: if `num_groups` does not fit the tasks, or `draws` is no positive int
        or comes with `shuffle`; at the first step, if `groups` or `key` is missing or
        not asked for, or `optimizer` has another number of states or other labels than
        the oracle.

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
                "order to shuffle: leave it out."
            )
    optimizer = optax.with_extra_args_support(optimizer)
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
        _check_asked("groups", groups, num_groups is not None)
        _check_asked("key", key, random)
        _check_states(run.opt_state, turns)
        if groups is not None:
            groups = _as_groups(groups, oracle.tasks, turns)
        present = oracle.present(whole, present)

        def turn(run: Run, index: Any) -> tuple[Run, StepOutput]:
            params, opt_state, state = run
            whole = with_state(oracle, args, run)
            members = (np.arange(num_tasks) if groups is None else groups) == index
            moving = members if present is None else members & present
            if isinstance(moving, np.ndarray) and not moving.any():
                # Its functions may not run on this batch; others' updates go on.
                still = jax.tree.map(jnp.zeros_like, params)
                grad = Grad(jnp.zeros([]), still, None, state)
            elif groups is None:
                grad = _task(oracle, index, separate, params, whole)
            else:
                weights = members.astype(float)
                grad = oracle.task(weights, params, *whole, present=present)
            updates, opt_state = optimizer.update(
                grad.grad,
                opt_state,
                params,
                task=index,
                active=oracle.active(params, moving),
                partition=oracle.partition(params),
                **extra_args,
            )
            new_state = keep_finite(run, opt_state, grad.state)
            all_move = groups is None and present is None
            if not all_move and not isinstance(moving, np.ndarray):
                there = jnp.any(moving)  # a turn without a task moves nothing
                new_state = jax.tree.map(
                    lambda new, old: jnp.where(there, new, old), new_state, state
                )
            losses = jnp.where(moving, grad.losses, 0)
            run = Run(optax.apply_updates(params, updates), opt_state, new_state)
            return run, StepOutput(losses, grad.aux)

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
        if groups is not None:  # a task in no group is not overlooked
            in_one = (groups >= 0) & (groups < turns)
            losses = jnp.where(in_one, losses, jnp.nan)
        return run, StepOutput(losses, aux)

    return step


def _by_name(
    task: str,
    active: Mapping[str, Any] | None,
    partition: Partition | None,
    num_states: int,
) -> tuple[int, Mapping[str, Any]]:
    """Returns the index of a task, and which labels its step moves."""
    if partition is None:
        raise ValueError(
            f"`partition` must be given with the name of a task, {task!r}, got None. "
            "Pass partition=oracle.partition(params), or the task's index."
        )
    check_choice("task", task, partition.tasks)
    if len(partition.tasks) != num_states:
        raise ValueError(
            f"`task` must be the index of one of {num_states} states, which are not "
            f"one for each of the tasks {partition.tasks}, got {task!r}."
        )
    members = np.array([name == task for name in partition.tasks])
    alone = partition.active(members) if active is None else active
    return partition.tasks.index(task), alone


def _task(
    oracle: Oracle, index: Any, separate: bool, params: PyTree, args: Any
) -> Grad:
    """The gradient of one task, whose index may be traced."""
    if not separate or isinstance(index, int):
        return oracle.task(index, params, *args)

    def branch(task: int) -> Grad:
        grad = oracle.task(task, params, *args)
        if grad.aux is None:
            return grad
        # Without the task's name, so that all branches return the same structure.
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


def _check_states(opt_state: PyTree, turns: int) -> None:
    state = only_state(opt_state, IndividualOptimizersState, "individual_optimizers")
    if not isinstance(state.shared, PerTask):
        return
    for leaf in jax.tree.leaves(state.shared):
        if len(leaf) != turns:
            raise ValueError(
                f"`optimizer` must be `individual_optimizers` for {turns} tasks or "
                f"groups, one for each turn, got {len(leaf)}."
            )


def _as_groups(groups: Any, tasks: Sequence[str], num_groups: int) -> jax.Array:
    groups = named_vector("groups", groups, tasks)
    if not isinstance(groups, Tracer):
        for group in groups.tolist():
            if not 0 <= group < num_groups:
                raise ValueError(
                    f"`groups` must be between 0 and {num_groups - 1}, got {group}."
                )
    return groups
