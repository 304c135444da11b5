"""Reductions in one pass give what the single ones do."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mtlopt.linalg.products import diagonal
from mtlopt.linalg.reductions import argmax_and_sums, reduce_each


@pytest.mark.parametrize("shape", [(1,), (40,), (7, 9)])
def test_each_is_reduced_by_its_own_rule(shape):
    rng = np.random.default_rng(0)
    x, y, z = rng.normal(size=(3, *shape)).astype(np.float32)
    total, product, largest = jax.jit(reduce_each)([x, x * y], [z])
    np.testing.assert_allclose(total, np.sum(x), rtol=1e-5)
    np.testing.assert_allclose(product, np.sum(x * y), rtol=1e-5)
    assert largest == np.max(z)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_not_finite_stays_in_its_own_result(bad):
    x, y = np.ones(40, np.float32), np.ones(40, np.float32)
    x[7] = bad
    with_bad, without, largest = jax.jit(reduce_each)(sums=[x, y], maxima=[-x])
    np.testing.assert_array_equal(with_bad, bad)
    assert without == 40
    np.testing.assert_array_equal(largest, np.max(-x))


def test_derivatives_are_those_of_the_single_ones(float64):
    x, y, change = np.random.default_rng(0).normal(size=(3, 40))

    def together(x):
        return jnp.stack(reduce_each(sums=[x * y, x**2], maxima=[x * y, -x]))

    def single(x):
        return jnp.stack([jnp.sum(x * y), jnp.sum(x**2), jnp.max(x * y), jnp.max(-x)])

    expected = np.array(jax.jit(jax.jacrev(single))(x))
    found = jax.jit(jax.jacrev(together))(x)
    np.testing.assert_allclose(found, expected, rtol=1e-14)
    moved = jax.jit(lambda x, change: jax.jvp(together, (x,), (change,))[1])(x, change)
    np.testing.assert_allclose(moved, expected @ change, rtol=1e-12)


def test_first_of_equal_scores_and_what_is_there():
    scores = jnp.array([1.0, 3.0, 3.0, jnp.nan])
    values = jnp.array([True, False, True, True])
    best, index, value, total = argmax_and_sums(scores, values, [jnp.arange(4.0)])
    assert (best, index, value, total) == (3, 1, False, 6)


def test_argmax_in_a_batch():
    scores = np.random.default_rng(0).normal(size=(9, 40))
    best, index, value = jax.vmap(argmax_and_sums)(scores, -scores)
    np.testing.assert_array_equal(index, np.argmax(scores, axis=1))
    np.testing.assert_array_equal(best, -value)


def test_diagonal_of_a_wide_matrix():
    matrix = np.arange(20).reshape(4, 5)
    np.testing.assert_array_equal(diagonal(jnp.asarray(matrix)), np.diagonal(matrix))
    assert diagonal(jnp.array([[3.0]])) == 3


def test_one_kernel():
    """What they are for: no kernel but one, terms included, above 32 numbers too."""

    def norms(x):
        return reduce_each(sums=[x * x, x], maxima=[x, -x])

    compiled = jax.jit(norms).lower(jnp.ones(40)).compile().as_text()
    assert compiled.count(" fusion(") == 1
