"""The form of all image data sets, which are read by samples or by batches."""

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from experiments.data.resizing import Size


class Sample(NamedTuple):
    """An image and its labels. A batch has one more axis in front.

    image: float32 [height, width, 3], from 0 to 1. labels: by the name of the task. A
    class is int32, and -1 if it is unknown; a quantity is float32, and NaN if it is
    unknown. Maps are [height, width] for classes or [height, width, channels] for
    quantities. present: by the name of the task, bool [], whether any part of its label
    is known.
    """

    image: np.ndarray
    labels: dict[str, np.ndarray]
    present: dict[str, np.ndarray]


def make_sample(image: np.ndarray, labels: Mapping[str, np.ndarray]) -> Sample:
    """Returns a sample, and finds out which labels are present."""
    cast, present = {}, {}
    for task, label in labels.items():
        if label.dtype.kind in "iu":
            cast[task] = label.astype(np.int32)
            present[task] = np.any(cast[task] >= 0)
        else:
            cast[task] = label.astype(np.float32)
            present[task] = np.any(np.isfinite(cast[task]))
    return Sample(image.astype(np.float32), cast, present)


@dataclass(frozen=True)
class Samples:
    """The samples of one split; a sample is in memory only after it is read.

    names: the name of each sample. read: reads a sample by its index in `names`.
    source: a description of where the samples come from.
    """

    names: Sequence[str]
    read: Callable[[int], Sample]
    source: str

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, place: int) -> Sample:
        return self.read(range(len(self))[place])

    def batch(self, places: Sequence[int] | np.ndarray) -> Sample:
        """Reads the samples with these indices, several at a time, and stacks them."""
        with ThreadPoolExecutor() as pool:
            samples = list(pool.map(self.__getitem__, places))
        images, *parts = zip(*samples, strict=True)
        # Do not use `jax.tree.map`, which would sort the tasks.
        labels, present = (
            {task: np.stack([row[task] for row in part]) for task in part[0]}
            for part in parts
        )
        return Sample(np.stack(images), labels, present)


def check_settings(split: str, splits: Sequence[str], size: Size) -> None:
    """Raises a ValueError if there is no such split, or if the size is invalid."""
    if split not in splits:
        raise ValueError(f"`split` must be one of {', '.join(splits)}, got {split!r}.")
    check_size(size)


def check_size(size: Size) -> None:
    """Raises a ValueError if a height or a width is below 1."""
    if len(size) != 2 or min(size) < 1:
        raise ValueError(f"`size` must be a height and a width, got {size}.")


def in_words(origin: str, num: int, size: Size, detail: str = "") -> str:
    """Returns the source of the images of a split for a table or a log."""
    return f"{origin} ({num:,} images of {size[0]} x {size[1]} pixels{detail})"
