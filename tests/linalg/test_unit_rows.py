"""The unit rows' axes, against a float64 SVD of the rows themselves."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mtlopt.linalg.equiangular import equiangular_ray
from mtlopt.linalg.normalise import normalise
from mtlopt.linalg.unit_rows import unit_rows
from mtlopt.rows.products import gramian
from tests.linalg.matrices import bundle


@functools.partial(jax.jit, static_argnames="products_only")
def find(rows, present=None, products_only=False):
    if present is not None:  # as `Rows` has them: zeros, even from NaN
        rows = jnp.where(present[:, None], rows, 0)
    rotated = None if products_only else functools.partial(gramian, [rows])
    return unit_rows(*normalise(gramian([rows]), present), rotated)


@jax.jit
def ray_of(rows, preference):
    products = functools.partial(gramian, [rows])
    cosines, norms = normalise(products())
    return equiangular_ray(cosines, norms, preference, products)


def exact(rows):
    rows = np.asarray(rows, np.float64)
    norms = np.linalg.norm(rows, axis=1)
    return norms, np.linalg.svd(rows / norms[:, None])


@pytest.mark.parametrize("num_tasks", [2, 3, 8])
@pytest.mark.parametrize("apart", [0.5, 1e-2, 1e-4, 1e-6])
def test_singular_values_and_axes(num_tasks, apart, dtype):
    """Right to rounding of the largest one, on both sides of the condition."""
    rows = bundle(0, num_tasks, 4 * num_tasks, apart).astype(dtype)
    units = find(rows)
    norms, (left, singular, _) = exact(rows)
    assert units.look.is_used == (
        singular[-1] < np.finfo(dtype).eps ** 0.15 * singular[0]
    )
    eps = np.finfo(dtype).eps * singular[0]
    np.testing.assert_allclose(np.sort(units.singular)[::-1], singular, atol=30 * eps)
    np.testing.assert_allclose(units.norms, norms, rtol=30 * eps)
    shapes = (units.axes * units.singular) @ units.axes.T
    # U = Q Sigma P^T has the polar factor Q Sigma Q^T, whatever the signs of the axes.
    np.testing.assert_allclose(shapes, (left * singular) @ left.T, atol=300 * eps)


@pytest.mark.parametrize("apart", [0.5, 1e-5])
def test_rotated_rows(apart, dtype):
    """`L C' L` is the Gramian of `B^T J`."""
    rows = bundle(1, 4, 9, apart).astype(dtype)
    units = find(rows)
    turned = np.asarray(units.look.basis, np.float64).T @ rows
    lengths = np.linalg.norm(turned, axis=1)
    tolerance = np.finfo(dtype).eps / np.sqrt(apart)
    np.testing.assert_allclose(units.look.lengths, lengths, rtol=20 * tolerance)
    cosines = turned @ turned.T / np.outer(lengths, lengths)
    np.testing.assert_allclose(units.look.cosines, cosines, atol=50 * tolerance)


def test_absent_and_zero_rows_take_no_part(dtype):
    """The others have the axes and the rank that they have alone."""
    rows = bundle(2, 3, 9, 1e-6).astype(dtype)
    more = np.insert(rows, [1, 2], [np.full(9, np.nan), np.zeros(9)], axis=0).astype(
        dtype
    )
    there, some = [0, 2, 4], np.array([True, False, True, True, True])
    alone, among = find(rows), find(more, some)
    assert alone.look.is_used
    assert among.look.is_used
    polar = [(u.axes * u.singular) @ u.axes.T for u in (alone, among)]
    tolerance = 100 * np.finfo(dtype).eps
    np.testing.assert_allclose(polar[1][np.ix_(there, there)], polar[0], atol=tolerance)
    np.testing.assert_allclose(polar[1][np.array([1, 3])], 0, atol=tolerance)
    np.testing.assert_array_equal(among.norms[np.array([1, 3])], 0)
    well = np.insert(np.eye(3), 1, 0, axis=0).astype(dtype)
    assert not find(well).look.is_used  # a zero row is no reason for another look


def test_rank(dtype):
    """Rows that depend on each other lose what is left of them to rounding."""
    rows = bundle(3, 4, 9, 0.3)
    rows[3] = rows[0] + rows[1] + rows[2]
    assert np.sum(np.asarray(find(rows.astype(dtype)).singular) > 0) == 3
    equal = np.tile(rows[:1], (4, 1)).astype(dtype)
    assert np.sum(np.asarray(find(equal).singular) > 0) == 1
    assert not np.any(find(0 * equal).singular)


def test_products_alone_have_fewer_digits():
    """Directions that rounding of a Gramian hides are no rank, where it is all."""
    rows = np.float32([[1, 0], [1, 2e-3]])
    assert np.sum(np.asarray(find(rows, products_only=True).singular) > 0) == 1
    np.testing.assert_allclose(
        np.min(find(rows).singular), 1e-3 * np.sqrt(2), rtol=1e-3
    )


@pytest.mark.parametrize("apart", [0.5, 1e-5])
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_not_finite_stays_visible(apart, bad):
    rows = np.float32(bundle(4, 3, 9, apart))
    rows[1, 2] = bad
    assert np.all(np.isnan(find(rows).singular))


@pytest.mark.parametrize("apart", [1e-3, 1e-5])
@pytest.mark.parametrize("bundles", [1, 2])
def test_equiangular_ray(apart, bundles):
    """Also where rounding of the norms decides: sums of its coefficients over them."""
    rows = np.float32(bundle(5, 8, 40, apart, bundles))
    preference = np.float32([1, 2, 3, 4, 1, 1, 1, 1])
    ray = ray_of(rows, preference)
    norms, _ = exact(rows)
    unit = np.float64(rows) / norms[:, None]
    x = np.linalg.pinv(unit) @ preference
    found = np.float64(ray.coefficients) @ unit
    np.testing.assert_allclose(found, x / np.linalg.norm(x), atol=5e-5)
    np.testing.assert_allclose(ray.cosines, preference / np.linalg.norm(x), rtol=1e-4)
    weights = np.linalg.solve(unit @ unit.T, preference) / np.linalg.norm(x)
    total = np.sum(weights / norms)
    bound = (5e-4 if bundles == 1 else 1e-2) * abs(total)
    assert abs(np.sum(ray.coefficients / norms) - total) <= bound
