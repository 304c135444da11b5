"""Genes of yeast with 14 groups of functions (Elisseeff and Weston, 2002)."""

from typing import NamedTuple

import numpy as np
import pandas as pd

from experiments.data.installed import shipped
from experiments.data.splits import Splits, cut, in_words, scaler

NUM_LABELS = 14


class GeneSet(NamedTuple):
    """x: expression and profile, standardised, `[num, 103]`; y: labels `[num, 14]`."""

    x: np.ndarray
    y: np.ndarray


def load_yeast() -> Splits[GeneSet]:
    """Reads the genes that river ships; the splits are the same in every run."""
    table = pd.read_csv(shipped("river", "datasets", "yeast.csv.gz")).to_numpy()
    x, y = np.split(table, [-NUM_LABELS], axis=1)
    rows = cut(np.random.default_rng(0).permutation(len(x)))
    mean, std = scaler(x[rows[0]])
    train, validation, test = (GeneSet((x[own] - mean) / std, y[own]) for own in rows)
    source = f"genes of yeast that river ships ({in_words(*map(len, rows))})"
    return Splits(train, validation, test, source)
