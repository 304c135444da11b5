"""Bargaining: weights for which a task's gain is an inverse power of its weight."""

import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from mtlopt.linalg.normalise import Gramian, nan_unless_finite, normalise, safe_divide
from mtlopt.linalg.products import dot
from mtlopt.linalg.reductions import reduce_each

_MAX_STEPS = 100  # about ten are usual
_PAIR_STEPS = 6  # enough, measured for alpha from 0.01 to 100 and norms 1e30 apart
# In eps: the ridge starts at the first number. If `C x` is below the second number
# times `x`, it is only rounding error, and the ridge doubles, up to about the second
# number. If `C` is indefinite, the ridge grows by the third number.
_RIDGE, _NOISE, _GROWTH = 2, 64, 8
# If a gain is more than this many times the wanted gain, Newton's steps are in log x.
_OVER = 3
# Relative to x, for steps that reduce x: the longest step, and the shortest step that
# is in log x.
_LONGEST, _LONG = 5, 0.5
# A step this short lowers the potential, even if rounding hides this. If the step is
# shorter still, by the square root of eps, the error after it is below rounding.
_SHORT = 1e-2
_LOG_RANGE = 0.9  # of log y and log y^-q, relative to the log of the largest number
# Damping grows by the first number, shrinks by the second and ends below the third.
_MORE, _LESS, _LEAST = 4, 8, 0.1


class Bargain(NamedTuple):
    """The bargaining solution.

    Attributes:
      weights: `w`, `[tasks]`, positive; zero for zero rows, absent tasks and tasks with
        preference zero.
      residual: The largest `|l - r| / max(|l|, r)` over the sides `l = G w` and
        `r = (w / p)^(-1/alpha)` of the equation, a scalar. It is about 1 to 2 if there
        is no solution.
    """

    weights: jax.Array
    residual: jax.Array


class _Problem(NamedTuple):
    cosines: jax.Array  # C, with a unit diagonal even for rows that do not count
    on_diagonal: jax.Array  # bool, [tasks, tasks]
    units: jax.Array  # s, [tasks]: the solution x if each task were alone
    power: jax.Array  # q = 1 / alpha


class _State(NamedTuple):
    logs: jax.Array  # log y, [tasks]: the point is x = s y
    ridge: jax.Array  # scalar, added to the diagonal of C
    damping: jax.Array  # scalar, Levenberg-Marquardt
    done: jax.Array  # bool
    steps: jax.Array  # int32


