"""The program's data and losses, and what each framework gives."""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import mtlopt

BATCH, INPUTS, WIDTH = 8, 3, 4
OUTPUTS = {"cls": 3, "reg": 1, "tags": 2}
TASKS = tuple(OUTPUTS)
LABELS = {"*": "shared", "cls": "cls", "reg": "reg", "tags": "tags"}
# Of each step: the task that no sample has a label of.
ABSENT = ("reg", "tags", "reg", "tags")
RATE, DROP, MOMENTUM = 0.1, 0.25, 0.9


def matrices(params):
    """Biases and the scales of BatchNorm do not decay."""
    return jax.tree.map(lambda leaf: jnp.ndim(leaf) > 1, params)


ADAMW = optax.adamw(RATE, weight_decay=0.1, mask=matrices)


def make_batches():
    """Batches whose missing numbers are NaN, and `has`: which labels there are."""
    rng = np.random.default_rng(0)
    batches = []
    for absent in ABSENT:
        x = rng.normal(size=(BATCH, INPUTS)).astype(np.float32)
        has = {task: rng.random(BATCH) < 0.7 for task in TASKS}
        for task in TASKS:
            has[task][0] = True
            has[task] &= task != absent
        batches.append(
            {
                "x": x,
                "cls": rng.integers(OUTPUTS["cls"], size=BATCH),
                "reg": np.where(has["reg"], x[:, 0] * x[:, 1], np.float32(np.nan)),
                "tags": (x[:, : OUTPUTS["tags"]] > 0).astype(np.float32),
                "has": has,
            }
        )
    return batches


BATCHES = make_batches()
KEYS = jax.random.split(jax.random.key(1), len(BATCHES))


def present(batch):
    return {task: jnp.any(has) for task, has in batch["has"].items()}


def cls_loss(out, batch):
    return optax.softmax_cross_entropy_with_integer_labels(out, batch["cls"])


def reg_loss(out, batch):
    return (out[:, 0] - jnp.where(batch["has"]["reg"], batch["reg"], 0)) ** 2


def tags_loss(out, batch):
    return jnp.mean(optax.sigmoid_binary_cross_entropy(out, batch["tags"]), axis=1)


EACH = {"cls": cls_loss, "reg": reg_loss, "tags": tags_loss}


def mean_loss(task, out, batch):
    """Mean over the samples that have a label of the task."""
    has = batch["has"][task]
    return jnp.sum(jnp.where(has, EACH[task](out, batch), 0)) / jnp.sum(has)


@dataclasses.dataclass(frozen=True, eq=False)
class Program:
    """The network as functions of arrays.

    Attributes:
      params: parameters.
      state: BatchNorm's and, if the framework keeps it, dropout's.
      labels: rules for the parameters.
      encode: `encode(params, x, key, state) -> (z, state)`.
      head: `head(task, params, z, key, state) -> (outputs, state)`.
      state_of: `state_of(state, task)` is the state of one head.
    """

    params: Any
    state: Any
    labels: Any
    encode: Callable[..., Any]
    head: Callable[..., Any]
    state_of: Callable[..., Any]


class Trainer(NamedTuple):
    """How one trains with mtlopt.

    Attributes:
      start: makes a new run.
      step: `step(run, batch, key) -> (run, losses)`.
      arrays: from a run to a `mtlopt.Run` of arrays.
      save: from a run to the tree that is written to a file.
      load: from that tree to a run.
      traces: grows by one entry each time that `step` is traced.
    """

    start: Callable[..., Any]
    step: Callable[..., Any]
    arrays: Callable[..., Any]
    save: Callable[..., Any]
    load: Callable[..., Any]
    traces: list[None]


def on_device(tree):
    """As a restored run, for which else the same step would be compiled again."""
    return jax.device_put(tree, jax.devices()[0])


def functional_trainer(program, aggregator):
    """Of a program of pure functions: `task_grad(has_state=True)`, `train_step`."""

    def encode(params, batch, key, state):
        return program.encode(params, batch["x"], key, state)

    def loss_of(task):
        def loss(params, z, batch, key, state):
            out, state = program.head(task, params, z, key, state)
            return mean_loss(task, out, batch), state

        return loss

    oracle = mtlopt.task_grad(
        {task: loss_of(task) for task in TASKS},
        program.labels,
        encode=encode,
        has_state=True,
    )
    tx = optax.chain(aggregator, mtlopt.per_label(ADAMW, program.labels))
    train_step = mtlopt.train_step(oracle, tx)
    traces = []

    @jax.jit
    def step(run, batch, key):
        traces.append(None)
        run, output = train_step(run, batch, key, present=present(batch))
        return run, output.losses

    def start():
        run = mtlopt.Run(program.params, tx.init(program.params), program.state)
        return on_device(run)

    def same(run):
        return run

    return Trainer(start, step, same, same, same, traces)


def by_label(tree, labels, label):
    """The leaves of one label; the others are None."""
    return jax.tree.map(lambda leaf, own: leaf if own == label else None, tree, labels)
