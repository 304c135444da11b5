"""Images and labels of a vision experiment, rendered or from a release."""

from typing import Any

import numpy as np

from experiments.data.samples import Samples
from experiments.lab.settings import loaded

_HELD_OUT = 0.1  # share of the train split, if there is no validation split


class Split:
    """The samples of a split; a sample stays in memory once it has been read.

    A batch is `{"image": uint8 [num, height, width, 3], "labels": by the name of the
    task, as in `experiments.data.samples`, but classes are int8}`.
    """

    def __init__(self, samples: Samples):
        first = samples[0]
        self.tasks = tuple(first.labels)
        self._samples = samples
        self._known = np.zeros(len(samples), bool)
        # The system allocates memory only when it is written.
        self._image = np.empty((len(samples), *first.image.shape), np.uint8)
        kinds = {"i": np.int8, "f": np.float32}
        self._labels = {
            task: np.empty((len(samples), *label.shape), kinds[label.dtype.kind])
            for task, label in first.labels.items()
        }

    def __len__(self) -> int:
        return len(self._samples)

    def batch(self, rows: np.ndarray) -> dict[str, Any]:
        """Returns some samples; raises a UsageError if a sample cannot be read."""
        self._read(np.unique(rows[~self._known[rows]]))
        labels = {task: label[rows] for task, label in self._labels.items()}
        return {"image": self._image[rows], "labels": labels}

    def padded(self, start: int, size: int) -> dict[str, Any]:
        """Returns `size` samples from `start`; samples past the end have no label."""
        batch = self.batch(np.arange(start, start + size) % len(self))
        beyond = np.arange(start, start + size) >= len(self)
        for label in batch["labels"].values():
            label[beyond] = np.nan if label.dtype.kind == "f" else -1
        return batch

    def _read(self, rows: np.ndarray) -> None:
        if not len(rows):
            return
        sample = loaded(self._samples.batch, rows)
        self._image[rows] = np.rint(255 * sample.image)
        for task, label in sample.labels.items():
            self._labels[task][rows] = label
        self._known[rows] = True


def first(samples: Samples, num: int) -> Samples:
    """Returns the first samples only."""
    source = f"at most {num} of each split of {samples.source}"
    return Samples(samples.names[:num], samples.read, source)


def hold_out(train: Samples, test: Samples) -> dict[str, Samples]:
    """Returns the three splits of a release that has no validation split.

    The last tenth of the train split is held out, instead of a random tenth. Names are
    sorted by cities and sequences, whose images are too similar to be in both splits.
    """
    if len(train) < 2:
        raise ValueError(
            "`train` must have 2 samples or more, one of them to validate on, got "
            f"{len(train)}: {train.source}."
        )
    cut = len(train) - max(1, round(_HELD_OUT * len(train)))
    kept = Samples(train.names[:cut], train.read, train.source)
    last = Samples(
        train.names[cut:], lambda place: train.read(cut + place), train.source
    )
    return {"train": kept, "validation": last, "test": test}