@jax.jit
def bargain(
    gramian: Gramian,
    alpha: Any = 1.0,
    present: jax.Array | None = None,
    preference: jax.Array | None = None,
) -> Bargain:
    r"""Solves the equation of alpha-fair bargaining between tasks.

    .. math:: G w = (w / p)^{-1/\alpha}, \quad w > 0

    With `q = 1/alpha`, this equation is the optimality condition of a strictly convex
    problem: minimise `w^T G w / 2` minus `sum_i p_i^q w_i^(1-q) / (1-q)`. (For `q = 1`,
    the sum is `sum_i p_i log w_i`.) In the variables `w_i = s_i y_i / |g_i|`, with
    `s_i = (p_i^q |g_i|^(q-1))^(1/(q+1))` and the cosines `C`, the equation is

    .. math:: C x = s y^{-q}, \qquad x = s y,

    The Hessian in these variables, `C + diag(q y^(-q-1))`, does not depend on the norms
    of the rows, and a single task has `y = 1`. The solver is Newton's method, damped
    (Levenberg-Marquardt) so that every step lowers the potential. It stops when the
    equation holds up to rounding. In measurements for `alpha = 1` and row norms of any
    size, the solver took 3 to 15 Cholesky factorisations, and up to 40 if there was no
    solution. Other values of `alpha` take no more factorisations if the row norms
    differ by a factor of at most 1e3. The solver always stops after 100 factorisations.
    If the norms differ by a factor of 1e6, the result for `alpha` below 1/2 or above 2
    may be less exact; `residual` shows this error.

    A solution exists unless zero is in the convex hull of the rows. To make sure that
    there always is an answer, a ridge of `2 eps` is added to `C`. The ridge grows to
    about `64 eps` if `C x` is only rounding error, and further if rounding makes `C`
    indefinite. If there is a solution, the ridge changes the solution by about its
    rounding error. If there is no solution, the tasks whose gradients cancel get large
    but bounded weights (`w_i |g_i|` up to `sqrt(tasks / ridge)` for `alpha = 1`). The
    weighted sum of these gradients is zero up to about `sqrt(ridge)`, and the other
    tasks bargain in the space orthogonal to them. For `alpha = 1`, `|sum_i w_i g_i|^2`
    is at most the sum of the preferences.

    Zero rows get weight zero and do not count, because no weight gives their tasks a
    gain. Duplicate rows with equal preferences get equal weights; a single task gets
    `p^(q/(q+1)) |g|^(-2/(q+1))`. If the input holds NaN, the result is NaN, without
    iterations. The weights are differentiable, but the residual is not. If there is no
    solution, the derivative is the derivative of the solution with the ridge.

    For two tasks with preferences of one and `alpha = 1`, the solution is
    `w_i = 1 / (|g_i| sqrt(1 + C_12))`. In all other cases of two tasks, six Newton
    steps find the ratio of `x_1` to `x_2`.

    Args:
      gramian: `G`, inner products of the task gradients, `[tasks, tasks]`.
      alpha: fairness, positive, a scalar; 1 is Nash bargaining.
      present: Tasks that take part, bool `[tasks]`; the others get weight zero.
      preference: `p`, `[tasks]`, not negative; ones if None. A task with preference
        zero takes no part.

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
    if preference is not None:
        there = preference != 0
        present = there if present is None else there & present
    cosines, norms = normalise(gramian, present)
    dtype = norms.dtype
    counts = norms > 0
    on_diagonal = jnp.eye(len(norms), dtype=bool)
    power = 1 / jnp.asarray(alpha, dtype)
    exponent = (power - 1) / (power + 1)
    (largest,) = reduce_each(maxima=[norms])
    relative = jnp.where(counts, safe_divide(norms, largest), 1)
    units = relative**exponent
    if preference is not None:
        preferred = jnp.where(counts, preference.astype(dtype), 1)
        units *= preferred ** (power / (power + 1))
    # Rows that do not count become separate tasks: y = 1, without any effect on the
    # others.
    matrix = jnp.where(on_diagonal & ~counts[None], 1, cosines)

    # A NaN in `C` makes `energy` NaN. A separate task has its NaN only on the diagonal
    # and in its norm.
    size, energy = reduce_each(sums=[units * units, units * dot(matrix, units)])
    energy += 0 * largest
    logs, _ = _solve(matrix, units, power, energy / size)
    points = units * jnp.exp(logs)
    gained, wanted = dot(cosines, points), units * jnp.exp(-power * logs)
    missed = jnp.abs(wanted - gained) / jnp.maximum(jnp.abs(gained), wanted)
    residual = jax.lax.stop_gradient(jnp.max(jnp.where(counts, missed, 0), initial=0))
    weights = jnp.where(counts, safe_divide(points, norms), 0)
    weights = weights * jnp.where(largest > 0, largest, 1) ** exponent
    found = Bargain(weights, residual)
    return jax.tree.map(lambda x: nan_unless_finite(x, energy), found)


@jax.custom_jvp
def _solve(
    cosines: jax.Array, units: jax.Array, power: jax.Array, gain: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Solves `C x + ridge x = s y^-q`.

    Args:
      cosines: `C`, with a unit diagonal, `[tasks, tasks]`.
      units: `s`, `[tasks]`.
      power: `q`.
      gain: `s' C s / s's`.

    Returns:
      `log y`, `[tasks]`, and the ridge that was used.
    """
    eps = jnp.finfo(units.dtype).eps
    if len(units) == 2:
        return _solve_pair(cosines[0, 1], units, power)
    # The start is the best multiple of y = 1.
    start = -jnp.log(jnp.maximum(gain, _NOISE * eps)) / (1 + power)
    state = _State(
        logs=jnp.full_like(units, start),
        ridge=jnp.asarray(_RIDGE * eps, units.dtype),
        damping=jnp.zeros([], units.dtype),
        done=jnp.isnan(gain),
        steps=jnp.zeros([], jnp.int32),
    )
    on_diagonal = jnp.eye(len(units), dtype=bool)
    step = functools.partial(_step, _Problem(cosines, on_diagonal, units, power))
    state = jax.lax.while_loop(_unfinished, step, state)
    return state.logs, state.ridge


