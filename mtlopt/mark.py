"""`mtlopt.latent` marks the place in a program between the encoder and the heads."""

from typing import Any

import jax
import jax.numpy as jnp
from jax.extend import core
from jax.interpreters import ad, batching, mlir

PyTree = Any


def latent(z: PyTree) -> PyTree:
    """Marks `z` as the latent in a function that returns all losses; returns `z`.

    Write the whole forward pass as one function, and mark the arrays that the encoder
    passes to the heads. `task_grad` then cuts the program at these arrays. The
    encoder is the part that the marked arrays depend on; a task's head is the part that
    its loss needs after the mark. The cut program costs as many operations as one that
    you cut by hand, and latent methods and line searches work on it. Outside of
    `task_grad` the mark is the identity.

    * If there are several marks, all marked arrays are part of the latent: `grads.z` is
      a tuple of the marked values, in the order in which the program runs the marks. If
      a marked array depends on another marked array, as the second skip connection of a
      U-Net does, the encoder computes both arrays, and both are inputs of the heads.
    * Mark once for all tasks, and pass the marked arrays to all losses. Marking an
      array twice is an error. If each loss computes and marks its own array, the
      gradients of different tasks are orthogonal in the latent, and methods in latent
      space find no conflict.
    * A head may read its own leaves, frozen leaves, the arguments of the call and the
      marked arrays. If a head reads a shared leaf, mark that leaf as well:
      `h, w = mtlopt.latent((h, params["w"]))`.
    * The mark may be inside `jax.jit` and `jax.vmap`. It may also be inside
      `jax.checkpoint`, but this checkpoint is then removed: put one `jax.checkpoint`
      around the encoder and one around the heads instead.

    Args:
      z: a pytree of arrays.

    Returns:
      `z`.

    Raises:
      TypeError: if a leaf of `z` is neither an array nor a number.
      ValueError: if `z` has no leaf; at the first call of an oracle, if a loss reads
        shared leaves or activations of the encoder that are not marked, if an array is
        marked twice, or if the mark is inside a loop, a branch, or a function with a
        derivative rule.

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
    """Returns the structure of the pytree that a mark marks."""
    return eqn.params["treedef"]


def holds_mark(eqn: Any) -> bool:
    """Returns whether an equation runs a program that contains a mark."""
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
# Only values pass through the mark: their tangents bypass it.
ad.primitive_jvps[_mark] = lambda leaves, tangents, treedef: (
    _mark.bind(*leaves, treedef=treedef),
    tangents,
)
