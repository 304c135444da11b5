"""Offsets to the centres of instances."""

import numpy as np

from experiments.data.offsets import centre_offsets


def test_every_pixel_of_an_instance_points_to_one_place():
    """It is the mean of its pixels, so offsets sum to zero; numbers do not matter."""
    rng = np.random.default_rng(0)
    instances = rng.integers(-1, 4, [9, 12])
    offsets = centre_offsets(instances)
    assert offsets.shape == (9, 12, 2)
    assert offsets.dtype == np.float32
    ends = np.moveaxis(np.indices(instances.shape), 0, -1) + offsets
    for instance in range(4):
        own = instances == instance
        np.testing.assert_allclose(offsets[own].sum(axis=0), 0, atol=1e-4)
        np.testing.assert_allclose(ends[own] - ends[own][0], 0, atol=1e-5)
    assert np.isnan(offsets[instances < 0]).all()
    renamed = np.where(instances < 0, -5, 26000 + 17 * instances)
    np.testing.assert_array_equal(centre_offsets(renamed), offsets)


def test_image_without_instances():
    assert np.isnan(centre_offsets(np.full([2, 3], -1))).all()
