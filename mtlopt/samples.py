"""Problems with one task per sample: `samplewise`, and a batch's samples and tasks."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, Literal

import jax
import jax.numpy as jnp

from mtlopt._checks import check_choice
from mtlopt.forms import Stacked
from mtlopt.heads import are_of_heads
from mtlopt.labels import path_string
from mtlopt.linalg.dtypes import solver_dtype
from mtlopt.linalg.normalise import safe_divide
from mtlopt.rows.groups import Groups
from mtlopt.rows.protocol import Leaves

PyTree = Any

Reduce = Literal["mean", "sum"]


@dataclasses.dataclass(frozen=True, eq=False)
class Samplewise:
    """Losses written for one sample, which belongs to one task: see `samplewise`."""

    losses: Mapping[str, Callable[..., Any]] | Stacked | Callable[..., Any]
    task_of: Callable[[PyTree], Any] | None
    weight_of: Callable[[PyTree], Any] | None
    reduce: Reduce


def samplewise(
    losses: Mapping[str, Callable[..., Any]] | Stacked | Callable[..., Any],
    task_of: Callable[[PyTree], Any] | None,
    *,
    weight_of: Callable[[PyTree], Any] | None = None,
    reduce: Reduce = "mean",
) -> Samplewise:
    r"""Declares that each sample of the batch belongs to one task.

    .. math:: L_t = \frac{\sum_{b : t_b = t} w_b \, \ell_b}{\sum_{b : t_b = t} w_b}

    Here sample `b` has the task :math:`t_b`, the weight :math:`w_b` and the loss
    :math:`\ell_b`. Use this form if the batch mixes several domains, groups or data
    sets with inputs of the same kind, or if each example is a task. One backward pass
    of the batch carries the gradients of all tasks, whatever their number. You write
    `encode` and the losses for **one** sample, and mtlopt vmaps them. So you cannot use
    layers that compute over the whole batch, such as BatchNorm in training.

    When you call the oracle, the first argument after the parameters is the batch, a
    pytree whose leaves have a leading axis of samples. The functions get one sample of
    the batch, and all other arguments unchanged, except typed PRNG keys. These keys are
    folded with the index of the sample, so each sample has its own noise. Aux gets a
    leading axis of samples. If `losses` is a mapping, the aux of each loss is valid
    only for the samples of its task.

    A task is absent if it has no sample in the batch, or only samples of weight zero.
    An absent task has a loss of zero (see `present` in `Oracle.__call__`). The values
    in a sample of weight zero do not matter.

    Args:
      losses: the losses of a sample, in one of three forms.

        * `stacked(loss, num_tasks)`, with `loss(params, z, task, sample, *args)` for
          the task of the sample. Without `encode` there is no `z`.
        * With `encode`, a mapping from task to `loss(params, z, sample, *args)`. All
          losses run on all samples.
        * One function `losses(params, sample, *args)` that returns all losses of a
          sample, without aux or state, and marks its latent, see `latent`.
      task_of: function `task_of(sample)` that returns the index of a sample's task. A
        sample belongs to no task if this index is not from 0 to T - 1. Pass None if
        sample i is task i.
      weight_of: function `weight_of(sample)` that returns the sample's weight in its
        task's mean. The weight is at least 0; a bool is a mask. Default: ones.
      reduce: `"mean"`, or `"sum"` for sums of weighted losses.

    Returns:
      The value to pass to `task_grad` as `losses`.

    Raises:
      TypeError: if an argument has the wrong type.
      ValueError: if `reduce` is unknown. A call of the oracle raises one if the batch
        has no common axis of samples, or if a function cannot be vmapped.

    Examples:
      >>> import jax, jax.numpy as jnp
      >>> import mtlopt
      >>> params = {"w": jnp.ones(2), "heads": jnp.array([1.0, 2.0, 3.0])}
      >>> def loss(params, z, task, sample):
      ...     return params["heads"] * z
      >>> oracle = mtlopt.task_grad(
      ...     mtlopt.samplewise(
      ...         mtlopt.stacked(loss, 3), task_of=lambda sample: sample["task"]
      ...     ),
      ...     {"w": "shared", "heads": "stacked"},
      ...     encode=lambda params, sample: jnp.vdot(params["w"], sample["x"]),
      ... )
      >>> batch = {"x": jnp.eye(2)[jnp.array([0, 1, 1])], "task": jnp.array([0, 0, 2])}
      >>> @jax.jit
      ... def look(params, batch):
      ...     grads = oracle(params, batch)
      ...     return grads.losses, grads.present, grads.rows().gramian()
      >>> losses, present, gramian = look(params, batch)
      >>> print(losses, present)
      [1. 0. 3.] [ True False  True]
      >>> print(gramian)
      [[0.5 0.  1.5]
       [0.  0.  0. ]
       [1.5 0.  9. ]]
    """
    if not are_of_heads(losses) and not callable(losses):
        raise TypeError(
            "`losses` of samplewise must be a mapping from task to loss, "
            "mtlopt.stacked(...), or one function that marks its latent, got "
            f"{type(losses).__name__}."
        )
    for name, function in (("task_of", task_of), ("weight_of", weight_of)):
        if function is not None and not callable(function):
            raise TypeError(
                f"`{name}` must be a function of one sample, or None, got "
                f"{type(function).__name__}. Put such numbers into the batch, and "
                f"write {name}=lambda sample: sample[...]."
            )
    check_choice("reduce", reduce, ("mean", "sum"))
    return Samplewise(losses, task_of, weight_of, reduce)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Samples:
    """The samples of a batch.

    Attributes:
      batch: leaves `[samples, ...]`.
      index: index of each sample, `[samples]` int32.
      tasks: task of each sample, `[samples]` int32.
      shares: share of each sample's loss in its task's loss, `[samples]`.
      groups: the tasks of the samples, limited to the tasks that are evaluated.
      task_weights: sum of the weights of each task's samples, `[tasks]`.
    """

    batch: PyTree
    index: jax.Array
    tasks: jax.Array
    shares: jax.Array
    groups: Groups
    task_weights: jax.Array

    @property
    def parts(self) -> tuple[PyTree, jax.Array]:
        """The samples and their indices, over which the functions are vmapped."""
        return self.batch, self.index

    @property
    def counts(self) -> jax.Array:
        """The samples that belong to a task that is evaluated, bool `[samples]`."""
        return self.groups.ids >= 0

    def only(self, task: int) -> tuple[jax.Array, jax.Array]:
        """Returns two masks `[samples]`: a task's samples, and the first of them."""
        own = (self.tasks == task) & self.counts
        size = len(self.index)
        return own, self.index == jnp.min(jnp.where(own, self.index, size))

    def of_tasks(self, leaves: Leaves) -> Leaves:
        """Returns for each sample the entry of its task, from leaves `[tasks, ...]`."""
        return [jnp.asarray(leaf)[self.tasks] for leaf in leaves]

    def total(self, losses: jax.Array) -> jax.Array:
        """Computes the losses of the tasks from the losses of the samples."""
        own = jnp.where(self.counts, self.shares.astype(losses.dtype) * losses, 0)
        return self.groups.sums(own)


