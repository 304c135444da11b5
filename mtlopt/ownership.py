"""Which function may read which leaf: checks labels, or finds them from the program."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from mtlopt._jaxprs import split_arrays
from mtlopt.forms import Stacked
from mtlopt.labels import (
    FROZEN,
    SHARED,
    STACKED,
    UNKNOWN,
    Rules,
    path_string,
    some_labels,
)
from mtlopt.make_problem import make_problem
from mtlopt.model_state import StateForm
from mtlopt.partition import Partition, check_params
from mtlopt.problems import Problem, Reads
from mtlopt.samples import Samplewise

PyTree = Any


def check_ownership(
    problem: Problem[Any],
    partition: Partition,
    params: PyTree,
    args: tuple[Any, ...],
    z: PyTree = None,
    members: Sequence[int] | None = None,
) -> None:
    """Raises if a function reads a leaf although the leaf's label does not allow it.

    Every function may read frozen leaves.

    Without this check, a leaf that is read against its label would silently lose a part
    of its gradient. The check also raises if `encode` reads no shared leaf, or if a
    loss reads no leaf of its own task. The trunk or the head would then silently not
    train.

    Args:
      problem: the problem.
      partition: the labels.
      params: parameters.
      args: arguments of the functions.
      z: a latent to read instead of the result of `encode`, which then does not run.
      members: indices of the tasks whose functions are checked; None for all.

    Raises:
      ValueError: if a read is not allowed; the message names the function, the leaf's
        path and label.
    """
    stacked = [label == STACKED for label in partition.labels]
    reads = problem.reads(params, stacked, args, z, members)
    owners = list(zip(partition.paths, partition.labels, strict=True))
    shared = [i for i, label in enumerate(partition.labels) if label == SHARED]
    encoder = "the program before mtlopt.latent" if reads.marked else "encode"
    if shared and reads.encode and not any(reads.encode[i] for i in shared):
        raise ValueError(
            f"{encoder} reads no leaf that is labelled {SHARED!r}, so "
            f"`{partition.paths[shared[0]]}` would never move. Read the parameters "
            "from the function's first argument."
        )
    for (path, label), read in zip(owners, reads.encode or [], strict=False):
        if read and label not in (SHARED, FROZEN):
            raise ValueError(
                f"{encoder} reads `{path}`, which is labelled {label!r}. Label "
                f"it {SHARED!r}, or {FROZEN!r} if it never moves."
            )
    if reads.tasks is None:
        if partition.head_labels:
            raise ValueError(
                "`losses` must return a mapping or sequence of scalars, or a vector "
                "made by jnp.stack of scalars, when tasks have parameters of their "
                "own. Otherwise mtlopt cannot find out which loss reads which leaf."
            )
        return
    for task, used in reads.tasks.items():
        for i, (path, label) in enumerate(owners):
            if not used[i] or label in (task, STACKED, FROZEN):
                continue
            if label == SHARED and reads.encode is None:
                continue
            readers = [name for name, reading in reads.tasks.items() if reading[i]]
            if label == SHARED:
                past = ", not through mtlopt.latent" if reads.marked else ""
                advice = _through_latent(reads)
                size = jnp.shape(jax.tree.leaves(params)[i])[:1]
                if problem.stacked and size == (len(problem.tasks),):
                    advice = (
                        f"If it holds the heads of all tasks, label it {STACKED!r}. "
                        f"If not, {advice[0].lower()}{advice[1:]}"
                    )
                raise ValueError(
                    f"the loss of task {task!r} reads the shared leaf `{path}`{past}, "
                    f"so the leaf's gradient would miss a part. {advice}."
                )
            raise ValueError(
                f"the loss of task {task!r} reads `{path}`, which is labelled "
                f"{label!r}. {_advice(reads, readers, i, partition, members is None)}"
            )
        own = [i for i, (_, label) in enumerate(owners) if label in (task, STACKED)]
        if own and not any(used[i] for i in own):
            path, label = owners[own[0]]
            raise ValueError(
                f"the loss of task {task!r} reads no leaf that is labelled {label!r}, "
                f"so `{path}` would never move. The loss must read the parameters from "
                "its first argument, not from a module or parameters outside of it. If "
                "this batch has no labels of the task, pass `present`, with Python "
                "bools that are not arguments of a jitted function."
            )


def _advice(
    reads: Reads, readers: list[str], leaf: int, partition: Partition, everyone: bool
) -> str:
    """Says what to do about a leaf of another task that a loss reads."""
    encoded = reads.encode is not None and reads.encode[leaf]
    if everyone and len(readers) == 1 and not encoded:
        owner, label, used = readers[0], partition.labels[leaf], reads.tasks or {}
        for i, other in enumerate(partition.labels):
            if other == owner and used[label][i] and not used[owner][i]:
                return (
                    f"The loss of task {label!r} reads `{partition.paths[i]}`, which "
                    f"is labelled {owner!r}: the two labels look swapped."
                )
        return f"No other function reads it: label it {owner!r}."
    label_it = f"Read the task's own leaf or, to share this leaf, label it {SHARED!r}"
    if reads.encode is None:
        return f"{label_it}."
    through = _through_latent(reads)
    return f"{label_it} and {through[0].lower()}{through[1:]}."


def _through_latent(reads: Reads) -> str:
    """Says how a head gets the values that depend on shared leaves."""
    if reads.marked:
        return (
            "Read the result of mtlopt.latent. If a head needs the leaf itself, mark "
            "the leaf as well, as in h, w = mtlopt.latent((h, w))"
        )
    return "Let encode return it as part of z, and read it from there"


def infer_labels(
    losses: Mapping[str, Callable[..., Any]]
    | Stacked
    | Samplewise
    | Callable[..., Any],
    params: PyTree,
    *args: Any,
    encode: Callable[..., Any] | None = None,
    tasks: Sequence[str] | None = None,
    has_aux: bool = False,
    has_state: bool = False,
    state_labels: Rules | None = None,
    rules: Rules | None = None,
) -> PyTree:
    """Finds out from the traced program which task owns which parameter leaf.

    A leaf is shared if `encode` or the losses of several tasks read it. A leaf that
    only one task's loss reads belongs to that task, and a leaf that stacked heads read
    is stacked. Leaves that are not of floating point cannot be trained, so they are
    frozen. Nothing is computed, because the functions are traced on shapes.

    Args:
      losses: as in `task_grad`.
      params: parameters, arrays or `jax.ShapeDtypeStruct`.
      *args: arguments of the functions, arrays or shapes as well.
      encode: as in `task_grad`.
      tasks: as in `task_grad`.
      has_aux: as in `task_grad`.
      has_state: as in `task_grad`.
      state_labels: as in `task_grad`.
      rules: a mapping from path to label, see `label_params`, for leaves whose labels
        you know, such as frozen leaves.

    Returns:
      Labels with the structure of `params`.

    Raises:
      ValueError: if no function reads a leaf, if a loss reads a leaf that `encode` also
        reads, if mtlopt cannot find out which loss reads a leaf, or if a rule matches
        no leaf.

    Examples:
      >>> import jax.numpy as jnp
      >>> import mtlopt
      >>> params = {"trunk": jnp.ones(2), "up": jnp.ones(()), "down": jnp.ones(())}
      >>> mtlopt.infer_labels(
      ...     {
      ...         "up": lambda params, x: params["up"] * params["trunk"] @ x,
      ...         "down": lambda params, x: params["down"] - params["trunk"] @ x,
      ...     },
      ...     params,
      ...     jnp.ones(2),
      ... )
      {'down': 'down', 'trunk': 'shared', 'up': 'up'}
    """
    state = StateForm(has_aux, state_labels, isinstance(losses, Samplewise))
    problem = make_problem(
        losses, encode, tasks, has_aux, state=state if has_state else None
    )
    if problem.stacked and encode is None:
        raise ValueError(
            "`encode` must be given to infer the labels of stacked heads: without it, "
            "a stacked leaf looks like a shared leaf. Use label_params."
        )
    check_params(params)
    leaves, treedef = jax.tree_util.tree_flatten_with_path(params)
    reads = _trace_reads(problem, params, args)
    if reads.tasks is None:
        raise ValueError(
            "`losses` must return a mapping or sequence of scalars, or a vector made "
            "by jnp.stack of scalars. Otherwise mtlopt cannot find out which loss "
            "reads which leaf."
        )
    known = None if rules is None else jax.tree.leaves(some_labels(params, rules))
    labels = []
    for i, (path, leaf) in enumerate(leaves):
        if known is not None and known[i] != UNKNOWN:
            labels.append(known[i])
            continue
        if not jnp.issubdtype(jnp.result_type(leaf), jnp.floating):
            labels.append(FROZEN)
            continue
        readers = [task for task, used in reads.tasks.items() if used[i]]
        encoded = reads.encode is not None and reads.encode[i]
        several = len(readers) > 1 and not problem.stacked
        if reads.encode is not None and readers and (encoded or several):
            name, advice = path_string(path), _through_latent(reads)
            if encoded:
                raise ValueError(
                    f"the loss of task {readers[0]!r} reads `{name}`, which is shared. "
                    f"{advice}."
                )
            raise ValueError(
                f"the losses of tasks {', '.join(map(repr, readers))} read `{name}`. "
                "If it belongs to one task, no other may read it. If it is shared, "
                f"{advice[0].lower()}{advice[1:]}."
            )
        if encoded:
            labels.append(SHARED)
        elif not readers:
            raise ValueError(
                f"no function reads the leaf `{path_string(path)}`. If it belongs to a "
                "head, check that the loss reads its own head, from the parameters "
                "that it gets as an argument, not from outside of it. Otherwise remove "
                f"the leaf, or label it with a rule, such as {FROZEN!r} if it never "
                "moves."
            )
        elif problem.stacked:
            labels.append(STACKED)
        else:
            labels.append(readers[0] if len(readers) == 1 else SHARED)
    return jax.tree.unflatten(treedef, labels)


def _trace_reads(problem: Problem[Any], params: PyTree, args: tuple[Any, ...]) -> Reads:
    """Runs `problem.reads` on shapes; leaves that are not arrays do not change."""
    arrays, join = split_arrays(args)
    found: list[Reads] = []

    def trace(params: PyTree, arrays: list[Any]) -> None:
        found.append(problem.reads(params, None, join(arrays)))

    jax.eval_shape(trace, params, arrays)
    return found[0]
