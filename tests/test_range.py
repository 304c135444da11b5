"""Gradients as short and as long as float32 can hold: right, or finite where said.

The expected values are those of the same methods in double precision, whose squares are
all numbers.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import mtlopt
from mtlopt import METHODS
from mtlopt.rows.products import gramian, scaled_gramian
from tests.marks import slow
from tests.problems import QUICK, ROUTES, in_parts, matrix_oracle, methods_of

# Steps or sums on the scale of squared gradients: right where squares are numbers.
ON_A_SCALE = {"modo", "moco", "gradnorm", "ntk", "excess_mtl"}
# Double precision draws other numbers.
DRAWN = {"rlw", "graddrop"}

# Norms of the first row and of the others, as powers of ten; never 30 of them apart.
ORDINARY = [(0, 0), (-10, -10), (10, 10), (-7, 7), (7, -7)]
RIGHT = [(e, e) for e in (-30, -25, -20, 15, 20, 25, 30)]
RIGHT += [(-30, -1), (-1, -30), (-14, 15), (15, -14), (1, 30), (30, 1), (-20, -30)]
FINITE = [(-30, 30), (30, -30), (-20, 20), (20, -20)]


def two_updates(names, rows):
    """Methods' first two updates at rows that stay the same, and their states."""
    methods = {name: METHODS[name].make(len(rows)) for name in names}
    params, losses = jnp.zeros(rows.shape[1:], rows.dtype), jnp.ones(len(rows))
    grads = matrix_oracle(len(rows))(params, rows, losses)

    def step(states, _):
        found = {
            name: tx.update(grads, states[name], params) for name, tx in methods.items()
        }
        updates, states = ({n: f[i] for n, f in found.items()} for i in (0, 1))
        return states, updates

    init = {name: tx.init(params) for name, tx in methods.items()}
    states, updates = jax.lax.scan(step, init, length=2)
    return {name: (updates[name], states[name]) for name in names}


def run(names, rows, dtype):
    """On Jacobians `[cases, tasks, params]`, one after the other: a `cond` is one.

    Returns:
      By method: two updates a case, and the leaves of the state that are floats.
    """
    each = functools.partial(two_updates, names)
    with jax.enable_x64(dtype == np.float64):
        compiled = jax.jit(lambda rows: jax.lax.map(each, rows), compiler_options=QUICK)
        found = compiled(jnp.asarray(rows, dtype))

    def floats(state):
        leaves = jax.tree.leaves(state)
        return [leaf for leaf in leaves if jnp.issubdtype(leaf.dtype, jnp.floating)]

    return {
        name: (np.asarray(updates, float), jax.device_get(floats(state)))
        for name, (updates, state) in found.items()
    }


def jacobians(powers, num_tasks, size, seed=0):
    """Rows with conflicts, of unequal norms, of the given sizes: `[cases, ...]`."""
    rows = np.random.default_rng(seed).normal(size=(num_tasks, size))
    rows -= 0.5 * rows.mean(axis=0)
    rows *= np.linspace(0.5, 1.5, num_tasks)[:, None] / np.linalg.norm(
        rows, axis=1, keepdims=True
    )
    scales = np.ones((len(powers), num_tasks))
    for scale, (first, others) in zip(scales, powers, strict=True):
        scale[0], scale[1:] = 10.0**first, 10.0**others
    return scales[:, :, None] * rows


@functools.cache
def run_all(names, num_tasks, sizes, dtype):
    """By size, on all cases: one program, for which short rows get zeros at their end.

    Returns:
      For each size, what `run` returns.
    """
    powers = ORDINARY + RIGHT + FINITE
    rows = [jacobians(powers, num_tasks, size) for size in sizes]
    ends = [((0, 0), (0, 0), (0, max(sizes) - size)) for size in sizes]
    found = run(names, np.concatenate(list(map(np.pad, rows, ends))), dtype)
    parts = [slice(i * len(powers), (i + 1) * len(powers)) for i in range(len(sizes))]
    return [jax.tree.map(lambda leaf, part=part: leaf[part], found) for part in parts]