def make_samples(
    form: Samplewise, num_tasks: int, args: tuple[Any, ...], members: Any = None
) -> Samples:
    """Reads tasks and weights from the batch.

    Samples that belong to no task are replaced by a sample that belongs to one, so that
    their values do not spoil a gradient.

    Args:
      form: the loss functions, with the functions that return each sample's task and
        weight.
      num_tasks: number of tasks.
      args: arguments of the functions; the first is the batch.
      members: indices of the tasks that are evaluated; None for all.
    """
    size = batch_size(args)
    batch = jax.tree.map(jnp.asarray, args[0])
    index = jnp.arange(size, dtype=jnp.int32)
    if form.task_of is None and size != num_tasks:
        raise ValueError(
            "`task_of` must be a function unless sample i is task i, got None with "
            f"{size} samples and {num_tasks} tasks."
        )
    ids = index if form.task_of is None else _task_ids(form.task_of, batch, num_tasks)
    weights = jnp.ones(size)
    if form.weight_of is not None:
        weights = jax.vmap(form.weight_of)(batch)
        if weights.shape != (size,):
            raise ValueError(
                "`weight_of` must return a scalar for a sample, got shape "
                f"{weights.shape[1:]}."
            )
        weights = weights.astype(solver_dtype([weights]))
        ids = jnp.where(weights == 0, -1, ids)
    whole = Groups(ids, num_tasks, one_each=form.task_of is None)
    totals, shares = whole.sums(weights), weights
    if form.reduce == "mean":
        shares = safe_divide(weights, whole.of_samples(totals))
    groups = whole
    if members is not None:
        groups = whole.chosen(jnp.asarray(members, jnp.int32))
    tasks = jnp.clip(ids, 0)
    if form.task_of is not None or form.weight_of is not None or members is not None:
        counts = groups.ids >= 0
        first = index == jnp.min(jnp.where(counts, index, size))
        batch, tasks = replace_samples((batch, tasks), counts, first)
    return Samples(batch, index, tasks, shares, groups, totals)


