"""MedIMeta's mammo_calc: the official layout, damage to it, the drawn stand-in."""

import io
import itertools
import shutil
import sys

import h5py
import numpy as np
import pytest
from PIL import Image

from experiments.data.calcifications import (
    DISTRIBUTIONS,
    TYPES,
    draw_mammograms,
    draw_one,
    draw_speck,
)
from experiments.data.mammography import load_mammography

NUM = 12
# The splits interleave, as those of the release do.
SPLITS = {"train": [0, 2, 3, 5, 7, 8, 11], "val": [1, 9], "test": [4, 6, 10]}
INFO = 'id: mammo_calc\nname: "Mammography (Calcifications)"\n'


class Tree:
    """A tiny mammo_calc, written as MedIMeta writes it."""

    def __init__(self, folder):
        rng = np.random.default_rng(0)
        self.folder = folder
        self.images = rng.integers(0, 256, [NUM, 224, 224], np.uint8)
        self.labels = {
            "calc distribution": rng.integers(0, 2, [NUM, 5]),
            "calc type": rng.integers(0, 2, [NUM, 14]),
            "pathology": rng.integers(0, 2, [NUM]),
        }
        for name in ("splits", "task_labels"):
            (folder / name).mkdir(parents=True)
        (folder / "info.yaml").write_text(INFO)
        for split, rows in SPLITS.items():
            lines = "\n".join(f"images/{row:06d}.tiff" for row in rows)
            (folder / "splits" / f"{split}.txt").write_text(lines)
        for task, labels in self.labels.items():
            np.save(folder / "task_labels" / task, labels)
        with h5py.File(folder / "images.hdf5", "w") as file:
            file["images"] = self.images

    def to_tiff(self):
        """Keeps the images as a folder of TIFF files only."""
        (self.folder / "images.hdf5").unlink()
        (self.folder / "images").mkdir()
        for row, image in enumerate(self.images):
            path = self.folder / "images" / f"{row:06d}.tiff"
            Image.fromarray(image).save(path, compression=None)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return Tree(tmp_path_factory.mktemp("medimeta") / "mammo_calc")


@pytest.fixture
def tree(whole, tmp_path):
    """A copy to be damaged."""
    copy = Tree.__new__(Tree)
    copy.folder, copy.images = tmp_path / "mammo_calc", whole.images
    copy.labels = whole.labels
    shutil.copytree(whole.folder, copy.folder)
    return copy


def parts(data):
    return (data.train, data.validation, data.test)


@pytest.mark.parametrize("loose", [False, True])
def test_official_splits_are_read(tree, loose):
    """Images scaled to [0, 1] and labels, of the rows that the split files name."""
    if loose:
        tree.to_tiff()
    data = load_mammography(tree.folder)
    for part, rows in zip(parts(data), SPLITS.values(), strict=True):
        expected = tree.images[rows][..., None].astype(np.float32) / 255
        np.testing.assert_array_equal(part.images, expected)
        assert part.images.dtype == np.float32
        for found, labels in zip(part[1:], tree.labels.values(), strict=True):
            np.testing.assert_array_equal(found, labels[rows])
            assert found.dtype == np.int32
    assert data.source == (
        f"MedIMeta's mammo_calc in {tree.folder} of 224 x 224 pixels (7 train / 2 "
        "validation / 3 test)"
    )


def test_folder_above_is_fine_too(whole):
    data = load_mammography(whole.folder.parent)
    assert len(data.train.images) == 7


def test_smaller_images_are_averages(whole):
    """Half the side: within a pixel's range of the mean of its 2 x 2 block."""
    images = load_mammography(whole.folder, side=112).train.images[..., 0]
    assert images.shape == (7, 112, 112)
    for image, row in zip(images, SPLITS["train"], strict=True):
        pillow = Image.fromarray(whole.images[row].astype(np.float32))
        expected = pillow.resize((112, 112), Image.Resampling.BILINEAR)
        np.testing.assert_allclose(255 * image, np.asarray(expected), atol=1e-3)


