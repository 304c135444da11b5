"""Claims, asked of made-up tables: one holds, one does not, one cannot be seen."""

import dataclasses

import numpy as np
import pandas as pd
import pytest

from experiments.lab.verdicts import Verdict
from experiments.lab.vision.report import (
    SUM,
    Metric,
    Outcome,
    Paper,
    paper_section,
    summary_table,
)
from experiments.mtl_io import claims

ERROR = Metric("error", "error", "", False, 100, 1)
NAMES = {SUM: "SUS", "sum_4": "SUS (4 steps)", "io": "IO", "io_4": "IO (4)"}
NAMES |= {"io_8": "IO (8)", "ius": "IUS"}
SEEDS = np.array([0.0, 0.01, 0.02])  # what they add to all methods alike


def outcome(
    errors: dict[str, float],
    noise: float = 0.0,
    by_rate: dict[str, tuple[float, float]] | None = None,
    covered: dict[str, float] | None = None,
) -> Outcome:
    """Errors by method, of three seeds; the first method is without noise."""
    rows = []
    for place, (method, error) in enumerate(errors.items()):
        values = error + SEEDS + min(place, 1) * noise * np.array([1, -1, 0])
        losses = (by_rate or {}).get(method, (error, error + 1))
        for seed, value in enumerate(values):
            for rate, loss in zip((0.1, 0.2), losses, strict=True):
                keys = {"method": method, "only": "", "rate": rate, "seed": seed}
                keys |= {"epoch": 1, "part": ""}
                far = (covered or {}).get(method, 1.0) + SEEDS[seed]
                numbers = {"best_loss": loss, "test_error": value, "covered": far}
                numbers |= {"validation_loss": loss, "shortest": far**0.5}
                rows += [{**keys, "name": n, "value": v} for n, v in numbers.items()]
    titles = {name: NAMES[name] for name in errors}
    return Outcome(pd.DataFrame(rows), titles, [ERROR], Paper("Table", {}), "")


def holds(verdicts: list[Verdict]) -> list[bool | None]:
    return [verdict.holds for verdict in verdicts]


@pytest.mark.parametrize(
    ("error", "noise", "expected"),
    [(0.1, 0.01, True), (0.3, 0.01, False), (0.19, 0.05, None)],
)
def test_a_method_is_better_outside_the_spread(error, noise, expected):
    """The seeds' common part does not count; the gain is positive for a lower error."""
    found = outcome({SUM: 0.2, "io": error}, noise)
    (verdict,) = claims.better("claim", found, [ERROR], "io", SUM)
    assert verdict.holds is expected
    assert f"IO over SUS: {100 * (0.2 - error):+.1f} ± " in verdict.measured
    assert claims.better("claim", found, [ERROR], "ius", SUM) == []  # not run


@pytest.mark.parametrize(
    ("error", "noise", "expected"),
    [
        (0.202, 0.0, True),  # by 1 %: level, if outside the spread
        (0.3, 0.01, False),
        (0.2, 0.05, None),  # within the spread, which is too wide to say so
    ],
)
def test_methods_are_level_by_five_percent(error, noise, expected):
    found = outcome({SUM: 0.2, "ius": error}, noise)
    assert holds(claims.alike("claim", found, [ERROR], "ius", SUM)) == [expected]


def test_few_groups_are_those_that_validation_chooses():
    """Of up to eight; against the sum, against one by one, and at equal updates."""
    errors = {SUM: 0.2, "sum_4": 0.05, "io_4": 0.1, "io_8": 0.02, "io": 0.3}
    losses = {"io_4": (0.1, 0.1), "io_8": (0.5, 0.5)}  # io_8 is best by the test only
    verdicts = claims.few_groups(outcome(errors, 0.001, losses), ERROR)
    assert holds(verdicts) == [True, True, False]
    assert all("IO (4) over" in verdict.measured for verdict in verdicts)
    assert claims.few_groups(outcome({SUM: 0.2, "io": 0.1}), ERROR) == []


@pytest.mark.parametrize(
    ("losses", "expected"),
    [((0.1, 0.9), True), ((0.1, 0.1), False), ((0.2, 0.9), None)],
)
def test_one_by_one_is_better_at_low_rates_and_worse_at_high(losses, expected):
    by_rate = {SUM: (0.2, 0.5), "io": losses}
    found = outcome({SUM: 0.2, "io": 0.2, "io_4": 0.2}, by_rate=by_rate)
    assert holds(claims.at_rates("claim", found, "io", highest=True)) == [expected]
    assert claims.at_rates("claim", found, "ius", highest=True) == []
    fewer = outcome(
        {SUM: 0.2, "io_4": 0.2, "io_8": 0.2}, by_rate={**by_rate, "io_8": losses}
    )
    assert holds(claims.at_rates("claim", fewer, "io", highest=True)) == [expected]
    low = {True: True, False: True, None: None}[expected]
    assert holds(claims.at_rates("claim", found, "io", highest=False)) == [low]


@pytest.mark.parametrize(("far", "expected"), [(9.0, True), (0.1, False), (1.0, None)])
def test_turns_go_farther(far, expected):
    found = outcome({SUM: 0.2, "io": 0.2}, covered={"io": far})
    assert holds(claims.farther(found)) == [expected]
    assert claims.farther(outcome({SUM: 0.2})) == []  # the sum alone


def test_scores_of_other_measures_stand_by_themselves():
    """With the note that says so, and not beside ours."""
    found = outcome({SUM: 0.2, "io": 0.1})
    scores = {"io": {"error": "29.48±0.30"}}
    for comparable in (True, False):
        paper = Paper("Table", scores, {}, "Other measures.", comparable)
        other = dataclasses.replace(found, paper=paper)
        assert ("29.48±0.30" in summary_table(other)) == comparable
        assert ("29.48±0.30" in paper_section(other)) == (not comparable)
        assert ("Other measures." in paper_section(other)) == (not comparable)
