"""MoDo: its step, two batches, where it settles, absent tasks."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import mtlopt
from mtlopt import TaskGrads
from mtlopt.aggregators.mgda import mgda_weights
from mtlopt.aggregators.modo import modo, modo_weights
from mtlopt.rows.products import cross_gramian, gramian
from tests.linalg.matrices import random_rows
from tests.problems import matrix_oracle

SIZE = 5
step = jax.jit(modo_weights)
min_norm = jax.jit(mgda_weights)


def project(point):
    """Projection on the simplex by bisection of the threshold."""
    low, high = point.min() - 1, point.max()
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (
            (middle, high) if np.maximum(point - middle, 0).sum() > 1 else (low, middle)
        )
    return np.maximum(point - low, 0)


def test_cross_gramian_is_the_product_of_all_leaves(dtype):
    """P = J_1 J_2^T over several leaves, not symmetric; G where both are one."""
    rng = np.random.default_rng(0)
    shapes = [(3, 2, 4), (3,), (3, 5)]
    left, right = (
        [jnp.asarray(rng.normal(size=shape), dtype) for shape in shapes]
        for _ in range(2)
    )
    flat = [
        np.concatenate([np.asarray(x, np.float64).reshape(3, -1) for x in rows], axis=1)
        for rows in (left, right)
    ]
    tolerance = 100 * np.finfo(dtype).eps
    found = cross_gramian(left, right)
    assert found.dtype == dtype
    np.testing.assert_allclose(found, flat[0] @ flat[1].T, atol=tolerance)
    np.testing.assert_allclose(gramian(left), flat[0] @ flat[0].T, atol=tolerance)


@pytest.mark.parametrize("ratio", [1.0, 1e3, 1e6])
def test_step(ratio, dtype):
    """w = P(w - gamma (P w + rho w)), with any ratio of norms and no symmetry."""
    for seed in range(5):
        rng = np.random.default_rng(seed)
        left, right = random_rows(seed, SIZE), random_rows(seed + 9, SIZE)
        left *= np.logspace(0, np.log10(ratio), SIZE)[:, None]
        products = (left @ right.T).astype(dtype).astype(np.float64)
        weights = rng.dirichlet(np.ones(SIZE)).astype(dtype).astype(np.float64)
        expected = project(weights - 0.02 * (products @ weights + 0.5 * weights))
        found = step(products.astype(dtype), weights.astype(dtype), 0.02, 0.5)
        tolerance = 200 * ratio if dtype == np.float32 else 1e4
        np.testing.assert_allclose(
            found, expected, atol=tolerance * np.finfo(dtype).eps
        )


def test_two_batches_are_right_in_the_mean(float64):
    """The mean step over all pairs of batches is that of the mean gradient."""
    batches = np.stack([random_rows(seed, 3) for seed in range(6)])
    batches[:, 2] *= 3  # one task has more noise than the others
    start = np.array([0.3, 0.3, 0.4])
    pairs = np.einsum("aip,bjp->abij", batches, batches).reshape(-1, 3, 3)
    run = jax.jit(jax.vmap(lambda p: modo_weights(p, start, 1e-3)))
    mean = batches.mean(axis=0)
    expected = run((mean @ mean.T)[None])[0]
    np.testing.assert_allclose(run(pairs).mean(axis=0), expected, atol=1e-12)
    alone = run(np.einsum("aip,ajp->aij", batches, batches)).mean(axis=0)
    assert np.max(np.abs(alone - expected)) > 1e-3


@pytest.mark.parametrize("rho", [0.0, 2.0])
def test_settles_at_the_minimum(rho, float64):
    """On one batch w tends to argmin w'(G + rho I) w / 2 on the simplex."""
    rows = random_rows(3, SIZE, shift=0.5)
    matrix = rows @ rows.T
    rate = 1 / np.linalg.eigvalsh(matrix + rho * np.eye(SIZE))[-1]

    @jax.jit
    def run(start):
        body = lambda w, _: (modo_weights(matrix, w, rate, rho), None)  # noqa: E731
        return jax.lax.scan(body, start, length=4000)[0]

    found = run(jnp.full(SIZE, 1 / SIZE))
    expected = min_norm(matrix + rho * np.eye(SIZE))
    np.testing.assert_allclose(found @ rows, expected @ rows, atol=1e-8)


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        (np.ones((4, 3)), np.full(4, 1 / 4)),
        (np.zeros((4, 3)), np.full(4, 1 / 4)),
        (np.ones((1, 3)), [1.0]),
        ([[1.0, 2.0], [-1.0, -2.0]], [0.5, 0.5]),
        ([[1.0, 0.0], [0.0, 0.0]], [0.45, 0.55]),
    ],
)
def test_closed_forms(rows, expected):
    """Equal, zero, one and opposed gradients leave w; a zero row gains."""
    rows = np.asarray(rows, np.float32)
    start = np.full(len(rows), 1 / len(rows), np.float32)
    found = step(rows @ rows.T, start, 0.2)
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    assert np.all(np.isnan(step(np.nan * rows @ rows.T, start, 0.2)))


