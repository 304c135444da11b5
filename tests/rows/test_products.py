"""Inner products and norms of rows, by both routes, against NumPy in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mtlopt.rows import arithmetic, products
from tests.marks import cpu_only

EDGE = products._LONG_ROW


def leaves(num_tasks, size, dtype=np.float32):
    """A short leaf and one of `size` numbers a row, in two axes, of unlike scales."""
    random = np.random.default_rng(num_tasks)
    scales = 10.0 ** -np.arange(num_tasks)[:, None]
    long = (random.standard_normal((num_tasks, size)) + 0.1) * scales
    short = random.standard_normal((num_tasks, 3)) * scales
    pair = short, long.reshape(num_tasks, 2, -1)
    return [jnp.asarray(leaf, dtype) for leaf in pair]


def in_float64(rows):
    flats = [np.asarray(leaf, np.float64).reshape(len(leaf), -1) for leaf in rows]
    return sum(flat @ flat.T for flat in flats)


@pytest.mark.parametrize("num_tasks", [1, 2, 4, 5])
@pytest.mark.parametrize("size", [EDGE - 2, EDGE])
@pytest.mark.parametrize("dtype", [np.float32, jnp.bfloat16])
def test_gramian_of_few_long_rows(num_tasks, size, dtype):
    """Symmetric, and right to a few roundings of each pair's norms."""
    rows = leaves(num_tasks, size, dtype)
    both = jax.jit(lambda rows: (products.gramian(rows), arithmetic.row_norms(rows)))
    (found, lengths), expected = jax.device_get(both(rows)), in_float64(rows)
    assert found.dtype == jnp.float32
    np.testing.assert_array_equal(found, found.T)
    norms = np.sqrt(np.diag(expected))
    error = np.abs(found - expected) / np.outer(norms, norms)
    # The matrix units of a GPU sum products of bfloat16 to less than float32.
    exact = jax.default_backend() == "cpu" or dtype == np.float32
    assert error.max() < (1e-5 if exact else 1e-4)
    np.testing.assert_allclose(lengths, norms, rtol=1e-5)


@cpu_only
def test_both_routes_agree(monkeypatch):
    """Under `vmap` too, and through a gradient."""
    rows = leaves(3, EDGE)

    def number(rows):
        return jnp.sum(jnp.sin(products.gramian(rows) / EDGE))

    def numbers():
        batch = [np.stack([leaf, 2 * leaf]) for leaf in rows]
        return jax.jit(
            lambda: (jax.vmap(products.gramian)(batch), jax.grad(number)(rows))
        )()

    def has_matmul():
        return "dot_general" in str(
            jax.make_jaxpr(lambda *rows: products.gramian(rows))(rows[1])
        )

    assert not has_matmul()
    pairs = numbers()
    monkeypatch.setattr(products, "few_long_rows", lambda leaf: False)
    assert has_matmul()
    for a, b in zip(jax.tree.leaves(pairs), jax.tree.leaves(numbers()), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5 * np.abs(b).max())


SHAPES = [(2, EDGE), (3,), (EDGE,), (), (3, EDGE), (products._SHORT_ROW + 1,), (5, 7)]


@pytest.mark.parametrize("num_tasks", [1, 2, 3])
@pytest.mark.parametrize("norm", [1e-25, 1.0, 1e25])
def test_parts(num_tasks, norm):
    """Short leaves are multiplied together: the same products.

    With a basis, too, and if the squares are no numbers.
    """
    random = np.random.default_rng(num_tasks)
    wide = [random.standard_normal((num_tasks, *shape)) for shape in SHAPES]
    exact = in_float64(wide)
    rows = [jnp.asarray(norm * leaf, jnp.float32) for leaf in wide]
    parts = products.parts_of(rows)
    if products.alone():
        assert len(parts) == 5
        assert len(products.parts_of([*rows, jnp.ones((num_tasks, 2), bool)])) == 6

    @jax.jit
    def numbers(parts, basis):
        scaled = products.scaled_gramian(parts)
        lengths = jnp.sqrt(jnp.diagonal(scaled.matrix)) / scaled.scales
        by_column = products.gramian(parts, jnp.diagonal(basis))
        largest = products.largest_entries(parts)
        return lengths, by_column, products.gramian(parts, basis), largest

    basis = np.float32(random.standard_normal((num_tasks, num_tasks)) / norm)
    lengths, by_column, turned, largest = jax.device_get(numbers(parts, basis))
    np.testing.assert_allclose(lengths, norm * np.sqrt(np.diag(exact)), rtol=1e-5)
    basis = np.float64(basis) * norm
    factors = np.diag(np.diag(basis))
    scale = np.abs(exact).max() * np.abs(basis).max() ** 2
    for found, matrix in ((by_column, factors), (turned, basis)):
        expected = matrix.T @ exact @ matrix
        np.testing.assert_allclose(found, expected, atol=1e-5 * scale)
    sizes = [np.abs(leaf).reshape(num_tasks, -1).max(axis=1) for leaf in wide]
    np.testing.assert_allclose(largest, norm * np.max(sizes, axis=0), rtol=1e-6)


