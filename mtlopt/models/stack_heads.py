"""Stacks the heads of a network, for many tasks."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx


def stack_heads(model: Any, name: str = "stacked") -> Any:
    """Returns a network whose heads are stacked along a leading task axis.

    Stack the heads if there are many tasks. With `mtlopt.stacked`, one program then
    runs for all heads, instead of one copy of the program for each head. The stacked
    head is one module whose leaves have shape `[tasks, ...]`, with the tasks in the
    order of `model.heads`. Both `mtlopt.stacked` and `nnx.vmap` call this module with
    the leaves of one task.

    Args:
        model: A network whose heads are modules of the same layers and sizes.
        name: Name of the stacked head.

    Returns:
        A copy of the network with one head.

    Raises:
        ValueError: If the heads differ in their layers or sizes.

    Examples:
        >>> import jax.numpy as jnp
        >>> import mtlopt
        >>> from mtlopt.models import MultiTaskMLP
        >>> model = MultiTaskMLP(2, (8,), {"a": (1,), "b": (1,)}, rngs=nnx.Rngs(0))
        >>> model = stack_heads(model)
        >>> model.heads["stacked"].dense1.kernel.shape
        (2, 8, 1)
        >>> def loss(model, z, task, x, targets):
        ...     error = model.heads["stacked"](z)[:, 0] - targets[:, task]
        ...     return jnp.mean(error**2)
        >>> oracle = mtlopt.nnx.task_grad(
        ...     mtlopt.stacked(loss, 2),
        ...     {"encoder": "shared", "heads": "stacked"},
        ...     encode=lambda model, x, targets: model.encode(x),
        ... )
        >>> x, targets = jnp.ones([4, 2]), jnp.zeros([4, 2])
        >>> nnx.eval_shape(oracle, model, x, targets).losses.shape
        (2,)
        >>> run = nnx.vmap(lambda head, z: head(z), in_axes=(0, None))
        >>> nnx.eval_shape(run, model.heads["stacked"], jnp.ones([4, 8])).shape
        (2, 4, 1)
    """
    graphdefs, states = zip(*map(nnx.split, model.heads.values()), strict=True)
    shapes = [jax.tree.map(jnp.shape, state) for state in states]
    if any(graphdef != graphdefs[0] for graphdef in graphdefs) or any(
        shape != shapes[0] for shape in shapes
    ):
        raise ValueError(
            "`model` must have heads of the same layers and sizes to stack."
        )
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *states)
    model = nnx.clone(model)
    model.heads = nnx.Dict({name: nnx.merge(graphdefs[0], stacked)})
    return model
