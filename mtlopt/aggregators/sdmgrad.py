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
    """State of `sdmgrad`: the next update starts at the weights `shares`, `[tasks]`."""

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
    """Returns the weights `(w + lambda p) / (1 + lambda)` `[tasks]` of `sdmgrad`.

    `p` is `preference`; `lambda` is `regularization`. `w` takes projected gradient
    steps with momentum from `start` (of any sum). The step size is `learning_rate` over
    the largest absolute row sum of `products`. This sum bounds the curvature, so the
    gradients' scale does not matter, and at rates of at most 1, a step without momentum
    does not overshoot. Weights are not negative, and sum to 1 if `p` does. Zero
    products do not change `w`; equal weights of duplicates stay equal. Weights are
    differentiable almost everywhere. `products`: inner products of one batch or two.

    Examples:
      >>> import jax.numpy as jnp
      >>> gramian, start = jnp.diag(jnp.array([1.0, 2.0])), jnp.array([0.5, 0.5])
      >>> print(*sdmgrad_weights(gramian, start, regularization=0))  # doctest: +NUMBER
      0.667 0.333
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
    r"""Takes a short combination of gradients near a preferred combination: SDMGrad.

    .. math:: d = \frac{J^T (w + \lambda p)}{1 + \lambda}, \qquad
        w \approx \mathrm{argmin}_{w \ge 0, \, 1^T w = 1} |J^T (w + \lambda p)|^2

    `d` lies between MGDA (`lambda = 0`) and the preferred combination (large `lambda`),
    as in CAGrad. But SDMGrad is made for noisy gradients: at each update, `w` takes
    `num_steps` projected gradient steps from its last value. With full-batch gradients
    that do not change, `w` converges to the minimiser. For T equal gradients g, `d` is
    g. A task with a positive preference has a positive weight. `d` may conflict with a
    task. `update` accepts the gradients of a `second` batch (see the guide *Methods*).

    Args:
      num_tasks: number of tasks T.
      preference: `p`, `[tasks]` or by name, at least 0, used as given; `1/T` if None.
      regularization: `lambda`, at least 0.
      learning_rate: relative step size; below `2 (1 + momentum)`, the steps converge.
      momentum: fraction of the last step that is added to the next step, below 1.
      num_steps: number of steps per update, a Python int.

    Raises:
      ValueError: if an argument is out of range, or `second` does not fit.

    Examples:
      >>> import jax.numpy as jnp, mtlopt
      >>> grads = mtlopt.TaskGrads.from_rows(jnp.array([[1.0, 0.0], [0.0, 2.0]]))
      >>> aggregator = mtlopt.sdmgrad(2, regularization=1.0)
      >>> updates, _ = aggregator.update(grads, aggregator.init(jnp.zeros(2)))
      >>> print(*updates)  # doctest: +NUMBER
      0.75 0.5

    References:
      Xiao, Ban and Ji, *Direction-oriented Multi-objective Learning*, NeurIPS 2023,
      algorithm 1; the division by `1 + lambda` is from the authors' code.
    """
    check_range("regularization", regularization)
    check_positive("learning_rate", learning_rate)
    check_range("momentum", momentum, below=1)
    num_steps = as_int("num_steps", num_steps)
    read = preference_argument(preference, num_tasks)

    def initial() -> SdmgradState:
        # Two arrays, because the caller may donate the state.
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
    # At least the spectral radius of any matrix, and without squares that underflow.
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
    """Takes one step. At module level, so that eager calls do not compile it again."""
    slope = dot(descent.matrix, descent.weights) + descent.offset
    velocity = descent.momentum * descent.velocity + slope
    point = descent.weights - descent.learning_rate * velocity
    weights = project_to_simplex(point, descent.present)
    return descent._replace(weights=weights, velocity=velocity)
