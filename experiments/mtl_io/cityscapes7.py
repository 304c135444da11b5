"""Streets with seven categories as seven tasks: Pascal et al., 2021, on Cityscapes."""

import functools
from typing import Any

import jax
import numpy as np

from experiments.data.cityscapes import CATEGORIES, load_cityscapes
from experiments.data.rendered import load_streets
from experiments.data.rendered_samples import rendered_samples, street_groups
from experiments.data.samples import Sample, Samples, make_sample
from experiments.lab.vision.data import Data, hold_out, make_data
from experiments.lab.vision.experiment import Experiment, Settings, run
from experiments.lab.vision.problems import Problem, make_problem
from experiments.lab.vision.report import read_table
from experiments.lab.vision.tasks import category_tasks
from experiments.lab.vision.training import Schedule

DESCRIPTION = """\
Seven tasks of one nature on images of streets: each of seven categories of pixels
against the rest, by a U-Net that they share but for a 1 x 1 convolution each: Pascal et
al., "Improved optimization strategies for deep multi-task networks", 2021, Table 2 and
Fig. 2.

Without --data-dir the streets are rendered, a stand-in: numbers on them say nothing
about photographs. With it, Cityscapes is read; its validation split is the test split
here (the labels of its own are secret), and a tenth of its train split is held out.
"""

METHODS = ("sum_tasks", "ius", "io", "pcgrad", "roaming")
FULL_METHODS = (*METHODS, "gradnorm", "mgda_ub")
PAPER = read_table(
    ("mean_iou", "pixel_accuracy"),
    """
    sum_tasks 69.79±0.40 90.40±0.08
    ius       69.74±0.05 90.22±0.13
    io        69.52±0.26 90.28±0.14
    gradnorm  69.00±0.12 90.17±0.10
    pcgrad    69.73±0.05 90.42±0.06
    roaming   69.15±0.08 89.79±0.08
    """,
)
# Table 4.
DISTANCES = {
    "sum_tasks": (909.38, 74.38, 12.23),
    "ius": (8102.39, 262.68, 30.85),
    "io": (8438.78, 277.29, 30.44),
}
_QUICK_SIZE, _FULL_SIZE = (32, 64), (128, 256)


def load(settings: Settings) -> Data:
    """Reads Cityscapes, or draws streets."""
    size = _FULL_SIZE if settings.full else _QUICK_SIZE
    if settings.data_dir is None:
        numbers = (2975, 300, 500) if settings.full else (80, 16, 32)
        streets = load_streets(*numbers, size=size)
        splits, source = rendered_samples(streets, street_groups), streets.source
    else:
        train, test = (
            load_cityscapes(settings.data_dir, split, size=size, num_classes=7)
            for split in ("train", "val")
        )
        splits, source = hold_out(train, test), train.source
    return make_data({name: one_each(part) for name, part in splits.items()}, source)


def one_each(samples: Samples) -> Samples:
    """Returns the same images, with a yes-or-no label for each category."""

    def read(place: int) -> Sample:
        sample = samples[place]
        whole = sample.labels["segmentation"]
        labels = {
            name: np.where(whole < 0, -1, whole == place)
            for place, name in enumerate(CATEGORIES)
        }
        return make_sample(sample.image, labels)

    return Samples(samples.names, read, samples.source)


def make(settings: Settings, data: Data) -> Problem:
    """Returns the problem, with the paper's U-Net or a small one."""
    del data
    from flax import nnx

    from mtlopt.models import UNet

    sizes: dict[str, Any] = {} if settings.full else {"width": 4, "depth": 2}

    def build(key: jax.Array) -> UNet:
        return UNet(dict.fromkeys(CATEGORIES, 1), rngs=nnx.Rngs(key), **sizes)

    return make_problem(build, category_tasks(CATEGORIES))


EXPERIMENT = Experiment(
    name="mtl_io.cityscapes7",
    description=DESCRIPTION,
    quick=Schedule(METHODS, 4, 2, 8, (2e-3, 1e-2)),
    # The paper does not say how long.
    full=Schedule(FULL_METHODS, 200, 3, 24, (1e-5, 5e-5, 1e-4, 2e-4, 5e-4, 1e-3)),
    load=load,
    make=make,
    num_tasks=len(CATEGORIES),
    paper=lambda _: PAPER,
    table="Table 2 of Pascal et al., 2021",
    distances=DISTANCES,
)

main = functools.partial(run, EXPERIMENT)
