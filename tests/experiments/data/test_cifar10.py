"""CIFAR-10: the binary release, damage, the pickled release, and the drawn images."""

import numpy as np
import pytest

from experiments.data import cifar10
from experiments.data.cifar10 import load_cifar10, read_batch
from experiments.data.drawn_images import CLASSES, draw_images

NUM = 20  # images of a file, where the release has 10,000
FILES = [f"data_batch_{i}.bin" for i in range(1, 6)] + ["test_batch.bin"]


@pytest.fixture
def release(tmp_path, monkeypatch):
    """Writes a release of small files; returns its folder and its records."""
    monkeypatch.setattr(cifar10, "_NUM_EACH", NUM)
    records = np.random.default_rng(0).integers(0, 256, [6, NUM, 3073], np.uint8)
    records[:, :, 0] %= 10
    for name, part in zip(FILES, records, strict=True):
        (tmp_path / name).write_bytes(part.tobytes())
    return tmp_path, records


def test_pixels_and_labels_are_where_the_release_has_them(release):
    """Byte 0 is the label; then come the red, the green and the blue plane, by rows."""
    folder, records = release
    images, labels = read_batch(folder / FILES[0])
    assert images.shape == (NUM, 32, 32, 3)
    np.testing.assert_array_equal(labels, records[0, :, 0])
    for place in ((0, 0, 0), (31, 31, 2), (5, 9, 1)):
        row, column, channel = place
        byte = 1 + 1024 * channel + 32 * row + column
        np.testing.assert_array_equal(
            images[(slice(None), *place)], records[0, :, byte]
        )


@pytest.mark.parametrize("inside", [False, True])
def test_all_files_are_read_in_order(release, inside):
    """Five files train, one tests, also in the folder of the archive."""
    folder, records = release
    if inside:
        inner = folder / "cifar-10-batches-bin"
        inner.mkdir()
        for name in FILES:
            (folder / name).rename(inner / name)
    data = load_cifar10(folder)
    np.testing.assert_array_equal(data.train.labels, records[:5, :, 0].ravel())
    np.testing.assert_array_equal(data.test.labels, records[5, :, 0])
    assert data.source.startswith("CIFAR-10 binary files in ")
    assert data.source.endswith("(100 train / 20 test)")


def test_channels_are_standardised_by_the_train_images(release):
    data = load_cifar10(release[0])
    pixels = data.train.images.reshape(-1, 3)
    np.testing.assert_allclose(pixels.mean(axis=0), 0, atol=1e-5)
    np.testing.assert_allclose(pixels.std(axis=0), 1, rtol=1e-4)
    raw = release[1][5, :, 1:].reshape(NUM, 3, 32, 32).transpose(0, 2, 3, 1)
    # One affine map a channel, for the test images too.
    for channel in range(3):
        line = np.polyfit(
            raw[..., channel].ravel(), data.test.images[..., channel].ravel(), 1
        )
        expected = np.polyval(line, raw[..., channel])
        np.testing.assert_allclose(data.test.images[..., channel], expected, atol=1e-4)


def test_some_images_are_drawn_by_the_seed(release):
    folder, _ = release
    first, again, other = (
        load_cifar10(folder, num_train=30, num_test=5, seed=seed) for seed in (0, 0, 1)
    )
    assert first.train.images.shape == (30, 32, 32, 3)
    assert first.test.labels.shape == (5,)
    np.testing.assert_array_equal(first.train.images, again.train.images)
    assert not np.array_equal(first.train.labels, other.train.labels)
    with pytest.raises(ValueError, match=r"`num_test` must be at most 20, .* got 21"):
        load_cifar10(folder, num_test=21)


def check_line(error, *words):
    message = str(error.value)
    assert "\n" not in message
    assert all(word in message for word in words), message


@pytest.mark.parametrize("damage", ["empty", "short", "long"])
def test_file_of_another_size_is_refused(release, damage):
    path = release[0] / FILES[3]
    data = path.read_bytes()
    path.write_bytes({"empty": b"", "short": data[:-1], "long": data + b"\0"}[damage])
    with pytest.raises(ValueError, match=r"has [\d,]+ bytes; expected 61,460") as error:
        load_cifar10(release[0])
    check_line(error, str(path), "cifar-10-binary.tar.gz")


def test_label_that_is_no_class_is_refused(release):
    path = release[0] / FILES[5]
    data = bytearray(path.read_bytes())
    data[3 * 3073] = 10
    path.write_bytes(data)
    with pytest.raises(ValueError, match="the label 10 at image 3") as error:
        load_cifar10(release[0])
    check_line(error, str(path), "labels from 0 to 9")


@pytest.mark.parametrize("name", ["data_batch_1", "cifar-10-batches-py"])
def test_pickled_release_is_refused_with_the_reason(tmp_path, name):
    (tmp_path / name).write_bytes(b"\x80\x04.")
    with pytest.raises(ValueError, match="whatever code it holds") as error:
        load_cifar10(tmp_path)
    check_line(error, str(tmp_path / name), "cifar-10-binary.tar.gz")


def test_missing_folder_or_file(release, tmp_path):
    with pytest.raises(FileNotFoundError, match="must be a folder, got"):
        load_cifar10(tmp_path / "absent")
    (release[0] / FILES[2]).unlink()
    with pytest.raises(FileNotFoundError, match=r"has no data_batch_3\.bin") as error:
        load_cifar10(release[0])
    check_line(error, str(release[0]))


@pytest.mark.parametrize("name", ["num_train", "num_test"])
def test_number_is_checked(name):
    with pytest.raises(ValueError, match=f"`{name}` must be at least 1, got 0"):
        load_cifar10(**{name: 0})


def test_stand_in_is_named_and_depends_on_the_seed_only():
    first, again, other = (
        load_cifar10(num_train=50, num_test=20, seed=seed) for seed in (0, 0, 1)
    )
    assert "not CIFAR-10" in first.source
    np.testing.assert_array_equal(first.train.images, again.train.images)
    assert not np.array_equal(first.train.images, other.train.images)
    np.testing.assert_array_equal(np.bincount(first.train.labels), 5)
    assert first.train.images.dtype == np.float32


def test_shapes_are_there_and_differ():
    """Each image has two colours apart from noise, and classes differ in their share.

    The mean silhouette of a class is not that of another.
    """
    images, labels = draw_images(600, np.random.default_rng(0))
    gray = images.astype(float).mean(axis=-1)
    assert np.all(gray.std(axis=(1, 2)) > 5)
    edge = gray[:, [0, 0, -1, -1], [0, -1, 0, -1]].mean(axis=1)
    shape = np.abs(gray - edge[:, None, None])
    means = np.stack([shape[labels == i].mean(axis=0) for i in range(len(CLASSES))])
    flat = means.reshape(len(CLASSES), -1)
    distances = np.linalg.norm(flat[:, None] - flat[None], axis=-1)
    np.fill_diagonal(distances, np.inf)
    assert distances.min() > 50
