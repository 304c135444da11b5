"""Metrics of dense predictions, attributes and poses, batch by batch.

A `count_*` function turns a batch into sums, `total` adds the sums over the batches,
and a `*_scores` function turns the totals into scores by name. So a score does not
depend on how the samples are batched. A place without a label (see `losses`) does not
count, and a score is 0 if no place counts. Shapes that do not fit raise a ValueError.
"""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from experiments.lab.vision.losses import check_shapes, norm, unit
from experiments.lab.vision.report import Metric
from mtlopt.linalg.normalise import nan_unless_finite, safe_divide

Numbers = dict[str, jax.Array]
_BINS_PER_DEGREE = 100
_NUM_BINS = 180 * _BINS_PER_DEGREE


SEGMENTATION_METRICS = (
    Metric("mean_iou", "mIoU [%]", "segmentation", True, 100),
    Metric("pixel_accuracy", "pixel accuracy [%]", "segmentation", True, 100),
)


def total(parts: Sequence[Any]) -> Any:
    """Returns the sums over the batches."""
    return functools.reduce(lambda a, b: jax.tree.map(jnp.add, a, b), parts)


def classes_of(logits: jax.Array) -> jax.Array:
    """Returns the most likely classes."""
    return jnp.argmax(logits, axis=-1)


def count_classes(
    predictions: jax.Array, labels: jax.Array, num_classes: int
) -> jax.Array:
    """Counts how often class i was predicted as class j, `[classes, classes]`."""
    check_shapes(predictions, labels)
    counts = jnp.zeros([num_classes, num_classes], jnp.int32)
    # A row past the end is dropped.
    rows = jnp.where(labels >= 0, labels, num_classes)
    return counts.at[rows, predictions].add(1, mode="drop")


def segmentation_scores(confusion: jax.Array) -> Numbers:
    r"""Returns the mean intersection over union and the pixel accuracy.

    .. math:: \mathrm{mIoU} = \frac{1}{|K|} \sum_{c \in K}
        \frac{n_{cc}}{\sum_j n_{cj} + \sum_i n_{ic} - n_{cc}}, \qquad
        \mathrm{acc} = \frac{\sum_c n_{cc}}{\sum_{ij} n_{ij}}

    K are the classes that occur among labels or predictions. This differs from the code
    of Pascal et al., which averages over images.
    """
    confusion = confusion.astype(jnp.result_type(float))
    right = jnp.diagonal(confusion)
    union = jnp.sum(confusion, axis=0) + jnp.sum(confusion, axis=1) - right
    num_classes = jnp.sum(union > 0).astype(right.dtype)
    return {
        "mean_iou": safe_divide(jnp.sum(safe_divide(right, union)), num_classes),
        "pixel_accuracy": safe_divide(jnp.sum(right), jnp.sum(confusion)),
    }


def count_errors(predictions: jax.Array, targets: jax.Array) -> Numbers:
    r"""Returns the sums of :math:`|x - t|`, :math:`|x - t| / |t|`, :math:`(x - t)^2`.

    The sums are over all channels of all places; the relative error of a target of 0
    counts as 0.
    """
    check_shapes(predictions, targets)
    known = jnp.isfinite(targets)
    targets = jnp.where(known, targets, 0)
    errors = jnp.where(known, jnp.abs(predictions - targets), 0)
    return {
        "count": jnp.sum(known, dtype=jnp.int32),
        "absolute": jnp.sum(errors),
        "relative": jnp.sum(safe_divide(errors, jnp.abs(targets))),
        "square": jnp.sum(errors**2),
    }


def error_scores(sums: Numbers) -> Numbers:
    """Returns the mean errors: absolute, relative and square."""
    count = sums["count"].astype(sums["absolute"].dtype)
    names = ("absolute", "relative", "square")
    return {name: safe_divide(sums[name], count) for name in names}


