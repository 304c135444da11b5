"""From a Flax NNX network to the pure functions that multi-task training needs."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Protocol

import jax
from flax import nnx


class MultiTaskModel(Protocol):
    """A network with one encoder and a head for each task."""

    @property
    def heads(self) -> Mapping[str, Any]:
        """For each task a module from the latent representation to its output."""
        ...

    def encode(self, x: jax.Array) -> Any:
        """Maps a batch to the latent representation that all heads read."""
        ...


class Functional(NamedTuple):
    """A network as parameters and pure functions of them.

    Attributes:
        params: Nested dict of arrays. A path is as in "encoder/conv1/kernel".
        encode: `encode(params, x) -> z`; reads only the encoder's leaves.
        heads: For each task `head(params, z) -> output`; reads only its own leaves.
    """

    params: dict[str, Any]
    encode: Callable[[Any, jax.Array], Any]
    heads: dict[str, Callable[[Any, Any], jax.Array]]


def functional(model: MultiTaskModel) -> Functional:
    """Splits a network into a parameter pytree and pure functions of it.

    Args:
        model: A Flax NNX module with `encode` and `heads`, all of whose state is
            `nnx.Param`.

    Returns:
        `Functional(params, encode, heads)`.

    Raises:
        ValueError: If the model has other state, such as BatchNorm statistics.

    Examples:
        >>> import jax.numpy as jnp
        >>> from mtlopt.models import LeNet
        >>> params, encode, heads = functional(LeNet(rngs=nnx.Rngs(0)))
        >>> z = encode(params, jnp.zeros([8, 28, 28, 1]))
        >>> heads["left"](params, z).shape
        (8, 10)
    """
    graphdef, state = nnx.split(model, nnx.Param)

    def merge(params: Any) -> MultiTaskModel:
        return nnx.merge(graphdef, nnx.State(params), copy=True)

    def head(task: str) -> Callable[[Any, Any], jax.Array]:
        return lambda params, z: merge(params).heads[task](z)

    return Functional(
        params=nnx.to_pure_dict(state),
        encode=lambda params, x: merge(params).encode(x),
        heads={task: head(task) for task in model.heads},
    )
