"""Resizing of images and of maps of labels."""

import numpy as np

Size = tuple[int, int]  # height and width


def resize_linear(image: np.ndarray, size: Size) -> np.ndarray:
    """Resizes an image `[height, width, channels]` by bilinear interpolation.

    If the image shrinks, antialiasing averages over all old pixels, as in
    `jax.image.resize`.
    """
    from PIL import Image

    channels = [
        Image.fromarray(channel).resize((size[1], size[0]), Image.Resampling.BILINEAR)
        for channel in np.moveaxis(image.astype(np.float32), -1, 0)
    ]
    return np.stack([np.asarray(channel) for channel in channels], axis=-1)


def resize_nearest(labels: np.ndarray, size: Size) -> np.ndarray:
    """Resizes a map `[height, width, ...]` by the values at the new pixels' centres.

    Use this for values that must not be averaged, such as class numbers, and also
    depths and normals: across an edge, a mean depth or normal would belong to no
    surface.
    """
    rows, columns = (
        ((np.arange(new) + 0.5) * old / new).astype(int)
        for old, new in zip(labels.shape[:2], size, strict=True)
    )
    return labels[rows[:, None], columns]