def test_some_images_of_each_split(whole):
    """Their labels stay theirs, and the seed picks them."""
    folder = whole.folder
    picks = []
    for seed in range(6):
        data = load_mammography(folder, num_train=3, num_test=1, seed=seed)
        assert [len(part.images) for part in parts(data)] == [3, 2, 1]
        rows = []
        for image, malignant in zip(
            data.train.images, data.train.malignant, strict=True
        ):
            same = (whole.images == np.rint(255 * image[..., 0])).all(axis=(1, 2))
            rows.append(int(np.flatnonzero(same)[0]))
            assert whole.labels["pathology"][rows[-1]] == malignant
        assert set(rows) < set(SPLITS["train"])
        picks.append(tuple(rows))
    assert len(set(picks)) > 1
    with pytest.raises(ValueError, match=r"`num_train` must be at most 7, .* got 8"):
        load_mammography(folder, num_train=8)


@pytest.mark.parametrize("name", ["num_train", "num_validation", "num_test", "side"])
def test_numbers_are_checked_by_their_own_name(name):
    with pytest.raises(ValueError, match=f"`{name}` must be at least 1, got 0"):
        load_mammography(**{name: 0})


def check_line(error, path):
    """The message is one line, names the file and says what to do."""
    message = str(error.value)
    assert "\n" not in message
    assert str(path) in message
    assert message.endswith("Copy it from MedIMeta's mammo_calc again.")


def npy(array):
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


LABELS = np.zeros([NUM, 5], int)
LABELS_FILE = "task_labels/calc distribution.npy"
DAMAGE = {
    "other set": ("info.yaml", b"id: mammo_mass\n", "of the data set mammo_mass"),
    "no id": ("info.yaml", b"name: x\n", "states no id; expected the id mammo_calc"),
    "empty npy": (LABELS_FILE, b"", "cannot be read as a numpy array"),
    "short npy": (LABELS_FILE, npy(LABELS)[:-8], "cannot be read as a numpy array"),
    "text": (LABELS_FILE, b"a,b\n1,2\n", "cannot be read as a numpy array"),
    "pickle": (LABELS_FILE, npy(np.array([{}])), "cannot be read as a numpy array"),
    "types for distributions": (
        LABELS_FILE,
        npy(np.zeros([NUM, 14], int)),
        r"holds int64 \(12, 14\); expected integers \(12, 5\)",
    ),
    "one label": (LABELS_FILE, npy(LABELS[:, 0]), r"integers \(12, 5\)"),
    "floats": (LABELS_FILE, npy(LABELS / 2), r"holds float64 \(12, 5\)"),
    "other labels": (
        LABELS_FILE,
        npy(LABELS - 1),
        "holds the label -1; expected labels 0",
    ),
    "no rows": (LABELS_FILE, npy(LABELS[:0]), r"holds int64 \(0, 5\)"),
    "fewer rows": (
        "task_labels/pathology.npy",
        npy(np.zeros([NUM - 1], int)),
        r"holds int64 \(11,\); expected integers \(12,\)",
    ),
    "strange line": (
        "splits/val.txt",
        b"images/000001.tiff\nx.png",
        "the line 'x.png'",
    ),
    "line beyond": ("splits/val.txt", b"images/000012.tiff", "to images/000011.tiff"),
    "empty hdf5": ("images.hdf5", b"", "cannot be read as HDF5"),
    "not hdf5": ("images.hdf5", b"II*\0" + bytes(999), "cannot be read as HDF5"),
}


@pytest.mark.parametrize("case", DAMAGE)
def test_damaged_file_is_refused_in_one_line(tree, case):
    name, data, message = DAMAGE[case]
    (tree.folder / name).write_bytes(data)
    with pytest.raises(ValueError, match=message) as error:
        load_mammography(tree.folder)
    check_line(error, tree.folder / name)


def test_cut_hdf5_is_refused(tree):
    path = tree.folder / "images.hdf5"
    path.write_bytes(path.read_bytes()[:-100_000])
    with pytest.raises(ValueError, match="cannot be read as HDF5") as error:
        load_mammography(tree.folder)
    check_line(error, path)


@pytest.mark.parametrize(
    ("images", "found"),
    [
        (np.zeros([NUM, 28, 28], np.uint8), r"holds images uint8 \(12, 28, 28\)"),
        (
            np.zeros([NUM - 1, 224, 224], np.uint8),
            r"holds images uint8 \(11, 224, 224\)",
        ),
        (
            np.zeros([NUM, 224, 224], np.float32),
            r"holds images float32 \(12, 224, 224\)",
        ),
        (None, "holds no array 'images'; expected the array in the file itself"),
    ],
)
def test_other_images_are_refused(tree, images, found):
    path = tree.folder / "images.hdf5"
    with h5py.File(path, "w") as file:
        if images is not None:
            file["images"] = images
    with pytest.raises(ValueError, match=found) as error:
        load_mammography(tree.folder)
    check_line(error, path)


