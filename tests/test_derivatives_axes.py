"""Derivatives of updates by axes, in both modes, against central differences."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import mtlopt
from mtlopt.linalg.normalise import normalise
from mtlopt.linalg.unit_rows import unit_rows
from mtlopt.rows import products as linalg
from tests.linalg.matrices import bundle
from tests.marks import slow
from tests.problems import QUICK

FACTORIES = {
    "min": mtlopt.aligned_mtl,
    "median": functools.partial(mtlopt.aligned_mtl, scale="median"),
    "rmse": lambda n: mtlopt.aligned_mtl(n, np.arange(1.0, n + 1), scale="rmse"),
    "imtl_g": mtlopt.imtl_g,
    "conflict_free": lambda n: mtlopt.conflict_free(n, np.arange(1.0, n + 1)),
}
CASES = 12  # for which the derivatives are compiled
# Two singular values that are equal, one of which is the length of all components.
NO_DERIVATIVE = [(2, "equal", "min"), (2, "equal", "median"), (3, "equal", "median")]


def kinds(num_tasks):
    """Rows and which of them are present, by kind."""
    rng = np.random.default_rng(num_tasks)
    size = num_tasks + 4
    left, _ = np.linalg.qr(rng.normal(size=(num_tasks, num_tasks)))
    right, _ = np.linalg.qr(rng.normal(size=(size, num_tasks)))
    values = np.array([3, 3, 2, 1.5, 1])[:num_tasks]
    found = {
        "random": rng.normal(size=(num_tasks, size)),
        "unequal": rng.normal(size=(num_tasks, size))
        * np.logspace(0, -5, num_tasks)[:, None],
        "equal": left * values @ right.T,
        "correlated": bundle(1, num_tasks, size, 1e-4),
        "nearly dependent": bundle(1, num_tasks, size, 1e-6),
        "absent": np.insert(rng.normal(size=(num_tasks - 1, size)), 1, np.nan, axis=0),
    }
    if num_tasks > 2:
        few = np.pad(rng.normal(size=(num_tasks, num_tasks - 1)), ((0, 0), (0, 5)))
        found["few params"] = few
    present = {kind: np.isfinite(rows[:, 0]) for kind, rows in found.items()}
    return found, present


@functools.cache
def derivatives(num_tasks):
    """From stacked rows, directions and cotangents to updates and both derivatives."""

    def of_method(factory, rows, present, direction, cotangent):
        tx = factory(num_tasks)

        def update(rows):
            grads = mtlopt.TaskGrads.from_rows(rows, present=present)
            return tx.update(grads, tx.init(rows[0]))[0]

        found, tangent = jax.jvp(update, (rows,), (direction,))
        _, pull = jax.vjp(update, rows)
        return found, tangent, pull(cotangent)[0]

    def of_all(*operands):
        return {
            name: of_method(factory, *operands) for name, factory in FACTORIES.items()
        }

    run = jax.jit(jax.vmap(of_all), compiler_options=QUICK)

    def padded(*stacks):
        """Always as many cases, for one program."""
        count = len(stacks[0])
        outs = run(*(np.resize(x, (CASES, *x.shape[1:])) for x in stacks))
        return jax.tree.map(lambda out: np.asarray(out)[:count], outs)

    return padded


@functools.cache
def measured(num_tasks):
    """Per method and kind: tangent, central difference, and `v' t` of both modes."""
    found, there = kinds(num_tasks)
    rows, present = np.stack([*found.values()]), np.stack([*there.values()])
    rng = np.random.default_rng(0)
    norms = np.linalg.norm(rows, axis=2, keepdims=True)
    directions = np.where(present[..., None], rng.normal(size=rows.shape) * norms, 0)
    directions *= np.any(np.nan_to_num(rows) != 0, axis=1, keepdims=True)
    cotangents = rng.normal(size=rows[:, 0].shape)
    singular = [
        np.linalg.svd((r / n)[p], compute_uv=False)
        for r, n, p in zip(rows, norms, present, strict=True)
    ]
    steps = np.array([5e-4 * np.min(s[s > 1e-9]) for s in singular])[:, None, None]
    with jax.enable_x64(True):
        run = derivatives(num_tasks)

        def at(step):
            moved = rows + step * steps * directions
            return run(moved, present, directions, cotangents)

        here, around = at(0), {step: at(step) for step in (-2, -1, 1, 2)}
    table = {}
    for name, (_, tangents, gradients) in here.items():
        near, far = (
            (around[k][name][0] - around[-k][name][0]) / (2 * k * steps[:, 0])
            for k in (1, 2)
        )
        expected = (4 * near - far) / 3
        for i, kind in enumerate(found):
            forward = cotangents[i] @ tangents[i]
            reverse = np.sum(gradients[i][present[i]] * directions[i][present[i]])
            table[name, kind] = tangents[i], expected[i], forward, reverse
            assert np.all(gradients[i][~present[i]] == 0)
    return table


@pytest.mark.slow
@pytest.mark.parametrize("name", FACTORIES)
@pytest.mark.parametrize("num_tasks", [2, 3, 5])
def test_both_modes(name, num_tasks):
    """Equal to central differences, also where the rows are looked at again."""
    for kind in kinds(num_tasks)[0]:
        if (num_tasks, kind, name) in NO_DERIVATIVE:
            continue
        tangent, expected, forward, reverse = measured(num_tasks)[name, kind]
        size = np.linalg.norm(expected)
        # Differences of updates that are large beside their rows keep fewer digits.
        bound = 1e-6 if kind == "nearly dependent" else 1e-7
        assert np.linalg.norm(tangent - expected) <= bound * size, kind
        np.testing.assert_allclose(reverse, forward, rtol=1e-9, atol=1e-9 * float(size))
        if (kind, name) != ("few params", "imtl_g"):  # there it is zero
            assert size > 0, kind


@pytest.mark.parametrize("num_tasks", [2, 3])
def test_the_rows_are_looked_at_again(num_tasks):
    """In one of those cases, in double precision."""
    found = kinds(num_tasks)[0]

    @jax.jit
    def is_used(rows):
        products = functools.partial(linalg.gramian, [rows])
        look = unit_rows(*normalise(products()), products).look
        assert look is not None
        return look.is_used

    with jax.enable_x64(True):
        for kind in ("random", "nearly dependent"):
            assert is_used(found[kind]) == (kind == "nearly dependent")


DEGENERATE = {
    "zeros": np.zeros((3, 7)),
    "zero row": np.insert(np.eye(2, 7), 1, 0, axis=0),
    "all equal": np.ones((3, 7)),
    "duplicates": np.eye(3, 7)[[0, 0, 1]],
    "opposed": np.eye(3, 7)[[0, 1, 0]] * [[1], [1], [-1]],
    "orthonormal": np.eye(3, 7),
    "sum of zero": np.eye(3, 7) - np.eye(3, 7)[[1, 2, 0]],
    "one direction": np.ones((3, 7)) * [[1], [-2], [3]],
    "beyond rounding": np.ones((3, 7)) + 1e-9 * np.eye(3, 7),
    "short": 1e-15 * np.eye(3, 7),
    "long": 1e15 * np.eye(3, 7),
    "short and long": np.eye(3, 7) * [[1e-6], [1], [1e6]],
}


@pytest.mark.parametrize(
    ("num_tasks", "dtype"),
    [
        slow(2, np.float32),
        (2, np.float64),
        slow(3, np.float32),
        slow(3, np.float64),
    ],
)
def test_no_derivative_is_nan(num_tasks, dtype):
    """Also where the update has none, for norms whose inverse squares are numbers."""
    rng = np.random.default_rng(1)
    rows = np.stack([*DEGENERATE.values()])[:, -num_tasks:, : num_tasks + 4]
    directions, cotangents = rng.normal(size=rows.shape), rng.normal(size=rows.shape)
    present = np.ones(rows.shape[:2], bool)
    with jax.enable_x64(dtype == np.float64):
        found = derivatives(num_tasks)(
            rows.astype(dtype),
            present,
            directions.astype(dtype),
            cotangents[:, 0].astype(dtype),
        )
    for name, outs in found.items():
        for one in zip(DEGENERATE, *map(np.asarray, outs), strict=True):
            assert all(np.all(np.isfinite(out)) for out in one[1:]), (name, one[0])


def linear_oracle(num_tasks, **options):
    """The rows are an argument: gradients of a linear encoder's outputs."""
    return mtlopt.task_grad(
        mtlopt.stacked(lambda params, z, task, rows: z[task], num_tasks),
        "shared",
        encode=lambda params, rows: rows @ params,
        **options,
    )


