"""Which losses a step would raise, to first order."""

from typing import Any

import jax

from mtlopt.grad import check_task_grads
from mtlopt.labels import tree_mismatch
from mtlopt.slopes import slopes


def would_rise(grads: Any, direction: Any) -> jax.Array:
    r"""Returns which losses rise to first order if the parameters move by `-direction`.

    .. math:: \langle \nabla L_i, d \rangle < 0

    Here `d` is `direction`. One Jacobian-vector product along `d` gives the results for
    all tasks. It costs about as much as a forward pass, whatever the number of tasks,
    because no gradient per task is computed.

    Args:
      grads: a `TaskGrads`. Factors from weightings are ignored.
      direction: a pytree with the structure of the parameters. Pass a gradient, which
        an optimizer subtracts, such as the result of an aggregator or of
        `grads.total()`. An optimizer's result is added to the parameters, so pass its
        negative.

    Returns:
      `[tasks]` bool; False for absent tasks.

    Raises:
      TypeError: if `grads` is not a `TaskGrads`.
      ValueError: if `direction` does not have the structure of the parameters.

    Examples:
      >>> import jax.numpy as jnp
      >>> import mtlopt
      >>> grads = mtlopt.TaskGrads.from_rows(jnp.array([[1.0, 0.0], [-2.0, 1.0]]))
      >>> mtlopt.would_rise(grads, grads.total())
      Array([ True, False], dtype=bool)
    """
    grads = check_task_grads(grads, getattr(grads, "num_tasks", 0))
    partition = grads.partition
    if jax.tree.structure(direction) != partition.treedef:
        params = partition.treedef.unflatten(partition.paths)
        raise ValueError(
            "`direction` must have the structure of the parameters, but it "
            f"{tree_mismatch(params, direction)}."
        )
    return slopes(grads, direction).total < 0
