"""Comparisons of methods: relative gains, ranks, growth rates, and differences."""

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from scipy import special


def delta_m(
    scores: ArrayLike, baseline: ArrayLike, higher_is_better: ArrayLike
) -> np.ndarray:
    r"""Returns the mean relative gain of scores `[..., metrics]` over single tasks.

    .. math:: \Delta_m = \frac{1}{K} \sum_k (-1)^{l_k} \frac{M_{m,k} - M_{b,k}}{M_{b,k}}

    with :math:`l_k = 0` if a higher value is better, and 1 otherwise. A positive value
    is a gain, as in Maninis, Radosavovic and Kokkinos, "Attentive single-tasking of
    multiple tasks", 2019, equation 4, https://arxiv.org/abs/1904.08918; some later
    papers print the opposite sign.

    Examples:
      >>> print(delta_m([[0.55, 0.9]], [0.50, 1.0], [True, False]).round(6))
      [0.1]
    """
    scores, baseline = np.asarray(scores, float), np.asarray(baseline, float)
    gains = _signed(scores - baseline, higher_is_better)
    return np.mean(gains / baseline, axis=-1)


def mean_rank(scores: ArrayLike, higher_is_better: ArrayLike) -> np.ndarray:
    """Returns the rank of each method, as a mean over metrics.

    The rank is 1 plus the number of methods that are better. For scores
    `[methods, metrics]`, a method is better if its value is. For scores
    `[methods, metrics, seeds]`, it is better if the whole interval of the paired
    differences is in its favour. NaN is worse than all numbers. So methods that are
    statistically equivalent share a rank, as in Pascal et al., "Optimization strategies
    in multi-task learning: averaged or independent losses?", Table 1. The paper does
    not say which test it uses.

    Examples:
      >>> print(mean_rank([[0.9, 0.2], [0.8, 0.1], [0.9, 0.3]], [True, False]))
      [1.5 2.  2. ]
      >>> print(mean_rank([[[0.9, 0.8]], [[0.8, 0.9]]], [True]))  # two seeds
      [1. 1.]
    """
    scores = np.asarray(scores, float)
    seeds = scores.reshape(*scores.shape[:2], -1)
    signed = _signed(seeds, np.reshape(higher_is_better, (-1, 1)))
    signed = np.where(np.isnan(signed), -np.inf, signed).swapaxes(0, 1)
    ranks = [
        [1 + sum(_beats(b, a) for b in column) for a in column] for column in signed
    ]
    return np.mean(ranks, axis=0)


def _beats(new: np.ndarray, old: np.ndarray) -> bool:
    """Whether scores of paired seeds are better; higher scores are better."""
    if len(new) > 1 and np.isfinite([new, old]).all():
        return paired(new, old).sign > 0
    return new.mean() > old.mean()


class Difference(NamedTuple):
    """The mean difference of paired runs, with its 95 % interval `mean ± half`."""

    mean: float
    half: float

    @property
    def sign(self) -> int:
        """1 or -1, the sign of the interval, or 0 if the interval contains 0."""
        return int(np.sign(self.mean)) if abs(self.mean) > self.half else 0

    def __format__(self, digits: str) -> str:
        return f"{self.mean:+{digits}} ± {self.half:{digits}}"


def paired(new: ArrayLike, old: ArrayLike) -> Difference:
    """Returns `new - old` for the same seeds, with the interval of Student's t.

    With one seed, or if a value is not finite, the interval contains all numbers.

    Examples:
      >>> f"{paired([1.0, 2.0, 3.0], [0.5, 1.4, 2.7]):.2f}"
      '+0.47 ± 0.38'
      >>> paired([1.0, 2.0, 3.0], [0.5, 1.4, 2.7]).sign, paired([1.0], [0.0]).sign
      (1, 0)
    """
    apart = np.asarray(new, float) - np.asarray(old, float)
    mean, count = float(np.mean(apart)), len(apart)
    if count < 2 or not np.isfinite(apart).all():
        return Difference(mean, float("inf"))
    half = special.stdtrit(count - 1, 0.975) * np.std(apart, ddof=1) / count**0.5
    return Difference(mean, float(half))


def growth_rate(error: ArrayLike, uniform_error: ArrayLike) -> np.ndarray:
    r"""Returns :math:`1 - P_i / P`, the improvement over the summed loss's errors.

    A value of 1 is perfect, and a value below 0 is worse: Senushkin et al.,
    "Independent component alignment for multi-task learning", section 5.4, Table 4.
    """
    return 1 - np.divide(error, uniform_error)


def _signed(values: ArrayLike, higher_is_better: ArrayLike) -> np.ndarray:
    """Returns values of which higher ones are always better."""
    return np.where(higher_is_better, 1, -1) * np.asarray(values, float)
