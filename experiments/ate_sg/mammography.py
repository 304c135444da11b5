"""Calcifications in mammograms, three tasks: Table 8 of the paper on ATE-SG."""

import dataclasses
import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import jax
import jax.numpy as jnp
from flax import nnx

from experiments.ate_sg.classifiers import Classifier, make_classifier, yes_or_no
from experiments.ate_sg.report import METHOD, read_paper, run_experiment
from experiments.ate_sg.training import NAMES, PAPERS
from experiments.ate_sg.training import Settings as Common
from experiments.data.mammography import load_mammography
from experiments.lab.settings import parse
from mtlopt.models import ResNet, mammography_resnet50

NAME = "ate_sg.mammography"
# Section 4.2.2: positive labels of the first two tasks are rare.
TASKS = {
    "task1": yes_or_no(positive=1.5, negative=0.5),
    "task2": yes_or_no(positive=1.5, negative=0.5),
    "task3": yes_or_no(),
}

# Table 8: recall, precision and F1 of the three tasks.
PAPER = read_paper(
    TASKS,
    """
    sgd_0.001_ate_1   0.8679 0.9145 0.6430  0.8797 0.9189 0.6324  0.8725 0.9165 0.6315
    sgd_0.001_ate_10  0.8698 0.9110 0.6534  0.8821 0.9178 0.6418  0.8746 0.9141 0.6364
    sgd_0.001_classic 0.8721 0.9116 0.6485  0.8838 0.9169 0.6383  0.8767 0.9141 0.6323
    adam_0.001_ate_1  0.8741 0.9180 0.6368  0.8848 0.9197 0.6296  0.8783 0.9186 0.5853
    adam_0.001_ate_10 0.8783 0.9176 0.6301  0.8849 0.9189 0.6202  0.8809 0.9181 0.5619
    adam_0.001_classic 0.8726 0.9186 0.6436  0.8822 0.9202 0.6376  0.8765 0.9194 0.5846
    """,
)

LIMIT = """\
Drawn images show how trainings proceed, but cannot show the paper's scores."""

DESCRIPTION = f"""\
Classifies calcifications by distribution, type and malignancy, with SG and with Adam.
Without --data-dir the images are drawn. {LIMIT}

{METHOD}

Without options it uses 96 drawn images of 32 x 32 pixels instead of the 1,332 of 224 x
224 in MedIMeta's mammo_calc, two residual blocks of 8 and 16 channels, and 3 seeds.
With --full it takes 1,332 images, drawn or from --data-dir, ResNet-50 (Table 7), and
the paper's settings. The paper prints results for --learning-rates 0.001 --phases 1 10.
"""

FULL = PAPERS | {
    "phases": (1, 10, 100),
    "network": "resnet50",
    "train_images": 1_332,
    "validation_images": 214,
    "test_images": 326,
    "side": 224,
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings(Common):
    """The settings of all ATE-SG experiments, and some more.

    Attributes:
      network: two residual blocks, or the paper's network.
      train_images: number of images in the training split.
      validation_images: number of images in the validation split.
      test_images: number of images in the test split.
      side: height and width of the images in pixels.
      data_dir: folder of MedIMeta's mammo_calc; None means drawn images.
    """

    epochs: int = 1_500
    seeds: int = 3
    batch_size: int = 32
    optimizers: tuple[str, ...] = ("sgd", "adam")
    learning_rates: tuple[float, ...] = (0.01,)
    phases: tuple[int, ...] = (1, 10)
    network: Literal["small", "resnet50"] = "small"
    train_images: int = 96
    validation_images: int = 48
    test_images: int = 96
    side: int = 32
    data_dir: str | None = None


def small_resnet(key: jax.Array) -> ResNet:
    """Makes two residual blocks, and branches that are small in proportion."""
    outputs = {"task1": 5, "task2": 14, "task3": 1}
    return ResNet(
        (1, 1),
        {task: (16, size) for task, size in outputs.items()},
        width=8,
        head_activation=functools.partial(nnx.leaky_relu, negative_slope=0.2),
        rngs=nnx.Rngs(key),
    )


NETWORKS = {
    "small": small_resnet,
    "resnet50": lambda key: mammography_resnet50(rngs=nnx.Rngs(key)),
}


def load(settings: Settings) -> tuple[Classifier, str]:
    """Returns the problem, and a description of the network and the data."""
    data = load_mammography(
        None if settings.data_dir is None else Path(settings.data_dir),
        num_train=settings.train_images,
        num_validation=settings.validation_images,
        num_test=settings.test_images,
        side=settings.side,
    )
    problem = make_classifier(
        NETWORKS[settings.network],
        TASKS,
        data,
        prepare=lambda images: jnp.repeat(images, 3, axis=-1),
    )
    name = {"small": "A small ResNet", "resnet50": "ResNet-50"}[settings.network]
    return problem, f"{name} on {data.source}"


def main(argv: Sequence[str]) -> None:
    """Runs the experiment."""
    settings = parse(NAME, DESCRIPTION, Settings(), argv, full=FULL, names=NAMES)
    title, limit = "ATE-SG, ATE-Adam, mammography", "" if settings.data_dir else LIMIT
    run_experiment(NAME, title, settings, load, PAPER, argv, limit)