def test_splits_must_share_the_images_out(tree):
    """An image named twice, or in no split, is refused."""
    val = tree.folder / "splits" / "val.txt"
    val.write_text("images/000001.tiff\nimages/000009.tiff\n")  # a final line break
    load_mammography(tree.folder)
    val.write_text("images/000001.tiff\nimages/000002.tiff\nimages/000009.tiff")
    with pytest.raises(
        ValueError, match=r"name image 000002 2 times \(7 in train\.txt, 3 in"
    ) as e:
        load_mammography(tree.folder)
    check_line(e, tree.folder / "splits")
    val.write_text("images/000001.tiff")
    with pytest.raises(ValueError, match=r"image 000009 0 times .* the 12 images once"):
        load_mammography(tree.folder)


@pytest.mark.parametrize("case", ["cut", "not an image", "colour", "small"])
def test_damaged_tiff_is_refused(tree, case):
    tree.to_tiff()
    path = tree.folder / "images" / "000005.tiff"
    if case == "cut":
        path.write_bytes(path.read_bytes()[:5000])
    elif case == "not an image":
        path.write_bytes(b"GIF?" + bytes(99))
    elif case == "colour":
        Image.fromarray(np.zeros([224, 224, 3], np.uint8)).save(path)
    else:
        Image.fromarray(np.zeros([28, 28], np.uint8)).save(path)
    wanted = (
        "cannot be read as a TIFF image" if case in ("cut", "not an image") else "mode"
    )
    with pytest.raises(ValueError, match=wanted) as error:
        load_mammography(tree.folder)
    check_line(error, path)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("info.yaml", "has no info.yaml. It must be the folder mammo_calc of MedIMeta"),
        ("splits/test.txt", "splits has no test.txt. Copy it from MedIMeta's"),
        ("task_labels/calc type.npy", "task_labels has no calc type.npy. Copy it"),
        ("images.hdf5", "has neither images.hdf5 nor the folder images. Copy one"),
    ],
)
def test_missing_file_is_named(tree, name, message):
    (tree.folder / name).unlink()
    with pytest.raises(FileNotFoundError) as error:
        load_mammography(tree.folder)
    assert message in str(error.value)
    assert str(tree.folder) in str(error.value)


def test_missing_tiff_and_folder(tree):
    tree.to_tiff()
    (tree.folder / "images" / "000004.tiff").unlink()
    with pytest.raises(
        FileNotFoundError, match=r"images has no 000004\.tiff\. Copy it"
    ):
        load_mammography(tree.folder)
    with pytest.raises(FileNotFoundError, match="`data_dir` must be a folder, got"):
        load_mammography(tree.folder / "absent")


def test_without_h5py_the_error_says_what_to_install(whole, monkeypatch):
    monkeypatch.setitem(sys.modules, "h5py", None)
    with pytest.raises(ImportError, match=r"h5py, .*mtlopt\[experiments\]"):
        load_mammography(whole.folder)


# The drawn stand-in.


@pytest.fixture(scope="module")
def drawn():
    """Labels of many images, which are too small to see."""
    return draw_mammograms(800, side=4, rng=np.random.default_rng(0))


def test_drawn_splits_have_the_three_label_structures():
    sizes = {"num_train": 5, "num_validation": 3, "num_test": 2}
    first, again, other = (
        load_mammography(side=24, seed=seed, **sizes) for seed in (0, 0, 1)
    )
    for part, num in zip(parts(first), sizes.values(), strict=True):
        assert [array.shape for array in part] == [
            (num, 24, 24, 1),
            (num, 5),
            (num, 14),
            (num,),
        ]
        assert [array.dtype for array in part] == [np.float32, *[np.int32] * 3]
        assert part.images.min() >= 0
        assert part.images.max() <= 1
    np.testing.assert_array_equal(first.test.images, again.test.images)
    assert not np.array_equal(first.test.images, other.test.images)
    assert not np.array_equal(first.train.images[:2], first.test.images)
    assert first.source == (
        "drawn images, not MedIMeta's mammo_calc, of 24 x 24 pixels (5 train / 3 "
        "validation / 2 test)"
    )


