"""The benchmark of one task per sample: its sizes, its steps, its tables."""

import json

import jax.numpy as jnp
import numpy as np
import pytest

from experiments.bench import samples


def test_weights_from_the_formula():
    gramian = jnp.array([[4.0, -1.0], [-1.0, 1.0]])
    # Diagonal over trace, and half of the rows' sums over the sum of absolute values.
    expected = [4 / 5 + 3 / 14, 1 / 5 + 0 / 14]
    np.testing.assert_allclose(samples.formula_weights(gramian), expected, rtol=1e-6)


SECONDS = {"default": 8.0, "autogram": 6.0, "autogram of samples": 4.0}


class FakeProcess:
    """Steps of so many seconds, by setting."""

    def __call__(self, question: str) -> str:
        request = json.loads(question)
        assert (request["aggregator"] is None) == (request["setting"] == "default")
        assert (request["bare"], request["steps"]) == (True, 1)
        return json.dumps({"cpu_seconds": SECONDS[request["setting"]]})


@pytest.mark.slow
def test_steps_and_tables(monkeypatch):
    monkeypatch.setattr(samples, "WIDTH", 16)
    costs = samples.measure(8, 2, 1, FakeProcess())
    solvers = [f"solver of {name}" for name in samples.METHODS]
    ours = ["plain", "gramian", *samples.METHODS, *solvers]
    assert [cost.step for cost in costs] == [*ours, *samples.TORCH]
    assert all(cost.milliseconds > 0 for cost in costs)
    row = samples.table(costs).splitlines()[-1]
    assert [cell.strip() for cell in row.split("|")][1:3] == ["8", "2"]
    cells = samples.torch_table(costs).splitlines()[-1].split("|")[1:-1]
    assert [float(cell) for cell in cells[4:7]] == [8e3, 6e3, 4e3]
    assert float(cells[7]) == pytest.approx(4e3 / costs[1].milliseconds, rel=0.01)
