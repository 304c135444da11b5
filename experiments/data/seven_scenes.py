"""7-Scenes: frames of a room with the pose of the camera."""

import re
from pathlib import Path
from typing import Literal, get_args

import numpy as np
from scipy.spatial.transform import Rotation

from experiments.data.files import (
    check_companions,
    find_file,
    find_folder,
    read_image,
    read_lines,
    release_error,
    stems,
)
from experiments.data.resizing import resize_linear
from experiments.data.samples import (
    Sample,
    Samples,
    check_size,
    check_split,
    make_sample,
)

Split = Literal["train", "test"]

SCENES = ("chess", "fire", "heads", "office", "pumpkin", "redkitchen", "stairs")

_RELEASE = "7-Scenes"
_SHAPE = (480, 640)
_IMAGE, _POSE = ".color.png", ".pose.txt"
_FILES: dict[str, str] = {"train": "TrainSplit.txt", "test": "TestSplit.txt"}
_ATOL = 1e-2  # of R R^T = 1: the files have seven digits, and drift is not a blunder


def load_seven_scenes(
    data_dir: Path | str,
    scene: str,
    split: Split = "train",
    *,
    size: tuple[int, int] = (256, 341),
) -> Samples:
    """Indexes the train or the test sequences of one scene.

    The labels of a sample, which are always there, are the pose of the camera in the
    room:

    - `translation`, float32 `[3]`, in metres.
    - `rotation`, float32 `[4]`, a unit quaternion with the scalar first and not
      negative, which of the two quaternions of a rotation picks one.

    Args:
        data_dir: the folder that holds the folders of the scenes.
        scene: one of `SCENES`.
        split: which of the official splits.
        size: height and width of the images. The shorter side is the paper's by
            default, which then crops them to 224 x 224.

    Returns:
        The samples.

    Raises:
        FileNotFoundError: if a file or a sequence of the split is missing.
        ValueError: here, if files do not belong together; on reading, if one is
            damaged, an image has another size, or a pose is no rotation.

    References:
        Shotton et al., "Scene coordinate regression forests for camera relocalization
        in RGB-D images", 2013,
        https://www.microsoft.com/en-us/research/project/rgb-d-dataset-7-scenes.
    """
    check_split(split, get_args(Split))
    check_size(size)
    if scene not in SCENES:
        raise ValueError(f"`scene` must be one of {', '.join(SCENES)}, got {scene!r}.")
    wanted = f"the folder with {scene} of {_RELEASE}"
    folder = find_folder(find_folder(data_dir, wanted) / scene, wanted)
    names = [
        f"{sequence}/{frame}"
        for sequence in _read_splits(folder)[split]
        for frame in _find_frames(folder / sequence)
    ]

    def read(place: int) -> Sample:
        path = folder / f"{names[place]}{_IMAGE}"
        image = read_image(path, "RGB", _SHAPE, _RELEASE)
        pose = _read_pose(folder / f"{names[place]}{_POSE}")
        rotation = Rotation.from_matrix(pose[:3, :3])
        labels = {
            "translation": pose[:3, 3],
            "rotation": rotation.as_quat(canonical=True, scalar_first=True),
        }
        return make_sample(resize_linear(image, size) / 255, labels)

    source = (
        f"{_RELEASE} in {folder}, {split} ({len(names):,} images of {size[0]} x "
        f"{size[1]} pixels with the pose of the camera)"
    )
    return Samples(names, read, source)


def _read_splits(folder: Path) -> dict[str, list[str]]:
    """Returns the folders of the sequences of each split, which share none."""
    splits: dict[str, list[str]] = {}
    for split, name in _FILES.items():
        path = find_file(folder, name, _RELEASE)
        matches = [re.fullmatch(r"sequence(\d+)", line) for line in read_lines(path)]
        numbers = [int(match[1]) for match in matches if match]
        if not numbers or len(set(numbers)) < len(matches):
            found = f"names {len(set(numbers))} sequences in {len(matches)} lines"
            expected = "lines like sequence1, each once"
            raise release_error(path, found, expected, _RELEASE)
        splits[split] = [f"seq-{number:02d}" for number in numbers]
    shared = set(splits["train"]) & set(splits["test"])
    if shared:
        found = f"names {min(shared)}, as {_FILES['train']} does"
        expected = "sequences for one of the two"
        raise release_error(folder / _FILES["test"], found, expected, _RELEASE)
    return splits


def _find_frames(folder: Path) -> list[str]:
    """Returns the names of the frames of a sequence, which are numbered from 0 on."""
    frames = sorted(stems(folder, f"frame-*{_IMAGE}"))
    if not frames:
        raise FileNotFoundError(
            f"{folder} has no frame-000000{_IMAGE}. Unpack {folder.name}.zip of "
            f"{_RELEASE} there."
        )
    expected = [f"frame-{number:06d}" for number in range(len(frames))]
    for frame, name in zip(frames, expected, strict=True):
        if frame != name:
            raise FileNotFoundError(
                f"{folder} has no {name}{_IMAGE}, but {frame}{_IMAGE} of {len(frames)} "
                f"frames. Copy it from {_RELEASE}."
            )
    check_companions(frames, folder, f"*{_POSE}", _RELEASE)
    return frames


def _read_pose(path: Path) -> np.ndarray:
    """Reads the matrix that takes points from the camera to the room, [4, 4]."""
    rows = [line.split() for line in read_lines(path)]
    expected = "four lines of four numbers: a rotation, a translation and 0 0 0 1"
    try:
        pose = np.array(rows, float)
    except ValueError as error:
        found = f"cannot be read as numbers ({error})"
        raise release_error(path, found, expected, _RELEASE) from error
    if pose.shape != (4, 4) or not np.isfinite(pose).all():
        found = f"holds finite and other numbers of shape {pose.shape}"
        raise release_error(path, found, expected, _RELEASE)
    rotation = pose[:3, :3]
    is_rotation = (
        np.allclose(rotation @ rotation.T, np.eye(3), atol=_ATOL)
        and np.linalg.det(rotation) > 0
        and np.allclose(pose[3], [0, 0, 0, 1])
    )
    if not is_rotation:
        found = f"holds no pose (determinant {np.linalg.det(rotation):.3g})"
        raise release_error(path, found, expected, _RELEASE)
    return pose
