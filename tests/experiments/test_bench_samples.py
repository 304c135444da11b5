"""The benchmark of one task per sample: its sizes, its steps, its table."""

import pytest

from experiments.bench import samples

pytestmark = pytest.mark.slow


def test_steps_and_table(monkeypatch):
    monkeypatch.setattr(samples, "WIDTH", 16)
    costs = samples.measure(8, 2, 1)
    assert [cost.step for cost in costs] == ["plain", "gramian", *samples.METHODS]
    assert all(cost.milliseconds > 0 for cost in costs)
    row = samples.table(costs).splitlines()[-1]
    assert [cell.strip() for cell in row.split("|")][1:3] == ["8", "2"]