def assert_nearly_double(found, rows, vector):
    """Cosines of 0.9999: gradients of a loss of the update, as in double."""
    with jax.enable_x64(True):
        expected = pulled(rows, vector)
    for name in FACTORIES:
        error = np.linalg.norm(np.asarray(found[name], float) - expected[name])
        assert error <= 5e-3 * np.linalg.norm(expected[name]), name


def pulled(rows, vector):
    """The gradient of an inner product with the update, of every method."""
    present = np.ones((1, len(rows)), bool)
    outs = derivatives(len(rows))(rows[None], present, rows[None], vector[None])
    return {name: gradients[0] for name, (*_, gradients) in outs.items()}


def correlated(num_tasks):
    rows = bundle(2, num_tasks, num_tasks + 4, 1e-4)
    return rows, np.random.default_rng(2).normal(size=rows.shape[1])


def test_single_precision():
    rows, vector = correlated(2)
    found = pulled(np.float32(rows), np.float32(vector))
    assert all(gradient.dtype == np.float32 for gradient in found.values())
    assert_nearly_double(found, rows, vector)


@pytest.mark.slow
@pytest.mark.parametrize(("source", "num_tasks"), [("kept", 3), ("streamed", 2)])
def test_single_precision_and_an_oracle(source, num_tasks):
    rows, vector = correlated(num_tasks)
    oracle = linear_oracle(num_tasks, streaming=source == "streamed")

    def gradient(factory, rows):
        tx = factory(num_tasks)

        def loss(rows):
            params = jnp.zeros(rows.shape[1], rows.dtype)
            updates, _ = tx.update(oracle(params, rows), tx.init(params))
            return jnp.sum(updates * np.float32(vector))

        return jax.grad(loss)(rows)

    def of_all(rows):
        return {name: gradient(factory, rows) for name, factory in FACTORIES.items()}

    found = jax.jit(of_all, compiler_options=QUICK)(np.float32(rows))
    assert_nearly_double(found, rows, vector)


def test_second_derivatives_are_refused():
    for weights in (mtlopt.aligned_mtl_weights, mtlopt.imtl_g_weights):
        total = functools.partial(lambda f, matrix: jnp.sum(f(matrix) ** 2), weights)
        with pytest.raises(NotImplementedError, match="first derivatives only"):
            jax.jit(jax.hessian(total)).trace(jnp.eye(2))