def run(tx, batches, seconds=None, presents=None):
    """Updates and states over batches of rows."""

    @jax.jit
    def step(state, rows, second, present):
        second = None if second is None else TaskGrads.from_rows(second)
        grads = TaskGrads.from_rows(rows, present=present)
        return tx.update(grads, state, second=second)

    state, history = tx.init(jnp.zeros(batches[0].shape[1])), []
    for i, rows in enumerate(batches):
        present = None if presents is None else presents[i]
        second = None if seconds is None else seconds[i]
        updates, state = step(state, rows, second, present)
        history.append((updates, state))
    return history


def test_second_batch_enters_the_weights_only():
    """w by J_1 J_2^T from where it was; d = J_1^T w."""
    batches, seconds = (
        [random_rows(seed + offset, 3).astype(np.float32) for seed in range(3)]
        for offset in (0, 7)
    )
    expected = np.full(3, 1 / 3)
    for rows, other, (updates, state) in zip(
        batches, seconds, run(modo(3, 0.02), batches, seconds), strict=True
    ):
        expected = project(expected - 0.02 * rows @ other.T @ expected)
        np.testing.assert_allclose(state.task_weights, expected, atol=1e-6)
        np.testing.assert_allclose(updates, expected @ rows, rtol=1e-4, atol=1e-5)


def test_scales_of_the_first_batch_hold_for_the_second():
    """A weighting before it acts as if the second losses had been scaled too."""
    rows, other = np.float32([[1, 0], [0.5, 1]]), np.float32([[1, 1], [0, 1]])
    scales = np.float32([1, 3])
    tx = modo(2)

    @jax.jit
    def states(rows, other):
        first, second = TaskGrads.from_rows(rows), TaskGrads.from_rows(other)
        found = tx.update(first.scale_by(scales), tx.init(rows[0]), second=second)[1]
        scaled = [TaskGrads.from_rows(scales[:, None] * x) for x in (rows, other)]
        return found, tx.update(scaled[0], tx.init(rows[0]), second=scaled[1])[1]

    found, expected = states(rows, other)
    np.testing.assert_allclose(found.shares, expected.shares, rtol=1e-6)
    assert abs(found.shares[0] - 0.5) > 0.01


