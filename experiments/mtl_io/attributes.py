"""Images with forty attributes: faces of CelebA, or rendered rooms in their place."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp

from experiments.data.celeba import load_celeba
from experiments.data.rendered import load_rooms
from experiments.data.rendered_samples import (
    SPLITS,
    attribute_labels,
    rendered_samples,
)
from experiments.data.samples import Samples
from experiments.lab.vision.experiment import Settings
from experiments.lab.vision.losses import binary_cross_entropy, cross_entropy
from experiments.lab.vision.metrics import attribute_scores, count_attributes, total
from experiments.lab.vision.problem import ByTask, Metric, Tasks

_QUICK_SIZE, _FULL_SIZE = (32, 32), (64, 64)
ERROR, F1, ACCURACY = (
    Metric("error", "error [%]", "", False, 100),
    Metric("f1", "F1 [%]", "", True, 100),
    Metric("accuracy", "accuracy [%]", "", True, 100),
)


def load_attributes(settings: Settings) -> dict[str, Samples]:
    """Reads CelebA, or draws rooms with 40 attributes of their own."""
    size = _QUICK_SIZE if settings.small else _FULL_SIZE
    if settings.data_dir is not None:
        folder = settings.data_dir
        return {split: load_celeba(folder, split, size=size) for split in SPLITS}
    numbers = (384, 96, 192) if settings.small else (2000, 400, 400)
    rooms = load_rooms(*numbers, size=size)
    rooms = dataclasses.replace(rooms, source=f"40 attributes of {rooms.source}")
    return rendered_samples(rooms, attribute_labels)


def attribute_tasks(
    names: Sequence[str], metrics: tuple[Metric, ...], *, outputs: int
) -> Tasks:
    """Returns yes-or-no attributes of an image.

    Args:
      names: of the attributes.
      metrics: of `ERROR`, `F1` and `ACCURACY`, those of the table.
      outputs: of a head: a logit, or one for no and one for yes.
    """

    def count(by_task: ByTask, labels: ByTask) -> Any:
        heads = jnp.stack([by_task[name] for name in names], axis=1)
        said = heads[..., -1] > (heads[..., 0] if outputs == 2 else 0)
        return count_attributes(said, jnp.stack([labels[n] for n in names], axis=1))

    def scores(parts: Sequence[Any]) -> dict[str, Any]:
        found = attribute_scores(total(parts))
        each = zip(names, found.pop("each"), strict=True)
        errors = {f"error_{name}": error for name, error in each}
        return {**found, "accuracy": 1 - found["error"], **errors}

    loss = cross_entropy if outputs == 2 else binary_cross_entropy
    losses = dict.fromkeys(names, loss)
    return Tasks(losses, count, scores, metrics, classified=names)
