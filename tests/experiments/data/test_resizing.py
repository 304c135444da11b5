"""Resizing, against JAX and Pillow."""

import jax
import numpy as np
import pytest
from PIL import Image

from experiments.data.resizing import resize_linear, resize_nearest

SIZES = [(17, 32), (40, 20), (34, 20), (9, 5), (28, 28)]


@pytest.mark.parametrize("size", SIZES)
def test_images_are_resized_as_by_jax(size):
    """Each channel by itself, with antialiasing where it shrinks."""
    image = np.random.default_rng(0).integers(0, 256, [34, 20, 3], np.uint8)
    found = resize_linear(image, size)
    assert found.dtype == np.float32
    assert found.shape == (*size, 3)
    expected = jax.image.resize(image.astype(np.float32), [*size, 3], "linear")
    np.testing.assert_allclose(found, expected, atol=1e-3)


def test_resize_keeps_constants():
    found = resize_linear(np.full([36, 36, 1], 3.0), (28, 28))
    np.testing.assert_allclose(found, 3.0, rtol=1e-6)


@pytest.mark.parametrize(("old", "new"), [(36, 28), (28, 36), (10, 4), (5, 5)])
def test_maps_are_resized_as_by_jax(old, new):
    labels = np.random.default_rng(0).integers(0, 256, [old, old])
    expected = jax.image.resize(labels.astype(np.float32), [new, new], "nearest")
    np.testing.assert_array_equal(resize_nearest(labels, (new, new)), expected)


@pytest.mark.parametrize("size", SIZES)
def test_maps_are_resized_as_by_pillow(size):
    """Every value is one of the map, NaN included, and the dtype is kept."""
    labels = np.random.default_rng(0).integers(0, 9, [34, 20], np.uint8)
    found = resize_nearest(labels, size)
    expected = Image.fromarray(labels).resize(size[::-1], Image.Resampling.NEAREST)
    np.testing.assert_array_equal(found, expected)
    assert found.dtype == np.uint8
    reals = np.where(labels > 4, np.nan, labels)[..., None]
    np.testing.assert_array_equal(
        resize_nearest(reals, size)[..., 0], np.where(found > 4, np.nan, found)
    )
