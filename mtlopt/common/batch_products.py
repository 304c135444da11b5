"""Inner products of the task gradients of two batches."""

from typing import Any

import jax
import jax.numpy as jnp

from mtlopt.grad import check_task_grads
from mtlopt.linalg.normalise import Gramian
from mtlopt.rows.products import cross_gramian
from mtlopt.rows.protocol import Rows
from mtlopt.task_grads import TaskGrads


def batch_products(
    grads: TaskGrads, rows: Rows, second: TaskGrads | None, params: Any = None
) -> tuple[Gramian, jax.Array | None]:
    """Returns the inner products of the rows of two batches.

    Args:
      grads: gradients on the first batch.
      rows: their rows.
      second: gradients of the same tasks on another batch, whose losses get the scales
        of the first; None for the first batch again.
      params: parameters, if the transform was given them.

    Returns:
      The products `[tasks, tasks]`, and the tasks that are present in both, bool
      `[tasks]` or None for all.

    Raises:
      TypeError: if `second` is not a `TaskGrads`.
      ValueError: if `second` has other tasks, parameters or shapes.
    """
    if second is None:
        return rows.scaled_gramian(grads.present), grads.present
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
    left, right = rows.leaves(), second.scale_by(grads.loss_scales).rows().leaves()
    expected, shapes = [leaf.shape for leaf in left], [leaf.shape for leaf in right]
    if shapes != expected:
        raise ValueError(
            f"`second` must have rows of the shapes {expected}, got {shapes}. In "
            "latent space both batches must have one size."
        )
    products = cross_gramian(left, right) if left else rows.gramian()
    masks = [one.present for one in (grads, second) if one.present is not None]
    return products, jnp.all(jnp.stack(masks), axis=0) if masks else None
