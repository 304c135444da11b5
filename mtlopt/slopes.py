"""How fast each loss changes along a direction."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from mtlopt._shards import check_whole
from mtlopt.labels import STACKED
from mtlopt.rows.arithmetic import inner_products, scale_rows, sum_entries
from mtlopt.task_grads import TaskGrads


class Slopes(NamedTuple):
    """Derivatives of the losses along a descent step; a positive slope is downhill.

    Attributes:
      of_shared: `<dL_i / d shared, d>`, `[tasks]`, if the step subtracts `d`.
      of_heads: `<dL_i / d head_i, d_i>`, `[tasks]`, where `d_i` is the part of `d` for
        head i.
      lengths: product of the lengths of the two vectors in `of_shared`, `[tasks]`;
        rounding errors are relative to this product.
    """

    of_shared: jax.Array
    of_heads: jax.Array
    lengths: jax.Array

    @property
    def total(self) -> jax.Array:
        """The derivatives `<dL_i, d>`, `[tasks]`."""
        return self.of_shared + self.of_heads

    def descends(self) -> jax.Array:
        """Returns whether no loss rises along the direction by more than rounding."""
        rounding = jnp.sqrt(jnp.finfo(self.of_shared.dtype).eps) * self.lengths
        return jnp.all(self.total >= -rounding)


def slopes(grads: TaskGrads, update: Any) -> Slopes:
    """Returns the slopes of all losses along an update, by at most one pushforward.

    Args:
      grads: gradients of the tasks; `loss_scales` are ignored, and absent tasks get
        zeros.
      update: a pytree with the structure of the parameters.
    """
    direction, head_updates, _ = grads.partition.split(update)
    num_tasks, present = grads.num_tasks, grads.present
    own = jnp.zeros(num_tasks, grads.losses.dtype)
    for label, gradient, step in zip(
        grads.partition.head_labels, grads.head_grads, head_updates, strict=True
    ):
        product = gradient.astype(own.dtype) * step.astype(own.dtype)
        if label == STACKED:
            own += sum_entries(product)
        else:
            own = own.at[grads.tasks.index(label)].add(jnp.sum(product))
    if present is not None:  # the gradient of an absent task may be NaN
        own = jnp.where(present, own, 0)
    if not direction:
        return Slopes(jnp.zeros_like(own), own, jnp.zeros_like(own))
    rows, direction = grads.linear.seen(direction)
    check_whole(lambda: rows, grads.losses)
    rows = scale_rows(rows, jnp.ones(num_tasks, own.dtype), present)
    along = inner_products(rows, direction)
    lengths = jnp.sqrt(sum(sum_entries(_squares(leaf, along)) for leaf in rows))
    length = jnp.sqrt(sum(jnp.sum(_squares(leaf, along)) for leaf in direction))
    return Slopes(along, own, lengths * length)


def _squares(leaf: jax.Array, like: jax.Array) -> jax.Array:
    return leaf.astype(like.dtype) ** 2
