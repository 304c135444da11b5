"""Images with forty attributes: faces of CelebA, or rendered rooms as a stand-in."""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp

from experiments.data.celeba import load_celeba
from experiments.data.rendered import load_rooms
from experiments.data.rendered_samples import attribute_labels, rendered_samples
from experiments.data.samples import Samples
from experiments.lab.vision import losses, metrics
from experiments.lab.vision.experiment import Settings
from experiments.lab.vision.metrics import Metric
from experiments.lab.vision.problem import ByTask, Tasks

ERROR, F1, ACCURACY = (
    Metric("error", "error [%]", "", False, 100),
    Metric("f1", "F1 [%]", "", True, 100),
    Metric("accuracy", "accuracy [%]", "", True, 100),
)


def load_attributes(settings: Settings) -> dict[str, Samples]:
    """Reads CelebA, or renders rooms with 40 other attributes."""
    size = (32, 32) if settings.small else (64, 64)
    if settings.data_dir is not None:
        read = functools.partial(load_celeba, settings.data_dir, size=size)
        return {split: read(split) for split in ("train", "validation", "test")}
    numbers = (384, 96, 192) if settings.small else (2000, 400, 400)
    rooms = load_rooms(*numbers, size=size)
    rooms = dataclasses.replace(rooms, source=f"40 attributes of {rooms.source}")
    return rendered_samples(rooms, attribute_labels)


def attribute_tasks(
    names: Sequence[str], shown: tuple[Metric, ...], *, outputs: int
) -> Tasks:
    """Returns yes-or-no attributes of an image.

    A head has one output, a logit, or two, for no and yes.
    """

    def count(by_task: ByTask, labels: ByTask) -> Any:
        heads = jnp.stack([by_task[name] for name in names], axis=1)
        said = heads[..., -1] > (heads[..., 0] if outputs == 2 else 0)
        right = jnp.stack([labels[name] for name in names], axis=1)
        return metrics.count_attributes(said, right)

    def scores(parts: Sequence[Any]) -> dict[str, Any]:
        found = metrics.attribute_scores(metrics.total(parts))
        each = zip(names, found.pop("each"), strict=True)
        errors = {f"error_{name}": error for name, error in each}
        return {**found, "accuracy": 1 - found["error"], **errors}

    loss = losses.cross_entropy if outputs == 2 else losses.binary_cross_entropy
    return Tasks(dict.fromkeys(names, loss), count, scores, shown)
