"""NYUv2: rooms with class, depth and normal of each pixel."""

from collections.abc import Callable
from pathlib import Path
from typing import Literal, NamedTuple, get_args

import numpy as np

from experiments.data.files import Release, find_folder, stems
from experiments.data.resizing import Size, resize_linear, resize_nearest
from experiments.data.samples import Samples, check_settings, in_words, make_sample

Split = Literal["train", "test"]

# fmt: off
CLASSES = (
    "bed", "books", "ceiling", "chair", "floor", "furniture", "objects", "picture",
    "sofa", "table", "tv", "wall", "window",
)
# fmt: on

_RELEASE = Release("NYUv2")
_LABELLED = "nyu_depth_v2_labeled.mat"
_SPLITS = "splits.mat"
_MAPPING = "classMapping40.mat"
_SHAPE = (480, 640)
_MOST = 3 * 480 * 640  # values of an array of one image
# Gupta et al. sort the 894 names into 40 classes. For each of the 40, this is the class
# here, from 1.
# fmt: off
_CLASS_OF_40 = (
    12, 5, 6, 1, 4, 9, 10, 12, 13, 6, 8, 6, 13, 10, 6, 13, 6, 7, 7, 5,
    7, 3, 2, 6, 11, 7, 7, 7, 7, 7, 7, 6, 7, 7, 7, 7, 7, 7, 6, 7,
)
# fmt: on

# Folders of labels in MTAN's form, in the order of `_Frame`, and their last axis.
_CHANNELS = {"label": (), "depth": (1,), "normal": (3,)}


class _Frame(NamedTuple):
    """An image from 0 to 1 and its labels, all with their size in the release."""

    image: np.ndarray
    segmentation: np.ndarray
    depth: np.ndarray
    normals: np.ndarray


_Index = tuple[list[str], Callable[[int], _Frame]]


def load_nyuv2(
    data_dir: Path | str, split: Split = "train", *, size: Size = (288, 384)
) -> Samples:
    """Indexes a split of NYUv2, from its labelled file or its preprocessed folders.

    A sample has these labels, each of the requested size:

    - `segmentation`, int32 `[height, width]`, indices of `CLASSES`.
    - `depth`, float32 `[height, width, 1]`, in metres.
    - `normals`, float32 `[height, width, 3]`, of length one; only the folders have
      normals.

    Args:
        data_dir: the folder that holds `nyu_depth_v2_labeled.mat` and `splits.mat` of
            the release, and `classMapping40.mat` of
            github.com/ankurhanda/nyuv2-meta-data; or the folder with `train` and `val`
            of MTAN, whose folders `image`, `label`, `depth` and `normal` hold npy
            files. If the folder of a task is missing, no sample has labels for this
            task.
        split: the name of an official split; they have 795 and 654 images. MTAN calls
            the test split "val".
        size: height and width of image and labels; the default is the papers' size.

    References:
        Silberman, Hoiem, Kohli and Fergus, "Indoor segmentation and support inference
        from RGBD images", 2012 (the data); Gupta, Arbelaez and Malik, "Perceptual
        organization and recognition of indoor scenes from RGB-D images", 2013 (the 40
        classes); Couprie, Farabet, Najman and LeCun, "Indoor semantic segmentation
        using depth information", 2013 (the 13 classes); Liu, Johns and Davison,
        "End-to-end multi-task learning with attention", 2019 (MTAN).
    """
    check_settings(split, get_args(Split), size)
    wanted = f"the folder with {_LABELLED}, or with train and val of MTAN"
    folder = find_folder(data_dir, wanted)
    if (folder / _LABELLED).exists():
        names, read_frame = _index_labelled(folder, split)
        origin = folder / _LABELLED
    else:
        origin = folder / ("train" if split == "train" else "val")
        if not origin.is_dir():
            raise FileNotFoundError(
                f"{folder} has neither {_LABELLED} nor {origin.name}. Give {wanted}."
            )
        names, read_frame = _index_folders(origin)

    def read(place: int):
        image, *labels = read_frame(place)
        resized = (resize_nearest(label, size) for label in labels)
        return make_sample(
            resize_linear(image, size),
            dict(zip(_Frame._fields[1:], resized, strict=True)),
        )

    source = in_words(f"{_RELEASE} in {origin}, {split}", len(names), size)
    return Samples(names, read, source)


def _index_labelled(folder: Path, split: Split) -> _Index:
    """Indexes the labelled file, in which MATLAB's axes are in reverse order."""
    path = folder / _LABELLED
    expected = "MATLAB's v7.3 file with images, depths, labels and names"
    arrays = {
        "images": ("u", (3, *_SHAPE[::-1])),
        "depths": ("f", _SHAPE[::-1]),
        "labels": ("u", _SHAPE[::-1]),
    }
    with _RELEASE.hdf5(path, expected) as file:
        num_names = _RELEASE.dataset(path, file, "names").size
        num = _RELEASE.dataset(path, file, "images").shape[0]
        for key, (kinds, shape) in arrays.items():
            array = _RELEASE.dataset(path, file, key)
            if array.shape != (num, *shape) or array.dtype.kind not in kinds:
                found = f"holds {key} {array.dtype} {array.shape}"
                raise _RELEASE.error(path, found, f"{(num, *shape)}")
    rows = _read_rows(folder / _SPLITS, num)[split]
    to_class = _read_mapping(folder / _MAPPING, num_names)

    def read(place: int) -> _Frame:
        row = rows[place]
        with _RELEASE.hdf5(path, expected) as file:
            image, depth, labels = (file[key][row].T for key in arrays)
        if labels.max() > num_names:
            found = f"holds the label {labels.max()} in image {row + 1}"
            raise _RELEASE.error(path, found, f"{num_names} at most")
        normals = np.full([*_SHAPE, 3], np.nan)
        depth = _mark_depth(path, depth[..., None])
        return _Frame(image / 255, to_class[labels], depth, normals)

    return [f"image {row + 1}" for row in rows], read


