"""The problem of a vision experiment: a network, tasks, their losses and metrics."""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import mtlopt

PyTree = Any
# For each task the output of its head, or its labels.
ByTask = Mapping[str, Any]


class Metric(NamedTuple):
    """A number of the tables.

    name: as in `scores`. title: with its unit. task: whose it is; empty for one of all
    tasks. higher_is_better: whether it is. factor: what it is multiplied with there.
    digits: behind the point.
    """

    name: str
    title: str
    task: str
    higher_is_better: bool
    factor: float = 1.0
    digits: int = 2


@dataclasses.dataclass(frozen=True)
class Tasks:
    """What is learnt.

    Attributes:
      losses: by task, `loss(outputs, labels)`, a mean over what has a label.
      count: from outputs and labels of a batch to what the metrics are made of.
      scores: from these of all batches to the metrics by name.
      metrics: those of the tables.
      draw: by the title of an image, from the outputs to what there is to see: classes
        `[batch, height, width]` or quantities `[..., channels]`. A title that is no
        task stands for all tasks, the classes of one map.
      classified: names of the tasks whose loss is a cross-entropy; those of the others
        are errors.
    """

    losses: Mapping[str, Callable[[jax.Array, jax.Array], jax.Array]]
    count: Callable[[ByTask, ByTask], PyTree]
    scores: Callable[[Sequence[PyTree]], Mapping[str, Any]]
    metrics: tuple[Metric, ...]
    draw: Mapping[str, Callable[[ByTask], jax.Array]] = dataclasses.field(
        default_factory=dict
    )
    classified: Sequence[str] = ()


def total(parts: Sequence[PyTree]) -> PyTree:
    """Returns the sum over the batches."""
    return functools.reduce(lambda a, b: jax.tree.map(jnp.add, a, b), parts)


@dataclasses.dataclass(frozen=True, eq=False)
class Problem:
    """What is trained. A batch is `{"image": uint8, "labels": by task}`.

    Attributes:
      tasks: losses and metrics.
      init: from a seed to the initial parameters and BatchNorm statistics.
      labels: who owns which leaf.
      oracle: gradients, `oracle(params, batch, stats)`.
      predict: `predict(params, stats, image)`, the outputs of all tasks, normalised by
        the running statistics.
      loss: `loss(task, params, stats, batch)`, of one task by itself, and the new
        statistics; for problems without a common latent.
      new_stats: from the oracle's aux to the statistics after a step.
    """

    tasks: Tasks
    init: Callable[[int], tuple[PyTree, PyTree]]
    labels: Mapping[str, str]
    oracle: mtlopt.Oracle
    predict: Callable[[PyTree, PyTree, jax.Array], ByTask]
    loss: Callable[..., tuple[jax.Array, PyTree]]
    new_stats: Callable[[Any], PyTree]

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the tasks."""
        return self.oracle.tasks

    @property
    def kinds(self) -> tuple[str, ...]:
        """The kind of each task's loss, for `mtlopt.weight_by_uncertainty`."""
        classified = self.tasks.classified
        return tuple(
            "classification" if name in classified else "regression"
            for name in self.names
        )

    def present(self, batch: PyTree) -> jax.Array:
        """Returns which tasks have a label in a batch, bool `[tasks]`."""
        return jnp.sum(self.labelled(batch), axis=1) > 0

    def labelled(self, batch: PyTree) -> jax.Array:
        """Returns which samples have a label of each task, bool `[tasks, batch]`."""

        def known(label: jax.Array) -> jax.Array:
            floating = jnp.issubdtype(label.dtype, jnp.floating)
            there = jnp.isfinite(label) if floating else label >= 0
            return jnp.any(there.reshape(len(label), -1), axis=1)

        return jnp.stack([known(batch["labels"][task]) for task in self.names])


