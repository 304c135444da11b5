"""Checks inside `jax.shard_map`: which arrays are split between shards of a mesh axis.

Inside `shard_map` a program handles its own shard only. The type of every JAX array
records the axes over which the array differs between shards. For an array that does not
differ between shards, JAX itself adds up the gradients of the shards.
"""

from collections.abc import Callable, Iterable
from typing import Any

import jax

_INSTEAD = " Or let jax.jit shard the step instead of jax.shard_map."


def _manual_axes() -> tuple[str, ...]:
    return tuple(jax.sharding.get_abstract_mesh().manual_axes)


def _varying(tree: Any) -> set[str]:
    """Returns the axes over which any array of a tree differs between shards."""
    axes = set()
    for leaf in jax.tree.leaves(tree):
        if hasattr(leaf, "dtype"):
            aval = jax.typeof(leaf)
            axes |= aval.vma if hasattr(aval, "vma") else aval.mat.varying
    return axes


def _listed(axes: Iterable[str]) -> str:
    return ", ".join(map(repr, sorted(axes)))


def check_losses(losses: jax.Array, params: Any) -> None:
    """Raises if losses differ between shards that have the same parameters.

    Args:
      losses: `[tasks]`.
      params: parameters.

    Raises:
      ValueError: if they differ; the message names the mesh axes. Also if
        `jax.shard_map` does not check this (`check_vma=False`).
    """
    manual = _manual_axes()
    if not manual:
        return
    if not _varying(jax.lax.axis_index(manual[0])):
        raise ValueError(
            "`check_vma` of jax.shard_map must be True around an oracle, got False: "
            "with False, JAX does not add up the gradients of the shards." + _INSTEAD
        )
    for leaf in jax.tree.leaves(params):
        alone = _varying(losses) - _varying(leaf)
        if alone:
            raise ValueError(
                f"the losses differ between the shards of the mesh axis "
                f"{_listed(alone)}, which have parameters in common. Return "
                f"jax.lax.pmean(loss, {_listed(alone)}) from every loss." + _INSTEAD
            )


def check_whole(rows: Callable[[], Any], losses: jax.Array) -> None:
    """Raises if rows (the tasks' gradients) are split between shards.

    Inner products need whole rows.

    Args:
      rows: function that returns the arrays from which rows are computed; it is called
        only inside `shard_map`.
      losses: `[tasks]`; they may differ over the same axes as the rows.

    Raises:
      ValueError: if the check fails; the message names the mesh axes.
    """
    split = _varying(rows()) - _varying(losses) if _manual_axes() else ()
    if split:
        raise ValueError(
            "the rows must be whole on every shard, got a part on each shard of the "
            f"mesh axis {_listed(split)}. Rows are the gradients of the tasks, and "
            "their inner products would miss the other parts. Let jax.jit shard the "
            "step instead of jax.shard_map. Inside jax.shard_map, in_latent_space, "
            "GradNorm without `layer`, line searches, streaming, microbatches and "
            "sharded parameters do not work."
        )
