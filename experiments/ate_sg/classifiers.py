"""Classification networks with several tasks, for training in phases."""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.data.splits import Splits
from experiments.lab.batches import map_batches
from experiments.lab.problem import Problem, make_problem

PyTree = Any
Model = tuple[PyTree, PyTree]  # parameters, and statistics of BatchNorm
INPUTS = "inputs"


class Head(NamedTuple):
    """The meaning of a head's logits `[batch, outputs]`."""

    losses: Callable[[jax.Array, jax.Array], jax.Array]  # with labels, `[batch]`
    predict: Callable[[jax.Array], jax.Array]  # classes, in the shape of the labels


# One of several classes; labels are int `[batch]`.
ONE_OF = Head(
    optax.softmax_cross_entropy_with_integer_labels,
    lambda logits: jnp.argmax(logits, axis=-1),
)


def yes_or_no(positive: float = 1.0, negative: float = 1.0) -> Head:
    r"""Returns a task of one or several yes-or-no questions; labels are 0 or 1.

    .. math:: \ell = -\sum_{i=1}^m \mu_1 \gamma_i \log \hat\gamma_i
        + \mu_0 (1 - \gamma_i) \log (1 - \hat\gamma_i)

    with the sigmoid :math:`\hat\gamma_i` of a logit, `positive` :math:`\mu_1` and
    `negative` :math:`\mu_0` (section 4.2.2). Labels are `[batch, m]`, or `[batch]` for
    one question. Scores treat all answers as one list.
    """

    def losses(logits: jax.Array, labels: jax.Array) -> jax.Array:
        truth = labels.reshape(logits.shape).astype(logits.dtype)
        terms = positive * truth * jax.nn.log_sigmoid(logits)
        terms += negative * (1 - truth) * jax.nn.log_sigmoid(-logits)
        return -jnp.sum(terms, axis=-1)

    return Head(losses, lambda logits: (logits > 0).astype(jnp.int32))


@dataclasses.dataclass(frozen=True, eq=False)
class Classifier(Problem):
    """A network that classifies, and its data; its loss is the sum of mean losses."""

    heads: Mapping[str, Head]
    latent: Callable[[Any, PyTree], PyTree]  # from network and batch, for the heads

    def encode(self, model: Model, batch: PyTree) -> PyTree:
        """Returns the latent in evaluation mode."""
        return self.latent(self.network(*model), batch)

    def encode_split(self, model: Model, split: PyTree, size: int) -> PyTree:
        """Returns the latent of a split, `size` examples at a time to save memory."""
        return map_batches(lambda batch: self.encode(model, batch), split, size)

    def losses(self, model: Model, z: PyTree, batch: PyTree) -> jax.Array:
        """Returns the losses of the examples, `[tasks, batch]`."""
        heads = self.network(*model).heads
        each = [own.losses(heads[t](z), batch[t]) for t, own in self.heads.items()]
        return jnp.stack(each)

    def predict(self, model: Model, z: PyTree) -> dict[str, jax.Array]:
        """Returns the classes that the heads predict."""
        heads = self.network(*model).heads
        return {task: own.predict(heads[task](z)) for task, own in self.heads.items()}

    def scores(self, classes: Mapping[str, Any], split: Any) -> dict[str, np.ndarray]:
        """Returns the test scores of predicted classes, each `[seeds, tasks]`.

        Scores are averages over the classes, weighted by their sizes. A division by 0
        gives 0.
        """
        from sklearn.metrics import precision_recall_fscore_support

        options: Any = {"average": "weighted", "zero_division": 0}
        score = functools.partial(precision_recall_fscore_support, **options)
        truths = {task: np.ravel(split[task]) for task in self.heads}
        each = [
            [score(truth, np.ravel(found))[:3] for found in classes[task]]
            for task, truth in truths.items()
        ]
        names = ("test_precision", "test_recall", "test_f1")
        return dict(zip(names, np.array(each).T, strict=True))


def make_classifier(
    build: Callable[[jax.Array], Any],
    heads: Mapping[str, Head],
    data: Splits[Any],
    prepare: Callable[[jax.Array], jax.Array] = lambda inputs: inputs,
) -> Classifier:
    """Makes the problem of a network, and puts the data on the device.

    A split has inputs, then labels, in the order of `heads`; the network is given
    `prepare` of a batch of inputs.
    """

    def loss(task: str, model: Any, z: Any, batch: Any) -> jax.Array:
        return jnp.mean(heads[task].losses(model.heads[task](z), batch[task]))

    def latent(model: Any, batch: Any) -> Any:
        return model.encode(prepare(batch[INPUTS]))

    losses = {task: functools.partial(loss, task) for task in heads}
    names, splits = (INPUTS, *heads), {}
    for name in ("train", "validation", "test"):
        parts = map(jnp.asarray, getattr(data, name))
        splits[name] = dict(zip(names, parts, strict=True))
    problem = make_problem(build, losses, latent, splits)
    return Classifier(**vars(problem), heads=heads, latent=latent)
