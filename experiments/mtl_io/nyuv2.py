"""Rooms with segmentation, depth and normals: Pascal et al., 2021, on NYUv2."""

import functools
from typing import Any

import jax
from flax import nnx

from experiments.data.nyuv2 import CLASSES, load_nyuv2
from experiments.data.rendered import load_rooms
from experiments.data.rendered_samples import rendered_samples, room_labels
from experiments.data.samples import Samples
from experiments.lab.tables import read_table
from experiments.lab.verdicts import Verdict
from experiments.lab.vision import losses, metrics
from experiments.lab.vision.data import hold_out
from experiments.lab.vision.experiment import Experiment, Paper, Settings, run
from experiments.lab.vision.metrics import SEGMENTATION_METRICS
from experiments.lab.vision.problem import Task, segmentation, separate
from experiments.lab.vision.report import SUM, Metric, Outcome
from experiments.mtl_io import claims
from mtlopt.models import UNet

DESCRIPTION = """\
Shows how much IO and IUS gain or lose on each of three tasks of different kinds, on
rendered rooms. Results on these images say nothing about photographs.

The tasks are segmentation in 13 classes, depth and normals. They share a U-Net, and
each task has its own 1 x 1 convolution. The paper is Pascal et al., "Improved
optimization strategies for deep multi-task networks", 2021, Table 1 and Fig. 1. IUS and
IO (one optimizer state for all tasks, or one for each task) make three updates on every
batch. The control, sum_3, makes three steps on the summed loss with every batch. The
paper's other methods are gradnorm, pcgrad and roaming.

With --data-dir, NYUv2 is read from the labelled file or from the preprocessed folders
of MTAN. A tenth of the train split is held out for validation.
"""

METHODS = ("sum_tasks", "sum_3", "ius", "io")
FULL_METHODS = (*METHODS, "gradnorm", "pcgrad", "roaming", "roaming_io", "single")
METRICS = (
    *SEGMENTATION_METRICS,
    Metric("absolute", "depth error [m]", "depth", False, 1, 3),
    Metric("relative", "relative depth error [%]", "depth", False, 100),
    Metric("mean_angle", "mean angle [°]", "normals", False),
    Metric("median_angle", "median angle [°]", "normals", False),
)
# Table 1.
SCORES = read_table(
    [metric.name for metric in METRICS],
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
PAPER = Paper(
    "Table 1 of Pascal et al., 2021",
    SCORES,
    DISTANCES,
    """\
Compare only the order of the paper's numbers, because its code uses other measures. The
code predicts a class if the sigmoid of the class is above 0.5, an IoU is a mean over
images, and depth errors have no unit. The code's angle is the arc cosine of products of
normals that are mapped to [0, 1], which is not an angle.""",
    comparable=False,
)


def load(settings: Settings) -> dict[str, Samples]:
    """Reads NYUv2, or renders rooms."""
    size = (32, 48) if settings.small else (288, 384)
    if settings.data_dir is None:
        numbers = (120, 32, 64) if settings.small else (795, 100, 654)
        return rendered_samples(load_rooms(*numbers, size=size), room_labels)
    read = functools.partial(load_nyuv2, settings.data_dir, size=size)
    return hold_out(read("train"), read("test"))


TASKS = separate(
    {
        "segmentation": segmentation(len(CLASSES)),
        "depth": Task(
            losses.l1, metrics.count_errors, metrics.error_scores, lambda depth: depth
        ),
        "normals": Task(
            losses.cosine_loss, metrics.count_angles, metrics.angle_scores, losses.unit
        ),
    },
    METRICS,
)


def build(settings: Settings, _: tuple[str, ...], key: jax.Array) -> UNet:
    """Returns the paper's U-Net or a small one."""
    sizes: dict[str, Any] = {"width": 8, "depth": 2} if settings.small else {}
    return UNet(rngs=nnx.Rngs(key), **sizes)


def verdicts(outcome: Outcome) -> list[Verdict]:
    """Returns the verdicts on Table 1 and Table 4.

    A control makes as many updates with the sum as IUS and IO make.
    """
    each = [METRICS[0], METRICS[2], METRICS[4]]
    return [
        *claims.better("IO gains on each task (Table 1)", outcome, each, "io", SUM),
        *claims.alike("IUS is level with SUS (Table 1)", outcome, each, "ius", SUM),
        *claims.better("control: IO, equal updates", outcome, each, "io", "sum_3"),
        *claims.better("control: IUS, equal updates", outcome, each, "ius", "sum_3"),
        *claims.farther(outcome),
    ]


EXPERIMENT = Experiment(
    name="mtl_io.nyuv2",
    description=DESCRIPTION,
    quick=Settings(
        methods=METHODS, epochs=20, seeds=3, learning_rates=(3e-3, 1e-2, 3e-2)
    ),
    full={
        "methods": FULL_METHODS,
        "epochs": 500,
        "seeds": 3,
        "learning_rates": (1e-5, 5e-5, 1e-4, 2e-4, 5e-4, 1e-3),
    },
    load=load,
    tasks=lambda _: TASKS,
    build=build,
    num_tasks=3,
    verdicts=verdicts,
    roams=0.2,  # published: 10,000 of 49,500
    paper=lambda _: PAPER,
)

main = functools.partial(run, EXPERIMENT)
