"""The report of a vision experiment: choices, rates, figures."""

import importlib
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from experiments.lab.vision import figures, report
from experiments.lab.vision.report import Outcome, Paper, choose, scores_by_method
from experiments.mtl_io.attributes import ERROR


def rows(method: str, rate: float, seed: int, loss: float, test: float) -> list[Any]:
    keys = {"method": method, "only": "", "rate": rate, "seed": seed, "part": ""}
    values = {"best_loss": loss, "test_error": test}
    return [{**keys, "name": name, "value": value} for name, value in values.items()]


def test_validation_chooses_the_rate():
    """By the lowest validation loss, mean over seeds; not by the test."""
    table = pd.DataFrame(
        rows("sum_tasks", 0.1, 0, 1.0, 0.9)
        + rows("sum_tasks", 0.1, 1, 2.0, 0.8)
        + rows("sum_tasks", 1.0, 0, 0.5, 0.1)
        + rows("sum_tasks", 1.0, 1, float("inf"), 0.1)
        + rows("single", 1.0, 0, 1.0, 0.1)
    )
    assert scores_by_method(choose(table), [ERROR]) == {
        "sum_tasks": {"error": [0.9, 0.8]}
    }


def test_a_line_search_has_no_rate():
    """Nor is its only one at the edge of a grid."""
    table = pd.DataFrame(
        rows("sum_tasks", 0.1, 0, 1.0, 0.9)
        + rows("sum_tasks", 1.0, 0, 2.0, 0.8)
        + rows("fbls", 0.0, 0, 3.0, 0.7)
    )
    titles = {name: name for name in ("sum_tasks", "fbls")}
    outcome = Outcome(table, titles, [ERROR], Paper("", {}), "")
    header, _, *lines = report.rates_table(outcome).splitlines()
    cells = [[c.strip() for c in line.split("|")[1:-1]] for line in (header, *lines)]
    assert cells == [
        ["method", "none", "0.1", "1"],
        ["sum_tasks", "", "1.0000", "2.0000"],
        ["fbls", "3.0000", "", ""],
    ]


@pytest.mark.parametrize("name", ["celeba_groups", "cityscapes7"])
def test_learning_rates_of_all_settings_are_drawn(name: str, monkeypatch):
    """Fig. 3 has a panel of six curves for IUS and IO; Fig. 2 one for each task."""
    own = importlib.import_module(f"experiments.mtl_io.{name}").EXPERIMENT
    methods = own.full["methods"]
    tasks = [f"task{place}" for place in range(own.num_tasks)]
    table = pd.DataFrame(
        [
            {"method": method, "only": "", "rate": rate, "seed": 0, "epoch": 1}
            | {"name": "validation_loss", "part": task, "value": 1.0}
            for method in methods
            for rate in (0.1, 0.2)
            for task in tasks
        ]
    )
    best = table.assign(name="best_loss", part="").drop_duplicates()
    titles = {method: method for method in methods}
    outcome = Outcome(pd.concat([table, best]), titles, [], own.paper(own.quick), "")
    drawn: dict[str, Any] = {}
    monkeypatch.setattr(
        figures, "draw_panels", lambda _, panels, **options: drawn.update(panels)
    )
    figures.draw_learning_rates(outcome, tasks, Path())
    found = {
        panel: [curve.label for curve in curves] for panel, curves in drawn.items()
    }
    if name == "celeba_groups":
        kinds = {
            kind: [m for m in methods if m.split("_")[0] == kind.lower()]
            for kind in ("IUS", "IO")
        }
        assert found == {kind: ["sum_tasks", *own] for kind, own in kinds.items()}
        assert [len(own) for own in kinds.values()] == [5, 5]
        assert len({curve.colour for curve in drawn["IO"]}) == 6
    else:
        panels = ["average", *tasks]
        assert found == {key: ["sum_tasks", "ius", "io"] for key in panels}
