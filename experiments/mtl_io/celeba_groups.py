"""Forty attributes in groups: Pascal et al., 2021, on CelebA."""

import functools
from typing import Any

import jax
from flax import nnx

from experiments.lab.tables import read_table
from experiments.lab.verdicts import Verdict
from experiments.lab.vision.experiment import Experiment, Paper, Settings, run
from experiments.lab.vision.report import Outcome
from experiments.mtl_io import claims
from experiments.mtl_io.attributes import ERROR, F1, attribute_tasks, load_attributes
from mtlopt.models import CelebaCNN, stack_heads

DESCRIPTION = """\
Shows that the pipeline works, but cannot check the paper's claims, because the rendered
images are too few (see task_groups).

A convolutional network of nine layers learns forty yes-or-no attributes of images.
Updates are made for all tasks together, for random groups of tasks in turn, or for one
task after the other. The groups share one optimizer state (IUS), or each group has its
own (IO). The experiment also compares GradNorm, PCGrad, MGDA-UB and Maximum Roaming.
The paper is Pascal et al., "Improved optimization strategies for deep multi-task
networks", 2021, Tables 3 and 4 and Fig. 3. ius_4 and io_4 have four groups; ius and io
have one group for each task. roaming uses IUS and roaming_io uses IO; both change their
masks during the first 31 % of the steps, as the published command does.

Without --data-dir, rendered rooms with their own attributes replace the faces of
CelebA.
"""

_GROUPED = ("ius_2", "ius_4", "ius_8", "ius_20", "ius", "io_2", "io_4", "io_8", "io_20")
METHODS = ("sum_tasks", "ius_4", "io_4", "gradnorm", "pcgrad", "mgda_ub")
FULL_METHODS = ("sum_tasks", *_GROUPED, "io", *METHODS[3:], "roaming", "roaming_io")
# Table 3.
SCORES = read_table(
    ("error", "f1"),
    """
    sum_tasks 9.20±0.02 68.66±0.24
    ius_2     9.16±0.03 68.69±0.21
    ius_4     9.13±0.02 69.01±0.27
    ius_8     9.10±0.03 68.93±0.38
    ius_20    9.20±0.05 68.82±0.11
    ius       9.27±0.05 68.97±0.17
    io_2      9.15±0.02 68.85±0.33
    io_4      9.11±0.02 69.48±0.15
    io_8      9.15±0.01 68.55±0.09
    io_20     9.23±0.02 68.61±0.31
    io        9.24±0.00 68.57±0.04
    gradnorm  9.16±0.03 69.16±0.19
    pcgrad    9.16±0.04 69.26±0.30
    mgda_ub   9.42±0.03 67.68±0.12
    roaming   9.12±0.00 69.21±0.31
    """,
)
# Table 4.
DISTANCES = {
    "sum_tasks": (1398.01, 99.66, 14.03),
    "ius_4": (5636.18, 223.83, 25.18),
    "io_4": (6560.56, 242.55, 27.05),
    "ius_8": (14955.87, 387.13, 38.63),
    "io_8": (13992.50, 369.67, 37.85),
    "ius": (65376.36, 837.32, 78.08),
    "io": (59627.39, 764.42, 78.00),
}


def build(settings: Settings, names: tuple[str, ...], key: jax.Array) -> Any:
    """Returns the paper's network or a narrow one."""
    heads = {name.replace(" ", "_"): (1,) for name in names}
    width = 4 if settings.small else 64
    return stack_heads(CelebaCNN(heads, width=width, rngs=nnx.Rngs(key)))


def verdicts(outcome: Outcome) -> list[Verdict]:
    """Returns the verdicts on the claims of Tables 3 and 4."""
    return claims.few_groups(outcome, ERROR) + claims.farther(outcome)


EXPERIMENT = Experiment(
    name="mtl_io.celeba_groups",
    description=DESCRIPTION,
    quick=Settings(methods=METHODS, batch_size=32),
    full={
        "methods": FULL_METHODS,
        "epochs": 15,
        "seeds": 3,
        "batch_size": 256,
        "learning_rates": (1e-5, 1e-4, 5e-4, 1e-3, 5e-3),
    },
    load=load_attributes,
    tasks=functools.partial(attribute_tasks, shown=(ERROR, F1), outputs=1),
    build=build,
    num_tasks=40,
    stacked=True,
    roams=0.31,  # published: 3,000 of 9,540
    alpha=0.2,  # published
    verdicts=verdicts,
    paper=lambda _: Paper("Table 3 of Pascal et al., 2021", SCORES, DISTANCES),
)

main = functools.partial(run, EXPERIMENT)
