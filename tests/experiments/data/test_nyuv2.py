"""NYUv2: both forms of the release in small, damage to them, what is read."""

import shutil
import sys

import h5py
import numpy as np
import pytest
import scipy.io

from experiments.data.nyuv2 import CLASSES, load_nyuv2
from tests.experiments.data.trees import check_form, check_refused, check_streaming, cut

SIZE = (6, 8)
SHAPES = {
    "segmentation": (SIZE, np.int32),
    "depth": ((*SIZE, 1), np.float32),
    "normals": ((*SIZE, 3), np.float32),
}
NAMES = ["book", "bottle", "cabinet", "ceiling", "chair"]
# Of each name: its class of 40, and so, by the 40 that are known, of 13.
OF_40 = [23, 40, 3, 22, 5]
OF_13 = ["books", "objects", "furniture", "ceiling", "chair"]
ROWS = {"train": [2, 0], "test": [1]}  # from 0 on
LABELLED, SPLITS, MAPPING = (
    "nyu_depth_v2_labeled.mat",
    "splits.mat",
    "classMapping40.mat",
)


def enlarged(blocks):
    """From `SIZE` to 480 x 640."""
    return np.repeat(np.repeat(blocks, 80, axis=1), 80, axis=2)


@pytest.fixture(scope="module")
def labelled(tmp_path_factory):
    """The folder of the labelled file, and its arrays at the small size."""
    folder = tmp_path_factory.mktemp("labelled")
    rng = np.random.default_rng(0)
    arrays = {
        "images": rng.integers(0, 256, [3, *SIZE, 3], np.uint8),
        "depths": rng.uniform(0.7, 10, [3, *SIZE]).astype(np.float32),
        "labels": rng.integers(0, len(NAMES) + 1, [3, *SIZE], np.uint16),
    }
    arrays["depths"][2, 0, :3] = 0
    with h5py.File(folder / LABELLED, "w") as file:
        for key, array in arrays.items():
            # MATLAB's first axis is the last of HDF5.
            whole = np.moveaxis(enlarged(array), [1, 2], [-1, -2])
            file.create_dataset(key, data=whole, compression="gzip")
        names = file.create_dataset("names", [1, len(NAMES)], h5py.ref_dtype)
        for place, name in enumerate(NAMES):
            letters = np.frombuffer(name.encode(), np.uint8).astype(np.uint16)
            names[0, place] = file.create_dataset(f"#refs#/{name}", data=letters).ref
    ndxs = {f"{split}Ndxs": np.array([rows]).T + 1 for split, rows in ROWS.items()}
    scipy.io.savemat(folder / SPLITS, ndxs)
    cells = np.array(NAMES, object)
    scipy.io.savemat(folder / MAPPING, {"mapClass": [OF_40], "allClassName": cells})
    return folder, arrays


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """The folder of MTAN's form, with two images to train, and their arrays."""
    folder = tmp_path_factory.mktemp("folders")
    rng = np.random.default_rng(1)
    normals = rng.normal(size=[3, *SIZE, 3])
    normals /= np.linalg.norm(normals, axis=-1, keepdims=True)
    normals[:, 0, 0] = 0
    arrays = {
        "image": rng.uniform(size=[3, *SIZE, 3]),
        "label": rng.integers(-1, 13, [3, *SIZE]).astype(float),
        "depth": np.maximum(rng.uniform(-2, 10, [3, *SIZE, 1]), 0),
        "normal": normals,
    }
    for row, split in enumerate(("train", "train", "val")):
        for kind, array in arrays.items():
            path = folder / split / kind / f"{row % 2}.npy"
            path.parent.mkdir(parents=True, exist_ok=True)
            np.save(path, array[row])
    return folder, arrays


@pytest.fixture
def folder(labelled, folders, tmp_path):
    """Copies of both to be damaged."""
    for name, (source, _) in (("labelled", labelled), ("folders", folders)):
        shutil.copytree(source, tmp_path / name)
    return tmp_path


@pytest.mark.parametrize("split", ROWS)
def test_labelled_file_is_read(labelled, split):
    """The rows of the split, turned upright, in 13 classes, and without normals."""
    folder, arrays = labelled
    samples = load_nyuv2(folder, split, size=SIZE)
    assert samples.names == [f"image {row + 1}" for row in ROWS[split]]
    classes = np.array([-1, *(CLASSES.index(name) for name in OF_13)])
    for sample, row in zip(samples, ROWS[split], strict=True):
        check_form(sample, SHAPES)
        assert [bool(there) for there in sample.present.values()] == [True, True, False]
        segmentation, depth, normals = sample.labels.values()
        np.testing.assert_array_equal(segmentation, classes[arrays["labels"][row]])
        expected = arrays["depths"][row][..., None]
        np.testing.assert_array_equal(depth, np.where(expected > 0, expected, np.nan))
        assert np.isnan(normals).all()


