"""Rows that are computed one at a time and never kept."""

import dataclasses
import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp

from mtlopt.linalg.normalise import ScaledGramian
from mtlopt.linalg.products import dot
from mtlopt.rows import products
from mtlopt.rows.arithmetic import combine, inner_products, row_norms
from mtlopt.rows.protocol import Leaves, OwnSpace
from mtlopt.rows.pushforward import along, pushforward

NOT_KEPT = (
    "`streaming` must be False for a method that needs more of the rows than their "
    "Gramian, got True: streamed rows are never kept."
)


@dataclasses.dataclass(frozen=True)
class StreamedRows(OwnSpace):
    """Rows that are computed one at a time and never kept, in O(params) memory.

    With the encoder's Jacobian `J` and latent gradients `g`, column `j` of the Gramian
    has the entries `<g_i, J (J^T g_j)>`. A column costs one pullback and one
    pushforward. The pushforward is the transpose of the pullback, so it needs no second
    forward pass and works with `jax.custom_vjp`.

    Attributes:
      latent_grads: leaves `[tasks, ...]`.
      pull_latent: pullback of the encoder, from one latent cotangent.
    """

    latent_grads: Leaves
    pull_latent: Callable[[Leaves], Leaves]
    pull: Callable[[Leaves], Leaves] = list

    def gramian(self, basis: jax.Array | None = None) -> jax.Array:
        return self._products(self._flat, basis)

    def rotated(self) -> Callable[[jax.Array], jax.Array]:
        _ = self._flat  # computed here, because a branch might be the first to read it
        return self.gramian

    def scaled_gramian(self, present: jax.Array | None) -> ScaledGramian:
        rows = self._flat

        def largest(task: jax.Array) -> jax.Array:
            pulled = self.pull_latent(self._cotangent([row[task] for row in rows]))
            return products.largest_entries([leaf[None] for leaf in pulled])[0]

        return products.scale_if_needed(
            functools.partial(self._products, rows),
            lambda: jax.lax.map(largest, jnp.arange(len(rows[0]))),
            [row[0] for row in rows],
            present,
        )

    @functools.cached_property
    def _flat(self) -> Leaves:
        """One copy of the rows, which all loops and their products read."""
        return [products.flat_rows(leaf) for leaf in self.latent_grads]

    def _cotangent(self, row: Leaves) -> Leaves:
        return [
            flat.reshape(leaf.shape[1:])
            for flat, leaf in zip(row, self.latent_grads, strict=True)
        ]

    def _products(self, rows: Leaves, basis: jax.Array | None = None) -> jax.Array:
        push = pushforward(self.pull_latent, self.latent_grads)

        def column(task: jax.Array) -> jax.Array:
            flat = [row[task] for row in rows]
            if basis is not None and basis.ndim == 1:
                flat = [row * basis[task].astype(row.dtype) for row in flat]
            elif basis is not None:
                flat = combine(basis[:, task], rows)
            image = push(self.pull_latent(self._cotangent(flat)))
            image = [
                leaf.reshape(row.shape[1:])
                for row, leaf in zip(rows, image, strict=True)
            ]
            along = inner_products(rows, image)
            if basis is None:
                return along
            return along * basis if basis.ndim == 1 else dot(along, basis)

        total = jax.lax.map(column, jnp.arange(len(rows[0])))
        return (total + total.T) / 2

    def norms(self) -> jax.Array:
        def norm(cotangent: Leaves) -> jax.Array:
            return row_norms([leaf[None] for leaf in self.pull_latent(cotangent)])[0]

        return jax.lax.map(norm, self.latent_grads)

    def mix(self, weights: jax.Array) -> Leaves:
        return self.pull_latent(combine(weights, self.latent_grads))

    def along(self, direction: Leaves) -> jax.Array:
        return along(self.pull_latent, self.latent_grads, direction)

    def leaves(self) -> Leaves:
        raise ValueError(NOT_KEPT)

    def held(self) -> Leaves:
        return self.latent_grads
