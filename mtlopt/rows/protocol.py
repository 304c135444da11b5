"""Task rows: the operations that methods use on the tasks' gradients."""

from collections.abc import Callable
from typing import Any, Protocol

import jax

from mtlopt.linalg.normalise import ScaledGramian, safe_root
from mtlopt.linalg.products import diagonal

Leaves = list[jax.Array]
STATIC = {"static": True}  # metadata of dataclass fields that are not pytree children


class Rows(Protocol):
    """The rows `[tasks, ...]` of the Jacobian (the tasks' gradients), in some space.

    Most methods need inner products of the rows (`gramian`) and one combination of them
    (`combine`). A few methods work element by element: they need the rows themselves
    (`leaves`) and the map from the rows' space to the shared leaves (`pull`). This
    package decides which rows exist as arrays, so methods need not.
    """

    def gramian(self, basis: jax.Array | None = None) -> jax.Array:
        """Returns the inner products of the rows, `[tasks, tasks]`.

        Args:
          basis: a matrix `B` `[tasks, tasks]`, or the diagonal of a diagonal matrix,
            `[tasks]`. With a basis, the result holds the inner products of the rotated
            rows `B^T J`.
        """
        ...

    def rotated(self) -> Callable[[jax.Array], jax.Array] | None:
        """Returns `gramian` as a function of the basis, or None.

        If the rows are nearly linearly dependent, this function keeps digits that the
        plain products lose to rounding. The result is None if only the products of the
        rows are known.
        """
        ...

    def scaled_gramian(self, present: jax.Array | None) -> ScaledGramian:
        """Returns the inner products of rows of any norms, see `ScaledGramian`.

        Args:
          present: tasks to use, bool `[tasks]`; None for all.
        """
        ...

    def norms(self) -> jax.Array:
        """Returns the norms of the rows, `[tasks]`."""
        ...

    def mix(self, weights: jax.Array) -> Leaves:
        """Returns `sum_i weights[i] g_i` in the rows' own space.

        If a method has already computed the rows, they are combined directly. Otherwise
        one backward pass of the weighted sum gives the result, which costs less than
        one pass per task.
        """
        ...

    def combine(self, weights: jax.Array) -> Leaves:
        """Returns `sum_i weights[i] g_i` over the shared leaves."""
        ...

    def along(self, direction: Leaves) -> jax.Array:
        """Returns the inner products `[tasks]` of the rows with a direction.

        The direction is in the rows' own space. Over the shared leaves, the products
        cost one pushforward for any number of tasks.
        """
        ...

    def product(self, weights: jax.Array) -> jax.Array:
        """Returns the Gramian times `weights`: one pullback and one pushforward."""
        ...

    def leaves(self) -> Leaves:
        """Returns the rows themselves, leaves `[tasks, ...]`."""
        ...

    def pull(self, direction: Leaves, /) -> Leaves:
        """Maps a direction in the rows' space to the shared leaves."""
        ...

    def held(self) -> Any:
        """Returns the arrays from which the rows, or their products, are computed."""
        ...


class OwnSpace:
    """Operations of `Rows` that follow from the other operations."""

    def rotated(self: Rows) -> Callable[[jax.Array], jax.Array]:
        return self.gramian

    def norms(self: Rows) -> jax.Array:
        found = self.scaled_gramian(None)
        return safe_root(diagonal(found.matrix)) / found.scales

    def combine(self: Rows, weights: jax.Array) -> Leaves:
        return self.pull(self.mix(weights))

    def product(self: Rows, weights: jax.Array) -> jax.Array:
        return self.along(self.mix(weights))

    def held(self: Rows) -> Any:
        return self.leaves()