def check(name, num_tasks, sizes, names):
    """Checks one of the methods that run in one program."""
    found = run_all(names, num_tasks, sizes, np.float32)
    for single in found:
        assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(single[name]))
    if name in DRAWN:
        return
    others = tuple(name for name in names if name not in DRAWN)
    expected = run_all(others, num_tasks, sizes, np.float64)
    for single, double in zip(found, expected, strict=True):
        assert_right(name, single[name][0], double[name][0])


def assert_right(name, found, expected):
    """Updates in single precision are those in double precision, where they can be."""
    right = ORDINARY if name in ON_A_SCALE else ORDINARY + RIGHT
    if name == "gradnorm":  # its weights then move by the norms, to the ends
        found, expected = found[:, :1], expected[:, :1]
    for one, other, case in zip(found, expected, right, strict=False):
        if name == "cagrad" and abs(case[0] - case[1]) > 15:
            continue  # it compares squares of ratios
        if name == "epo" and abs(case[0] - case[1]) > 7:
            continue  # right up to 1e5 only, see its own test
        errors = np.linalg.norm(one - other, axis=-1)
        assert np.all(errors <= 1e-4 * np.linalg.norm(other, axis=-1)), case


def by_losses(name):
    """Whether a weighted sum, with weights that know no gradient."""
    return METHODS[name].backward == "1" and name not in ROUTES


IN_ONE_PROGRAM = {
    name: names
    for names in in_parts([name for name in methods_of(3) if not by_losses(name)])
    for name in names
}


@pytest.mark.slow
@pytest.mark.parametrize("name", IN_ONE_PROGRAM)
def test_norms_from_1e_minus_30_to_1e30(name):
    check(name, 3, (50,), IN_ONE_PROGRAM[name])


@pytest.mark.slow
def test_norms_of_weightings_by_losses():
    names = tuple(name for name in methods_of(3) if by_losses(name))
    for name in names:
        check(name, 3, (50,), names)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("num_tasks", "sizes"),
    [(t, sizes) for t in (2, 3, 8) for sizes in ((t, 1000), (20_000,))],
)
def test_norms_at_other_sizes(num_tasks, sizes):
    for names in in_parts(methods_of(num_tasks)):
        for name in names:
            check(name, num_tasks, sizes, names)


def test_four_tasks_of_krum():
    check("krum", 4, (50,), ("krum",))


@pytest.mark.parametrize("name", [slow("graddrop"), "rlw"])
def test_random_methods_scale_with_the_gradients(name):
    """Draws are other ones in double precision; here they are the same."""
    names = IN_ONE_PROGRAM.get(name, (name,))
    found, _ = run_all(names, 3, (50,), np.float32)[0][name]
    powers = ORDINARY + RIGHT + FINITE
    for one, (power, other) in zip(found, powers, strict=True):
        if power == other:
            scaled = one / 10.0**power
            np.testing.assert_allclose(scaled, found[0], rtol=1e-4, atol=1e-6)


def test_ordinary_rows_are_not_scaled():
    """The Gramian is the same to the bit, and a row that looks short is scaled."""
    rows = jnp.asarray(jacobians([(-7, 7)], 3, 50)[0], jnp.float32)
    found = scaled_gramian([rows])
    np.testing.assert_array_equal(found.scales, 1)
    np.testing.assert_array_equal(found.matrix, jax.jit(gramian)([rows]))
    absent = rows.at[0].set(0)
    np.testing.assert_array_equal(
        scaled_gramian([absent], jnp.array([False, True, True])).scales, 1
    )
    scales = scaled_gramian([absent]).scales
    assert scales[0] == 1
    assert np.all(scales[1:] != 1)