def test_drawn_labels_are_one_or_two_and_all_occur(drawn):
    np.testing.assert_array_equal(np.unique(drawn.distributions.sum(axis=1)), [1, 2])
    assert drawn.distributions.mean(axis=0).min() > 0.05
    assert drawn.types.mean(axis=0).min() > 0.05
    lucent, centred = (TYPES.index(f"LUCENT_CENTER{end}") for end in ("", "ED"))
    assert np.all(drawn.types[:, lucent] >= drawn.types[:, centred])


def test_malignant_is_more_frequent_with_a_suspicious_type(drawn):
    """Shares 0.7 and 0.25, to five standard deviations."""
    names = ("AMORPHOUS", "FINE_LINEAR_BRANCHING", "PLEOMORPHIC")
    suspicious = drawn.types[:, [TYPES.index(name) for name in names]].any(axis=1)
    for chosen, share in ((suspicious, 0.7), (~suspicious, 0.25)):
        deviation = np.sqrt(share * (1 - share) / chosen.sum())
        mean = drawn.malignant[chosen].mean()
        assert abs(mean - share) < 5 * deviation


def draw(distribution="REGIONAL", kind="PUNCTATE", malignant=False, seed=0, side=112):
    return draw_one(
        np.array([DISTRIBUTIONS.index(distribution)]),
        np.array([TYPES.index(kind)]),
        malignant,
        side=side,
        rng=np.random.default_rng(seed),
    )


def spread(distribution, seed):
    """The larger and the smaller deviation of bright spots from their centre."""
    weights = np.maximum(draw(distribution, "ROUND_AND_REGULAR", seed=seed) - 0.6, 0)
    places = np.stack(np.nonzero(weights)) / len(weights)
    covariance = np.cov(places, aweights=weights[weights > 0])
    return np.sqrt(np.linalg.eigvalsh(covariance))[::-1]


def test_distributions_can_be_seen():
    """Bright spots are as wide, and as long, as the word says: means of 12 images."""
    large, small = np.mean(
        [[spread(name, seed) for name in DISTRIBUTIONS] for seed in range(12)], axis=0
    ).T
    clustered, scattered, linear, regional, segmental = range(5)
    assert large[clustered] < 0.08
    assert 0.11 < large[regional] < 0.2
    assert large[scattered] > 0.22
    assert large[linear] > 0.15
    assert small[linear] < 0.03
    assert 0.04 < small[segmental] < 0.9 * large[segmental]
    assert small[regional] > 0.6 * large[regional]


def test_types_can_be_told_apart():
    """No turn makes one shape that of another: they differ by a fifth of their norm."""
    axis = np.linspace(-2, 2, 61)
    x, y = np.meshgrid(axis, axis)
    for first, second in itertools.combinations(range(len(TYPES)), 2):
        still = draw_speck(first, x, y, 0.12)
        distances = []
        for angle in np.linspace(0, 2 * np.pi, 12, endpoint=False):
            u = np.cos(angle) * x + np.sin(angle) * y
            v = np.cos(angle) * y - np.sin(angle) * x
            turned = draw_speck(second, u, v, 0.12)
            scale = np.linalg.norm(still) + np.linalg.norm(turned)
            distances.append(np.linalg.norm(still - turned) / scale)
        assert min(distances) > 0.2, (TYPES[first], TYPES[second])


@pytest.mark.parametrize("kind", range(len(TYPES)))
def test_shapes_are_bright_and_end_within_two_radii(kind):
    """Brightness from 0 to 1 near the middle, and nothing at the edge of the stamp."""
    angle = np.linspace(0, 2 * np.pi, 100)
    axis = np.linspace(-2, 2, 81)
    shape = draw_speck(kind, *np.meshgrid(axis, axis), 0.12)
    assert shape.min() >= 0
    assert 0.45 < shape.max() <= 1
    edge = draw_speck(kind, 2 * np.cos(angle), 2 * np.sin(angle), 0.12)
    assert edge.max() < 0.02


def test_specks_are_far_brighter_than_the_tissue():
    for kind in TYPES:
        image = draw(kind=kind, side=64)
        assert image.max() - np.median(image) > (0.15 if kind == "AMORPHOUS" else 0.3)


def test_malignant_adds_rays_and_nothing_else():
    """The same randomness draws the same image; the difference is never dark."""
    benign, malignant = draw(), draw(malignant=True)
    rays = malignant - benign
    assert rays.min() > -1e-12
    assert 0.25 < rays.max() < 0.31
    assert 0.01 < np.mean(rays > 0.1) < 0.3
