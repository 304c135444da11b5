"""The README's first example: its losses, and a short run of the command."""

import json

import jax
import numpy as np
import pytest

from experiments import poisson
from experiments.lab.errors import UsageError


def test_losses_are_those_of_the_equation_and_its_ends():
    """Second derivatives of u by central differences, and f in closed form."""
    params = poisson.init(jax.random.key(0))
    h, x = 1e-4, poisson.INSIDE
    kernels, biases = ([np.float64(own[name]) for own in params] for name in "wb")

    def u(x):
        z = np.tanh(x[:, None] @ kernels[0] + biases[0])
        return (np.tanh(z @ kernels[1] + biases[1]) @ kernels[2] + biases[2])[:, 0]

    bent = (u(x + h) - 2 * u(x) + u(x - h)) / h**2
    f = -((4 * np.pi) ** 2) * np.sin(4 * np.pi * x)
    at_ends = u(poisson.ENDS) - [0, 1]
    expected = [np.mean((bent - f) ** 2), np.mean(at_ends**2)]
    found = jax.jit(poisson.losses)(params)
    np.testing.assert_allclose(found, expected, rtol=1e-4)


@pytest.mark.slow
def test_the_command(tmp_path, monkeypatch):
    """A row for each weight of the boundary and each method, a column for each rate."""
    monkeypatch.setattr(poisson, "FACTORS", (1.0, 100.0))
    options = ["--methods", "conflict_free", "--learning-rates", "1e-3", "3e-3"]
    options += ["--seeds", "1", "--steps", "3", "--out", str(tmp_path / "run")]
    poisson.main(options)
    report = (tmp_path / "run" / "report.md").read_text().splitlines()
    lines = [
        line.split("|")[1:-1] for line in report if line[:3] in ("|  ", "| S", "| C")
    ]
    assert [cell.strip() for cell in lines[0]] == ["", "0.001", "0.003"]
    names = ["Summed loss", "Summed loss, boundary x 100", "ConFIG"]
    assert [cells[0].strip() for cells in lines[1:]] == names
    assert lines[1][2] != lines[2][2]  # the weight acts
    assert json.loads((tmp_path / "run" / "results.json").read_text())["command"]
    assert (tmp_path / "run" / "poisson.png").stat().st_size > 1000


def test_the_drawn_rate_is_one_of_the_grid(tmp_path):
    with pytest.raises(UsageError, match=r"--drawn must be one of .*, got 0\.5"):
        poisson.main(["--drawn", "0.5", "--out", str(tmp_path / "run")])
