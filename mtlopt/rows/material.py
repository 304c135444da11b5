"""Rows that exist as arrays, or are computed as soon as a method uses them."""

import dataclasses
import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp

from mtlopt.linalg.normalise import ScaledGramian
from mtlopt.rows import arithmetic, products
from mtlopt.rows.protocol import Leaves, OwnSpace
from mtlopt.rows.pushforward import along


@dataclasses.dataclass(frozen=True)
class MaterialRows(OwnSpace):
    """Rows that exist as arrays.

    Attributes:
      num_tasks: number of rows.
      values: leaves `[tasks, ...]`; empty if nothing is shared.
      pull: linear map from the rows' space to the shared leaves.
    """

    num_tasks: int
    values: Leaves
    pull: Callable[[Leaves], Leaves] = list

    def gramian(self, basis: jax.Array | None = None) -> jax.Array:
        if not self.values:
            return jnp.zeros((self.num_tasks, self.num_tasks))
        return products.gramian(self._parts, basis)

    def rotated(self) -> Callable[[jax.Array], jax.Array]:
        if not self.values:
            return self.gramian
        return jax.tree_util.Partial(products.gramian, self._parts)

    def scaled_gramian(self, present: jax.Array | None) -> ScaledGramian:
        if not self.values:
            return ScaledGramian(self.gramian(), jnp.ones(self.num_tasks))
        return products.scaled_gramian(self._parts, present)

    @functools.cached_property
    def _parts(self) -> list[products.Part]:
        return products.parts_of(self.values)

    def norms(self) -> jax.Array:
        if not self.values:
            return jnp.zeros(self.num_tasks)
        return arithmetic.row_norms(self.values)

    def mix(self, weights: jax.Array) -> Leaves:
        return arithmetic.combine(weights, self.values)

    def along(self, direction: Leaves) -> jax.Array:
        if not self.values:
            return jnp.zeros(self.num_tasks)
        return arithmetic.inner_products(self.values, direction)

    def leaves(self) -> Leaves:
        return self.values


@dataclasses.dataclass(frozen=True)
class PulledRows(OwnSpace):
    """Rows over the shared leaves; if needed, one pullback per task computes them.

    Attributes:
      latent_grads: leaves `[tasks, ...]`.
      pull_latent: pullback of the encoder, from one latent cotangent.
      make: returns the rows, leaves `[tasks, ...]`.
    """

    latent_grads: Leaves
    pull_latent: Callable[[Leaves], Leaves]
    make: Callable[[], Leaves]
    pull: Callable[[Leaves], Leaves] = list

    @functools.cached_property
    def made(self) -> MaterialRows:
        """The rows as arrays; once they are computed, combinations use the arrays."""
        return MaterialRows(len(self.latent_grads[0]), self.make())

    def gramian(self, basis: jax.Array | None = None) -> jax.Array:
        return self.made.gramian(basis)

    def rotated(self) -> Callable[[jax.Array], jax.Array]:
        return self.made.rotated()

    def scaled_gramian(self, present: jax.Array | None) -> ScaledGramian:
        return self.made.scaled_gramian(present)

    def norms(self) -> jax.Array:
        return self.made.norms()

    def mix(self, weights: jax.Array) -> Leaves:
        if "made" in vars(self):
            return self.made.mix(weights)
        return self.pull_latent(arithmetic.combine(weights, self.latent_grads))

    def along(self, direction: Leaves) -> jax.Array:
        if "made" in vars(self):
            return self.made.along(direction)
        return along(self.pull_latent, self.latent_grads, direction)

    def leaves(self) -> Leaves:
        return self.made.values