def make_problem(
    build: Callable[[jax.Array], Any], tasks: Tasks, *, stacked: bool = False
) -> Problem:
    """Returns the problem of a network with BatchNorm.

    Args:
      build: from a PRNG key to the network, with a head for each task.
      tasks: what its heads learn.
      stacked: whether its heads are stacked, in the order of the tasks.
    """
    from flax import nnx

    from mtlopt.models import functional_with_stats

    # The functions need the shapes only.
    network = functional_with_stats(
        nnx.eval_shape(functools.partial(build, jax.random.key(0)))
    )
    names = tuple(tasks.losses)
    with_stats = network.stats.get("heads", {})

    @functools.cache  # initialising takes longer than a short run
    def built(seed: int) -> tuple[PyTree, PyTree]:
        made = functional_with_stats(build(jax.random.key(seed)))
        return made.params, made.stats

    def init(seed: int) -> tuple[PyTree, PyTree]:
        return jax.tree.map(jnp.copy, built(seed))  # training donates them

    def encode(params: PyTree, stats: PyTree, image: jax.Array, train: bool) -> Any:
        return network.encode(params, stats, image / 255.0, train=train)

    def head(
        task: str, params: PyTree, stats: PyTree, z: Any, image: jax.Array, train: bool
    ) -> tuple[jax.Array, PyTree]:
        if task in with_stats:
            out, own = network.heads[task](params, stats, z, train=train)
        else:
            out, own = network.heads[task](params, z), None
        if out.ndim == 4 and out.shape[1:3] != image.shape[1:3]:
            shape = (*image.shape[:3], out.shape[3])
            out = jax.image.resize(out, shape, "bilinear")
        return out, own

    def head_loss(task: str) -> Callable[..., Any]:
        def loss(params: PyTree, z: Any, batch: PyTree, stats: PyTree) -> Any:
            out, own = head(task, params, stats, z, batch["image"], True)
            return tasks.losses[task](out, batch["labels"][task]), own

        return loss

    def stacked_loss(
        params: PyTree, z: Any, task: Any, batch: PyTree, stats: PyTree
    ) -> Any:
        labels = jnp.stack([batch["labels"][name] for name in names])[task]
        out, own = head("stacked", params, stats, z, batch["image"], True)
        return tasks.losses[names[0]](out, labels), own

    def loss(task: str, params: PyTree, stats: PyTree, batch: PyTree) -> Any:
        z, moved = encode(params, stats, batch["image"], True)
        value, own = head_loss(task)(params, z, batch, stats)
        if own is not None:
            moved = {**moved, "heads": {**moved["heads"], task: own}}
        return value, moved

    def predict(params: PyTree, stats: PyTree, image: jax.Array) -> ByTask:
        z, _ = encode(params, stats, image, False)
        if not stacked:
            return {
                task: head(task, params, stats, z, image, False)[0] for task in names
            }
        own = jax.vmap(
            lambda heads: head(
                "stacked", {**params, "heads": heads}, stats, z, image, False
            )[0]
        )
        return dict(zip(names, own(params["heads"]), strict=True))

    def new_stats(aux: Any) -> PyTree:
        if not with_stats:
            return aux.encode
        return {**aux.encode, "heads": {task: aux.tasks[task] for task in with_stats}}

    if stacked:
        losses = mtlopt.stacked(stacked_loss, len(names))
        labels = {"encoder": "shared", "heads": "stacked"}
    else:
        losses = {task: head_loss(task) for task in names}
        labels = {"encoder": "shared", **{f"heads/{task}": task for task in names}}
    oracle = mtlopt.task_grad(
        losses,
        labels,
        encode=lambda params, batch, stats: encode(params, stats, batch["image"], True),
        tasks=names if stacked else None,
        has_aux=True,
    )
    # Compiled here, once for all methods.
    predict = jax.jit(predict)
    return Problem(tasks, init, labels, oracle, predict, loss, new_stats)


def as_numbers(scores: Mapping[str, Any]) -> dict[str, float]:
    """Returns the metrics as plain numbers."""
    return {name: float(np.asarray(value)) for name, value in scores.items()}
