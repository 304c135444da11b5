"""CelebA: a small tree in the official format, damage to it, what is read."""

import shutil

import numpy as np
import pytest
from PIL import Image

from experiments.data.celeba import load_celeba
from tests.experiments.data.trees import (
    check_form,
    check_refused,
    check_streaming,
    cut,
    write_image,
)

PARTS = [0, 0, 1, 0, 2, 0, 2]
NAMES = [f"{number:06d}.jpg" for number in range(1, len(PARTS) + 1)]
ATTRIBUTES = [f"Attribute_{number}" for number in range(40)]
IMAGES = "img_align_celeba"
LIST = "list_attr_celeba.txt"
PARTITION = "list_eval_partition.txt"


def write_list(folder, has):
    lines = [str(len(has)), " ".join(ATTRIBUTES) + " "]
    for name, row in zip(NAMES, has, strict=True):
        lines.append(name + "".join(f" {2 * value - 1:2d}" for value in row))
    (folder / LIST).write_text("\n".join(lines) + "\n")


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("celeba")
    rng = np.random.default_rng(0)
    has = rng.integers(0, 2, [len(PARTS), 40])
    write_list(folder, has)
    rows = zip(NAMES, PARTS, strict=True)
    text = "\n".join(f"{name} {part}" for name, part in rows)
    (folder / PARTITION).write_text(text)
    for name in NAMES:
        image = rng.integers(0, 256, [218, 178, 3], np.uint8)
        write_image(folder / IMAGES / name, image)
    return folder, has


@pytest.fixture
def folder(whole, tmp_path):
    """A copy to be damaged."""
    return shutil.copytree(whole[0], tmp_path / "celeba")


@pytest.mark.parametrize(
    ("split", "rows"),
    [("train", [0, 1, 3, 5]), ("validation", [2]), ("test", [4, 6])],
)
def test_official_splits_are_read(whole, split, rows):
    """40 tasks named as in the list, in the order of the list, and resized images."""
    folder, has = whole
    samples = load_celeba(folder, split)
    assert samples.names == [NAMES[row] for row in rows]
    for sample, row in zip(samples, rows, strict=True):
        check_form(sample, dict.fromkeys(ATTRIBUTES, ((), np.int32)))
        assert all(sample.present.values())
        np.testing.assert_array_equal(list(sample.labels.values()), has[row])
        with Image.open(folder / IMAGES / NAMES[row]) as file:
            expected = file.resize((64, 64), Image.Resampling.BILINEAR)
        np.testing.assert_allclose(
            255 * sample.image, np.asarray(expected, np.float32), atol=1.01
        )


def test_streaming(whole):
    samples = load_celeba(whole[0], size=(20, 30))
    check_streaming(samples)
    assert samples.batch([2, 0]).image.shape == (2, 20, 30, 3)
    assert samples.source == (
        f"CelebA in {whole[0]}, train (4 images of 20 x 30 pixels with 40 attributes)"
    )


def test_folders_of_the_release_are_fine_too(whole, folder):
    """Img, Anno and Eval, and a list with the line ends of another system."""
    path = folder / LIST
    path.write_bytes(path.read_bytes().replace(b"\n", b"\r\n"))
    for part, name in (("Img", IMAGES), ("Anno", LIST), ("Eval", PARTITION)):
        (folder / part).mkdir()
        (folder / name).rename(folder / part / name)
    for found, expected in zip(load_celeba(folder), load_celeba(whole[0]), strict=True):
        np.testing.assert_array_equal(found.image, expected.image)
        assert found.labels == expected.labels


def replaced(old, new):
    def damage(path):
        text = path.read_text()
        assert old in text
        path.write_text(text.replace(old, new, 1))

    return damage


FIRST = f"{IMAGES}/{NAMES[0]}"
DAMAGE = {
    "cut image": (FIRST, cut, "cannot be read as a JPEG image"),
    "empty image": (FIRST, lambda path: path.write_bytes(b""), "cannot be read"),
    "text": (FIRST, lambda path: path.write_text("x" * 99), "cannot be read"),
    "grey image": (
        FIRST,
        lambda path: write_image(path, np.zeros([218, 178], np.uint8)),
        r"of mode L and shape \(218, 178\); expected RGB",
    ),
    "original image": (
        FIRST,
        lambda path: write_image(path, np.zeros([300, 200, 3], np.uint8)),
        r"shape \(300, 200\); expected RGB \(mode RGB\) and \(218, 178\)",
    ),
    "missing image": (
        FIRST,
        lambda path: path.unlink(),
        "has no .*, and 0 others of 4",
    ),
    "no list": (LIST, lambda path: path.unlink(), "has no list_attr_celeba.txt"),
    "empty list": (LIST, lambda path: path.write_text(""), "has -2 lines of images"),
    "cut list": (LIST, cut, "lines of images and begins with '7'; expected"),
    "no number": (LIST, replaced("7\n", ""), "begins with 'Attribute_0"),
    "39 names": (
        LIST,
        replaced("Attribute_3 ", ""),
        "names 39 attributes; expected 40",
    ),
    "a name twice": (LIST, replaced("bute_3 ", "bute_4 "), "names 39 attributes"),
    "41 values": (
        LIST,
        replaced("000002.jpg", "000002.jpg 1"),
        "'000002.jpg .* 41 values",
    ),
    "a zero": (LIST, replaced(" -1", "  0"), "40 values; expected .* 1 or -1"),
    "no text": (LIST, lambda path: path.write_bytes(bytes(99)), "begins with"),
    "an image twice": (LIST, replaced("000003.jpg", "000002.jpg"), "6 file names in 7"),
    "no partition": (PARTITION, lambda path: path.unlink(), "has no list_eval"),
    "short partition": (
        PARTITION,
        replaced("\n000007.jpg 2", ""),
        "has 6 lines; expected 7, one for each image of list_attr_celeba.txt",
    ),
    "other order": (PARTITION, replaced("000003", "000004"), "'000004.jpg 1'"),
    "fourth part": (PARTITION, replaced("000003.jpg 1", "000003.jpg 3"), "0, 1 or 2"),
}


@pytest.mark.parametrize("case", DAMAGE)
def test_damage_is_named(folder, case):
    name, damage, match = DAMAGE[case]
    damage(folder / name)
    check_refused(lambda: load_celeba(folder), folder / name, match)


def test_split_without_images_is_refused(folder):
    replaced("000003.jpg 1", "000003.jpg 0")(folder / PARTITION)
    with pytest.raises(ValueError, match="has no image of the validation split"):
        load_celeba(folder, "validation")


def test_missing_folder_is_named(folder):
    shutil.rmtree(folder / IMAGES)
    with pytest.raises(FileNotFoundError, match=r"000001\.jpg, and 3 others of 4"):
        load_celeba(folder)
    with pytest.raises(FileNotFoundError, match="`data_dir` must be a folder, got"):
        load_celeba(folder / "absent")


def test_settings_are_checked(whole):
    with pytest.raises(ValueError, match="`split` must be one of train, validation, t"):
        load_celeba(whole[0], "val")
    with pytest.raises(ValueError, match="`size` must be a height and a width"):
        load_celeba(whole[0], size=(64, 0))
