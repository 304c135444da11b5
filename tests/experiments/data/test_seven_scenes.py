"""7-Scenes: a small scene in the official format, damage to it, what is read."""

import shutil

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from experiments.data.seven_scenes import load_seven_scenes
from tests.experiments.data.trees import (
    check_form,
    check_refused,
    check_streaming,
    cut,
    write_image,
)

FRAMES = {"seq-01": 2, "seq-02": 2, "seq-10": 1}
SPLITS = {"TrainSplit.txt": "sequence1\nsequence10\n", "TestSplit.txt": "sequence2"}
SHAPES = {"translation": ((3,), np.float32), "rotation": ((4,), np.float32)}


def write_pose(path, pose):
    lines = ["\t ".join(f"{value:.7e}" for value in row) for row in pose]
    path.write_text("\t \n".join(lines) + "\t \n")


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The folder of the scenes and the poses of one, by frame."""
    folder = tmp_path_factory.mktemp("scenes")
    scene = folder / "heads"
    rng = np.random.default_rng(0)
    poses = {}
    for sequence, num in FRAMES.items():
        for number in range(num):
            name = f"{sequence}/frame-{number:06d}"
            blocks = rng.integers(0, 256, [6, 8, 3], np.uint8)
            image = np.repeat(np.repeat(blocks, 80, axis=0), 80, axis=1)
            write_image(scene / f"{name}.color.png", image, compress_level=1)
            pose = np.eye(4)
            pose[:3, :3] = Rotation.random(random_state=rng).as_matrix()
            pose[:3, 3] = rng.normal(size=3)
            write_pose(scene / f"{name}.pose.txt", pose)
            (scene / f"{name}.depth.png").touch()  # in the release, and not read
            poses[name] = pose
        (scene / sequence / "Thumbs.db").touch()
    for name, text in SPLITS.items():
        (scene / name).write_text(text)
    return folder, poses


@pytest.fixture
def folder(whole, tmp_path):
    """A copy to be damaged."""
    return shutil.copytree(whole[0], tmp_path / "scenes")


@pytest.mark.parametrize(("split", "num"), [("train", 3), ("test", 2)])
def test_poses_are_those_of_the_files(whole, split, num):
    """The quaternion, written out as a matrix, is the rotation, and q_0 >= 0."""
    folder, poses = whole
    samples = load_seven_scenes(folder, "heads", split)
    assert len(samples) == num
    for name, sample in zip(samples.names, samples, strict=True):
        check_form(sample, SHAPES)
        assert sample.image.shape == (256, 341, 3)
        assert all(sample.present.values())
        w, x, y, z = quaternion = sample.labels["rotation"]
        np.testing.assert_allclose(np.linalg.norm(quaternion), 1, rtol=1e-6)
        assert w >= 0
        matrix = [
            [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
            [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
            [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
        ]
        np.testing.assert_allclose(matrix, poses[name][:3, :3], atol=1e-5)
        np.testing.assert_allclose(
            sample.labels["translation"], poses[name][:3, 3], rtol=1e-5
        )


def test_streaming(whole):
    """The sequences are those of the split, in its order."""
    samples = load_seven_scenes(whole[0], "heads", size=(12, 16))
    assert samples.names == [
        "seq-01/frame-000000",
        "seq-01/frame-000001",
        "seq-10/frame-000000",
    ]
    check_streaming(samples)
    assert samples.source == (
        f"7-Scenes in {whole[0] / 'heads'}, train (3 images of 12 x 16 pixels with the "
        "pose of the camera)"
    )


def matrix(scale=1.0, last=1.0):
    pose = np.diag([scale, scale, scale, last])
    return lambda path: write_pose(path, pose)


def text(content):
    return lambda path: path.write_text(content)


IMAGE, POSE = "seq-01/frame-000000.color.png", "seq-01/frame-000000.pose.txt"
DAMAGE = {
    "cut image": (IMAGE, cut, "cannot be read as a PNG image"),
    "empty image": (IMAGE, text(""), "cannot be read as a PNG image"),
    "small image": (
        IMAGE,
        lambda path: write_image(path, np.zeros([48, 64, 3], np.uint8)),
        r"shape \(48, 64\); expected RGB \(mode RGB\) and \(480, 640\)",
    ),
    "depth for colour": (
        IMAGE,
        lambda path: write_image(path, np.zeros([480, 640], np.uint16)),
        "of mode I;16",
    ),
    "missing image": (
        IMAGE,
        lambda path: path.unlink(),
        "no frame-000000.color.png, and 0 others",
    ),
    "missing pose": (POSE, lambda path: path.unlink(), "has no .*, and 0 others of 2"),
    "pose of no image": (
        "seq-01/frame-000002.pose.txt",
        text("1"),
        "is one of 3 files .*; expected 2",
    ),
    "empty pose": (POSE, text(""), "holds no pose"),
    "words": (POSE, text("a b\nc d"), "cannot be read as numbers"),
    "three lines": (POSE, text("1 0 0 0\n0 1 0 0\n0 0 1 0"), "holds no pose"),
    "ragged": (POSE, text("1 0 0 0\n0 1 0"), "cannot be read as numbers"),
    "lost": (POSE, matrix(scale=np.nan), "holds no pose"),
    "scaled": (POSE, matrix(scale=2.0), "holds no pose"),
    "mirrored": (POSE, matrix(scale=-1.0), "holds no pose"),
    "last row": (POSE, matrix(last=0.0), "holds no pose"),
    "no split": ("TrainSplit.txt", lambda path: path.unlink(), "has no TrainSplit"),
    "empty split": ("TrainSplit.txt", text(""), "names 0 sequences in 0 lines"),
    "strange line": ("TrainSplit.txt", text("sequence1\nx"), "names 1 sequences in 2"),
    "twice": ("TestSplit.txt", text("sequence2\nsequence2"), "names 1 sequences in 2"),
    "in both": ("TestSplit.txt", text("sequence1"), "names seq-01, as TrainSplit.txt"),
}


@pytest.mark.parametrize("case", DAMAGE)
def test_damage_is_named(folder, case):
    name, damage, match = DAMAGE[case]
    path = folder / "heads" / name
    damage(path)
    check_refused(lambda: load_seven_scenes(folder, "heads", size=(6, 8)), path, match)


def test_packed_sequence_is_to_be_unpacked(folder):
    shutil.rmtree(folder / "heads" / "seq-10")
    match = r"seq-10 has no frame-000000\.color\.png\. Unpack seq-10\.zip"
    with pytest.raises(FileNotFoundError, match=match):
        load_seven_scenes(folder, "heads")


def test_settings_are_checked(whole):
    with pytest.raises(ValueError, match="`scene` must be one of chess, fire, heads,"):
        load_seven_scenes(whole[0], "head")
    with pytest.raises(
        ValueError, match="`split` must be one of train, test, got 'val'"
    ):
        load_seven_scenes(whole[0], "heads", "val")
    with pytest.raises(ValueError, match="`size` must be a height and a width"):
        load_seven_scenes(whole[0], "heads", size=(0, 9))
    with pytest.raises(
        FileNotFoundError, match=r"got .*chess\. Give the folder with che"
    ):
        load_seven_scenes(whole[0], "chess")
