"""Fast line search on BERT: table 3 (Filatov and Merkulov, 2021)."""

import dataclasses
from collections.abc import Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import nnx

from experiments.data.sts import Sts, load_sts
from experiments.fast_line_search import experiment as shared
from experiments.fast_line_search.methods import Problem, make_problem
from experiments.fast_line_search.report import Subject
from experiments.lab.settings import parse
from mtlopt.models import bert, stack_heads

NAME = "fast_line_search.bert"
NUM_TASKS = 3

LIMITS = "This shows the times of Table 3. The paper gives no errors to compare with."
DESCRIPTION = f"""\
{LIMITS}

Trains BERT on three copies of one task, the similarity of two sentences, with line
searches and with eight learning rates of SGD. Also times a step of every method, as in
table 3 of "Fast Line Search for Multi-Task Learning" (Filatov and Merkulov, 2021). See
fast_line_search.multimnist for the methods. BERT starts from random parameters, not
from pretrained ones, and trains without dropout.

Without options the sentence pairs are generated in a toy language, which is not STS-B,
and BERT has 2 layers of 128. Timing needs no real data, because the times are the same
for any sentences of this length. --data-dir takes vocab.txt with GLUE's train.tsv and
dev.tsv, or with sts-train.csv and sts-test.csv.

--full takes BERT base, with 12 layers of 768, on all pairs. The paper gives no batch
size, length or learning rates for this experiment. We chose a batch size of 32, a
length of 128 and the eight rates of the other experiments.
"""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings(shared.Settings):
    """The settings of all line-search experiments, and the size of the network.

    Attributes:
      size: size of BERT.
      length: number of tokens in a sentence pair.
    """

    size: Literal["tiny", "small", "base"] = "tiny"
    length: int = 32


QUICK = Settings(
    methods=("fbls", "fbls_safe", "bls", "mgda_ub", "sgd"),
    epochs=2,
    seeds=1,
    batch_size=32,
    train_examples=320,
    test_examples=128,
)
OURS = {"epochs": 3, "batch_size": 32, "decay_every": 1, "length": 128}
FULL = shared.FULL | OURS | {"seeds": 3, "size": "base"}


def main(argv: Sequence[str]) -> None:
    """Runs the experiment with the options `argv`, see `DESCRIPTION`."""
    settings = parse(NAME, DESCRIPTION, QUICK, argv, full=FULL, names=shared.NAMES)
    data = shared.load(load_sts, settings, length=settings.length)
    problem = bert_problem(data, settings.size)
    subject = Subject(
        NAME,
        "Fast line search on BERT",
        f"BERT {settings.size}, {settings.length} tokens, from random parameters, with "
        "three heads of two layers that learn the same similarity. The loss is the "
        "squared error of a fifth of the similarity.",
        data.source,
        error="mean absolute error [points of 5]",
        factor=5.0,
        paper_times={"mgda_ub": "0.36", "fbls": "0.39", "bls": "1.26"},
        num_tasks=NUM_TASKS,
        times_from="Table 3",
        limits=LIMITS,
    )
    shared.run_experiment(subject, settings, problem, argv)


def bert_problem(data: Sts, size: str) -> Problem:
    """Returns BERT with three stacked heads of two layers, and data on the device."""

    def build(key: jax.Array) -> Any:
        model = bert(
            size,
            vocabulary_size=data.vocabulary_size,
            max_length=data.train.tokens.shape[1],
            rngs=nnx.Rngs(key),
        )
        return stack_heads(model)

    def judge(output: jax.Array, batch: Any, task: Any) -> dict[str, jax.Array]:
        del task  # all three are the same, as in the paper
        miss = output[:, 0] - batch.scores
        return {"loss": miss**2, "error": jnp.abs(miss)}

    def inputs(batch: Any) -> tuple[jax.Array, ...]:
        return batch.tokens, batch.segments, batch.mask

    return make_problem(build, NUM_TASKS, inputs, judge, data.train, data.test)
