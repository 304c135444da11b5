"""How rates are chosen and differences are called, on made-up tables."""

import numpy as np
import pandas as pd
import pytest

from experiments.real_data.choice import at_edge, choose, compare, errors_of

PARTS = ["a", "b"]


def table(values: dict) -> pd.DataFrame:
    """From weights, rate, seed and nudged to an error for each part."""
    columns = ["weights", "rate", "seed", "nudged", "part", "value"]
    rows = [
        (*run, part, error)
        for run, errors in values.items()
        for part, error in zip(PARTS, errors, strict=True)
    ]
    return pd.DataFrame(rows, columns=columns)


def test_choice_is_the_lowest_geometric_mean():
    """By means of plain errors the other rate would win, and NaN never does."""
    search = table(
        {
            ("", 0.1, 7, 0): (1.0, 1.0),
            ("", 0.1, 8, 0): (1.0, 1.0),
            ("", 0.2, 7, 0): (0.1, 4.0),
            ("", 0.2, 8, 0): (0.1, 4.0),
            ("", 0.3, 7, 0): (1e-9, 1e-9),
            ("", 0.3, 8, 0): (1e-9, np.nan),
        }
    )
    assert choose(search, PARTS) == {"a": ("", 0.2), "b": ("", 0.2)}
    # Network b alone is better off at another rate; a's at 0.3 is never lost.
    assert choose(search, PARTS, alone=True) == {"a": ("", 0.3), "b": ("", 0.1)}


def test_choice_goes_over_weights_too():
    search = table({("x", 0.1, 7, 0): (2, 2), ("y", 0.1, 7, 0): (1, 1)})
    assert choose(search, PARTS)["a"] == ("y", 0.1)


def test_edges_of_the_grids():
    rates, weights = (0.1, 0.2, 0.3), ["x", "y", "z"]
    assert not at_edge({"a": ("", 0.2)}, rates, [""])
    assert at_edge({"a": ("", 0.1)}, rates, [""])
    assert at_edge({"a": ("", 0.2), "b": ("", 0.3)}, rates, [""])
    assert at_edge({"a": ("z", 0.2)}, rates, weights)
    assert not at_edge({"a": ("y", 0.2)}, rates, weights)


def errors(first, second, moved=1.0):
    """Of seeds 0 to 2, for both parts; nudged runs are off by a factor."""
    runs = {}
    for seed, own in enumerate(zip(first, second, strict=True)):
        runs["", 0.1, seed, 0] = own
        runs["", 0.1, seed, 1] = tuple(moved * np.array(own))
    return errors_of(table(runs), {"a": ("", 0.1), "b": ("", 0.1)})


def test_errors_are_those_of_the_chosen_run_of_each_part():
    runs = {("", rate, 0, 0): (rate, 10 * rate) for rate in (0.1, 0.2)}
    found = errors_of(table(runs), {"a": ("", 0.2), "b": ("", 0.1)})
    np.testing.assert_allclose(np.exp(found.loc[0, 0]), [0.2, 1.0])


BASE = [1.0, 2.0, 3.0], [10.0, 20.0, 30.0]


@pytest.mark.parametrize(
    ("factors", "says"),
    [
        ([2.0, 2.1, 1.9], "higher"),
        ([0.5, 0.52, 0.48], "lower"),
        ([2.0, 0.9, 1.5], "no difference"),
        ([1.01, 1.02, 1.015], "higher"),
    ],
)
def test_difference_is_one_outside_the_paired_spread(factors, says):
    """Seeds differ threefold, and pairs do not: that is what counts."""
    from scipy import stats  # half a second, which other files need not pay

    row = errors(*np.array(BASE) * factors)
    standing = compare(row, errors(*BASE))
    assert standing.words == says
    interval = stats.ttest_1samp(np.log(factors), 0).confidence_interval(0.95)
    assert (interval.low > 0 or interval.high < 0) == (says != "no difference")
    np.testing.assert_allclose(standing.ratios, np.log(factors))
    mean = np.log(np.array(BASE) * factors).mean()
    np.testing.assert_allclose(standing.error, mean)


def test_difference_that_rounding_makes_too_is_called_so():
    row = errors(*np.array(BASE) * 1.01, moved=1.1)
    standing = compare(row, errors(*BASE))
    np.testing.assert_allclose(standing.rounding, np.log(1.1))
    assert standing.words == "higher, as far as rounding"


def test_worst_part_and_lost_seeds():
    first, second = np.array(BASE)
    standing = compare(errors(0.5 * first, 3 * second), errors(*BASE))
    assert standing.worst == ("b", pytest.approx(np.log(3)))
    row = errors([0.5, np.inf, np.nan], second)
    standing = compare(row, errors(*BASE))
    assert (standing.lost, standing.words) == (2, "lost seeds")
    np.testing.assert_allclose(standing.ratios, [np.log(0.5) / 2])
    standing = compare(errors([np.nan] * 3, second), errors(*BASE))
    assert (standing.lost, standing.ratios, standing.error) == (3, [], np.inf)
