"""Cosines, conflict rate and dominance rate from their definitions."""

import functools

import jax
import numpy as np
import pytest

import mtlopt

dominance_rate, conflict_rate, cosine_similarity = map(
    jax.jit, (mtlopt.dominance_rate, mtlopt.conflict_rate, mtlopt.cosine_similarity)
)


def rows(seed=0, shape=(4, 6)):
    return np.random.default_rng(seed).normal(size=shape)


@pytest.mark.parametrize("seed", range(5))
def test_dominance_rate_is_the_condition_number(seed, float64):
    """sigma_max / sigma_min of the matrix of gradients."""
    matrix = rows(seed) * np.array([[1.0], [10.0], [0.1], [3.0]])
    found = dominance_rate(matrix @ matrix.T)
    np.testing.assert_allclose(found, np.linalg.cond(matrix), rtol=1e-9)


def test_dominance_rate_keeps_small_gradients():
    """Row norms from 1 to 1e-5 in float32: orthogonal rows have the rate 1e5."""
    scales = np.logspace(0, -5, 4)
    gramian = np.diag(scales**2).astype(np.float32)
    np.testing.assert_allclose(dominance_rate(gramian), 1e5, rtol=1e-4)
    np.testing.assert_allclose(dominance_rate(1e-12 * gramian), 1e5, rtol=1e-4)


@pytest.mark.parametrize("kind", ["zero row", "duplicate", "sum to zero"])
def test_dependent_gradients_dominate_infinitely(kind):
    matrix = rows().astype(np.float32)
    matrix[1] = {
        "zero row": 0 * matrix[1],
        "duplicate": 3 * matrix[0],
        "sum to zero": -matrix[0] - matrix[2] - matrix[3],
    }[kind]
    assert dominance_rate(matrix @ matrix.T) == np.inf


def test_no_gradient_at_all_has_no_rate():
    assert np.isnan(dominance_rate(np.zeros((3, 3))))


def test_alignment_has_rate_one(float64):
    """Aligned-MTL's own gradients do not dominate each other (definition 2)."""
    matrix = rows()
    of_preference = functools.partial(mtlopt.aligned_mtl_weights, matrix @ matrix.T)
    weights = jax.jit(jax.vmap(of_preference))(np.eye(4))
    aligned = np.asarray(weights) @ matrix
    rate = dominance_rate(aligned @ aligned.T)
    np.testing.assert_allclose(rate, 1.0, rtol=1e-8)


def test_cosines(float64):
    matrix = rows()
    unit = matrix / np.linalg.norm(matrix, axis=1, keepdims=True)
    found = cosine_similarity(matrix @ matrix.T)
    np.testing.assert_allclose(found, unit @ unit.T, atol=1e-12)
    np.testing.assert_array_equal(np.diag(found), 1)
    matrix[2] = 0
    found = cosine_similarity(matrix @ matrix.T)
    np.testing.assert_array_equal(found[2], 0)


def test_conflict_rate_counts_pairs():
    """Of 6 pairs of 4 directions at 0, 60, 120 and 180 degrees, 3 are obtuse."""
    angles = np.deg2rad([0, 60, 120, 180])
    matrix = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    assert conflict_rate(matrix @ matrix.T) == 0.5
    assert conflict_rate(np.ones((3, 3))) == 0
    assert conflict_rate(np.ones((1, 1))) == 0


def test_absent_tasks_are_left_out():
    """As if the Gramian were that of the others."""
    gramian = np.array([[4.0, -1.0, np.nan], [-1.0, 1.0, 0.0], [np.nan, 0.0, 9.0]])
    present = np.array([True, True, False])
    for measure in (dominance_rate, conflict_rate):
        expected = measure(gramian[:2, :2])
        np.testing.assert_allclose(measure(gramian, present), expected, rtol=1e-5)


def test_nan_stays_visible():
    assert np.isnan(conflict_rate(np.full((2, 2), np.nan)))
