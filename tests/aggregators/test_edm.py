"""EDM: the ray of the unit gradients' min-norm point, cut off at the hull."""

import jax
import numpy as np
import pytest

from mtlopt.aggregators.edm import edm, edm_weights
from mtlopt.aggregators.imtl_g import imtl_g_weights
from tests import reference
from tests.linalg.matrices import KINDS, gramian, padded_gramian, structured

SIZE = reference.MAX_TASKS
solve = jax.jit(edm_weights)
impartial = jax.jit(imtl_g_weights)


def weights_of(rows, dtype, method=solve):
    weights = np.asarray(method(*padded_gramian(rows, dtype, SIZE)), np.float64)
    assert np.all(weights[len(rows) :] == 0)
    return weights[: len(rows)]


def test_reference_vector(dtype):
    """The 512-bit min-norm weights of the unit gradients, divided by the norms."""
    for case in reference.cases():
        rows, entry = reference.jacobian(case), reference.entry(case, "mgda_l2")
        weights = weights_of(rows, dtype)
        assert np.all(np.isfinite(weights))
        allowed = reference.tolerance(case, "mgda_l2", dtype)
        if entry.status != "exact" or allowed is None:
            continue
        shares = entry.weights / np.linalg.norm(rows, axis=1)
        expected = shares / shares.sum() @ rows
        size = np.linalg.norm(expected)
        if reference.about(case)["weakly_stationary"]:
            size = np.linalg.norm(rows)
        assert np.linalg.norm(weights @ rows - expected) <= allowed * size, case


def test_two_tasks(dtype):
    """The authors' closed form, with norms up to 1e6 apart in any unit."""
    for seed in range(5):
        for ratio, unit in [(1, 1), (1e-3, 1e12), (1e6, 1e-12)]:
            rows = structured("random", 2, seed) * np.array([[unit], [unit * ratio]])
            first, second = np.linalg.norm(rows, axis=1)
            expected = (second * rows[0] + first * rows[1]) / (first + second)
            error = np.linalg.norm(weights_of(rows, dtype) @ rows - expected)
            tol = 1e-5 if dtype == np.float32 else 1e-12
            assert error <= tol * np.linalg.norm(expected)


@pytest.mark.parametrize("kind", KINDS)
def test_equal_cosines_where_there_is_a_weight(kind, dtype):
    """w convex; <u_i, d> is one number where w_i > 0 and no smaller elsewhere."""
    for num_tasks in (1, 3, 8):
        scales = np.logspace(0, -6, num_tasks)[:, None]
        rows = (structured(kind, num_tasks) * scales).astype(dtype).astype(np.float64)
        weights = weights_of(rows, dtype)
        assert np.all(weights >= 0)
        np.testing.assert_allclose(weights.sum(), 1, rtol=1e-5)
        direction, norms = weights @ rows, np.linalg.norm(rows, axis=1)
        single = dtype == np.float32
        shares = weights * norms
        if np.linalg.norm(direction) <= (1e-3 if single else 1e-7) * shares.sum():
            continue  # zero is in the hull
        cosines = rows @ direction / np.linalg.norm(direction) / norms
        lowest = np.min(cosines)
        tol = 1e-4 if single else 1e-9
        assert lowest > 0
        np.testing.assert_allclose(cosines[shares > 1e-3 * shares.sum()], lowest, tol)


def test_equals_imtl_g_where_its_weights_are_positive(float64):
    """The same point; and where IMTL-G has a negative weight, another one."""
    found = {True: 0, False: 0}
    for seed in range(20):
        rows = structured("random" if seed % 2 else "aligned", 3, seed)
        ours, theirs = (weights_of(rows, float64, m) for m in (solve, impartial))
        positive = bool(np.all(theirs > 0))
        found[positive] += 1
        assert np.allclose(ours, theirs, rtol=1e-8) == positive
    assert min(found.values()) > 0


def test_conventions(dtype):
    """Equal, opposed, zero and no rows; NaN stays."""
    equal = weights_of(structured("all_equal", 8), dtype)
    np.testing.assert_allclose(equal.sum(), 1, rtol=1e-5)
    rows = structured("opposed", 3)
    assert np.linalg.norm(weights_of(rows, dtype) @ rows) <= 1e-5
    zero = weights_of(np.array([[3.0, 0], [0, 0], [0, 0], [1, 1]]), dtype)
    np.testing.assert_array_equal(zero, [0, 0.5, 0.5, 0])
    np.testing.assert_allclose(weights_of(np.zeros((4, 3)), dtype), 0.25)
    np.testing.assert_array_equal(weights_of(np.array([[2.0, 0]]), dtype), [1])
    spoilt = np.array([[1.0, 2], [np.nan, 0]])
    assert np.all(np.isnan(solve(*padded_gramian(spoilt, dtype, SIZE))))


def test_vmap_agrees_with_absent_tasks():
    """A batch of bare Gramians, and each among absent tasks."""
    batch = np.stack([gramian(structured(kind, 8), np.float32) for kind in KINDS])
    both = jax.jit(jax.vmap(edm_weights))(batch)
    for kind, left in zip(KINDS, both, strict=True):
        rows = structured(kind, 8)
        right = weights_of(rows, np.float32)
        atol = 1e-6 * np.linalg.norm(rows, axis=1).max()
        np.testing.assert_allclose(left @ rows, right @ rows, atol=atol, err_msg=kind)


def test_bad_arguments():
    with pytest.raises(ValueError, match="`num_tasks` must be at least 1"):
        edm(0)
    with pytest.raises(ValueError, match="`gramian` must be square"):
        edm_weights(np.ones((2, 3)))
