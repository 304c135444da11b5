"""Forty attributes by ResNet-18: Senushkin et al., 2023 (Aligned-MTL), on CelebA."""

import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from experiments.lab.figures import COLOURS, STYLE, finish, pyplot
from experiments.lab.vision.data import Data
from experiments.lab.vision.experiment import Experiment, Settings, run
from experiments.lab.vision.problems import Problem, make_problem
from experiments.lab.vision.report import read_table
from experiments.lab.vision.tasks import ACCURACY, attribute_tasks
from experiments.lab.vision.training import Run, Schedule
from experiments.mtl_io.celeba_data import load_attributes

DESCRIPTION = """\
Forty yes-or-no attributes of images by a ResNet-18 with a linear head of two classes
for each: Senushkin et al., "Independent component alignment for multi-task learning",
2023, Table 3 and the radar chart of Fig. 4.

Without --data-dir the images are rendered rooms with attributes of their own, a
stand-in for the faces of CelebA: numbers on them say nothing about photographs. With
it, CelebA is read. The learning rate is constant here; the paper's falls.
"""

METHODS = (
    "sum_tasks",
    "uncertainty",
    "gradnorm",
    "pcgrad",
    "mgda_ub",
    "aligned_mtl_ub",
)
FULL_METHODS = (*METHODS, "mgda", "aligned_mtl")
PAPER = read_table(
    ("accuracy",),
    """
    mgda           90.49±0.05
    mgda_ub        90.91±0.02
    gradnorm       91.18±0.04
    pcgrad         91.53±0.05
    uncertainty    91.33±0.03
    aligned_mtl    91.32±0.04
    aligned_mtl_ub 91.36±0.05
    """,
)


def make(settings: Settings, data: Data) -> Problem:
    """Returns the problem, with the paper's ResNet-18 or a small one."""
    from flax import nnx

    from mtlopt.models import ResNet, celeba_resnet18, stack_heads

    names = data.train.tasks

    def build(key: jax.Array) -> Any:
        if settings.full:
            return celeba_resnet18(len(names), rngs=nnx.Rngs(key))
        heads = {f"attribute{i}": (2,) for i in range(len(names))}
        return stack_heads(
            ResNet((1, 1), heads, width=8, small_images=True, rngs=nnx.Rngs(key))
        )

    tasks = attribute_tasks(names, (ACCURACY,), outputs=2)
    return make_problem(build, tasks, stacked=True)


def draw_radar(runs: Mapping[str, Sequence[Run]], source: str, out: Path) -> None:
    """Draws the error of each attribute, a ring for each method (Fig. 4)."""
    names = [name for name in next(iter(runs.values()))[0].test if "error_" in name]
    angles = np.linspace(0, 2 * np.pi, len(names), endpoint=False)
    plt = pyplot()
    with plt.rc_context(STYLE):
        figure, axis = plt.subplots(
            figsize=(7.5, 8), subplot_kw={"projection": "polar"}, layout="constrained"
        )
        for index, (title, each) in enumerate(runs.items()):
            errors = [100 * np.mean([run.test[name] for run in each]) for name in names]
            axis.plot(
                [*angles, angles[0]],
                [*errors, errors[0]],
                color=COLOURS[index % len(COLOURS)],
                linestyle="-" if index < len(COLOURS) else "--",
                linewidth=1,
                label=title,
            )
        labels = [name.removeprefix("error_") for name in names]
        axis.set_xticks(angles, labels, fontsize=6)
        finish(
            figure, [axis], f"Test error by attribute [%]. {source}", out / "radar.png"
        )
        plt.close(figure)


EXPERIMENT = Experiment(
    name="aligned_mtl.celeba",
    description=DESCRIPTION,
    quick=Schedule(METHODS, 4, 2, 32, (1e-3, 1e-2)),
    full=Schedule(FULL_METHODS, 20, 10, 256, (1e-4, 5e-4, 1e-3)),
    load=load_attributes,
    make=make,
    num_tasks=40,
    stacked=True,
    paper=lambda _: PAPER,
    table="Table 3 of Senushkin et al., 2023",
    draw=draw_radar,
)

main = functools.partial(run, EXPERIMENT)
