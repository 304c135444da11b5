"""Reference values of aggregators and weightings, exact to float64 rounding.

21 Jacobians with the value of each aggregator on them, computed in 512-bit arithmetic
(`aggregators.npz`), and two sequences of losses with the trajectories of the loss
weightings (`weightings.npz`). A method entry has the status `exact` (compare the
vector), `convention` (compare only where the convention is shared), `undefined` (ask
for a finite result) or `not_applicable`.
"""

import functools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from tests.linalg.matrices import padded_gramian

MAX_TASKS = 40

_ITERATIVE = ("mgda", "upgrad", "dualproj", "cagrad", "nashmtl", "fairgrad")


class Entry(NamedTuple):
    """What the reference says of one method on one case."""

    status: str
    vector: np.ndarray | None  # A(J), [params]
    weights: np.ndarray | None  # A(J) = weights @ J, [tasks]
    weights_unique: bool
    float32_floor: float  # relative change of A(J) when J is rounded to float32


@functools.cache
def _load(name: str) -> dict[str, Any]:
    with np.load(Path(__file__).parent / f"{name}.npz") as file:
        arrays = dict(file)
    if "meta" in arrays:
        arrays["meta"] = json.loads(str(arrays["meta"]))
    return arrays


def cases() -> list[str]:
    """Names of the Jacobians."""
    return [str(case) for case in _load("aggregators")["cases"]]


def about(case: str) -> dict[str, Any]:
    """`shape`, `rank`, `gramian_condition`, `weakly_stationary` and `tags`."""
    return _load("aggregators")["meta"]["cases"][case]


def jacobian(case: str) -> np.ndarray:
    """`J`, float64 [tasks, params]."""
    return _load("aggregators")[f"{case}/J"]


def preference(case: str) -> np.ndarray:
    """A non-uniform preference that sums to one, [tasks]."""
    return _load("aggregators")[f"{case}/pref"]


def losses(case: str) -> np.ndarray:
    """Positive losses, [tasks]."""
    return _load("aggregators")[f"{case}/losses"]


def entry(case: str, method: str) -> Entry:
    """The reference value of a method on a case."""
    arrays, found = _load("aggregators"), about(case)["methods"][method]
    return Entry(
        status=found["status"],
        vector=arrays.get(f"{case}/{method}/vector"),
        weights=arrays.get(f"{case}/{method}/weights"),
        weights_unique=found.get("weights_unique", True),
        float32_floor=found.get("float32_floor", 0.0),
    )


def methods() -> list[str]:
    """Names of the aggregators."""
    return sorted(about(cases()[0])["methods"])


def row_condition(case: str) -> float:
    """Condition of the Gramian of the unit rows, largest over smallest non-zero."""
    rank = about(case)["rank"]
    if rank == 0:
        return 1.0
    norms = np.linalg.norm(jacobian(case), axis=1, keepdims=True)
    unit_rows = jacobian(case) / np.where(norms == 0, 1, norms)
    singular = np.linalg.svd(unit_rows, compute_uv=False)
    return float((singular[0] / singular[rank - 1]) ** 2)


def tolerance(case: str, method: str, dtype: Any) -> float | None:
    """Allowed error relative to `scale(case, method)`, or None where float32 cannot.

    float64: 1e-6 for iterative methods; 1e-10 for closed forms, or 1e-15 times the
    condition of the Gramian where that is larger. float32: 1e-4, or 30 times the
    effect of rounding J, on every case with a row-normalised condition below 1e4.
    """
    if np.dtype(dtype) == np.float32:
        floor = entry(case, method).float32_floor
        return max(1e-4, 30 * floor) if row_condition(case) < 1e4 else None
    if method.startswith(_ITERATIVE):
        return 1e-6
    return max(1e-10, 1e-15 * (about(case)["gramian_condition"] or 1.0))


def scale(case: str, method: str) -> float:
    """What errors are relative to: the size of the reference, or of J if it is zero."""
    vector = entry(case, method).vector
    size = 0.0 if vector is None else np.linalg.norm(vector)
    return float(size or np.linalg.norm(jacobian(case)) or 1.0)


def error(case: str, method: str, vector: np.ndarray) -> float:
    """Relative error of an aggregated vector."""
    expected = entry(case, method).vector
    assert expected is not None
    return float(np.linalg.norm(vector - expected) / scale(case, method))


def beyond_tolerance(
    method: str, weights_of: Callable[[str, np.ndarray, np.ndarray], Any], dtype: Any
) -> dict[str, tuple[float, float]]:
    """Where an aggregator misses the reference, `{case: (error, allowed)}`.

    Calls `weights_of(case, gramian, present)` with Gramians padded by absent tasks to
    one size, so that one compiled function serves all cases. Only `exact` entries
    count; in the others, and where float32 cannot know, the weights must be finite.
    """
    found = {}
    for case in cases():
        rows = jacobian(case)
        gramian, present = padded_gramian(rows, dtype, MAX_TASKS)
        weights = np.asarray(weights_of(case, gramian, present), np.float64)
        assert np.all(np.isfinite(weights)), case
        assert np.all(weights[len(rows) :] == 0), case
        if entry(case, method).status != "exact":
            continue
        allowed = tolerance(case, method, dtype)
        off = error(case, method, weights[: len(rows)] @ rows)
        if allowed is not None and not off <= allowed:
            found[case] = off, allowed
    return found


def padded(vector: Any, dtype: Any = np.float64) -> np.ndarray:
    """A vector `[tasks]` with zeros for the absent tasks."""
    return np.pad(vector, (0, MAX_TASKS - len(vector))).astype(dtype)


def sequences() -> list[str]:
    """Names of the loss sequences."""
    return [str(sequence) for sequence in _load("weightings")["sequences"]]


def weighting(key: str) -> np.ndarray:
    """An array of `weightings.npz`, for instance `weighting("seq3/dwa/weights")`."""
    return _load("weightings")[key]
