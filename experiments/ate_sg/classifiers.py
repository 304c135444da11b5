"""Classification networks of several tasks, made ready for training in phases."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

import mtlopt
from experiments.ate_sg.phases import Model, Problem
from experiments.lab.metrics import weighted_scores

INPUTS = "inputs"


class Task(NamedTuple):
    """What a head's logits mean.

    Attributes:
      num_classes: classes of the labels.
      losses: from logits `[batch, outputs]` and labels to the losses `[batch]`.
      predict: from logits to classes, in the shape of the labels.
    """

    num_classes: int
    losses: Callable[[jax.Array, jax.Array], jax.Array]
    predict: Callable[[jax.Array], jax.Array]


def one_of(num_classes: int) -> Task:
    """Returns the task to find one of several classes; labels are int `[batch]`.

    Examples:
      >>> one_of(3).predict(jnp.array([[0.0, 2.0, 1.0]]))
      Array([1], dtype=int32)
    """
    return Task(
        num_classes,
        optax.softmax_cross_entropy_with_integer_labels,
        lambda logits: jnp.argmax(logits, axis=-1),
    )


def yes_or_no(positive: float = 1.0, negative: float = 1.0) -> Task:
    r"""Returns the task to answer one or several questions; labels are 0 or 1.

    .. math:: \ell = -\sum_{i=1}^m \mu_1 \gamma_i \log \hat\gamma_i
        + \mu_0 (1 - \gamma_i) \log (1 - \hat\gamma_i)

    with the sigmoid :math:`\hat\gamma_i` of a logit. Labels are `[batch, m]`, or
    `[batch]` for one question. Scores take all answers of the task as one list.

    Args:
      positive: :math:`\mu_1`.
      negative: :math:`\mu_0`.

    References:
      Bellavia et al., ATE-SG, section 4.2.2.
    """

    def losses(logits: jax.Array, labels: jax.Array) -> jax.Array:
        truth = labels.reshape(logits.shape).astype(logits.dtype)
        terms = positive * truth * jax.nn.log_sigmoid(logits)
        terms += negative * (1 - truth) * jax.nn.log_sigmoid(-logits)
        return -jnp.sum(terms, axis=-1)

    return Task(2, losses, lambda logits: (logits > 0).astype(jnp.int32))


def make_problem(
    make_model: Callable[[nnx.Rngs], Any],
    tasks: Mapping[str, Task],
    splits: Sequence[Mapping[str, np.ndarray]],
    prepare: Callable[[jax.Array], jax.Array] = lambda inputs: inputs,
) -> Problem:
    """Makes pure functions of a network and puts the data on the device.

    Args:
      make_model: builds the network, with a head for each task.
      tasks: what the heads are for.
      splits: train, validation and test, each with `INPUTS` and the tasks' labels.
      prepare: what the network is given instead of a batch of inputs.

    Returns:
      The problem; its loss is the sum of the tasks' mean losses.
    """

    def loss(task: str) -> Callable[..., jax.Array]:
        def mean(model: Any, z: Any, batch: Any) -> jax.Array:
            return jnp.mean(tasks[task].losses(model.heads[task](z), batch[task]))

        return mean

    def encode(model: Any, batch: Any) -> Any:
        return model.encode(prepare(batch[INPUTS]))

    of_modules = mtlopt.nnx.task_grad(
        {task: loss(task) for task in tasks},
        {"encoder": "shared", **{f"heads/{task}": task for task in tasks}},
        encode=encode,
    )
    # The functions need the shapes only.
    shapes = nnx.eval_shape(lambda: make_model(nnx.Rngs(0)))
    _, _, oracle, merge = of_modules.pure(shapes)

    def init(key: jax.Array) -> Model:
        params, stats, _, _ = of_modules.pure(make_model(nnx.Rngs(key)))
        return Model(params, stats)

    def network(model: Model) -> Any:
        module = merge(*model)
        module.eval()
        return module

    def losses(model: Model, z: Any, batch: Any) -> jax.Array:
        heads = network(model).heads
        each = [
            task.losses(heads[name](z), batch[name]) for name, task in tasks.items()
        ]
        return jnp.stack(each)

    def scores(model: Model, z: Any, batch: Any) -> dict[str, jax.Array]:
        heads, each = network(model).heads, []
        for name, task in tasks.items():
            classes = task.predict(heads[name](z)).reshape(-1)
            labels = batch[name].reshape(-1)
            each.append(weighted_scores(classes, labels, task.num_classes)._asdict())
        return {metric: jnp.stack([own[metric] for own in each]) for metric in each[0]}

    def encode_batch(model: Model, batch: Any) -> Any:
        return encode(network(model), batch)

    train, validation, test = (jax.tree.map(jnp.asarray, dict(s)) for s in splits)
    return Problem(oracle, init, encode_batch, losses, scores, train, validation, test)
