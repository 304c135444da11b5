"""The common base of all networks with one encoder and a head for each task."""

from typing import Any

import jax
from flax import nnx


class SharedEncoder(nnx.Module):
    """Base class of the networks here; a subclass sets `encoder` and `heads`."""

    encoder: Any
    heads: nnx.Dict[Any]

    def encode(self, x: jax.Array) -> jax.Array:
        """Maps a batch to the latent representation that all heads read."""
        return self.encoder(x)

    def __call__(self, x: jax.Array) -> dict[str, jax.Array]:
        """Maps a batch to the outputs of all heads, by task."""
        z = self.encode(x)
        return {task: head(z) for task, head in self.heads.items()}