def batch_leaf(path: tuple[Any, ...]) -> str:
    """Names a leaf of the batch in an error."""
    if not path:
        return "the batch, the first argument after the parameters and before keys,"
    return f"the batch leaf `{path_string(path)}`"


def batch_size(args: tuple[Any, ...]) -> int:
    """Returns the number of samples of the first argument, or raises."""
    leaves = jax.tree_util.tree_flatten_with_path(args[0])[0] if args else []
    if not leaves:
        raise ValueError(
            "one task per sample needs a batch of arrays as the first argument after "
            "the parameters, got none."
        )
    sizes = {}
    for path, leaf in leaves:
        if not hasattr(leaf, "shape") or not jnp.ndim(leaf):
            raise ValueError(
                f"{batch_leaf(path)} must have a leading axis of samples, got "
                f"{leaf!r}. Pass values that are not part of a sample as another "
                "argument."
            )
        if jax.typeof(leaf).sharding.mesh.explicit_axes:
            raise ValueError(
                "one task per sample needs a mesh with automatic axes, got explicit "
                f"axes at the batch leaf `{path_string(path)}`: mtlopt selects samples "
                "by their task. Make the mesh with axis_types=AxisType.Auto."
            )
        sizes.setdefault(len(leaf), path_string(path))
    if len(sizes) > 1:
        (one, first), (other, second), *_ = sizes.items()
        raise ValueError(
            "the leaves of the batch must have the same leading axis of samples, got "
            f"{one} in `{first}` and {other} in `{second}`. Pass values that are not "
            "part of a sample as another argument."
        )
    return next(iter(sizes))


def one_sample(args: tuple[Any, ...]) -> tuple[Any, ...]:
    """Returns the arguments of the first sample."""
    batch_size(args)
    return first_of(args[0]), *args[1:]


def first_of(batch: PyTree) -> PyTree:
    """Returns the first sample."""
    return jax.tree.map(lambda leaf: leaf[0], batch)


def fold_keys(args: tuple[Any, ...], index: jax.Array) -> tuple[Any, ...]:
    """Returns the arguments, with an index folded into each typed PRNG key."""

    def fold(leaf: Any) -> Any:
        is_key = hasattr(leaf, "dtype") and jnp.issubdtype(
            leaf.dtype, jax.dtypes.prng_key
        )
        if not is_key:
            return leaf
        keys = jax.vmap(lambda key: jax.random.fold_in(key, index))(leaf.reshape(-1))
        return keys.reshape(leaf.shape)

    return jax.tree.map(fold, args)


def _task_ids(
    task_of: Callable[[PyTree], Any], batch: PyTree, num_tasks: int
) -> jax.Array:
    ids = jax.vmap(task_of)(batch)
    if not hasattr(ids, "dtype") or not jnp.issubdtype(ids.dtype, jnp.integer):
        kind = ids.dtype if hasattr(ids, "dtype") else type(ids).__name__
        raise TypeError(f"`task_of` must return an integer, got {kind}.")
    if ids.ndim != 1:
        raise ValueError(
            f"`task_of` must return a scalar for a sample, got shape {ids.shape[1:]}."
        )
    return jnp.where((ids >= 0) & (ids < num_tasks), ids, -1).astype(jnp.int32)


def replace_samples(batch: PyTree, counts: jax.Array, by: jax.Array) -> PyTree:
    """Replaces each sample that does not count with the sample that `by` marks.

    It uses sums instead of indexing, so that a batch that is split across several
    devices stays split.
    """

    def replace(leaf: jax.Array) -> jax.Array:
        if jnp.issubdtype(leaf.dtype, jax.dtypes.extended):
            return leaf  # a key is valid for any sample
        column = (slice(None),) + (None,) * (leaf.ndim - 1)
        only = jnp.where(by[column], leaf, jnp.zeros_like(leaf))
        if leaf.dtype == bool:
            one = jnp.any(only, axis=0)
        else:
            one = jnp.sum(only, axis=0, dtype=leaf.dtype)
        return jnp.where(counts[column], leaf, one)

    return jax.tree.map(replace, batch)
