"""GradVac: reference values and trajectories, and a plain loop over gradients."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import mtlopt
from mtlopt.aggregators.gradvac import gradvac, gradvac_weights
from mtlopt.aggregators.pcgrad import pcgrad_weights
from mtlopt.linalg.surgery import random_orders
from tests import reference
from tests.linalg.matrices import KINDS, padded_gramian, structured

SIZE = reference.MAX_TASKS
NATURAL = np.tile(np.arange(SIZE), (SIZE, 1))
solve = jax.jit(gradvac_weights)
pcgrad = jax.jit(pcgrad_weights)


def random_order(seed):
    rng = np.random.default_rng(seed)
    return np.stack([rng.permutation(SIZE) for _ in range(SIZE)])


def step(rows, targets, order=NATURAL, decay=0.5, dtype=np.float64):
    """Weights and the next targets of the rows among absent tasks."""
    num_tasks = len(rows)
    matrix, present = padded_gramian(rows, dtype, SIZE)
    full = np.full((SIZE, SIZE), 0.7, dtype)  # of absent pairs
    full[:num_tasks, :num_tasks] = targets
    weights, moved = solve(matrix, full, order, decay, present)
    if np.all(np.isfinite(rows)):
        assert np.all(weights[num_tasks:] == 0)
    moved = np.array(moved, np.float64)
    found = moved[:num_tasks, :num_tasks].copy()
    moved[:num_tasks, :num_tasks] = full[:num_tasks, :num_tasks]
    np.testing.assert_array_equal(moved, full)  # they stand still
    weights = np.asarray(weights, np.float64)
    return weights[:num_tasks], found


@pytest.mark.parametrize(("method", "calls"), [("gradvac", 1), ("gradvac_call3", 3)])
def test_reference_vector(method, calls, dtype):
    """The first and the third call on the same Jacobian."""
    single = np.dtype(dtype) == np.float32
    for case in reference.cases():
        rows = reference.jacobian(case)
        targets = np.zeros((len(rows), len(rows)))
        for _ in range(calls):
            weights, targets = step(rows, targets, dtype=dtype)
        assert np.all(np.isfinite(weights))
        allowed = reference.tolerance(case, method, dtype)
        if allowed is None:
            continue
        # Of antiparallel rows the square root of the rounding shows.
        allowed = max(allowed, 1e-3 if single else 1e-7) if calls == 3 else allowed
        assert reference.error(case, method, weights @ rows) <= allowed, case


@pytest.mark.parametrize("sequence", reference.sequences())
def test_reference_trajectory(sequence, dtype):
    """Twelve steps over changing Jacobians: vectors and targets."""
    get = functools.partial("{}/{}".format, sequence)
    targets = np.zeros((3, 3))
    tol = 1e-5 if dtype == np.float32 else 1e-12
    off_diagonal = ~np.eye(3, dtype=bool)
    for t, rows in enumerate(reference.weighting(get("jacobians"))):
        expected = reference.weighting(get("gradvac/target"))[t]
        np.testing.assert_allclose(
            targets[off_diagonal], expected[off_diagonal], atol=tol
        )
        weights, targets = step(rows, targets, dtype=dtype)
        vector = reference.weighting(get("gradvac/vector"))[t]
        assert np.linalg.norm(weights @ rows - vector) <= tol * np.linalg.norm(vector)


def plain_loop(rows, targets, order):
    """The paper's rule on the gradients themselves."""
    total, cosines = np.zeros(rows.shape[1]), targets.copy()
    for task, others in enumerate(order):
        gradient = rows[task].copy()
        for other in others:
            if other == task or other >= len(rows):
                continue
            along = rows[other] / np.linalg.norm(rows[other])
            size = np.linalg.norm(gradient)
            cosine, target = gradient @ along / size, targets[task, other]
            cosines[task, other] = cosine
            if cosine < target:
                sine, target_sine = np.sqrt(1 - np.array([cosine, target]) ** 2)
                gain = size * (target * sine - cosine * target_sine) / target_sine
                gradient = gradient + gain * along
        total += gradient
    return total, cosines


@pytest.mark.parametrize("unit", [1e-12, 1.0, 1e12])
def test_equals_plain_loop(unit, dtype):
    """Any order, any targets, norms up to 1e6 apart, any unit."""
    rng = np.random.default_rng(0)
    for num_tasks in (2, 3, 8):
        scales = rng.permutation(np.logspace(0, -6, num_tasks))[:, None]
        rows = (structured("random", num_tasks) * scales * unit).astype(dtype)
        rows = rows.astype(np.float64)
        targets = rng.uniform(-0.5, 0.9, (num_tasks, num_tasks))
        order = random_order(num_tasks)
        weights, moved = step(rows, targets, order, 1.0, dtype)
        expected, cosines = plain_loop(rows, targets, order[:num_tasks])
        tol = 2e-5 if dtype == np.float32 else 1e-12
        error = np.linalg.norm(weights @ rows - expected)
        assert error <= tol * np.linalg.norm(expected)
        off_diagonal = ~np.eye(num_tasks, dtype=bool)
        np.testing.assert_allclose(moved[off_diagonal], cosines[off_diagonal], atol=tol)
        assert np.all(weights >= 1)


