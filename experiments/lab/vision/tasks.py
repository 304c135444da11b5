"""The tasks of the vision experiments: dense labels of three kinds."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.lab.vision.losses import (
    binary_cross_entropy,
    cosine_loss,
    cross_entropy,
    l1,
    rotation_loss,
    translation_loss,
    unit,
)
from experiments.lab.vision.metrics import (
    angle_scores,
    attribute_scores,
    count_angles,
    count_attributes,
    count_classes,
    count_errors,
    error_scores,
    pose_errors,
    segmentation_scores,
)
from experiments.lab.vision.problems import ByTask, Metric, Tasks, total
from mtlopt.linalg.normalise import safe_divide

# In which the network of Cityscapes' three tasks learns.
PIXELS = {"instances": 10.0, "disparity": 10.0}
SEGMENTATION_METRICS = (
    Metric("mean_iou", "mIoU [%]", "segmentation", True, 100),
    Metric("pixel_accuracy", "pixel accuracy [%]", "segmentation", True, 100),
)


def room_tasks(num_classes: int) -> Tasks:
    """Returns segmentation, depth and normals (NYUv2)."""

    def count(outputs: ByTask, labels: ByTask) -> Any:
        return {
            "segmentation": count_classes(
                classes_of(outputs["segmentation"]), labels["segmentation"], num_classes
            ),
            "depth": count_errors(outputs["depth"], labels["depth"]),
            "normals": count_angles(outputs["normals"], labels["normals"]),
        }

    def scores(parts: Sequence[Any]) -> Mapping[str, Any]:
        sums = total(parts)
        depth, angles = error_scores(sums["depth"]), angle_scores(sums["normals"])
        return {
            **segmentation_scores(sums["segmentation"])._asdict(),
            "absolute": depth.absolute,
            "relative": depth.relative,
            "mean_angle": angles.mean,
            "median_angle": angles.median,
        }

    return Tasks(
        losses={"segmentation": cross_entropy, "depth": l1, "normals": cosine_loss},
        classified=("segmentation",),
        count=count,
        scores=scores,
        metrics=(
            *SEGMENTATION_METRICS,
            Metric("absolute", "depth error [m]", "depth", False, 1, 3),
            Metric("relative", "relative depth error [%]", "depth", False, 100),
            Metric("mean_angle", "mean angle [°]", "normals", False),
            Metric("median_angle", "median angle [°]", "normals", False),
        ),
        draw={
            "segmentation": lambda outputs: classes_of(outputs["segmentation"]),
            "depth": lambda outputs: outputs["depth"],
            "normals": lambda outputs: unit(outputs["normals"]),
        },
    )


def classes_of(logits: jax.Array) -> jax.Array:
    """Returns the most likely classes."""
    return jnp.argmax(logits, axis=-1)


def category_tasks(names: Sequence[str]) -> Tasks:
    """Returns a yes-or-no task of each category of pixels (Cityscapes in 7 tasks).

    Its metrics are those of one segmentation, by the category with the highest logit.
    """

    def predicted(outputs: ByTask) -> jax.Array:
        return classes_of(jnp.concatenate([outputs[name] for name in names], axis=-1))

    def count(outputs: ByTask, labels: ByTask) -> Any:
        whole = jnp.stack([labels[name] for name in names], axis=-1)
        there = jnp.all(whole >= 0, axis=-1)
        classes = jnp.where(there, jnp.argmax(whole, axis=-1), -1)
        return count_classes(predicted(outputs), classes, len(names))

    return Tasks(
        losses=dict.fromkeys(names, _binary),
        classified=names,
        count=count,
        scores=lambda parts: segmentation_scores(total(parts))._asdict(),
        metrics=SEGMENTATION_METRICS,
        draw={"categories": predicted},
    )


ERROR, F1, ACCURACY = (
    Metric("error", "error [%]", "", False, 100),
    Metric("f1", "F1 [%]", "", True, 100),
    Metric("accuracy", "accuracy [%]", "", True, 100),
)


def attribute_tasks(
    names: Sequence[str], metrics: tuple[Metric, ...], *, outputs: int
) -> Tasks:
    """Returns yes-or-no attributes of an image (CelebA).

    Args:
        names: of the attributes.
        metrics: of `ERROR`, `F1` and `ACCURACY`, those of the table.
        outputs: of a head: a logit, or one for no and one for yes.
    """

    def count(by_task: ByTask, labels: ByTask) -> Any:
        heads = jnp.stack([by_task[name] for name in names], axis=1)
        said = heads[..., -1] > (heads[..., 0] if outputs == 2 else 0)
        return count_attributes(said, jnp.stack([labels[n] for n in names], axis=1))

    def scores(parts: Sequence[Any]) -> Mapping[str, Any]:
        sums = total(parts)
        each = safe_divide(sums.wrong * 1.0, sums.count * 1.0)
        mean = attribute_scores(sums)
        return {
            **mean._asdict(),
            "accuracy": 1 - mean.error,
            **{f"error_{name}": each[place] for place, name in enumerate(names)},
        }

    return Tasks(
        losses=dict.fromkeys(names, cross_entropy if outputs == 2 else _binary),
        classified=names,
        count=count,
        scores=scores,
        metrics=metrics,
    )


def street_tasks(num_classes: int) -> Tasks:
    """Returns segmentation, instances and disparity (Cityscapes).

    Labels of the last two are in pixels; networks learn them in units of `PIXELS`, so
    that the three losses are of one order.
    """

    def scaled(task: str) -> Any:
        return lambda out, label: l1(out, label / PIXELS[task])

    def count(outputs: ByTask, labels: ByTask) -> Any:
        return {
            "segmentation": count_classes(
                classes_of(outputs["segmentation"]), labels["segmentation"], num_classes
            ),
            **{
                task: count_errors(outputs[task] * pixels, labels[task])
                for task, pixels in PIXELS.items()
            },
        }

    def scores(parts: Sequence[Any]) -> Mapping[str, Any]:
        sums = total(parts)
        return {
            **segmentation_scores(sums["segmentation"])._asdict(),
            "offset": error_scores(sums["instances"]).absolute,
            "disparity": error_scores(sums["disparity"]).square,
        }

    return Tasks(
        losses={
            "segmentation": cross_entropy,
            "instances": scaled("instances"),
            "disparity": scaled("disparity"),
        },
        classified=("segmentation",),
        count=count,
        scores=scores,
        metrics=(
            SEGMENTATION_METRICS[0],
            Metric("offset", "instance error [px]", "instances", False),
            Metric("disparity", "disparity MSE [px²]", "disparity", False),
        ),
        draw={
            "segmentation": lambda outputs: classes_of(outputs["segmentation"]),
            "instances": lambda outputs: outputs["instances"] * PIXELS["instances"],
            "disparity": lambda outputs: outputs["disparity"] * PIXELS["disparity"],
        },
    )


def pose_tasks() -> Tasks:
    """Returns the place and the rotation of a camera (7-Scenes)."""

    def count(outputs: ByTask, labels: ByTask) -> Any:
        return pose_errors(
            outputs["translation"],
            outputs["rotation"],
            labels["translation"],
            labels["rotation"],
        )

    def scores(parts: Sequence[Any]) -> Mapping[str, Any]:
        # NaN, for what is past the end, is sorted out.
        metres, degrees = (np.concatenate(each) for each in zip(*parts, strict=True))
        return {"translation": np.nanmedian(metres), "rotation": np.nanmedian(degrees)}

    return Tasks(
        losses={"translation": translation_loss, "rotation": rotation_loss},
        count=count,
        scores=scores,
        metrics=(
            Metric("translation", "median translation [m]", "translation", False, 1, 3),
            Metric("rotation", "median rotation [°]", "rotation", False),
        ),
    )


def _binary(outputs: jax.Array, labels: jax.Array) -> jax.Array:
    return binary_cross_entropy(outputs[..., 0], labels)
