"""How much losses go up and down, at learning rates that all trainings had.

Two measures. The zigzag is the median distance of a loss from the mean of both
neighbours: typical, and blind to one epoch of ten. The spike sees that: relative to the
median of the 20 epochs around, the loss has a median for each place in a cycle of 20
epochs (E0 = Ets = 10, for which the paper sees spikes), and the spike is the distance
from the lowest place to the highest.
"""

from collections.abc import Mapping

import numpy as np
import pandas as pd

from experiments.lab.tables import Frame

PERIOD = 20  # epochs of that cycle; any so many neighbours have each place once
MEASURES = ("zigzag", "spike")


def oscillation(
    losses: Mapping[int, np.ndarray], rates: Mapping[int, np.ndarray]
) -> Frame:
    """Returns the measures, a row for each length of the phases and seed.

    `losses` and learning `rates` of each length are `[epochs, seeds]`. A learning rate
    counts if every training had it for a period; means over them are geometric. NaN if
    there is none.
    """
    parts = []
    for length, loss in losses.items():
        around = pd.DataFrame(loss).rolling(PERIOD, center=True).median().to_numpy()
        zigzag = np.full_like(loss, np.nan)
        zigzag[1:-1] = np.abs(loss[1:-1] - (loss[:-2] + loss[2:]) / 2)
        epochs, seeds = np.indices(loss.shape)
        columns = {
            "seed": seeds,
            "learning_rate": rates[length],
            "place": epochs % PERIOD,
            "zigzag": zigzag,
            "relative": loss / around,
        }
        part = pd.DataFrame({name: each.ravel() for name, each in columns.items()})
        parts.append(part.assign(length=length))
    frame: Frame = pd.concat(parts)
    by = ["learning_rate", "length", "seed"]
    counts = frame.dropna().groupby(by).size().unstack(by[1:])
    common = counts[counts >= PERIOD].dropna().index
    equal = frame[frame["learning_rate"].isin(common)]
    places = equal.groupby([*by, "place"])["relative"].median().groupby(by)
    zigzag = equal.groupby(by)["zigzag"].median()
    measured: Frame = pd.DataFrame(
        {"zigzag": zigzag, "spike": places.max() - places.min()}
    )
    with np.errstate(divide="ignore"):  # of a loss that stands still
        logarithms: Frame = np.log(measured)
    runs = pd.MultiIndex.from_frame(frame[by[1:]].drop_duplicates())
    return np.exp(logarithms.groupby(by[1:]).mean()).reindex(runs)
