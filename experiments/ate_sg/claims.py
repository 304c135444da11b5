"""The paper's claims about ATE-SG (section 4), checked against a run."""

import functools
import math
from collections.abc import Callable, Iterable, Mapping

import numpy as np

from experiments.ate_sg.costs import Costs, Count
from experiments.lab.comparison import Difference, paired
from experiments.lab.tables import Frame, select
from experiments.lab.verdicts import Verdict

SIMILAR = 1.5  # largest factor between the measures of similar trainings
POINTS = 1.0  # of recall: "almost the same" is at most this difference (Table 5)
Rule = Callable[[Iterable[Difference]], bool | None]


def all_have(sign: int, differences: Iterable[Difference]) -> bool | None:
    """True if all intervals have this sign, False if one has the other sign."""
    signs = {difference.sign for difference in differences}
    return False if -sign in signs else True if signs == {sign} else None


def all_within(bound: float, differences: Iterable[Difference]) -> bool | None:
    """True if all intervals lie within the bound, False if one lies outside of it."""
    ends = [(abs(each.mean), each.half) for each in differences]
    if any(mean - half > bound for mean, half in ends):
        return False
    return True if all(mean + half < bound for mean, half in ends) else None


LOWER, HIGHER = functools.partial(all_have, -1), functools.partial(all_have, 1)
ALIKE = functools.partial(all_within, math.log(SIMILAR))
# By length of the phases; the claims are about ratios to the training without phases.
CLAIMS: list[tuple[int, str, tuple[str, ...], Rule]] = [
    (1, "less oscillation in {loss}", ("{loss}_zigzag", "{loss}_spike"), LOWER),
    (10, "spikes in {loss}", ("{loss}_spike",), HIGHER),
    (100, "oscillates as without phases in {loss}", ("{loss}_zigzag",), ALIKE),
    (1, "the first rate lasts longer (Fig. 5)", ("start_epochs",), HIGHER),
    (10, "the first rate lasts longer (Fig. 5)", ("start_epochs",), HIGHER),
    (100, "the first rate lasts as long (Fig. 5)", ("start_epochs",), ALIKE),
]


def claims(own: Frame, losses: Mapping[str, str]) -> list[Verdict]:
    """Returns the verdicts on trainings with the same optimizer and learning rate.

    `own` has a row for each length and seed, from `report.summarize`; `losses` are
    names by column. Each seed is paired with the same seed of the training without
    phases. If the learning rate of some training has not fallen, the run was too short
    for a verdict.
    """
    settled = bool((own["start_epochs"] < own["epochs"]).all())
    where = f"{own['optimizer'].iloc[0].upper()} from {own['rate'].iloc[0]:g}"
    lengths = [length for length in own["length"].unique() if length]

    def pair(column: str, length: int) -> list[np.ndarray]:
        """Returns the values of all seeds, with phases and without."""
        return [select(own, length=each)[column].to_numpy() for each in (length, 0)]

    found = []
    for length, claim, columns, rule in CLAIMS:
        if length not in lengths:
            continue
        for loss, name in losses.items() if "{loss}" in claim else [("", "")]:
            pairs = [pair(column.format(loss=loss), length) for column in columns]
            with np.errstate(divide="ignore"):  # if the loss does not change
                ratios = [paired(*np.log(each)) for each in pairs]
            words = [
                f"{column.split('_')[-1]} {times(ratio)}"
                for column, ratio in zip(columns, ratios, strict=True)
            ]
            text = f"E0 = {length} ({where}): {claim.format(loss=name)}"
            found.append(
                Verdict(text, ", ".join(words), rule(ratios) if settled else None)
            )
    recalls = [column for column in own if column.startswith("recall")]
    apart = {
        f"{column}, E0 = {length}": paired(*pair(column, length))
        for length in lengths
        for column in recalls
    }
    if apart:
        points = {
            name: Difference(100 * d.mean, 100 * d.half) for name, d in apart.items()
        }
        widest = max(points, key=lambda name: abs(points[name].mean))
        found.append(
            Verdict(
                f"{where}: almost the same recall as without phases",
                f"at most {points[widest]:.2f} points apart ({widest})",
                all_within(POINTS, points.values()) if settled else None,
            )
        )
    return found


def cost_claims(
    units: Mapping[str, Costs], counts: Mapping[str, Count], lengths: Iterable[int]
) -> list[Verdict]:
    """Returns the verdicts on the cost of an epoch and on the memory."""
    paper, own = units["parameters"], units["flops"]
    cycles = {n: (own.shared + own.task + own.encode / n) / 2 for n in lengths}
    each = ", ".join(f"{cost:.2f} (E0 = {n})" for n, cost in cycles.items())
    bytes_ = {name: count.temporary_bytes for name, count in counts.items()}
    shares = {"shared": 1 - paper.task, "task": paper.task}
    memory = {phase: bytes_[phase] / bytes_["full"] for phase in shares}
    return [
        Verdict(
            "an epoch costs less than one without phases, which is 1",
            f"{(1 + paper.task) / 2:.2f} by the paper's unit, in operations {each}",
            max(cycles.values(), default=math.nan) < 1,
        ),
        *(
            Verdict(
                f"{phase} phase: memory falls to its gradient's share, {share:.2f}",
                f"to {memory[phase]:.2f}, the temporary memory of a step",
                memory[phase] < share + 0.1,  # 0.1 for all else
            )
            for phase, share in shares.items()
        ),
    ]


def times(logarithm: Difference) -> str:
    """Returns a ratio with its 95 % interval: `0.46 times (0.40 to 0.53)`."""
    mean, half = logarithm
    if not np.isfinite(mean):
        return f"{np.exp(mean):.2f} times"
    low, middle, high = np.exp([mean - half, mean, mean + half])
    return f"{middle:.2f} times ({low:.2f} to {high:.2f})"
