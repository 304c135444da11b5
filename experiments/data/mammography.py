"""Mammography calcifications: MedIMeta's mammo_calc, three classification tasks."""

import contextlib
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from experiments.data.calcifications import (
    DISTRIBUTIONS,
    TYPES,
    Mammograms,
    draw_mammograms,
)
from experiments.data.files import (
    find_file,
    find_folder,
    open_hdf5,
    read_array,
    read_image,
    read_lines,
    release_error,
)
from experiments.data.resizing import resize_matrix

_NAME = "mammo_calc"
_RELEASE = "MedIMeta's mammo_calc"
_SIDE = 224  # of an image of the release
_SPLITS = ("train", "val", "test")
_SIZES = (1332, 214, 326)  # of the release
# File of `task_labels` and number of labels, None for one label and no axis for it.
_TASKS = (
    ("calc distribution", len(DISTRIBUTIONS)),
    ("calc type", len(TYPES)),
    ("pathology", None),
)

ReadImage = Callable[[int], np.ndarray]


class Split(NamedTuple):
    """Grey images with the labels of the three tasks, which are 0 or 1.

    images: float32 [num, side, side, 1], from 0 to 1. distributions: int32 [num, 5]
    (the paper's task 1), in the order of `DISTRIBUTIONS`. types: int32 [num, 14] (task
    2), in the order of `TYPES`. malignant: int32 [num] (task 3).
    """

    images: np.ndarray
    distributions: np.ndarray
    types: np.ndarray
    malignant: np.ndarray


@dataclass(frozen=True)
class Mammography:
    """Three splits and, in words, where the images come from."""

    train: Split
    validation: Split
    test: Split
    source: str


def load_mammography(
    data_dir: Path | None = None,
    *,
    num_train: int | None = None,
    num_validation: int | None = None,
    num_test: int | None = None,
    side: int = _SIDE,
    seed: int = 0,
) -> Mammography:
    """Loads the regions of interest of mammo_calc, or draws a stand-in.

    Args:
        data_dir: the folder `mammo_calc` of MedIMeta, or the one that holds it. None
            draws images with the same three label structures, see `draw_mammograms`.
        num_train: the number of train images. None takes all of the official split, or
            draws as many as it has (1,332).
        num_validation: likewise (214).
        num_test: likewise (326).
        side: height and width of the images in pixels. Images of the release have 224
            and are resized by bilinear interpolation with antialiasing.
        seed: picks the images taken from each split if not all, or the drawn ones.

    Returns:
        The official splits, which share no patient. `source` names the images for a
        table or a log.

    Raises:
        FileNotFoundError: if `data_dir` or one of its files is missing.
        ValueError: if a file is damaged, partial or of another data set, if a number
            or the side is below 1, or a number above what the split has.
        ImportError: if `data_dir` is given and h5py is not installed.

    References:
        Woerner, Jaques and Baumgartner, "MedIMeta: a comprehensive and easy-to-use
        multi-domain multi-task medical imaging meta-dataset", 2024,
        https://doi.org/10.5281/zenodo.7884735 (the images); Bellavia et al., "ATE-SG:
        alternate through the epochs stochastic gradient for multi-task neural
        networks", section 4.2.2 (their use). That paper repeats the grey channel three
        times inside its network.
    """
    numbers = {
        "num_train": num_train,
        "num_validation": num_validation,
        "num_test": num_test,
    }
    for name, number in {**numbers, "side": side}.items():
        if number is not None and number < 1:
            raise ValueError(f"`{name}` must be at least 1, got {number}.")
    # A stream for each split, so that the size of one does not change the others.
    rngs = map(np.random.default_rng, np.random.SeedSequence(seed).spawn(len(_SPLITS)))
    if data_dir is None:
        parts = [
            draw_mammograms(size if number is None else number, side=side, rng=rng)
            for size, number, rng in zip(_SIZES, numbers.values(), rngs, strict=True)
        ]
        origin = f"drawn images, not {_RELEASE},"
    else:
        folder = _find(Path(data_dir))
        labels = _read_labels(folder)
        rows = _read_splits(folder, len(labels[0]))
        for (name, number), split, rng in zip(numbers.items(), rows, rngs, strict=True):
            if number is not None:
                rows[split] = _some(name, rows[split], number, rng)
        with _open_images(folder, len(labels[0])) as read:
            parts = [
                Mammograms(_read_images(read, row, side), *(a[row] for a in labels))
                for row in rows.values()
            ]
        origin = f"{_RELEASE} in {folder}"
    train, validation, test = (
        Split(part.images[..., None].astype(np.float32) / 255, *part[1:])
        for part in parts
    )
    sizes = [f"{len(part.malignant):,}" for part in parts]
    text = "{} of {} x {} pixels ({} train / {} validation / {} test)"
    source = text.format(origin, side, side, *sizes)
    return Mammography(train, validation, test, source)


