"""The claims of Aligned-MTL about photographs, checked against a run."""

from collections.abc import Sequence

from experiments.lab.verdicts import Verdict
from experiments.lab.vision.report import Outcome


def best(
    claim: str, outcome: Outcome, name: str, new: str, others: Sequence[str]
) -> list[Verdict]:
    """Tells whether a method has a better metric than all others that were trained.

    On rendered images the verdict is always that this cannot be seen.
    """
    (metric,) = (each for each in outcome.metrics if each.name == name)
    others = [other for other in others if other in outcome.scores]
    if new not in outcome.scores or not others:
        return []
    gains = {other: outcome.gain(metric, new, other) for other in others}
    least = min(gains, key=lambda other: gains[other].mean)
    signs = [gain.sign for gain in gains.values()]
    holds = False if min(signs) < 0 else True if min(signs) > 0 else None
    if "rendered" in outcome.source:
        holds = None
    gain = f"{gains[least]:.{metric.digits}f}"
    measured = f"gain in {metric.title} over {outcome.titles[least]}: {gain}"
    return [Verdict(claim, measured, holds)]
