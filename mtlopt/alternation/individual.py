"""Optimizer states for the shared leaves: one per task (IO), or one for all (IUS)."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from mtlopt._checks import (
    as_int,
    as_key,
    check_choice,
    check_num_tasks,
    check_state_tasks,
    is_int,
)
from mtlopt.alternation.per_task import PerTask
from mtlopt.grad import check_no_grad
from mtlopt.labels import SHARED, Rules, label_params
from mtlopt.partition import Partition, check_params, check_same_labels
from mtlopt.per_label import advance, join, per_label, select
from mtlopt.task_grads import TaskGrads

PyTree = Any


class IndividualOptimizersState(NamedTuple):
    """State of `individual_optimizers`.

    Attributes:
      shared: state for the shared leaves. If each task has its own state, `shared` is a
        `PerTask`, whose leaves have a leading axis of tasks (or groups).
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
    r"""Gives each task its own optimizer state for the shared parameters.

    .. math:: w^{(k)} = w^{(k-1)} - \eta \, m^{(k)}(g^{(k)}(w^{(k-1)})),
        \qquad k = 1, \dots, T

    Tasks move the shared parameters in turn. With one moving average `m` for all tasks
    (`share_state=True`, called IUS in the paper), a task's step also follows the
    gradients of other tasks. With one `m` per task (called IO), a task's step follows
    only its own gradients. For an optimizer without memory, IUS and IO are the same. A
    head moves only on its own task's turn, with its own state, as in `per_label`. (The
    authors use one Adam for all parameters, so in their IUS, momentum also moves the
    heads of other tasks.)

    `update` takes the gradient of one task or group (`oracle.task`), and three
    keywords, which `individual_step` passes. `task` is the index of the state to use;
    it may be traced. `active` is a mapping from label to bool and says which labels
    move. `partition` is the partition of an oracle (`oracle.partition(params)`). If you
    pass it, `task` may be a name, and the transform raises an error if the labels of
    the partition differ from `labels`. With a name, only that task's head moves by
    default; `active` can change this.

    IO keeps T states of the shared leaves instead of one. With Adam, the T states take
    2 T times the memory of the leaves. With groups of tasks, there is one state per
    group.

    Args:
      inner: any Optax optimizer.
      num_tasks: number of states, which is the number of tasks or of groups of tasks.
      labels: which leaf is shared and which belongs to which task, see `label_params`.
      share_state: whether all tasks use one state for the shared leaves.

    Returns:
      A transform.

    Raises:
      ValueError: if `update` gets no `task`, or a Python index is out of range.

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
    # This transform moves the shared leaves, and `per_label` moves the heads.
    heads = per_label(
        lambda label: optax.set_to_zero() if label == SHARED else inner, labels
    )

    def init_fn(params: PyTree) -> IndividualOptimizersState:
        check_params(params)
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
        if isinstance(updates, TaskGrads):
            raise TypeError(
                "`updates` must be the gradient of one task, got TaskGrads. Use "
                "mtlopt.individual_step in place of train_step, without an aggregator."
            )
        check_no_grad(updates, "individual_optimizers")
        if isinstance(task, str):
            task, active = _by_name(task, active, partition, num_tasks)
        is_index = task is not None and not isinstance(task, bool)
        if not is_index or (is_int(task) and task not in range(num_tasks)):
            raise ValueError(
                f"`task` must be the index of a task, between 0 and {num_tasks - 1}, "
                f"got {task!r}. mtlopt.individual_step passes the index."
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
    """Deals the tasks at random into groups whose sizes differ by at most one.

    Args:
      key: seed or key.
      num_tasks: number of tasks T.
      num_groups: number of groups, at most T.

    Returns:
      The group of every task, int32 `[tasks]`.

    Raises:
      ValueError: if there are more groups than tasks, or no groups.

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


def _by_name(
    task: str,
    active: Mapping[str, Any] | None,
    partition: Partition | None,
    num_states: int,
) -> tuple[int, Mapping[str, Any]]:
    """Returns the index of a task, and the labels that its step moves."""
    if partition is None:
        raise ValueError(
            f"`partition` must be given with the name of a task, {task!r}, got None. "
            "Pass partition=oracle.partition(params), or the task's index."
        )
    check_choice("task", task, partition.tasks)
    if len(partition.tasks) != num_states:
        raise ValueError(
            f"`task` must be the index of one of {num_states} states, got {task!r}. "
            "The name of a task needs one state for each of the tasks "
            f"{partition.tasks}."
        )
    members = np.array([name == task for name in partition.tasks])
    alone = partition.active(members) if active is None else active
    return partition.tasks.index(task), alone
