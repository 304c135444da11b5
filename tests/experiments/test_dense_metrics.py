"""Metrics against numpy and closed forms, whole and summed over batches."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.lab.vision.metrics import (
    angle,
    angle_scores,
    attribute_scores,
    count_angles,
    count_attributes,
    count_classes,
    count_errors,
    distances,
    error_scores,
    rotation_angles,
    segmentation_scores,
)

rng = np.random.default_rng(0)
NUM = 60  # samples, of 7 places each
NUM_CLASSES = 5


def some(labels, nothing):
    """Labels of which a third is missing."""
    missing = rng.integers(0, 3, labels.shape[:2]) == 0
    return np.where(
        missing.reshape(*missing.shape, *[1] * (labels.ndim - 2)), nothing, labels
    )


def normalised(array):
    return array / np.linalg.norm(array, axis=-1, keepdims=True)


def iou_and_accuracy(predictions, labels):
    """Over all pixels; class 4 never occurs."""
    known = labels >= 0
    ious = []
    for c in range(NUM_CLASSES - 1):
        first, second = predictions[known] == c, labels[known] == c
        ious.append(np.sum(first & second) / np.sum(first | second))
    accuracy = np.mean(predictions[known] == labels[known])
    return {"mean_iou": np.mean(ious), "pixel_accuracy": accuracy}


def errors(predictions, targets):
    known = np.isfinite(targets)
    x, t = predictions[known], targets[known]
    return {
        "absolute": np.mean(np.abs(x - t)),
        "relative": np.mean(np.abs(x - t) / np.abs(t)),
        "square": np.mean((x - t) ** 2),
    }


def angles(predictions, normals):
    known = np.isfinite(normals[..., 0])
    cosines = np.sum(normalised(predictions[known]) * normals[known], axis=-1)
    degrees = np.degrees(np.arccos(np.clip(cosines, -1, 1)))
    return {"mean_angle": np.mean(degrees), "median_angle": np.median(degrees)}


def error_and_f1(predictions, labels):
    """Attribute by attribute."""
    scores = []
    for x, y in zip(predictions.T, labels.T, strict=True):
        x, y = x[y >= 0], y[y >= 0]
        true = np.sum(x * y)
        precision, recall = true / np.sum(x), true / np.sum(y)
        scores.append([np.mean(x != y), 2 * precision * recall / (precision + recall)])
    error, f1 = np.mean(scores, axis=0)
    return {"each": [own[0] for own in scores], "error": error, "f1": f1}


NORMALS = normalised(rng.normal(size=[NUM, 7, 3]))
# Predictions, labels, sums of a batch, their scores, and the scores by definition.
CASES = {
    "segmentation": (
        rng.integers(0, NUM_CLASSES - 1, [NUM, 7]),
        some(rng.integers(0, NUM_CLASSES - 1, [NUM, 7]), -1),
        functools.partial(count_classes, num_classes=NUM_CLASSES),
        segmentation_scores,
        iou_and_accuracy,
    ),
    "errors": (
        rng.normal(size=[NUM, 7, 2]),
        some(rng.normal(size=[NUM, 7, 2]), np.nan),
        count_errors,
        error_scores,
        errors,
    ),
    "angles": (
        3 * (NORMALS + 0.3 * rng.normal(size=NORMALS.shape)),
        some(NORMALS, np.nan),
        count_angles,
        angle_scores,
        angles,
    ),
    "attributes": (
        rng.integers(0, 2, [NUM, 7]),
        some(rng.integers(0, 2, [NUM, 7]), -1),
        count_attributes,
        attribute_scores,
        error_and_f1,
    ),
}
# Compiled once for all tests.
CASES = {
    name: (predictions, labels, jax.jit(count), jax.jit(scores), definition)
    for name, (predictions, labels, count, scores, definition) in CASES.items()
}


@pytest.mark.parametrize("case", CASES)
def test_scores_are_those_of_all_samples(case):
    """Whole, and added up over batches."""
    predictions, labels, count, scores, definition = CASES[case]
    expected = definition(predictions, labels)
    batches = [
        count(predictions[rows], labels[rows]) for rows in np.split(np.arange(NUM), 3)
    ]
    added = functools.reduce(lambda a, b: jax.tree.map(jnp.add, a, b), batches)
    whole = count(predictions, labels)
    for sums in (whole, added):
        found = scores(sums)
        assert set(found) == set(expected)
        for name, wanted in expected.items():
            # The median is that of the middles of bins of a hundredth of a degree.
            rough = 0.006 if name == "median_angle" else 0
            np.testing.assert_allclose(found[name], wanted, rtol=1e-5, atol=rough)
    for leaf, total in zip(jax.tree.leaves(whole), jax.tree.leaves(added), strict=True):
        if leaf.dtype == np.int32:  # of the counts, not one is lost
            np.testing.assert_array_equal(leaf, total)


@pytest.mark.parametrize("case", CASES)
def test_without_labels_scores_are_zero(case):
    predictions, labels, count, scores, _ = CASES[case]
    nothing = np.full_like(labels, -1 if labels.dtype.kind == "i" else np.nan)
    sums = count(predictions, nothing)
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(scores(sums)))


@pytest.mark.parametrize("case", CASES)
def test_shapes_are_checked(case):
    predictions, labels, count, _, _ = CASES[case]
    with pytest.raises(ValueError, match="must have the same shape, got"):
        count(predictions, labels[:1])


def test_perfect_and_opposite_predictions():
    _, normals, count, scores, _ = CASES["angles"]
    found = scores(count(normals, normals))
    assert found["mean_angle"] < 1e-3
    np.testing.assert_allclose(found["median_angle"], 0.005, rtol=1e-5)
    found = scores(count(-normals, normals))
    values = [found["mean_angle"], found["median_angle"]]
    np.testing.assert_allclose(values, [180, 180 - 0.005], rtol=1e-5)


def test_prediction_that_is_not_finite_stays_visible():
    for case in ("errors", "angles"):
        predictions, labels, count, scores, _ = CASES[case]
        broken = predictions.copy()
        broken[np.isfinite(labels)] = np.nan
        found = scores(count(broken, labels))
        assert all(np.isnan(leaf).all() for leaf in jax.tree.leaves(found))


def test_angle_in_single_precision():
    """Small ones too, where an arc cosine would be off by a fiftieth of a degree."""
    degrees = np.array([0, 0.01, 0.1, 11.25, 90, 179, 180], np.float32)
    cosines, sines = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    second = np.stack([0.6 * cosines, 0.8 * cosines, sines], axis=-1)
    first = np.broadcast_to(np.array([1.2, 1.6, 0.0], np.float32), second.shape)
    found = jax.jit(angle)(first, second)
    np.testing.assert_allclose(found, degrees, rtol=1e-4, atol=1e-4)


def test_pose_errors():
    """A turn by a known angle about a random axis, and -q for q."""
    axes = normalised(rng.normal(size=[50, 3]))
    degrees = rng.uniform(0, 180, 50)
    half = np.radians(degrees)[:, None] / 2
    turns = np.concatenate([np.cos(half), np.sin(half) * axes], axis=1)
    start = normalised(rng.normal(size=[50, 4]))
    w, v = start[:, :1], start[:, 1:]
    s, u = turns[:, :1], turns[:, 1:]
    product = np.concatenate(
        [w * s - np.sum(v * u, axis=1, keepdims=True), w * u + s * v + np.cross(v, u)],
        axis=1,
    )
    places, moves = rng.normal(size=[2, 50, 3])
    lengths = np.linalg.norm(moves, axis=1)
    np.testing.assert_allclose(distances(places + moves, places), lengths, rtol=1e-5)
    measure = jax.jit(rotation_angles)
    for factor in (1, -1, 5):
        found = measure(factor * product, start)
        np.testing.assert_allclose(found, degrees, rtol=1e-4, atol=1e-4)
    assert np.isnan(measure(start, np.full([50, 4], np.nan))).all()
