"""Losses of the dense-prediction, face and pose experiments.

Each is the mean over what has a label, and 0 if nothing has: a class has none where it
is below 0, a quantity where it is not finite, as in `experiments.data.samples`.
"""

import jax
import jax.numpy as jnp
import optax

from mtlopt.linalg.normalise import safe_divide


def cross_entropy(logits: jax.Array, labels: jax.Array) -> jax.Array:
    r"""Returns the mean cross entropy of classes, pixel by pixel or image by image.

    .. math:: L = -\frac{1}{N} \sum_n \log \mathrm{softmax}(x_n)_{y_n}

    over the N places n that have a class :math:`y_n`.

    Args:
        logits: `x`, `[..., classes]`.
        labels: `y`, integer `[...]`, below 0 where there is none.

    Returns:
        The loss, `[]`.

    Raises:
        ValueError: if the shapes do not fit.

    Examples:
        >>> logits = jnp.array([[0.0, 0.0], [7.0, 9.0]])
        >>> print(cross_entropy(logits, jnp.array([1, -1])))  # log 2
        0.6931472

    References:
        Senushkin et al., "Independent component alignment for multi-task learning",
        section 5.3 (segmentation) and 5.2 (two logits for each attribute).
    """
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
    r"""Returns the mean cross entropy of yes-or-no labels, with one logit for each.

    .. math:: L = \frac{1}{N} \sum_n \log(1 + e^{x_n}) - y_n x_n

    Args:
        logits: `x`, `[...]`.
        labels: `y`, integer `[...]`, 1 for yes and 0 for no, below 0 where there is
            none.

    Returns:
        The loss, `[]`.

    Raises:
        ValueError: if the shapes differ.

    Examples:
        >>> print(binary_cross_entropy(jnp.zeros(3), jnp.array([1, 0, -1])))  # log 2
        0.6931472

    References:
        Pascal et al., "Optimization strategies in multi-task learning: averaged or
        independent losses?", sections 4.2 (a class of pixels as a task of its own) and
        4.3 (attributes of faces).
    """
    check_shapes(logits, labels)
    known = labels >= 0
    losses = optax.sigmoid_binary_cross_entropy(logits, (labels == 1) * 1.0)
    return _mean(losses, known)


def l1(predictions: jax.Array, targets: jax.Array) -> jax.Array:
    r"""Returns the mean absolute error, of a depth, disparity or instance offset.

    .. math:: L = \frac{1}{NC} \sum_n \| x_n - t_n \|_1

    over the N places n whose target :math:`t_n` is known, of C channels.

    Args:
        predictions: `x`, `[..., channels]`.
        targets: `t`, `[..., channels]`, not finite where there is none.

    Returns:
        The loss, `[]`.

    Raises:
        ValueError: if the shapes differ.

    Examples:
        >>> targets = jnp.array([[1.0, 1.0], [jnp.nan, jnp.nan]])
        >>> print(l1(jnp.array([[2.0, 4.0], [7.0, 7.0]]), targets))
        2.0

    References:
        Senushkin et al., "Independent component alignment for multi-task learning",
        section 5.3.
    """
    targets, known = _known(predictions, targets)
    return _mean(jnp.mean(jnp.abs(predictions - targets), axis=-1), known)


def inverse_depth_l1(predictions: jax.Array, depths: jax.Array) -> jax.Array:
    r"""Returns the mean absolute error of an inverse depth.

    .. math:: L = \frac{1}{N} \sum_n | x_n - 1 / d_n |

    Far away, where a depth cannot be told well, the error counts less, and the sky is
    at 0.

    Args:
        predictions: inverse depths `x`, `[..., 1]`.
        depths: `d`, positive `[..., 1]`, not finite where there is none.

    Returns:
        The loss, `[]`.

    Raises:
        ValueError: if the shapes differ.

    Examples:
        >>> print(inverse_depth_l1(jnp.array([[0.5]]), jnp.array([[4.0]])))
        0.25

    References:
        Kendall, Gal and Cipolla, "Multi-task learning using uncertainty to weigh losses
        for scene geometry and semantics", 2018, section 4.3,
        https://arxiv.org/abs/1705.07115.
    """
    # The inverse of an infinite depth is 0, but it marks a place without a label.
    depths = jnp.where(jnp.isfinite(depths), depths, jnp.nan)
    return l1(predictions, 1 / depths)


