"""`task_grad`: from loss functions to an oracle of per-task gradients.

All problem shapes become one: a latent, a pullback from it to the shared leaves, and T
gradients with respect to it.

1. `encode` and one head per task: the latent is what `encode` returns.
2. One function that returns all losses: the latent is the vector of losses, its rows
   the identity.
3. One loss per task without `encode`: the latent is the shared leaves themselves, the
   pullback the identity.
4. One task per sample: every sample has a latent, and the gradients of all tasks with
   respect to them fit in one.
"""

import dataclasses
import operator
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.core import Tracer

from mtlopt._checks import (
    as_int,
    as_mask,
    as_task_vector,
    by_task,
    check_choice,
    named_vector,
)
from mtlopt._guard import make_guard
from mtlopt._shards import check_losses
from mtlopt.explanation import StepPlan, explain, plan_leaves
from mtlopt.grad import Grad
from mtlopt.heads import Inputs, Stacked
from mtlopt.labels import Partition, Rules, check_task_names, partition_params
from mtlopt.linearization import RowOptions
from mtlopt.make_problem import make_problem
from mtlopt.microbatches import Microbatches
from mtlopt.ownership import check_ownership
from mtlopt.problems import NO_LATENT, Evaluation, Problem
from mtlopt.rows.map_tasks import Batching
from mtlopt.rows.members import Members
from mtlopt.samples import Samplewise
from mtlopt.task_grads import TaskGrads

PyTree = Any


