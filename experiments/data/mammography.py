"""Mammography calcifications: MedIMeta's mammo_calc, three classification tasks."""

import re
from pathlib import Path

import numpy as np

from experiments.data.calcifications import (
    DISTRIBUTIONS,
    TYPES,
    Mammograms,
    draw_mammograms,
)
from experiments.data.files import Release, find_folder
from experiments.data.resizing import resize_linear
from experiments.data.splits import Splits, check_least, in_words, pick, streams

_NAME = "mammo_calc"
_RELEASE = Release("MedIMeta's mammo_calc")
_SIDE = 224  # of an image of the release
_SPLITS = ("train", "val", "test")
_SIZES = (1332, 214, 326)  # of the release
_MOST_IMAGES = 10_000
# Files of `task_labels`, and the axes of their arrays after the axis of images.
_TASKS = {
    "calc distribution": (len(DISTRIBUTIONS),),
    "calc type": (len(TYPES),),
    "pathology": (),
}


def load_mammography(
    data_dir: Path | None = None,
    *,
    num_train: int | None = None,
    num_validation: int | None = None,
    num_test: int | None = None,
    side: int = _SIDE,
    seed: int = 0,
) -> Splits[Mammograms]:
    """Loads the regions of interest of mammo_calc, or draws a stand-in.

    The folder is `mammo_calc` of MedIMeta, or the folder that contains it. Without a
    folder, images with the same three kinds of labels are drawn, see `draw_mammograms`.
    The official splits share no patient. If the number for a split is None, all its
    images are used, or the same number is drawn: 1,332, 214 and 326. The seed selects
    the images. They are resized, float32 `[num, side, side, 1]`, from 0 to 1. The
    paper's tasks are `distributions`, `types` and `malignant`.

    References:
        Woerner, Jaques and Baumgartner, "MedIMeta: a comprehensive and easy-to-use
        multi-domain multi-task medical imaging meta-dataset", 2024,
        https://doi.org/10.5281/zenodo.7884735 (the images); Bellavia et al., "ATE-SG:
        alternate through the epochs stochastic gradient for multi-task neural
        networks", section 4.2.2 (their use; the paper repeats the grey channel inside
        its network).
    """
    numbers = {
        "num_train": num_train,
        "num_validation": num_validation,
        "num_test": num_test,
    }
    check_least(1, **numbers, side=side)
    rngs = streams(seed, len(_SPLITS))
    if data_dir is None:
        parts = [
            draw_mammograms(size if number is None else number, side=side, rng=rng)
            for size, number, rng in zip(_SIZES, numbers.values(), rngs, strict=True)
        ]
        origin = f"drawn images, not {_RELEASE},"
    else:
        folder = _find(Path(data_dir))
        labels = _read_labels(folder)
        num = len(labels[0])
        rows = _read_splits(folder, num)
        for (name, number), split, rng in zip(numbers.items(), rows, rngs, strict=True):
            rows[split] = pick(name, rows[split], number, rng)
        parts = [
            Mammograms(_read_images(folder, num, row, side), *(a[row] for a in labels))
            for row in rows.values()
        ]
        origin = f"{_RELEASE} in {folder}"
    train, validation, test = (
        part._replace(images=part.images[..., None].astype(np.float32) / 255)
        for part in parts
    )
    sizes = in_words(*(len(part.malignant) for part in parts))
    source = f"{origin} of {side} x {side} pixels ({sizes})"
    return Splits(train, validation, test, source)


def _find(data_dir: Path) -> Path:
    """Returns the folder of mammo_calc at or in `data_dir`."""
    wanted = (
        f"the folder {_NAME} of MedIMeta, with info.yaml, splits, task_labels and "
        "images.hdf5 or images"
    )
    find_folder(data_dir, wanted)
    folder = data_dir / _NAME if (data_dir / _NAME).is_dir() else data_dir
    info = folder / "info.yaml"
    if not info.exists():
        raise FileNotFoundError(f"{folder} has no info.yaml. It must be {wanted}.")
    text = "\n".join(_RELEASE.lines(info, most=1000))
    match = re.search(r"^id:\s*[\"']?([^\s\"']+)", text, flags=re.MULTILINE)
    if match is None or match[1] != _NAME:
        found = "states no id" if match is None else f"is of the data set {match[1]}"
        raise _RELEASE.error(info, found, f"the id {_NAME}")
    return folder


