"""Measures of the task gradients: do they conflict, dominate, or cancel?"""

import itertools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from mtlopt.diagnostics.measures import conflict_rate, dominance_rate
from mtlopt.linalg.min_norm import min_norm_point
from mtlopt.linalg.normalise import nan_unless_finite, normalise
from mtlopt.task_grads import TaskGrads

_SCALARS = ("norm_ratio", "dominance_rate", "conflict_rate", "stationarity_gap")
_SCALARS += ("relative_gap", "condition")


@jax.tree_util.register_static
class TaskNames(tuple[str, ...]):
    """Names of the tasks, which go through `jit` and `scan` with the arrays."""


class Diagnosis(NamedTuple):
    """How the gradients of the tasks relate to each other: the result of `diagnose`.

    Attributes:
      cosines: `[tasks, tasks]`, see `cosine_similarity`; negative if two tasks
        conflict.
      norms: `[tasks]`, lengths of the gradients; zero for absent tasks.
      norm_ratio: ratio of the longest to the shortest gradient, at least 1; infinite if
        a gradient is zero.
      dominance_rate: condition number of the matrix of gradients, see `dominance_rate`.
      conflict_rate: share of pairs of tasks that conflict, see `conflict_rate`.
      stationarity_gap: length of the shortest convex combination of the gradients; zero
        at a Pareto-stationary point.
      relative_gap: the stationarity gap divided by the mean of the norms, from 0 to 1.
      condition: condition number of `cosines`, the Gramian of the normalised gradients;
        infinite if the directions are linearly dependent to the precision of this
        Gramian.
      present: `[tasks]` bool, the tasks that were measured.
      finite_losses: `[tasks]` bool, whether the loss is finite; True for absent tasks.
      finite_gradients: `[tasks]` bool, whether the task's shared gradient and the
        gradient of its head are finite; True for absent tasks.
      tasks: names of the tasks.
    """

    cosines: jax.Array
    norms: jax.Array
    norm_ratio: jax.Array
    dominance_rate: jax.Array
    conflict_rate: jax.Array
    stationarity_gap: jax.Array
    relative_gap: jax.Array
    condition: jax.Array
    present: jax.Array
    finite_losses: jax.Array
    finite_gradients: jax.Array
    tasks: TaskNames

    def metrics(self) -> dict[str, jax.Array]:
        """Returns the numbers by name, for a logger.

        Scalars have the name of their field. Each task has an entry such as
        `norm/left`, and each pair an entry such as `cosine/left/right`. If diagnoses
        are stacked, each value has the axes of the stack. Entries of absent tasks are
        NaN, because zeros would look like orthogonal gradients. The method works under
        `jit`.

        Examples:
          >>> import jax.numpy as jnp
          >>> import mtlopt
          >>> grads = mtlopt.TaskGrads.from_rows(jnp.eye(2), tasks=("left", "right"))
          >>> found = mtlopt.diagnose(grads).metrics()
          >>> print(found["norm/left"], found["cosine/left/right"])
          1.0 0.0
        """
        both = self.present[..., None] & self.present[..., None, :]
        norms = jnp.where(self.present, self.norms, jnp.nan)
        cosines = jnp.where(both, self.cosines, jnp.nan)
        each = {f"norm/{task}": norms[..., i] for i, task in enumerate(self.tasks)}
        pairs = {
            f"cosine/{self.tasks[i]}/{self.tasks[j]}": cosines[..., i, j]
            for i, j in itertools.combinations(range(len(self.tasks)), 2)
        }
        return {name: getattr(self, name) for name in _SCALARS} | each | pairs


def as_diagnosis(diagnosis: Any) -> Diagnosis:
    """Returns a diagnosis; stacks a list of them along a first axis, on the host."""
    if isinstance(diagnosis, list) and diagnosis:
        each = [as_diagnosis(one) for one in diagnosis]
        return jax.tree.map(lambda *leaves: np.stack(leaves), *each)
    if not isinstance(diagnosis, Diagnosis):
        raise TypeError(
            "`diagnosis` must be a result of mtlopt.diagnose(grads), or a list of such "
            f"results, got {type(diagnosis).__name__}."
        )
    return diagnosis


