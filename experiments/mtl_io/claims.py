"""The claims of Pascal et al., 2021, checked against a run."""

import itertools
from collections.abc import Iterator, Sequence

from experiments.lab.comparison import Difference, paired
from experiments.lab.tables import select
from experiments.lab.verdicts import Verdict
from experiments.lab.vision.report import SUM, Metric, Outcome, in_families

_LEVEL = 0.05  # share of a score: scores that differ by less are level
_FEW = 8  # largest number of groups for which the paper reports a gain


def better(
    claim: str, outcome: Outcome, metrics: Sequence[Metric], new: str, old: str
) -> list[Verdict]:
    """Tells, metric by metric, whether a method is better than another."""
    return [
        Verdict(*words, {1: True, -1: False, 0: None}[gain.sign])
        for _, gain, words in _gains(claim, outcome, metrics, new, old)
    ]


def alike(
    claim: str, outcome: Outcome, metrics: Sequence[Metric], new: str, old: str
) -> list[Verdict]:
    """Tells, metric by metric, whether two methods differ by less than 5 %."""
    verdicts = []
    for metric, gain, words in _gains(claim, outcome, metrics, new, old):
        level = _LEVEL * abs(metric.factor * outcome.means.loc[metric.name, old])
        holds = False if gain.sign else None
        if abs(gain.mean) + gain.half <= level:
            holds = True
        verdicts.append(Verdict(*words, holds))
    return verdicts


def _gains(
    claim: str, outcome: Outcome, metrics: Sequence[Metric], new: str, old: str
) -> Iterator[tuple[Metric, Difference, tuple[str, str]]]:
    """Yields each metric, its gain, and texts for the claim and the measurement."""
    for metric in metrics if {new, old} <= outcome.scores.keys() else ():
        gain = outcome.gain(metric, new, old)
        pair = f"{outcome.titles[new]} over {outcome.titles[old]}"
        measured = f"gain of {pair}: {gain:.{metric.digits}f}"
        yield metric, gain, (f"{claim}: {metric.title}", measured)


def few_groups(outcome: Outcome, metric: Metric) -> list[Verdict]:
    """Tells whether few groups, as many as validation chooses, are the best choice."""
    losses = select(outcome.chosen, name="best_loss").groupby("method")["value"].mean()
    verdicts = []
    for kind in ("ius", "io"):
        few = [
            n for n in losses.index if n.startswith(f"{kind}_") and _number(n) <= _FEW
        ]
        if not few:
            continue
        best, name = min(few, key=lambda own: losses[own]), kind.upper()
        others = {
            f"{name} in few groups improves on the summed loss (Table 3)": SUM,
            f"{name} in few groups is better than one by one (Table 3)": kind,
            f"control: {name} in few groups, equal updates": f"sum_{_number(best)}",
        }
        for claim, other in others.items():
            verdicts += better(claim, outcome, [metric], best, other)
    return verdicts


def at_rates(
    claim: str, outcome: Outcome, kind: str, *, highest: bool
) -> list[Verdict]:
    """Tells whether many groups beat the summed loss at the lowest rate.

    If `highest`, also tells whether they are worse at the highest rate. The validation
    loss decides (Fig. 2, 3).
    """
    losses = select(outcome.table, name="best_loss", only="").pivot(
        index=["method", "rate"], columns="seed", values="value"
    )
    rates = sorted(losses.loc[SUM].index)
    methods = [n for n in outcome.titles if n == kind or n.startswith(f"{kind}_")]
    if not methods or len(rates) == 1:
        return []
    most = kind if kind in methods else max(methods, key=_number)
    apart = {
        rate: paired(losses.loc[(most, rate)], losses.loc[(SUM, rate)])
        for rate in (rates[0], rates[-1])[: 1 + highest]
    }
    words = ", ".join(f"{own:.4f} at {rate:g}" for rate, own in apart.items())
    titles = outcome.titles
    measured = f"validation loss of {titles[most]} less that of {titles[SUM]}: {words}"
    signs = [
        own.sign * side for own, side in zip(apart.values(), (-1, 1), strict=False)
    ]
    return [Verdict(claim, measured, _all(signs))]


def farther(outcome: Outcome) -> list[Verdict]:
    """Tells whether IUS and IO move farther, and less straight, than SUS (Table 4)."""
    values, names = outcome.distances.values, in_families(outcome.table)
    turns = [name for name in names if not name.startswith("sum")]
    if not turns:
        return []
    signs = [
        paired(values.loc[name, column], values.loc[SUM, column]).sign
        for name, column in itertools.product(turns, values)
    ]
    means = values.groupby("method").mean()
    words = (
        f"{outcome.titles[n]} {', '.join(f'{value:.1f}' for value in means.loc[n])}"
        for n in [SUM, *turns]
    )
    claim = "IUS and IO cover more, end farther away, and less straight (Table 4)"
    return [Verdict(claim, "; ".join(words), _all(signs))]


def _all(signs: Sequence[int]) -> bool | None:
    """True if all signs are 1, False if any is -1, None otherwise."""
    if min(signs) < 0:
        return False
    return True if min(signs) > 0 else None


def _number(name: str) -> int:
    return int(name.rpartition("_")[2])
