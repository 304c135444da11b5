"""Points by quadrant and by circle: Tables 2 and 3 of the paper on ATE-SG."""

import dataclasses
from collections.abc import Sequence

from flax import nnx

from experiments.ate_sg.classifiers import (
    ONE_OF,
    Classifier,
    make_classifier,
    yes_or_no,
)
from experiments.ate_sg.report import METHOD, read_paper, run_experiment
from experiments.ate_sg.training import NAMES, PAPERS
from experiments.ate_sg.training import Settings as Common
from experiments.data.quadrants import load_quadrants
from experiments.lab.settings import parse
from mtlopt.models import MultiTaskMLP

NAME = "ate_sg.synthetic"
TASKS = {"quad": ONE_OF, "circ": yes_or_no()}

# Tables 2 and 3: recall, precision and F1 of the quadrant and the circle.
PAPER = read_paper(
    TASKS,
    """
    sgd_0.01_ate_1    0.997909 0.996667  0.997914 0.996677  0.997909 0.996665
    sgd_0.01_ate_10   0.997727 0.996758  0.997730 0.996766  0.997727 0.996758
    sgd_0.01_ate_100  0.997848 0.996576  0.997851 0.996587  0.997848 0.996575
    sgd_0.01_classic  0.997788 0.996697  0.997791 0.996703  0.997788 0.996694
    sgd_0.001_ate_1   0.998061 0.996606  0.998063 0.996614  0.998060 0.996605
    sgd_0.001_ate_10  0.998030 0.996606  0.998033 0.996616  0.998030 0.996606
    sgd_0.001_ate_100 0.998333 0.996818  0.998335 0.996826  0.998333 0.996817
    sgd_0.001_classic 0.998242 0.996758  0.998244 0.996767  0.998242 0.996757
    """,
)

DESCRIPTION = f"""\
Predicts the quadrant of a point, and whether it lies in the unit circle.

{METHOD}

Without options it uses the paper's data, layers of 32 units instead of 512, and
learning rates of three and ten times the paper's larger rate. With these rates, 5 seeds
train until the rate has fallen and training stops. --full takes the network of
1,580,037 parameters (Table 1) and the paper's settings. The paper prints "50,00"
epochs; we read this as 5,000.
"""

FULL = PAPERS | {"width": 512}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings(Common):
    """The settings of all ATE-SG experiments, and some more.

    Attributes:
      points: number of points in all three splits together.
      width: units of each hidden layer.
    """

    epochs: int = 2_500
    seeds: int = 5
    batch_size: int = 256
    learning_rates: tuple[float, ...] = (0.03, 0.1)
    points: int = 10_000
    width: int = 32


def load(settings: Settings) -> tuple[Classifier, str]:
    """Returns the problem, and a description of the network and the data."""
    data = load_quadrants(settings.points)
    width = settings.width
    problem = make_classifier(
        lambda key: MultiTaskMLP(
            trunk=(width,) * 3,
            heads={"quad": (width, width, 4), "circ": (width, width, 1)},
            rngs=nnx.Rngs(key),
        ),
        TASKS,
        data,
    )
    return problem, f"Dense layers of {width} on {data.source}"


def main(argv: Sequence[str]) -> None:
    """Runs the experiment."""
    settings = parse(NAME, DESCRIPTION, Settings(), argv, full=FULL, names=NAMES)
    run_experiment(NAME, "ATE-SG, synthetic data", settings, load, PAPER, argv)
