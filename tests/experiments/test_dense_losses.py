"""Losses and their gradients against the formulas, with labels that are missing."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.lab.vision.losses import (
    binary_cross_entropy,
    cosine_loss,
    cross_entropy,
    l1,
    norm,
    rotation_loss,
    translation_loss,
    unit,
)

rng = np.random.default_rng(0)


def normalised(array):
    return array / np.linalg.norm(array, axis=-1, keepdims=True)


PREDICTIONS = {num: rng.normal(size=[2, 3, num]) for num in (1, 2, 3, 4)}
CLASSES = np.array([[2, -1, 0], [1, -1, 2]])
KNOWN = CLASSES >= 0


def by_softmax(x, y):
    shares = np.exp(x) / np.exp(x).sum(axis=-1, keepdims=True)
    return -np.log(np.take_along_axis(shares, y[..., None], axis=-1)[..., 0])


def by_sigmoid(x, y):
    share = 1 / (1 + np.exp(-x))
    return -np.log(np.where(y == 1, share, 1 - share))


# Loss, predictions, labels, and the loss of each place with a label.
CASES = {
    "cross_entropy": (cross_entropy, PREDICTIONS[3], CLASSES, by_softmax),
    "binary_cross_entropy": (
        binary_cross_entropy,
        PREDICTIONS[1],
        np.minimum(CLASSES, 1),
        lambda x, y: by_sigmoid(x[..., 0], y),
    ),
    "l1": (
        l1,
        PREDICTIONS[2],
        rng.normal(size=[2, 3, 2]),
        lambda x, t: np.abs(x - t).mean(axis=-1),
    ),
    "cosine_loss": (
        cosine_loss,
        PREDICTIONS[3],
        normalised(rng.normal(size=[2, 3, 3])),
        lambda x, t: 1 - np.sum(normalised(x) * t, axis=-1),
    ),
    "translation_loss": (
        translation_loss,
        PREDICTIONS[3],
        rng.normal(size=[2, 3, 3]),
        lambda x, t: np.linalg.norm(x - t, axis=-1),
    ),
    "rotation_loss": (
        rotation_loss,
        PREDICTIONS[4],
        normalised(rng.normal(size=[2, 3, 4])),
        lambda x, q: np.minimum(
            *(np.linalg.norm(sign * normalised(x) - q, axis=-1) for sign in (1, -1))
        ),
    ),
}


def masked(labels, nothing=np.nan):
    """Labels of which only those at `KNOWN` are there."""
    if labels.dtype.kind == "i":
        return labels
    return np.where(KNOWN[..., None], labels, nothing)


# Compiled once for all tests, with the dtype of the predictions.
COMPILED = {
    case: jax.jit(jax.value_and_grad(parts[0])) for case, parts in CASES.items()
}


def value_and_gradient(case, predictions, labels, dtype=np.float32):
    value, gradient = COMPILED[case](np.asarray(predictions, dtype), labels)
    assert value.dtype == gradient.dtype == dtype
    return float(value), np.asarray(gradient)


@pytest.mark.parametrize("case", CASES)
def test_loss_is_the_mean_of_its_formula(dtype, case):
    _, predictions, labels, formula = CASES[case]
    expected = formula(predictions[KNOWN], labels[KNOWN]).mean()
    found, _ = value_and_gradient(case, predictions, masked(labels), dtype)
    np.testing.assert_allclose(found, expected, rtol=1e-5)


@pytest.mark.parametrize("case", CASES)
def test_gradient_is_that_of_the_places_with_labels(float64, case):
    """By finite differences, and exactly zero elsewhere, also at infinite labels."""
    _, predictions, labels, _ = CASES[case]
    labels = masked(labels, np.inf)
    _, gradient = value_and_gradient(case, predictions, labels, float64)
    assert not gradient[~KNOWN].any()
    direction = rng.normal(size=predictions.shape)
    ahead, behind = (
        value_and_gradient(case, predictions + step * direction, labels, float64)[0]
        for step in (1e-6, -1e-6)
    )
    slope = np.sum(gradient * direction)
    np.testing.assert_allclose(slope, (ahead - behind) / 2e-6, rtol=1e-6)


@pytest.mark.parametrize("case", CASES)
def test_without_labels_loss_and_gradient_are_zero(case):
    _, predictions, labels, _ = CASES[case]
    nothing = np.full_like(labels, -1 if labels.dtype.kind == "i" else np.nan)
    value, gradient = value_and_gradient(case, predictions, nothing)
    assert value == 0
    assert not gradient.any()


@pytest.mark.parametrize("case", CASES)
def test_prediction_that_is_not_finite_stays_visible(case):
    _, predictions, labels, _ = CASES[case]
    broken = predictions.copy()
    broken[0, 0] = np.nan
    assert np.isnan(value_and_gradient(case, broken, masked(labels))[0])


@pytest.mark.parametrize("case", CASES)
def test_shapes_are_checked(case):
    """A label that would be broadcast is refused."""
    loss, predictions, labels, _ = CASES[case]
    with pytest.raises(ValueError, match="must have the"):
        loss(predictions, labels[:1])


@pytest.mark.parametrize("case", ["cosine_loss", "translation_loss", "rotation_loss"])
def test_gradients_are_finite_where_a_length_is_zero(case):
    """At a prediction of zero, and at one that is perfect."""
    target = np.zeros_like(CASES[case][1])
    target[..., 0] = 1
    _, gradient = value_and_gradient(case, np.zeros_like(target), target)
    assert np.isfinite(gradient).all()
    value, gradient = value_and_gradient(case, target, target)
    assert value == 0
    assert np.isfinite(gradient).all()


def test_rotation_does_not_depend_on_sign_and_length():
    """q, -q and 3 q are one rotation; a half turn is at the square root of 2."""
    _, predictions, rotations, _ = CASES["rotation_loss"]
    losses = [
        value_and_gradient("rotation_loss", factor * predictions, sign * rotations)[0]
        for factor, sign in [(1, 1), (-1, 1), (3, 1), (1, -1)]
    ]
    np.testing.assert_allclose(losses, losses[0], rtol=1e-5)
    first, second = (np.broadcast_to(row, [2, 3, 4]) for row in np.eye(2, 4))
    half_turn, _ = value_and_gradient("rotation_loss", first, second)
    np.testing.assert_allclose(half_turn, np.sqrt(2), rtol=1e-6)


def test_norm_and_unit():
    vectors = jnp.array([[3.0, 4.0], [0.0, 0.0], [np.nan, 1.0]])
    np.testing.assert_allclose(jax.jit(norm)(vectors), [5, 0, np.nan])
    expected = [[0.6, 0.8], [0, 0], [np.nan, np.nan]]
    np.testing.assert_allclose(jax.jit(unit)(vectors), expected)
