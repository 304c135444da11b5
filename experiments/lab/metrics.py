"""Scores of a classification: precision, recall and F1, weighted by class size."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from mtlopt.linalg.normalise import safe_divide


class Scores(NamedTuple):
    """Weighted averages over the classes, each from 0 to 1 and of shape `[]`."""

    precision: jax.Array
    recall: jax.Array
    f1: jax.Array


def weighted_scores(
    predictions: jax.Array,
    labels: jax.Array,
    num_classes: int,
    present: jax.Array | None = None,
) -> Scores:
    r"""Returns precision, recall and F1, averaged over the classes by their size.

    .. math:: P = \sum_c \frac{n_c}{n} \frac{t_c}{p_c}, \qquad
        R = \sum_c \frac{n_c}{n} \frac{t_c}{n_c}, \qquad
        F_1 = \sum_c \frac{n_c}{n} \frac{2 t_c}{p_c + n_c}

    Of the n samples, class c has :math:`n_c` and is predicted for :math:`p_c`, of which
    :math:`t_c` rightly. A quotient with a zero denominator counts as 0. This is
    `average="weighted"` of scikit-learn, and R is the accuracy. F1 need not lie between
    P and R. Runs under `jit` and `vmap`, over seeds for example.

    Args:
        predictions: the class predicted for each sample, integer `[num]`.
        labels: its true class, integer `[num]`.
        num_classes: the number of classes. A prediction outside of them is wrong, and
            counts for no class; labels must lie within.
        present: boolean `[num]`, the samples that count; all of them if None. This is
            how a last batch is padded to the size of the others. With none, all scores
            are 0.

    Returns:
        The three scores.

    Raises:
        ValueError: if the shapes differ, or are not those of a vector.

    Examples:
        >>> predictions, labels = jnp.array([[0, 1, 1, 1], [0, 0, 1, 1]])
        >>> scores = weighted_scores(predictions, labels, 2)
        >>> [round(float(score), 4) for score in scores]
        [0.8333, 0.75, 0.7333]

        Several binary labels of a sample, `[num, labels]`, are scored one by one:

        >>> labels = jnp.array([[0, 1], [1, 1]])
        >>> score_each = jax.vmap(weighted_scores, in_axes=(1, 1, None))
        >>> score_each(jnp.array([[0, 1], [0, 1]]), labels, 2).recall
        Array([0.5, 1. ], dtype=float32)
    """
    shapes = {jnp.shape(predictions), jnp.shape(labels)}
    if present is not None:
        shapes.add(jnp.shape(present))
    if len(shapes) > 1 or len(jnp.shape(labels)) != 1:
        raise ValueError(
            "`predictions`, `labels` and `present` must have the same shape [num], got "
            f"{' and '.join(str(shape) for shape in sorted(shapes))}."
        )
    # int32 first: 256 is 0 as an unsigned byte.
    is_label, is_predicted = (
        jnp.asarray(array).astype(jnp.int32)[:, None]
        == jnp.arange(num_classes, dtype=jnp.int32)
        for array in (labels, predictions)
    )
    if present is not None:
        is_label, is_predicted = (
            array & present[:, None] for array in (is_label, is_predicted)
        )

    def count(chosen: jax.Array) -> jax.Array:
        """The number of samples of each class, as a float to divide."""
        return jnp.sum(chosen, axis=0).astype(jnp.result_type(float))

    true, predicted, sizes = map(
        count, (is_label & is_predicted, is_predicted, is_label)
    )
    weights = safe_divide(sizes, jnp.sum(sizes))
    return Scores(
        precision=jnp.sum(weights * safe_divide(true, predicted)),
        # Not by class: sum first, so that the accuracy is exact.
        recall=safe_divide(jnp.sum(true), jnp.sum(sizes)),
        f1=jnp.sum(weights * safe_divide(2 * true, predicted + sizes)),
    )