@_solve.defjvp
def _(primals: Any, tangents: Any) -> tuple[Any, Any]:
    """`(C + ridge + diag(q s y^-q / x)) dx` is minus the tangent of the residual."""
    logs, ridge = _solve(*primals)

    def missed(cosines: Any, units: Any, power: Any, _: Any) -> jax.Array:
        points = units * jnp.exp(logs)
        gained = dot(cosines, points) + ridge * points
        return gained - units * jnp.exp(-power * logs)

    moved = jax.jvp(missed, primals, tangents)[1]
    cosines, units, power, _ = primals
    points, wanted = units * jnp.exp(logs), units * jnp.exp(-power * logs)
    on_diagonal = jnp.eye(len(units), dtype=bool)
    hessian = cosines + jnp.where(on_diagonal, ridge + power * wanted / points, 0)
    factor = jax.scipy.linalg.cho_factor(hessian)
    shift = -jax.scipy.linalg.cho_solve(factor, moved) / points
    return (logs, ridge), (shift, jnp.zeros_like(ridge))


def _solve_pair(
    cosine: jax.Array, units: jax.Array, power: jax.Array
) -> tuple[jax.Array, jax.Array]:
    r"""Solves for two tasks and returns the results of `_solve`.

    Let `E <= 1` be the ratio of the two `x`: the `x` with the smaller `s`, divided by
    the other. In units of the larger `x`, the gains are `A = C_12 + E` and
    `B = 1 + C_12 E`, and the equation is

    .. math:: -q \log E + \log B - \log A = (1 + q) |\log (s_1 / s_2)|,
        \qquad y = (B^{-1 / (1 + q)}, (E / A)^{1 / (1 + q)})

    If `s_1 = s_2`, the solution is `E = 1`. In general, Newton's method finds `log E`
    if `C_12` is positive and `log A` if it is negative. The equation is nearly linear
    in either variable, and no digits cancel.
    """
    eps = jnp.finfo(units.dtype).eps
    least = jnp.maximum(1 + cosine, _NOISE * eps)
    diagonal = least - cosine  # includes the ridge, if the rows are opposed
    above, below = jnp.maximum(cosine, 0), jnp.maximum(-cosine, 0)
    highest = least - above
    logs = jnp.log(units)
    wanted = (1 + power) * jnp.abs(logs[0] - logs[1])

    def parts(point: jax.Array) -> tuple[jax.Array, ...]:
        """Returns `log E`, `log A` and `B`, from the log of `A - max(C_12, 0)`."""
        share = jnp.logaddexp(point, jnp.log(below)) - jnp.log(diagonal)
        gain = jnp.logaddexp(point, jnp.log(above))
        return share, gain, least - cosine * (highest - jnp.exp(point)) / diagonal

    point = jnp.log(highest) - wanted / (1 + power)
    for _ in range(_PAIR_STEPS):
        share, gain, other = parts(point)
        missed = -power * share + jnp.log(other) - gain - wanted
        log_change = point - jnp.log(diagonal)  # of E
        slope = cosine * jnp.exp(log_change) / other - jnp.exp(point - gain)
        point -= missed / (slope - power * jnp.exp(log_change - share))
    share, gain, other = parts(point)
    first, second = (share - gain) / (1 + power), -jnp.log(other) / (1 + power)
    # Few values are out of range, and only for a large alpha.
    limit = _range(units.dtype)
    found = jnp.where(logs < logs[::-1], first, second)
    return jnp.clip(found, -limit, limit), diagonal - 1


