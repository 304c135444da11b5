"""Points by quadrant and by circle: Tables 2 and 3 of the paper on ATE-SG."""

import dataclasses
from collections.abc import Sequence

from experiments.ate_sg.classifiers import INPUTS, make_problem, one_of, yes_or_no
from experiments.ate_sg.experiment import DESCRIPTION, Experiment, run_experiment
from experiments.ate_sg.experiment import Settings as Common
from experiments.ate_sg.phases import Problem
from experiments.ate_sg.runs import Run
from experiments.data.quadrants import load_quadrants
from mtlopt.models import MultiTaskMLP

TASKS = {"quad": one_of(4), "circ": yes_or_no()}

# Tables 2 and 3: recall, precision and F1 of the quadrant and the circle.
PAPER = {
    Run("sgd", 1e-2, 1): (
        (0.997909, 0.996667),
        (0.997914, 0.996677),
        (0.997909, 0.996665),
    ),
    Run("sgd", 1e-2, 10): (
        (0.997727, 0.996758),
        (0.997730, 0.996766),
        (0.997727, 0.996758),
    ),
    Run("sgd", 1e-2, 100): (
        (0.997848, 0.996576),
        (0.997851, 0.996587),
        (0.997848, 0.996575),
    ),
    Run("sgd", 1e-2, None): (
        (0.997788, 0.996697),
        (0.997791, 0.996703),
        (0.997788, 0.996694),
    ),
    Run("sgd", 1e-3, 1): (
        (0.998061, 0.996606),
        (0.998063, 0.996614),
        (0.998060, 0.996605),
    ),
    Run("sgd", 1e-3, 10): (
        (0.998030, 0.996606),
        (0.998033, 0.996616),
        (0.998030, 0.996606),
    ),
    Run("sgd", 1e-3, 100): (
        (0.998333, 0.996818),
        (0.998335, 0.996826),
        (0.998333, 0.996817),
    ),
    Run("sgd", 1e-3, None): (
        (0.998242, 0.996758),
        (0.998244, 0.996767),
        (0.998242, 0.996757),
    ),
}


@dataclasses.dataclass(frozen=True)
class Settings(Common):
    """The common settings and these.

    Attributes:
      points: in all three splits.
      width: of all hidden layers.
    """

    points: int = 10_000
    width: int = 64


def load(settings: Settings) -> tuple[Problem, str]:
    """Returns the problem and, in words, what is trained on what."""
    data = load_quadrants(settings.points)
    width = settings.width
    problem = make_problem(
        lambda rngs: MultiTaskMLP(
            trunk=(width,) * 3,
            heads={"quad": (width, width, 4), "circ": (width, width, 1)},
            rngs=rngs,
        ),
        TASKS,
        [
            {INPUTS: split.points, "quad": split.quadrants, "circ": split.circles}
            for split in (data.train, data.validation, data.test)
        ],
    )
    return problem, f"Dense layers of {width} on {data.source}"


EXPERIMENT = Experiment(
    name="ate_sg.synthetic",
    title="ATE-SG, synthetic data",
    description=DESCRIPTION.format(
        summary="Tells the quadrant of a point, and if it lies in the unit circle.",
        quick="the paper's data, layers of 64 instead of 512, 3 seeds, 300 epochs.",
        full="the network of 1,580,037 parameters (Table 1)",
    ),
    quick=Settings(epochs=300, seeds=3, batch_size=256),
    full=Settings(epochs=5_000, seeds=11, batch_size=256, width=512),
    load=load,
    paper=PAPER,
    options={
        "points": "number of points, in all three splits",
        "width": "of all hidden layers",
    },
)


def main(argv: Sequence[str]) -> None:
    """Runs the experiment; see `ate.run_experiment`."""
    run_experiment(EXPERIMENT, argv)
