"""`TaskGrads`: the gradients of several losses, which are the input of every method."""

import dataclasses
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, Self

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from mtlopt._checks import as_mask, by_task, named_vector
from mtlopt._guard import WHAT_TO_DO, SaysWhatToDo, make_guard
from mtlopt._shards import check_whole
from mtlopt.labels import (
    FROZEN,
    SHARED,
    STACKED,
    Rules,
    check_task_names,
    label_params,
    path_string,
)
from mtlopt.linalg.dtypes import solver_dtype
from mtlopt.linearization import Linearization, PullbackLinearization
from mtlopt.partition import Partition, partition_params
from mtlopt.rows.arithmetic import scale_head_grads
from mtlopt.rows.members import Members
from mtlopt.rows.protocol import STATIC, Leaves, Rows

PyTree = Any


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, repr=False)
class TaskGrads(metaclass=SaysWhatToDo):
    """Losses of all tasks and their gradients, as one linearised network.

    A `task_grad` oracle returns a `TaskGrads`, weightings scale it, and an aggregator
    turns it into one update. A `TaskGrads` holds the linearised network instead of the
    Jacobian of the losses. The rows of the Jacobian (one gradient per task) are
    computed only if a method reads them.

    A `TaskGrads` is a pytree, so it passes through `jit` and `vmap` and out of `scan`.
    (As the carry of a loop, or as an argument of another compiled program, it works
    only if one and the same jitted oracle made every `TaskGrads` that is used there.)
    But a `TaskGrads` is not a gradient. If you put an ordinary optimizer before the
    aggregator, the optimizer's arithmetic raises an error at the leaf `guard`, instead
    of silently scaling a part of the linearization. If an optimizer complains that it
    got a `TaskGrads` in place of an array or a dict, chain an aggregator before the
    optimizer.

    Attributes:
      guard: a leaf on which arithmetic raises an error. It is the first leaf, because
        other leaves, such as a PRNG key among the oracle's arguments, would raise
        JAX's own errors.
      losses: `[tasks]`, as the loss functions returned them.
      loss_scales: `[tasks]`, factors that multiply the losses; weightings set them.
      present: `[tasks]` bool, the tasks with labels in this batch; None for all. Other
        fields depend on `present`, so do not replace it: pass it to the oracle, or use
        `leave_out_not_finite`.
      aux: an `Aux` with the functions' auxiliary values; None without `has_aux`.
      z: the latent, as `encode` returned it; None without `encode` or with several
        microbatches.
      head_grads: gradients of the heads' leaves: each leaf has the gradient of its own
        task's unscaled loss.
      linear: the linearised shared part.
      losses_at: function from `(params, z=None)` to the losses `[tasks]` on the same
        batch, at other parameters or another latent; None without an oracle.
      partition: which leaf is shared, and which belongs to which task.
      in_latent: whether rows are gradients with respect to the latent.
      frozen: the frozen leaves; their updates are zeros of the same dtypes.
      moving: `[tasks]` bool, the tasks whose heads move, if `without_rows` hides some
        tasks from methods; None if the heads of all present tasks move.
      members: the tasks whose heads move, if they are known at trace time.
      state: the model's state after this batch; None without `has_state`.
    """

    what_to_do = WHAT_TO_DO

    guard: jax.Array
    losses: jax.Array
    loss_scales: jax.Array
    present: jax.Array | None
    aux: Any
    z: PyTree
    head_grads: Leaves
    linear: Linearization
    losses_at: Any
    partition: Partition = dataclasses.field(metadata=STATIC)
    in_latent: bool = dataclasses.field(default=False, metadata=STATIC)
    frozen: Leaves = dataclasses.field(default_factory=list)
    moving: jax.Array | None = None
    members: Members | None = dataclasses.field(default=None, metadata=STATIC)
    state: PyTree = None

    @classmethod
    def from_rows(
        cls,
        rows: PyTree,
        losses: Any = None,
        present: Any = None,
        *,
        labels: Rules = SHARED,
        tasks: Sequence[str] | None = None,
    ) -> "TaskGrads":
        """Wraps gradients that you computed yourself, for example task by task.

        Args:
          rows: pytree with the structure of the parameters, every leaf with a leading
            task axis: row i is the gradient of loss i with respect to all parameters.
            For a head's leaf, only the row of its own task is used. For a stacked leaf,
            which is `[tasks, tasks, ...]` here, only the diagonal is used. All other
            entries must be zero. Rows of a frozen leaf are not read; the leaf's update
            is zeros of the rows' dtype.
          losses: `[tasks]`, or a mapping from task to number, for weightings that need
            losses. Default: zeros.
          present: `[tasks]` bool, or a mapping from task to bool, see the attribute
            `present`. Default: all tasks.
          labels: which leaf is shared and which belongs to which task, see
            `label_params`. By default all leaves are shared.
          tasks: names of the tasks, in the order of the rows. Default: "0", "1", ...

        Returns:
          `TaskGrads`; updates have the structure of the parameters.

        Raises:
          ValueError: if `rows` is empty or its leaves disagree on the number of tasks,
            if the labels do not fit, or if a task has a gradient for the head of
            another task. Such a gradient is detected only outside of `jit`.

        Examples:
          >>> import jax, jax.numpy as jnp
          >>> import mtlopt
          >>> params = {"w": jnp.ones(2), "a": jnp.array(1.0), "b": jnp.array(3.0)}
          >>> losses = (lambda p: p["a"] * p["w"][0], lambda p: p["b"] * p["w"][1])
          >>> gradients = [jax.grad(loss)(params) for loss in losses]
          >>> grads = mtlopt.TaskGrads.from_rows(
          ...     jax.tree.map(lambda *leaves: jnp.stack(leaves), *gradients),
          ...     labels={"w": "shared", "a": "a", "b": "b"},
          ...     tasks=("a", "b"),
          ... )
          >>> aggregator = mtlopt.mean_tasks(2)
          >>> updates, _ = aggregator.update(grads, aggregator.init(params))
          >>> print(updates["w"], updates["a"], updates["b"])
          [0.5 1.5] 1.0 1.0
        """
        leaves, treedef = jax.tree_util.tree_flatten_with_path(rows)
        if not leaves:
            raise ValueError("`rows` must have at least one leaf, got an empty tree.")
        num_tasks = jnp.shape(leaves[0][1])[:1]
        for path, leaf in leaves:
            if not jnp.shape(leaf) or jnp.shape(leaf)[:1] != num_tasks:
                raise ValueError(
                    f"`rows` must have the same leading task axis in every leaf, got "
                    f"shape {jnp.shape(leaves[0][1])} at "
                    f"`{path_string(leaves[0][0])}` and {jnp.shape(leaf)} at "
                    f"`{path_string(path)}`."
                )
        values = [jnp.asarray(leaf) for _, leaf in leaves]
        names = tuple(map(str, range(num_tasks[0]))) if tasks is None else tuple(tasks)
        check_task_names(names)
        if (len(names),) != num_tasks:
            raise ValueError(
                f"`tasks` must name the {num_tasks[0]} rows, got {len(names)} names."
            )
        params = treedef.unflatten(
            jax.ShapeDtypeStruct(leaf.shape[1:], jnp.float32) for leaf in values
        )
        stacked = STACKED in jax.tree.leaves(label_params(params, labels))
        partition = partition_params(
            params, labels, names, stacked=stacked, headless=names
        )
        shared, of_heads, frozen = partition.split(treedef.unflatten(values))
        dtype = solver_dtype([jnp.float32, *shared, *of_heads])
        if losses is None:
            losses = jnp.zeros(num_tasks, dtype)
        if present is not None:
            present = jnp.asarray(as_mask("present", present, names))
        return cls(
            losses=named_vector("losses", losses, names),
            loss_scales=jnp.ones(num_tasks, dtype),
            present=present,
            aux=None,
            z=None,
            head_grads=_own_rows(of_heads, partition),
            linear=PullbackLinearization(shared),
            losses_at=None,
            guard=make_guard(),
            partition=partition,
            frozen=[jnp.zeros(leaf.shape[1:], leaf.dtype) for leaf in frozen],
        )

    def __repr__(self) -> str:
        """Returns the tasks, the number of leaves, and advice.

        JAX's errors quote this text if a `TaskGrads` is used as an update.
        """
        shared = self.partition.labels.count(SHARED)
        return (
            f"TaskGrads(tasks={self.tasks}, shared_leaves={shared}, "
            f"head_leaves={len(self.head_grads)}, in_latent={self.in_latent}: not an "
            f"update, {WHAT_TO_DO})"
        )

    def __contains__(self, key: object) -> bool:
        """Returns False: Flax's `TrainState` checks for a key that only Flax writes."""
        return False

    if TYPE_CHECKING:  # Optax's type of an update allows containers only

        def __iter__(self) -> Iterator[Any]: ...

    @property
    def tasks(self) -> tuple[str, ...]:
        """Names of the tasks, in the order of the losses."""
        return self.partition.tasks

    @property
    def num_tasks(self) -> int:
        """The number of tasks."""
        return len(self.tasks)

    @property
    def active(self) -> dict[str, Any] | None:
        """The labels that `per_label` may update on this batch; None for all.

        A task's label is active if the task is present, and the shared label is active
        if any task is present. The stacked label has a `[tasks]` vector. Labels without
        leaves are left out. If the present tasks are known at trace time, the values
        are Python bools.
        """
        moving = self._moving
        if moving is None:
            return None
        return self.partition.active(
            moving if self.members is None else self.members.mask
        )

    @property
    def _moving(self) -> jax.Array | None:
        """The tasks whose heads move; None for all."""
        return self.present if self.moving is None else self.moving

    def named(self, values: PyTree, axis: int = 0) -> dict[str, PyTree]:
        """Returns the entries of arrays with a task axis, see `Oracle.named`."""
        return by_task(self.tasks, values, axis)

    def scale_by(self, factors: jax.Array) -> Self:
        """Returns the gradients of the losses times `factors`, `[tasks]`.

        Raises:
          ValueError: inside `leave_out`, because a weighting there would miss the
            hidden tasks.
        """
        if self.moving is not None:
            raise ValueError(
                "weightings must be chained before `leave_out`, not inside it. Inside, "
                "the losses of hidden tasks get no weight, and their heads do not move."
            )
        loss_scales = self.loss_scales * factors.astype(self.loss_scales.dtype)
        return dataclasses.replace(self, loss_scales=loss_scales)

    def in_latent_space(self) -> Self:
        """Returns the same gradients, with rows taken with respect to the latent."""
        if not self.linear.has_latent:
            raise ValueError(
                "latent space needs a latent that all tasks share: build the gradients "
                "with mtlopt.task_grad(..., encode=...), or mark the latent with "
                "mtlopt.latent(z) in your function of all losses. If each task has its "
                "own inputs, there is no such latent: use the method without "
                "in_latent_space. With sharpness_aware, use ascent='sum'."
            )
        return dataclasses.replace(self, in_latent=True)

    def without_rows(self, members: np.ndarray) -> Self:
        """Returns the gradients with some tasks marked absent. Their heads still move.

        Args:
          members: `[tasks]` bool, the tasks to make absent.
        """
        there = jnp.ones(self.num_tasks, bool) if self.present is None else self.present
        moving = there if self.moving is None else self.moving
        return dataclasses.replace(
            self,
            present=there & ~members,
            moving=moving,
            linear=self.linear.without(members),
        )

    def rows(self) -> Rows:
        """Returns the scaled rows (the tasks' gradients) for methods that compare them.

        For the shared leaves, this costs one backward pass of the encoder per task; in
        latent space it costs nothing.
        """
        make = self.linear.latent_rows if self.in_latent else self.linear.rows
        rows = make(self.loss_scales, self.present)
        check_whole(rows.held, self.losses)
        return rows

    def keep_rows(self, entries: bool = False) -> Self:
        """Returns the same gradients with their rows computed, so they can be reused.

        A weighting that reads `rows()` calls `keep_rows` first; otherwise the
        aggregator would run a second backward pass. With stacked heads in latent space,
        the aggregator still runs the second pass, because it costs less than combining
        T rows.

        Args:
          entries: whether the rows' `leaves()` are read, in addition to their inner
            products.
        """
        if not self.in_latent:
            linear = self.linear.keep_rows(self.present, entries)
        elif STACKED not in self.partition.head_labels:
            linear = self.linear.keep_latent()
        else:
            return self
        return dataclasses.replace(self, linear=linear)

    def finite_tasks(self) -> jax.Array:
        """Returns which tasks are present and finite, as `[tasks]` bool.

        A task is finite if its loss, the gradient of its head, and the norm of its row
        are finite. In latent space, this is the norm of the latent row.
        """
        finite = jnp.isfinite(self.losses) & self.finite_heads()
        finite &= jnp.isfinite(self.rows().norms())
        return finite if self.present is None else finite & self.present

    def finite_heads(self) -> jax.Array:
        """Returns which tasks' heads have a finite gradient, `[tasks]` bool."""
        finite = jnp.ones(self.num_tasks, bool)
        for label, leaf in zip(
            self.partition.head_labels, self.head_grads, strict=True
        ):
            if label == STACKED:
                finite &= jnp.isfinite(leaf).all(axis=range(1, leaf.ndim))
            else:
                task = self.tasks.index(label)
                finite = finite.at[task].min(jnp.isfinite(leaf).all())
        return finite

    def leave_out_not_finite(self) -> Self:
        """Returns the gradients with only the tasks of `finite_tasks` present.

        For the shared leaves, it computes the rows with one backward pass per task;
        aggregators that read rows need these rows anyway. In latent space it costs
        nothing.
        """
        grads = self.keep_rows()
        finite, moving = grads.finite_tasks(), self.moving
        if moving is not None:  # finite heads of hidden tasks still move
            assert self.present is not None
            hidden = moving & ~self.present
            moving = hidden & jnp.isfinite(self.losses) & self.finite_heads()
            moving |= finite
        return dataclasses.replace(grads, present=finite, moving=moving, members=None)

    def total(self) -> PyTree:
        """Returns `sum_i loss_scales[i] g_i`, the gradient of the sum of scaled losses.

        It costs one ordinary backward pass, which never separates the tasks. With
        absent tasks, several microbatches or kept rows, `total()` calls `combine` with
        weights of one.

        Returns:
          A pytree with the structure and dtypes of the parameters.
        """
        factors = self.loss_scales.astype(self.losses.dtype)
        found = self.linear.total(factors, self.present)
        if found is None:
            return self.combine(jnp.ones_like(self.loss_scales))
        return self.partition.update(*found, self.frozen)

    def combine(self, weights: jax.Array) -> PyTree:
        """Returns `sum_i weights[i] loss_scales[i] g_i`, with one backward pass.

        `combine` does not compute the rows `g_i` over the shared leaves. If `keep_rows`
        has already computed the rows, `combine` needs no backward pass. A method that
        has read `rows()` combines those rows instead: `updates(rows.combine(weights))`.

        Args:
          weights: `[tasks]`, which multiply only the gradients of the shared leaves.

        Returns:
          A pytree with the structure and dtypes of the parameters.
        """
        return self.updates(
            self.linear.combine(weights, self.loss_scales, self.present)
        )

    def updates(self, direction: Leaves) -> PyTree:
        """Returns an update from a shared direction and the gradient of each head.

        Args:
          direction: the direction of the shared leaves, as `Rows.combine` returns it.

        Returns:
          A pytree with the structure and dtypes of the parameters. A head gets the
          gradient of its own loss times the scale of this loss; heads of absent tasks
          get zeros.
        """
        head_grads = scale_head_grads(
            self.partition, self.head_grads, self.loss_scales, self._moving
        )
        return self.partition.update(direction, head_grads, self.frozen)

    def jacobian(self) -> PyTree:
        """Returns the tasks' gradients of the shared leaves; other leaves are None.

        Each shared leaf is `[tasks, ...]`. Use this method for inspection: the result
        holds as many gradients as there are tasks.
        """
        rows = self.linear.rows(self.loss_scales, self.present).leaves()
        heads, frozen = ([None] * len(part) for part in (self.head_grads, self.frozen))
        return self.partition.merge(rows, heads, frozen)


def _own_rows(rows: Leaves, partition: Partition) -> Leaves:
    """Selects for each head the gradient of its own task from all tasks' gradients."""
    heads, tasks = [], partition.tasks
    paths = [
        path
        for path, label in zip(partition.paths, partition.labels, strict=True)
        if label not in (SHARED, FROZEN)
    ]
    for path, label, leaf in zip(paths, partition.head_labels, rows, strict=True):
        if label == STACKED:
            every = np.arange(len(tasks))
            own, foreign = leaf[every, every], ~np.eye(len(tasks), dtype=bool)
        else:
            own = leaf[tasks.index(label)]
            foreign = np.array([task != label for task in tasks])
        # The comparison is False for NaN, which an absent task may have.
        if not isinstance(leaf, Tracer) and (np.abs(leaf)[foreign] > 0).any():
            raise ValueError(
                f"`rows` must be zero at `{path}`, which is labelled {label!r}, for "
                "all tasks except the leaf's own task. If several tasks read the leaf, "
                f"label it {SHARED!r}."
            )
        heads.append(own)
    return heads