def diagnose(grads: TaskGrads) -> Diagnosis:
    r"""Measures how the gradients of the tasks relate to each other.

    .. math:: G = J J^T, \qquad
        \text{gap} = \min_{w \ge 0, \, 1^T w = 1} \lVert J^T w \rVert, \qquad
        \text{relative gap} = \text{gap} \Big/ \frac1T \sum_i \lVert g_i \rVert

    The rows of `J` are the gradients :math:`g_i` of the `T` tasks. All numbers come
    from their Gramian `G`, so a diagnosis costs as much as an aggregator: one backward
    pass per task over the shared parameters. In latent space, with
    `diagnose(grads.in_latent_space())`, it costs one backward pass for all tasks
    together. If weightings scaled the gradients, `diagnose` measures the scaled
    gradients. The function works under `jit`, `vmap` and `scan`. Inside a jitted step
    with an aggregator, XLA computes the rows (the tasks' gradients) only once, for both
    the aggregator and the diagnosis.

    All measures ignore absent tasks, whose norms and cosines are zero. The Gramian
    resolves the gap only down to `sqrt(eps)` times the norms (3e-4 in float32). A NaN
    or an infinity in a gradient makes every scalar NaN; the gradient's own norm and
    cosines show which gradient it is. A NaN in a loss, or in the gradient of a head,
    appears only in `finite_losses` and `finite_gradients`. If all gradients are zero,
    the gap is zero, and every ratio of lengths is NaN. If no task is present, all
    numbers are meaningless.

    Args:
      grads: gradients of the tasks, from a `task_grad` oracle.

    Returns:
      A `Diagnosis`, a pytree of arrays.

    Raises:
      TypeError: if `grads` is not a `TaskGrads`.

    Examples:
      >>> import jax.numpy as jnp
      >>> import mtlopt
      >>> grads = mtlopt.TaskGrads.from_rows(jnp.array([[4.0, 0.0], [-3.0, 3.0]]))
      >>> found = mtlopt.diagnose(grads)
      >>> print(*found.norms, found.conflict_rate)  # doctest: +NUMBER
      4.0 4.243 1.0
      >>> print(found.cosines[0, 1], found.stationarity_gap)  # doctest: +NUMBER
      -0.7071 1.5757

    References:
      Cosines and conflict: Yu et al., *Gradient Surgery for Multi-Task Learning*,
      NeurIPS 2020, definition 1. Dominance: Aligned-MTL (see `aligned_mtl`), definition
      1. Pareto stationarity: Désidéri, C. R. Math. 350, 2012; Sener and Koltun,
      *Multi-Task Learning as Multi-Objective Optimization*, NeurIPS 2018, equation 3.
    """
    if not isinstance(grads, TaskGrads):
        raise TypeError(
            f"`grads` must be a mtlopt.TaskGrads, got {type(grads).__name__}. Compute "
            "it with mtlopt.task_grad."
        )
    present = grads.present
    gramian = grads.rows().scaled_gramian(present)
    there = jnp.ones(grads.num_tasks, bool) if present is None else present
    cosines, norms = normalise(gramian, present)
    gap = min_norm_point(gramian, present).norm
    longest = jnp.max(norms)
    shortest = jnp.min(jnp.where(there, norms, longest))
    total = jnp.sum(norms)
    return Diagnosis(
        cosines=cosines,
        norms=norms,
        norm_ratio=nan_unless_finite(longest / shortest, cosines),
        dominance_rate=dominance_rate(gramian, present),
        conflict_rate=conflict_rate(gramian, present),
        stationarity_gap=gap,
        relative_gap=jnp.where(total == 0, gap, gap * jnp.sum(there) / total),
        condition=jnp.square(dominance_rate(cosines, present)),
        present=there,
        finite_losses=jnp.isfinite(grads.losses) | ~there,
        finite_gradients=(jnp.isfinite(norms) & grads.finite_heads()) | ~there,
        tasks=TaskNames(grads.tasks),
    )
