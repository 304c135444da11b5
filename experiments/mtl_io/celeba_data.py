"""Images with forty attributes: faces of CelebA, or rendered rooms in their place."""

from experiments.data.celeba import load_celeba
from experiments.data.rendered import load_rooms
from experiments.data.rendered_samples import (
    SPLITS,
    attribute_labels,
    rendered_samples,
)
from experiments.lab.vision.data import Data, make_data
from experiments.lab.vision.experiment import Settings

_QUICK_SIZE, _FULL_SIZE = (32, 32), (64, 64)


def load_attributes(settings: Settings) -> Data:
    """Reads CelebA, or draws rooms with 40 attributes of their own."""
    size = _FULL_SIZE if settings.full else _QUICK_SIZE
    if settings.data_dir is None:
        numbers = (2000, 400, 400) if settings.full else (384, 96, 192)
        rooms = load_rooms(*numbers, size=size)
        samples = rendered_samples(rooms, attribute_labels(rooms.attributes))
        return make_data(samples, f"40 attributes of {rooms.source}")
    samples = {
        split: load_celeba(settings.data_dir, split, size=size) for split in SPLITS
    }
    return make_data(samples, samples["train"].source)
