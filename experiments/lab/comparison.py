"""Methods against each other: relative gains, ranks and growth rates."""

import numpy as np
from numpy.typing import ArrayLike


def delta_m(
    scores: ArrayLike, baseline: ArrayLike, higher_is_better: ArrayLike
) -> np.ndarray:
    r"""Returns the mean relative gain of methods over single-task runs.

    .. math:: \Delta_m = \frac{1}{K} \sum_k (-1)^{l_k} \frac{M_{m,k} - M_{b,k}}{M_{b,k}}

    over K metrics, with :math:`l_k = 0` where a higher value is better and 1 elsewhere.
    A positive value is a gain, as in the reference; some later papers print the
    opposite sign.

    Args:
        scores: of the methods, `[..., metrics]`.
        baseline: of the single-task runs, `[metrics]`, none of them 0.
        higher_is_better: of each metric, bool `[metrics]`.

    Returns:
        The gains, `[...]`: 0.01 is one per cent.

    Raises:
        ValueError: if the shapes do not fit, or a baseline is 0 or not finite.

    Examples:
        >>> print(delta_m([[0.55, 0.9]], [0.50, 1.0], [True, False]).round(6))
        [0.1]

    References:
        Maninis, Radosavovic and Kokkinos, "Attentive single-tasking of multiple tasks",
        2019, equation 4, https://arxiv.org/abs/1904.08918.
    """
    scores, baseline = np.asarray(scores, float), np.asarray(baseline, float)
    signs = _signs(scores, higher_is_better)
    if baseline.shape != signs.shape:
        raise ValueError(
            f"`baseline` must have shape {signs.shape}, got {baseline.shape}."
        )
    if not np.all(np.isfinite(baseline) & (baseline != 0)):
        raise ValueError(f"`baseline` must be finite and not 0, got {baseline}.")
    return np.mean(signs * (scores - baseline) / baseline, axis=-1)


def mean_rank(scores: ArrayLike, higher_is_better: ArrayLike) -> np.ndarray:
    """Returns the rank of each method, averaged over the metrics.

    The best has rank 1. Methods with the same value share the best rank among them, as
    in the tables of the reference, which also takes values for the same that are
    statistically equivalent; by which test, it does not say.

    Args:
        scores: `[methods, metrics]`.
        higher_is_better: of each metric, bool `[metrics]`.

    Returns:
        The mean ranks, `[methods]`.

    Raises:
        ValueError: if the shapes do not fit, or a score is NaN.

    Examples:
        >>> accuracy_and_error = [[0.9, 0.2], [0.8, 0.1], [0.9, 0.3]]
        >>> print(mean_rank(accuracy_and_error, [True, False]))
        [1.5 2.  2. ]

    References:
        Pascal et al., "Optimization strategies in multi-task learning: averaged or
        independent losses?", Table 1.
    """
    scores = np.asarray(scores, float)
    if scores.ndim != 2 or np.isnan(scores).any():
        raise ValueError(
            "`scores` must be numbers [methods, metrics], got shape "
            f"{scores.shape} with {np.isnan(scores).sum()} NaN."
        )
    signed = _signs(scores, higher_is_better) * scores
    num_better = np.sum(signed[:, None] > signed, axis=0)
    return np.mean(1 + num_better, axis=-1)


def growth_rate(error: ArrayLike, uniform_error: ArrayLike) -> np.ndarray:
    r"""Returns by how much of its error a method improves on uniform scaling.

    .. math:: R = 1 - P_i / P

    Args:
        error: :math:`P_i`, the mean error of a method over all scenes, `[...]`.
        uniform_error: :math:`P`, that of the uniformly weighted sum of the losses.

    Returns:
        The growth rates, `[...]`; 1 is perfect, and below 0 is worse.

    Examples:
        >>> print(growth_rate([0.49, 0.79, 1.58], 0.79).round(4))  # metres
        [ 0.3797  0.     -1.    ]

    References:
        Senushkin et al., "Independent component alignment for multi-task learning",
        section 5.4, Table 4.
    """
    return 1 - np.asarray(error, float) / np.asarray(uniform_error, float)


def _signs(scores: np.ndarray, higher_is_better: ArrayLike) -> np.ndarray:
    """Returns 1 for each metric that should be high and -1 for the others."""
    higher = np.asarray(higher_is_better)
    if higher.dtype != bool or higher.shape != scores.shape[-1:]:
        raise ValueError(
            f"`higher_is_better` must be bool of shape {scores.shape[-1:]}, got "
            f"{higher.dtype} {higher.shape}."
        )
    return np.where(higher, 1, -1)
