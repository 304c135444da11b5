"""Resizing of images and of maps of labels."""

from typing import Literal

import numpy as np

Resize = Literal["nearest", "linear"]


def resize_matrix(old_size: int, new_size: int, method: Resize) -> np.ndarray:
    """Returns the matrix R that resizes an image X to R X R^T.

    Pixel i of the new image has its centre at c = (i + 1/2) old_size / new_size, in
    pixels of the old one, whose pixel j has its centre at j + 1/2. Row i of R is

        nearest:  1 at j = floor(c), else 0
        linear:   max(0, 1 - |c - j - 1/2| / s), with s = max(1, old_size / new_size),
                  divided by its sum over j

    so that shrinking averages over all old pixels: this is bilinear interpolation with
    antialiasing, as in Pillow and in `jax.image.resize(..., antialias=True)`.

    Args:
        old_size: the size of the old image along one axis.
        new_size: the size of the new image along that axis.
        method: `"nearest"` or `"linear"`.

    Returns:
        The matrix, float32 [new_size, old_size]. Its rows sum to 1.

    Raises:
        ValueError: if `method` is neither of the two.

    Examples:
        >>> resize_matrix(4, 2, "linear")
        array([[0.42857143, 0.42857143, 0.14285715, 0.        ],
               [0.        , 0.14285715, 0.42857143, 0.42857143]], dtype=float32)
    """
    scale = old_size / new_size
    centres = (np.arange(new_size)[:, None] + 0.5) * scale
    old = np.arange(old_size)
    if method == "nearest":
        matrix = np.floor(centres) == old
    elif method == "linear":
        matrix = np.maximum(0, 1 - np.abs(centres - old - 0.5) / max(1, scale))
        matrix /= matrix.sum(axis=1, keepdims=True)
    else:
        raise ValueError(f'`resize` must be "nearest" or "linear", got {method!r}.')
    return matrix.astype(np.float32)


def resize_linear(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Resizes an image by bilinear interpolation with antialiasing.

    Each axis is that of `resize_matrix`.

    Args:
        image: `[height, width, channels]`.
        size: the new height and width.

    Returns:
        The image, float32 `[*size, channels]`.

    Examples:
        >>> image = np.arange(8.0).reshape(2, 4, 1)
        >>> resize_linear(image, (1, 4))[0, :, 0]
        array([2., 3., 4., 5.], dtype=float32)
    """
    from PIL import Image

    # What the product with two matrices gives, in a quarter of the time.
    channels = [
        Image.fromarray(channel).resize((size[1], size[0]), Image.Resampling.BILINEAR)
        for channel in np.moveaxis(image.astype(np.float32), -1, 0)
    ]
    return np.stack([np.asarray(channel) for channel in channels], axis=-1)


def resize_nearest(labels: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Resizes a map by taking, for each new pixel, the value at its centre.

    This is for all that must not be averaged: the number of a class, but also a depth
    or a normal, which across an edge would become that of no surface.

    Args:
        labels: `[height, width, ...]`.
        size: the new height and width.

    Returns:
        The map, `[*size, ...]`, of the same dtype.

    Examples:
        >>> resize_nearest(np.arange(8).reshape(2, 4), (1, 2))
        array([[5, 7]])
    """
    rows, columns = (
        ((np.arange(new) + 0.5) * old / new).astype(int)
        for old, new in zip(labels.shape[:2], size, strict=True)
    )
    return labels[rows[:, None], columns]
