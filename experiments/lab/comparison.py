"""Methods against each other: relative gains, ranks and growth rates."""

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike


def delta_m(
    scores: ArrayLike, baseline: ArrayLike, higher_is_better: ArrayLike
) -> np.ndarray:
    r"""Returns the mean relative gain of scores `[..., metrics]` over single tasks.

    .. math:: \Delta_m = \frac{1}{K} \sum_k (-1)^{l_k} \frac{M_{m,k} - M_{b,k}}{M_{b,k}}

    with :math:`l_k = 0` where a higher value is better and 1 elsewhere. A positive
    value is a gain, as in Maninis, Radosavovic and Kokkinos, "Attentive single-tasking
    of multiple tasks", 2019, equation 4, https://arxiv.org/abs/1904.08918; some later
    papers print the opposite sign.

    Examples:
      >>> print(delta_m([[0.55, 0.9]], [0.50, 1.0], [True, False]).round(6))
      [0.1]
    """
    scores, baseline = np.asarray(scores, float), np.asarray(baseline, float)
    gains = _signed(scores - baseline, higher_is_better)
    return np.mean(gains / baseline, axis=-1)


def mean_rank(scores: ArrayLike, higher_is_better: ArrayLike) -> np.ndarray:
    """Returns the rank of each method, of scores `[methods, metrics]`, mean over these.

    The best has rank 1, and NaN is the worst. Methods with the same value share the
    best rank among them, as in Pascal et al., "Optimization strategies in multi-task
    learning: averaged or independent losses?", Table 1, which also takes values for the
    same that are statistically equivalent; by which test, it does not say.

    Examples:
      >>> print(mean_rank([[0.9, 0.2], [0.8, 0.1], [0.9, 0.3]], [True, False]))
      [1.5 2.  2. ]
    """
    signed = pd.DataFrame(_signed(scores, higher_is_better))
    ranks = signed.rank(ascending=False, method="min", na_option="bottom")
    return ranks.mean(axis=1).to_numpy()


def growth_rate(error: ArrayLike, uniform_error: ArrayLike) -> np.ndarray:
    r"""Returns :math:`1 - P_i / P`, by how much errors improve on the summed loss's.

    1 is perfect, and below 0 is worse: Senushkin et al., "Independent component
    alignment for multi-task learning", section 5.4, Table 4.
    """
    return 1 - np.divide(error, uniform_error)


def _signed(values: ArrayLike, higher_is_better: ArrayLike) -> np.ndarray:
    """Returns values that are all better the higher they are."""
    return np.where(higher_is_better, 1, -1) * np.asarray(values, float)
