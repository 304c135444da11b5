"""Radio signals by modulation and by type: Tables 5 and 6 of the paper on ATE-SG."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from flax import nnx

from experiments.ate_sg.classifiers import ONE_OF, Classifier, make_classifier
from experiments.ate_sg.report import METHOD, read_paper, run_experiment
from experiments.ate_sg.training import NAMES, PAPERS
from experiments.ate_sg.training import Settings as Common
from experiments.data.wireless import MODULATIONS, SIGNAL_TYPES, load_wireless
from experiments.lab.settings import parse
from mtlopt.models import SignalNet

NAME = "ate_sg.wireless"
TASKS = {"mod": ONE_OF, "sig": ONE_OF}

# Tables 5 and 6: recall, precision and F1 of the modulation and the type.
PAPER = read_paper(
    TASKS,
    """
    sgd_0.01_ate_1    0.916840 0.961592  0.921696 0.962326  0.917194 0.960846
    sgd_0.01_ate_10   0.922131 0.964031  0.923422 0.964155  0.922331 0.963479
    sgd_0.01_ate_100  0.923906 0.965613  0.925943 0.965629  0.924248 0.965063
    sgd_0.01_classic  0.926763 0.967181  0.927541 0.967079  0.926777 0.966837
    sgd_0.001_ate_1   0.921241 0.964786  0.921954 0.964736  0.921131 0.964292
    sgd_0.001_ate_10  0.924411 0.965830  0.924818 0.965756  0.924168 0.965472
    sgd_0.001_ate_100 0.923430 0.965166  0.924457 0.965090  0.923388 0.964671
    sgd_0.001_classic 0.923516 0.965527  0.923931 0.965450  0.923406 0.965076
    """,
)

LIMIT = """\
Simulated signals cannot show the paper's scores. Four radars differ only in their
pulses, so the type is harder to tell than the modulation. For real signals the type is
easier."""

DESCRIPTION = f"""\
Predicts the modulation and the type of radio signals at 0 dB. Without --data-dir
the signals are simulated. {LIMIT}

{METHOD}

Without options it uses 1,080 simulated signals instead of the 63,000 of
RadarCommDataset, a quarter of the channels, three times the paper's larger learning
rate, and 3 seeds. --full takes 63,000 signals, simulated or from --data-dir, the
network of 26,382 parameters (Table 4), and the paper's settings.
"""

FULL = PAPERS | {"batch_size": 512, "signals_each": 7_000, "channels": 64}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings(Common):
    """The settings of all ATE-SG experiments, and some more.

    Attributes:
      signals_each: signals of each of the nine waveforms, in all three splits together.
      channels: channels of the first convolution; the other layers and the branches
        shrink by the same factor.
      data_dir: file or folder of RadarCommDataset; None means simulated signals.
    """

    epochs: int = 1_500
    seeds: int = 3
    batch_size: int = 16
    learning_rates: tuple[float, ...] = (0.03,)
    signals_each: int = 120
    channels: int = 16
    data_dir: str | None = None


def load(settings: Settings) -> tuple[Classifier, str]:
    """Returns the problem, and a description of the network and the data."""
    data = load_wireless(
        None if settings.data_dir is None else Path(settings.data_dir),
        num_each=settings.signals_each,
    )
    channels = settings.channels
    trunk = (channels, -(-channels // 2), -(-channels // 2))
    sizes = {"mod": len(MODULATIONS), "sig": len(SIGNAL_TYPES)}
    heads = {task: (channels, channels, size) for task, size in sizes.items()}
    problem = make_classifier(
        lambda key: SignalNet(trunk, heads, rngs=nnx.Rngs(key)),
        TASKS,
        data,
        prepare=lambda signals: signals.reshape(len(signals), -1),
    )
    widths = ", ".join(map(str, trunk))
    return problem, f"Convolutions of {widths} channels on {data.source}"


def main(argv: Sequence[str]) -> None:
    """Runs the experiment."""
    settings = parse(NAME, DESCRIPTION, Settings(), argv, full=FULL, names=NAMES)
    title, limit = "ATE-SG, wireless signals", "" if settings.data_dir else LIMIT
    run_experiment(NAME, title, settings, load, PAPER, argv, limit)
