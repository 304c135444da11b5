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
    r"""Returns the weights `alpha` `[tasks]` of `mgda`, at least 0 and with sum 1.

    .. math:: \alpha = \mathrm{argmin}_w \, w^T S^{-1} G S^{-1} w
        \quad \text{subject to} \quad w \ge 0, \; 1^T w = 1

    The weights are exact. `S` is the identity, or a diagonal matrix of gradient norms
    (`"l2"`), losses (`"loss"`) or their products (`"loss+"`). Zero gradients get all
    the weight, and duplicates split the weight of one task arbitrarily. Without a
    normalisation, equal gradients `g` give the direction `g`, and the direction is zero
    if the convex hull of the gradients contains zero, as for opposed gradients.
    `"loss"` and `"loss+"` need the `losses` `[tasks]`. Only the absolute values of
    losses count, so a negative loss does not reverse its gradient. A task with a loss
    of zero gets weight zero. If all losses are zero, they count as equal.

    Raises:
      ValueError: if `normalisation` is unknown, or needs `losses` and there are none.

    Examples:
      >>> import jax.numpy as jnp
      >>> print(*mgda_weights(jnp.diag(jnp.array([4.0, 1.0]))))  # doctest: +NUMBER
      0.2 0.8
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
    # The weights do not depend on this unit; without it the squares may overflow.
    lengths = safe_divide(lengths, jax.lax.stop_gradient(jnp.max(lengths)))
    scaled = lengths[:, None] * cosines * lengths[None]
    return min_norm_point(scaled, present & ~solved).weights


def mgda(
    num_tasks: int, normalisation: Normalisation | None = None
) -> optax.GradientTransformationExtraArgs:
    r"""Takes the shortest convex combination of the task gradients: MGDA.

    .. math:: d = \sum_i \alpha_i s_i g_i, \qquad
        \alpha = \mathrm{argmin}_{w \ge 0, \, 1^T w = 1} |\sum_i w_i s_i g_i|^2

    `-d` decreases every loss to first order (`<d, g_i> >= |d|^2`). `d` is zero exactly
    at Pareto-stationary points, so one zero gradient stops the shared parameters. Small
    gradients dominate the result. `in_latent_space(mgda(T))` is MGDA-UB.

    With a normalisation, the weights are found for gradients divided by their norms
    (`"l2"`), by their scaled losses `s_i L_i` (`"loss"`) or by both (`"loss+"`), so
    small gradients dominate less. These weights then multiply the original gradients,
    so `d` may conflict with a task and may be non-zero at a Pareto-stationary point.
    `edm` combines unit gradients and avoids both problems. Losses should be positive.

    Args:
      num_tasks: number of tasks T.
      normalisation: None, `"l2"`, `"loss"` or `"loss+"`.

    Raises:
      ValueError: if `normalisation` is unknown.

    Examples:
      >>> import jax.numpy as jnp, mtlopt
      >>> grads = mtlopt.TaskGrads.from_rows(jnp.array([[2.0, 0.0], [0.0, 1.0]]))
      >>> aggregator = mtlopt.mgda(2)
      >>> updates, _ = aggregator.update(grads, aggregator.init(jnp.zeros(2)))
      >>> print(*updates)  # doctest: +NUMBER
      0.4 0.8

    References:
      Désidéri, *Multiple-gradient descent algorithm*, C. R. Math. 350, 2012. Sener and
      Koltun, *Multi-Task Learning as Multi-Objective Optimization*, NeurIPS 2018,
      equation 3, algorithm 2; the normalisations are from the code of that paper.
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
