"""Inner products of two batches' task gradients, or one combination of the products."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from mtlopt.grad import check_task_grads
from mtlopt.linalg.normalise import Gramian
from mtlopt.rows.products import cross_gramian
from mtlopt.rows.protocol import Leaves, Rows
from mtlopt.task_grads import TaskGrads


def batch_products(
    grads: TaskGrads, rows: Rows, second: TaskGrads | None, params: Any = None
) -> tuple[Gramian, jax.Array | None]:
    """Returns the inner products of the rows (task gradients) of two batches.

    Args:
      grads: gradients on the first batch.
      rows: rows of `grads`.
      second: gradients of the same tasks on another batch, whose losses get the scales
        of the first batch. None means the first batch again.
      params: parameters, if they were passed to the transform.

    Returns:
      The products `[tasks, tasks]`, and the tasks that are present in both batches,
      bool `[tasks]`, or None for all.

    Raises:
      TypeError: if `second` is not a `TaskGrads`.
      ValueError: if the tasks, parameters or shapes of `second` are different.
    """
    if second is None:
        return rows.scaled_gramian(grads.present), grads.present
    second = _of_same_tasks(grads, second, params)
    left, right = rows.leaves(), second.rows().leaves()
    _check_shapes(left, right)
    products = cross_gramian(left, right) if left else rows.gramian()
    return products, _in_both(grads, second)


def batch_product(
    grads: TaskGrads,
    rows: Rows,
    second: TaskGrads | None,
    weights: Callable[[jax.Array | None], jax.Array],
    params: Any = None,
) -> tuple[jax.Array, jax.Array, jax.Array | None]:
    """Returns `P w` for the products `P` of two batches, without computing `P`.

    This takes one pullback on the second batch and one pushforward on the first.

    Args:
      grads: as in `batch_products`.
      rows: as in `batch_products`.
      second: as in `batch_products`.
      weights: function from the mask of the tasks present in both batches to weights
        `[tasks]`, which are zero for all other tasks.
      params: as in `batch_products`.

    Returns:
      `P w`, `w`, and the tasks that are present in both batches.
    """
    other, both = rows, grads.present
    if second is not None:
        second = _of_same_tasks(grads, second, params)
        other, both = second.rows(), _in_both(grads, second)
    found = weights(both)
    direction = other.mix(found)
    if second is not None:
        _check_shapes(jax.eval_shape(rows.mix, found), direction)
    # At unit size, because a longer direction may give sums of opposed infinities.
    size = _size(direction)
    along = rows.along([leaf / size.astype(leaf.dtype) for leaf in direction]) * size
    return along if both is None else jnp.where(both, along, 0), found, both


def _size(direction: Leaves) -> jax.Array:
    """Returns the largest absolute entry as a constant, or one if all are zero."""
    size = jax.lax.stop_gradient(optax.tree.norm(direction, ord=jnp.inf))
    return jnp.where(size > 0, size, 1)


def _of_same_tasks(grads: TaskGrads, second: Any, params: Any) -> TaskGrads:
    """Returns the second batch's gradients, scaled and placed like the first's."""
    try:
        second = check_task_grads(second, grads.num_tasks, params)
    except (TypeError, ValueError) as error:
        raise type(error)(
            f"`second` must be gradients of the same tasks on another batch: {error}"
        ) from error
    if second.tasks != grads.tasks:
        raise ValueError(
            f"`second` must have the tasks {grads.tasks}, got {second.tasks}."
        )
    if grads.in_latent:
        second = second.in_latent_space()
    return second.scale_by(grads.loss_scales)


def _check_shapes(left: Leaves, right: Leaves) -> None:
    expected, shapes = [leaf.shape for leaf in left], [leaf.shape for leaf in right]
    if shapes != expected:
        raise ValueError(
            f"`second` must have rows of the shapes {expected}, got {shapes}. In "
            "latent space, both batches must have the same size."
        )


def _in_both(grads: TaskGrads, second: TaskGrads) -> jax.Array | None:
    masks = [one.present for one in (grads, second) if one.present is not None]
    return jnp.all(jnp.stack(masks), axis=0) if masks else None
