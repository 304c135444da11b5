"""Chooses weights and learning rates for each row, and compares the errors of rows."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from experiments.lab.comparison import Difference, paired
from experiments.lab.tables import Frame

# The name of the weights and a rate, by part; parts differ only for single networks.
Choice = Mapping[str, tuple[str, float]]


def choose(search: Frame, parts: Sequence[str], *, alone: bool = False) -> Choice:
    """Returns the candidate with the lowest error, geometric mean over seeds and parts.

    If networks are `alone`, each part has its own choice. A lost run counts as the
    worst.
    """
    logs = search.assign(value=_logs(search["value"]).fillna(np.inf))
    by_part = logs.groupby(["part", "weights", "rate"], sort=False)["value"].mean()
    means = by_part.groupby(level=["weights", "rate"], sort=False).mean()
    return {part: (by_part[part] if alone else means).idxmin() for part in parts}


def at_edge(choice: Choice, rates: Sequence[float], weightings: Sequence[str]) -> bool:
    """Whether a chosen rate, or chosen weights of a grid, are at an end of the grid."""
    ends = {min(rates), max(rates)}
    ends |= {weightings[0], weightings[-1]} if len(weightings) > 1 else set()
    return any(not ends.isdisjoint(candidate) for candidate in choice.values())


def errors_of(report: Frame, choice: Choice) -> Frame:
    """Returns the logarithms of the errors of the chosen runs: a column for each part.

    The rows are by `nudged` and seed; NaN is where a run is lost.
    """
    keys = ["part", "weights", "rate"]
    wide = report.pivot(index=keys, columns=["nudged", "seed"], values="value")
    chosen = wide.loc[[(part, *candidate) for part, candidate in choice.items()]]
    return _logs(chosen.droplevel(["weights", "rate"]).T)


class Standing(NamedTuple):
    """A row compared with another; errors and ratios are logarithms."""

    error: float  # mean over parts and over seeds that are not lost
    ratios: list[float]  # mean over parts, of each of these seeds
    lost: int  # seeds
    worst: tuple[str, float]  # the part with the highest mean ratio
    difference: Difference  # over all seeds
    rounding: float  # change of the error by rounding, root mean square over seeds

    @property
    def words(self) -> str:
        """The difference in words; none if the interval contains zero."""
        if self.lost:
            return "lost seeds"
        words = ("no difference", "higher", "lower")[self.difference.sign]
        near = self.difference.sign and abs(self.difference.mean) <= self.rounding
        return f"{words}, as far as rounding" if near else words


def compare(row: Frame, base: Frame) -> Standing:
    """Compares the errors of a row, from `errors_of`, with the errors of another row.

    A seed is lost if one of its errors is not finite.
    """
    own, nudged = row.loc[0], row.loc[1]
    apart = own - base.loc[0]
    there = np.isfinite(apart).all(axis=1)
    moved, means = (nudged - own)[there].mean(axis=1), apart[there].mean(axis=0)
    return Standing(
        error=float(own[there].to_numpy().mean()) if there.any() else np.inf,
        ratios=apart[there].mean(axis=1).tolist(),
        lost=int(np.sum(~there)),
        worst=(means.idxmax(), float(means.max())) if there.any() else ("", np.inf),
        difference=paired(apart.mean(axis=1, skipna=False), np.zeros(len(apart))),
        rounding=float(np.sqrt((moved**2).mean())),
    )


def _logs(values: Frame) -> Frame:
    """Returns logarithms, with NaN for values that are not positive numbers."""
    return np.log(values.where(np.isfinite(values) & (values > 0)))
