"""Instances as a quantity for each pixel: the vector to its instance's centre."""

import numpy as np


def centre_offsets(instances: np.ndarray) -> np.ndarray:
    r"""Returns the vector from each pixel to the centre of its instance.

    .. math:: x_n = c_{i(n)} - n, \qquad c_i = \frac{1}{N_i} \sum_{i(n) = i} n

    for pixel n of instance i(n), which has :math:`N_i` pixels.

    Args:
        instances: integer `[height, width]`; negative for pixels without an instance.

    Returns:
        The offset in rows (down) and columns (to the right), in pixels, float32
        `[height, width, 2]`; NaN for pixels without an instance.

    References:
        Kendall, Gal and Cipolla, "Multi-task learning using uncertainty to weigh losses
        for scene geometry and semantics", 2018, section 4.2,
        https://arxiv.org/abs/1705.07115.
    """
    _, which = np.unique(instances, return_inverse=True)
    which = which.reshape(-1)
    places = np.indices(instances.shape).reshape(2, -1)
    sums = np.stack([np.bincount(which, weights=axis) for axis in places])
    offsets = (sums / np.bincount(which))[:, which] - places
    offsets = offsets.T.reshape(*instances.shape, 2).astype(np.float32)
    offsets[instances < 0] = np.nan
    return offsets