def count_angles(predictions: jax.Array, normals: jax.Array) -> Numbers:
    """Returns sum and histogram of the angles between predicted and true normals."""
    check_shapes(predictions, normals)
    known = jnp.all(jnp.isfinite(normals), axis=-1)
    angles = jnp.where(known, angle(predictions, normals), 0)
    bins = jnp.clip((angles * _BINS_PER_DEGREE).astype(jnp.int32), max=_NUM_BINS - 1)
    counted = jnp.zeros(_NUM_BINS, jnp.int32).at[bins].add(known.astype(jnp.int32))
    number = jnp.sum(known, dtype=jnp.int32)
    return {"count": number, "angle": jnp.sum(angles), "histogram": counted}


def angle_scores(sums: Numbers) -> Numbers:
    """Returns mean and median in degrees; the median is exact to half a hundredth."""
    count = sums["count"].astype(sums["angle"].dtype)
    # The bins of the two middle normals, which are the same normal if their number is
    # odd.
    up_to = jnp.cumsum(sums["histogram"])
    ranks = ((sums["count"] + 1) // 2, sums["count"] // 2 + 1)
    low, high = (jnp.argmax(up_to >= rank) for rank in ranks)
    median = jnp.where(count > 0, ((low + high + 1) / 2) / _BINS_PER_DEGREE, 0)
    return {
        "mean_angle": safe_divide(sums["angle"], count),
        # A NaN among the predictions is in no bin.
        "median_angle": nan_unless_finite(median, sums["angle"]),
    }


def count_attributes(predictions: jax.Array, labels: jax.Array) -> Numbers:
    """Counts samples by attribute, from values 1 and 0 `[batch, attributes]`."""
    check_shapes(predictions, labels)
    known, positive, predicted = labels >= 0, labels == 1, predictions == 1
    chosen = {
        "count": known,
        "wrong": known & (predicted != positive),
        "positive": positive,
        "predicted": known & predicted,
        "true": positive & predicted,
    }
    return {name: jnp.sum(own, axis=0, dtype=jnp.int32) for name, own in chosen.items()}


def attribute_scores(sums: Numbers) -> Numbers:
    r"""Returns the error of each attribute, and the averages of error and F1.

    .. math:: E = \frac{1}{T} \sum_t \frac{w_t}{n_t}, \qquad
        F_1 = \frac{1}{T} \sum_t \frac{2 t_t}{p_t + q_t}

    Of :math:`n_t` samples, :math:`w_t` are predicted wrongly, :math:`p_t` have
    attribute t, :math:`q_t` are predicted to have it, and :math:`t_t` have it and are
    predicted to have it. Pascal et al. do not say how F1 is averaged; the average here
    follows their code.
    """
    parts = {name: part.astype(jnp.result_type(float)) for name, part in sums.items()}
    either = parts["positive"] + parts["predicted"]
    each = safe_divide(parts["wrong"], parts["count"])
    f1 = jnp.mean(safe_divide(2 * parts["true"], either))
    return {"each": each, "error": jnp.mean(each), "f1": f1}


def distances(predictions: jax.Array, places: jax.Array) -> jax.Array:
    """Returns each camera's distance from its true place; NaN if it is unknown."""
    check_shapes(predictions, places)
    return norm(predictions - places)


def rotation_angles(predictions: jax.Array, rotations: jax.Array) -> jax.Array:
    r"""Returns :math:`2 \arccos | \langle \hat q, q \rangle |` of quaternions.

    The angle is in degrees, up to 180, for quaternions of any length; it is NaN if a
    rotation is unknown.
    """
    check_shapes(predictions, rotations)
    # The angle between quaternions is half of the rotation's angle; -q is as good as q.
    half = angle(predictions, rotations)
    return 2 * jnp.minimum(half, 180 - half)


def angle(first: jax.Array, second: jax.Array) -> jax.Array:
    r"""Returns the angle between vectors in degrees, `[..., channels]` to `[...]`.

    .. math:: 2 \arctan \frac{\| u - v \|}{\| u + v \|}

    for unit vectors u and v. In single precision, the arc cosine of their inner product
    cannot resolve angles below a fiftieth of a degree; this formula can.
    """
    first, second = unit(first), unit(second)
    return jnp.degrees(2 * jnp.arctan2(norm(first - second), norm(first + second)))
