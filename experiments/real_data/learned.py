"""Problems with targets: molecules in raw or standardised units, and yeast genes."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import mtlopt
from experiments.data import molecules, yeast
from experiments.data.splits import Splits
from experiments.lab.settings import loaded
from experiments.real_data.problem import Problem, PyTree, dense

_HIDDEN, _BATCH = 64, 64
_POWERS = (0.0, 0.25, 0.5, 0.75, 1.0, 1.25, 1.5)  # of one over the variances


def load_molecules(*, standardised: bool = False) -> Problem:
    """Six properties of a molecule from its fingerprint, learned by squared errors."""
    data = loaded(molecules.load_molecules)
    about: Any = {"tasks": molecules.TARGETS, "point_loss": optax.squared_error}
    mean, std = data.train.y.mean(axis=0), data.train.y.std(axis=0)
    about["steps"] = 1_500
    scaled = regress(data, change=lambda y: (y - mean) / std, **about)
    return scaled if standardised else regress(data, standardised=scaled, **about)


def load_yeast() -> Problem:
    """Fourteen labels of a gene, with cross-entropy: tasks of one kind and size."""
    return regress(
        loaded(yeast.load_yeast),
        tasks=[f"label {number + 1}" for number in range(yeast.NUM_LABELS)],
        steps=300,
        point_loss=optax.sigmoid_binary_cross_entropy,
        constant=lambda share: np.log(share / (1 - share)),
    )


def regress(
    data: Splits[Any],
    *,
    tasks: Sequence[str],
    point_loss: Callable[[Any, Any], jax.Array],
    change: Callable[[np.ndarray], np.ndarray] = lambda y: y,
    constant: Callable[[np.ndarray], np.ndarray] = lambda mean: mean,
    **about: Any,
) -> Problem:
    """Returns the problem of a dense layer and a linear head for each column.

    `change` is applied to the targets. Errors are losses divided by the losses of the
    best constant predictions; `constant` maps a mean to such a prediction.
    """
    splits = {}
    for name in ("train", "validation", "test"):
        x, y = getattr(data, name)
        best = np.broadcast_to(constant(change(y).mean(axis=0)), y.shape)
        x, y, best = (jnp.asarray(own, float) for own in (x, change(y), best))
        splits[name] = {"x": x, "y": y, "least": point_loss(best, y).mean(axis=0)}
    num_train, num_inputs = data.train.x.shape

    def init(key: jax.Array) -> PyTree:
        hidden, last = dense(key, (num_inputs, _HIDDEN, len(tasks)))
        return {"trunk": hidden, "heads": {"w": last["w"].T, "b": last["b"]}}

    def encode(params: PyTree, batch: PyTree) -> jax.Array:
        return jax.nn.relu(batch["x"] @ params["trunk"]["w"] + params["trunk"]["b"])

    def head(params: PyTree, z: jax.Array, task: jax.Array, batch: PyTree) -> jax.Array:
        out = z @ params["heads"]["w"] + params["heads"]["b"]
        return jnp.mean(point_loss(out, batch["y"][:, task]))

    def draw(key: jax.Array, train: PyTree) -> PyTree:
        rows = jax.random.randint(key, (_BATCH,), 0, num_train)
        return {name: train[name][rows] for name in ("x", "y")}

    labels = {"trunk": "shared", "heads": "stacked"}
    heads = mtlopt.stacked(head, len(tasks))
    oracle = mtlopt.task_grad(heads, labels, encode=encode, tasks=tasks)
    inverse = 1 / change(data.train.y).var(axis=0)
    # The mean is one, so that a learning rate has the same meaning for all.
    weightings = {
        f"1/variance^{power:g}": list(inverse**power / np.mean(inverse**power))
        for power in _POWERS
    }
    return Problem(
        oracle=oracle,
        init=init,
        draw=draw,
        errors=lambda params, split: oracle.losses(params, split) / split["least"],
        parts=tasks,
        splits=splits,
        weightings=weightings,
        source=data.source,
        steps_per_epoch=num_train // _BATCH,
        **about,
    )
