"""A ResNet-18 predicts 40 attributes: Senushkin et al., 2023 (Aligned-MTL), CelebA."""

import functools
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import nnx

from experiments.aligned_mtl.photographs import best
from experiments.lab.figures import COLOURS, drawing
from experiments.lab.folder import write_text
from experiments.lab.tables import markdown_table, read_table, select
from experiments.lab.verdicts import Verdict
from experiments.lab.vision.experiment import Experiment, Paper, Settings
from experiments.lab.vision.pretrained import run_photographs
from experiments.lab.vision.report import Outcome, in_order
from experiments.mtl_io.attributes import ACCURACY, attribute_tasks, load_attributes
from mtlopt.models import ResNet, celeba_resnet18, stack_heads

DESCRIPTION = """\
A ResNet-18 with a linear head of two classes for each task learns forty yes-or-no
attributes of images: Senushkin et al., "Independent component alignment for multi-task
learning", 2023, Table 3 and the radar chart of Fig. 4.

Without --data-dir the images are rendered rooms with their own attributes, a stand-in
for the faces of CelebA. Results on these images say nothing about photographs. If you
give --data-dir, CelebA is read. With --full the learning rate is multiplied by 0.85
every 10 epochs, as in Sener and Koltun's code; the paper says only that the rate falls.
No pretrained weights are used, because no file of ImageNet weights fits the first layer
of 3 x 3.
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
    """Draws the error of each attribute, with a ring for each method (Fig. 4)."""
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


def accuracy_table(outcome: Outcome) -> str:
    """Returns the accuracy of each attribute on the validation split (Table 5)."""
    best = select(outcome.chosen, name="best_epoch").astype({"value": int})
    best = best[["method", "seed", "value"]].rename(columns={"value": "epoch"})
    own = outcome.chosen[outcome.chosen["name"].str.startswith("validation_error_")]
    own = own.merge(best, on=["method", "seed", "epoch"])
    wide = 100 - 100 * own.pivot_table("value", "name", "method", sort=False)
    header = ["attribute", *(outcome.titles[name] for name in wide)]
    rows = [
        [name.removeprefix("validation_error_"), *(f"{each:.2f}" for each in row)]
        for name, row in zip(wide.index, wide.to_numpy(), strict=True)
    ]
    return markdown_table(header, rows)


def draw_and_list(outcome: Outcome, out: Path) -> None:
    """Draws the radar chart, and writes Table 5 into a file of its own."""
    draw_radar(outcome, out)
    title = f"# Validation accuracy by attribute [%]\n\n{outcome.source}."
    write_text(out / "attributes.md", f"{title}\n\n{accuracy_table(outcome)}\n")


def verdicts(outcome: Outcome) -> list[Verdict]:
    """Returns the verdicts on the claims of section 5.2."""
    claim = "Z-alignment is more accurate than MGDA-UB and uncertainty (Table 3)"
    others = ("mgda_ub", "uncertainty")
    return best(claim, outcome, "accuracy", "aligned_mtl_ub", others)


EXPERIMENT = Experiment(
    name="aligned_mtl.celeba",
    description=DESCRIPTION,
    quick=Settings(methods=METHODS, batch_size=32),
    full={
        "methods": FULL_METHODS,
        "epochs": 20,
        "seeds": 10,
        "batch_size": 256,
        "learning_rates": (1e-3,),
    },
    decay=lambda settings, epoch: 1.0 if settings.small else 0.85 ** (epoch // 10),
    load=load_attributes,
    tasks=functools.partial(attribute_tasks, shown=(ACCURACY,), outputs=2),
    build=build,
    num_tasks=40,
    stacked=True,
    paper=lambda _: Paper("Table 3 of Senushkin et al., 2023", SCORES),
    verdicts=verdicts,
    draw=draw_and_list,
)

main = functools.partial(run_photographs, EXPERIMENT)
