"""Radio signals by modulation and by type: Tables 5 and 6 of the paper on ATE-SG."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from experiments.ate_sg.classifiers import INPUTS, make_problem, one_of
from experiments.ate_sg.experiment import DESCRIPTION, Experiment, run_experiment
from experiments.ate_sg.experiment import Settings as Common
from experiments.ate_sg.phases import Problem
from experiments.ate_sg.runs import Run
from experiments.data.wireless import MODULATIONS, SIGNAL_TYPES, load_wireless
from mtlopt.models import SignalNet

TASKS = {"mod": one_of(len(MODULATIONS)), "sig": one_of(len(SIGNAL_TYPES))}

# Tables 5 and 6: recall, precision and F1 of the modulation and the type.
PAPER = {
    Run("sgd", 1e-2, 1): (
        (0.916840, 0.961592),
        (0.921696, 0.962326),
        (0.917194, 0.960846),
    ),
    Run("sgd", 1e-2, 10): (
        (0.922131, 0.964031),
        (0.923422, 0.964155),
        (0.922331, 0.963479),
    ),
    Run("sgd", 1e-2, 100): (
        (0.923906, 0.965613),
        (0.925943, 0.965629),
        (0.924248, 0.965063),
    ),
    Run("sgd", 1e-2, None): (
        (0.926763, 0.967181),
        (0.927541, 0.967079),
        (0.926777, 0.966837),
    ),
    Run("sgd", 1e-3, 1): (
        (0.921241, 0.964786),
        (0.921954, 0.964736),
        (0.921131, 0.964292),
    ),
    Run("sgd", 1e-3, 10): (
        (0.924411, 0.965830),
        (0.924818, 0.965756),
        (0.924168, 0.965472),
    ),
    Run("sgd", 1e-3, 100): (
        (0.923430, 0.965166),
        (0.924457, 0.965090),
        (0.923388, 0.964671),
    ),
    Run("sgd", 1e-3, None): (
        (0.923516, 0.965527),
        (0.923931, 0.965450),
        (0.923406, 0.965076),
    ),
}


@dataclasses.dataclass(frozen=True)
class Settings(Common):
    """The common settings and these.

    Attributes:
      signals_each: of each of the nine waveforms, in all three splits.
      channels: of the first convolution; the others and the branches shrink alike.
      data_dir: file or folder of RadarCommDataset; None for simulated signals.
    """

    signals_each: int = 120
    channels: int = 16
    data_dir: str | None = None


def load(settings: Settings) -> tuple[Problem, str]:
    """Returns the problem and, in words, what is trained on what."""
    data = load_wireless(
        None if settings.data_dir is None else Path(settings.data_dir),
        num_each=settings.signals_each,
    )
    channels = settings.channels
    trunk = (channels, -(-channels // 2), -(-channels // 2))
    branch = (channels, channels)
    heads = {name: (*branch, task.num_classes) for name, task in TASKS.items()}
    problem = make_problem(
        lambda rngs: SignalNet(trunk, heads, rngs=rngs),
        TASKS,
        [
            {
                INPUTS: split.signals.reshape(len(split.signals), -1),
                "mod": split.modulations,
                "sig": split.signal_types,
            }
            for split in (data.train, data.validation, data.test)
        ],
    )
    sizes = ", ".join(map(str, trunk))
    return problem, f"Convolutions of {sizes} channels on {data.source}"


EXPERIMENT = Experiment(
    name="ate_sg.wireless",
    title="ATE-SG, wireless signals",
    description=DESCRIPTION.format(
        summary="Tells the modulation and the type of radio signals at 0 dB.",
        quick="1,080 simulated signals instead of the 63,000 of\n"
        "RadarCommDataset, a quarter of the channels, 2 seeds, 200 epochs.",
        full="63,000 signals, simulated or of --data-dir, and the network of\n"
        "26,382 parameters (Table 4)",
    ),
    quick=Settings(epochs=200, seeds=2, batch_size=16),
    full=Settings(
        epochs=5_000, seeds=11, batch_size=512, signals_each=7_000, channels=64
    ),
    load=load,
    paper=PAPER,
    options={
        "signals_each": "signals of each of the nine waveforms, in all splits",
        "channels": "of the first convolution; the other layers shrink alike",
    },
)


def main(argv: Sequence[str]) -> None:
    """Runs the experiment; see `ate.run_experiment`."""
    run_experiment(EXPERIMENT, argv)
