"""CelebA: aligned faces with forty yes-or-no attributes, each a task."""

from pathlib import Path
from typing import Literal, get_args

import numpy as np

from experiments.data.files import Release, find_folder
from experiments.data.resizing import Size, resize_linear
from experiments.data.samples import Samples, check_settings, in_words, make_sample

Split = Literal["train", "validation", "test"]  # 0, 1 and 2 in the release

NUM_ATTRIBUTES = 40
_RELEASE = Release("CelebA")
_SHAPE = (218, 178)
_MOST_IMAGES = 250_000  # the release has 202,599
# The folders of the release, and what is in each.
_PARTS = {
    "Img": "img_align_celeba",
    "Anno": "list_attr_celeba.txt",
    "Eval": "list_eval_partition.txt",
}


def load_celeba(
    data_dir: Path | str, split: Split = "train", *, size: Size = (64, 64)
) -> Samples:
    """Indexes a split of the aligned and cropped faces of CelebA.

    The labels of a sample are its attributes by name, in the order of the release. Each
    attribute is int32 `[]`, 1 for yes and 0 for no, and every sample has all of them.
    The folder holds `img_align_celeba`, `list_attr_celeba.txt` and
    `list_eval_partition.txt`, either directly or in the folders `Img`, `Anno` and
    `Eval`, as in the release. The papers' images have 64 x 64 pixels.

    References:
        Liu, Luo, Wang and Tang, "Deep learning face attributes in the wild", 2015,
        https://mmlab.ie.cuhk.edu.hk/projects/CelebA.html.
    """
    check_settings(split, get_args(Split), size)
    folder = find_folder(data_dir, f"the folder with {', '.join(_PARTS.values())}")
    images, attributes_file, partition_file = (
        folder / part / name if (folder / part).is_dir() else folder / name
        for part, name in _PARTS.items()
    )
    attributes, names, has = _read_attributes(attributes_file)
    parts = _read_partition(partition_file, names)
    rows = np.flatnonzero(parts == get_args(Split).index(split))
    if not len(rows):
        found = f"has no image of the {split} split"
        raise _RELEASE.error(partition_file, found, "images of all splits")
    names = [names[row] for row in rows]
    _RELEASE.check_companions(names, images, "*", alone=False)

    def read(place: int):
        image = _RELEASE.image(images / names[place], "JPEG", "RGB", _SHAPE)
        labels = dict(zip(attributes, has[rows[place]], strict=True))
        return make_sample(resize_linear(image, size) / 255, labels)

    origin = f"{_RELEASE} in {folder}, {split}"
    detail = f" with {NUM_ATTRIBUTES} attributes"
    return Samples(names, read, in_words(origin, len(names), size, detail))


def _read_attributes(path: Path) -> tuple[list[str], list[str], np.ndarray]:
    """Reads the names of attributes and images, and labels, uint8 `[images, 40]`."""
    lines = _RELEASE.lines(path, _MOST_IMAGES)
    count, header = [*lines, "", ""][:2]
    attributes, num_images = header.split(), len(lines) - 2
    if num_images < 1 or count.strip() != str(num_images):
        found = f"has {num_images} lines of images and begins with {count[:20]!r}"
        raise _RELEASE.error(path, found, "the first line to state their number")
    if len(attributes) != NUM_ATTRIBUTES or len(set(attributes)) != NUM_ATTRIBUTES:
        found = f"names {len(set(attributes))} attributes"
        raise _RELEASE.error(path, found, f"{NUM_ATTRIBUTES} attributes")
    names, has = [], bytearray()
    for line in lines[2:]:
        name, *values = line.split() or [""]
        if len(values) != NUM_ATTRIBUTES or not {"1", "-1"}.issuperset(values):
            found = f"has the line {line[:40]!r} with {len(values)} values"
            expected = f"a file name and {NUM_ATTRIBUTES} values that are 1 or -1"
            raise _RELEASE.error(path, found, expected)
        names.append(name)
        has.extend(value == "1" for value in values)
    if len(set(names)) < num_images:
        found = f"has {len(set(names))} file names in {num_images} lines"
        raise _RELEASE.error(path, found, "different file names")
    return attributes, names, np.frombuffer(has, np.uint8).reshape(-1, NUM_ATTRIBUTES)


def _read_partition(path: Path, names: list[str]) -> np.ndarray:
    """Reads the split of each image, 0, 1 or 2."""
    lines = _RELEASE.lines(path, _MOST_IMAGES)
    if len(lines) != len(names):
        expected = f"{len(names)}, one for each image of {_PARTS['Anno']}"
        raise _RELEASE.error(path, f"has {len(lines)} lines", expected)
    parts = []
    for line, name in zip(lines, names, strict=True):
        found_name, _, part = line.strip().partition(" ")
        if found_name != name or part not in ("0", "1", "2"):
            found = f"has the line {line[:40]!r}"
            expected = f"{name} as in {_PARTS['Anno']}, and 0, 1 or 2"
            raise _RELEASE.error(path, found, expected)
        parts.append(int(part))
    return np.array(parts)
