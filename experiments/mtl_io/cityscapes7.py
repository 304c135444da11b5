"""Streets with seven categories as seven tasks: Pascal et al., 2021, on Cityscapes."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from experiments.data.cityscapes import CATEGORIES, load_cityscapes
from experiments.data.rendered import load_streets
from experiments.data.rendered_samples import rendered_samples, street_groups
from experiments.data.samples import Sample, Samples, make_sample
from experiments.lab.tables import read_table
from experiments.lab.verdicts import Verdict
from experiments.lab.vision import metrics
from experiments.lab.vision.data import hold_out
from experiments.lab.vision.experiment import Experiment, Paper, Settings, run
from experiments.lab.vision.losses import binary_cross_entropy
from experiments.lab.vision.problem import ByTask, Tasks
from experiments.lab.vision.report import SUM, Outcome
from experiments.mtl_io import claims
from mtlopt.models import UNet

DESCRIPTION = """\
Shows that the pipeline works, but cannot check the paper's claims, because rendered
streets are too few, and are not photographs.

Seven tasks of the same kind learn from images of streets. Each task separates one of
seven categories of pixels from the rest. The tasks share a U-Net, and each task has its
own 1 x 1 convolution. The paper is Pascal et al., "Improved optimization strategies for
deep multi-task networks", 2021, Table 2 and Fig. 2.

With --data-dir, Cityscapes is read. The validation split of Cityscapes is the test
split here, because the labels of its test split are secret. A tenth of the train split
is held out for validation.
"""

METHODS = ("sum_tasks", "ius", "io", "pcgrad", "roaming")
FULL_METHODS = (*METHODS, "gradnorm", "roaming_io")
SCORES = read_table(
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


def load(settings: Settings) -> dict[str, Samples]:
    """Reads Cityscapes, or renders streets."""
    size = (32, 64) if settings.small else (128, 256)
    if settings.data_dir is None:
        numbers = (80, 16, 32) if settings.small else (2975, 300, 500)
        samples = rendered_samples(load_streets(*numbers, size=size), street_groups)
    else:
        folder = settings.data_dir
        read = functools.partial(load_cityscapes, folder, size=size, num_classes=7)
        samples = hold_out(read("train"), read("val"))
    return {name: one_each(part) for name, part in samples.items()}


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


def predicted(outputs: ByTask) -> jax.Array:
    """Returns the category with the highest logit."""
    logits = [outputs[name] for name in CATEGORIES]
    return metrics.classes_of(jnp.concatenate(logits, axis=-1))


def count(outputs: ByTask, labels: ByTask) -> jax.Array:
    """Returns the confusion matrix of a segmentation by all tasks."""
    whole = jnp.stack([labels[name] for name in CATEGORIES], axis=-1)
    there = jnp.all(whole >= 0, axis=-1)
    classes = jnp.where(there, jnp.argmax(whole, axis=-1), -1)
    return metrics.count_classes(predicted(outputs), classes, len(CATEGORIES))


TASKS = Tasks(
    losses=dict.fromkeys(CATEGORIES, binary_cross_entropy),
    count=count,
    scores=lambda parts: metrics.segmentation_scores(metrics.total(parts)),
    metrics=tuple(metric._replace(task="") for metric in metrics.SEGMENTATION_METRICS),
    draw={"categories": predicted},
)


def build(settings: Settings, names: tuple[str, ...], key: jax.Array) -> UNet:
    """Returns the paper's U-Net or a small one."""
    sizes: dict[str, Any] = {"width": 4, "depth": 2} if settings.small else {}
    return UNet(dict.fromkeys(names, 1), rngs=nnx.Rngs(key), **sizes)


def verdicts(outcome: Outcome) -> list[Verdict]:
    """Returns the verdicts on the claims of Table 2, Fig. 2 and Table 4."""
    found = []
    for kind in ("ius", "io"):
        level, low = (
            "is level with SUS (Table 2)",
            "is better at the lowest rate (Fig. 2)",
        )
        name = kind.upper()
        found += claims.alike(f"{name} {level}", outcome, TASKS.metrics, kind, SUM)
        found += claims.at_rates(f"{name} {low}", outcome, kind, highest=False)
    return found + claims.farther(outcome)


EXPERIMENT = Experiment(
    name="mtl_io.cityscapes7",
    description=DESCRIPTION,
    quick=Settings(methods=METHODS, learning_rates=(2e-3, 1e-2)),
    full={
        "methods": FULL_METHODS,
        "epochs": 150,  # of the published code; the paper does not say how long
        "seeds": 3,
        "batch_size": 24,
        "learning_rates": (1e-5, 5e-5, 1e-4, 2e-4, 5e-4, 1e-3),
    },
    load=load,
    tasks=lambda _: TASKS,
    build=build,
    num_tasks=len(CATEGORIES),
    verdicts=verdicts,
    roams=0.54,  # published: 10,000 of 18,600
    paper=lambda _: Paper("Table 2 of Pascal et al., 2021", SCORES, DISTANCES),
)

main = functools.partial(run, EXPERIMENT)
