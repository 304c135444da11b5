"""`mtlopt.latent`: the place in a program at which encoder and heads meet."""

from typing import Any

import jax
import jax.numpy as jnp
from jax.extend import core
from jax.interpreters import ad, batching, mlir

PyTree = Any


def latent(z: PyTree) -> PyTree:
    """Marks the latent in one function that returns all losses: `z` itself.

    Write the whole forward pass as one function and mark where encoder and heads meet.
    `task_grad` then cuts the program there: what the marked arrays depend on is the
    encoder, what a loss still needs is its task's head. The problem costs as many
    operations as if you cut it by hand, and latent methods and line searches work on
    it. Anywhere else the mark is the identity.

    * Several marks are all part of the latent: `grads.z` is a tuple of what they
      marked, in the order in which the program runs them. A mark on something that
      depends on another mark, such as the second skip connection of a U-Net, belongs to
      the encoder like the first, and the heads take both as given.
    * Mark once for all tasks, and hand the marked arrays to all losses. An array that
      is marked twice is an error. If each loss computes and marks one of its own,
      gradients of different tasks are orthogonal in the latent, and methods there see
      no conflict.
    * A head may read its own leaves, frozen leaves, the arguments of the call and what
      is marked. A shared leaf that a head reads goes through the mark, too:
      `h, w = mtlopt.latent((h, params["w"]))`.
    * The mark may lie inside `jax.jit` and `jax.vmap`, and inside `jax.checkpoint`,
      which is then taken off: put one around the encoder and one around the heads.

    Args:
      z: a pytree of arrays.

    Returns:
      `z`.

    Raises:
      TypeError: if a leaf of `z` is no array and no number.
      ValueError: if `z` has no leaf; later, at the first call of an oracle, if a loss
        reads shared leaves or activations of the encoder that are not marked, if an
        array is marked twice, or if the mark lies in a loop, in a branch, or in a
        function with a derivative rule.

    Examples:
      >>> import jax.numpy as jnp
      >>> import mtlopt
      >>> params = {"w": jnp.array([2.0]), "a": jnp.array(1.0), "b": jnp.array(3.0)}
      >>> def losses(params):
      ...     z = mtlopt.latent(5 * params["w"])
      ...     return {"a": params["a"] * z[0], "b": params["b"] * z[0]}
      >>> labels = {"w": "shared", "a": "a", "b": "b"}
      >>> oracle = mtlopt.task_grad(losses, labels, tasks=("a", "b"))
      >>> grads = oracle(params)
      >>> print(grads.z, grads.in_latent_space().rows().gramian().tolist())
      [10.] [[1.0, 3.0], [3.0, 9.0]]
    """
    leaves, treedef = jax.tree.flatten(z)
    if not leaves:
        raise ValueError(f"`z` must have at least one array to mark, got {z!r}.")
    for leaf in leaves:
        if not hasattr(leaf, "dtype") and not isinstance(leaf, int | float):
            raise TypeError(
                "`z` must be a pytree of arrays, got a leaf of type "
                f"{type(leaf).__name__}. Mark the arrays alone."
            )
    return treedef.unflatten(_mark.bind(*map(jnp.asarray, leaves), treedef=treedef))


def is_mark(eqn: Any) -> bool:
    """Returns whether an equation is a mark."""
    return eqn.primitive is _mark


def marked_tree(eqn: Any) -> Any:
    """Returns the structure of what a mark marks."""
    return eqn.params["treedef"]


def holds_mark(eqn: Any) -> bool:
    """Returns whether there is a mark in a program that an equation runs."""
    return any(
        is_mark(inner) or holds_mark(inner)
        for program in core.jaxprs_in_params(eqn.params)
        for inner in program.eqns
    )


_mark = core.Primitive("mtlopt_latent")
_mark.multiple_results = True
_mark.def_impl(lambda *leaves, **_: list(leaves))
_mark.def_abstract_eval(lambda *avals, **_: list(avals))
mlir.register_lowering(_mark, lambda _, *leaves, **__: list(leaves))
batching.primitive_batchers[_mark] = lambda leaves, axes, treedef: (
    _mark.bind(*leaves, treedef=treedef),
    axes,
)
# Only values are marked: a tangent goes its own way, around the mark.
ad.primitive_jvps[_mark] = lambda leaves, tangents, treedef: (
    _mark.bind(*leaves, treedef=treedef),
    tangents,
)