def task_grad(
    losses: Mapping[str, Callable[..., Any]]
    | Stacked
    | Samplewise
    | Callable[..., Any],
    labels: Rules,
    *,
    encode: Callable[..., Any] | None = None,
    tasks: Sequence[str] | None = None,
    has_aux: bool = False,
    headless: Sequence[str] = (),
    batching: Batching = "auto",
    streaming: bool = False,
    layerwise: bool | Literal["auto"] = "auto",
    microbatches: int = 1,
    label_counts: Callable[..., Any] | None = None,
) -> "Oracle":
    """Builds the oracle of a problem's per-task gradients.

    Call it inside the `jax.jit` of the training step: it hands a linearised network to
    the optimizer, and XLA deletes what the chosen method does not read.

    Args:
      losses: the losses, in one of five forms.

        * With `encode`, a mapping from task to `loss(params, z, *args) -> scalar`. A
          loss may read its own task's leaves only; what it needs of shared leaves
          reaches it in `z`.
        * `stacked(head, num_tasks)`: one such function for all tasks.
        * Without `encode`, a mapping from task to `loss(params, *args) -> scalar`, each
          with its own use of the shared leaves. Tasks have no common latent.
        * `samplewise(losses, task_of)`, with losses in the first or the second form,
          where each sample of the batch belongs to one task.
        * One function `losses(params, *args)` that returns all losses, as a mapping, a
          sequence, or a vector made by stacking scalars; name them by `tasks`.
      labels: who owns which leaf, see `label_params`. Leaves labelled `"frozen"` are
        read by any function and may have any dtype; they have no rows, and updates of
        zeros.
      encode: `encode(params, *args) -> z`, any pytree; reads shared leaves only.
      tasks: names of the tasks, where `losses` is one function or stacked heads.
      has_aux: whether `encode` and every loss return a pair `(value, aux)`, for example
        new BatchNorm statistics, which thus move once a step.
      headless: tasks that have no parameters of their own although others do.
      batching: how the T pullbacks are run: `"unroll"`, `"vmap"`, `"map"` or a number
        of tasks at a time; `"auto"` chooses by platform and number of tasks.
      streaming: recompute rows instead of keeping them, so that methods on the Gramian
        need memory for two gradients instead of T. Needs a problem of shape 1, 2 or 4.
      layerwise: whether inner products and combinations of rows are taken layer by
        layer, without a weight gradient per task: exact, and less work and memory for
        dense kernels wider than the batch has rows. True for each leaf for which it is
        fewer operations, False for none; `"auto"` is True on one CPU device and False
        elsewhere. Leave it False for a batch that lies in parts on several devices.
        `Oracle.explain` tells which leaf went which way.
      microbatches: number of equal parts in which the first of `args` is evaluated, cut
        along the leading axis of its leaves: pass the batch as one pytree. Part i has
        rows i, i + k, i + 2 k, ... of k parts. Typed PRNG keys among the other
        arguments are folded with the index of the part (legacy uint32 keys are not);
        aux gets a leading axis of parts (what it says of single samples, `[parts, rows,
        ...]`, is in the batch's order with these two axes exchanged). `losses`, `heads`
        and `losses_at` run on the whole batch.
      label_counts: `label_counts(*args) -> [tasks]`, or a mapping from task to number:
        labels of each task in a part, for losses that are means over the labelled
        samples. Default: equal parts; of `samplewise` losses their weights.

    Returns:
      An `Oracle`: frozen and hashable.

    Raises:
      TypeError: if an argument has the wrong type.
      ValueError: if an argument has a wrong value; later, at the first call with such
        parameters, if labels, leaves and functions do not agree.

    Examples:
      >>> import jax.numpy as jnp
      >>> import mtlopt
      >>> params = {"trunk": jnp.array([1.0, 2.0]), "up": 3.0, "down": 4.0}
      >>> oracle = mtlopt.task_grad(
      ...     {
      ...         "up": lambda params, z, x: params["up"] * z,
      ...         "down": lambda params, z, x: -params["down"] * z,
      ...     },
      ...     {"trunk": "shared", "up": "up", "down": "down"},
      ...     encode=lambda params, x: jnp.vdot(params["trunk"], x),
      ... )
      >>> grads = oracle(params, jnp.array([1.0, 1.0]))
      >>> grads.losses
      Array([  9., -12.], dtype=float32)
      >>> grads.jacobian()["trunk"]
      Array([[ 3.,  3.],
             [-4., -4.]], dtype=float32)
    """
    if isinstance(batching, str):
        check_choice("batching", batching, ("auto", "unroll", "vmap", "map"))
    else:
        batching = as_int("batching", batching)
    microbatches = as_int("microbatches", microbatches)
    if streaming and microbatches > 1:
        raise ValueError(
            "`streaming` must be False with several microbatches, got True: rows are "
            "summed over the parts and must be kept. Methods in latent space need none."
        )
    if layerwise not in (True, False, "auto"):
        raise ValueError(
            f"`layerwise` must be True, False or 'auto', got {layerwise!r}."
        )
    if streaming and layerwise is True:
        raise ValueError(
            "`layerwise` must be False or 'auto' with streaming=True, got True: it "
            "keeps a factor of every task's gradient, streaming keeps nothing."
        )
    options = RowOptions(batching, streaming, layerwise)
    problem: Problem[Any] = make_problem(losses, encode, tasks, has_aux, options)
    check_task_names(problem.tasks)
    for name in headless:
        check_choice("headless", name, problem.tasks)
    if microbatches > 1:
        label_counts = label_counts or problem.label_counts
        problem = Microbatches(problem, microbatches, label_counts)
    return Oracle(problem=problem, labels=labels, headless=tuple(headless))


