"""What the tasks of `task_groups` are: forty attributes, or three kinds of labels."""

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import mtlopt
from experiments.data.attributes import label, measure, medians
from experiments.data.digits import Digits, DigitSet, load_digits
from experiments.lab.training import Problem, network_functions

# For each metric its mean over a split, [runs, tasks].
Metrics = Mapping[str, np.ndarray]

_TRUNK = (32, 32)
_POOL = 2  # 28 x 28 pixels become 14 x 14
_NUM_DIGITS = 10
MIXED_TASKS = ("digit", "slant", "ink")


@dataclasses.dataclass(frozen=True, eq=False)
class Part:
    """A part of the experiment.

    Attributes:
      problem: what is trained.
      labels: who owns which leaf of the parameters.
      measures: from the metrics of a split to the numbers that are reported.
      criterion: the measure that chooses, the smaller the better.
      source: where the data come from, in words.
    """

    problem: Problem
    labels: Mapping[str, str]
    measures: Callable[[Metrics], dict[str, np.ndarray]]
    criterion: str
    source: str


def load(data_dir: str | None) -> Digits:
    """Loads the digits that both parts learn from."""
    return load_digits(None if data_dir is None else Path(data_dir))


def attributes(digits: Digits) -> Part:
    """Returns forty binary tasks on the digits, with stacked linear heads."""
    from flax import nnx

    from mtlopt.models import MultiTaskMLP, stack_heads

    thresholds = medians(digits.train.images)
    names = tuple(label(*digits.train, thresholds))

    def split(part: DigitSet) -> dict[str, jax.Array]:
        answers = np.stack(list(label(*part, thresholds).values()), axis=1)
        return {"image": _pixels(part.images), "answers": jnp.asarray(answers, float)}

    def make_model(key: jax.Array) -> Any:
        heads = dict.fromkeys(names, (1,))
        model = MultiTaskMLP(_num_pixels(), _TRUNK, heads, rngs=nnx.Rngs(key))
        return stack_heads(model)

    init, merge = network_functions(make_model)

    def loss(params: Any, z: Any, task: jax.Array, batch: Any) -> jax.Array:
        logits = merge(params).heads["stacked"](z)[:, 0]
        answers = batch["answers"][:, task]
        return jnp.mean(optax.sigmoid_binary_cross_entropy(logits, answers))

    def score(params: Any, batch: Any) -> dict[str, jax.Array]:
        model = merge(params)
        z = model.encode(batch["image"])
        own = nnx.vmap(lambda head: head(z)[:, 0])
        logits, answers = own(model.heads["stacked"]), batch["answers"].T
        said = (logits > 0).astype(answers.dtype)
        return {
            "loss": optax.sigmoid_binary_cross_entropy(logits, answers),
            "error": jnp.abs(said - answers),
            # What F1 is made of: its parts are means over examples, itself is not.
            "hit": said * answers,
            "said": said,
            "true": answers,
        }

    def measures(metrics: Metrics) -> dict[str, np.ndarray]:
        either = metrics["said"] + metrics["true"]
        f1 = 2 * metrics["hit"] / np.where(either == 0, 1, either)
        return {
            "loss": metrics["loss"].mean(axis=1),
            "error": metrics["error"].mean(axis=1),
            "f1": f1.mean(axis=1),
        }

    labels = {"encoder": "shared", "heads": "stacked"}
    oracle = mtlopt.task_grad(
        mtlopt.stacked(loss, len(names)),
        labels,
        encode=lambda params, batch: merge(params).encode(batch["image"]),
        tasks=names,
    )
    splits = map(split, (digits.train, digits.validation, digits.test))
    source = f"40 attributes of {digits.source}"
    return Part(Problem(oracle, init, score, *splits), labels, measures, "loss", source)


