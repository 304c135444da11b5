"""Parameters split by label: shared leaves, the heads' leaves and frozen leaves."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mtlopt.labels import (
    FROZEN,
    RESERVED,
    SHARED,
    STACKED,
    PyTree,
    Rules,
    label_params,
    leaf_paths,
)


@dataclasses.dataclass(frozen=True)
class Partition:
    """Parameters split into shared leaves, leaves of heads and frozen leaves, by label.

    Attributes:
      treedef: structure of the parameters.
      paths: path of every leaf.
      labels: label of every leaf.
      tasks: names of the tasks, in the order of the losses.
    """

    treedef: Any
    paths: tuple[str, ...]
    labels: tuple[str, ...]
    tasks: tuple[str, ...]

    def split(self, params: PyTree) -> tuple[list[Any], list[Any], list[Any]]:
        """Returns the shared leaves, the leaves of the heads, and the frozen leaves."""
        shared, heads, frozen = [], [], []
        kinds = {SHARED: shared, FROZEN: frozen}
        for label, leaf in zip(self.labels, jax.tree.leaves(params), strict=True):
            kinds.get(label, heads).append(leaf)
        return shared, heads, frozen

    def merge(self, shared: list[Any], heads: list[Any], frozen: list[Any]) -> PyTree:
        """Returns the parameters, joined from the leaves that `split` returns."""
        kinds = {SHARED: iter(shared), FROZEN: iter(frozen)}
        others = iter(heads)
        return self.treedef.unflatten(
            next(kinds.get(label, others)) for label in self.labels
        )

    def update(self, shared: list[Any], heads: list[Any], frozen: list[Any]) -> PyTree:
        """Returns an update from leaves like those of `split`; frozen leaves get zeros.

        Inside `jit` an update that is added to the parameters needs no memory for the
        zeros.
        """
        return self.merge(shared, heads, [jnp.zeros_like(leaf) for leaf in frozen])

    def active(self, members: Any) -> dict[str, Any]:
        """Returns which labels move in a step of the given tasks, for `per_label`.

        Args:
          members: bool `[tasks]`. If it is a NumPy array, the result is known at trace
            time.

        Returns:
          A mapping from label to bool: a task's label moves if the task is a member,
          and the shared label moves if any task is a member. The label of stacked heads
          has the vector `members`. Labels without leaves and the frozen label are left
          out.
        """
        flags = members.tolist() if isinstance(members, np.ndarray) else list(members)
        active = {
            SHARED: any(flags) if isinstance(members, np.ndarray) else members.any(),
            STACKED: members,
            **dict(zip(self.tasks, flags, strict=True)),
        }
        moving = (label for label in self.labels if label != FROZEN)
        return {label: active[label] for label in dict.fromkeys(moving)}

    @property
    def shared_paths(self) -> list[str]:
        """Paths of the shared leaves, in the order of `split`."""
        labelled = zip(self.paths, self.labels, strict=True)
        return [path for path, label in labelled if label == SHARED]

    @property
    def head_labels(self) -> list[str]:
        """Labels of the heads' leaves, in the order of `split`."""
        return [label for label in self.labels if label not in (SHARED, FROZEN)]


_SPLIT_OFF = (
    "Separate leaves that are not parameters, in Equinox with eqx.partition(model, "
    "eqx.is_inexact_array)"
)


def check_params(params: PyTree) -> list[tuple[str, Any, Any]]:
    """Returns path, value and dtype of every leaf, or raises if one is not a parameter.

    Raises:
      TypeError: if `params` is a module, or the state of an optimizer.
      ValueError: if a leaf is not an array of numbers; the error names its path.
    """
    if any(
        kind.__name__ == "Module" and kind.__module__.startswith("flax.nnx")
        for kind in type(params).__mro__
    ):
        raise TypeError(
            "`params` must be a pytree of arrays, got the Flax NNX module "
            f"{type(params).__name__}. Use mtlopt.nnx.task_grad, whose functions take "
            "modules, or split the module with nnx.split(model, nnx.Param, ...)."
        )
    check_no_state(params)
    leaves = []
    for path, leaf in leaf_paths(params):
        number = not isinstance(getattr(leaf, "dtype", ""), str)  # Keras has strings
        number = number or isinstance(leaf, int | float | complex)
        kind = jnp.result_type(leaf) if number else type(leaf).__name__
        if not number or jnp.issubdtype(kind, jax.dtypes.extended):
            raise ValueError(
                f"the parameter `{path}` must be an array of numbers, got {kind}. "
                f"{_SPLIT_OFF}; for a Keras variable, pass its `value`."
            )
        leaves.append((path, leaf, kind))
    return leaves