def test_nan_stays_visible():
    """In the row that has it, and no other."""
    rows = [leaf.at[0, 0].set(jnp.nan) for leaf in leaves(2, EDGE)]
    found = np.isnan(products.gramian(rows))
    np.testing.assert_array_equal(found, [[True, True], [True, False]])
    np.testing.assert_array_equal(np.isnan(arithmetic.row_norms(rows)), [True, False])


@pytest.mark.parametrize("chunk", [2**18, 5 * EDGE, 64], ids=["whole", "some", "many"])
def test_gramian_of_rotated_rows(monkeypatch, chunk):
    """`B^T G B` with the digits that rounding of `G` has lost, whatever the chunks.

    The rows are a common one and 1e-4 of their own: `G` knows their differences to
    1e-7 / 1e-8, the rotated rows to 1e-3.
    """
    monkeypatch.setattr(products, "_CHUNK", chunk)
    random = np.random.default_rng(0)
    shapes = [(1, 7, EDGE // 7), (1, 3)]
    rows = [
        np.float32(
            random.normal(size=shape) + 1e-4 * random.normal(size=(3, *shape[1:]))
        )
        for shape in shapes
    ]
    basis = np.float32([[1, 1, 0], [-1, 0, 1], [0, -1, 1]])
    found = jax.jit(products.gramian)(rows, basis)
    exact = basis.T @ in_float64(rows) @ basis
    np.testing.assert_array_equal(found, found.T)
    np.testing.assert_allclose(found, exact, atol=1e-3 * exact[0, 0], rtol=1e-5)


@pytest.mark.parametrize("norm", [1e-30, 1e-20, 1.0, 1e20, 1e30])
def test_norms_whose_squares_are_no_numbers(norm):
    """Right, beside a row of zeros and one that has an infinite entry."""
    row = np.random.default_rng(0).normal(size=300)
    row *= norm / np.linalg.norm(row)
    rows = np.float32(np.stack([row, 0 * row, row]))
    rows[2, 0] = np.inf
    found = jax.jit(arithmetic.row_norms)([rows[:, :7], rows[:, 7:]])
    np.testing.assert_allclose(found, [norm, 0, np.inf], rtol=1e-5)


@pytest.mark.parametrize("norm", [1e-15, 1.0, 1e15])
def test_derivatives_of_norms(norm):
    """The unit rows; zero for a row of zeros."""
    rows = np.random.default_rng(0).normal(size=(3, 5))
    rows *= norm / np.linalg.norm(rows, axis=1, keepdims=True)
    rows[1] = 0
    rows = jnp.float32(rows)

    def total(rows):
        return jnp.sum(arithmetic.row_norms([rows[:, :2], rows[:, 2:]]))

    expected = np.asarray(rows) / norm
    np.testing.assert_allclose(jax.grad(total)(rows), expected, atol=1e-6)
    along = jax.jvp(total, (rows,), (rows,))[1]
    np.testing.assert_allclose(along, 2 * norm, rtol=1e-6)


@pytest.mark.parametrize("num_tasks", [2, 4, 5])
@pytest.mark.parametrize("dtype", [np.float32, jnp.bfloat16])
def test_combination_of_few_long_rows(num_tasks, dtype):
    """By sums or by a product: the weighted sum, in the rows' type."""
    rows = leaves(num_tasks, EDGE, dtype)
    weights = np.linspace(-1, 2, num_tasks, dtype=np.float32)
    for found, leaf in zip(arithmetic.combine(weights, rows), rows, strict=True):
        assert found.dtype == dtype
        expected = np.tensordot(weights, np.asarray(leaf, np.float64), 1)
        error = np.abs(np.asarray(found, np.float64) - expected)
        assert error.max() <= float(jnp.finfo(dtype).eps) * 4 * np.abs(expected).max()