def mixed(digits: Digits) -> Part:
    """Returns a classification and two regressions of different scale.

    The tasks are the digit (cross-entropy), its slant (squared error of a tangent) and
    its ink (squared error, in percent of the image's area). The regressions are centred
    on the mean of the training digits and not scaled.
    """
    trained = _targets(digits.train)
    means = {task: trained[task].mean() for task in ("slant", "ink")}
    # The losses of the best constant predictions.
    counts = np.bincount(digits.train.labels, minlength=_NUM_DIGITS)
    shares = counts / counts.sum()
    entropy = -np.sum(shares * np.log(np.where(shares > 0, shares, 1)))
    constant = np.array([entropy, trained["slant"].var(), trained["ink"].var()])

    def split(part: DigitSet) -> dict[str, jax.Array]:
        targets = _targets(part)
        centred = {
            task: jnp.asarray(targets[task] - mean, float)
            for task, mean in means.items()
        }
        return {
            "image": _pixels(part.images),
            "digit": jnp.asarray(part.labels),
            **centred,
        }

    def make_model(key: jax.Array) -> Any:
        from flax import nnx

        from mtlopt.models import MultiTaskMLP

        heads = {"digit": (_NUM_DIGITS,), "slant": (1,), "ink": (1,)}
        return MultiTaskMLP(_num_pixels(), _TRUNK, heads, rngs=nnx.Rngs(key))

    init, merge = network_functions(make_model)

    def example_losses(task: str, model: Any, z: Any, batch: Any) -> jax.Array:
        out = model.heads[task](z)
        if task == "digit":
            return optax.softmax_cross_entropy_with_integer_labels(out, batch[task])
        return (out[:, 0] - batch[task]) ** 2

    def make_loss(task: str) -> Callable[..., jax.Array]:
        def loss(params: Any, z: Any, batch: Any) -> jax.Array:
            return jnp.mean(example_losses(task, merge(params), z, batch))

        return loss

    def score(params: Any, batch: Any) -> dict[str, jax.Array]:
        model = merge(params)
        z = model.encode(batch["image"])
        losses = [example_losses(task, model, z, batch) for task in MIXED_TASKS]
        wrong = jnp.argmax(model.heads["digit"](z), axis=-1) != batch["digit"]
        errors = [wrong.astype(losses[0].dtype), *map(jnp.sqrt, losses[1:])]
        return {"loss": jnp.stack(losses), "error": jnp.stack(errors)}

    def measures(metrics: Metrics) -> dict[str, np.ndarray]:
        numbers = {
            "loss": metrics["loss"].mean(axis=1),
            "relative_loss": (metrics["loss"] / constant).mean(axis=1),
        }
        for index, task in enumerate(MIXED_TASKS):
            for name in ("loss", "error"):
                numbers[f"{task}_{name}"] = metrics[name][:, index]
        return numbers

    labels = {"encoder": "shared", **{f"heads/{task}": task for task in MIXED_TASKS}}
    oracle = mtlopt.task_grad(
        {task: make_loss(task) for task in MIXED_TASKS},
        labels,
        encode=lambda params, batch: merge(params).encode(batch["image"]),
    )
    splits = map(split, (digits.train, digits.validation, digits.test))
    source = f"digit, slant and ink of {digits.source}"
    return Part(
        Problem(oracle, init, score, *splits),
        labels,
        measures,
        "relative_loss",
        source,
    )


PARTS = {"attributes": attributes, "mixed": mixed}


def _num_pixels() -> int:
    return (28 // _POOL) ** 2


def _pixels(images: np.ndarray) -> jax.Array:
    """Averages blocks of pixels: from 0 to 1, `[num, 196]`."""
    side = images.shape[1] // _POOL
    blocks = images.reshape(-1, side, _POOL, side, _POOL) / 255.0
    return jnp.asarray(blocks.mean(axis=(2, 4)).reshape(len(images), -1), float)


def _targets(part: DigitSet) -> dict[str, np.ndarray]:
    measures = measure(part.images)
    area = part.images.shape[1] * part.images.shape[2]
    return {"slant": measures["slant"], "ink": 100 * measures["ink"] / area}
