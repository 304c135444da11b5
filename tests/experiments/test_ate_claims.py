"""Measures of oscillation, and the verdicts, on made-up losses and tables."""

import numpy as np
import pandas as pd
import pytest

from experiments.ate_sg.claims import claims, cost_claims
from experiments.ate_sg.costs import Costs, Count
from experiments.ate_sg.oscillation import PERIOD, oscillation

EPOCHS = 200
NOISE = 1 + 0.01 * np.random.default_rng(0).normal(size=[EPOCHS, 2])
LINE = np.linspace(2, 1, EPOCHS)[:, None] + np.zeros([1, 2])
RATES = np.where(np.arange(EPOCHS) < 100, 1.0, 0.75)[:, None] + np.zeros([1, 2])


def measure(**losses):
    """By name the measures of seed 0, all with the same learning rates."""
    numbered = dict(enumerate(losses.values()))
    found = oscillation(numbered, dict.fromkeys(numbered, RATES))
    return {name: found.loc[number, 0] for number, name in enumerate(losses)}


def test_spikes_that_the_zigzag_does_not_see():
    """In one epoch of 20: the typical epoch is as before, the highest place is not."""
    spiky = NOISE * np.where(np.arange(EPOCHS) % PERIOD == 7, 1.5, 1)[:, None]
    found = measure(spiky=spiky, noise=NOISE)
    assert found["spiky"]["zigzag"] == pytest.approx(found["noise"]["zigzag"], rel=0.3)
    assert found["spiky"]["spike"] == pytest.approx(0.5, abs=0.04)
    assert found["noise"]["spike"] < 0.04


def test_a_line_does_not_oscillate_and_a_zigzag_does():
    found = measure(line=LINE, zigzag=LINE + np.tile([[0.1], [-0.1]], [EPOCHS // 2, 2]))
    np.testing.assert_allclose(found["line"]["zigzag"], 0, atol=1e-12)
    assert found["line"]["spike"] < 0.01
    np.testing.assert_allclose(found["zigzag"]["zigzag"], 0.2, rtol=1e-6)
    assert 0.1 < found["zigzag"]["spike"] < 0.2


def test_the_two_levels_of_phases_are_a_spike():
    """Ten epochs high and ten low: the zigzag sees two epochs of them only."""
    levels = NOISE * np.where(np.arange(EPOCHS) % PERIOD < 10, 1.2, 0.8)[:, None]
    found = measure(levels=levels, noise=NOISE)
    assert found["levels"]["spike"] == pytest.approx(0.4, abs=0.04)
    assert found["levels"]["zigzag"] == pytest.approx(found["noise"]["zigzag"], rel=0.4)


def test_learning_rates_that_one_training_did_not_have_do_not_count():
    wild = NOISE.copy()
    wild[100:] *= np.tile([[1.0], [3.0]], [50, 2])  # at the rate 0.75
    constant = np.ones_like(RATES)
    found = oscillation({1: wild, 0: NOISE}, {1: RATES, 0: constant})
    assert found.loc[(1, 0), "spike"] < 0.05
    found = oscillation({1: wild, 0: NOISE}, {1: RATES, 0: RATES})
    assert found.loc[(1, 0), "spike"] > 0.1
    none = oscillation({1: wild, 0: NOISE}, {1: 2 * constant, 0: constant})
    assert none.shape == (4, 2)
    assert none.isna().all(axis=None)


def table(*, falls=True, recall=0.0, **measures):
    """Four seeds with E0 = 1 and without phases, whose measures are all 1 but these."""
    rows = []
    for length in (1, 0):
        for seed in range(4):
            row = {"optimizer": "sgd", "rate": 0.1, "length": length, "seed": seed}
            row |= {"epochs": 300, "start_epochs": 100 if falls else 300}
            row["recall, quad"] = 0.9 + length * recall
            for name in ("zigzag", "spike"):
                value = measures.get(name, [1.0] * 4)[seed] if length else 1.0
                row[f"loss_{name}"] = value * (1 + seed)  # seeds are far apart
            rows.append(row)
    return pd.DataFrame(rows)


def verdicts(**options):
    return {v.claim: v for v in claims(table(**options), {"loss": "the loss"})}


@pytest.mark.parametrize(
    ("measures", "holds"),
    [
        ({"zigzag": [0.5, 0.4, 0.5, 0.6], "spike": [0.5, 0.4, 0.5, 0.6]}, True),
        ({"zigzag": [0.5, 0.4, 0.5, 0.6], "spike": [1.5, 1.4, 1.5, 1.6]}, False),
        ({"zigzag": [0.5, 2.0, 0.5, 2.1], "spike": [0.5, 0.4, 0.5, 0.6]}, None),
    ],
    ids=["lower", "one is higher", "within the spread"],
)
def test_less_oscillation(measures, holds):
    claim = "E0 = 1 (SGD from 0.1): less oscillation in the loss"
    found = verdicts(**measures)[claim]
    assert found.holds is holds
    ratio = np.exp(np.mean(np.log(measures["zigzag"])))
    assert f"zigzag {ratio:.2f} times (" in found.measured
    # A learning rate that never fell: too short to say.
    assert verdicts(falls=False, **measures)[claim].holds is None


@pytest.mark.parametrize(("apart", "holds"), [(0.002, True), (-0.03, False)])
def test_almost_the_same_recall(apart, holds):
    found = verdicts(recall=apart)
    found = found["SGD from 0.1: almost the same recall as without phases"]
    assert found.holds is holds
    assert f"{100 * apart:+.2f}" in found.measured


def test_costs_and_memory():
    units = {"parameters": Costs(1.0, 0.6, 0.0), "flops": Costs(0.8, 0.5, 0.2)}
    counts = {"full": Count(0, 100), "shared": Count(0, 90), "task": Count(0, 55)}
    epoch, shared, task = cost_claims(units, counts, [1, 10])
    assert epoch.measured.startswith("0.80 by the paper's unit")
    assert epoch.measured.endswith("0.75 (E0 = 1), 0.66 (E0 = 10)")
    assert [v.holds for v in (epoch, shared, task)] == [True, False, True]
    dear = units | {"flops": Costs(1.0, 0.9, 0.2)}
    assert not cost_claims(dear, counts, [1, 10])[0].holds