@pytest.mark.parametrize("kind", KINDS)
def test_targets_zero_is_pcgrad(kind, dtype):
    """And then 40 more steps on the same rows stay finite, with targets in [-1, 1]."""
    rows, order = structured(kind, 8), random_order(0)
    targets = np.zeros((8, 8))
    weights, _ = step(rows, targets, order, dtype=dtype)
    matrix, present = padded_gramian(rows, dtype, SIZE)
    expected = pcgrad(matrix, order, present)[:8]
    tol = 1e-5 if dtype == np.float32 else 1e-12
    np.testing.assert_allclose(weights, expected, rtol=tol)
    for _ in range(40):
        weights, targets = step(rows, targets, order, dtype=dtype)
    assert np.all(np.isfinite(weights))
    assert np.all(np.abs(targets) <= 1)
    if kind == "all_equal":
        np.testing.assert_array_equal(weights, 1)  # T g, whatever the targets


def test_zero_and_not_finite_rows_move_no_target(dtype):
    """A zero row is skipped like an absent one; NaN gives NaN weights only."""
    rows, targets = structured("zero_row", 3), np.full((3, 3), 0.3)
    weights, moved = step(rows, targets, dtype=dtype)
    assert weights[1] == 1
    others, inner = step(rows[[0, 2]], np.full((2, 2), 0.3), dtype=dtype)
    np.testing.assert_allclose(weights[[0, 2]], others, rtol=1e-5)
    np.testing.assert_allclose(moved[0, 2], inner[0, 1], rtol=1e-5)
    np.testing.assert_array_equal(moved[1], targets[1].astype(dtype))
    np.testing.assert_array_equal(moved[:, 1], targets[1].astype(dtype))
    weights, moved = step(np.array([[1.0, 2], [np.nan, 0]]), np.eye(2), dtype=dtype)
    assert np.all(np.isnan(weights))
    np.testing.assert_array_equal(moved, np.eye(2))


def test_opposed_rows_lose_each_other(dtype):
    """d = 0 at the first call; the targets see cosine -1 and nothing is NaN after."""
    rows, targets = np.array([[3.0, 4.0], [-6.0, -8.0]]), np.zeros((2, 2))
    for _ in range(3):
        weights, targets = step(rows, targets, dtype=dtype)
        assert np.linalg.norm(weights @ rows) <= 1e-5
    np.testing.assert_allclose(targets[0, 1], -0.875)


def test_aggregator_draws_orders_and_keeps_targets():
    """Three steps equal the pure function with the orders of its key."""
    tx, num_tasks = gradvac(3, decay=0.2, key=5), 3
    update = jax.jit(
        lambda rows, state: tx.update(mtlopt.TaskGrads.from_rows(rows), state)
    )
    state, key, targets = tx.init(jnp.zeros(2)), jax.random.key(5), np.zeros((3, 3))
    for seed in range(3):
        rows = structured("random", num_tasks, seed)
        order = NATURAL.copy()
        key, order[:3, :3] = random_orders(key, num_tasks)
        weights, targets = step(rows, targets, order, 0.2, np.float32)
        direction, state = update(jnp.asarray(rows, jnp.float32), state)
        np.testing.assert_allclose(state.task_weights, weights, rtol=1e-5)
        np.testing.assert_allclose(state.targets, targets, atol=1e-6)
        np.testing.assert_allclose(direction, weights @ rows, atol=1e-5)


def test_random_orders_are_permutations_and_differ():
    """For every kind of key, and of an odd count of random words too."""
    for key in (jax.random.key(0), jax.random.key(0, impl="rbg")):
        for num_tasks in (1, 3, 20):
            following, orders = random_orders(key, num_tasks)
            expected = NATURAL[:num_tasks, :num_tasks]
            np.testing.assert_array_equal(np.sort(orders, axis=1), expected)
            assert following != key
        assert len(np.unique(orders, axis=0)) == 20


def test_every_order_is_drawn_equally_often():
    """The six orders of three tasks, within four standard deviations; independent."""
    _, orders = jax.vmap(lambda key: random_orders(key, 3))(
        jax.random.split(jax.random.key(0), 4000)
    )
    index = np.asarray(orders @ np.array([9, 3, 1]))  # [draws, tasks]
    for task in range(3):
        _, counts = np.unique(index[:, task], return_counts=True)
        spread = np.sqrt(4000 / 6 * 5 / 6)
        np.testing.assert_allclose(counts, np.full(6, 4000 / 6), atol=4 * spread)
    _, pairs = np.unique(index[:, :2], axis=0, return_counts=True)
    np.testing.assert_allclose(pairs, np.full(36, 4000 / 36), atol=4 * 10.4)


def test_vmap_agrees():
    """A batch of the padded problems equals one after the other."""
    pairs = [padded_gramian(structured(kind, 8), np.float32, SIZE) for kind in KINDS]
    matrices, present = (np.stack(part) for part in zip(*pairs, strict=True))
    targets = np.full((SIZE, SIZE), 0.4, np.float32)
    batched = jax.jit(jax.vmap(gradvac_weights, (0, None, None, None, 0)))
    weights, moved = batched(matrices, targets, NATURAL, 0.5, present)
    for i, kind in enumerate(KINDS):
        single = solve(matrices[i], targets, NATURAL, 0.5, present[i])
        np.testing.assert_allclose(weights[i], single[0], rtol=1e-4, err_msg=kind)
        np.testing.assert_allclose(moved[i], single[1], atol=1e-4, err_msg=kind)


def test_bad_arguments():
    with pytest.raises(ValueError, match="`decay` must be from 0 to 1"):
        gradvac(2, decay=1.5)
    with pytest.raises(ValueError, match="`targets` must have shape"):
        gradvac_weights(jnp.eye(2), jnp.zeros(2), jnp.zeros((2, 2), int))
    with pytest.raises(ValueError, match="`order` must have shape"):
        gradvac_weights(jnp.eye(2), jnp.zeros((2, 2)), jnp.zeros(2, int))
