"""Sample Jacobians with known structure, and the Gramian as the library forms it."""

import jax
import jax.numpy as jnp
import numpy as np


def random_rows(seed, num_tasks, num_params=None, shift=0.0):
    """Rows with `shift` of a common component, rounded to float32."""
    rng = np.random.default_rng(seed)
    rows = rng.normal(size=(num_tasks, num_params or 2 * num_tasks + 2)) + shift
    return rows.astype(np.float32).astype(np.float64)


def structured(kind, num_tasks, seed=0):
    """A Jacobian of the given kind, float64 values that float32 holds exactly."""
    rng = np.random.default_rng(seed)
    rows = random_rows(seed, num_tasks)
    if kind == "aligned":
        rows += 1
    elif kind == "low_rank":
        few = max(1, num_tasks // 3)
        rows = rng.integers(-8, 9, size=(num_tasks, few)) @ rng.integers(
            -8, 9, size=(few, rows.shape[1])
        )
    elif kind == "low_rank_aligned":
        few = max(1, num_tasks // 3)
        rows = rng.integers(1, 9, size=(num_tasks, few)) @ rng.integers(
            -8, 9, size=(few, rows.shape[1])
        )
    elif kind == "opposed":
        rows[-1] = -rows[0] if num_tasks > 1 else rows[0]
    elif kind == "duplicated":
        rows[num_tasks // 2 :] = rows[: num_tasks - num_tasks // 2]
    elif kind == "all_equal":
        rows = np.tile(rows[:1], (num_tasks, 1))
    elif kind == "zero_row":
        rows[num_tasks // 2] = 0
    elif kind == "all_zero":
        rows = np.zeros_like(rows)
    elif kind == "sum_zero":
        rows = rng.integers(-64, 65, size=rows.shape).astype(np.float64)
        rows[-1] -= rows.sum(axis=0)
    else:
        assert kind == "random"
    return np.asarray(rows, np.float64)


KINDS = [
    "random",
    "aligned",
    "low_rank",
    "low_rank_aligned",
    "opposed",
    "duplicated",
    "all_equal",
    "zero_row",
    "all_zero",
    "sum_zero",
]


def gramian(rows, dtype):
    """`J J^T` in `dtype`, from rows rounded to it."""
    rows = jnp.asarray(rows, dtype)
    return jnp.dot(rows, rows.T, precision=jax.lax.Precision.HIGHEST)


def padded_gramian(rows, dtype, size=None):
    """A Gramian of `size` tasks of which the first are present; rubbish elsewhere.

    Few shapes for all sizes: compiling takes longer than all the solving.
    """
    num_tasks = len(rows)
    size = size or (40 if num_tasks <= 40 else 128)
    padded = np.full((size, size), np.nan, dtype)
    rows = rows.astype(dtype)
    padded[:num_tasks, :num_tasks] = rows @ rows.T
    return padded, np.arange(size) < num_tasks


def bundle(seed, num_tasks, num_params, apart, bundles=1):
    """Rows with cosines of about `1 - apart` in each bundle, and norms from 0.1 to 10.

    Float64 values that float32 holds exactly. The unit rows have a condition of about
    `sqrt(tasks / apart)` or, if there are few params, more.
    """
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(bundles, num_params))
    own = rng.normal(size=(num_tasks, num_params))
    own /= np.linalg.norm(own, axis=1, keepdims=True)
    centres /= np.linalg.norm(centres, axis=1, keepdims=True)
    common = centres[np.arange(num_tasks) % bundles]
    rows = np.sqrt(1 - apart) * common + np.sqrt(apart) * own
    rows *= 10 ** rng.uniform(-1, 1, size=(num_tasks, 1))
    return rows.astype(np.float32).astype(np.float64)
