"""The tasks of `task_groups`: forty attributes, or three kinds of labels."""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

import mtlopt
from experiments.data.attributes import label, measure, medians
from experiments.data.digits import Digits, DigitSet
from experiments.lab.problem import Problem, make_problem
from experiments.lab.vision.report import Metric
from experiments.mtl_io.attributes import ERROR, F1
from mtlopt.models import MultiTaskMLP, stack_heads

# For each metric the mean over a split, [runs, tasks].
Metrics = Mapping[str, np.ndarray]

_TRUNK = (32, 32)
_POOL = 2  # 28 x 28 pixels become 14 x 14
_NUM_PIXELS = (28 // _POOL) ** 2
_NUM_DIGITS = 10
NUM_ATTRIBUTES = 40
MIXED_TASKS = ("digit", "slant", "ink")


@dataclasses.dataclass(frozen=True, eq=False)
class Part:
    """The data, network and metrics of a part of the experiment."""

    problem: Problem
    # Function from parameters, state and batch to metrics of each example,
    # `[tasks, batch]`.
    score: Callable[[Any, Any, Any], dict[str, jax.Array]]
    # Function from the metrics' means over a split to the reported scores; `"loss"` is
    # by task.
    measures: Callable[[Metrics], dict[str, np.ndarray]]
    metrics: tuple[Metric, ...]  # the metrics of the tables
    source: str  # of the data


def attributes(digits: Digits) -> Part:
    """Returns forty binary tasks on the digits, with stacked linear heads."""
    thresholds = medians(digits.train.images)
    names = tuple(label(*digits.train, thresholds))

    def split(part: DigitSet) -> dict[str, jax.Array]:
        answers = np.stack(list(label(*part, thresholds).values()), axis=1)
        return {"image": _pixels(part.images), "answers": jnp.asarray(answers, float)}

    def build(key: jax.Array) -> Any:
        heads = dict.fromkeys(names, (1,))
        model = MultiTaskMLP(_NUM_PIXELS, _TRUNK, heads, rngs=nnx.Rngs(key))
        return stack_heads(model)

    def loss(model: Any, z: Any, task: jax.Array, batch: Any) -> jax.Array:
        logits = model.heads["stacked"](z)[:, 0]
        answers = batch["answers"][:, task]
        return jnp.mean(optax.sigmoid_binary_cross_entropy(logits, answers))

    losses = mtlopt.stacked(loss, len(names))
    problem = make_problem(build, losses, _encode, _splits(digits, split), tasks=names)

    def score(params: Any, state: Any, batch: Any) -> dict[str, jax.Array]:
        model = problem.network(params, state)
        z = _encode(model, batch)
        own = nnx.vmap(lambda head: head(z)[:, 0])
        logits, answers = own(model.heads["stacked"]), batch["answers"].T
        said = (logits > 0).astype(answers.dtype)
        return {
            "loss": optax.sigmoid_binary_cross_entropy(logits, answers),
            "error": jnp.abs(said - answers),
            # The parts of F1: they are means over examples, but F1 is not.
            "hit": said * answers,
            "said": said,
            "true": answers,
        }

    def measures(metrics: Metrics) -> dict[str, np.ndarray]:
        either = metrics["said"] + metrics["true"]
        f1 = 2 * metrics["hit"] / np.where(either == 0, 1, either)
        error = metrics["error"].mean(axis=1)
        return {"loss": metrics["loss"], "error": error, "f1": f1.mean(axis=1)}

    source = f"{NUM_ATTRIBUTES} attributes of {digits.source}"
    return Part(problem, score, measures, (ERROR, F1), source)


def mixed(digits: Digits) -> Part:
    """Returns a classification and two regressions of different scale.

    The tasks are the digit (cross-entropy), its slant (squared error of a tangent) and
    its ink (squared error, in percent of the image's area). The regression targets are
    centred on the mean of the training digits, but not scaled.
    """
    trained = _targets(digits.train)
    # The losses of the best constant predictions.
    counts = np.bincount(digits.train.labels, minlength=_NUM_DIGITS)
    shares = counts / counts.sum()
    entropy = -np.sum(shares * np.log(np.where(shares > 0, shares, 1)))
    constant = np.array([entropy, trained["slant"].var(), trained["ink"].var()])

    def split(part: DigitSet) -> dict[str, jax.Array]:
        centred = {
            task: jnp.asarray(values - trained[task].mean(), float)
            for task, values in _targets(part).items()
        }
        digit = jnp.asarray(part.labels)
        return {"image": _pixels(part.images), "digit": digit, **centred}

    def build(key: jax.Array) -> Any:
        heads = {"digit": (_NUM_DIGITS,), "slant": (1,), "ink": (1,)}
        return MultiTaskMLP(_NUM_PIXELS, _TRUNK, heads, rngs=nnx.Rngs(key))

    def example_losses(task: str, model: Any, z: Any, batch: Any) -> jax.Array:
        out = model.heads[task](z)
        if task == "digit":
            return optax.softmax_cross_entropy_with_integer_labels(out, batch[task])
        return (out[:, 0] - batch[task]) ** 2

    def loss(task: str, model: Any, z: Any, batch: Any) -> jax.Array:
        return jnp.mean(example_losses(task, model, z, batch))

    losses = {task: functools.partial(loss, task) for task in MIXED_TASKS}
    problem = make_problem(build, losses, _encode, _splits(digits, split))

    def score(params: Any, state: Any, batch: Any) -> dict[str, jax.Array]:
        model = problem.network(params, state)
        z = _encode(model, batch)
        losses = [example_losses(task, model, z, batch) for task in MIXED_TASKS]
        wrong = jnp.argmax(model.heads["digit"](z), axis=-1) != batch["digit"]
        errors = [wrong.astype(losses[0].dtype), *map(jnp.sqrt, losses[1:])]
        return {"loss": jnp.stack(losses), "error": jnp.stack(errors)}

    def measures(metrics: Metrics) -> dict[str, np.ndarray]:
        relative = metrics["loss"] / constant
        errors = zip(MIXED_TASKS, metrics["error"].T, strict=True)
        means = {"relative_loss": relative.mean(axis=1)}
        return {"loss": relative, **means, **{f"{t}_error": own for t, own in errors}}

    shown = (
        Metric("relative_loss", "relative loss", "", False, 1, 4),
        Metric("digit_error", "digit error [%]", "digit", False, 100),
        Metric("slant_error", "slant error", "slant", False, 1, 4),
        Metric("ink_error", "ink error [% of area]", "ink", False, 1, 3),
    )
    source = f"digit, slant and ink of {digits.source}"
    return Part(problem, score, measures, shown, source)


PARTS = {"attributes": attributes, "mixed": mixed}


def _encode(model: Any, batch: Any) -> jax.Array:
    return model.encode(batch["image"])


def _splits(digits: Digits, split: Callable[[DigitSet], Any]) -> dict[str, Any]:
    names = ("train", "validation", "test")
    return {name: split(getattr(digits, name)) for name in names}


def _pixels(images: np.ndarray) -> jax.Array:
    """Averages blocks of pixels; the results are from 0 to 1, `[num, 196]`."""
    side = images.shape[1] // _POOL
    blocks = images.reshape(-1, side, _POOL, side, _POOL) / 255.0
    return jnp.asarray(blocks.mean(axis=(2, 4)).reshape(len(images), -1), float)


def _targets(part: DigitSet) -> dict[str, np.ndarray]:
    measures = measure(part.images)
    area = part.images.shape[1] * part.images.shape[2]
    return {"slant": measures["slant"], "ink": 100 * measures["ink"] / area}
