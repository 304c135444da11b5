"""Rooms with segmentation, depth and normals: Pascal et al., 2021, on NYUv2."""

import functools
from typing import Any

import jax

from experiments.data.nyuv2 import CLASSES, load_nyuv2
from experiments.data.rendered import load_rooms
from experiments.data.rendered_samples import rendered_samples, room_labels
from experiments.lab.vision.data import Data, hold_out, make_data
from experiments.lab.vision.experiment import Experiment, Settings, run
from experiments.lab.vision.problems import Problem, make_problem
from experiments.lab.vision.report import read_table
from experiments.lab.vision.tasks import room_tasks
from experiments.lab.vision.training import Schedule

DESCRIPTION = """\
Three tasks of different nature on images of rooms: segmentation in 13 classes, depth
and normals, by a U-Net that they share but for a 1 x 1 convolution each. The summed
loss, IUS and IO beside GradNorm, PCGrad, MGDA-UB, Aligned-MTL and Maximum Roaming:
Pascal et al., "Improved optimization strategies for deep multi-task networks", 2021,
Table 1 and Fig. 1.

Without --data-dir the rooms are rendered, a stand-in: numbers on them say nothing about
photographs. With it, NYUv2 is read: the labelled file or the preprocessed folders of
MTAN; a tenth of its train split is held out for validation.
"""

METHODS = (
    "sum_tasks",
    "ius",
    "io",
    "gradnorm",
    "pcgrad",
    "mgda_ub",
    "aligned_mtl",
    "aligned_mtl_ub",
    "roaming",
    "single",
)
_METRICS = (
    "mean_iou",
    "pixel_accuracy",
    "absolute",
    "relative",
    "mean_angle",
    "median_angle",
)
# Table 1. Its depth errors have no unit.
PAPER = read_table(
    _METRICS,
    """
    sum_tasks 24.29±0.38 48.79±0.35 68.48±0.28 52.93±0.59 27.28±0.02 33.70±0.03
    ius       24.93±0.33 48.91±0.17 67.76±0.61 53.25±0.77 27.28±0.05 33.70±0.05
    io        29.48±0.30 54.06±0.21 66.07±0.68 50.27±0.28 27.08±0.03 33.35±0.05
    gradnorm  28.09±0.85 52.91±0.74 70.26±1.40 52.40±1.35 27.18±0.05 33.44±0.07
    pcgrad    24.51±0.32 48.87±0.41 67.89±0.67 52.29±0.75 27.32±0.04 33.65±0.08
    roaming   28.82±0.18 53.77±0.61 71.30±0.97 53.37±0.97 27.03±0.02 33.27±0.03
    """,
)
# Table 4.
DISTANCES = {
    "sum_tasks": (879.33, 38.77, 22.68),
    "ius": (2597.74, 67.44, 38.52),
    "io": (2769.52, 71.06, 38.97),
}
_QUICK_SIZE, _FULL_SIZE = (32, 48), (288, 384)


def load(settings: Settings) -> Data:
    """Reads NYUv2, or draws rooms."""
    size = _FULL_SIZE if settings.full else _QUICK_SIZE
    if settings.data_dir is None:
        numbers = (795, 100, 654) if settings.full else (80, 16, 32)
        rooms = load_rooms(*numbers, size=size)
        return make_data(rendered_samples(rooms, room_labels), rooms.source)
    train, test = (
        load_nyuv2(settings.data_dir, split, size=size) for split in ("train", "test")
    )
    return make_data(hold_out(train, test), train.source)


def make(settings: Settings, data: Data) -> Problem:
    """Returns the problem, with the paper's U-Net or a small one."""
    del data
    from flax import nnx

    from mtlopt.models import UNet

    sizes: dict[str, Any] = {} if settings.full else {"width": 8, "depth": 2}

    def build(key: jax.Array) -> UNet:
        return UNet(rngs=nnx.Rngs(key), **sizes)

    return make_problem(build, room_tasks(len(CLASSES)))


EXPERIMENT = Experiment(
    name="mtl_io.nyuv2",
    description=DESCRIPTION,
    quick=Schedule(METHODS, 4, 3, 8, (2e-3, 1e-2)),
    full=Schedule(METHODS, 500, 3, 8, (1e-5, 5e-5, 1e-4, 2e-4, 5e-4, 1e-3)),
    load=load,
    make=make,
    num_tasks=3,
    paper=lambda _: PAPER,
    table="Table 1 of Pascal et al., 2021",
    distances=DISTANCES,
)

main = functools.partial(run, EXPERIMENT)