def _find(data_dir: Path) -> Path:
    """Returns the folder of mammo_calc at or in `data_dir`."""
    wanted = (
        f"the folder {_NAME} of MedIMeta, with info.yaml, splits, task_labels and "
        "images.hdf5 or images"
    )
    find_folder(data_dir, wanted)
    folder = data_dir / _NAME if (data_dir / _NAME).is_dir() else data_dir
    info = folder / "info.yaml"
    if not info.is_file():
        raise FileNotFoundError(f"{folder} has no info.yaml. It must be {wanted}.")
    text = info.read_text(encoding="utf-8", errors="replace")
    match = re.search(r"^id:\s*[\"']?([^\s\"']+)", text, flags=re.MULTILINE)
    if match is None or match[1] != _NAME:
        found = "states no id" if match is None else f"is of the data set {match[1]}"
        raise release_error(info, found, f"the id {_NAME}", _RELEASE)
    return folder


def _read_labels(folder: Path) -> list[np.ndarray]:
    """Returns the labels of the three tasks, int32, with a row for each image."""
    labels = []
    for task, num_labels in _TASKS:
        path = find_file(folder, f"task_labels/{task}.npy", _RELEASE)
        array = read_array(path, _RELEASE)
        shape = array.shape
        num = len(labels[0]) if labels else (shape[0] if shape else 0)
        expected_shape = (num,) if num_labels is None else (num, num_labels)
        if shape != expected_shape or num == 0 or array.dtype.kind not in "iub":
            found = f"holds {array.dtype} {shape}"
            size = "images" if not labels else num
            words = f"({size},)" if num_labels is None else f"({size}, {num_labels})"
            raise release_error(path, found, f"integers {words}", _RELEASE)
        wrong = np.isin(array, (0, 1), invert=True)
        if wrong.any():
            found = f"holds the label {array[wrong][0]}"
            raise release_error(path, found, "labels 0 and 1", _RELEASE)
        labels.append(array.astype(np.int32))
    return labels


def _read_splits(folder: Path, num_images: int) -> dict[str, np.ndarray]:
    """Returns the rows of each official split. Each image must be in one of them."""
    rows = {}
    for split in _SPLITS:
        path = find_file(folder, f"splits/{split}.txt", _RELEASE)
        lines = read_lines(path)
        matches = [re.fullmatch(r"images/(\d+)\.tiff?", line) for line in lines]
        for line, match in zip(lines, matches, strict=True):
            if match is None or int(match[1]) >= num_images:
                found = f"holds the line {line[:40]!r}"
                expected = f"images/000000.tiff to images/{num_images - 1:06d}.tiff"
                raise release_error(path, found, expected, _RELEASE)
        rows[split] = np.array([int(match[1]) for match in matches if match], int)
    counts = np.bincount(np.concatenate(list(rows.values())), minlength=num_images)
    if (counts != 1).any():
        image = int(np.argmax(counts != 1))
        sizes = " + ".join(str(len(row)) for row in rows.values())
        found = f"name image {image:06d} {counts[image]} times ({sizes} names)"
        expected = f"each of the {num_images} images once"
        raise release_error(folder / "splits", found, expected, _RELEASE)
    return rows


def _some(name: str, row: np.ndarray, num: int, rng: np.random.Generator) -> np.ndarray:
    """Returns `num` entries of a row, in their order."""
    if num > len(row):
        raise ValueError(
            f"`{name}` must be at most {len(row)}, the size of the split, got {num}."
        )
    return row[np.sort(rng.permutation(len(row))[:num])]


@contextlib.contextmanager
def _open_images(folder: Path, num_images: int) -> Iterator[ReadImage]:
    """Gives a function that reads an image by its number, uint8 [224, 224].

    The images are in one HDF5 file and, once more, in a folder of TIFF files; the
    first that exists is read.
    """
    packed, loose = folder / "images.hdf5", folder / "images"
    if not packed.is_file():
        if not loose.is_dir():
            raise FileNotFoundError(
                f"{folder} has neither images.hdf5 nor the folder images. Copy one "
                f"from {_RELEASE}."
            )
        yield lambda number: read_image(
            loose / f"{number:06d}.tiff", "8-bit grey", (_SIDE, _SIDE), _RELEASE
        )
        return
    with open_hdf5(packed, 'an HDF5 file with the array "images"', _RELEASE) as file:
        images = file["images"]
        shape, dtype = (getattr(images, name, None) for name in ("shape", "dtype"))
        if shape != (num_images, _SIDE, _SIDE) or dtype != np.uint8:
            found = f"holds images {dtype} {shape}"
            expected = f"uint8 {(num_images, _SIDE, _SIDE)}"
            raise release_error(packed, found, expected, _RELEASE)
        yield lambda number: images[number]


def _read_images(read: ReadImage, row: np.ndarray, side: int) -> np.ndarray:
    """Reads the images of a row one at a time and resizes them: [num, side, side]."""
    matrix = resize_matrix(_SIDE, side, "linear")
    images = np.empty([len(row), side, side], np.uint8 if side == _SIDE else np.float32)
    for place, number in enumerate(row):
        image = read(int(number))
        if side != _SIDE:
            image = matrix @ image.astype(np.float32) @ matrix.T
        images[place] = image
    return images
