"""Streets with classes, instances and disparity: Aligned-MTL and Fast Line Search."""

import functools
from typing import Any

import jax

from experiments.data.cityscapes import CLASSES, load_cityscapes
from experiments.data.rendered import load_streets
from experiments.data.rendered_samples import rendered_samples, street_labels
from experiments.lab.vision.data import Data, hold_out, make_data
from experiments.lab.vision.experiment import Experiment, Settings, run
from experiments.lab.vision.problems import Problem, make_problem
from experiments.lab.vision.report import read_table
from experiments.lab.vision.tasks import street_tasks
from experiments.lab.vision.training import Schedule

DESCRIPTION = """\
Segmentation in 19 classes, the way to the centre of each instance, and disparity on
images of streets, by a ResNet with a pyramid-pooling head for each task: Senushkin et
al., "Independent component alignment for multi-task learning", 2023, Table 3, and "Fast
line search for multi-task learning", 2021, Table 2 (the times of fbls and sgd) and
Fig. 7.

Without --data-dir the streets are rendered, a stand-in: numbers on them say nothing
about photographs. With it, Cityscapes is read; its validation split is the test split
here (the labels of its own are secret), and a tenth of its train split is held out. No
network is pretrained here, and the learning rate is constant.
"""

METHODS = (
    "sum_tasks",
    "gradnorm",
    "mgda_ub",
    "pcgrad",
    "aligned_mtl",
    "aligned_mtl_ub",
    "sgd",
    "fbls",
)
FULL_METHODS = (*METHODS, "uncertainty", "mgda", "ius", "io")
# Disparity "up to scale", so not in our unit.
PAPER = read_table(
    ("mean_iou", "offset", "disparity"),
    """
    mgda           66.72 17.02 0.3294
    mgda_ub        66.37 18.63 0.3212
    gradnorm       57.24 10.29 0.3536
    pcgrad         54.06  9.91 0.3837
    uncertainty    60.12  9.87 0.3314
    aligned_mtl    66.98 10.81 0.3266
    aligned_mtl_ub 66.07 10.54 0.3213
    """,
)
_QUICK_SIZE, _FULL_SIZE = (48, 96), (256, 512)


def load(settings: Settings) -> Data:
    """Reads Cityscapes, or draws streets."""
    size = _FULL_SIZE if settings.full else _QUICK_SIZE
    if settings.data_dir is None:
        numbers = (500, 100, 100) if settings.full else (64, 16, 32)
        streets = load_streets(*numbers, size=size)
        return make_data(rendered_samples(streets, street_labels), streets.source)
    train, test = (
        load_cityscapes(settings.data_dir, split, size=size)
        for split in ("train", "val")
    )
    return make_data(hold_out(train, test), train.source)


def make(settings: Settings, data: Data) -> Problem:
    """Returns the problem, with the paper's network or a small one."""
    del data
    from flax import nnx

    from mtlopt.models import PyramidResNet

    small = {"stages": (1, 1, 1), "bottleneck": False, "width": 4}
    sizes: dict[str, Any] = {} if settings.full else small

    def build(key: jax.Array) -> PyramidResNet:
        heads = {"segmentation": len(CLASSES), "instances": 2, "disparity": 1}
        return PyramidResNet(heads, rngs=nnx.Rngs(key), **sizes)

    return make_problem(build, street_tasks(len(CLASSES)))


EXPERIMENT = Experiment(
    name="aligned_mtl.cityscapes3",
    description=DESCRIPTION,
    quick=Schedule(METHODS, 4, 2, 8, (1e-3, 1e-2)),
    full=Schedule(FULL_METHODS, 100, 3, 8, (1e-4, 1e-3, 1e-2, 1e-1)),
    load=load,
    make=make,
    num_tasks=3,
    paper=lambda _: PAPER,
    table="Table 3 of Senushkin et al., 2023",
)

main = functools.partial(run, EXPERIMENT)
