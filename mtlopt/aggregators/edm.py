"""EDM: the equiangular direction (Katrutsa et al., 2020)."""

import jax
import jax.numpy as jnp
import optax

from mtlopt.aggregators.by_weights import aggregate_by_weights
from mtlopt.linalg.min_norm import min_norm_point
from mtlopt.linalg.normalise import Gramian, normalise, safe_divide


def edm_weights(gramian: Gramian, present: jax.Array | None = None) -> jax.Array:
    r"""Weights of the equiangular direction method, EDM.

    .. math:: w_i = \gamma \, \alpha_i / |g_i|, \qquad \gamma = 1 / \sum_i
        \alpha_i / |g_i|, \qquad \alpha = \mathrm{argmin}_{a \ge 0, \, 1^T a = 1}
        |\sum_i a_i g_i / |g_i||^2

    The direction is that of the shortest combination of the *unit* gradients, its
    length is where that ray meets the convex hull of the gradients. All tasks with a
    positive weight have the same cosine with it, the others a larger one. On equal
    gradients `g` the direction is `g`. If zero is in the hull (opposed rows) the
    direction is zero; zero rows get all the weight; duplicates share one row's weight.
    One task has weight 1. NaN in, NaN out.

    Args:
      gramian: `G`, inner products of the task gradients, `[tasks, tasks]`.
      present: Tasks that take part, bool `[tasks]`; the others get weight zero.

    Returns:
      The weights, `[tasks]`, non-negative and summing to 1.

    Raises:
      ValueError: If a shape does not fit.

    Examples:
      >>> import jax.numpy as jnp
      >>> print(edm_weights(jnp.diag(jnp.array([9.0, 1.0]))))
      [0.25 0.75]

    References:
      Katrutsa, Merkulov, Tursynbek and Oseledets, *Follow the bisector: a simple method
      for multi-objective optimization*, arXiv 2007.06937, 2020.
    """
    cosines, norms = normalise(gramian, present)
    shares = min_norm_point(cosines, present).weights
    # A unit, which does not matter: no derivative.
    smallest = jax.lax.stop_gradient(jnp.min(norms, where=norms > 0, initial=jnp.inf))
    scaled = shares * jnp.where(norms > 0, safe_divide(smallest, norms), 0)
    total = jnp.sum(scaled)
    # Nothing is left where zero rows have it all.
    return jnp.where(total == 0, shares, safe_divide(scaled, total))


def edm(num_tasks: int) -> optax.GradientTransformationExtraArgs:
    r"""Follows the bisector of the task gradients: EDM.

    .. math:: d = \gamma \sum_i \alpha_i u_i, \qquad u_i = g_i / |g_i|, \qquad
        \alpha = \mathrm{argmin}_{a \ge 0, \, 1^T a = 1} |\sum_i a_i u_i|^2

    with the task gradients scaled by the weightings and `gamma` such that `d` is a
    convex combination of them. `-d` decreases every loss to first order, relative to
    its gradient's norm by the same amount for every task that has a weight, and by more
    for the others. `d` is zero exactly at Pareto-stationary points: one zero gradient,
    or two opposed ones, stop the shared parameters. On T equal gradients g it returns
    g. The direction does not depend on the tasks' scales, the length does. Costs one
    backward pass per task.

    Relatives: `mgda(T, "l2")` has the same `alpha`, but puts it on the gradients as
    they are, which may conflict. `imtl_g` and `conflict_free` have the same cosine with
    *all* tasks, also where that takes negative weights: `imtl_g` is the same vector
    where its weights are positive (always for two tasks), and `conflict_free` is the
    same direction there and longer.

    The weights act on shared leaves only; heads keep their own task's gradient.

    Args:
      num_tasks: number of tasks T.

    Returns:
      An aggregator: `TaskGrads` in, an update with the structure of the parameters out.

    Examples:
      >>> import jax.numpy as jnp
      >>> import mtlopt
      >>> grads = mtlopt.TaskGrads.from_rows(jnp.array([[3.0, 0.0], [0.0, 1.0]]))
      >>> aggregator = mtlopt.edm(2)
      >>> updates, state = aggregator.update(grads, aggregator.init(jnp.zeros(2)))
      >>> print(updates, state.task_weights)
      [0.75 0.75] [0.25 0.75]

    References:
      Katrutsa, Merkulov, Tursynbek and Oseledets, *Follow the bisector: a simple method
      for multi-objective optimization*, arXiv 2007.06937, 2020. The authors' code has
      the closed form for two tasks, `(|g_2| g_1 + |g_1| g_2) / (|g_1| + |g_2|)`, and
      Frank-Wolfe for more; this is the exact point.
    """
    return aggregate_by_weights(
        "edm",
        num_tasks,
        lambda rows, present: edm_weights(rows.scaled_gramian(present), present),
    )
