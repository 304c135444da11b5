"""Cityscapes: streets with the classes, instances and disparity of their pixels."""

from pathlib import Path
from typing import Literal, NamedTuple, get_args

import numpy as np

from experiments.data.files import Release, find_folder, stems
from experiments.data.offsets import centre_offsets
from experiments.data.resizing import Size, resize_linear, resize_nearest
from experiments.data.samples import Samples, check_settings, in_words, make_sample

Split = Literal["train", "val"]

# The release has 34 ids. These ids count, by category and class; the others are void.
# Their order is the order of the 19 train ids.
_IDS = {
    "flat": {"road": 7, "sidewalk": 8},
    "construction": {"building": 11, "wall": 12, "fence": 13},
    "object": {"pole": 17, "traffic light": 19, "traffic sign": 20},
    "nature": {"vegetation": 21, "terrain": 22},
    "sky": {"sky": 23},
    "human": {"person": 24, "rider": 25},
    "vehicle": {"car": 26, "truck": 27, "bus": 28}
    | {"train": 31, "motorcycle": 32, "bicycle": 33},
}
CATEGORIES = tuple(_IDS)
CLASSES = tuple(name for ids in _IDS.values() for name in ids)
CATEGORY_OF_CLASS = np.repeat(np.arange(7, dtype=np.uint8), [*map(len, _IDS.values())])

_RELEASE = Release("Cityscapes")
_SHAPE = (1024, 2048)
_NUM_IDS = 34
_PER_INSTANCE = 1000  # instance k of class c has the id 1000 c + k
_FIRST_WITH_INSTANCES = 24
_IMAGES = "leftImg8bit"


class _Label(NamedTuple):
    """The files of a label: their archive, their ending, and the kind of pixel."""

    folder: str
    ending: str
    kind: Literal["8-bit grey", "16-bit grey"]


_LABELS = {
    "segmentation": _Label("gtFine", "_gtFine_labelIds.png", "8-bit grey"),
    "instances": _Label("gtFine", "_gtFine_instanceIds.png", "16-bit grey"),
    "disparity": _Label("disparity", "_disparity.png", "16-bit grey"),
}


def load_cityscapes(
    data_dir: Path | str,
    split: Split = "train",
    *,
    size: Size = (128, 256),
    num_classes: Literal[7, 19] = 19,
) -> Samples:
    """Indexes a split of Cityscapes with fine annotations.

    A sample has these labels, each of the requested size:

    - `segmentation`, int32 `[height, width]`, indices of `CLASSES` or `CATEGORIES`.
    - `instances`, float32 `[height, width, 2]`, see `centre_offsets`, in pixels of the
      requested size.
    - `disparity`, float32 `[height, width, 1]`, (p - 1) / 256 for a value p > 0 of the
      file, in pixels of the requested size, so it shrinks with the width.

    Args:
        data_dir: the folder that holds `leftImg8bit`, and `gtFine` or `disparity` or
            both. If the folder of a task is missing, no sample has labels for this
            task.
        split: the name of an official split. The labels of the test split are secret.
        size: height and width of image and labels; the papers use 128 x 256 and 256 x
            512.
        num_classes: 19 for the classes of the benchmark, 7 for their categories.

    References:
        Cordts et al., "The Cityscapes dataset for semantic urban scene understanding",
        2016, https://www.cityscapes-dataset.com.
    """
    check_settings(split, get_args(Split), size)
    if num_classes not in (7, 19):
        raise ValueError(f"`num_classes` must be 7 or 19, got {num_classes}.")
    wanted = f"the folder with {_IMAGES}, gtFine and disparity of {_RELEASE}"
    folder = find_folder(data_dir, wanted)
    images = folder / _IMAGES / split
    pattern = f"*/*_{_IMAGES}.png"
    names = sorted(stems(images, pattern))
    if not names:
        raise FileNotFoundError(f"{images} has no {pattern}. Give {wanted}.")
    labelled = {
        task: label
        for task, label in _LABELS.items()
        if (folder / label.folder).is_dir()
    }
    if not labelled:
        raise FileNotFoundError(f"{folder} has no labels. Give {wanted}.")
    for label in labelled.values():
        where = folder / label.folder / split
        _RELEASE.check_companions(names, where, f"*/*{label.ending}")

    def read(place: int):
        path = images / f"{names[place]}_{_IMAGES}.png"
        image = _RELEASE.image(path, "PNG", "RGB", _SHAPE)
        # In all three kinds of file, 0 means a pixel without a label.
        maps = dict.fromkeys(_LABELS, np.zeros(size, int))
        for task, label in labelled.items():
            path = folder / label.folder / split / f"{names[place]}{label.ending}"
            pixels = _RELEASE.image(path, "PNG", label.kind, _SHAPE)
            if task != "disparity":
                _check_ids(path, pixels)
            maps[task] = resize_nearest(pixels, size).astype(int)
        ids, instances, disparity = maps.values()
        # A caravan or a trailer has instances, but is void.
        counts = _to_class(19)[instances // _PER_INSTANCE] >= 0
        disparity = np.where(disparity > 0, (disparity - 1) / 256, np.nan)[..., None]
        labels = {
            "segmentation": _to_class(num_classes)[ids],
            "instances": centre_offsets(np.where(counts, instances, -1)),
            "disparity": disparity * size[1] / _SHAPE[1],
        }
        return make_sample(resize_linear(image, size) / 255, labels)

    origin, detail = f"{_RELEASE} in {folder}, {split}", f" with {', '.join(labelled)}"
    return Samples(names, read, in_words(origin, len(names), size, detail))


def _to_class(num_classes: int) -> np.ndarray:
    """Returns the class or the category of each id, and -1 for void ids."""
    of_id = np.full(_NUM_IDS, -1)
    of_id[[number for ids in _IDS.values() for number in ids.values()]] = (
        np.arange(19) if num_classes == 19 else CATEGORY_OF_CLASS
    )
    return of_id


def _check_ids(path: Path, pixels: np.ndarray) -> None:
    """Raises a ValueError if an id belongs to no class and to no instance."""
    ids = np.flatnonzero(np.bincount(pixels.reshape(-1)))
    single = ids >= _PER_INSTANCE
    classes = np.where(single, ids // _PER_INSTANCE, ids)
    wrong = (classes >= _NUM_IDS) | (single & (classes < _FIRST_WITH_INSTANCES))
    if wrong.any():
        expected = (
            f"ids from 0 to {_NUM_IDS - 1}, or {_PER_INSTANCE} c + k for instance k of "
            f"a class c from {_FIRST_WITH_INSTANCES} on"
        )
        raise _RELEASE.error(path, f"holds the id {ids[wrong][0]}", expected)
