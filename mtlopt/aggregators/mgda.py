"""MGDA: the min-norm point of the task gradients (Sener & Koltun, NeurIPS 2018)."""

import jax
import optax

from mtlopt.aggregators.by_weights import aggregate_by_weights
from mtlopt.linalg.min_norm import min_norm_point


def mgda_weights(gramian: jax.Array, present: jax.Array | None = None) -> jax.Array:
    r"""Weights of MGDA: the convex combination of smallest norm.

    .. math:: \alpha = \mathrm{argmin}_w \, w^T G w
        \quad \text{subject to} \quad w \ge 0, \; 1^T w = 1

    Exact, not Frank-Wolfe (see `min_norm_point`). If zero is in the convex hull of
    the gradients the direction is zero, and zero rows get all the weight. On equal
    gradients `g` the direction is `g`. NaN in, NaN out. Not reverse-differentiable.

    Args:
      gramian: `G`, inner products of the task gradients, `[tasks, tasks]`.
      present: Tasks that take part, bool `[tasks]`; the others get weight zero.

    Returns:
      The weights `alpha`, `[tasks]`, non-negative and summing to 1.

    Raises:
      ValueError: If a shape does not fit.

    Examples:
      >>> import jax.numpy as jnp
      >>> print(mgda_weights(jnp.diag(jnp.array([4.0, 1.0]))))
      [0.2 0.8]

    References:
      Désidéri, *Multiple-gradient descent algorithm*, C. R. Math. 350, 2012. Sener and
      Koltun, *Multi-Task Learning as Multi-Objective Optimization*, NeurIPS 2018,
      Algorithm 2.
    """
    return min_norm_point(gramian, present).weights


def mgda(num_tasks: int) -> optax.GradientTransformationExtraArgs:
    r"""Takes the shortest combination of the task gradients.

    .. math:: d = \sum_i \alpha_i s_i g_i, \qquad
        \alpha = \mathrm{argmin}_{w \ge 0, \, 1^T w = 1} |\sum_i w_i s_i g_i|^2

    `-d` decreases every loss to first order (`<d, g_i> >= |d|^2`), and `d` is zero
    exactly at Pareto-stationary points: one zero gradient stops the shared parameters.
    Small gradients dominate the result. On T equal gradients g it returns g. Costs one
    backward pass per task; `in_latent_space(mgda(T))` is MGDA-UB and costs one.

    The weights act on shared leaves only; heads keep their own task's gradient.

    Args:
      num_tasks: number of tasks T.

    Returns:
      An aggregator: `TaskGrads` in, an update with the structure of the parameters out.

    Examples:
      >>> import jax.numpy as jnp
      >>> import mtlopt
      >>> grads = mtlopt.TaskGrads.from_rows(jnp.array([[2.0, 0.0], [0.0, 1.0]]))
      >>> aggregator = mtlopt.mgda(2)
      >>> updates, state = aggregator.update(grads, aggregator.init(jnp.zeros(2)))
      >>> print(updates, state.task_weights)
      [0.4 0.8] [0.2 0.8]

    References:
      Désidéri, *Multiple-gradient descent algorithm*, C. R. Math. 350, 2012. Sener and
      Koltun, *Multi-Task Learning as Multi-Objective Optimization*, NeurIPS 2018,
      equation 3; theirs is Frank-Wolfe, this is the exact point.
    """
    return aggregate_by_weights(
        num_tasks, lambda rows, present: mgda_weights(rows.gramian(), present)
    )
