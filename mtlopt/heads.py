"""Functions from a latent to T losses: one head per task, or one stacked head."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from mtlopt._jaxprs import used_leaves
from mtlopt.forms import Stacked
from mtlopt.linalg.dtypes import solver_dtype
from mtlopt.partition import Partition
from mtlopt.rows.head_products import (
    HeadProducts,
    if_it_pays,
    pull_with_products,
    stack_products,
)
from mtlopt.rows.protocol import STATIC, Leaves

PyTree = Any

_STACKED_NAME = "stacked"  # in errors, because a traced task has no name of its own


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Inputs:
    """Parameters, split by label, and arguments: where a problem is evaluated.

    Attributes:
      shared: leaves labelled `"shared"`.
      head_params: leaves of the tasks.
      frozen: leaves that never move.
      args: arguments of the functions; with model state, the state is the last.
      partition: the labels.
      present: `[tasks]` bool, the tasks that have labels in the batch and whose state
        therefore changes; None for all.
    """

    shared: Leaves
    head_params: Leaves
    frozen: Leaves
    args: tuple[Any, ...]
    partition: Partition = dataclasses.field(metadata=STATIC)
    present: Any = None

    def params(self, shared: Leaves, head_params: Leaves) -> PyTree:
        """Returns the parameters with all shared leaves and heads' leaves replaced."""
        return self.partition.merge(shared, head_params, self.frozen)

    def update(self, shared: Leaves, head_grads: Leaves) -> PyTree:
        """Returns an update of the parameters."""
        return self.partition.update(shared, head_grads, self.frozen)


@dataclasses.dataclass(frozen=True)
class HeadCall:
    """All inputs of the losses on one batch, except the heads' leaves and the latent.

    Attributes:
      inputs: parameters and arguments; heads must not read the shared leaves.
      rebuild: function from the latent's leaves to the latent. None in problems without
        `encode`, whose latent is the shared leaves; these are read as parameters.
      has_aux: whether losses return a second value.
    """

    inputs: Inputs
    rebuild: Callable[[Leaves], PyTree] | None
    has_aux: bool

    def run(
        self,
        head_fn: Callable[..., Any],
        head_params: Leaves,
        latent: Leaves,
        *extra: Any,
    ) -> tuple[jax.Array, Any]:
        """Returns one task's loss and aux."""
        inputs = self.inputs
        if self.rebuild is None:
            out = head_fn(inputs.params(latent, head_params), *extra, *inputs.args)
        else:
            params = inputs.params(inputs.shared, head_params)
            out = head_fn(params, self.rebuild(latent), *extra, *inputs.args)
        return split_aux(out, self.has_aux)


def split_aux(out: Any, has_aux: bool) -> tuple[Any, Any]:
    """Returns `(value, aux)` of a function's result; aux is None without `has_aux`."""
    if not has_aux:
        return out, None
    if not isinstance(out, tuple) or len(out) != 2:
        raise ValueError(
            "with has_aux=True, encode and every loss must return a pair (value, aux), "
            f"got {type(out).__name__}."
        )
    return out


def as_loss(value: Any, task: str) -> jax.Array:
    """Returns a task's loss in float32 or wider, or raises unless it is a scalar."""
    whose = "the loss of "
    whose += "a stacked head" if task == _STACKED_NAME else f"task {task!r}"
    if isinstance(value, tuple | list | dict):
        raise ValueError(
            f"{whose} must be a scalar, got {type(value).__name__}. "
            "If it returns a pair (loss, aux), pass has_aux=True."
        )
    if jnp.shape(value) != ():
        raise ValueError(
            f"{whose} must be a scalar, got shape "
            f"{jnp.shape(value)}. Take its mean or sum."
        )
    if not jnp.issubdtype(jnp.result_type(value), jnp.floating):
        raise ValueError(
            f"{whose} must be floating point, got {jnp.result_type(value)}."
        )
    return jnp.asarray(value, solver_dtype([value]))


def _stack(values: list[jax.Array]) -> jax.Array:
    return jnp.stack(values) if values else jnp.zeros(0)


class HeadGradients(NamedTuple):
    """Losses `[members]` and their gradients.

    Attributes:
      losses: `[members]`.
      aux: the second values that the loss functions return.
      head_grads: gradients of the heads' leaves, each for the loss of the leaf's own
        task.
      latent_grads: gradients of the latent's leaves, `[members, ...]`.
      latent_products: for each leaf of the latent, the factors of its gradient if this
        gradient is a product, otherwise None.
    """

    losses: jax.Array
    aux: Any
    head_grads: Leaves
    latent_grads: Leaves
    latent_products: list[HeadProducts | None]


