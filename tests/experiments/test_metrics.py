"""The weighted scores: by hand, by definition, and where nothing can be divided."""

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.metrics import precision_recall_fscore_support

from experiments.lab.metrics import Scores, weighted_scores

score = jax.jit(weighted_scores, static_argnums=2)


def by_definition(predictions, labels, num_classes):
    """Class by class, with a 0 for 0 / 0."""
    total = np.zeros(3)
    for c in range(num_classes):
        true = np.sum((predictions == c) & (labels == c))
        predicted, size = np.sum(predictions == c), np.sum(labels == c)
        precision = true / predicted if predicted else 0
        recall = true / size if size else 0
        f1 = 2 * precision * recall / (precision + recall) if true else 0
        total += size / len(labels) * np.array([precision, recall, f1])
    return total


BY_HAND = {
    "all right": ([0, 1, 2], [0, 1, 2], 3, (1, 1, 1)),
    "all wrong": ([1, 0], [0, 1], 2, (0, 0, 0)),
    "two of three": ([0, 0, 1], [0, 1, 1], 2, (5 / 6, 2 / 3, 2 / 3)),
    # Classes of 1, 2 and 3 samples; t = 1, 1, 2 and p = 2, 1, 3.
    "three sizes": (
        [0, 0, 1, 2, 2, 2],
        [0, 2, 1, 1, 2, 2],
        3,
        (1 / 12 + 2 / 6 + 3 / 6 * 2 / 3, 4 / 6, 1 / 6 * 2 / 3 + 2 / 6 * 2 / 3 + 3 / 9),
    ),
    # Class 1 is never predicted and class 2 never comes.
    "never predicted": ([0, 0, 2, 0], [0, 0, 1, 1], 3, (1 / 3, 1 / 2, 2 / 5)),
}


@pytest.mark.parametrize("case", BY_HAND)
def test_values_by_hand(dtype, case):
    predictions, labels, num_classes, expected = BY_HAND[case]
    scores = score(jnp.array(predictions), jnp.array(labels), num_classes)
    np.testing.assert_allclose(scores, expected, rtol=1e-6, atol=0)
    np.testing.assert_allclose(
        by_definition(np.array(predictions), np.array(labels), num_classes), expected
    )
    assert scores.f1.dtype == dtype


def test_random_predictions_under_vmap():
    """The definition holds for each of many seeds, and recall is the accuracy."""
    rng = np.random.default_rng(0)
    predictions, labels = rng.integers(0, 6, [2, 20, 200])
    scores = jax.vmap(weighted_scores, in_axes=(0, 0, None))(
        jnp.array(predictions), jnp.array(labels), 6
    )
    for i in range(20):
        found = [array[i] for array in scores]
        expected = by_definition(predictions[i], labels[i], 6)
        np.testing.assert_allclose(found, expected, rtol=1e-5)
    np.testing.assert_allclose(
        scores.recall, (predictions == labels).mean(axis=1), rtol=1e-6
    )


def test_agrees_with_scikit_learn():
    """Also with classes that never come or are never predicted."""
    rng = np.random.default_rng(1)
    cases = [tuple(map(np.array, case[:2])) for case in BY_HAND.values()]
    cases.append((rng.integers(1, 5, 300), rng.integers(0, 5, 300)))
    for predictions, labels in cases:
        with warnings.catch_warnings(action="ignore"):  # of a class never predicted
            expected = precision_recall_fscore_support(
                labels, predictions, average="weighted"
            )
        # Not jitted: every case has a shape of its own.
        found = weighted_scores(jnp.array(predictions), jnp.array(labels), 5)
        np.testing.assert_allclose(found, expected[:3], rtol=1e-5)


def test_padding_does_not_count():
    """Samples that are not present change nothing; with none, all scores are 0."""
    predictions, labels = jnp.array([0, 1, 1, 2, 2]), jnp.array([0, 1, 2, 2, 0])
    present = jnp.array([True, True, True, False, False])
    expected = score(predictions[:3], labels[:3], 3)
    np.testing.assert_allclose(score(predictions, labels, 3, present), expected)
    assert score(predictions, labels, 3, jnp.zeros(5, bool)) == Scores(0, 0, 0)


def test_prediction_outside_of_the_classes_is_wrong():
    outside = score(jnp.array([0, 9, -1, 1]), jnp.array([0, 0, 1, 1]), 2)
    np.testing.assert_allclose(outside, (1, 1 / 2, 2 / 3), rtol=1e-6)


def test_unsigned_and_small_integers_under_strict_promotion():
    with jax.numpy_dtype_promotion("strict"):
        scores = weighted_scores(
            jnp.array([0, 1], jnp.uint8), jnp.array([0, 1], jnp.int32), 2
        )
    assert scores == Scores(1, 1, 1)
    # 256 is no class of bytes.
    assert weighted_scores(jnp.zeros(2, jnp.uint8), jnp.zeros(2, int), 300).f1 == 1


@pytest.mark.parametrize(
    ("predictions", "labels"),
    [([0, 1], [0]), ([[0, 1]], [[0, 1]]), (0, 0)],
)
def test_shapes_are_checked(predictions, labels):
    with pytest.raises(ValueError, match=r"must have the same shape \[num\], got \("):
        weighted_scores(jnp.array(predictions), jnp.array(labels), 2)
