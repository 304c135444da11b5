"""Factors of Gramians and the alignment of their axes."""

import functools
import itertools
import subprocess
import sys

import jax
import numpy as np
import pytest

from mtlopt.aggregators.aligned_mtl import aligned_mtl_weights
from mtlopt.linalg.normalise import normalise
from mtlopt.linalg.principal_axes import axes_of_units, graded_svd, principal_axes
from mtlopt.linalg.procrustes import aligned_matrix
from mtlopt.linalg.unit_rows import unit_rows
from mtlopt.rows import products as linalg
from tests import reference
from tests.linalg.matrices import gramian, padded_gramian, random_rows, structured

solve = jax.jit(aligned_mtl_weights, static_argnames="scale")
SIZE = 40
SCALES = ("min", "median", "rmse")


@jax.jit
def units_of(gramian, present=None):
    return unit_rows(*normalise(gramian, present))


def rank_of(units):
    return np.sum(units.singular > 0)


@functools.partial(jax.jit, static_argnames="scale")
def align(units, scale="min"):
    return aligned_matrix(axes_of_units(units), scale)


@functools.partial(jax.jit, static_argnames="scale")
def align_elsewhere(units, scale="min"):
    """As on platforms other than a CPU."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jax.lax, "platform_dependent", lambda x, cpu, default: default(x))
        return aligned_matrix(axes_of_units(units), scale)


on_all_platforms = pytest.mark.parametrize("align", [align, align_elsewhere])


def exact(rows, scale="min", rank=None):
    """sqrt(s) Q P^T 1/T from a float64 SVD of the rows."""
    left, singular, right = np.linalg.svd(rows, full_matrices=False)
    kept = singular[:rank]
    size = {
        "min": kept[-1],
        "median": np.sort(kept)[(len(kept) - 1) // 2],
        "rmse": np.sqrt(np.mean(kept**2)),
    }[scale]
    return size * (left[:, :rank].sum(axis=0) / len(rows)) @ right[:rank]


def direction(units, rows, scale="min", align=align):
    """J^T A 1/T for rows that are the first of `SIZE` tasks."""
    num_tasks = len(rows)
    matrix = np.asarray(align(units, scale=scale), np.float64)[:num_tasks]
    return matrix[:, :num_tasks].mean(axis=1) @ rows


def test_rank_of_every_reference_case(dtype):
    """Duplicates and sums to zero are seen in float32; unequal rows cost nothing."""
    for case in reference.cases():
        rows = reference.jacobian(case)
        found = rank_of(units_of(*padded_gramian(rows, dtype, SIZE)))
        if case == "near_duplicate_m3" and np.dtype(dtype) == np.float32:
            continue  # condition 1e9: beyond a float32 Gramian
        assert found == reference.about(case)["rank"], case


@pytest.mark.parametrize("condition", [1e2, 1e3, 9e3])
@pytest.mark.parametrize("num_tasks", [2, 8, 40])
def test_rank_is_kept_below_condition_1e4(condition, num_tasks):
    """In float32, whatever the row scales are."""
    for seed in range(5):
        rows = random_rows(seed, num_tasks)
        near = rows[0] + rows[1] * np.sqrt(2 / condition)
        rows[1] = near * np.linalg.norm(rows[0]) / np.linalg.norm(near)
        unit = rows / np.linalg.norm(rows, axis=1, keepdims=True)
        if np.linalg.cond(unit) ** 2 > 1e4:
            continue
        rows *= np.logspace(0, -6, num_tasks)[:, None]
        units = units_of(*padded_gramian(rows, np.float32, SIZE))
        assert rank_of(units) == num_tasks


def test_units_square_to_the_gramian(dtype):
    """D Q Sigma^2 Q^T D = G, relative to the norms of its rows."""
    rows = structured("random", 40) * np.logspace(-6, 0, 40)[:, None]
    matrix = gramian(rows, dtype)
    units = units_of(matrix)
    root = units.singular[:, None] * units.axes.T * units.norms[None]
    norms = np.sqrt(np.diagonal(matrix))
    product = np.array(root.T) @ np.array(root)
    error = np.abs(product - matrix) / norms / norms[:, None]
    assert np.max(error) <= (1e-5 if dtype == np.float32 else 1e-13)


@on_all_platforms
@pytest.mark.parametrize(
    ("num_tasks", "scales"),
    [
        *itertools.product([2, 3, 8, 40], ["descending", "ascending", "shuffled"]),
        # Two groups of scales mix in the SVD from about 40 tasks on, see graded_svd.
        *itertools.product([2, 3, 8], ["two"]),
    ],
)
def test_float32_is_right_for_unequal_rows(num_tasks, scales, align):
    """Row norms from 1 to 1e-6, where eigh(G) and a plain SVD of M are not."""
    for seed in range(4):
        size = np.logspace(0, -6, num_tasks)
        if scales == "ascending":
            size = size[::-1]
        elif scales == "shuffled":
            size = np.random.default_rng(seed).permutation(size)
        elif scales == "two":
            size = np.where(np.arange(num_tasks) % 2, 1e-6, 1)
        rows = random_rows(seed, num_tasks, 3 * num_tasks + 4) * size[:, None]
        rows = rows.astype(np.float32).astype(np.float64)
        units = units_of(*padded_gramian(rows, np.float32, SIZE))
        expected = exact(rows)
        error = np.linalg.norm(direction(units, rows, align=align) - expected)
        assert error <= 1e-5 * np.linalg.norm(expected)


@on_all_platforms
@pytest.mark.parametrize("scale", ["min", "median", "rmse"])
def test_duplicates_among_dominating_rows(scale, align):
    """Lost rank at the top of the scale does not hide the small task below."""
    rows = random_rows(0, 4)
    rows[1] = rows[0]
    rows *= np.array([1, 1, 1e-3, 1e-6])[:, None]
    rows = rows.astype(np.float32).astype(np.float64)
    units = units_of(*padded_gramian(rows, np.float32, SIZE))
    assert rank_of(units) == 3
    expected = exact(rows, scale, rank=3)
    error = np.linalg.norm(direction(units, rows, scale, align) - expected)
    assert error <= 1e-4 * np.linalg.norm(expected)


@jax.jit
def units_of_rows(rows):
    gramian = functools.partial(linalg.gramian, [rows])
    return unit_rows(*normalise(gramian()), rotated=gramian)


@pytest.mark.parametrize("suffix", ["", "_pref"])
def test_near_duplicates(suffix, dtype):
    """A Gramian of condition 1e9, in float32 too, which rotated rows resolve."""
    case, method = "near_duplicate_m3", f"alignedmtl_min{suffix}"
    rows = reference.jacobian(case)
    units = units_of_rows(rows.astype(dtype))
    assert rank_of(units) == 3
    preference = reference.preference(case) if suffix else np.full(3, 1 / 3)
    matrix = np.asarray(align(units, scale="min"), np.float64)
    error = reference.error(case, method, matrix @ preference @ rows)
    assert error <= (1e-2 if dtype == np.float32 else 1e-10)


def test_rotated_rows_have_the_rank_of_the_gramian(dtype):
    """On duplicates, zero rows and unequal lengths, and the same direction."""
    for case in ("dominate_1e6_m5", "duplicate_row_m5", "zero_row_m3"):
        rows = reference.jacobian(case)
        both = (
            units_of_rows(rows.astype(dtype)),
            units_of(*padded_gramian(rows, dtype, SIZE)),
        )
        rank = reference.about(case)["rank"]
        assert rank_of(both[0]) == rank_of(both[1]) == rank
        difference = direction(both[0], rows) - direction(both[1], rows)
        size = np.linalg.norm(exact(rows, rank=rank))
        assert np.linalg.norm(difference) <= size * (
            2e-5 if dtype == np.float32 else 1e-13
        )


@pytest.mark.parametrize("scale", ["min", "median", "rmse"])
def test_alignment_equalises_the_singular_values(scale, float64):
    """J^T A has all singular values equal, and is the nearest such matrix."""
    rows = structured("aligned", 40)
    aligned = np.asarray(align(units_of(gramian(rows, float64)), scale=scale)) @ rows
    singular = np.linalg.svd(aligned, compute_uv=False)
    np.testing.assert_allclose(singular, singular[0], rtol=1e-10)
    # Procrustes optimality: the alignment of J with its image is symmetric, >= 0.
    overlap = aligned @ rows.T
    np.testing.assert_allclose(overlap, overlap.T, atol=1e-9 * np.abs(overlap).max())
    assert np.linalg.eigvalsh(overlap).min() > 0


@pytest.mark.parametrize("unit", [1e-12, 1e12])
def test_scale_equivariant(unit):
    """A does not depend on the unit of the losses, and no square overflows."""
    rows = structured("random", 8) * np.logspace(0, -6, 8)[:, None]
    matrix, present = padded_gramian(rows, np.float32, SIZE)
    for scale in ("min", "median", "rmse"):
        expected = align(units_of(matrix, present), scale=scale)
        matrix_scaled, _ = padded_gramian(rows * unit, np.float32, SIZE)
        scaled = align(units_of(matrix_scaled, present), scale=scale)
        largest = np.abs(expected).max(axis=1, keepdims=True)[:8]
        assert np.max(np.abs(scaled - expected)[:8] / largest) <= 1e-4


def test_permutation_equivariant(dtype):
    rows = structured("random", 8) * np.logspace(0, -6, 8)[:, None]
    order = np.random.default_rng(0).permutation(8)
    first = direction(units_of(*padded_gramian(rows, dtype, SIZE)), rows)
    again = direction(units_of(*padded_gramian(rows[order], dtype, SIZE)), rows[order])
    tol = 1e-5 if dtype == np.float32 else 1e-13
    assert np.linalg.norm(first - again) <= tol * np.linalg.norm(first)


def test_absent_tasks_leave_the_sub_matrix():
    """Weights of the bare Gramian, with 1 / num_present as the preference."""
    rows = structured("aligned", 3)
    expected = solve(gramian(rows, np.float32))
    matrix, present = padded_gramian(rows, np.float32, 8)
    weights = np.asarray(solve(matrix, present=present))
    np.testing.assert_allclose(weights[:3], expected, rtol=1e-5)
    assert np.all(weights[3:] == 0)
    ones = solve(matrix, np.ones(8), present=present)
    np.testing.assert_allclose(ones, weights * 3, rtol=1e-5)


def test_degenerate_weights():
    """Equal gradients give their mean; the zero matrix gives weights zero."""
    equal = np.ones((8, 8), np.float32)
    np.testing.assert_allclose(solve(equal), 1 / 8, rtol=1e-5)
    np.testing.assert_array_equal(solve(0 * equal), 0)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_not_finite_stays_visible(bad):
    matrix = np.eye(SIZE, dtype=np.float32)
    matrix[3, 7] = matrix[7, 3] = bad
    present = np.ones(SIZE, bool)
    assert np.all(np.isnan(align(units_of(matrix, present), scale="min")))
    present[7] = False
    assert np.all(np.isfinite(align(units_of(matrix, present), scale="min")))


def test_jit_and_vmap_agree():
    kinds = ("random", "low_rank", "opposed", "duplicated", "zero_row", "all_zero")
    matrices = np.stack([gramian(structured(kind, 8), np.float32) for kind in kinds])
    single = list(map(solve, matrices))
    batch = jax.jit(jax.vmap(aligned_mtl_weights))(matrices)
    np.testing.assert_allclose(batch, single, atol=1e-5)


def test_arguments_are_checked():
    with pytest.raises(ValueError, match="`scale` must be one of"):
        solve(np.eye(2), scale="max")
    with pytest.raises(ValueError, match="`preference` must have one entry per task"):
        solve(np.eye(2), np.ones(3))


def test_graded_svd_is_relatively_accurate(dtype):
    """Every singular value to rounding, with column scales far apart."""
    rng = np.random.default_rng(0)
    smallest = -6 if dtype == np.float32 else -10
    scales = rng.permutation(np.logspace(0, smallest, 3))
    basis, _ = np.linalg.qr(rng.normal(size=(3, 3)))
    matrix = (basis * scales).astype(dtype)  # its singular values are the scales
    singular, right, _ = jax.jit(graded_svd)(matrix, 3)
    eps = np.finfo(dtype).eps
    np.testing.assert_allclose(singular, np.sort(scales)[::-1], rtol=20 * eps)
    np.testing.assert_allclose(
        np.abs(right).T, np.eye(3)[np.argsort(-scales)], atol=9 * eps
    )


@jax.jit
def both_axes(gram):
    """Of a Gramian and of its root: singular values, ranks and aligning matrices."""
    axes = principal_axes(gram), axes_of_units(units_of(gram))
    return [
        (one.singular, one.rank, [aligned_matrix(one, scale) for scale in SCALES])
        for one in axes
    ]


@pytest.mark.parametrize("condition", [1.0, 10.0, 60.0, 300.0, 3000.0])
def test_axes_of_a_gramian_are_those_of_its_root(condition, dtype):
    """On both sides of the condition up to which its own eigenvalues are taken."""
    rng = np.random.default_rng(0)
    left, right = (np.linalg.qr(rng.normal(size=(8, 8)))[0] for _ in range(2))
    rows = left * np.logspace(0, -np.log10(condition) / 2, 8) @ right
    found, expected = both_axes(gramian(3e5 * rows, dtype))
    tolerance = 2e-5 if dtype == np.float32 else 1e-10
    np.testing.assert_allclose(found[0], expected[0], rtol=tolerance)
    assert found[1] == expected[1] == 8
    for scale, one, other in zip(SCALES, found[2], expected[2], strict=True):
        np.testing.assert_allclose(one, other, atol=10 * tolerance, err_msg=scale)


def test_a_lone_task_that_is_not_finite_stays_visible():
    assert np.all(np.isnan(solve(np.full((1, 1), np.nan, np.float32))))


BATCHES = """
import jax, numpy as np, mtlopt
from tests.problems import QUICK
rows = np.random.default_rng(0).normal(size=(1692, 8, 20)).astype(np.float32)
weights = jax.jit(jax.vmap(mtlopt.aligned_mtl_weights), compiler_options=QUICK)
for _ in range(50):
    jax.block_until_ready(weights(rows @ rows.transpose(0, 2, 1)))
"""


@pytest.mark.slow
def test_large_batches_come_to_an_end():
    """Both ways are made under `vmap`; on two cores they waited for each other."""
    subprocess.run([sys.executable, "-c", BATCHES], timeout=120, check=True)
