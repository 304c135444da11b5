"""Latent rows of several microbatches."""

import dataclasses
from collections.abc import Callable
from typing import NoReturn

import jax
import jax.numpy as jnp

from mtlopt.linalg.normalise import ScaledGramian
from mtlopt.linalg.products import diagonal, dot
from mtlopt.rows.protocol import Leaves

_NOT_KEPT = (
    "`microbatches` must be 1 for a method that needs more of the latent rows than "
    "their Gramian: nothing else is kept of them."
)


@dataclasses.dataclass(frozen=True)
class SummedRows:
    """Latent rows of several microbatches, of which only the inner products are kept.

    Attributes:
      products: Gramian, summed over the microbatches.
      recombine: runs the encoder again and pulls the weighted latent rows back.
    """

    products: jax.Array
    recombine: Callable[[jax.Array], Leaves]

    def gramian(self, basis: jax.Array | None = None) -> jax.Array:
        if basis is None:
            return self.products
        if basis.ndim == 1:
            return basis[:, None] * self.products * basis[None]
        return dot(basis.T, dot(self.products, basis))

    def rotated(self) -> None:
        return None

    def scaled_gramian(self, present: jax.Array | None) -> ScaledGramian:
        del present
        # The rows cannot be read again. If squares of entries are flushed to zero,
        # cosines can contradict each other. So rows this short count as zero.
        squares, info = diagonal(self.products), jnp.finfo(self.products.dtype)
        is_lost = squares < float(info.tiny / info.eps)
        kept = jnp.where(is_lost[:, None] | is_lost[None], 0, self.products)
        return ScaledGramian(kept, jnp.ones_like(squares))

    def norms(self) -> jax.Array:
        return jnp.sqrt(jnp.maximum(diagonal(self.products), 0))

    def mix(self, weights: jax.Array) -> NoReturn:
        del weights
        raise ValueError(_NOT_KEPT)

    def combine(self, weights: jax.Array) -> Leaves:
        return self.recombine(weights)

    def along(self, direction: Leaves) -> NoReturn:
        del direction
        raise ValueError(_NOT_KEPT)

    def product(self, weights: jax.Array) -> jax.Array:
        return dot(self.products, weights)

    def leaves(self) -> NoReturn:
        raise ValueError(_NOT_KEPT)

    def pull(self, direction: Leaves, /) -> NoReturn:
        del direction
        raise ValueError(_NOT_KEPT)

    def held(self) -> jax.Array:
        return self.products
