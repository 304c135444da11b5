"""Forty attributes by ResNet-18: Senushkin et al., 2023 (Aligned-MTL), on CelebA."""

import functools
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import nnx

from experiments.lab.figures import COLOURS, drawing
from experiments.lab.tables import read_table, select
from experiments.lab.vision.experiment import Experiment, Paper, Settings, run
from experiments.lab.vision.report import Outcome, in_order
from experiments.mtl_io.attributes import ACCURACY, attribute_tasks, load_attributes
from mtlopt.models import ResNet, celeba_resnet18, stack_heads

DESCRIPTION = """\
Forty yes-or-no attributes of images by a ResNet-18 with a linear head of two classes
for each: Senushkin et al., "Independent component alignment for multi-task learning",
2023, Table 3 and the radar chart of Fig. 4.

Without --data-dir the images are rendered rooms with attributes of their own, a
stand-in for the faces of CelebA: numbers on them say nothing about photographs. With
it, CelebA is read. The learning rate is constant here; the paper's falls.
"""

METHODS = ("sum_tasks", "uncertainty", "gradnorm", "pcgrad")
METHODS += ("mgda_ub", "aligned_mtl_ub")
FULL_METHODS = (*METHODS, "mgda", "aligned_mtl")
SCORES = read_table(
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


def build(settings: Settings, names: tuple[str, ...], key: jax.Array) -> Any:
    """Returns the paper's ResNet-18 or a small one."""
    rngs = nnx.Rngs(key)
    if not settings.small:
        return celeba_resnet18(len(names), rngs=rngs)
    heads = {f"attribute{i}": (2,) for i in range(len(names))}
    return stack_heads(ResNet((1, 1), heads, width=8, small_images=True, rngs=rngs))


def draw_radar(outcome: Outcome, out: Path) -> None:
    """Draws the error of each attribute, a ring for each method (Fig. 4)."""
    chosen = outcome.chosen
    own = chosen[chosen["name"].str.startswith("test_error_")]
    names = list(own["name"].unique())
    angles = np.linspace(0, 2 * np.pi, len(names), endpoint=False)
    size, polar = (7.5, 8), {"projection": "polar"}
    title = f"Test error by attribute [%]. {outcome.source}"
    with drawing(out / "radar.png", title, figsize=size, subplot_kw=polar) as grid:
        axis = grid[0, 0]
        for index, method in enumerate(in_order(own)):
            means = select(own, method=method).groupby("name")["value"].mean()
            errors = [100 * means[name] for name in names]
            axis.plot(
                [*angles, angles[0]],
                [*errors, errors[0]],
                color=COLOURS[index % len(COLOURS)],
                linestyle="-" if index < len(COLOURS) else "--",
                linewidth=1,
                label=outcome.titles[method],
            )
        labels = [name.removeprefix("test_error_") for name in names]
        axis.set_xticks(angles, labels, fontsize=6)


EXPERIMENT = Experiment(
    name="aligned_mtl.celeba",
    description=DESCRIPTION,
    quick=Settings(methods=METHODS, batch_size=32),
    full={
        "methods": FULL_METHODS,
        "epochs": 20,
        "seeds": 10,
        "batch_size": 256,
        "learning_rates": (1e-4, 5e-4, 1e-3),
    },
    load=load_attributes,
    tasks=functools.partial(attribute_tasks, shown=(ACCURACY,), outputs=2),
    build=build,
    num_tasks=40,
    stacked=True,
    paper=lambda _: Paper("Table 3 of Senushkin et al., 2023", SCORES),
    draw=draw_radar,
)

main = functools.partial(run, EXPERIMENT)
