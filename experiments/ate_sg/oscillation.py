"""How much losses go up and down, compared at learning rates that all trainings used.

There are two measures. The zigzag is the median distance of a loss from the mean of
both neighbouring epochs. It shows the typical change, and misses a jump in one epoch of
ten.

The spike shows such jumps. It uses cycles of 20 epochs (E0 = Ets = 10), for which the
paper reports spikes. Each loss is divided by the median of the 20 epochs around it, and
each place in the cycle gets the median of these ratios. The spike is the distance from
the lowest place to the highest.
"""

from collections.abc import Mapping

import numpy as np
import pandas as pd

from experiments.lab.tables import Frame

PERIOD = 20  # epochs of the cycle; any 20 neighbouring epochs contain each place once
MEASURES = ("zigzag", "spike")


def oscillation(
    losses: Mapping[int, np.ndarray], rates: Mapping[int, np.ndarray]
) -> Frame:
    """Returns the measures, with a row for each phase length and seed.

    `losses` and learning `rates` of each length are `[epochs, seeds]`. A learning rate
    counts if every training used it for a whole period; means over rates are geometric.
    The measures are NaN if no rate counts.
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
    with np.errstate(divide="ignore"):  # if the loss does not change
        logarithms: Frame = np.log(measured)
    runs = pd.MultiIndex.from_frame(frame[by[1:]].drop_duplicates())
    return np.exp(logarithms.groupby(by[1:]).mean()).reindex(runs)