class SeparateHeadFns:
    """One loss function per task."""

    stacked: Literal[False] = False

    def __init__(self, head_fns: dict[str, Callable[..., Any]]) -> None:
        self.head_fns = head_fns
        self.tasks = tuple(head_fns)

    def losses(
        self, call: HeadCall, head_params: Leaves, latent: Leaves, members: Any = None
    ) -> jax.Array:
        """Returns the losses `[tasks]`, or the losses of `members`."""
        return _stack(
            [
                self.loss_of(i, call, head_params, latent)[0]
                for i in self._chosen(members)
            ]
        )

    def loss_of(
        self, index: int, call: HeadCall, head_params: Leaves, latent: Leaves
    ) -> tuple[jax.Array, Any]:
        """Returns one task's loss and aux."""
        task = self.tasks[index]
        value, aux = call.run(self.head_fns[task], head_params, latent)
        return as_loss(value, task), aux

    def gradients(
        self,
        call: HeadCall,
        head_params: Leaves,
        latent: Leaves,
        factors: Any,
        members: Any,
    ) -> HeadGradients:
        """Returns losses and gradients.

        Each loss is differentiated with respect to its own leaves and its own copy of
        the latent, so the heads run backward once for all tasks together. `factors` and
        `members` are as in `Problem.evaluate`; members are Python ints. The gradients
        of tasks that are not members are zero.
        """
        labels = call.inputs.partition.head_labels
        grads = [jnp.zeros_like(leaf) for leaf in head_params]
        values, aux, rows, products = [], {}, [], []
        for i in self._chosen(members):
            task = self.tasks[i]
            own = [j for j, label in enumerate(labels) if label == task]

            def loss(own_leaves: Leaves, latent: Leaves, i=i, own=own) -> Any:
                moved = list(head_params)
                for j, leaf in zip(own, own_leaves, strict=True):
                    moved[j] = leaf
                value, extra = self.loss_of(i, call, moved, latent)
                return value if factors is None else factors[i] * value, extra

            value, pull, aux[task] = jax.vjp(
                loss, [head_params[j] for j in own], latent, has_aux=True
            )
            (own_grads, row), *found = pull_with_products(pull, jnp.ones_like(value))
            for j, grad in zip(own, own_grads, strict=True):
                grads[j] = grad
            values.append(value)
            rows.append(row)
            products.append([of_leaves[len(own) :] for of_leaves in found])
        stacked_rows, stacked_products = [], []
        for j, leaf in enumerate(latent):
            stacked_rows.append(
                jnp.stack([row[j] for row in rows]) if rows else leaf[None][:0]
            )
            layouts = [of_task[0][j] for of_task in products]
            factors = [of_task[1][j] for of_task in products]
            stacked_products.append(stack_products(layouts, factors))
        return HeadGradients(_stack(values), aux, grads, stacked_rows, stacked_products)

    def _chosen(self, members: Any) -> Sequence[int]:
        return range(len(self.tasks)) if members is None else members

    def reads(
        self,
        params: PyTree,
        stacked: list[bool],
        z: tuple[PyTree, ...],
        args: tuple[Any, ...],
        has_aux: bool,
        members: Any = None,
    ) -> dict[str, list[bool]]:
        """Returns, per task, which leaves of `params` its loss reads.

        Args:
          params: parameters.
          stacked: which leaves have a leading task axis; here none.
          z: the latent, if there is one.
          args: arguments of the losses.
          has_aux: whether losses return a second value.
          members: indices of the tasks to check; None for all.
        """
        del stacked
        reads = {}
        for task in [self.tasks[i] for i in self._chosen(members)]:
            function = self.head_fns[task]

            def loss(
                params: PyTree,
                *z: PyTree,
                task: str = task,
                function: Callable[..., Any] = function,
            ) -> jax.Array:
                return as_loss(split_aux(function(params, *z, *args), has_aux)[0], task)

            reads[task] = used_leaves(loss, params, *z)
        return reads