@functools.cache
def trunk_program(name, **options):
    """Three tasks on a tanh layer, whose losses are in units that are given."""

    def head(params, z, task, x, units):
        return units[task] * jnp.mean((z @ params["heads"] - 1) ** 2)

    oracle = mtlopt.task_grad(
        mtlopt.stacked(head, 3),
        {"w": "shared", "heads": "stacked"},
        encode=lambda params, x, units: jnp.tanh(x @ params["w"]),
        **options,
    )
    tx = METHODS[name].make(3)

    @functools.partial(jax.jit, compiler_options=QUICK)
    def update(params, args):
        grads = oracle(params, *args)
        return tx.update(grads, tx.init(params), params)[0]["w"]

    return update


def trunk_update(name, scale, dtype=np.float32, **options):
    """The first task's loss, or more, in another unit."""
    rng = np.random.default_rng(0)
    params = {"w": rng.normal(size=(4, 5)), "heads": rng.normal(size=(3, 5))}
    args = (rng.normal(size=(8, 4)), np.array(scale))
    with jax.enable_x64(dtype == np.float64):
        params, args = jax.tree.map(lambda a: jnp.asarray(a, dtype), (params, args))
        return np.asarray(trunk_program(name, **options)(params, args), float)


@pytest.mark.parametrize("scale", [[1e-25, 1e-5, 1e-5], [1e25, 1e5, 1e25]], ids=str)
@pytest.mark.parametrize(
    ("name", "options"),
    [("mgda", {}), ("mgda", {"streaming": True}), ("aligned_mtl_ub", {})],
)
def test_rows_of_an_encoder(name, options, scale):
    """Kept, streamed and in the latent."""
    found = trunk_update(name, scale, **options)
    expected = trunk_update(name, scale, np.float64)
    assert np.linalg.norm(found - expected) <= 1e-4 * np.linalg.norm(expected)


@pytest.mark.parametrize("kind", [jnp.float16, jnp.bfloat16])
def test_streamed_rows_in_half_precision_beside_a_row_of_zeros(kind):
    """The scale of a row must be a number of its type: the mean of the other two."""
    oracle = mtlopt.task_grad(
        mtlopt.stacked(lambda params, z, task, x: jnp.sum(x[task] * z), 2),
        "shared",
        encode=lambda params, x: params,
        streaming=True,
    )
    tx = mtlopt.upgrad(2)

    @functools.partial(jax.jit, compiler_options=QUICK)
    def update(params, rows):
        return tx.update(oracle(params, rows), tx.init(params), params)[0]

    found = update(np.ones(3, kind), np.array([[0, 0, 0], [1, 2, 4]], kind))
    np.testing.assert_allclose(np.asarray(found, float), [0.5, 1, 2])


def test_short_latent_rows_of_microbatches_count_as_zero():
    """Only their products are known, and squares of 1e-17 are too small."""
    found = trunk_update("aligned_mtl_ub", [1e-17, 1.0, 2.0], microbatches=2)
    expected = trunk_update("aligned_mtl_ub", [0.0, 1.0, 2.0], microbatches=2)
    np.testing.assert_allclose(found, expected, rtol=1e-5)


@pytest.mark.parametrize("name", ["nash_mtl", "fairgrad"])
def test_bargaining_without_a_solution(name):
    """Gradients that cancel: nothing but rounding is left, whatever the scale.

    Powers of two do not round, so their results are the same to the bit.
    """
    rows = np.random.default_rng(0).normal(size=(64, 60))
    rows -= rows.mean(axis=0)
    scales = np.array([1.0, 2.0**-90, 2.0**90, 1e-6, 1e12, 1e-25])
    found, _ = run([name], scales[:, None, None] * rows, np.float32)[name]
    np.testing.assert_array_equal(found[1:3], found[[0, 0]])
    assert np.max(np.linalg.norm(found, axis=-1)) < 0.04 * 64**0.5