def check_no_state(params: PyTree) -> None:
    """Raises a `TypeError` if `params` is the state of an optimizer, or a `Run`."""

    def is_state(node: Any) -> bool:
        fields = getattr(node, "_fields", ())  # empty ones stand in place of a leaf
        return bool(fields) and type(node).__module__.startswith(("optax.", "mtlopt."))

    nodes = jax.tree.leaves(params, is_state) if isinstance(params, tuple) else []
    for node in filter(is_state, nodes):
        raise TypeError(
            f"`params` must be parameters, got a {type(node).__name__}. The parameters "
            "come first in mtlopt.Run(params, opt_state). If you have a Run, pass "
            "`run.params`."
        )


def partition_params(
    params: PyTree,
    labels: Rules,
    tasks: tuple[str, ...],
    *,
    stacked: bool = False,
    headless: tuple[str, ...] = (),
) -> Partition:
    """Splits `params` by label, after checking that labels, leaves and tasks agree.

    Args:
      params: parameters, all of floating point except the frozen ones.
      labels: see `label_params`.
      tasks: names of the tasks.
      stacked: whether the heads are leaves `[tasks, ...]` labelled `"stacked"`.
      headless: tasks that have no parameters of their own.

    Returns:
      The `Partition`.

    Raises:
      TypeError: if `params` is a module or the state of an optimizer.
      ValueError: if labels, leaves and tasks do not agree; the error names the leaf or
        the label.
    """
    leaves = check_params(params)
    try:
        full = label_params(params, labels)
    except ValueError as error:
        if stacked and any(repr(task) in str(error) for task in tasks):
            error.add_note(f"The heads are stacked: label their leaves {STACKED!r}.")
        raise
    treedef = jax.tree.structure(params)
    paths = tuple(path for path, _, _ in leaves)
    names = tuple(jax.tree.leaves(full))
    allowed = (SHARED, *((STACKED,) if stacked else tasks), FROZEN)
    for label, (path, leaf, kind) in zip(names, leaves, strict=True):
        if label != FROZEN and jnp.issubdtype(kind, jnp.complexfloating):
            raise ValueError(
                f"the parameter `{path}` must be real, got {kind}. Keep its real and "
                "its imaginary part as two parameters, and join them with "
                "jax.lax.complex in your functions."
            )
        if label != FROZEN and not jnp.issubdtype(kind, jnp.floating):
            # A frozen Python bool would become an array, on which `if` fails.
            label_it = f"Label it {FROZEN!r}, or pass it as an argument of the call"
            raise ValueError(
                f"the parameter `{path}` must be floating point, got {kind}. "
                f"{_SPLIT_OFF if isinstance(leaf, int) else label_it}."
            )
        if label not in allowed:
            listed = ", ".join(repr(name) for name in allowed)
            raise ValueError(
                f"the label of `{path}` must be one of {listed}, got {label!r}."
            )
        if label == STACKED and jnp.shape(leaf)[:1] != (len(tasks),):
            raise ValueError(
                f"the stacked leaf `{path}` must have a leading task axis of size "
                f"{len(tasks)}, got shape {jnp.shape(leaf)}."
            )
    present = set(names) - set(RESERVED)
    # Without any head all parameters are shared. A head for only some tasks is a
    # mistake, unless the heads of the others are frozen.
    if present and FROZEN not in names:
        for task in tasks:
            if task not in present and task not in headless:
                raise ValueError(
                    f"the task {task!r} has no parameters: no leaf is labelled "
                    f"{task!r}. If this is intended, pass headless=({task!r},). If "
                    "labels are inferred, a leaf that the losses of several tasks read "
                    f"is shared: check that no other loss reads the head of {task!r}."
                )
    return Partition(treedef, paths, names, tasks)


def check_same_labels(labels: Rules, params: PyTree, partition: Partition) -> None:
    """Raises unless rules label the parameters as the oracle does.

    Args:
      labels: rules of a transform.
      params: parameters, or any pytree of their structure.
      partition: the partition of the oracle.
    """
    names = jax.tree.leaves(label_params(params, labels))
    for path, name, owner in zip(partition.paths, names, partition.labels, strict=True):
        if name != owner:
            raise ValueError(
                f"the label of `{path}` must be {owner!r}, as in the oracle, got "
                f"{name!r}."
            )
