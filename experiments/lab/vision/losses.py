"""Losses of dense predictions, attributes and poses.

Each loss `[]` is the mean over the places with a label, and 0 if no place has one. A
place has no label if its class is negative or its quantity is not finite. Shapes that
do not fit raise a ValueError.
"""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from mtlopt.linalg.normalise import safe_divide


def cross_entropy(logits: jax.Array, labels: jax.Array) -> jax.Array:
    r"""Returns :math:`-\log \mathrm{softmax}(x)_y` of logits `[..., classes]`."""
    if logits.shape[:-1] != labels.shape:
        raise ValueError(
            "`logits` must have the shape of the labels and an axis of classes, got "
            f"{logits.shape} for {labels.shape}."
        )
    known = labels >= 0
    losses = optax.softmax_cross_entropy_with_integer_labels(
        logits, jnp.where(known, labels, 0)
    )
    return _mean(losses, known)


def binary_cross_entropy(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """Returns the cross entropy of labels 1 and 0 and logits `[..., 1]`."""
    logits = logits[..., 0]
    check_shapes(logits, labels)
    losses = optax.sigmoid_binary_cross_entropy(logits, (labels == 1) * 1.0)
    return _mean(losses, labels >= 0)


def kind_of(loss: Any) -> str:
    """Returns the kind of a loss, for `mtlopt.weight_by_uncertainty`."""
    classifies = loss in (cross_entropy, binary_cross_entropy)
    return "classification" if classifies else "regression"


def l1(predictions: jax.Array, targets: jax.Array) -> jax.Array:
    """Returns the absolute error of `[..., channels]`, a mean over the channels."""
    targets, known = _known(predictions, targets)
    return _mean(jnp.mean(jnp.abs(predictions - targets), axis=-1), known)


def cosine_loss(predictions: jax.Array, normals: jax.Array) -> jax.Array:
    """Returns one minus the cosine between predictions of any length and unit normals.

    A prediction of zero has no direction, so its cosine and its gradient are 0. The
    loss is from Liu, Johns and Davison, "End-to-end multi-task learning with
    attention", 2019, section 4.1.2, https://arxiv.org/abs/1803.10704, whose code Pascal
    et al. use.
    """
    normals, known = _known(predictions, normals)
    return _mean(1 - jnp.sum(unit(predictions) * normals, axis=-1), known)


def translation_loss(predictions: jax.Array, translations: jax.Array) -> jax.Array:
    """Returns the distance between predicted and true places of a camera.

    The loss is from Kendall, Grimes and Cipolla, "PoseNet", 2015, equation 2,
    https://arxiv.org/abs/1505.07427 (Senushkin et al. follow PoseNet and state no
    loss).
    """
    translations, known = _known(predictions, translations)
    return _mean(norm(predictions - translations), known)


def rotation_loss(predictions: jax.Array, rotations: jax.Array) -> jax.Array:
    r"""Returns :math:`\min_{s = \pm 1} \| s q - x / \| x \| \|_2` of quaternions.

    Unlike PoseNet, the loss takes the minimum, because q and -q are the same rotation.
    """
    rotations, known = _known(predictions, rotations)
    units = unit(predictions)
    same_side = jnp.sum(units * rotations, axis=-1, keepdims=True) >= 0
    return _mean(norm(jnp.where(same_side, units, -units) - rotations), known)


def check_shapes(predictions: jax.Array, targets: jax.Array) -> None:
    """Raises a ValueError if two shapes differ, because JAX would broadcast them."""
    if predictions.shape != targets.shape:
        raise ValueError(
            "Predictions and labels must have the same shape, got "
            f"{predictions.shape} and {targets.shape}."
        )


def norm(vectors: jax.Array) -> jax.Array:
    """Returns the lengths of vectors; the gradient at zero is zero, not NaN."""
    squares = jnp.sum(vectors**2, axis=-1)
    zero = squares == 0
    return jnp.where(zero, 0, jnp.sqrt(jnp.where(zero, 1, squares)))


def unit(vectors: jax.Array) -> jax.Array:
    """Returns vectors with length 1, or 0 for one that is zero."""
    return safe_divide(vectors, norm(vectors)[..., None])


def _known(predictions: jax.Array, targets: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Returns the targets, with 0 for unknown targets, and which targets are known."""
    check_shapes(predictions, targets)
    known = jnp.all(jnp.isfinite(targets), axis=-1)
    # Masking only the loss is not enough: the NaN would still reach the gradient.
    return jnp.where(known[..., None], targets, 0), known


def _mean(losses: jax.Array, known: jax.Array) -> jax.Array:
    return safe_divide(
        jnp.sum(jnp.where(known, losses, 0)), jnp.sum(known).astype(losses.dtype)
    )
