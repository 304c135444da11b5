"""Several reductions in one pass."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp


def reduce_each(
    sums: Sequence[jax.Array] = (), maxima: Sequence[jax.Array] = ()
) -> tuple[jax.Array, ...]:
    """Sums some arrays and takes the largest entry of others.

    XLA compiles one `reduce` of many operands into one kernel, together with the
    arithmetic that computes the operands. On a CPU each `jnp.sum` becomes two or three
    kernels, and each kernel takes about 20 ms to compile, whatever its size. Without
    this function, these kernels would take most of the compile time of a small solver.

    Args:
      sums: arrays to sum, all of one shape.
      maxima: floating-point arrays to take the maximum of, of the same shape.

    Returns:
      The results, all scalars, with the sums first. NaN in the input gives NaN. The
      results are differentiable; if several entries are equally large, the first gets
      the derivative.

    Examples:
      >>> import jax.numpy as jnp
      >>> x = jnp.array([3.0, -4.0])
      >>> square, largest = reduce_each(sums=[x * x], maxima=[x])
      >>> print(square, largest)
      25.0 3.0
    """
    return _reduce_each(tuple(sums), tuple(maxima))


@jax.custom_jvp
def _reduce_each(
    sums: tuple[jax.Array, ...], maxima: tuple[jax.Array, ...]
) -> tuple[jax.Array, ...]:
    operands = (*sums, *maxima)
    initial = (
        *(jnp.zeros([], term.dtype) for term in sums),
        *(jnp.full([], -jnp.inf, term.dtype) for term in maxima),
    )

    def combine(left: Sequence[Any], right: Sequence[Any]) -> tuple[Any, ...]:
        pairs = list(zip(left, right, strict=True))
        added = [jax.lax.add(*pair) for pair in pairs[: len(sums)]]
        return (*added, *(jax.lax.max(*pair) for pair in pairs[len(sums) :]))

    axes = list(range(operands[0].ndim))
    return tuple(jax.lax.reduce(operands, initial, combine, axes))


@_reduce_each.defjvp
def _(primals: Any, tangents: Any) -> tuple[Any, Any]:
    """Defines the derivative that JAX lacks for one reduction of many operands.

    The derivative of `jnp.max` compares the operand with the result. XLA may compute
    the operand twice, in two kernels. Then possibly no entry equals the maximum, and
    the derivative is NaN.
    """
    indices = [jnp.argmax(operand) for operand in primals[1]]

    def one_by_one(sums: Any, maxima: Any) -> tuple[jax.Array, ...]:
        largest = (
            jnp.sum(jnp.where(jnp.arange(operand.size) == index, operand.ravel(), 0))
            for index, operand in zip(indices, maxima, strict=True)
        )
        return (*map(jnp.sum, sums), *largest)

    return _reduce_each(*primals), jax.jvp(one_by_one, primals, tangents)[1]


def argmax_and_sums(
    scores: jax.Array, values: jax.Array, sums: Sequence[jax.Array] = ()
) -> tuple[jax.Array, ...]:
    """Finds the largest score, its index and the value at it, and sums other arrays.

    All results come from one pass, see `reduce_each`.

    Args:
      scores: `[tasks]`.
      values: `[tasks]`.
      sums: arrays to sum, `[tasks]` each.

    Returns:
      The score, its index (int32; the first of equal scores), the value at this index,
      and the sums, all scalars. A score of NaN is ignored.

    Examples:
      >>> import jax.numpy as jnp
      >>> scores, values = jnp.array([1.0, 5.0, 5.0]), jnp.array([7.0, 8.0, 9.0])
      >>> print(*argmax_and_sums(scores, values, [values]))
      5.0 1 8.0 24.0
    """

    def combine(left: Sequence[Any], right: Sequence[Any]) -> tuple[Any, ...]:
        is_right = (right[0] > left[0]) | ((right[0] == left[0]) & (right[1] < left[1]))
        pairs = list(zip(left, right, strict=True))
        chosen = [jax.lax.select(is_right, new, old) for old, new in pairs[:3]]
        return (*chosen, *(jax.lax.add(*pair) for pair in pairs[3:]))

    num_tasks = len(scores)
    operands = (scores, jnp.arange(num_tasks, dtype=jnp.int32), values, *sums)
    initial = (
        jnp.full([], -jnp.inf, scores.dtype),
        jnp.full([], num_tasks, jnp.int32),
        *(jnp.zeros([], term.dtype) for term in operands[2:]),
    )
    return tuple(jax.lax.reduce(operands, initial, combine, [0]))
