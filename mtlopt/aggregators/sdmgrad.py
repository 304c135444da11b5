"""SDMGrad: direction-oriented multi-objective descent (Xiao et al., NeurIPS 2023)."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from mtlopt._checks import (
    as_int,
    check_positive,
    check_range,
    preference_argument,
)
from mtlopt.aggregators.by_weights import aggregate_with_state
from mtlopt.common.batch_products import batch_products
from mtlopt.common.task_weights import mean_weights
from mtlopt.linalg.normalise import Gramian, common_scale, safe_divide
from mtlopt.linalg.products import dot, present_products
from mtlopt.linalg.reductions import reduce_each
from mtlopt.linalg.simplex import (
    project_to_simplex,
    share_out,
    shares_of,
)
from mtlopt.rows.protocol import Rows
from mtlopt.task_grads import TaskGrads


class SdmgradState(NamedTuple):
    """State of `sdmgrad`.

    Attributes:
      task_weights: `[tasks]`, weights of the last update; zero for absent tasks.
      shares: `[tasks]`, the `w` that the next update starts from; they sum to one.
    """

    task_weights: jax.Array
    shares: jax.Array


class _Descent(NamedTuple):
    weights: jax.Array  # [tasks]: w
    velocity: jax.Array  # [tasks]
    matrix: jax.Array  # [tasks, tasks]: the products, with norm at most one
    offset: jax.Array  # [tasks]: the slope at w = 0
    learning_rate: jax.Array
    momentum: jax.Array
    present: jax.Array | None


def sdmgrad_weights(
    products: Gramian,
    start: jax.Array,
    preference: Any = None,
    regularization: Any = 0.3,
    learning_rate: Any = 1.0,
    momentum: Any = 0.5,
    num_steps: int = 20,
    present: jax.Array | None = None,
) -> jax.Array:
    r"""Weights of SDMGrad: those of smallest norm, with a pull to a preference.

    .. math:: \alpha = \frac{w + \lambda p}{1 + \lambda}, \qquad
        w \approx \mathrm{argmin}_{w \ge 0, \, 1^T w = 1} |J^T (w + \lambda p)|^2

    `w` takes `num_steps` projected gradient steps with momentum from `start`. The step
    is `learning_rate` over the largest absolute row sum of the products, which bounds
    their curvature: no step overshoots, and the scale of the gradients drops out.
    Zero products leave `w` where it is; duplicates that start equal stay equal. NaN in,
    NaN out. Differentiable almost everywhere.

    Args:
      products: inner products of the gradients of two batches, or of one with itself,
        `[tasks, tasks]`.
      start: `w` before, `[tasks]`, non-negative; divided by its sum over present tasks.
      preference: `p`, `[tasks]`, used as it is; None for equal ones that sum to one.
      regularization: `lambda`, at least 0: 0 is the min-norm point, large is `p`.
      learning_rate: relative size of a step; converges below `2 (1 + momentum)`.
      momentum: share of the last step in the next one, below 1.
      num_steps: number of steps, a Python int.
      present: Tasks that take part, bool `[tasks]`; the others get weight zero.

    Returns:
      The weights `alpha`, `[tasks]`, non-negative, summing to 1 if `p` does.

    Raises:
      ValueError: If a shape does not fit.

    Examples:
      >>> import jax.numpy as jnp
      >>> gramian, start = jnp.diag(jnp.array([1.0, 2.0])), jnp.array([0.5, 0.5])
      >>> weights = sdmgrad_weights(gramian, start, regularization=0.0)
      >>> [round(float(weight), 3) for weight in weights]
      [0.667, 0.333]

    References:
      Xiao, Ban and Ji, *Direction-oriented Multi-objective Learning*, NeurIPS 2023,
      Algorithm 1.
    """
    moved = _descend(
        products,
        start,
        preference,
        regularization,
        learning_rate,
        momentum,
        num_steps,
        present,
    )
    return _pull(moved, preference, regularization, present)


def sdmgrad(
    num_tasks: int,
    preference: Any = None,
    regularization: Any = 0.3,
    learning_rate: Any = 1.0,
    momentum: Any = 0.5,
    num_steps: int = 20,
) -> optax.GradientTransformationExtraArgs:
    r"""Takes a short combination of the task gradients, not far from a preferred one.

    .. math:: d = \frac{J^T (w + \lambda p)}{1 + \lambda}, \qquad
        w \approx \mathrm{argmin}_{w \ge 0, \, 1^T w = 1} |J^T (w + \lambda p)|^2

    Between MGDA (`lambda` = 0) and the preferred combination (large), like CAGrad, but
    made for noisy gradients: `w` takes `num_steps` projected gradient steps from where
    the last update left it, on the product of two batches. With full-batch gradients
    that do not change it converges to the minimiser. On T equal gradients g it returns
    g. No task's weight is zero while its preference is not. `d` may conflict with a
    task. Costs one backward pass per task and batch.

    `update` takes the keyword `second`, gradients of the same tasks at the same
    parameters on another batch: `tx.update(grads, state, params, second=oracle(params,
    other_batch))`. Without it the batch serves for both: exact for full-batch
    gradients, else biased towards the tasks with little noise. The direction is that
    of the first batch; the paper draws a third one for it. Scales, present tasks and
    latent space are as in `modo`.

    The steps do not depend on the scale of the gradients. The authors' code, LibMTL and
    TorchJD divide the products by the squared mean norm and take steps of 5 or 10, too
    long by the bound `2 (1 + momentum)` over the curvature: on two orthogonal gradients
    TorchJD jumps between the ends of the simplex. Ours converges. At equal norms their
    learning rate is ours over the largest row sum of the cosines.

    Args:
      num_tasks: number of tasks T.
      preference: `p`, `[tasks]` or by name, not negative, used as it is and never
        renormalised; None for `1/T`.
      regularization: `lambda`, at least 0.
      learning_rate: relative size of a step; converges below `2 (1 + momentum)`.
      momentum: share of the last step in the next one, below 1.
      num_steps: number of steps an update, a Python int.

    Returns:
      An aggregator: `TaskGrads` in, an update with the structure of the parameters out.

    Raises:
      ValueError: if an argument is out of range; at the update, if `second` does not
        belong to the same problem.

    Examples:
      >>> import jax.numpy as jnp
      >>> import mtlopt
      >>> grads = mtlopt.TaskGrads.from_rows(jnp.array([[1.0, 0.0], [0.0, 2.0]]))
      >>> aggregator = mtlopt.sdmgrad(2, regularization=1.0)
      >>> updates, state = aggregator.update(grads, aggregator.init(jnp.zeros(2)))
      >>> [round(float(weight), 3) for weight in state.task_weights]
      [0.75, 0.25]

    References:
      Xiao, Ban and Ji, *Direction-oriented Multi-objective Learning: Simple and
      Provable Stochastic Algorithms*, NeurIPS 2023, Algorithm 1; the division by
      `1 + lambda` is that of the authors' code.
    """
    check_range("regularization", regularization)
    check_positive("learning_rate", learning_rate)
    check_range("momentum", momentum, below=1)
    num_steps = as_int("num_steps", num_steps)
    read = preference_argument(preference, num_tasks)

    def initial() -> SdmgradState:
        # An array each: the caller may donate the state.
        first, shares = (jnp.full(num_tasks, 1 / num_tasks, float) for _ in range(2))
        return SdmgradState(first, shares)

    def weigh(
        grads: TaskGrads,
        rows: Rows,
        state: SdmgradState,
        *,
        params: Any,
        second: TaskGrads | None = None,
        **_: Any,
    ) -> tuple[jax.Array, SdmgradState]:
        products, both = batch_products(grads, rows, second, params)
        preferred = read(grads.tasks)
        moved = _descend(
            products,
            state.shares,
            preferred,
            regularization,
            learning_rate,
            momentum,
            num_steps,
            both,
        )
        shares = share_out(moved, state.shares, 1.0, both)
        own = shares_of(shares, grads.present)
        weights = _pull(own, preferred, regularization, grads.present)
        return weights, state._replace(shares=shares)

    return aggregate_with_state("sdmgrad", num_tasks, initial, weigh)


def _pull(
    weights: jax.Array, preference: Any, regularization: Any, present: jax.Array | None
) -> jax.Array:
    """Returns `(w + lambda p) / (1 + lambda)`."""
    target = mean_weights(len(weights), preference, present).astype(weights.dtype)
    return (weights + regularization * target) / (1 + regularization)


def _descend(
    products: Gramian,
    start: jax.Array,
    preference: Any,
    regularization: Any,
    learning_rate: Any,
    momentum: Any,
    num_steps: int,
    present: jax.Array | None,
) -> jax.Array:
    """Returns `w` after `num_steps` steps."""
    products = present_products(common_scale(products)[0], present)
    products = products.astype(start.dtype)
    # At least the spectral radius for any matrix, and no squares that underflow.
    (bound,) = reduce_each(maxima=[jnp.sum(jnp.abs(products), axis=1)])
    matrix = safe_divide(products, bound)
    weights = shares_of(start, present)
    target = mean_weights(len(weights), preference, present).astype(matrix.dtype)
    descent = _Descent(
        weights=weights,
        velocity=jnp.zeros_like(weights),
        matrix=matrix,
        offset=regularization * dot(matrix, target),
        learning_rate=jnp.asarray(learning_rate, weights.dtype),
        momentum=jnp.asarray(momentum, weights.dtype),
        present=present,
    )
    return jax.lax.fori_loop(0, num_steps, _step, descent).weights


def _step(_: jax.Array, descent: _Descent) -> _Descent:
    """Module-level and without closures, so that eager calls do not compile again."""
    slope = dot(descent.matrix, descent.weights) + descent.offset
    velocity = descent.momentum * descent.velocity + slope
    point = descent.weights - descent.learning_rate * velocity
    weights = project_to_simplex(point, descent.present)
    return descent._replace(weights=weights, velocity=velocity)