def cosine_loss(predictions: jax.Array, normals: jax.Array) -> jax.Array:
    r"""Returns one minus the mean cosine between predicted and true normals.

    .. math:: L = \frac{1}{N} \sum_n 1 - \langle x_n / \| x_n \|, t_n \rangle

    A prediction of zero has no direction: its cosine is 0, and so is its gradient.

    Args:
        predictions: `x`, of any length, `[..., 3]`.
        normals: `t`, of length 1, `[..., 3]`, not finite where there is none.

    Returns:
        The loss, from 0 to 2, `[]`.

    Raises:
        ValueError: if the shapes differ.

    Examples:
        >>> normals = jnp.array([[0.0, 0.0, 1.0], [1.0, 0.0, 0.0]])
        >>> print(cosine_loss(jnp.array([[0.0, 0.0, 5.0], [0.0, 2.0, 0.0]]), normals))
        0.5

    References:
        Liu, Johns and Davison, "End-to-end multi-task learning with attention", 2019,
        section 4.1.2, https://arxiv.org/abs/1803.10704, whose code Pascal et al. use.
    """
    normals, known = _known(predictions, normals)
    return _mean(1 - jnp.sum(unit(predictions) * normals, axis=-1), known)


def translation_loss(predictions: jax.Array, translations: jax.Array) -> jax.Array:
    r"""Returns the mean distance between predicted and true places of a camera.

    .. math:: L = \frac{1}{N} \sum_n \| x_n - t_n \|_2

    Args:
        predictions: `x`, `[..., 3]`.
        translations: `t`, `[..., 3]`, not finite where there is none.

    Returns:
        The loss, `[]`, in the unit of its arguments.

    Raises:
        ValueError: if the shapes differ.

    Examples:
        >>> print(translation_loss(jnp.array([[3.0, 4.0, 0.0]]), jnp.zeros([1, 3])))
        5.0

    References:
        Kendall, Grimes and Cipolla, "PoseNet: a convolutional network for real-time
        6-DOF camera relocalization", 2015, equation 2, https://arxiv.org/abs/1505.07427
        (Senushkin et al. follow it and state no loss).
    """
    translations, known = _known(predictions, translations)
    return _mean(norm(predictions - translations), known)


def rotation_loss(predictions: jax.Array, rotations: jax.Array) -> jax.Array:
    r"""Returns the mean distance between predicted and true unit quaternions.

    .. math:: L = \frac{1}{N} \sum_n \min_{s = \pm 1}
        \Big\| s q_n - \frac{x_n}{\| x_n \|} \Big\|_2

    Differs from the paper in the minimum: q and -q are the same rotation.

    Args:
        predictions: quaternions `x`, of any length, `[..., 4]`.
        rotations: unit quaternions `q`, `[..., 4]`, not finite where there is none.

    Returns:
        The loss, from 0 to the square root of 2, `[]`.

    Raises:
        ValueError: if the shapes differ.

    Examples:
        >>> rotations = jnp.array([[1.0, 0.0, 0.0, 0.0]])
        >>> print(rotation_loss(-2 * rotations, rotations))
        0.0

    References:
        Kendall, Grimes and Cipolla, "PoseNet: a convolutional network for real-time
        6-DOF camera relocalization", 2015, equation 2, https://arxiv.org/abs/1505.07427.
    """
    rotations, known = _known(predictions, rotations)
    units = unit(predictions)
    same_side = jnp.sum(units * rotations, axis=-1, keepdims=True) >= 0
    return _mean(norm(jnp.where(same_side, units, -units) - rotations), known)


def check_shapes(predictions: jax.Array, targets: jax.Array) -> None:
    """Raises a ValueError if two shapes differ: they would be broadcast."""
    if predictions.shape != targets.shape:
        raise ValueError(
            "Predictions and labels must have the same shape, got "
            f"{predictions.shape} and {targets.shape}."
        )


def norm(vectors: jax.Array) -> jax.Array:
    """Returns the lengths of vectors, `[..., channels]` to `[...]`.

    The gradient at zero is zero, not NaN.

    Examples:
        >>> print(jax.grad(norm)(jnp.array([3.0, 4.0])), jax.grad(norm)(jnp.zeros(2)))
        [0.6 0.8] [0. 0.]
    """
    squares = jnp.sum(vectors**2, axis=-1)
    zero = squares == 0
    return jnp.where(zero, 0, jnp.sqrt(jnp.where(zero, 1, squares)))


def unit(vectors: jax.Array) -> jax.Array:
    """Returns vectors `[..., channels]` with length 1, or 0 for one that is zero.

    Examples:
        >>> print(unit(jnp.array([[3.0, 4.0], [0.0, 0.0]])))
        [[0.6 0.8]
         [0.  0. ]]
    """
    return safe_divide(vectors, norm(vectors)[..., None])


def _known(predictions: jax.Array, targets: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Returns the targets, with 0 for those that are not known, and which are."""
    check_shapes(predictions, targets)
    known = jnp.all(jnp.isfinite(targets), axis=-1)
    # Not only in the loss: a NaN that is masked there would still reach the gradient.
    return jnp.where(known[..., None], targets, 0), known


def _mean(losses: jax.Array, known: jax.Array) -> jax.Array:
    """Returns the mean over the places that count."""
    return safe_divide(
        jnp.sum(jnp.where(known, losses, 0)), jnp.sum(known).astype(losses.dtype)
    )
