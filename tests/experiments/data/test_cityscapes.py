"""Cityscapes: a small tree in the official format, damage to it, what is read."""

import shutil

import numpy as np
import pytest

from experiments.data.cityscapes import (
    CATEGORIES,
    CATEGORY_OF_CLASS,
    CLASSES,
    load_cityscapes,
)
from tests.experiments.data.trees import (
    check_form,
    check_refused,
    check_streaming,
    cut,
    write_image,
)

NAMES = [
    "aachen/aachen_000000_000019",
    "aachen/aachen_000001_000019",
    "bochum/bochum_000000_000313",
]
FIRST = NAMES[0]
ENDINGS = {
    "image": ("leftImg8bit", "_leftImg8bit.png"),
    "ids": ("gtFine", "_gtFine_labelIds.png"),
    "instances": ("gtFine", "_gtFine_instanceIds.png"),
    "disparity": ("disparity", "_disparity.png"),
}
SIZE = (8, 16)
BLOCK = 128  # pixels of the release that a pixel of that size stands for


def path_of(folder, kind, name=FIRST, split="train"):
    package, ending = ENDINGS[kind]
    return folder / package / split / f"{name}{ending}"


def enlarged(blocks):
    return np.repeat(np.repeat(blocks, BLOCK, axis=0), BLOCK, axis=1)


def write(path, blocks):
    write_image(path, enlarged(blocks), compress_level=1)


def write_sample(folder, name, split="train", seed=0):
    """Writes the four files of an image and returns them at the small size."""
    rng = np.random.default_rng(seed)
    ids = rng.integers(0, 34, SIZE, np.uint8)
    instances = ids.astype(np.uint16)
    single = (ids >= 24) & rng.integers(0, 2, SIZE, bool)
    instances[single] = 1000 * instances[single] + rng.integers(0, 3, single.sum())
    blocks = {
        "image": rng.integers(0, 256, [*SIZE, 3], np.uint8),
        "ids": ids,
        "instances": instances,
        "disparity": rng.integers(0, 30000, SIZE, np.uint16) * rng.integers(0, 2, SIZE),
    }
    for kind, array in blocks.items():
        dtype = np.uint16 if kind in ("instances", "disparity") else np.uint8
        write(path_of(folder, kind, name, split), array.astype(dtype))
    return blocks


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cityscapes")
    blocks = [write_sample(folder, name, seed=i) for i, name in enumerate(NAMES)]
    write_sample(folder, "munster/munster_000000_000019", "val")
    return folder, blocks


@pytest.fixture
def folder(whole, tmp_path):
    """A copy to be damaged."""
    return shutil.copytree(whole[0], tmp_path / "cityscapes")


def test_sample_is_what_the_files_hold(whole):
    """By the definitions: train ids, centres of instances, (p - 1) / 256."""
    folder, blocks = whole
    samples = load_cityscapes(folder, size=SIZE)
    assert samples.names == NAMES
    sample = samples[0]
    check_form(
        sample,
        {
            "segmentation": (SIZE, np.int32),
            "instances": ((*SIZE, 2), np.float32),
            "disparity": ((*SIZE, 1), np.float32),
        },
    )
    assert all(sample.present.values())
    raw = blocks[0]
    counted = [7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33]
    segmentation, instances, disparity = sample.labels.values()
    for row, column in np.ndindex(*SIZE):
        number = raw["ids"][row, column]
        expected = counted.index(number) if number in counted else -1
        assert segmentation[row, column] == expected
        instance = raw["instances"][row, column]
        if instance >= 1000 and instance // 1000 in counted:
            places = np.argwhere(raw["instances"] == instance)
            offset = places.mean(axis=0) - (row, column)
            np.testing.assert_allclose(instances[row, column], offset, atol=1e-5)
        else:
            assert np.isnan(instances[row, column]).all()
    value = raw["disparity"]
    shrunk = (value - 1) / 256 / BLOCK
    expected = np.where(value > 0, shrunk, np.nan)[..., None]
    np.testing.assert_allclose(disparity, expected, rtol=1e-6)
    # Away from the edges of a block, antialiasing mixes a pixel with its neighbours.
    large = load_cityscapes(folder, size=(24, 48))[0].image
    np.testing.assert_allclose(large[1::3, 1::3], raw["image"] / 255, atol=1e-6)


def test_categories_group_the_classes(whole):
    """Seven, void where the 19 classes are."""
    folder, _ = whole
    fine, coarse = (
        load_cityscapes(folder, size=SIZE, num_classes=num)[0].labels["segmentation"]
        for num in (19, 7)
    )
    pairs = {
        (CLASSES[a], CATEGORIES[b])
        for a, b in zip(fine.flat, coarse.flat, strict=True)
        if a >= 0
    }
    assert len(pairs) == len({first for first, _ in pairs})
    assert pairs >= {("road", "flat"), ("sky", "sky"), ("bicycle", "vehicle")}
    np.testing.assert_array_equal(fine < 0, coarse < 0)


def test_category_of_each_class():
    """By the names of the benchmark."""
    groups = {
        category: [
            name
            for name, place in zip(CLASSES, CATEGORY_OF_CLASS, strict=True)
            if CATEGORIES[place] == category
        ]
        for category in CATEGORIES
    }
    assert groups["flat"] == ["road", "sidewalk"]
    assert groups["construction"] == ["building", "wall", "fence"]
    assert groups["object"] == ["pole", "traffic light", "traffic sign"]
    assert groups["nature"] == ["vegetation", "terrain"]
    assert groups["sky"] == ["sky"]
    assert groups["human"] == ["person", "rider"]
    assert len(groups["vehicle"]) == 6


