"""`Oracle`: losses and gradients of the tasks of one problem."""

import dataclasses
import operator
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.core import Tracer

from mtlopt._checks import (
    as_mask,
    as_task_vector,
    by_task,
    check_choice,
    named_vector,
)
from mtlopt._guard import make_guard
from mtlopt._shards import check_losses
from mtlopt.explanation import StepPlan, explain
from mtlopt.grad import Grad
from mtlopt.heads import Inputs
from mtlopt.labels import Rules
from mtlopt.ownership import check_ownership
from mtlopt.partition import Partition, partition_params
from mtlopt.problems import NO_LATENT, Evaluation, Problem
from mtlopt.rows.members import Members
from mtlopt.task_grads import TaskGrads

PyTree = Any


@dataclasses.dataclass(frozen=True, eq=False)
class Oracle:
    """Computes the per-task gradients of one problem; `task_grad` builds it.

    Every call takes the parameters and then the arguments of the user's functions. Call
    the oracle inside `jax.jit`, so that unused results cost nothing.

    Attributes:
      problem: the problem, in one of the shapes of `task_grad`.
      labels: rules that label the parameters, as they were passed.
      headless: tasks that have no parameters of their own.
      has_state: whether the last argument of a call is the model's state.
      checked: call signatures for which labels and functions are known to agree.
    """

    problem: Problem[Any]
    labels: Rules
    headless: tuple[str, ...]
    has_state: bool
    # Signatures for which labels and functions are known to agree: eager calls need not
    # trace the functions again.
    checked: set[Any] = dataclasses.field(default_factory=set, repr=False)

    @property
    def tasks(self) -> tuple[str, ...]:
        """Names of the tasks, in the order of the losses."""
        return self.problem.tasks

    @property
    def num_tasks(self) -> int:
        """The number of tasks."""
        return len(self.tasks)

    def __call__(self, params: PyTree, *args: Any, present: Any = None) -> TaskGrads:
        """Returns losses and gradients of all tasks, for a chain of transforms.

        Args:
          params: parameters, a pytree of arrays; all except frozen leaves are of
            floating point.
          *args: arguments of the functions: batch, keys, and finally the model's state.
          present: `[tasks]` bool, or a mapping from task to bool: the tasks that have
            labels in this batch. Every method leaves absent tasks out, which differs
            from giving them a zero gradient. Chain `per_label` after the aggregator, so
            that heads of absent tasks do not move. An absent task's loss may be any
            number, even NaN. But the loss must be finite if one function returns all
            losses and marks no latent. If `present` is a NumPy array or made of Python
            bools, the functions of absent tasks do not run: their losses are zero, and
            they have no entry in `aux.tasks`. JAX then compiles a program for each
            pattern of absent tasks.

        Returns:
          `TaskGrads`.
        """
        return self._grads(params, args, present)

    def _grads(
        self,
        params: PyTree,
        args: tuple[Any, ...],
        present: Any,
        moving: jax.Array | None = None,
    ) -> TaskGrads:
        """Returns the gradients; only tasks in `moving` change their state."""
        members = None
        if present is not None:
            present = as_mask("present", present, self.tasks)
            if isinstance(present, np.ndarray):
                members = Members.of(present)
            present = jnp.asarray(present)
        there = self.present(args, present)
        inputs = self._inputs(params, args, members=members)
        masks = [mask for mask in (there, moving) if mask is not None]
        if masks:
            all_masks = jnp.all(jnp.stack(masks), axis=0)
            inputs = dataclasses.replace(inputs, present=all_masks)
        out = self._evaluate(inputs, None if members is None else members.indices)
        losses, linear = out.losses, out.linear
        if members is not None:
            losses, linear = members.spread(losses), linear.spread(members)
        # The program finds the tasks that have samples in the batch when it runs.
        decided = members is not None and self.problem.present(args) is None
        return TaskGrads(
            losses=losses,
            loss_scales=jnp.ones_like(losses),
            present=there,
            aux=out.aux,
            z=out.z,
            head_grads=out.head_grads,
            linear=linear,
            losses_at=jax.tree_util.Partial(self._losses_at, members, args),
            guard=make_guard(),
            partition=inputs.partition,
            frozen=inputs.frozen,
            members=members if decided else None,
            state=out.state,
        )

    def losses(self, params: PyTree, *args: Any) -> jax.Array:
        """Returns the losses `[tasks]` of a forward pass."""
        return self.problem.losses(self._inputs(params, args))

    def task(self, task: Any, params: PyTree, *args: Any, present: Any = None) -> Grad:
        """Returns the gradient of one task's loss, or of a group's summed loss.

        Args:
          task: name or index of a task, or weights. For a name or an index, only this
            task's loss runs, so `args` may be a batch of that task alone; the index may
            be traced if heads are stacked. Weights, `[tasks]` or by name, give the
            gradient of a weighted sum, for example over the members of a group. With
            weights, all heads run; without `encode`, every task's pass through the
            network runs as well.
          params: parameters.
          *args: arguments of the functions.
          present: `[tasks]` bool as in `__call__`; only for weights.

        Returns:
          A `Grad`: the task's loss (with weights, all losses) and the gradient, which
          is zero for the heads of other tasks.
        """
        if isinstance(task, Mapping | list | tuple):
            task = named_vector("task", task, self.tasks)
        elif isinstance(task, str):
            check_choice("task", task, self.tasks)
            task = self.tasks.index(task)
        elif jnp.ndim(task) == 0 and not isinstance(task, Tracer):
            if not jnp.issubdtype(jnp.result_type(task), jnp.integer):
                raise TypeError(
                    f"`task` must be a name, an index or weights [tasks], got {task!r}."
                )
            task = operator.index(task)
        if jnp.ndim(task) == 1:
            weights = as_task_vector("task", task, self.num_tasks)
            grads = self._grads(params, args, present, moving=weights != 0)
            grads = grads.scale_by(weights)
            return Grad(grads.losses, grads.total(), grads.aux, grads.state)
        if isinstance(task, int) and not 0 <= task < self.num_tasks:
            raise ValueError(
                f"`task` must be between 0 and {self.num_tasks - 1}, got {task}."
            )
        if not isinstance(task, int) and not self.problem.takes_traced_task:
            raise ValueError(
                "`task` must be a Python int, a name, or weights [tasks] unless heads "
                "are stacked, got a traced index. Choose the task in Python, or write "
                "the heads as mtlopt.stacked(...)."
            )
        one = Members((task,), self.num_tasks) if isinstance(task, int) else None
        inputs = self._inputs(params, args, members=one)
        if self.has_state:  # state of other tasks does not change
            alone = jnp.arange(self.num_tasks) == task
            inputs = dataclasses.replace(inputs, present=alone)
        out = self._evaluate(inputs, [task])
        one = jnp.ones_like(out.losses)
        direction = out.linear.combine(one, one, None)
        update = inputs.update(direction, out.head_grads)
        return Grad(out.losses[0], update, out.aux, out.state)

    def block(
        self, block: str, params: PyTree, *args: Any, present: Any = None
    ) -> Grad:
        """Returns the summed loss's gradient with respect to one block of leaves.

        Under `jit`, the gradient of the other block is never computed: for `"task"` the
        encoder runs forward only.

        Args:
          block: `"shared"`, or `"task"` for all heads.
          params: parameters.
          *args: arguments of the functions.
          present: `[tasks]` bool, see `__call__`.

        Returns:
          A `Grad`: all losses, and the gradient, which is zero in the other block.
        """
        check_choice("block", block, ("shared", "task"))
        grads = self(params, *args, present=present)
        shared, head_params, _ = grads.partition.split(params)
        if block == "task":
            zeros = [jnp.zeros_like(leaf) for leaf in shared]
            return Grad(grads.losses, grads.updates(zeros), grads.aux, grads.state)
        moving, _, frozen = grads.partition.split(grads.total())
        still = [jnp.zeros_like(leaf) for leaf in head_params]
        update = grads.partition.merge(moving, still, frozen)
        return Grad(grads.losses, update, grads.aux, grads.state)

    def heads(self, params: PyTree, z: PyTree, *args: Any) -> Grad:
        """Evaluates the heads at a given latent; returns their losses and gradients.

        Args:
          params: parameters; shared leaves are not read.
          z: a latent, as `encode` returns it.
          *args: arguments of the losses.

        Returns:
          A `Grad`: all losses, and the gradient, which is zero for the shared leaves.

        Raises:
          ValueError: if the problem has no latent.
        """
        self._check_latent()
        inputs = self._inputs(params, args, z)
        out = self.problem.heads_at(inputs, z)
        check_losses(out.losses, (inputs.shared, inputs.head_params))
        zeros = [jnp.zeros_like(leaf) for leaf in inputs.shared]
        update = inputs.update(zeros, out.head_grads)
        return Grad(out.losses, update, out.aux, out.state)

    def present(self, args: tuple[Any, ...], given: Any = None) -> Any:
        """Returns which tasks have labels in a batch, bool `[tasks]`; None for all.

        Args:
          args: arguments of the functions.
          given: the tasks that the caller says are present, `[tasks]` bool, or a
            mapping from task to bool; None for all.
        """
        if given is not None:
            given = as_mask("present", given, self.tasks)
        there = self.problem.present(args)
        if there is None or given is None:
            return given if there is None else there
        return there & given

    def active(self, params: PyTree, members: Any) -> dict[str, Any]:
        """Returns which labels move in a step of the given tasks, for `per_label`.

        Args:
          params: parameters.
          members: bool `[tasks]`, the tasks of the step. If it is a NumPy array, the
            result is known at trace time.

        Returns:
          A mapping from label to bool; pass it to `per_label` as `active`.
        """
        members = as_mask("members", members, self.tasks)
        return self.partition(params).active(members)

    def explain(
        self,
        params: PyTree,
        *args: Any,
        present: Any = None,
        method: optax.GradientTransformation | None = None,
    ) -> StepPlan:
        """Returns how each shared leaf's gradients are computed, and the step's memory.

        The step is compiled but does not run, so you may pass shapes instead of arrays.

        Args:
          params: parameters.
          *args: arguments of the functions.
          present: as in `__call__`; pass Python bools or a NumPy array.
          method: an aggregator, or a chain with one. By default the step computes the
            Gramian (inner products of all tasks' gradients) and one combination, like
            all methods that need only a Gramian.

        Returns:
          A `StepPlan`. If a method reads entries of the rows (the tasks' gradients),
          the step computes the rows of every leaf.

        Examples:
          >>> import jax.numpy as jnp
          >>> import mtlopt
          >>> oracle = mtlopt.task_grad(
          ...     {task: lambda params, z, x: jnp.mean(z**2) for task in ("a", "b")},
          ...     "shared",
          ...     encode=lambda params, x: x @ params["kernel"],
          ...     layerwise=True,
          ... )
          >>> params = {"kernel": jnp.ones((64, 32))}
          >>> plan = oracle.explain(params, jnp.ones((4, 64)))
          >>> plan.leaves[0].layerwise, plan.leaves[0].sizes
          (True, (4, 64, 32))
          >>> print(plan)
          leaf    shape    way        positions  reason
          kernel  64 x 32  layerwise  4
          ... MiB in addition to arguments (... MiB) and results (... MiB)
        """

        def step(params: PyTree, *args: Any) -> tuple[Any, Any]:
            grads = self(params, *args, present=present)
            leaves = grads.linear.plan(grads.partition.shared_paths)
            if method is not None:
                state = method.init(params)
                return method.update(grads, state, params)[0], leaves
            rows = grads.rows()
            weights = jnp.sum(rows.scaled_gramian(grads.present).matrix, axis=0)
            return grads.updates(rows.combine(weights)), leaves

        leaves, counts = explain(step, params, *args)
        return StepPlan(leaves, *counts)

    def named(self, values: PyTree, axis: int = 0) -> dict[str, PyTree]:
        """Splits arrays with a task axis into entries by task, for example to log them.

        Args:
          values: a pytree of arrays, such as losses or `task_weights`, `[tasks, ...]`.
          axis: the axis of the tasks, such as -1 for a history of losses.
        """
        return by_task(self.tasks, values, axis)

    def partition(self, params: PyTree) -> Partition:
        """Returns the partition by label, after checking labels, leaves and tasks."""
        return partition_params(
            params,
            self.labels,
            self.tasks,
            stacked=self.problem.stacked,
            headless=self.headless,
        )

    def _check_latent(self) -> None:
        if not self.problem.has_latent:
            raise ValueError(NO_LATENT)

    def _losses_at(
        self,
        members: Members | None,
        args: tuple[Any, ...],
        params: PyTree,
        z: PyTree = None,
    ) -> jax.Array:
        if z is not None:
            self._check_latent()
        inputs = self._inputs(params, args, z, members)
        if members is None:
            return self.problem.losses(inputs, z)
        return members.spread(self.problem.losses(inputs, z, members.indices))

    def _inputs(
        self,
        params: PyTree,
        args: tuple[Any, ...],
        z: PyTree = None,
        members: Members | None = None,
    ) -> Inputs:
        """Splits the parameters by label, after checking them against the functions.

        If a latent `z` is given, `encode` does not run and need not accept the
        arguments. The functions of tasks outside of `members` need not accept them
        either.
        """
        partition = self.partition(params)
        inputs = Inputs(*partition.split(params), args, partition)
        signature = (partition, _avals(params), _avals(args), _avals(z))
        if self.checked.isdisjoint({(*signature, None), (*signature, members)}):
            some = None if members is None else members.indices
            check_ownership(self.problem, partition, params, args, z, some)
            self.checked.add((*signature, members))
        return inputs

    def _evaluate(self, inputs: Inputs, members: Any) -> Evaluation[Any]:
        out = self.problem.evaluate(inputs, None, members)
        check_losses(out.losses, (inputs.shared, inputs.head_params))
        return out


def _avals(tree: PyTree) -> tuple[Any, ...]:
    leaves, treedef = jax.tree.flatten(tree)
    return treedef, *(
        (jnp.shape(leaf), jnp.result_type(leaf)) if hasattr(leaf, "dtype") else leaf
        for leaf in leaves
    )
