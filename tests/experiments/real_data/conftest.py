"""A made-up problem with two targets, one a hundred times the other."""

import numpy as np
import optax
import pytest

from experiments.data.molecules import MoleculeSet
from experiments.data.splits import Splits
from experiments.real_data import learned
from experiments.real_data.problem import Problem


@pytest.fixture(scope="module")
def data() -> Splits[MoleculeSet]:
    rng = np.random.default_rng(0)

    def some(num: int) -> MoleculeSet:
        return MoleculeSet(rng.normal(size=(num, 3)), rng.normal(size=(num, 2)) * SCALE)

    return Splits(some(70), some(20), some(30), "made up")


SCALE = np.array([1.0, 100.0])


@pytest.fixture(scope="module")
def problem(data) -> Problem:
    about = {"tasks": ("small", "large"), "point_loss": optax.squared_error}
    scaled = learned.regress(data, change=lambda y: y / SCALE, steps=2, **about)
    return learned.regress(data, standardised=scaled, steps=2, **about)