def test_absent_tasks_keep_their_share():
    """Masked NaN rows are as if left out, and weight moves among the others only."""
    batches = [random_rows(seed, 3).astype(np.float32) for seed in range(3)]
    keep = np.array([True, False, True])
    spoilt = [np.where(keep[:, None], rows, np.nan) for rows in batches]
    masked = run(modo(3, 0.02), spoilt, presents=[keep] * 3)
    alone = run(modo(2, 0.02), [rows[keep] for rows in batches])
    for (found, state), (expected, small) in zip(masked, alone, strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(state.task_weights[keep], small.shares, rtol=1e-5)
        assert state.task_weights[1] == 0
        np.testing.assert_allclose(state.shares[1], 1 / 3, rtol=1e-6)
    assert abs(state.shares[0] - 1 / 3) > 0.01


def test_tasks_without_any_share_start_equal():
    """Present tasks that have lost all weight are averaged, not zero."""
    rows = jnp.array([[1.0, 0.0], [1e3, 0.0], [0.0, 1e3]])
    first, later = run(modo(3, 0.1), [rows] * 2, presents=[None, jnp.arange(3) > 0])
    np.testing.assert_array_equal(first[1].task_weights, [1, 0, 0])
    np.testing.assert_array_equal(later[1].task_weights, [0, 0.5, 0.5])
    assert np.all(run(modo(3), [rows], presents=[np.zeros(3, bool)])[0][0] == 0)


def test_a_task_of_one_batch_only_keeps_its_weight():
    """Absent in `second`: no product, so no step, but its gradient counts."""
    rows = random_rows(0, 3).astype(np.float32)
    present = np.array([True, True, False])
    tx = modo(3, 0.02)

    @jax.jit
    def update(rows, spoilt, present):
        second = TaskGrads.from_rows(spoilt, present=present)
        return tx.update(TaskGrads.from_rows(rows), tx.init(rows[0]), second=second)

    updates, state = update(rows, np.where(present[:, None], rows, np.nan), present)
    np.testing.assert_allclose(state.task_weights[2], 1 / 3, rtol=1e-6)
    np.testing.assert_allclose(state.task_weights.sum(), 1, rtol=1e-6)
    np.testing.assert_allclose(updates, state.task_weights @ rows, rtol=1e-5, atol=1e-6)


def test_latent_space_takes_both_batches_there():
    """With the identity for an encoder, the same weights in both spaces."""
    oracle = matrix_oracle(3)

    @jax.jit
    def both(params, *rows):
        first, second = (oracle(params, each, jnp.ones(3)) for each in rows)
        return [
            tx.update(first, tx.init(params), params, second=second)
            for tx in (modo(3, 0.02), mtlopt.in_latent_space(modo(3, 0.02)))
        ]

    rows = [random_rows(seed, 3).astype(np.float32) for seed in range(2)]
    results = both(np.zeros(8, np.float32), *rows)
    np.testing.assert_allclose(results[0][0], results[1][0], rtol=1e-5, atol=1e-6)
    assert np.max(np.abs(results[0][1].shares - 1 / 3)) > 1e-3


def test_state_can_be_donated():
    tx, rows = modo(2), jnp.eye(2)
    update = jax.jit(
        lambda s: tx.update(TaskGrads.from_rows(rows), s)[1], donate_argnums=0
    )
    assert np.all(np.isfinite(update(update(tx.init(rows[0]))).shares))


def test_bad_arguments():
    with pytest.raises(ValueError, match="`learning_rate` must be positive, got 0"):
        modo(2, learning_rate=0)
    with pytest.raises(ValueError, match="`regularization` must be at least 0, got -1"):
        modo(2, regularization=-1)
    with pytest.raises(ValueError, match="`products` must be square"):
        modo_weights(jnp.ones((2, 3)), jnp.ones(2))
    with pytest.raises(ValueError, match="`present` must have shape"):
        modo_weights(jnp.eye(2), jnp.ones(2), present=jnp.ones(3, bool))


@pytest.mark.parametrize(
    ("second", "error", "message"),
    [
        (np.eye(2), TypeError, "`second` must be gradients of the same .*TaskGrads"),
        (TaskGrads.from_rows(np.eye(3)), ValueError, "`second` must be gradients of"),
        (TaskGrads.from_rows(np.ones((2, 3))), ValueError, "`second` must have rows"),
    ],
)
def test_second_must_fit(second, error, message):
    tx, grads = modo(2), TaskGrads.from_rows(jnp.eye(2))
    with pytest.raises(error, match=message):
        tx.update(grads, tx.init(jnp.zeros(2)), second=second)
    renamed = dataclasses.replace(
        grads, partition=dataclasses.replace(grads.partition, tasks=("a", "b"))
    )
    with pytest.raises(ValueError, match="`second` must have the tasks"):
        tx.update(grads, tx.init(jnp.zeros(2)), second=renamed)


@pytest.mark.parametrize("second", [False, True])
@pytest.mark.parametrize("latent", [False, True])
def test_many_tasks_take_one_product(second, latent, float64):
    """Of five tasks the same weights as from all products, with one absent."""
    rng = np.random.default_rng(0)
    params = {"w": rng.normal(size=(3, 4)), "heads": rng.normal(size=(5, 4))}
    oracle = mtlopt.task_grad(
        mtlopt.stacked(lambda p, z, task, x: jnp.mean(jnp.sin(z @ p["heads"])), 5),
        {"w": "shared", "heads": "stacked"},
        encode=lambda params, x: jnp.tanh(x @ params["w"]),
    )
    first, other = rng.normal(size=(2, 6, 3))
    present = jnp.array([True, True, False, True, True])
    tx = mtlopt.modo(5, learning_rate=30.0)
    tx = mtlopt.in_latent_space(tx) if latent else tx
    shares = np.array([0.1, 0.2, 0.0, 0.3, 0.1])

    def rows(grads):
        leaves = (grads.in_latent_space() if latent else grads).rows().leaves()
        return jnp.concatenate([leaf.reshape(5, -1) for leaf in leaves], axis=1)

    @jax.jit
    def run(params):
        """The update, its weights, and both from all products."""
        state = tx.init(params)._replace(shares=jnp.array([0.1, 0.2, 0.3, 0.3, 0.1]))
        grads = oracle(params, first, present=present)
        keywords = {"second": oracle(params, other)} if second else {}
        update, state = tx.update(grads, state, params, **keywords)
        products = rows(grads) @ rows(keywords.get("second", grads)).T
        weights = modo_weights(products, jnp.asarray(shares), 30.0, present=present)
        direction = weights @ oracle(params, first).jacobian()["w"].reshape(5, -1)
        return update["w"].ravel(), state.task_weights, direction, weights

    update, weights, direction, expected = run(params)
    assert np.ptp((np.asarray(expected) - shares)[[0, 1, 3, 4]])
    np.testing.assert_allclose(weights, expected, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(update, direction, rtol=1e-9)
