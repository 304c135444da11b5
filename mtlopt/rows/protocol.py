"""Task rows: what a method may ask of the gradients that it combines."""

from collections.abc import Callable
from typing import Any, Protocol

import jax

from mtlopt.linalg.normalise import ScaledGramian, safe_root
from mtlopt.linalg.products import diagonal

Leaves = list[jax.Array]
STATIC = {"static": True}  # metadata of dataclass fields that are not pytree children


class Rows(Protocol):
    """Rows `[tasks, ...]` of the Jacobian, in some space.

    Methods need inner products of the rows (`gramian`), one combination of them
    (`combine`), or, for the few that work element by element, the rows themselves
    (`leaves`) and the way from their space to the shared leaves (`pull`). Which rows
    exist as arrays is decided here, so that no method has to know.
    """

    def gramian(self, basis: jax.Array | None = None) -> jax.Array:
        """Returns the inner products of the rows, `[tasks, tasks]`.

        Args:
          basis: `B` `[tasks, tasks]`, or the diagonal of one `[tasks]`, to take those
            of the rotated rows `B^T J`.
        """
        ...

    def rotated(self) -> Callable[[jax.Array], jax.Array] | None:
        """Returns `gramian` as a function of the basis, or None.

        It has digits that rounding of the plain products loses if the rows nearly
        depend on each other. None if the products are all that is known of the rows.
        """
        ...

    def scaled_gramian(self, present: jax.Array | None) -> ScaledGramian:
        """Returns the inner products of rows of any norms, see `ScaledGramian`.

        Args:
          present: tasks to look at, bool `[tasks]`; None for all.
        """
        ...

    def norms(self) -> jax.Array:
        """Returns the norms of the rows, `[tasks]`."""
        ...

    def mix(self, weights: jax.Array) -> Leaves:
        """Returns `sum_i weights[i] g_i` in the rows' own space.

        Rows that something was asked of are combined as they are; otherwise one
        backward pass of the weighted sum costs less than one for each task.
        """
        ...

    def combine(self, weights: jax.Array) -> Leaves:
        """Returns `sum_i weights[i] g_i` over the shared leaves."""
        ...

    def along(self, direction: Leaves) -> jax.Array:
        """Returns the inner products of the rows with a direction in their own space.

        `[tasks]`. Over the shared leaves it is one pushforward, whatever T.
        """
        ...

    def product(self, weights: jax.Array) -> jax.Array:
        """Returns `G w` `[tasks]`, by one pullback and one pushforward."""
        ...

    def leaves(self) -> Leaves:
        """Returns the rows themselves, leaves `[tasks, ...]`."""
        ...

    def pull(self, direction: Leaves, /) -> Leaves:
        """Maps a direction in the rows' space to the shared leaves."""
        ...

    def held(self) -> Any:
        """Returns the arrays whose inner products are those of the rows."""
        ...


class OwnSpace:
    """Operations that follow from the others."""

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