def _range(dtype: jnp.dtype) -> float:
    return _LOG_RANGE * math.log(jnp.finfo(dtype).max)


def _unfinished(state: _State) -> jax.Array:
    return ~state.done & (state.steps < _MAX_STEPS)


def _step(problem: _Problem, state: _State) -> _State:
    """Takes a Newton step, or adds damping if the step would raise the potential."""
    cosines, on_diagonal, units, power = problem
    logs, ridge, damping, _, steps = state
    eps = jnp.finfo(logs.dtype).eps
    points = units * jnp.exp(logs)  # x
    wanted = units * jnp.exp(-power * logs)  # s y^-q
    found = dot(cosines, points) + ridge * points

    # Newton's step in x. If the gain is far too large, the Hessian is too small and the
    # step would leave x > 0. The step is then in log x, as if the gain were constant.
    is_over = found > _OVER * wanted
    ratio = jnp.where(is_over, safe_divide(wanted, found), 1)
    slope = jnp.where(is_over, found * jnp.log(ratio), wanted - found)
    stiffness = (power + damping) * jnp.where(is_over, found, wanted) / points
    hessian = cosines + jnp.where(on_diagonal, (ridge + stiffness)[None], 0)
    factor = jnp.linalg.cholesky(hessian, symmetrize_input=False)
    shift = jax.scipy.linalg.cho_solve((factor, True), slope)

    # x (1 + move), or below minus a half x exp(move), joined continuously.
    moves = jnp.maximum(shift / points, -_LONGEST)
    is_low = moves < -_LONG
    moves = jnp.where(is_low, (1 - _LONG) * jnp.exp(moves + _LONG) - 1, moves)
    limit = _range(logs.dtype) / jnp.maximum(power, 1)
    log_moves = jnp.clip(logs + jnp.log1p(moves), -limit, limit) - logs

    # The change of the potential, without cancellation between its two values.
    change = points * moves
    bend = dot(cosines, change) + ridge * change
    # (exp((1-q) move) - 1) / (1-q), or the move itself for q = 1.
    rest = (1 - power) * log_moves
    series = jnp.abs(rest) < jnp.sqrt(eps)
    gain = jnp.where(series, 1, jnp.expm1(rest) / jnp.where(series, 1, rest))
    gain *= points * wanted * log_moves
    loss = change * (found + bend / 2)
    rise, size, open_by, noise_by, largest_move = reduce_each(
        sums=[loss - gain, jnp.abs(loss) + jnp.abs(gain)],
        maxima=[
            jnp.abs(wanted - found) - 2 * eps * dot(jnp.abs(cosines), points),
            _NOISE * eps * points - jnp.maximum(wanted, jnp.abs(found)),
            jnp.abs(moves),
        ],
    )
    done = open_by <= 0
    is_definite = jnp.isfinite(largest_move)  # false if the factorisation is NaN
    is_better = is_definite & ((rise < 2 * eps * size) | (largest_move < _SHORT))

    logs = jnp.where(is_better & ~done, logs + log_moves, logs)
    # A step leaves an error of the size of its square.
    done |= is_better & (largest_move < _SHORT * jnp.sqrt(eps))
    more = jnp.maximum(_MORE * damping, 1)
    less = jnp.where(damping < _LEAST, 0, damping / _LESS)
    # If tasks cancel, x grows until C x and the steps consist of rounding errors; a
    # larger ridge stops this growth earlier.
    is_noise = (noise_by > 0) & (ridge < _NOISE * eps)
    growth = jnp.where(is_definite, jnp.where(is_noise, 2, 1), _GROWTH)
    return _State(
        logs=logs,
        ridge=jnp.minimum(ridge * growth.astype(ridge.dtype), 1),
        damping=jnp.where(is_better | ~is_definite, less, more),
        done=done,
        steps=steps + 1,
    )
