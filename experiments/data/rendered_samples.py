"""Rendered rooms and streets in the form that the loaders of the releases return."""

from collections.abc import Callable, Mapping

import numpy as np

from experiments.data.cityscapes import CATEGORY_OF_CLASS, CLASSES
from experiments.data.rendered import Drawn, RenderedData, RenderedSplit
from experiments.data.samples import Sample, Samples, make_sample

Labels = Mapping[str, np.ndarray]
SPLITS = ("train", "validation", "test")


def rendered_samples(
    data: RenderedData, labels: Callable[[Drawn], Labels]
) -> dict[str, Samples]:
    """Returns the splits of rendered data by name, each sample drawn when it is read.

    `labels` makes the labels of one drawn image, with an axis of length 1 in front.
    """

    def one(split: RenderedSplit) -> Samples:
        def read(place: int) -> Sample:
            drawn = split.draw([place])
            own = {task: label[0] for task, label in labels(drawn).items()}
            return make_sample(drawn.images[0] / 255, own)

        return Samples([f"image {i}" for i in range(len(split))], read, data.source)

    return {name: one(getattr(data, name)) for name in SPLITS}


def room_labels(drawn: Drawn) -> Labels:
    """Returns the labels of `load_nyuv2`."""
    return {
        "segmentation": drawn.classes.astype(np.int32),
        "depth": drawn.depth[..., None],
        "normals": drawn.normals,
    }


def street_labels(drawn: Drawn) -> Labels:
    """Returns the labels of `load_cityscapes`, in 19 classes.

    As there, the sky has no disparity, and what is no single thing has no centre.
    """
    alone, sky = drawn.instances == 0, drawn.classes == CLASSES.index("sky")
    return {
        "segmentation": drawn.classes.astype(np.int32),
        "instances": np.where(alone[..., None], np.nan, drawn.offsets),
        "disparity": np.where(sky, np.nan, drawn.disparity)[..., None],
    }


def street_groups(drawn: Drawn) -> Labels:
    """Returns the segmentation of `load_cityscapes` in 7 categories."""
    return {"segmentation": CATEGORY_OF_CLASS[drawn.classes].astype(np.int32)}


def attribute_labels(names: tuple[str, ...]) -> Callable[[Drawn], Labels]:
    """Returns labels in the form of `load_celeba`: a name for each attribute."""
    return lambda drawn: dict(
        zip(names, drawn.attributes.T.astype(np.int32), strict=True)
    )


def pose_labels(drawn: Drawn) -> Labels:
    """Returns the labels of `load_seven_scenes`."""
    return {"translation": drawn.positions, "rotation": drawn.quaternions}
