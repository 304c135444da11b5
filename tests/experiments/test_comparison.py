"""Comparisons of methods, against the numbers of the papers' own tables."""

import numpy as np

from experiments.lab.comparison import delta_m, growth_rate, mean_rank, paired

# Senushkin et al., Table 4: mean translation error in metres, rotation in degrees, and
# the growth rates of both in per cent.
UNIFORM = (0.79, 9.39)
GROWTH = {
    "MGDA": (0.49, 9.42, 37.98, -0.32),
    "MGDA-UB": (0.55, 9.42, 30.38, -0.32),
    "GradNorm": (0.27, 10.92, 65.82, -16.29),
    "PCGrad": (0.26, 11.73, 67.09, -24.92),
    "Uncertainty": (0.30, 12.88, 62.03, -37.17),
    "parameter space": (0.41, 11.07, 48.10, -17.89),
    "latent space": (0.34, 9.30, 56.96, 0.96),
}


def test_growth_rates_of_the_paper():
    """All fourteen, to the last digit that is printed."""
    table = np.array(list(GROWTH.values()))
    np.testing.assert_allclose(
        100 * growth_rate(table[:, :2], UNIFORM), table[:, 2:], atol=0.0101
    )


# Pascal et al., Table 3: error, F1 and rank.
RANKS = {
    "SUS": (9.20, 68.66, 6.0),
    "IUS": (9.10, 68.93, 3.0),
    "IO": (9.11, 69.48, 1.0),
    "GradNorm": (9.16, 69.16, 4.0),
    "PCGrad": (9.16, 69.26, 2.5),
    "MGDA-UB": (9.42, 67.68, 7.0),
    "Maximum Roaming": (9.12, 69.21, 1.0),
}


def test_mean_ranks_of_the_paper():
    """All but those of three methods, which it takes to be as good as the best."""
    table = np.array(list(RANKS.values()))
    ranks = mean_rank(table[:, :2], [False, True])
    as_printed = np.isin(list(RANKS), ["IO", "PCGrad", "Maximum Roaming"], invert=True)
    np.testing.assert_array_equal(ranks[as_printed], table[as_printed, 2])
    np.testing.assert_array_equal(ranks[~as_printed], [1.5, 3, 3])
    np.testing.assert_array_equal(mean_rank(-table[:, :2], [True, False]), ranks)


def test_ranks_without_ties_are_a_permutation():
    """The mean over methods is (M + 1) / 2, and order and scale do not matter."""
    scores = np.random.default_rng(0).normal(size=[6, 4])
    higher = np.array([True, False, True, False])
    ranks = mean_rank(scores, higher)
    assert ranks.mean() == 3.5
    order = np.array([3, 1, 0, 2, 5, 4])
    np.testing.assert_array_equal(mean_rank(scores[order], higher), ranks[order])
    np.testing.assert_array_equal(mean_rank(7 * scores + 1, higher), ranks)


def test_delta_m_is_the_mean_signed_relative_change():
    """Ten per cent better everywhere is 0.1, whatever the scale and the direction."""
    baseline, higher = np.array([50.0, 0.2, 3.0]), np.array([True, False, True])
    better = baseline * np.where(higher, 1.1, 0.9)
    scores = np.stack([better, baseline, 2 * baseline - better])
    np.testing.assert_allclose(
        delta_m(scores, baseline, higher), [0.1, 0, -0.1], atol=1e-12
    )
    np.testing.assert_allclose(delta_m(better, baseline, higher), 0.1)


SHIFTS = ([0, 0, 0], [0.5, 0.6, 0.55], [0.5, -0.6, 0.3], [0, 0, 0])


def test_ranks_of_paired_seeds():
    """A shift of all seeds is a difference, however far the seeds are apart."""
    seeds = np.array([1.0, 5.0, 3.0])
    scores = [[seeds + np.array(shift)] for shift in SHIFTS]
    np.testing.assert_array_equal(mean_rank(scores, [True]), [2, 1, 1, 2])
    np.testing.assert_array_equal(mean_rank(scores, [False]), [1, 3, 1, 1])
    scores[3] = [np.array([1.0, np.nan, 3.0])]
    np.testing.assert_array_equal(mean_rank(scores, [True]), [2, 1, 1, 4])


def test_intervals_are_those_of_the_paired_t_test():
    from scipy import stats  # half a second, which other files need not pay

    a, b = np.random.default_rng(0).normal(size=[2, 5])
    interval = stats.ttest_rel(a, b).confidence_interval(0.95)
    mean, half = paired(a, b)
    np.testing.assert_allclose([mean - half, mean + half], interval)
