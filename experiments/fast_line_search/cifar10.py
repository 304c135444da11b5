"""Fast line search on CIFAR-10: figures 5 and 6 (Filatov and Merkulov, 2021)."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import optax
from flax import nnx

from experiments.data.cifar10 import Cifar10, load_cifar10
from experiments.fast_line_search import experiment as shared
from experiments.fast_line_search.methods import Problem, make_problem
from experiments.fast_line_search.report import Subject
from experiments.lab.settings import parse
from mtlopt.models import resnet, stack_heads

NAME = "fast_line_search.cifar10"
NUM_TASKS = 10

LIMITS = "Few steps on drawn images show the cost of a step, but nothing about errors."
DESCRIPTION = f"""\
{LIMITS}

Trains a ResNet-18 on ten tasks with line searches and with eight learning rates of SGD.
Each task separates one class of small images from the rest. The experiment makes
figures 5 and 6 of "Fast Line Search for Multi-Task Learning" (Filatov and Merkulov,
2021). See fast_line_search.multimnist for the methods.

Without options it draws images of ten shapes, which are not CIFAR-10. The ResNet-18 has
1/16 of its width and makes few steps, so a run takes minutes on two cores. --data-dir
reads the binary release (cifar-10-binary.tar.gz, unpacked). It rejects the pickled
release, because unpickling a file runs whatever code it holds.

--full takes the paper's settings. The error of a task is the share of wrong answers to
"this class or not". A network that always answers no has an error of 10 %.
"""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings(shared.Settings):
    """The settings of all line-search experiments, and the width of the network.

    Attributes:
      width: channels of the first stage; 64 is ResNet-18.
    """

    width: int = 4


QUICK = Settings(
    methods=("fbls", "fbls_decay", "fbls_safe", "bls", "mgda_ub", "sgd"),
    epochs=2,
    seeds=1,
    train_examples=640,
    test_examples=256,
)
PAPERS = ("fbls", "fbls_decay", "bls", "mgda_ub", "sgd")
FULL = shared.FULL | {"epochs": 50, "seeds": 3, "methods": PAPERS, "width": 64}


def main(argv: Sequence[str]) -> None:
    """Runs the experiment with the options `argv`, see `DESCRIPTION`."""
    settings = parse(NAME, DESCRIPTION, QUICK, argv, full=FULL, names=shared.NAMES)
    data = shared.load(load_cifar10, settings)
    subject = Subject(
        NAME,
        "Fast line search on CIFAR-10",
        f"ResNet-18 with {settings.width} channels in its first stage (64 in the "
        "paper) and ten linear heads; saying no to every class has an error of 10 %.",
        data.source,
        paper_times={"mgda_ub": "0.15", "fbls": "0.15", "bls": "1.18"},
        num_tasks=NUM_TASKS,
        errors_from="Fig. 5",
        limits="" if settings.full else LIMITS,
    )
    problem = resnet_problem(data, settings.width)
    shared.run_experiment(subject, settings, problem, argv)


def resnet_problem(data: Cifar10, width: int) -> Problem:
    """Returns ResNet-18 with ten stacked one-vs-rest heads, and data on the device."""

    def build(key: jax.Array) -> Any:
        heads, rngs = {f"class{i}": (1,) for i in range(NUM_TASKS)}, nnx.Rngs(key)
        return stack_heads(resnet(18, heads, width=width, small_images=True, rngs=rngs))

    def images(batch: Any) -> tuple[jax.Array]:
        return (batch.images,)

    return make_problem(build, NUM_TASKS, images, one_vs_rest, data.train, data.test)


def one_vs_rest(logits: jax.Array, batch: Any, task: Any) -> dict[str, jax.Array]:
    """Returns cross entropy and error of "this class or not", for each example."""
    is_class = batch.labels == task
    losses = optax.sigmoid_binary_cross_entropy(logits[:, 0], is_class * 1.0)
    return {"loss": losses, "error": ((logits[:, 0] > 0) != is_class) * 1.0}