class StackedHeadFns:
    """One head function, vmapped over the leading task axis of the stacked leaves."""

    stacked: Literal[True] = True

    def __init__(self, stacked: Stacked, tasks: Sequence[str] | None = None) -> None:
        self.head_fn = stacked.head
        self.tasks = tuple(tasks or map(str, range(stacked.num_tasks)))
        if len(self.tasks) != stacked.num_tasks:
            raise ValueError(
                f"`tasks` must name the {stacked.num_tasks} stacked tasks, got "
                f"{len(self.tasks)} names."
            )

    def losses(
        self, call: HeadCall, head_params: Leaves, latent: Leaves, members: Any = None
    ) -> jax.Array:
        """Returns the losses `[tasks]`, or the losses of `members`."""

        def one(leaves: Leaves, task: jax.Array) -> jax.Array:
            return self.loss_of(task, call, leaves, latent)[0]

        return jax.vmap(one)(*self._chosen(head_params, members))

    def gradients(
        self,
        call: HeadCall,
        head_params: Leaves,
        latent: Leaves,
        factors: Any,
        members: Any,
    ) -> HeadGradients:
        """Returns losses and gradients.

        `factors` and `members` are as in `Problem.evaluate`; members may be traced.
        """
        layouts: list[Any] = []

        def one(leaves: Leaves, task: jax.Array, factor: Any) -> Any:
            def loss(leaves: Leaves, latent: Leaves) -> Any:
                value, aux = self.loss_of(task, call, leaves, latent)
                return value if factor is None else factor * value, aux

            value, pull, aux = jax.vjp(loss, leaves, latent, has_aux=True)
            found, kinds, pairs = pull_with_products(pull, jnp.ones_like(value))
            layouts[:] = kinds[len(leaves) :]
            return value, aux, *found, pairs[len(leaves) :]

        chosen, indices = self._chosen(head_params, members)
        if members is not None and factors is not None:
            factors = factors[indices]
        out = jax.vmap(one)(chosen, indices, factors)
        losses, aux, grads, rows, pairs = out
        if members is not None:
            grads = [
                jnp.zeros_like(leaf).at[indices].set(grad)
                for leaf, grad in zip(head_params, grads, strict=True)
            ]
        products = [
            None if pair is None else if_it_pays(layout, *pair)
            for layout, pair in zip(layouts, pairs, strict=True)
        ]
        return HeadGradients(losses, aux, grads, rows, products)

    def reads(
        self,
        params: PyTree,
        stacked: list[bool],
        z: tuple[PyTree, ...],
        args: tuple[Any, ...],
        has_aux: bool,
        members: Any = None,
    ) -> dict[str, list[bool]]:
        """Returns which leaves of `params` the head reads, the same for each task."""
        del members
        leaves, treedef = jax.tree.flatten(params)

        def loss(params: PyTree, *z: PyTree) -> jax.Array:
            leaves = [
                leaf[0] if is_stacked else leaf
                for leaf, is_stacked in zip(
                    jax.tree.leaves(params), stacked, strict=True
                )
            ]
            task = self._indices()[0]
            out = self.head_fn(treedef.unflatten(leaves), *z, task, *_as_jax(args))
            return as_loss(split_aux(out, has_aux)[0], _STACKED_NAME)

        used = used_leaves(loss, treedef.unflatten(leaves), *z)
        return dict.fromkeys(self.tasks, used)

    def _indices(self) -> jax.Array:
        return jnp.arange(len(self.tasks), dtype=jnp.int32)

    def _chosen(self, head_params: Leaves, members: Any) -> tuple[Leaves, jax.Array]:
        """Returns the heads of some tasks, and their indices."""
        if members is None:
            return head_params, self._indices()
        indices = jnp.asarray(members, jnp.int32)
        return [jnp.asarray(leaf)[indices] for leaf in head_params], indices

    def loss_of(
        self, index: Any, call: HeadCall, head_params: Leaves, latent: Leaves
    ) -> tuple[jax.Array, Any]:
        """Returns one task's loss and aux, from its own leaves of the heads."""
        inputs = dataclasses.replace(call.inputs, args=_as_jax(call.inputs.args))
        call = dataclasses.replace(call, inputs=inputs)
        value, aux = call.run(self.head_fn, head_params, latent, index)
        return as_loss(value, _STACKED_NAME), aux


def _as_jax(args: tuple[Any, ...]) -> tuple[Any, ...]:
    """Turns NumPy arrays into JAX arrays, which a traced task index can index."""

    def convert(leaf: Any) -> Any:
        is_numeric = isinstance(leaf, np.ndarray) and leaf.dtype.kind in "biufc"
        return jnp.asarray(leaf) if is_numeric else leaf

    return jax.tree.map(convert, args)


HeadFns = SeparateHeadFns | StackedHeadFns


def are_of_heads(losses: Any) -> bool:
    """Returns whether losses are one function per task or one stacked head."""
    return isinstance(losses, Mapping | Stacked)


def make_head_fns(losses: Any, tasks: Sequence[str] | None) -> HeadFns | None:
    """Returns the head functions of a user's losses, or None for one joint function.

    Args:
      losses: see `task_grad`.
      tasks: names of the tasks, if they are given.
    """
    if isinstance(losses, Stacked):
        return StackedHeadFns(losses, tasks)
    if not isinstance(losses, Mapping):
        return None
    if not losses:
        raise ValueError("`losses` must name at least one task, got none.")
    for task, function in losses.items():
        if not callable(function):
            raise TypeError(
                f"`losses[{task!r}]` must be callable, got {type(function).__name__}."
            )
    if tasks is not None and tuple(tasks) != tuple(losses):
        raise ValueError(
            f"`tasks` must be {tuple(losses)} as in `losses`, or left out, got {tasks}."
        )
    return SeparateHeadFns(dict(losses))