@dataclasses.dataclass(frozen=True, eq=False)
class Oracle:
    """Per-task gradients of one problem: built by `task_grad`.

    Every call takes the parameters and then the arguments of the user's functions, and
    is meant to run inside `jax.jit`, where what nobody reads costs nothing.
    """

    problem: Problem[Any]
    labels: Rules
    headless: tuple[str, ...]
    # Signatures at which labels and functions were found to agree: eager calls need
    # not trace the functions again for it.
    checked: set[Any] = dataclasses.field(default_factory=set, repr=False)

    @property
    def tasks(self) -> tuple[str, ...]:
        """Names of the tasks, in the order of the losses."""
        return self.problem.tasks

    @property
    def num_tasks(self) -> int:
        """Number of tasks."""
        return len(self.tasks)

    def __call__(self, params: PyTree, *args: Any, present: Any = None) -> TaskGrads:
        """Returns losses and gradients of all tasks, for a chain of transforms.

        Args:
          params: parameters, a pytree of arrays, of floating point unless frozen.
          *args: arguments of the functions: batch, keys, model state.
          present: `[tasks]` bool, or a mapping from task to bool: the tasks that have
            labels in this batch. Every method leaves absent tasks out, which is not
            the same as a zero gradient; chain `per_label` behind the aggregator to
            keep their heads still. What an absent task's loss computes to does not
            matter, NaN included, except where one function returns all losses: there
            it must be finite. If it is made of Python bools or is a NumPy array, the
            functions of absent tasks are not run: their losses are zero, and they have
            no entry in `aux.tasks`. Each pattern then has a program of its own.

        Returns:
          `TaskGrads`.
        """
        members = None
        if present is not None:
            present = as_mask("present", present, self.tasks)
            if isinstance(present, np.ndarray):
                members = Members.of(present)
            present = jnp.asarray(present)
        inputs = self._inputs(params, args, members=members)
        out = self._evaluate(inputs, None if members is None else members.indices)
        losses, linear = out.losses, out.linear
        if members is not None:
            losses, linear = members.spread(losses), linear.spread(members)
        # Who has samples in the batch is known when the program runs.
        decided = members is not None and self.problem.present(args) is None
        return TaskGrads(
            losses=losses,
            loss_scales=jnp.ones_like(losses),
            present=self.present(args, present),
            aux=out.aux,
            z=out.z,
            head_grads=out.head_grads,
            linear=linear,
            losses_at=jax.tree_util.Partial(self._losses_at, members, args),
            guard=make_guard(),
            partition=inputs.partition,
            frozen=inputs.frozen,
            members=members if decided else None,
        )

    def losses(self, params: PyTree, *args: Any) -> jax.Array:
        """Returns the losses `[tasks]` of a forward pass."""
        return self.problem.losses(self._inputs(params, args))

    def task(self, task: Any, params: PyTree, *args: Any, present: Any = None) -> Grad:
        """Returns the gradient of one task's loss, or of a group's summed loss.

        Args:
          task: name or index of a task, whose loss is the only one that is run or
            traced: `args` may be a batch of that task alone. The index may be traced
            where heads are stacked. Or weights, `[tasks]` or by name, such as the
            members of a group: the gradient of the weighted sum. All heads run for it,
            and in a problem without `encode` every task's pass through the network.
          params: parameters.
          *args: arguments of the functions.
          present: with weights, `[tasks]` bool as in `__call__`.

        Returns:
          A `Grad`: the task's loss, or all losses for weights, and the gradient, zero
          at the heads of other tasks.
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
            grads = self(params, *args, present=present).scale_by(weights)
            return Grad(grads.losses, grads.total(), grads.aux)
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
        out = self._evaluate(inputs, [task])
        one = jnp.ones_like(out.losses)
        direction = out.linear.combine(one, one, None)
        return Grad(out.losses[0], inputs.update(direction, out.head_grads), out.aux)

    def block(
        self, block: str, params: PyTree, *args: Any, present: Any = None
    ) -> Grad:
        """Returns the summed loss's gradient over one block of leaves.

        Under `jit` the other block's gradient is never built: for `"task"` the encoder
        runs forward only.

        Args:
          block: `"shared"`, or `"task"` for all heads.
          params: parameters.
          *args: arguments of the functions.
          present: `[tasks]` bool, see `__call__`.

        Returns:
          A `Grad`: all losses, and the gradient, zero in the other block.
        """
        check_choice("block", block, ("shared", "task"))
        grads = self(params, *args, present=present)
        shared, head_params, _ = grads.partition.split(params)
        if block == "task":
            zeros = [jnp.zeros_like(leaf) for leaf in shared]
            return Grad(grads.losses, grads.updates(zeros), grads.aux)
        moving, _, frozen = grads.partition.split(grads.total())
        still = [jnp.zeros_like(leaf) for leaf in head_params]
        update = grads.partition.merge(moving, still, frozen)
        return Grad(grads.losses, update, grads.aux)

    def heads(self, params: PyTree, z: PyTree, *args: Any) -> Grad:
        """Returns losses and the heads' gradients on a given latent.

        Args:
          params: parameters; shared leaves are not read.
          z: a latent, as `encode` returns it.
          *args: arguments of the losses.

        Returns:
          A `Grad`: all losses, and the gradient, zero at the shared leaves.

        Raises:
          ValueError: if the oracle has no `encode`.
        """
        self._check_latent()
        inputs = self._inputs(params, args, z)
        losses, aux, head_grads = self.problem.heads_at(inputs, z)
        check_losses(losses, (inputs.shared, inputs.head_params))
        zeros = [jnp.zeros_like(leaf) for leaf in inputs.shared]
        return Grad(losses, inputs.update(zeros, head_grads), aux)

    def present(self, args: tuple[Any, ...], given: Any = None) -> Any:
        """Returns which tasks have labels in a batch, bool `[tasks]`; None for all.

        Args:
          args: arguments of the functions.
          given: what is known of it, `[tasks]` bool or by name; None for all.
        """
        if given is not None:
            given = as_mask("present", given, self.tasks)
        there = self.problem.present(args)
        if there is None or given is None:
            return given if there is None else there
        return there & given

    def active(self, params: PyTree, members: Any) -> dict[str, Any]:
        """Returns which labels a step of some of the tasks moves, for `per_label`.

        Args:
          params: parameters.
          members: bool `[tasks]`, the tasks of the step; a NumPy array decides at trace
            time.

        Returns:
          A mapping from label to bool, to be passed as `active`.
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
        """Returns which shared leaf has rows, which is layerwise, and a step's memory.

        It compiles the step, but runs nothing: shapes will do in place of arrays.

        Args:
          params: parameters.
          *args: arguments of the functions.
          present: as in `__call__`; a mask of Python bools or NumPy.
          method: an aggregator, or a chain with one; default: the Gramian and one
            combination, which all methods on Gramians need.

        Returns:
          A `StepPlan`. Methods that read the rows themselves make them in any case.

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
          ... MiB beside arguments (...) and results (...)
        """

        def step(params: PyTree, *args: Any) -> tuple[Any, Any]:
            grads = self(params, *args, present=present)
            paths = grads.partition.shared_paths
            leaves = plan_leaves(grads.linear, paths)
            if method is not None:
                state = method.init(params)
                return method.update(grads, state, params)[0], leaves
            rows = grads.rows()
            weights = jnp.sum(rows.scaled_gramian(grads.present).matrix, axis=0)
            return grads.updates(rows.combine(weights)), leaves

        leaves, counts = explain(step, params, *args)
        return StepPlan(leaves, *counts)

    def named(self, values: PyTree, axis: int = 0) -> dict[str, PyTree]:
        """Returns the entries of arrays with a task axis by task, as to log losses.

        Args:
          values: a pytree of arrays, such as losses or `task_weights`, `[tasks, ...]`.
          axis: the axis of the tasks, such as -1 for a history of losses.
        """
        return by_task(self.tasks, values, axis)

    def partition(self, params: PyTree) -> Partition:
        """Returns who owns which leaf, after checking labels, leaves and tasks."""
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
        """Cuts the parameters by label, after checking them against the functions.

        On a given latent `encode` does not run, and may not accept the arguments. Nor
        may the functions of tasks that are not `members`.
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
