"""The problem of a vision experiment: a network, tasks, their losses and metrics."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

import mtlopt
from experiments.lab.problem import Problem, make_problem
from experiments.lab.vision import losses, metrics
from experiments.lab.vision.data import Split

PyTree = Any
# For each task the output of its head, or its labels.
ByTask = Mapping[str, Any]


class Tasks(NamedTuple):
    """The losses and metrics of all tasks.

    A loss is a function of outputs and labels, and a mean over the places with labels.
    `count` turns outputs and labels of a batch into counts, and `scores` turns the
    counts of all batches into metrics by name.
    """

    losses: Mapping[str, Callable[[jax.Array, jax.Array], jax.Array]]
    count: Callable[[ByTask, ByTask], PyTree]
    scores: Callable[[Sequence[PyTree]], Mapping[str, Any]]
    metrics: tuple[metrics.Metric, ...]  # the metrics of the tables
    # Functions by task, or under one title for all tasks, from the outputs to an image
    # of classes `[batch, height, width]` or of quantities `[..., channels]`.
    draw: Mapping[str, Callable[[ByTask], jax.Array]] = {}


class Task(NamedTuple):
    """A task with its own metrics: `scores` of the joined `count` of all batches."""

    loss: Callable[[jax.Array, jax.Array], jax.Array]
    count: Callable[[jax.Array, jax.Array], PyTree]
    scores: Callable[[PyTree], Mapping[str, Any]]
    draw: Callable[[jax.Array], jax.Array] | None = None
    join: Callable[[Sequence[PyTree]], PyTree] = metrics.total


def segmentation(num_classes: int) -> Task:
    """Returns the task that predicts the classes of pixels."""

    def count(logits: jax.Array, labels: jax.Array) -> jax.Array:
        return metrics.count_classes(metrics.classes_of(logits), labels, num_classes)

    scores, classes = metrics.segmentation_scores, metrics.classes_of
    return Task(losses.cross_entropy, count, scores, classes)


def separate(tasks: Mapping[str, Task], shown: tuple[metrics.Metric, ...]) -> Tasks:
    """Returns tasks with separate metrics, and the metrics of the tables."""

    def count(outputs: ByTask, labels: ByTask) -> PyTree:
        return {t: own.count(outputs[t], labels[t]) for t, own in tasks.items()}

    def scores(parts: Sequence[PyTree]) -> dict[str, Any]:
        found = {}
        for task, own in tasks.items():
            found |= own.scores(own.join([part[task] for part in parts]))
        return found

    def drawing(task: str, own: Callable[..., jax.Array]) -> Callable[..., jax.Array]:
        return lambda outputs: own(outputs[task])

    return Tasks(
        losses={task: own.loss for task, own in tasks.items()},
        count=count,
        scores=scores,
        metrics=shown,
        draw={t: drawing(t, own.draw) for t, own in tasks.items() if own.draw},
    )


@dataclasses.dataclass(frozen=True, eq=False)
class VisionProblem(Problem):
    """Network, tasks and data. A batch is `{"image": uint8, "labels": by task}`.

    `loss(place, params, state, batch)` returns the loss of the task with index `place`,
    computed alone, and the new state. With stacked heads, the parameters hold only the
    head of this task. `predict(params, state, image)` is jitted.
    """

    learnt: Tasks
    loss: Callable[..., tuple[jax.Array, PyTree]]
    predict: Callable[[PyTree, PyTree, jax.Array], ByTask]
    stacked: bool  # whether the heads are stacked

    def labelled(self, batch: PyTree) -> jax.Array:
        """Returns which samples have a label for each task, bool `[tasks, batch]`."""
        known = []
        for label in (batch["labels"][task] for task in self.tasks):
            floating = jnp.issubdtype(label.dtype, jnp.floating)
            there = jnp.isfinite(label) if floating else label >= 0
            known.append(jnp.any(there.reshape(len(label), -1), axis=1))
        return jnp.stack(known)


def vision_problem(
    build: Callable[[jax.Array], Any],
    tasks: Tasks,
    splits: Mapping[str, Split],
    *,
    stacked: bool = False,
) -> VisionProblem:
    """Returns the problem of a network with a head for each task, in their order."""
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
    problem = make_problem(
        build,
        mtlopt.stacked(stacked_loss, len(names)) if stacked else head_losses,
        encode,
        splits,
        tasks=names if stacked else None,
    )

    def loss(place: Any, params: PyTree, state: PyTree, batch: PyTree) -> Any:
        model = problem.network(params, state, train=True)
        z = encode(model, batch)
        if stacked:
            value = stacked_loss(model, z, place, batch)
        else:
            value = head_losses[names[place]](model, z, batch)
        return value, nnx.as_pure(nnx.state(model, nnx.Not(nnx.Param)))

    @jax.jit  # compiled once for all methods
    def predict(params: PyTree, state: PyTree, image: jax.Array) -> ByTask:
        model = problem.network(params, state)
        z = encode(model, {"image": image})
        if not stacked:
            return {task: output(model.heads[task], z, image) for task in names}
        own = nnx.vmap(output, in_axes=(0, None, None))
        return dict(zip(names, own(model.heads["stacked"], z, image), strict=True))

    return VisionProblem(
        **vars(problem), learnt=tasks, loss=loss, predict=predict, stacked=stacked
    )
