"""Images and labels of a vision experiment, in memory: rendered, or of a release."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from tqdm import tqdm

from experiments.data.samples import Samples


class Split(NamedTuple):
    """The samples of a split.

    image: uint8 `[num, height, width, 3]`. labels: by the name of the task, as in
    `experiments.data.samples`, but classes are int8.
    """

    image: np.ndarray
    labels: dict[str, np.ndarray]

    def __len__(self) -> int:
        return len(self.image)

    def batch(self, rows: np.ndarray) -> dict[str, Any]:
        """Returns some samples, for `Problem`."""
        labels = {task: label[rows] for task, label in self.labels.items()}
        return {"image": self.image[rows], "labels": labels}

    def padded(self, start: int, size: int) -> dict[str, Any]:
        """Returns `size` samples from `start` on, past the end such without a label."""
        batch = self.batch(np.arange(start, start + size) % len(self))
        beyond = np.arange(start, start + size) >= len(self)
        for label in batch["labels"].values():
            label[beyond] = np.nan if label.dtype.kind == "f" else -1
        return batch


class Data(NamedTuple):
    """Three splits that share no image. source: in words, rendered or official."""

    train: Split
    validation: Split
    test: Split
    source: str


def read_data(samples: Mapping[str, Samples], source: str) -> Data:
    """Reads the splits `train`, `validation` and `test`, with a progress bar."""
    train, validation, test = (
        _read(samples[name], name) for name in ("train", "validation", "test")
    )
    return Data(train, validation, test, source)


def hold_out(samples: Samples, share: float = 0.1) -> tuple[Samples, Samples]:
    """Cuts the last samples off, for releases without a validation split.

    The last in a row, not any: the names follow cities and sequences, whose images are
    too alike to be on both sides.

    Examples:
        >>> train, validation = hold_out(Samples(list("abcdefghij"), str, ""))
        >>> train.names, validation.names, validation.read(0)
        (['a', 'b', 'c', 'd', 'e', 'f', 'g', 'h', 'i'], ['j'], '9')
    """
    cut = len(samples) - max(1, round(share * len(samples)))
    first = Samples(samples.names[:cut], samples.read, samples.source)
    last = Samples(
        samples.names[cut:], lambda place: samples.read(cut + place), samples.source
    )
    return first, last


def _read(samples: Samples, name: str) -> Split:
    images: Any = None
    labels: dict[str, np.ndarray] = {}
    numbers = tqdm(
        range(len(samples)), desc=f"reading {name}", unit="image", leave=False
    )
    for number in numbers:
        sample = samples[number]
        if images is None:
            images = np.empty((len(samples), *sample.image.shape), np.uint8)
            labels = {
                task: np.empty(
                    (len(samples), *label.shape),
                    np.int8 if label.dtype.kind == "i" else np.float32,
                )
                for task, label in sample.labels.items()
            }
        images[number] = np.rint(255 * sample.image)
        for task, label in sample.labels.items():
            labels[task][number] = label
    return Split(images, labels)
