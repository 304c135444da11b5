"""Streets with classes, instances and disparity: Aligned-MTL and Fast Line Search."""

import functools
from typing import Any

import jax
from flax import nnx

from experiments.aligned_mtl.photographs import best
from experiments.data.cityscapes import CLASSES, load_cityscapes
from experiments.data.rendered import load_streets
from experiments.data.rendered_samples import rendered_samples, street_labels
from experiments.data.samples import Samples
from experiments.lab.tables import read_table
from experiments.lab.verdicts import Verdict
from experiments.lab.vision import losses, metrics
from experiments.lab.vision.data import hold_out
from experiments.lab.vision.experiment import Experiment, Paper, Settings
from experiments.lab.vision.metrics import SEGMENTATION_METRICS, Metric
from experiments.lab.vision.pretrained import (
    PretrainedSettings,
    prepare,
    run_photographs,
)
from experiments.lab.vision.problem import Task, segmentation, separate
from experiments.lab.vision.report import Outcome
from mtlopt.models import PyramidResNet

DESCRIPTION = """\
A ResNet with a pyramid-pooling head for each task learns three tasks on images of
streets: segmentation in 19 classes, the offset of each pixel to the centre of its
instance, and disparity. The papers are Senushkin et al., "Independent component
alignment for multi-task learning", 2023, Table 3, and "Fast line search for multi-task
learning", 2021, Table 2 (the times of fbls and sgd) and Fig. 7.

Without --data-dir the streets are rendered, a stand-in for Cityscapes. Results on these
images say nothing about photographs. With --data-dir, Cityscapes is read. The
validation split of Cityscapes is the test split here, because the labels of its test
split are secret. A tenth of the train split is held out for validation.

The first paper gives neither a learning rate nor a number of epochs, so --full takes
both from its code. For the experiment of the paper on line search, use --full --methods
sgd fbls --learning-rates 1e-3 1e-2 1e-1.
"""

METHODS = ("sum_tasks", "gradnorm", "mgda_ub", "pcgrad")
METHODS += ("aligned_mtl", "aligned_mtl_ub", "sgd", "fbls")
FULL_METHODS = (*METHODS, "uncertainty", "mgda")
SCORES = read_table(
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
# The network learns offsets and disparities in units of this many pixels, so that the
# three losses have the same order of magnitude.
PIXELS = 10.0


def load(settings: Settings) -> dict[str, Samples]:
    """Reads Cityscapes, or draws streets."""
    size = (48, 96) if settings.small else (256, 512)
    if settings.data_dir is None:
        numbers = (64, 16, 32) if settings.small else (500, 100, 100)
        return rendered_samples(load_streets(*numbers, size=size), street_labels)
    read = functools.partial(load_cityscapes, settings.data_dir, size=size)
    return hold_out(read("train"), read("val"))


def in_pixels(name: str, error: str) -> Task:
    """Returns a task that predicts quantities in pixels, and the name of its error."""

    def loss(out: jax.Array, label: jax.Array) -> jax.Array:
        return losses.l1(out, label / PIXELS)

    def count(out: jax.Array, label: jax.Array) -> Any:
        return metrics.count_errors(out * PIXELS, label)

    def scores(sums: Any) -> dict[str, jax.Array]:
        return {name: metrics.error_scores(sums)[error]}

    return Task(loss, count, scores, lambda out: out * PIXELS)


TASKS = separate(
    {
        "segmentation": segmentation(len(CLASSES)),
        "instances": in_pixels("offset", "absolute"),
        "disparity": in_pixels("disparity", "square"),
    },
    (
        SEGMENTATION_METRICS[0],
        Metric("offset", "instance error [px]", "instances", False),
        Metric("disparity", "disparity MSE [px²]", "disparity", False),
    ),
)


def build(settings: PretrainedSettings, _: tuple[str, ...], key: jax.Array) -> Any:
    """Returns the paper's network or a small one."""
    heads = {"segmentation": len(CLASSES), "instances": 2, "disparity": 1}
    small = {"stages": (1, 1, 1), "bottleneck": False, "width": 4}
    sizes: dict[str, Any] = small if settings.small else {}
    network = PyramidResNet(heads, rngs=nnx.Rngs(key), **sizes)
    return prepare(network, settings, key)


def verdicts(outcome: Outcome) -> list[Verdict]:
    """Returns the verdicts on the claims of Table 3 about the alignments."""
    claim = "θ-alignment segments best (Table 3)"
    others = [name for name in SCORES if name != "aligned_mtl"]
    found = best(claim, outcome, "mean_iou", "aligned_mtl", others)
    for name, title in (("aligned_mtl", "θ"), ("aligned_mtl_ub", "Z")):
        claim = f"{title}-alignment finds instances better than MGDA (Table 3)"
        found += best(claim, outcome, "offset", name, ("mgda", "mgda_ub"))
    return found


EXPERIMENT = Experiment(
    name="aligned_mtl.cityscapes3",
    description=DESCRIPTION,
    # The paper of line searches has 0.1 among the rates of its SGD.
    quick=PretrainedSettings(methods=METHODS, learning_rates=(1e-3, 1e-2, 1e-1)),
    full={
        "methods": FULL_METHODS,
        "epochs": 60,
        "seeds": 3,
        "learning_rates": (1e-4,),
    },
    load=load,
    tasks=lambda _: TASKS,
    build=build,
    num_tasks=3,
    verdicts=verdicts,
    paper=lambda _: Paper(
        "Table 3 of Senushkin et al., 2023",
        SCORES,
        note="The paper gives disparity up to a scale, so it is not in pixels.",
    ),
)

main = functools.partial(run_photographs, EXPERIMENT)
