"""A paper's claims, checked against a run."""

from collections.abc import Sequence
from typing import NamedTuple

from experiments.lab.tables import markdown_table

_WORDS = {True: "holds", False: "does not hold", None: "cannot be seen at this size"}


class Verdict(NamedTuple):
    """A claim, and its measurement in this run."""

    claim: str  # with its place in the paper
    measured: str
    holds: bool | None  # None: this run is too short or too small to say


def verdict_table(verdicts: Sequence[Verdict]) -> str:
    """Returns the table that ends a report."""
    rows = [[claim, measured, _WORDS[holds]] for claim, measured, holds in verdicts]
    return markdown_table(["claim", "measured", "verdict"], rows)
