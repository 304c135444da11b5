"""Bargaining: weights whose reciprocal powers are the tasks' gains."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from mtlopt.linalg.normalise import Gramian, nan_unless_finite, normalise, safe_divide
from mtlopt.linalg.products import dot
from mtlopt.linalg.reductions import reduce_each

_MAX_STEPS = 100  # about ten are usual


class Bargain(NamedTuple):
    """The bargaining solution.

    Attributes:
      weights: `w`, `[tasks]`, positive; zero for zero rows and absent tasks.
      residual: The largest `|l - r| / max(|l|, r)` over the sides `l = G w` and
        `r = w^(-1/alpha)` of the equation, a scalar; from about 1 to 2 where there is
        no solution.
    """

    weights: jax.Array
    residual: jax.Array


class _Problem(NamedTuple):
    cosines: jax.Array  # C, with a unit diagonal also for rows that do not count
    on_diagonal: jax.Array  # bool, [tasks, tasks]
    units: jax.Array  # s, [tasks]: where the solution x would be without other tasks
    power: jax.Array  # q = 1 / alpha


class _State(NamedTuple):
    logs: jax.Array  # log y, [tasks]: the point is x = s y
    ridge: jax.Array  # scalar, added to the diagonal of C
    damping: jax.Array  # scalar, Levenberg-Marquardt
    done: jax.Array  # bool
    steps: jax.Array  # int32


@jax.jit
def bargain(
    gramian: Gramian, alpha: Any = 1.0, present: jax.Array | None = None
) -> Bargain:
    r"""Solves the equation of alpha-fair bargaining between the tasks.

    .. math:: G w = w^{-1/\alpha}, \quad w > 0

    With `q = 1/alpha` it is the optimality condition of a strictly convex problem,
    `w^T G w / 2` less `sum_i w_i^(1-q) / (1-q)` (`sum_i log w_i` for `q = 1`). In the
    variables `w_i = s_i y_i / |g_i|`, `s_i = |g_i|^((q-1)/(q+1))`, and with the cosines
    `C`, it is

    .. math:: C x = s y^{-q}, \qquad x = s y,

    whose Hessian `C + diag(q y^(-q-1))` holds no row scale; `y` is 1 for a task alone.
    Solved by Newton's method, damped (Levenberg-Marquardt) so that every step lowers
    the potential. Stops when the equation holds to its rounding errors: measured, after
    3 to 15 Cholesky factorisations for `alpha = 1` at any scales, after up to 40 where
    there is no solution, always after 100. Other `alpha` take as few at row scales up
    to 1e3 apart; at 1e6 an `alpha` below 1/2 or above 2 may end less exact, as
    `residual` tells.

    A solution exists unless zero is in the convex hull of the rows. So that there
    always is an answer, `C` has a ridge of `2 eps`, which grows to about `64 eps` where
    `C x` is only rounding, and further if `C` is indefinite by its own rounding. Where
    there is a solution that is its rounding error. Where not, the tasks whose gradients
    cancel get large but bounded weights (`w_i |g_i|` up to `sqrt(tasks / ridge)` for
    `alpha = 1`), their sum is zero to about `sqrt(ridge)`, and the others bargain in
    the space orthogonal to them. For `alpha = 1`, `|sum_i w_i g_i|^2` is at most the
    number of tasks.

    Zero rows get weight zero and do not count: no weight gives such a task a gain.
    Duplicate rows get equal weights, one task alone `|g|^(-2/(q+1))`. NaN in gives NaN
    out and ends at once. Not reverse-differentiable (`while_loop`; JAX raises).

    Args:
      gramian: `G`, inner products of the task gradients, `[tasks, tasks]`.
      alpha: fairness, positive, a scalar; 1 is Nash bargaining.
      present: Tasks that take part, bool `[tasks]`; the others get weight zero.

    Returns:
      The weights and the residual of the equation.

    Raises:
      ValueError: If a shape does not fit.

    Examples:
      >>> import jax.numpy as jnp
      >>> print(bargain(jnp.diag(jnp.array([4.0, 1.0]))).weights)
      [0.5 1. ]

    References:
      Navon et al., *Multi-Task Learning as a Bargaining Game*, ICML 2022, claim 3.1.
      Ban and Ji, *Fair Resource Allocation in Multi-Task Learning*, ICML 2024,
      equation 7.
    """
    cosines, norms = normalise(gramian, present)
    dtype = norms.dtype
    counts = norms > 0
    on_diagonal = jnp.eye(len(norms), dtype=bool)
    power = 1 / jnp.asarray(alpha, dtype)
    exponent = (power - 1) / (power + 1)
    (largest,) = reduce_each(maxima=[norms])
    relative = jnp.where(counts, safe_divide(norms, largest), 1)
    units = relative**exponent
    # Rows that do not count are tasks alone: y = 1, and cut off from the others.
    matrix = jnp.where(on_diagonal & ~counts[None], 1, cosines)

    # The best multiple of y = 1. A NaN in `C` is one in its energy; that of a lone task
    # is on the diagonal only, and in its norm.
    ridge = jnp.asarray(2 * jnp.finfo(dtype).eps, dtype)
    size, energy = reduce_each(sums=[units * units, units * dot(matrix, units)])
    energy = jnp.maximum(energy, 32 * ridge * size) + 0 * largest
    stretch = jnp.log(size / energy) / (1 + power)
    state = _State(
        logs=jnp.full_like(norms, stretch),
        ridge=ridge,
        damping=jnp.zeros([], dtype),
        done=jnp.isnan(energy),
        steps=jnp.zeros([], jnp.int32),
    )
    step = functools.partial(_step, _Problem(matrix, on_diagonal, units, power))
    state = jax.lax.while_loop(_unfinished, step, state)
    points = units * jnp.exp(state.logs)
    gained, wanted = dot(cosines, points), units * jnp.exp(-power * state.logs)
    missed = jnp.abs(wanted - gained) / jnp.maximum(jnp.abs(gained), wanted)
    residual = jnp.max(jnp.where(counts, missed, 0), initial=0)
    weights = jnp.where(counts, safe_divide(points, norms), 0)
    weights = weights * jnp.where(largest > 0, largest, 1) ** exponent
    found = Bargain(weights, residual)
    return jax.tree.map(lambda x: nan_unless_finite(x, energy), found)


def _unfinished(state: _State) -> jax.Array:
    return ~state.done & (state.steps < _MAX_STEPS)


def _step(problem: _Problem, state: _State) -> _State:
    """One Newton step, or more damping if it would raise the potential."""
    cosines, on_diagonal, units, power = problem
    logs, ridge, damping, _, steps = state
    eps = jnp.finfo(logs.dtype).eps
    points = units * jnp.exp(logs)  # x
    wanted = units * jnp.exp(-power * logs)  # s y^-q
    found = dot(cosines, points) + ridge * points

    # Newton's step in x; where the gain is far too large, as in log x, as if the gain
    # were constant: the Hessian is too small there, and the step would leave x > 0.
    is_over = found > 3 * wanted
    ratio = jnp.where(is_over, safe_divide(wanted, found), 1)
    slope = jnp.where(is_over, found * jnp.log(ratio), wanted - found)
    stiffness = (power + damping) * jnp.where(is_over, found, wanted) / points
    hessian = cosines + jnp.where(on_diagonal, (ridge + stiffness)[None], 0)
    factor = jnp.linalg.cholesky(hessian, symmetrize_input=False)
    shift = jax.scipy.linalg.cho_solve((factor, True), slope)

    # x (1 + move), or from a half downwards x exp(move), made continuous.
    moves = jnp.maximum(shift / points, -5)
    is_low = moves < -0.5
    moves = jnp.where(is_low, 0.5 * jnp.exp(moves + 0.5) - 1, moves)
    limit = 60 / jnp.maximum(power, 1)  # of log y, that y^-q does not overflow
    log_moves = jnp.clip(logs + jnp.log1p(moves), -limit, limit) - logs

    # The change of the potential, without cancellation between its two values.
    change = points * moves
    bend = dot(cosines, change) + ridge * change
    # (exp((1-q) move) - 1) / (1-q), the move itself for q = 1.
    rest = (1 - power) * log_moves
    series = jnp.abs(rest) < jnp.sqrt(eps)
    gain = jnp.where(series, 1, jnp.expm1(rest) / jnp.where(series, 1, rest))
    gain *= points * wanted * log_moves
    loss = change * (found + bend / 2)
    rise, size, open_by, noise_by, largest_move = reduce_each(
        sums=[loss - gain, jnp.abs(loss) + jnp.abs(gain)],
        maxima=[
            jnp.abs(wanted - found) - 2 * eps * dot(jnp.abs(cosines), points),
            64 * eps * points - jnp.maximum(wanted, jnp.abs(found)),
            jnp.abs(moves),
        ],
    )
    done = open_by <= 0
    is_definite = jnp.isfinite(largest_move)  # NaN of the factorisation is here too
    is_better = is_definite & ((rise < 2 * eps * size) | (largest_move < 1e-2))

    logs = jnp.where(is_better & ~done, logs + log_moves, logs)
    # A step this short leaves an error of its square.
    done |= is_better & (largest_move < 1e-2 * jnp.sqrt(eps))
    more = jnp.maximum(4 * damping, 1)
    less = jnp.where(damping < 0.1, 0, damping / 8)
    # Where tasks cancel, x grows until C x is made of rounding errors, and the steps
    # of nothing else; a larger ridge stops it before.
    is_noise = (noise_by > 0) & (ridge < 64 * eps)
    growth = jnp.where(is_definite, jnp.where(is_noise, 2, 1), 8)
    return _State(
        logs=logs,
        ridge=jnp.minimum(ridge * growth.astype(ridge.dtype), 1),
        damping=jnp.where(is_better | ~is_definite, less, more),
        done=done,
        steps=steps + 1,
    )
