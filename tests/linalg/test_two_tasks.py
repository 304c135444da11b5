"""Closed forms of two tasks against decompositions of the rows in double precision."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import mtlopt
from mtlopt.linalg.principal_axes import principal_axes
from mtlopt.linalg.unit_rows import WELL_CONDITIONED
from mtlopt.rows.products import gramian, scaled_gramian
from tests.linalg.matrices import bundle
from tests.marks import cpu_only
from tests.problems import QUICK

METHODS = {
    "min": mtlopt.aligned_mtl,
    "rmse": functools.partial(mtlopt.aligned_mtl, scale="rmse"),
    "imtl_g": mtlopt.imtl_g,
    "conflict_free": mtlopt.conflict_free,
    "as_preferred": functools.partial(mtlopt.conflict_free, preference=[1.0, 3.0]),
}


@functools.cache
def make_update(name):
    tx = METHODS[name](2)

    def update(rows, present=None):
        grads = mtlopt.TaskGrads.from_rows(rows, present=present)
        return tx.update(grads, tx.init(rows[0]))[0]

    return jax.jit(update, compiler_options=QUICK)


@functools.partial(jax.jit, compiler_options=QUICK)
def axes_of(rows):
    products = functools.partial(gramian, [rows])
    return principal_axes(scaled_gramian([rows]), None, products)


def pair(seed, angle, ratio, size=9):
    """Rows with an angle and a ratio of lengths, that float32 holds."""
    rng = np.random.default_rng(seed)
    plane, _ = np.linalg.qr(rng.normal(size=(size, 2)))
    rows = np.array([[1, 0], [np.cos(angle), np.sin(angle)]]) @ plane.T
    rows[seed % 2] *= ratio
    return rows.astype(np.float32).astype(np.float64)


@pytest.mark.parametrize("ratio", [1, 1e-3, 1e-6, 1e-10])
@pytest.mark.parametrize("angle", [1.5, 0.3, 1e-2, 1e-4, 1e-5, 3.1, np.pi - 1e-4])
def test_axes(angle, ratio, dtype):
    """Each singular value to its own rounding, whatever the lengths; and its axis."""
    eps = float(np.finfo(dtype).eps)
    for seed in range(2):
        rows = pair(seed, angle, ratio)
        singular, right, rank = axes_of(rows.astype(dtype))
        with jax.enable_x64(True):
            # The longer row first: of unequal columns LAPACK then loses none.
            order = np.argsort(-np.linalg.norm(rows, axis=1))
            triangle = jnp.linalg.qr(rows[order].T, mode="r")
            left, expected, _ = jnp.linalg.svd(triangle.T)
        # The difference of two rows is only known to rounding of the rows, and before
        # the second look to that of their products.
        condition = np.linalg.cond(rows / np.linalg.norm(rows, axis=1, keepdims=True))
        bound = 8 * eps * condition
        if condition**2 < eps**-WELL_CONDITIONED:
            bound *= condition
        assert rank == 2
        np.testing.assert_allclose(singular, expected, rtol=bound)
        left = np.asarray(left)[np.argsort(order)]
        signs = np.sign(np.sum(left * right, axis=0))
        np.testing.assert_allclose(right * signs, left, atol=bound, rtol=bound)


def exact(name, rows):
    """By decompositions in float64."""
    norms = np.linalg.norm(rows, axis=1, keepdims=True)
    if name in ("min", "rmse"):
        left, singular, right = np.linalg.svd(rows, full_matrices=False)
        size = singular[-1] if name == "min" else np.sqrt(np.mean(singular**2))
        return size * left.mean(axis=0) @ right
    preference = np.array([1, 3 if name == "as_preferred" else 1])
    inverse = np.linalg.pinv(rows / norms)
    ray = inverse @ preference / np.linalg.norm(inverse @ preference)
    if name != "imtl_g":
        return np.sum(rows @ ray) * ray
    weights = inverse.T @ ray / norms[:, 0]
    return weights @ rows / weights.sum()


@pytest.mark.parametrize("name", METHODS)
def test_updates(name):
    """In float32, on both sides of the second look; with a row that is not there."""
    update = make_update(name)
    for apart in (0.5, 1e-2, 1e-4, 1e-5):
        for seed in range(4):
            rows = bundle(seed, 2, 9, apart)
            if seed % 2:
                rows[1] *= -1  # nearly opposed
            expected = exact(name, rows)
            condition = np.linalg.cond(rows / np.linalg.norm(rows, axis=1)[:, None])
            found = np.asarray(update(np.float32(rows)), float)
            size = np.linalg.norm(expected)
            assert np.linalg.norm(found - expected) <= 2e-6 * condition * size


@pytest.mark.parametrize("name", METHODS)
def test_rank_one(name, dtype):
    """Duplicates, opposed rows, a row of zeros, an absent one and none at all."""
    update = make_update(name)
    row = np.arange(1, 5).astype(dtype)
    tolerance = 2e-6 if dtype == np.float32 else 1e-12
    for factor in (1, 2, 2.0**-20):
        mean = (1 + factor) / 2
        expected = {"min": mean, "rmse": mean, "imtl_g": factor / mean}
        found = update(np.stack([row, factor * row]))
        wanted = expected.get(name, 2 * mean) * row
        np.testing.assert_allclose(found, wanted, rtol=tolerance)
    np.testing.assert_allclose(update(np.stack([row, -row])), 0 * row, atol=1e-5)
    alone = 0.5 if name in ("min", "rmse") else 1
    zeros = update(np.stack([0 * row, row]))
    np.testing.assert_allclose(zeros, alone * row, rtol=tolerance)
    absent = np.stack([np.nan * row, row]), np.array([False, True])
    np.testing.assert_allclose(update(*absent), row, rtol=tolerance)
    np.testing.assert_array_equal(update(np.zeros((2, 4), dtype)), 0)
    assert np.all(np.isnan(update(np.stack([np.nan * row, row]))))
    assert np.all(np.isnan(update(np.stack([np.inf * row, row]))))


@cpu_only
@pytest.mark.parametrize("name", METHODS)
def test_the_compiled_program_calls_nothing(name):
    """Neither a loop nor LAPACK, which take longer to compile than all the rest."""
    tx = METHODS[name](2)

    def update(rows):
        return tx.update(mtlopt.TaskGrads.from_rows(rows), tx.init(rows[0]))[0]

    text = jax.jit(update).lower(jnp.ones((2, 50))).compile().as_text()
    assert text is not None
    for call in ("while", "custom-call", "custom_call", "lapack"):
        assert call not in text


def test_longest_and_shortest_numbers():
    """Rows of 1e-30 and 1e30, and of 1e-29 beside one of length one."""
    plane = np.array([[3, 4, 0], [4, 3, 1]]) / 5
    for lengths in ((1e-30, 1e-30), (1e30, 1e30), (1e-29, 1), (1, 1e-29)):
        rows = plane * np.array(lengths)[:, None]
        with jax.enable_x64(True):
            expected = axes_of(rows)
        found = axes_of(np.float32(rows))
        np.testing.assert_allclose(found.singular, expected.singular, rtol=1e-5)
        sizes = np.abs(expected.right)
        np.testing.assert_allclose(np.abs(found.right), sizes, rtol=1e-5)
        assert found.rank == 2
