"""Who would get worse to first order."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import mtlopt
from mtlopt import TaskGrads
from tests.problems import (
    TASKS,
    first,
    gradient_of,
    make_batches,
    make_oracle,
    make_params,
)


def test_it_is_the_sign_of_rows_times_direction(float64):
    """On 1,000 random Jacobians and directions."""
    rng = np.random.default_rng(0)
    rows, directions = rng.normal(size=(1000, 5, 7)), rng.normal(size=(1000, 7))

    def ask(rows, direction):
        return mtlopt.would_rise(TaskGrads.from_rows(rows), direction)

    found = jax.jit(jax.vmap(ask))(rows, directions)
    expected = np.einsum("nij,nj->ni", rows, directions) < 0
    assert 0.4 < expected.mean() < 0.6
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("options", [{}, {"streaming": True}])
def test_it_counts_the_heads(options, float64):
    """Against plain gradients of all leaves, and a step so small that it is right."""
    params, args, rng = make_params(), first(make_batches()), np.random.default_rng(1)
    oracle = make_oracle(**options)

    @jax.jit
    def measure(direction):
        gradients = [gradient_of(task, params, *args) for task in TASKS]
        products = [
            sum(jax.tree.leaves(jax.tree.map(jnp.vdot, gradient, direction)))
            for gradient in gradients
        ]
        moved = jax.tree.map(lambda x, d: x - 1e-7 * d, params, direction)
        rose = oracle.losses(moved, *args) > oracle.losses(params, *args)
        return mtlopt.would_rise(oracle(params, *args), direction), products, rose

    rises = set()
    for _ in range(8):
        direction = jax.tree.map(lambda x: rng.normal(size=np.shape(x)), params)
        found, products, rose = measure(direction)
        np.testing.assert_array_equal(found, np.array(products) < 0)
        np.testing.assert_array_equal(found, rose)
        rises |= set(np.asarray(found).tolist())
    assert rises == {True, False}


def test_absent_tasks_do_not_rise():
    grads = TaskGrads.from_rows(
        jnp.array([[1.0], [jnp.nan]]), present=jnp.array([True, False])
    )
    np.testing.assert_array_equal(
        mtlopt.would_rise(grads, jnp.array([-1.0])), [True, False]
    )


def test_errors():
    grads = TaskGrads.from_rows(jnp.ones((2, 3)))
    with pytest.raises(ValueError, match="`direction` must have the structure"):
        mtlopt.would_rise(grads, {"w": jnp.ones(3)})
    with pytest.raises(TypeError, match=r"must be a mtlopt\.TaskGrads"):
        mtlopt.would_rise(jnp.ones(3), jnp.ones(3))