def _read_rows(path: Path, num: int) -> dict[str, np.ndarray]:
    """Returns the rows of each split. Each image must be in one of them."""
    rows = {split: _RELEASE.matlab(path, f"{split}Ndxs") for split in get_args(Split)}
    names = np.sort(np.concatenate(list(rows.values())))
    # Do not use `arange(num)`: the labelled file could state any size.
    if len(names) != num or not np.array_equal(names, np.arange(len(names)) + 1):
        sizes = " + ".join(str(len(row)) for row in rows.values())
        expected = f"each of the {num} of {_LABELLED} once"
        raise _RELEASE.error(path, f"names {sizes} images", expected)
    return {split: row.astype(int) - 1 for split, row in rows.items()}


def _read_mapping(path: Path, num_names: int) -> np.ndarray:
    """Returns the class of each label of the release; label 0 means no class."""
    of_40 = Release("github.com/ankurhanda/nyuv2-meta-data").matlab(path, "mapClass")
    if len(of_40) != num_names or not np.isin(of_40, range(1, 41)).all():
        lowest, highest = of_40.min(initial=40), of_40.max(initial=1)
        found = f"maps {len(of_40)} names to {lowest} to {highest}"
        expected = f"the {num_names} names of {_LABELLED} and 1 to 40"
        raise _RELEASE.error(path, found, expected)
    return np.append(0, np.array(_CLASS_OF_40)[of_40.astype(int) - 1]) - 1


def _index_folders(folder: Path) -> _Index:
    """Indexes the preprocessed images of a split, which are numbered from 0 on."""
    images = folder / "image"
    names = [str(number) for number in range(len(stems(images, "*.npy")))]
    if not names:
        raise FileNotFoundError(
            f"{images} has no 0.npy. Copy it from MTAN's {_RELEASE}."
        )
    labelled = [name for name in _CHANNELS if (folder / name).is_dir()]
    if not labelled:
        raise FileNotFoundError(
            f"{folder} has no {', '.join(_CHANNELS)}. Copy one from MTAN's {_RELEASE}."
        )
    for name in ("image", *labelled):
        _RELEASE.check_companions(names, folder / name, "*.npy")

    def read(place: int) -> _Frame:
        paths = {name: folder / name / f"{place}.npy" for name in _CHANNELS}
        path = images / f"{place}.npy"
        image = _RELEASE.array(path, _MOST)
        if image.dtype.kind != "f" or image.shape[2:] != (3,) or not image.size:
            found = f"holds {image.dtype} {image.shape}"
            raise _RELEASE.error(path, found, "floats (height, width, 3)")
        _check_range(path, image, 0, 1)
        maps = {}
        for name, channels in _CHANNELS.items():
            shape = (*image.shape[:2], *channels)
            # The values of the release for pixels without a label.
            maps[name] = np.full(shape, -1 if name == "label" else 0)
            if name in labelled:
                maps[name] = _RELEASE.array(paths[name], _MOST)
            if maps[name].shape != shape or maps[name].dtype.kind not in "iuf":
                found = f"holds {maps[name].dtype} {maps[name].shape}"
                expected = f"numbers {shape}, as image/{place}.npy has pixels"
                raise _RELEASE.error(paths[name], found, expected)
        classes, depth, normals = maps.values()
        if not np.isin(classes, range(-1, len(CLASSES))).all():
            found = f"holds labels from {classes.min()} to {classes.max()}"
            expected = f"whole numbers from -1 to {len(CLASSES) - 1}"
            raise _RELEASE.error(paths["label"], found, expected)
        _check_range(paths["normal"], normals, -1, 1)
        norms = np.linalg.norm(normals, axis=-1, keepdims=True)
        normals = normals / np.where(norms > 0, norms, np.nan)
        depth = _mark_depth(paths["depth"], depth)
        return _Frame(image, classes.astype(int), depth, normals)

    return names, read


def _mark_depth(path: Path, depth: np.ndarray) -> np.ndarray:
    """Returns a depth with NaN for pixels without depth, which are 0 in the file."""
    _check_range(path, depth, 0, np.inf)
    return np.where(depth > 0, depth, np.nan)


def _check_range(path: Path, values: np.ndarray, low: float, high: float) -> None:
    """Raises a ValueError if a value is not finite, too low or too high."""
    lowest, highest = values.min(), values.max()
    # Resized normals may be too long by a rounding error.
    slack = 1e-3
    if not (low - slack <= lowest and highest <= high + slack and np.isfinite(highest)):
        found = f"holds values from {lowest:.6g} to {highest:.6g}"
        raise _RELEASE.error(path, found, f"{low} to {high}")
