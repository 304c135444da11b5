"""Groups tasks by the effect of their steps on each other's losses."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from mtlopt._checks import (
    as_int,
    as_key,
    as_transform,
    check_fraction,
    check_num_tasks,
    check_state_tasks,
)
from mtlopt.alternation.turn import check_states, move
from mtlopt.linalg.normalise import safe_divide
from mtlopt.oracle import Oracle
from mtlopt.step import Run, StepOutput, check_names, check_oracle, with_state

PyTree = Any


class AffinityState(NamedTuple):
    """State of `affinity_step`.

    Attributes:
      affinity: `[tasks, tasks]`, moving averages: entry (i, k) says how much a step of
        task i lowers the loss of task k.
      groups: int32 `[tasks]`, the group of every task in the next step. A group is
        named by the index of its first member.
      count: number of steps so far, int32.
    """

    affinity: jax.Array
    groups: jax.Array
    count: jax.Array

    @classmethod
    def alone(cls, num_tasks: int) -> "AffinityState":
        """Returns the initial state, in which every task forms its own group.

        Args:
          num_tasks: number of tasks.
        """
        check_num_tasks(num_tasks)
        groups = jnp.arange(num_tasks, dtype=jnp.int32)
        return cls(jnp.zeros((num_tasks,) * 2), groups, jnp.zeros([], jnp.int32))


def affinity_groups(affinity: jax.Array) -> jax.Array:
    r"""Puts tasks that help each other on average into groups.

    .. math:: s_{ik} = \frac12 \Big(\frac{B_{ik}}{B_{kk}} + \frac{B_{ki}}{B_{ii}}\Big)

    :math:`s_{ik}` is the mutual affinity of two tasks, in units of the effect that each
    task's step has on its own loss. A quotient whose denominator is not positive counts
    as zero. Each task begins alone. Step by step, the two groups with the largest mean
    :math:`s` between their tasks merge, as long as that mean is positive. If affinities
    are positive within some groups and negative between them, the function finds these
    groups.

    Args:
      affinity: `B`, `[tasks, tasks]`; entry (i, k) is the effect of task i on task k.

    Returns:
      int32 `[tasks]`: the group of every task, named by the index of the group's first
      member. The mask `[groups, tasks]` of the groups is
      `groups == jnp.arange(len(groups))[:, None]`. The row of an index that
      names no group is False.

    Raises:
      ValueError: if `affinity` is not a square matrix.

    Examples:
      >>> import jax.numpy as jnp
      >>> affinity = jnp.array([[1.0, -0.2, 0.5], [-0.2, 1.0, 0.1], [0.5, 0.1, 1.0]])
      >>> print(affinity_groups(affinity))
      [0 1 0]

    Note:
      The authors' code runs affinity propagation on :math:`s`, with the median of
      :math:`s` as the preference. Affinity propagation may fail to converge, and it
      ignores the signs of :math:`s`. This function uses the signs to form the groups.
    """
    affinity = jnp.asarray(affinity)
    if affinity.ndim != 2 or len(set(affinity.shape)) != 1:
        raise ValueError(
            "`affinity` must have one row and one column for each task, got shape "
            f"{affinity.shape}."
        )
    num_tasks = len(affinity)
    units = jnp.maximum(jnp.diagonal(affinity), 0)[None]
    share = jnp.where(units > 0, safe_divide(affinity, units), 0)
    mutual = (share + share.T) / 2
    names = jnp.arange(num_tasks, dtype=jnp.int32)

    def join(_: Any, groups: jax.Array) -> jax.Array:
        mask = (groups[None] == names[:, None]).astype(mutual.dtype)
        total = jnp.einsum(
            "gi,ik,hk->gh", mask, mutual, mask, precision=jax.lax.Precision.HIGHEST
        )
        sizes = jnp.sum(mask, axis=1)
        pairs = jnp.outer(sizes, sizes)
        is_pair = (names[:, None] < names[None]) & (pairs > 0)
        mean = jnp.where(is_pair, safe_divide(total, pairs), -jnp.inf)
        first, second = jnp.divmod(jnp.argmax(mean), num_tasks)
        joined = jnp.where(groups == second, first, groups).astype(jnp.int32)
        return jnp.where(jnp.max(mean) > 0, joined, groups)

    return jax.lax.fori_loop(0, num_tasks - 1, join, names)


def affinity_step(
    oracle: Oracle,
    optimizer: optax.GradientTransformation,
    *,
    decay: float = 1e-3,
    warmup: int = 100,
) -> Callable[..., tuple[Run, AffinityState, StepOutput]]:
    r"""Builds a step in which groups of tasks move in turn; it also finds the groups.

    .. math:: B_{ik} \leftarrow (1 - \beta) B_{ik} + \beta \, b_{ik}, \qquad
        b_{ik} = \frac{1}{|G|} \Big(1 - \frac{L_k(\theta^+)}{L_k(\theta)}\Big)

    :math:`b_{ik}` is the proximal inter-task affinity. Task `i` is in the group `G`.
    The group's step on its summed loss leads from :math:`\theta` to :math:`\theta^+`.
    :math:`\theta` includes the head of task `k`, which moves if `k` is in `G`. If two
    tasks of one group have :math:`b_{ii}` and :math:`b_{ik}` of different signs,
    :math:`-\max(b_{ii}, b_{ik})` replaces :math:`b_{ik}`. A negative :math:`b_{ii}`
    does not change :math:`B_{ii}`. The next step uses the `affinity_groups` of
    :math:`B`.

    Every member of a group is credited with the whole step of the group. So as long
    as the losses of a group fall, its tasks stay together, even if they no longer help
    each other. Groups therefore merge more easily than they split.

    In a step, each group has one turn, and one forward pass follows the last turn. Each
    turn costs a forward and a backward pass of the encoder and all heads. The turns are
    a loop whose length is unknown when the program is compiled. On a CPU, a `lax`
    convolution is many times slower in such a loop than outside.

    Args:
      oracle: an oracle from `task_grad`.
      optimizer: `individual_optimizers` with as many states as the oracle has tasks, or
        a chain with it. A group uses the state of its first member. With
        `share_state=True`, as in the authors' code, all tasks use one state, so a
        change of groups does not matter.
      decay: :math:`\beta`, between 0 and 1.
      warmup: number of steps at the beginning in which every task has its own turn.

    Returns:
      `step(run, affinity, *args, key=None, present=None, **extra_args)`. It returns the
      next run, the next `AffinityState`, and a `StepOutput`. Begin with
      `AffinityState.alone(num_tasks)`. Groups move in the order of their first members
      or, with `key`, in a random order. The losses in the output are the losses before
      each group's move, as in `individual_step`. `aux` has a leading axis of turns, one
      for each task, with zeros for turns that did not take place. :math:`B_{ik}` does
      not change if task `i` or `k` is absent, if :math:`L_k(\theta)` is not positive,
      or if :math:`b_{ik}` is not finite.

    Raises:
      TypeError: if `oracle` is not an `mtlopt.Oracle`.
      ValueError: if `decay` or `warmup` is out of its range; at a step, if `affinity`
        or `optimizer` is for another number of tasks.

    Examples:
      >>> import jax, jax.numpy as jnp
      >>> import mtlopt, optax
      >>> targets = {"a": 2.0, "b": 1.5, "c": -2.0}
      >>> oracle = mtlopt.task_grad(
      ...     {task: lambda w, y=y: (w - y) ** 2 for task, y in targets.items()},
      ...     "shared",
      ... )
      >>> tx = mtlopt.individual_optimizers(optax.sgd(0.01), 3, "shared")
      >>> step = jax.jit(mtlopt.affinity_step(oracle, tx, warmup=5))
      >>> run = mtlopt.Run(jnp.array(0.0), tx.init(jnp.array(0.0)))
      >>> affinity = mtlopt.AffinityState.alone(3)
      >>> for _ in range(10):
      ...     run, affinity, output = step(run, affinity)
      >>> print(affinity.groups)
      [0 0 2]

    References:
      Jeong and Yoon, *Selective task group updates for multi-task optimization*, ICLR
      2025, https://arxiv.org/abs/2502.11986. The rule within a group, `decay` and
      `warmup` come from the authors' code.

    Note:
      The authors' code credits each group with the change that the previous group made,
      and never measures the change that the last group makes. Here a forward pass at
      the end measures it.
    """
    check_oracle(oracle)
    check_fraction("decay", decay)
    warmup = as_int("warmup", warmup, low=0)
    optimizer = as_transform("optimizer", optimizer)
    num_tasks = oracle.num_tasks

    def step(
        run: Run,
        affinity: AffinityState,
        *args: Any,
        key: Any = None,
        present: Any = None,
        **extra_args: Any,
    ) -> tuple[Run, AffinityState, StepOutput]:
        check_state_tasks("affinity_step", len(affinity.groups), num_tasks)
        check_states(run.opt_state, num_tasks)
        check_names(extra_args, "key")
        present = oracle.present(with_state(oracle, args, run), present)
        if present is not None:
            present = jnp.asarray(present)
        groups, names = affinity.groups, jnp.arange(num_tasks)
        is_first = groups == names
        place = names if key is None else jax.random.permutation(as_key(key), names)
        order = jnp.argsort(jnp.where(is_first, place, num_tasks))

        def turn(run: Run, index: Any) -> tuple[Run, Any]:
            members = groups == index
            moving = members if present is None else members & present
            whole = with_state(oracle, args, run)
            weights = members.astype(float)
            grad = oracle.task(weights, run.params, *whole, present=present)
            all_move = present is None
            run = move(
                oracle, optimizer, run, grad, index, moving, all_move, extra_args
            )
            return run, (grad.losses, grad.aux)

        def body(number: Any, carry: Any) -> Any:
            run, outs = carry
            run, out = turn(run, order[number])
            return run, jax.tree.map(
                lambda all_, one: all_.at[number].set(one), outs, out
            )

        shapes = jax.eval_shape(turn, run, order[0])[1]
        outs = jax.tree.map(lambda s: jnp.zeros((num_tasks, *s.shape), s.dtype), shapes)
        num_turns = jnp.sum(is_first)
        run, (losses, aux) = jax.lax.fori_loop(0, num_turns, body, (run, outs))
        end = oracle.losses(run.params, *with_state(oracle, args, run))
        starts = jnp.where((names < num_turns)[:, None], losses, end[None])
        ends = jnp.concatenate([starts[1:], end[None]])
        turns = jnp.argsort(order)[groups]  # the turn of every task
        matrix = _moving_average(
            affinity.affinity, starts[turns], ends[turns], groups, present, decay
        )
        count = jnp.asarray(optax.safe_increment(affinity.count))
        found = jnp.where(
            count < warmup, names.astype(jnp.int32), affinity_groups(matrix)
        )
        before = jnp.diagonal(starts[turns])
        if present is not None:
            before = jnp.where(present, before, 0)
        return run, AffinityState(matrix, found, count), StepOutput(before, aux)

    return step


def _moving_average(
    affinity: jax.Array,
    before: jax.Array,
    after: jax.Array,
    groups: jax.Array,
    present: jax.Array | None,
    decay: Any,
) -> jax.Array:
    """Returns the affinities after a step.

    Args:
      affinity: affinities before the step, `[tasks, tasks]`.
      before: losses of all tasks before the turn of each task, `[tasks, tasks]`.
      after: losses of all tasks after the turn of each task, `[tasks, tasks]`.
      groups: see `AffinityState`.
      present: the tasks with labels; None for all.
      decay: weight of the new affinities.
    """
    there = jnp.ones(len(groups), bool) if present is None else present
    together = groups[:, None] == groups[None]
    size = jnp.sum(together & there[None], axis=1, keepdims=True)
    change = safe_divide(1 - safe_divide(after, before), size.astype(before.dtype))
    own, is_own = jnp.diagonal(change)[:, None], jnp.eye(len(groups), dtype=bool)
    disagree = together & (change * own < 0)
    change = jnp.where(disagree, -jnp.maximum(change, own), change)
    seen = there[None] & there[:, None] & (before > 0) & jnp.isfinite(change)
    seen &= ~(is_own & (change < 0))
    new = (1 - decay) * affinity + decay * change.astype(affinity.dtype)
    return jnp.where(seen, new, affinity)
