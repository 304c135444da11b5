"""MGDA: the min-norm point of the task gradients (Sener & Koltun, NeurIPS 2018)."""

from typing import Any, Literal

import jax
import jax.numpy as jnp
import optax

from mtlopt._checks import as_task_vector, check_choice
from mtlopt.aggregators.by_weights import aggregate_with_state
from mtlopt.common.task_weights import TaskWeightsState
from mtlopt.linalg.min_norm import min_norm_point
from mtlopt.linalg.normalise import Gramian, normalise, safe_divide
from mtlopt.linalg.products import diagonal
from mtlopt.rows.protocol import Rows
from mtlopt.task_grads import TaskGrads

Normalisation = Literal["l2", "loss", "loss+"]


def mgda_weights(
    gramian: Gramian,
    present: jax.Array | None = None,
    *,
    normalisation: Normalisation | None = None,
    losses: Any = None,
) -> jax.Array:
    r"""Weights of MGDA: the convex combination of smallest norm.

    .. math:: \alpha = \mathrm{argmin}_w \, w^T S^{-1} G S^{-1} w
        \quad \text{subject to} \quad w \ge 0, \; 1^T w = 1

    Exact, not Frank-Wolfe (see `min_norm_point`). `S` is diagonal: 1, or with a
    normalisation the gradient norms (`"l2"`), the losses (`"loss"`), or their product
    (`"loss+"`).

    Without normalisation: if zero is in the convex hull of the gradients the direction
    is zero, and zero rows get all the weight. On equal gradients `g` the direction is
    `g`. NaN in, NaN out.

    Under every normalisation zero rows get all the weight, and duplicates share one
    task's weight in one of the possible ways. A loss of zero makes a row infinitely
    long, which is weight zero; if no loss differs from zero, losses count as equal.
    Only the size of a loss counts, so a negative one does not turn its gradient round.

    Args:
      gramian: `G`, inner products of the task gradients, `[tasks, tasks]`.
      present: Tasks that take part, bool `[tasks]`; the others get weight zero.
      normalisation: What the gradients are divided by: None for nothing, `"l2"`,
        `"loss"` or `"loss+"`.
      losses: The losses, `[tasks]`; `"loss"` and `"loss+"` need them.

    Returns:
      The weights `alpha`, `[tasks]`, non-negative and summing to 1.

    Raises:
      ValueError: If the normalisation is unknown or misses the losses, or a shape does
        not fit.

    Examples:
      >>> import jax.numpy as jnp
      >>> gramian = jnp.diag(jnp.array([4.0, 1.0]))
      >>> for normalisation in (None, "l2"):
      ...     weights = mgda_weights(gramian, normalisation=normalisation)
      ...     print([round(float(weight), 4) for weight in weights])
      [0.2, 0.8]
      [0.5, 0.5]

    References:
      Désidéri, *Multiple-gradient descent algorithm*, C. R. Math. 350, 2012. Sener and
      Koltun, *Multi-Task Learning as Multi-Objective Optimization*, NeurIPS 2018,
      Algorithm 2; the normalisations are those of its code.
    """
    if normalisation is None:
        return min_norm_point(gramian, present).weights
    check_choice("normalisation", normalisation, ("l2", "loss", "loss+"))
    cosines, norms = normalise(gramian, present)
    if normalisation == "l2":
        return min_norm_point(cosines, present).weights
    if losses is None:
        raise ValueError(
            f"`losses` must be given for the normalisation {normalisation!r}, got None."
        )
    losses = as_task_vector("losses", losses, len(norms)).astype(norms.dtype)
    lengths = norms if normalisation == "loss" else diagonal(cosines)
    present = jnp.ones(norms.shape, bool) if present is None else jnp.asarray(present)
    sizes = jnp.where(present, jnp.abs(losses), 0)
    sizes = jnp.where(jnp.any(sizes != 0), sizes, 1)
    solved = (sizes == 0) & (norms > 0)
    lengths = safe_divide(lengths, sizes)
    # In a unit, which does not matter, or their squares overflow.
    lengths = safe_divide(lengths, jax.lax.stop_gradient(jnp.max(lengths)))
    scaled = lengths[:, None] * cosines * lengths[None]
    return min_norm_point(scaled, present & ~solved).weights


def mgda(
    num_tasks: int, normalisation: Normalisation | None = None
) -> optax.GradientTransformationExtraArgs:
    r"""Takes the shortest combination of the task gradients.

    .. math:: d = \sum_i \alpha_i s_i g_i, \qquad
        \alpha = \mathrm{argmin}_{w \ge 0, \, 1^T w = 1} |\sum_i w_i s_i g_i|^2

    `-d` decreases every loss to first order (`<d, g_i> >= |d|^2`), and `d` is zero
    exactly at Pareto-stationary points: one zero gradient stops the shared parameters.
    Small gradients dominate the result. On T equal gradients g it returns g. Costs one
    backward pass per task; `in_latent_space(mgda(T))` is MGDA-UB and costs one.

    With a normalisation the weights are those of the gradients divided by their norms
    (`"l2"`), by the scaled losses `s_i L_i` (`"loss"`) or by both (`"loss+"`), so that
    small gradients dominate less. They then weigh the gradients as they are, as in the
    authors' code: `d` may conflict with a task, and may differ from zero at a
    Pareto-stationary point. `edm` weighs the unit gradients and keeps both guarantees.
    LibMTL's `d` is the combination of the divided gradients, whose length has another
    unit. A zero gradient stops the shared parameters here too; a task whose loss is
    zero gets weight zero. Losses should be positive; only their size counts.

    The weights act on shared leaves only; heads keep their own task's gradient.

    Args:
      num_tasks: number of tasks T.
      normalisation: what the gradients are divided by while the weights are found:
        None for nothing, `"l2"`, `"loss"` or `"loss+"`.

    Returns:
      An aggregator: `TaskGrads` in, an update with the structure of the parameters out.

    Raises:
      ValueError: if `normalisation` is unknown.

    Examples:
      >>> import jax.numpy as jnp
      >>> import mtlopt
      >>> grads = mtlopt.TaskGrads.from_rows(jnp.array([[2.0, 0.0], [0.0, 1.0]]))
      >>> aggregator = mtlopt.mgda(2)
      >>> updates, state = aggregator.update(grads, aggregator.init(jnp.zeros(2)))
      >>> [round(float(value), 4) for value in (*updates, *state.task_weights)]
      [0.4, 0.8, 0.2, 0.8]

    References:
      Désidéri, *Multiple-gradient descent algorithm*, C. R. Math. 350, 2012. Sener and
      Koltun, *Multi-Task Learning as Multi-Objective Optimization*, NeurIPS 2018,
      equation 3; theirs is Frank-Wolfe, this is the exact point.
    """
    if normalisation is not None:
        check_choice("normalisation", normalisation, ("l2", "loss", "loss+"))

    def weigh(
        grads: TaskGrads, rows: Rows, state: TaskWeightsState, **_: Any
    ) -> tuple[jax.Array, TaskWeightsState]:
        weights = mgda_weights(
            rows.scaled_gramian(grads.present),
            grads.present,
            normalisation=normalisation,
            # Rows are gradients of the scaled losses.
            losses=grads.loss_scales * grads.losses.astype(grads.loss_scales.dtype),
        )
        return weights, state

    return aggregate_with_state(
        "mgda", num_tasks, lambda: TaskWeightsState.uniform(num_tasks), weigh
    )
