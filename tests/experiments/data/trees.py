"""Writing small releases, and the checks that all their loaders pass."""

import jax
import numpy as np
import pytest
from PIL import Image

from experiments.data.samples import Sample


def write_image(path, array, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path, **options)


def cut(path):
    """Keeps the first half of a file."""
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])


def check_refused(load, path, match):
    """Loading and reading all raises one line that names the file and what is wrong."""
    with pytest.raises((ValueError, FileNotFoundError), match=match) as error:
        for _ in load():
            pass
    message = str(error.value)
    assert "\n" not in message
    assert str(path.parent) in message
    assert path.name in message


def check_streaming(samples):
    """Batches in any order are the samples read one by one."""
    alone = [samples[place] for place in range(len(samples))]
    assert all(isinstance(sample, Sample) for sample in alone)
    order = np.random.default_rng(0).permutation(len(samples))
    for rows in ([0, 1], order):
        found, expected = samples.batch(rows), _stack([alone[row] for row in rows])
        assert list(found.labels) == list(found.present) == list(alone[0].labels)
        jax.tree.map(np.testing.assert_array_equal, found, expected)
    with pytest.raises(IndexError):
        samples[len(samples)]


def check_form(sample, shapes):
    """The dtypes of the common form, and the shapes that the data set states."""
    assert sample.image.dtype == np.float32
    assert 0 <= sample.image.min() <= sample.image.max() <= 1 + 1e-6
    assert list(sample.labels) == list(sample.present) == list(shapes)
    for task, (shape, dtype) in shapes.items():
        assert sample.labels[task].shape == shape
        assert sample.labels[task].dtype == dtype
        assert sample.present[task].dtype == bool
        assert sample.present[task].shape == ()


def _stack(samples):
    return jax.tree.map(lambda *leaves: np.stack(leaves), *samples)
