"""Resizing, against JAX and Pillow."""

import jax
import numpy as np
import pytest
from PIL import Image

from experiments.data.resizing import resize_linear, resize_matrix, resize_nearest

METHODS = ("nearest", "linear")
PILLOW = {"nearest": Image.Resampling.NEAREST, "linear": Image.Resampling.BILINEAR}
SIZES = [(17, 32), (40, 20), (34, 20)]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(("old", "new"), [(36, 28), (28, 36), (10, 4), (5, 5)])
def test_resize_agrees_with_jax(method, old, new):
    """R X R^T = jax.image.resize(X), with antialiasing where it shrinks."""
    image = np.random.default_rng(0).uniform(size=[old, old]).astype(np.float32)
    matrix = resize_matrix(old, new, method)
    expected = jax.image.resize(image, [new, new], method, antialias=True)
    np.testing.assert_allclose(matrix @ image @ matrix.T, expected, atol=1e-5)


@pytest.mark.parametrize("method", METHODS)
def test_resize_agrees_with_pillow(method):
    image = np.random.default_rng(0).uniform(size=[36, 36]).astype(np.float32)
    matrix = resize_matrix(36, 28, method)
    expected = np.asarray(Image.fromarray(image).resize((28, 28), PILLOW[method]))
    np.testing.assert_allclose(matrix @ image @ matrix.T, expected, atol=1e-5)


@pytest.mark.parametrize("method", METHODS)
def test_resize_keeps_constants(method):
    """R 1 = 1, so a constant image stays constant."""
    matrix = resize_matrix(36, 28, method)
    np.testing.assert_allclose(matrix.sum(axis=1), np.ones(28), rtol=1e-6)
    image = np.full([36, 36], 3.0, np.float32)
    np.testing.assert_allclose(matrix @ image @ matrix.T, 3.0, rtol=1e-6)


def test_resize_method_must_be_known():
    with pytest.raises(ValueError, match='`resize` must be "nearest" or "linear", got'):
        resize_matrix(36, 28, "cubic")


@pytest.mark.parametrize("size", SIZES)
def test_images_are_resized_by_the_matrices(size):
    """R X C^T for each channel X, with a matrix for each axis."""
    image = np.random.default_rng(0).integers(0, 256, [34, 20, 3], np.uint8)
    found = resize_linear(image, size)
    assert found.dtype == np.float32
    assert found.shape == (*size, 3)
    rows, columns = (
        resize_matrix(old, new, "linear")
        for old, new in zip(image.shape[:2], size, strict=True)
    )
    expected = np.einsum("ij,jkc,lk->ilc", rows, image, columns)
    np.testing.assert_allclose(found, expected, atol=1e-3)


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
