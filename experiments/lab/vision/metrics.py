"""Metrics of the dense-prediction, face and pose experiments, batch by batch.

A `count_*` function turns a batch into sums, which are added over the batches, by
`jax.tree.map(jnp.add, first, second)`, and a `*_scores` function turns the sums of all
of them into scores. So a score does not depend on how the samples are batched. What has
no label counts nowhere, see `experiments.lab.vision.losses`. All run under `jit`.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from experiments.lab.vision.losses import check_shapes, norm, unit
from mtlopt.linalg.normalise import nan_unless_finite, safe_divide

ANGLES = (11.25, 22.5, 30.0)  # in degrees
_BINS_PER_DEGREE = 100
_NUM_BINS = 180 * _BINS_PER_DEGREE


class SegmentationScores(NamedTuple):
    """Each from 0 to 1 and of shape `[]`."""

    mean_iou: jax.Array
    pixel_accuracy: jax.Array


def count_classes(
    predictions: jax.Array, labels: jax.Array, num_classes: int
) -> jax.Array:
    """Returns the confusion matrix: how often class i was predicted as class j.

    Args:
        predictions: the predicted classes, from 0 on, integer `[...]`.
        labels: the true ones, integer `[...]`, below 0 where there is none.
        num_classes: the number of classes.

    Returns:
        The counts, int32 `[classes, classes]`: exact up to two thousand million pixels.

    Raises:
        ValueError: if the shapes differ.

    Examples:
        >>> count_classes(jnp.array([0, 1, 1]), jnp.array([0, 0, -1]), 2)
        Array([[1, 1],
               [0, 0]], dtype=int32)
    """
    check_shapes(predictions, labels)
    counts = jnp.zeros([num_classes, num_classes], jnp.int32)
    # A row past the end is dropped.
    rows = jnp.where(labels >= 0, labels, num_classes)
    return counts.at[rows, predictions].add(1, mode="drop")


def segmentation_scores(confusion: jax.Array) -> SegmentationScores:
    r"""Returns the mean intersection over union and the pixel accuracy.

    .. math:: \mathrm{mIoU} = \frac{1}{|K|} \sum_{c \in K}
        \frac{n_{cc}}{\sum_j n_{cj} + \sum_i n_{ic} - n_{cc}}, \qquad
        \mathrm{acc} = \frac{\sum_c n_{cc}}{\sum_{ij} n_{ij}}

    K are the classes that occur among labels or predictions. Differs from the code of
    Pascal et al., which averages over images.

    Args:
        confusion: `n`, `[classes, classes]`, the sum over the batches.

    Examples:
        >>> print(segmentation_scores(jnp.array([[3, 1, 0], [0, 4, 0], [0, 0, 0]])))
        SegmentationScores(mean_iou=Array(0.775, dtype=float32),
                           pixel_accuracy=Array(0.875, dtype=float32))
    """
    confusion = confusion.astype(jnp.result_type(float))
    right = jnp.diagonal(confusion)
    union = jnp.sum(confusion, axis=0) + jnp.sum(confusion, axis=1) - right
    num_classes = jnp.sum(union > 0).astype(right.dtype)
    return SegmentationScores(
        safe_divide(jnp.sum(safe_divide(right, union)), num_classes),
        safe_divide(jnp.sum(right), jnp.sum(confusion)),
    )


class ErrorSums(NamedTuple):
    """Sums over all values: their number, int32, and errors, each of shape `[]`."""

    count: jax.Array
    absolute: jax.Array
    relative: jax.Array
    square: jax.Array


class ErrorScores(NamedTuple):
    """Means over all values, each of shape `[]`."""

    absolute: jax.Array
    relative: jax.Array
    square: jax.Array


def count_errors(predictions: jax.Array, targets: jax.Array) -> ErrorSums:
    r"""Returns the sums of errors of a depth, a disparity or an instance offset.

    .. math:: |x - t|, \qquad \frac{|x - t|}{|t|}, \qquad (x - t)^2

    for each channel of each place. The relative one is for targets that are not 0; for
    one that is, it counts as 0.

    Args:
        predictions: `x`, `[..., channels]`.
        targets: `t`, `[..., channels]`, not finite where there is none.

    Raises:
        ValueError: if the shapes differ.

    Examples:
        >>> sums = count_errors(jnp.array([[3.0], [4.0]]), jnp.array([[2.0], [8.0]]))
        >>> [float(score) for score in error_scores(sums)]
        [2.5, 0.5, 8.5]
    """
    check_shapes(predictions, targets)
    known = jnp.isfinite(targets)
    targets = jnp.where(known, targets, 0)
    errors = jnp.where(known, jnp.abs(predictions - targets), 0)
    return ErrorSums(
        jnp.sum(known, dtype=jnp.int32),
        jnp.sum(errors),
        jnp.sum(safe_divide(errors, jnp.abs(targets))),
        jnp.sum(errors**2),
    )


def error_scores(sums: ErrorSums) -> ErrorScores:
    """Returns the mean errors: absolute and relative (depth), square (disparity)."""
    count = sums.count.astype(sums.absolute.dtype)
    return ErrorScores(*(safe_divide(total, count) for total in sums[1:]))


class AngleSums(NamedTuple):
    """Sums over all normals.

    count: int32 `[]`. angle: in degrees, `[]`. within: how many below each of
    `ANGLES`, int32 `[3]`. histogram: int32 `[18000]`, in bins of a hundredth of a
    degree.
    """

    count: jax.Array
    angle: jax.Array
    within: jax.Array
    histogram: jax.Array


class AngleScores(NamedTuple):
    """Mean and median in degrees, `[]`; the share below each of `ANGLES`, `[3]`."""

    mean: jax.Array
    median: jax.Array
    within: jax.Array


def count_angles(predictions: jax.Array, normals: jax.Array) -> AngleSums:
    """Returns the sums of the angles between predicted and true normals.

    Args:
        predictions: of any length, `[..., 3]`.
        normals: `[..., 3]`, not finite where there is none.

    Raises:
        ValueError: if the shapes differ.

    Examples:
        >>> x, y = jnp.eye(2, 3)
        >>> sums = count_angles(jnp.stack([x, x + y, y]), jnp.stack([x, x, x]))
        >>> mean, median, within = angle_scores(sums)
        >>> print(mean, median.round(2), within)
        45.0 45.0 [0.33333334 0.33333334 0.33333334]
    """
    check_shapes(predictions, normals)
    known = jnp.all(jnp.isfinite(normals), axis=-1)
    angles = jnp.where(known, angle(predictions, normals), 0)
    bins = jnp.clip((angles * _BINS_PER_DEGREE).astype(jnp.int32), max=_NUM_BINS - 1)
    counted = jnp.zeros(_NUM_BINS, jnp.int32).at[bins].add(known.astype(jnp.int32))
    within = [jnp.sum(known & (angles < limit), dtype=jnp.int32) for limit in ANGLES]
    return AngleSums(
        jnp.sum(known, dtype=jnp.int32), jnp.sum(angles), jnp.stack(within), counted
    )


def angle_scores(sums: AngleSums) -> AngleScores:
    """Returns the mean and the median angle and the shares of small ones.

    The median is exact to half a hundredth of a degree.
    """
    count = sums.count.astype(sums.angle.dtype)
    # The bins of the two normals in the middle, which are one if their number is odd.
    up_to = jnp.cumsum(sums.histogram)
    ranks = ((sums.count + 1) // 2, sums.count // 2 + 1)
    low, high = (jnp.argmax(up_to >= rank) for rank in ranks)
    median = jnp.where(count > 0, ((low + high + 1) / 2) / _BINS_PER_DEGREE, 0)
    # A NaN among the predictions is in no bin.
    return AngleScores(
        safe_divide(sums.angle, count),
        nan_unless_finite(median, sums.angle),
        nan_unless_finite(
            safe_divide(sums.within.astype(count.dtype), count), sums.angle
        ),
    )


class AttributeSums(NamedTuple):
    """Numbers of samples for each attribute, int32 `[attributes]`.

    count: with a label. wrong: predicted otherwise. positive: with a yes. predicted:
    with a label and predicted as a yes. true: with both.
    """

    count: jax.Array
    wrong: jax.Array
    positive: jax.Array
    predicted: jax.Array
    true: jax.Array


class AttributeScores(NamedTuple):
    """Means over the attributes, each from 0 to 1 and of shape `[]`."""

    error: jax.Array
    f1: jax.Array


def count_attributes(predictions: jax.Array, labels: jax.Array) -> AttributeSums:
    """Returns the counts of yes-or-no attributes.

    Args:
        predictions: 1 for yes and 0 for no, integer or bool `[batch, attributes]`.
        labels: likewise, and below 0 where there is none.

    Raises:
        ValueError: if the shapes differ.

    Examples:
        >>> predictions = jnp.array([[1, 0], [1, 1], [0, 1]])
        >>> labels = jnp.array([[1, 0], [0, 1], [0, -1]])
        >>> print(attribute_scores(count_attributes(predictions, labels)))
        AttributeScores(error=Array(0.16666667, dtype=float32),
                        f1=Array(0.8333334, dtype=float32))
    """
    check_shapes(predictions, labels)
    known, positive, predicted = labels >= 0, labels == 1, predictions == 1
    return AttributeSums(
        *(
            jnp.sum(chosen, axis=0, dtype=jnp.int32)
            for chosen in (
                known,
                known & (predicted != positive),
                positive,
                known & predicted,
                positive & predicted,
            )
        )
    )


def attribute_scores(sums: AttributeSums) -> AttributeScores:
    r"""Returns the average error and the average F1 of the attributes.

    .. math:: E = \frac{1}{T} \sum_t \frac{w_t}{n_t}, \qquad
        F_1 = \frac{1}{T} \sum_t \frac{2 t_t}{p_t + q_t}

    Of :math:`n_t` samples, :math:`w_t` are predicted wrongly, :math:`p_t` have
    attribute t, :math:`q_t` are predicted to, and :math:`t_t` both. A quotient with a
    zero denominator counts as 0.

    References:
        Pascal et al., "Optimization strategies in multi-task learning: averaged or
        independent losses?", Table 3. The paper does not say how F1 is averaged; its
        code does.
    """
    count, wrong, positive, predicted, true = (
        part.astype(jnp.result_type(float)) for part in sums
    )
    return AttributeScores(
        jnp.mean(safe_divide(wrong, count)),
        jnp.mean(safe_divide(2 * true, positive + predicted)),
    )


def pose_errors(
    translations: jax.Array,
    rotations: jax.Array,
    true_translations: jax.Array,
    true_rotations: jax.Array,
) -> tuple[jax.Array, jax.Array]:
    r"""Returns by how much the pose of each camera is wrong.

    .. math:: \| \hat t - t \|_2, \qquad 2 \arccos | \langle \hat q, q \rangle |

    The score of a scene is the median of each over all its frames, which are few enough
    to keep.

    Args:
        translations: `[..., 3]`.
        rotations: quaternions of any length, `[..., 4]`.
        true_translations: `[..., 3]`.
        true_rotations: `[..., 4]`.

    Returns:
        Distances, in the unit of the translations, and angles from 0 to 180 degrees,
        each `[...]`; NaN where there is no true pose, for `jnp.nanmedian`.

    Raises:
        ValueError: if shapes differ.

    Examples:
        >>> turned = jnp.array([[1.0, 1.0, 0.0, 0.0]])  # about the first axis
        >>> unturned = jnp.array([[-1.0, 0.0, 0.0, 0.0]])
        >>> print(*pose_errors(jnp.ones([1, 3]), turned, jnp.ones([1, 3]), unturned))
        [0.] [90.]

    References:
        Senushkin et al., "Independent component alignment for multi-task learning",
        Table 4.
    """
    check_shapes(translations, true_translations)
    check_shapes(rotations, true_rotations)
    # On the sphere of quaternions, half of the way; -q is as good as q.
    half = angle(rotations, true_rotations)
    return norm(translations - true_translations), 2 * jnp.minimum(half, 180 - half)


def angle(first: jax.Array, second: jax.Array) -> jax.Array:
    r"""Returns the angle between vectors in degrees, `[..., channels]` to `[...]`.

    .. math:: 2 \arctan \frac{\| u - v \|}{\| u + v \|}

    for unit vectors u and v. In single precision, the arc cosine of their inner product
    cannot tell angles below a fiftieth of a degree; this can.
    """
    first, second = unit(first), unit(second)
    return jnp.degrees(2 * jnp.arctan2(norm(first - second), norm(first + second)))
