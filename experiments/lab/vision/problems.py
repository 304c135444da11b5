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
    """

    tasks: Tasks
    init: Callable[[int], tuple[PyTree, PyTree]]
    labels: Mapping[str, str]
    oracle: mtlopt.Oracle
    predict: Callable[[PyTree, PyTree, jax.Array], ByTask]
    loss: Callable[..., tuple[jax.Array, PyTree]]

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

    names = tuple(tasks.losses)

    def encode(model: Any, batch: PyTree) -> Any:
        return model.encode(batch["image"] / 255.0)

    def output(head: Any, z: Any, image: jax.Array) -> jax.Array:
        out = head(z)
        if out.ndim == 4 and out.shape[1:3] != image.shape[1:3]:
            shape = (*image.shape[:3], out.shape[3])
            out = jax.image.resize(out, shape, "bilinear")
        return out

    def head_loss(task: str) -> Callable[..., jax.Array]:
        def one(model: Any, z: Any, batch: PyTree) -> jax.Array:
            out = output(model.heads[task], z, batch["image"])
            return tasks.losses[task](out, batch["labels"][task])

        return one

    def stacked_loss(model: Any, z: Any, task: Any, batch: PyTree) -> jax.Array:
        labels = jnp.stack([batch["labels"][name] for name in names])[task]
        out = output(model.heads["stacked"], z, batch["image"])
        return tasks.losses[names[0]](out, labels)

    head_losses = {task: head_loss(task) for task in names}
    if stacked:
        losses = mtlopt.stacked(stacked_loss, len(names))
        labels = {"encoder": "shared", "heads": "stacked"}
    else:
        losses = head_losses
        labels = {"encoder": "shared", **{f"heads/{task}": task for task in names}}
    of_modules = mtlopt.nnx.task_grad(
        losses, labels, encode=encode, tasks=names if stacked else None
    )
    # The functions need the shapes only.
    shapes = nnx.eval_shape(functools.partial(build, jax.random.key(0)))
    _, _, oracle, merge = of_modules.pure(shapes)

    @functools.cache  # initialising takes longer than a short run
    def built(seed: int) -> tuple[PyTree, PyTree]:
        params, stats, _, _ = of_modules.pure(build(jax.random.key(seed)))
        return params, stats

    def init(seed: int) -> tuple[PyTree, PyTree]:
        return jax.tree.map(jnp.copy, built(seed))  # training donates them

    def loss(task: str, params: PyTree, stats: PyTree, batch: PyTree) -> Any:
        model = merge(params, stats)
        value = head_losses[task](model, encode(model, batch), batch)
        return value, nnx.as_pure(nnx.state(model, nnx.Not(nnx.Param)))

    @jax.jit  # once for all methods
    def predict(params: PyTree, stats: PyTree, image: jax.Array) -> ByTask:
        model = merge(params, stats)
        model.eval()
        z = encode(model, {"image": image})
        if not stacked:
            return {task: output(model.heads[task], z, image) for task in names}
        own = nnx.vmap(output, in_axes=(0, None, None))
        return dict(zip(names, own(model.heads["stacked"], z, image), strict=True))

    return Problem(tasks, init, labels, oracle, predict, loss)


def as_numbers(scores: Mapping[str, Any]) -> dict[str, float]:
    """Returns the metrics as plain numbers."""
    return {name: float(np.asarray(value)) for name, value in scores.items()}
