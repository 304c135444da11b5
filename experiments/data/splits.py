"""The form of all data sets in memory: three splits, their sizes, and scaling."""

from dataclasses import dataclass
from typing import Generic, TypeVar

import numpy as np

S = TypeVar("S")


@dataclass(frozen=True)
class Splits(Generic[S]):
    """Three splits that share no sample, and a description of the samples' source."""

    train: S
    validation: S
    test: S
    source: str


def check_least(least: int, /, **counts: int | None) -> None:
    """Raises a ValueError that names a count below `least`; None is fine."""
    for name, count in counts.items():
        if count is not None and count < least:
            raise ValueError(f"`{name}` must be at least {least}, got {count}.")


def in_words(*sizes: int) -> str:
    """Returns the sizes of two or three splits for a table or a log."""
    names = ("train", "test") if len(sizes) == 2 else ("train", "validation", "test")
    return " / ".join(f"{n:,} {name}" for n, name in zip(sizes, names, strict=True))


def streams(seed: int, num: int) -> list[np.random.Generator]:
    """Returns random generators; each is independent of how much the others draw."""
    children = np.random.SeedSequence(seed).spawn(num)
    return [np.random.default_rng(child) for child in children]


def pick(
    name: str, row: np.ndarray, num: int | None, rng: np.random.Generator
) -> np.ndarray:
    """Returns `num` random entries of a row in their order; None returns all."""
    if num is None:
        return row
    if num > len(row):
        raise ValueError(
            f"`{name}` must be at most {len(row)}, the size of the split, got {num}."
        )
    return row[np.sort(rng.permutation(len(row))[:num])]


def cut(order: np.ndarray) -> list[np.ndarray]:
    """Splits ten or more places into places to train, to validate and to test.

    Three tenths are for testing, and a fifth of the rest is for validation, as in the
    ATE-SG paper, see `load_quadrants`.
    """
    num_rest = len(order) - len(order) * 3 // 10
    return np.split(order, [num_rest - num_rest // 5, num_rest])


def scaler(train: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns the mean and the standard deviation of every input of samples, float32.

    Use them as `(samples - mean) / std`. As in scikit-learn's `StandardScaler`, an
    input that never varies gets the standard deviation 1, so the result is 0 and not
    NaN.
    """
    mean = train.mean(axis=0, dtype=np.float64)
    std = train.std(axis=0, dtype=np.float64)
    std[np.ptp(train, axis=0) == 0] = 1
    return mean.astype(np.float32), std.astype(np.float32)