def test_streaming(whole):
    samples = load_cityscapes(whole[0], size=SIZE)
    check_streaming(samples)
    assert samples.source == (
        f"Cityscapes in {whole[0]}, train (3 images of 8 x 16 pixels with "
        "segmentation, instances, disparity)"
    )
    assert len(load_cityscapes(whole[0], "val")) == 1


@pytest.mark.parametrize(
    ("package", "tasks"),
    [("gtFine", ["segmentation", "instances"]), ("disparity", ["disparity"])],
)
def test_missing_archive_leaves_its_tasks_out(folder, package, tasks):
    """The others are as before, and the form is the same."""
    before = load_cityscapes(folder, size=SIZE)[0]
    shutil.rmtree(folder / package)
    after = load_cityscapes(folder, size=SIZE)[0]
    for task, label in after.labels.items():
        assert after.present[task] == (task not in tasks)
        assert label.dtype == before.labels[task].dtype
        if task in tasks:
            assert np.all(np.isnan(label) if label.dtype == np.float32 else label == -1)
        else:
            np.testing.assert_array_equal(label, before.labels[task])


def test_label_of_void_alone_is_not_present(folder):
    """As in the annotations of the test split."""
    for kind in ("ids", "instances"):
        dtype = np.uint8 if kind == "ids" else np.uint16
        write(path_of(folder, kind), np.full(SIZE, 3, dtype))
    present = load_cityscapes(folder, size=SIZE)[0].present
    assert [bool(there) for there in present.values()] == [False, False, True]


def small(path):
    write_image(path, np.zeros([64, 128], np.uint8))


def set_id(path, number, dtype):
    write(path, np.full(SIZE, number, dtype))


DAMAGE = {
    "cut image": ("image", cut, "cannot be read as a PNG image"),
    "empty image": ("image", lambda path: path.write_bytes(b""), "cannot be read"),
    "grey image": ("image", lambda path: set_id(path, 7, np.uint8), "of mode L"),
    "cut ids": ("ids", cut, "cannot be read as a PNG image .* 8-bit grey"),
    "small ids": ("ids", small, r"shape \(64, 128\); expected .* \(1024, 2048\)"),
    "coloured ids": (
        "ids",
        lambda path: write(path, np.zeros([*SIZE, 3], np.uint8)),
        "of mode RGB",
    ),
    "train ids": (
        "ids",
        lambda path: set_id(path, 255, np.uint8),
        "holds the id 255; expected ids from 0 to 33",
    ),
    "missing ids": (
        "ids",
        lambda path: path.unlink(),
        "has no .*, and 0 others of 3 are missing",
    ),
    "narrow instances": (
        "instances",
        lambda path: set_id(path, 26, np.uint8),
        "of mode L and .* expected 16-bit grey",
    ),
    "instance of no class": (
        "instances",
        lambda path: set_id(path, 34000, np.uint16),
        "holds the id 34000; expected",
    ),
    "instance of the road": (
        "instances",
        lambda path: set_id(path, 7001, np.uint16),
        "holds the id 7001; expected",
    ),
    "missing instances": ("instances", lambda path: path.unlink(), "has no"),
    "text for disparity": (
        "disparity",
        lambda path: path.write_text("P1 1"),
        "cannot be read as a PNG image",
    ),
    "small disparity": ("disparity", small, "of mode L"),
    "missing disparity": ("disparity", lambda path: path.unlink(), "has no"),
}


@pytest.mark.parametrize("case", DAMAGE)
def test_damage_is_named(folder, case):
    kind, damage, match = DAMAGE[case]
    path = path_of(folder, kind)
    damage(path)
    check_refused(lambda: load_cityscapes(folder, size=SIZE), path, match)


def test_label_of_no_image_is_named(folder):
    path = path_of(folder, "ids", "aachen/aachen_000009_000019")
    shutil.copy(path_of(folder, "ids"), path)
    match = "is one of 4 files .* expected 3, one for each image"
    check_refused(lambda: load_cityscapes(folder), path, match)


def test_missing_folders_are_named(folder):
    for name in ("gtFine", "disparity"):
        shutil.rmtree(folder / name)
    with pytest.raises(
        FileNotFoundError, match=r"has no labels\. Give the folder with"
    ):
        load_cityscapes(folder)
    shutil.rmtree(folder / "leftImg8bit" / "train")
    with pytest.raises(FileNotFoundError, match=r"train has no \*/\*_leftImg8bit.png"):
        load_cityscapes(folder)
    with pytest.raises(FileNotFoundError, match="`data_dir` must be a folder, got"):
        load_cityscapes(folder / "absent")


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"split": "test"}, "`split` must be one of train, val, got 'test'"),
        ({"size": (0, 8)}, r"`size` must be a height and a width, got \(0, 8\)"),
        ({"num_classes": 8}, "`num_classes` must be 7 or 19, got 8"),
    ],
)
def test_settings_are_checked(whole, settings, match):
    with pytest.raises(ValueError, match=match):
        load_cityscapes(whole[0], **settings)
