"""7-Scenes: frames of a room with the pose of the camera."""

import re
from pathlib import Path
from typing import Literal, get_args

import numpy as np
from scipy.spatial.transform import Rotation

from experiments.data.files import Release, find_folder, stems
from experiments.data.resizing import Size, resize_linear
from experiments.data.samples import Samples, check_settings, in_words, make_sample

Split = Literal["train", "test"]

SCENES = ("chess", "fire", "heads", "office", "pumpkin", "redkitchen", "stairs")

_RELEASE = Release("7-Scenes")
_SHAPE = (480, 640)
_IMAGE, _POSE = ".color.png", ".pose.txt"
_FILES: dict[str, str] = {"train": "TrainSplit.txt", "test": "TestSplit.txt"}
_FARTHEST = 1e4  # metres from the origin; no scene is this large
_ATOL = 1e-2  # of R R^T = 1: the files have seven digits, and a small drift is no error


def load_seven_scenes(
    data_dir: Path | str,
    scene: str,
    split: Split = "train",
    *,
    size: Size = (256, 341),
) -> Samples:
    """Indexes the train or the test sequences of one of `SCENES`.

    Every sample has two labels, which are the pose of the camera in the room:

    - `translation`, float32 `[3]`, in metres.
    - `rotation`, float32 `[4]`, a unit quaternion with the scalar first and not
    negative.

    By default the shorter side of the images has the paper's size. The paper then crops
    the images to 224 x 224.

    References:
        Shotton et al., "Scene coordinate regression forests for camera relocalization
        in RGB-D images", 2013,
        https://www.microsoft.com/en-us/research/project/rgb-d-dataset-7-scenes.
    """
    check_settings(split, get_args(Split), size)
    if scene not in SCENES:
        raise ValueError(f"`scene` must be one of {', '.join(SCENES)}, got {scene!r}.")
    wanted = f"the folder with {scene} of {_RELEASE}"
    folder = find_folder(find_folder(data_dir, wanted) / scene, wanted)
    names = [
        f"{sequence}/{frame}"
        for sequence in _read_splits(folder)[split]
        for frame in _find_frames(folder / sequence)
    ]

    def read(place: int):
        path = folder / f"{names[place]}{_IMAGE}"
        image = _RELEASE.image(path, "PNG", "RGB", _SHAPE)
        pose = _read_pose(folder / f"{names[place]}{_POSE}")
        rotation = Rotation.from_matrix(pose[:3, :3])
        labels = {
            "translation": pose[:3, 3],
            "rotation": rotation.as_quat(canonical=True, scalar_first=True),
        }
        return make_sample(resize_linear(image, size) / 255, labels)

    origin, detail = f"{_RELEASE} in {folder}, {split}", " with the pose of the camera"
    return Samples(names, read, in_words(origin, len(names), size, detail))


def _read_splits(folder: Path) -> dict[str, list[str]]:
    """Returns the folders of the sequences of each split; splits share no sequence."""
    splits: dict[str, list[str]] = {}
    for split, name in _FILES.items():
        path = folder / name
        lines = _RELEASE.lines(path, most=99)
        matches = [re.fullmatch(r"sequence(\d{1,3})", line.strip()) for line in lines]
        numbers = [int(match[1]) for match in matches if match]
        if not numbers or len(set(numbers)) < len(matches):
            found = f"names {len(set(numbers))} sequences in {len(matches)} lines"
            expected = "lines like sequence1, each once"
            raise _RELEASE.error(path, found, expected)
        splits[split] = [f"seq-{number:02d}" for number in numbers]
    shared = set(splits["train"]) & set(splits["test"])
    if shared:
        found = f"names {min(shared)}, as {_FILES['train']} does"
        expected = "sequences for one of the two"
        raise _RELEASE.error(folder / _FILES["test"], found, expected)
    return splits


def _find_frames(folder: Path) -> list[str]:
    """Returns the names of the frames of a sequence, which are numbered from 0 on."""
    pattern = f"frame-*{_IMAGE}"
    frames = [f"frame-{number:06d}" for number in range(len(stems(folder, pattern)))]
    if not frames:
        raise FileNotFoundError(
            f"{folder} has no frame-000000{_IMAGE}. Unpack {folder.name}.zip of "
            f"{_RELEASE} there."
        )
    for files in (pattern, f"*{_POSE}"):
        _RELEASE.check_companions(frames, folder, files)
    return frames


def _read_pose(path: Path) -> np.ndarray:
    """Reads the matrix [4, 4] that maps points from camera frame to room frame."""
    expected = "four lines of four numbers: a rotation, a translation and 0 0 0 1"
    lines = _RELEASE.lines(path, most=9)
    with _RELEASE.parsing(path, "numbers", expected):
        pose = np.array([line.split() for line in lines], float)
    is_pose = (
        pose.shape == (4, 4)
        and (np.abs(pose) < _FARTHEST).all()  # a NaN is refused too
        and np.allclose(pose[:3, :3] @ pose[:3, :3].T, np.eye(3), atol=_ATOL)
        and np.linalg.det(pose[:3, :3]) > 0
        and np.allclose(pose[3], [0, 0, 0, 1])
    )
    if not is_pose:
        raise _RELEASE.error(path, "holds no pose", expected)
    return pose