def test_images_of_the_labelled_file_are_upright(labelled):
    """Away from the edges of a block, the colour is that of the block."""
    folder, arrays = labelled
    image = load_nyuv2(folder, "test", size=(18, 24))[0].image
    expected = arrays["images"][ROWS["test"][0]] / 255
    np.testing.assert_allclose(image[1::3, 1::3], expected, atol=1e-6)


@pytest.mark.parametrize(("split", "rows"), [("train", [0, 1]), ("test", [2])])
def test_folders_are_read(folders, split, rows):
    """Zero normals and depths are none."""
    folder, arrays = folders
    samples = load_nyuv2(folder, split, size=SIZE)
    for sample, row in zip(samples, rows, strict=True):
        check_form(sample, SHAPES)
        assert all(sample.present.values())
        image, label, depth, normal = (array[row] for array in arrays.values())
        np.testing.assert_allclose(sample.image, image, rtol=1e-6)
        np.testing.assert_array_equal(sample.labels["segmentation"], label)
        expected = np.where(depth > 0, depth, np.nan)
        np.testing.assert_allclose(sample.labels["depth"], expected, rtol=1e-6)
        normal[0, 0] = np.nan
        np.testing.assert_allclose(sample.labels["normals"], normal, rtol=1e-5)


def test_resized_labels_are_of_the_release(folders):
    """No class and no depth is an average of others, and normals keep their length."""
    full, half = (load_nyuv2(folders[0], size=size)[0] for size in (SIZE, (3, 4)))
    assert half.image.shape == (3, 4, 3)
    for task, label in half.labels.items():
        np.testing.assert_array_equal(label, full.labels[task][1::2, 1::2])


@pytest.mark.parametrize("form", ["labelled", "folders"])
def test_streaming(request, form):
    source = request.getfixturevalue(form)[0]
    samples = load_nyuv2(source, size=SIZE)
    check_streaming(samples)
    assert samples.source == (
        f"NYUv2 in {source / (LABELLED if form == 'labelled' else 'train')}, train (2 "
        "images of 6 x 8 pixels)"
    )


@pytest.mark.parametrize(
    ("name", "task"),
    [("label", "segmentation"), ("depth", "depth"), ("normal", "normals")],
)
def test_missing_folder_leaves_its_task_out(folder, name, task):
    before = load_nyuv2(folder / "folders", size=SIZE)[0]
    shutil.rmtree(folder / "folders" / "train" / name)
    after = load_nyuv2(folder / "folders", size=SIZE)[0]
    check_form(after, SHAPES)
    for other, label in after.labels.items():
        assert after.present[other] == (other != task)
        if other != task:
            np.testing.assert_array_equal(label, before.labels[other])
    assert np.all(after.labels[task] == -1) or np.isnan(after.labels[task]).all()


def edited(change):
    """Changes the HDF5 file."""

    def damage(path):
        with h5py.File(path, "a") as file:
            change(file)

    return damage


def replaced(key, function):
    def change(file):
        array = function(file[key][()])
        del file[key]
        file[key] = array

    return edited(change)


def matlab(key, values):
    return lambda path: scipy.io.savemat(path, {key: np.array(values)})


def remove(path):
    path.unlink()


def saved(function):
    return lambda path: np.save(path, function(np.load(path)))


def set_first(value):
    def function(array):
        array[0, 0] = value
        return array

    return saved(function)


def high_label(file):
    file["labels"][2, 5, 5] = 6


def both(train, test):
    ndxs = {"trainNdxs": np.array(train), "testNdxs": np.array(test)}
    return lambda path: scipy.io.savemat(path, ndxs)