def _read_labels(folder: Path) -> list[np.ndarray]:
    """Returns the labels of the three tasks, int32, with a row for each image."""
    labels = []
    for task, axes in _TASKS.items():
        path = folder / "task_labels" / f"{task}.npy"
        array = _RELEASE.array(path, most=len(TYPES) * _MOST_IMAGES)
        num = len(labels[0]) if labels else max(1, *array.shape[:1], 1)
        if array.shape != (num, *axes) or array.dtype.kind not in "iub":
            found = f"holds {array.dtype} {array.shape}"
            raise _RELEASE.error(path, found, f"integers {(num, *axes)}")
        wrong = array[~np.isin(array, (0, 1))]
        if len(wrong):
            raise _RELEASE.error(path, f"holds the label {wrong[0]}", "labels 0 and 1")
        labels.append(array.astype(np.int32))
    return labels


def _read_splits(folder: Path, num_images: int) -> dict[str, np.ndarray]:
    """Returns the rows of each official split. Each image must be in one of them."""
    rows = {}
    for split in _SPLITS:
        path = folder / "splits" / f"{split}.txt"
        lines = [line.strip() for line in _RELEASE.lines(path, _MOST_IMAGES)]
        matches = [re.fullmatch(r"images/(\d{1,9})\.tiff?", line) for line in lines]
        for line, match in zip(lines, matches, strict=True):
            if match is None or int(match[1]) >= num_images:
                found = f"holds the line {line[:40]!r}"
                expected = f"images/000000.tiff to images/{num_images - 1:06d}.tiff"
                raise _RELEASE.error(path, found, expected)
        rows[split] = np.array([int(match[1]) for match in matches if match], int)
    counts = np.bincount(np.concatenate(list(rows.values())), minlength=num_images)
    if (counts != 1).any():
        image = int(np.argmax(counts != 1))
        files = ", ".join(f"{len(row)} in {split}.txt" for split, row in rows.items())
        found = f"name image {image:06d} {counts[image]} times ({files})"
        expected = f"each of the {num_images} images once"
        raise _RELEASE.error(folder / "splits", found, expected)
    return rows


def _read_images(
    folder: Path, num_images: int, row: np.ndarray, side: int
) -> np.ndarray:
    """Reads and resizes the images with these numbers: [num, side, side], up to 255.

    The release has the images twice: in one HDF5 file and in a folder of TIFF files.
    """
    packed, loose = folder / "images.hdf5", folder / "images"
    shape = (_SIDE, _SIDE)
    if packed.exists():
        with _RELEASE.hdf5(packed, 'an HDF5 file with the array "images"') as file:
            array = _RELEASE.dataset(packed, file, "images")
            if array.shape != (num_images, *shape) or array.dtype != np.uint8:
                found = f"holds images {array.dtype} {array.shape}"
                expected = f"uint8 {(num_images, *shape)}"
                raise _RELEASE.error(packed, found, expected)
            images = [array[number] for number in row]
    elif loose.is_dir():
        paths = [loose / f"{number:06d}.tiff" for number in row]
        images = [_RELEASE.image(path, "TIFF", "8-bit grey", shape) for path in paths]
    else:
        raise FileNotFoundError(
            f"{folder} has neither images.hdf5 nor the folder images. Copy one from "
            f"{_RELEASE}."
        )
    if side != _SIDE:
        images = [resize_linear(i[..., None], (side, side))[..., 0] for i in images]
    return np.reshape(images, [len(row), side, side])
