"""Finds the leaves of a latent that depend on the shared parameters.

Methods compare only the gradients of these leaves, and a line search moves only these
leaves. Masks, raw inputs and constants that `encode` passes on reach the heads
unchanged. The answer comes from the program of the encoder's derivative, so it is also
correct for `jax.lax.stop_gradient`.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from mtlopt._jaxprs import used_leaves
from mtlopt.rows.protocol import STATIC, Leaves

PyTree = Any
Pullback = Callable[[Leaves], tuple[Leaves]]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Rest:
    """A latent without the leaves that are differentiated.

    Attributes:
      leaves: the other leaves.
      treedef: structure of the latent.
      moves: per leaf of the latent, whether it is differentiated.
    """

    leaves: list[Any]
    treedef: Any = dataclasses.field(metadata=STATIC)
    moves: tuple[bool, ...] = dataclasses.field(metadata=STATIC)

    def join(self, latent: Leaves) -> PyTree:
        """Returns the latent, with the differentiated leaves inserted."""
        moving, still = iter(latent), iter(self.leaves)
        return self.treedef.unflatten(
            next(moving if moves else still) for moves in self.moves
        )


def split_latent(z: PyTree, moves: Sequence[bool]) -> tuple[Leaves, Rest]:
    """Returns the leaves to differentiate, and the rest."""
    leaves, treedef = jax.tree.flatten(z)
    pairs = list(zip(leaves, moves, strict=True))
    latent = [leaf for leaf, moving in pairs if moving]
    still = [leaf for leaf, moving in pairs if not moving]
    return latent, Rest(still, treedef, tuple(moves))


def linearize(
    encode: Callable[[Leaves], tuple[PyTree, Any]], shared: Leaves
) -> tuple[Leaves, Rest, Pullback | None, Any]:
    """Returns the latent's moving leaves, its other leaves, the pullback and aux.

    Args:
      encode: function from the shared leaves to the latent and aux.
      shared: the shared leaves; if there are none, nothing moves and the pullback is
        None.
    """
    if not shared:
        z, aux = encode(shared)
        _check_real(z)
        return *split_latent(z, [False] * len(jax.tree.leaves(z))), None, aux

    def floating(shared: Leaves) -> tuple[Leaves, Any]:
        z, aux = encode(shared)
        _check_real(z)
        kinds = [jnp.result_type(leaf) for leaf in jax.tree.leaves(z)]
        floats, rest = split_latent(
            z, [bool(jnp.issubdtype(kind, jnp.floating)) for kind in kinds]
        )
        return floats, (rest, aux)

    floats, pullback, (others, aux) = jax.vjp(floating, shared, has_aux=True)
    reaches = used_leaves(pullback, floats)  # no cotangent of a still leaf is read
    still = [leaf for leaf, read in zip(floats, reaches, strict=True) if not read]
    found = iter(reaches)
    moves = [is_float and next(found) for is_float in others.moves]
    if still:
        pullback = _PullbackOfSome(pullback, still, tuple(reaches))
    return *split_latent(others.join(floats), moves), pullback, aux


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class _PullbackOfSome:
    """A pullback that takes no cotangents for the leaves that do not move.

    Attributes:
      pullback: takes the cotangents of all floating-point leaves.
      still: the floating-point leaves that do not move, for the shapes of their
        cotangents.
      moves: per floating-point leaf, whether it moves.
    """

    pullback: Pullback
    still: Leaves
    moves: tuple[bool, ...] = dataclasses.field(metadata=STATIC)

    def __call__(self, cotangent: Leaves) -> tuple[Leaves]:
        moving, still = iter(cotangent), iter(self.still)
        return self.pullback(
            [
                next(moving) if moves else jnp.zeros_like(next(still))
                for moves in self.moves
            ]
        )


def _check_real(z: PyTree) -> None:
    for leaf in jax.tree.leaves(z):
        if jnp.issubdtype(jnp.result_type(leaf), jnp.complexfloating):
            raise ValueError(
                "`encode` must return real leaves, got a complex leaf of shape "
                f"{jnp.shape(leaf)}. Return its real part and its imaginary part."
            )