IMAGE, LABEL, DEPTH, NORMAL = (
    f"folders/train/{name}/0.npy" for name in ("image", "label", "depth", "normal")
)
FILE = f"labelled/{LABELLED}"
DAMAGE = {
    "cut file": (FILE, cut, "cannot be read as HDF5"),
    "old format": (FILE, matlab("images", [1]), "cannot be read as HDF5"),
    "no depths": (FILE, edited(lambda file: file.pop("depths")), "no array 'depths'"),
    "no names": (FILE, edited(lambda file: file.pop("names")), "no array 'names'"),
    "fewer depths": (
        FILE,
        replaced("depths", lambda x: x[:2]),
        r"float32 \(2, 640, 48",
    ),
    "upright": (
        FILE,
        replaced("labels", lambda x: x.mT),
        r"labels uint16 \(3, 480, 64",
    ),
    "float images": (FILE, replaced("images", lambda x: x / 255), "images float64"),
    "label beyond": (
        FILE,
        edited(high_label),
        "label 6 in image 3; expected 5 at most",
    ),
    "negative depth": (FILE, replaced("depths", lambda x: 0 * x - 1), "values from -1"),
    "NaN for depth": (
        FILE,
        replaced("depths", lambda x: x * np.nan),
        "from nan to nan",
    ),
    "no splits": (
        f"labelled/{SPLITS}",
        remove,
        "has no splits.mat. Copy it from NYUv2",
    ),
    "cut splits": (f"labelled/{SPLITS}", cut, "cannot be read as a MATLAB file"),
    "other splits": (
        f"labelled/{SPLITS}",
        matlab("x", [1]),
        "expected one with trainN",
    ),
    "row twice": (f"labelled/{SPLITS}", both([1, 2], [2]), r"names 2 \+ 1 images"),
    "row beyond": (
        f"labelled/{SPLITS}",
        both([1, 2], [4]),
        "expected each of the 3 of",
    ),
    "no mapping": (f"labelled/{MAPPING}", remove, "has no classMapping40.mat"),
    "short mapping": (
        f"labelled/{MAPPING}",
        matlab("mapClass", [1, 2]),
        "maps 2 names",
    ),
    "wide mapping": (
        f"labelled/{MAPPING}",
        matlab("mapClass", [1, 2, 3, 4, 41]),
        "maps 5 names to 1 to 41; expected the 5 names",
    ),
    "words": (f"labelled/{MAPPING}", matlab("mapClass", ["a"]), "expected numbers"),
    "cut npy": (IMAGE, cut, "cannot be read as a numpy array"),
    "empty npy": (
        LABEL,
        lambda path: path.write_bytes(b""),
        "cannot be read as a numpy",
    ),
    "pickle": (
        DEPTH,
        saved(lambda x: np.array([{}])),
        "cannot be read as a numpy array",
    ),
    "bytes": (IMAGE, saved(lambda x: np.uint8(255 * x)), r"holds uint8 \(6, 8, 3\)"),
    "channels first": (IMAGE, saved(lambda x: x.transpose(2, 0, 1)), r"\(3, 6, 8\)"),
    "to 255": (IMAGE, saved(lambda x: 255 * x), r"values from .* expected 0 to 1"),
    "NaN": (IMAGE, set_first(np.nan), "values from nan to nan; expected 0 to 1"),
    "missing image": (IMAGE, remove, "has no .*, and 0 others of 1 "),
    "missing label": (LABEL, remove, "has no .*, and 0 others of 2 "),
    "small label": (
        LABEL,
        saved(lambda x: x[1:]),
        r"\(5, 8\); expected numbers \(6, 8\)",
    ),
    "40 classes": (
        LABEL,
        set_first(39),
        "labels from .* to 39.0; expected .* -1 to 12",
    ),
    "half class": (LABEL, set_first(0.5), "expected whole numbers from -1 to 12"),
    "depth of two axes": (DEPTH, saved(lambda x: x[..., 0]), r"\(6, 8\); expected"),
    "depth below 0": (DEPTH, set_first(-1), "values from -1 to .*; expected 0 to inf"),
    "endless depth": (DEPTH, set_first(np.inf), "to inf; expected 0 to inf"),
    "missing depth": (DEPTH, remove, "has no"),
    "long normals": (NORMAL, set_first(2), "to 2; expected -1 to 1"),
    "depth for normals": (
        NORMAL,
        saved(lambda x: x[..., :1]),
        r"\(6, 8, 1\); expected",
    ),
    "normal of no image": (
        "folders/train/normal/2.npy",
        lambda path: np.save(path, 0),
        "is one of 3 files .*; expected 2",
    ),
}


@pytest.mark.parametrize("case", DAMAGE)
def test_damage_is_named(folder, case):
    name, damage, match = DAMAGE[case]
    path = folder / name
    damage(path)
    root = folder / name.split("/")[0]
    check_refused(lambda: load_nyuv2(root, size=SIZE), path, match)


def test_missing_folders_are_named(folder):
    for name in ("label", "depth", "normal"):
        shutil.rmtree(folder / "folders" / "train" / name)
    with pytest.raises(FileNotFoundError, match="train has no label, depth, normal"):
        load_nyuv2(folder / "folders")
    shutil.rmtree(folder / "folders" / "train" / "image")
    with pytest.raises(FileNotFoundError, match=r"image has no 0\.npy"):
        load_nyuv2(folder / "folders")
    with pytest.raises(
        FileNotFoundError, match=r"has neither nyu_depth_v2_.* nor train"
    ):
        load_nyuv2(folder)
    with pytest.raises(FileNotFoundError, match="`data_dir` must be a folder, got"):
        load_nyuv2(folder / "absent")


def test_settings_are_checked(folders):
    with pytest.raises(
        ValueError, match="`split` must be one of train, test, got 'val'"
    ):
        load_nyuv2(folders[0], "val")
    with pytest.raises(ValueError, match="`size` must be a height and a width"):
        load_nyuv2(folders[0], size=(-1, 9))


def test_without_h5py_the_error_says_what_to_install(labelled, monkeypatch):
    monkeypatch.setitem(sys.modules, "h5py", None)
    with pytest.raises(ImportError, match=r"h5py, .*mtlopt\[experiments\]"):
        load_nyuv2(labelled[0])
