"""The form that all data sets in memory share: three splits, sizes, the scaler."""

from dataclasses import dataclass
from typing import Generic, TypeVar

import numpy as np

S = TypeVar("S")


@dataclass(frozen=True)
class Splits(Generic[S]):
    """Three splits that share no sample and, in words, where the samples come from."""

    train: S
    validation: S
    test: S
    source: str


def check_counts(**counts: int | None) -> None:
    """Raises a ValueError that names the count that is below 1; None is fine."""
    for name, count in counts.items():
        if count is not None and count < 1:
            raise ValueError(f"`{name}` must be at least 1, got {count}.")


def in_words(*sizes: int) -> str:
    """Returns the sizes of two or three splits for a table or a log."""
    names = ("train", "test") if len(sizes) == 2 else ("train", "validation", "test")
    return " / ".join(f"{n:,} {name}" for n, name in zip(sizes, names, strict=True))


def streams(seed: int, num: int) -> list[np.random.Generator]:
    """Returns sources of randomness, each independent of how much the others give."""
    children = np.random.SeedSequence(seed).spawn(num)
    return [np.random.default_rng(child) for child in children]


def pick(
    name: str, row: np.ndarray, num: int | None, rng: np.random.Generator
) -> np.ndarray:
    """Returns `num` entries of a row at random, in their order; None takes all."""
    if num is None:
        return row
    if num > len(row):
        raise ValueError(
            f"`{name}` must be at most {len(row)}, the size of the split, got {num}."
        )
    return row[np.sort(rng.permutation(len(row))[:num])]


def split_sizes(num: int) -> tuple[int, int, int]:
    """Returns the numbers of train, validation and test samples out of `num`.

    Three tenths are for testing, and a fifth of the rest is for validation.

    References:
        Bellavia et al., "ATE-SG: alternate through the epochs stochastic gradient for
        multi-task neural networks", sections 4.1 and 4.2.1.
    """
    if num < 10:
        raise ValueError(
            f"`num` must be at least 10, so that every split has one, got {num}."
        )
    num_test = num * 3 // 10
    num_validation = (num - num_test) // 5
    return num - num_test - num_validation, num_validation, num_test


def scaler(train: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns the mean and the standard deviation of every input of samples, float32.

    Use them as `(samples - mean) / std`. As in scikit-learn's `StandardScaler`, an
    input that never varies gets the standard deviation 1, so it becomes 0 and not NaN.
    """
    mean = train.mean(axis=0, dtype=np.float64)
    std = train.std(axis=0, dtype=np.float64)
    std[np.ptp(train, axis=0) == 0] = 1
    return mean.astype(np.float32), std.astype(np.float32)
