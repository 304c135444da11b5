"""Rendered rooms and streets, in the form of the samples from official releases."""

from collections.abc import Callable, Mapping

import numpy as np

from experiments.data.cityscapes import CATEGORY_OF_CLASS, CLASSES
from experiments.data.rendered import Drawn, RenderedData, RenderedSplit
from experiments.data.samples import Sample, Samples, make_sample
from experiments.data.scene_attributes import answer

Labels = Mapping[str, np.ndarray]
SPLITS = ("train", "validation", "test")


def rendered_samples(
    data: RenderedData, labels: Callable[[Drawn], Labels]
) -> dict[str, Samples]:
    """Returns rendered splits by name; a sample is drawn when it is read."""

    def one(split: RenderedSplit) -> Samples:
        def read(place: int) -> Sample:
            drawn = split.draw(place)
            return make_sample(drawn.seen.image / 255, labels(drawn))

        return Samples([f"image {i}" for i in range(split.num)], read, data.source)

    return {name: one(getattr(data, name)) for name in SPLITS}


def room_labels(drawn: Drawn) -> Labels:
    """Returns labels in the form of `load_nyuv2`."""
    seen = drawn.seen
    return {
        "segmentation": seen.classes,
        "depth": seen.depth[..., None],
        "normals": seen.normals,
    }


def street_labels(drawn: Drawn) -> Labels:
    """Returns labels in the form of `load_cityscapes`, in 19 classes.

    As in `load_cityscapes`, the sky has no disparity.
    """
    seen, sky = drawn.seen, drawn.seen.classes == CLASSES.index("sky")
    return {
        "segmentation": seen.classes,
        "instances": seen.offsets,
        "disparity": np.where(sky, np.nan, seen.disparity)[..., None],
    }


def street_groups(drawn: Drawn) -> Labels:
    """Returns a segmentation in the form of `load_cityscapes`, in 7 categories."""
    return {"segmentation": CATEGORY_OF_CLASS[drawn.seen.classes]}


def attribute_labels(drawn: Drawn) -> Labels:
    """Returns labels in the form of `load_celeba`: attributes by name."""
    return {name: np.array(yes, int) for name, yes in answer(*drawn).items()}


def pose_labels(drawn: Drawn) -> Labels:
    """Returns labels in the form of `load_seven_scenes`."""
    return {"translation": drawn.camera.position, "rotation": drawn.camera.quaternion}
