"""NTK weights: rates and traces against Jacobians that are written out."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import mtlopt
from mtlopt import TaskGrads
from tests.weightings.trajectories import check_every, random_run, weights_over

POINTS = {"equation": 7, "edge": 3}
TASKS = tuple(POINTS)


def residuals(params, x):
    """A tanh network, its derivative and its values, at points of two tasks."""

    def network(x):
        return jnp.tanh(x * params["w"] + params["b"]) @ params["a"]

    slope = jax.vmap(jax.grad(lambda x: network(x) + x))(x["equation"])
    return {"equation": slope, "edge": jax.vmap(network)(x["edge"]) - 1}


def losses(params, x):
    return {task: jnp.mean(own**2) for task, own in residuals(params, x).items()}


@pytest.fixture
def problem(float64):
    rng = np.random.default_rng(0)
    params = {name: jnp.asarray(rng.normal(size=4)) for name in "wba"}
    return params, {task: jnp.asarray(rng.normal(size=n)) for task, n in POINTS.items()}


def jacobians_of(params, x):
    """`[points, parameters]` by task."""
    found = jax.jit(jax.jacrev(residuals))(params, x)
    return {task: np.concatenate(list(own.values()), 1) for task, own in found.items()}


def test_traces_are_those_of_the_jacobian(problem):
    """tr(J J^T) / N: of a mapping, and of a sequence of points in any shape."""
    expected = {
        task: np.trace(own @ own.T) / POINTS[task]
        for task, own in jacobians_of(*problem).items()
    }
    found = jax.jit(lambda *args: mtlopt.ntk_traces(residuals, *args))(*problem)
    assert set(found) == set(TASKS)
    for task in TASKS:
        np.testing.assert_allclose(found[task], expected[task], rtol=1e-12)

    def column(params, x):
        return [residuals(params, x)["edge"][:, None]]

    found = mtlopt.ntk_traces(column, *problem)
    np.testing.assert_allclose(found, [expected["edge"]], rtol=1e-12)


def test_without_traces_it_is_the_kernel_along_the_residual(problem):
    """rho = 4 / N times the Rayleigh quotient of J J^T at the residual."""
    params, x = problem
    oracle = mtlopt.task_grad(losses, "shared", tasks=TASKS)
    weighting = mtlopt.weight_by_ntk(2, decay=0)
    update = jax.jit(lambda p: weighting.update(oracle(p, x), weighting.init(p)))
    found = update(params)[1].task_weights
    rates = []
    jacobians = jacobians_of(params, x)
    for task in TASKS:
        r, kernel = residuals(params, x)[task], jacobians[task] @ jacobians[task].T
        rates.append(4 / POINTS[task] * (r @ kernel @ r) / (r @ r))
    np.testing.assert_allclose(found, np.mean(rates) / rates, rtol=1e-9)


def test_step_by_step(float64):
    """w <- b w + (1 - b) mean(rho) / rho_i, of given traces or of |g_i|^2 / L_i."""
    rows, losses = random_run()
    traces = np.random.default_rng(1).uniform(0.1, 10, (6, 3))
    for rates, extra in (
        (np.sum(rows**2, axis=-1) / losses, {}),
        (traces, {"traces": traces}),
    ):
        expected, weights = [], np.ones(3)
        for now in rates:
            weights = 0.7 * weights + 0.3 * now.mean() / now
            expected.append(weights)
        weighting = mtlopt.weight_by_ntk(3, decay=0.7)
        found = weights_over(weighting, rows, losses, **extra)
        np.testing.assert_allclose(found, expected, rtol=1e-12)


def test_a_weighting_before_it_scales_the_rates(float64):
    """Losses in other units have the same product of both weights."""
    (rows,), (losses,) = random_run(1)
    factors, traces = np.array([1e-3, 1.0, 50.0]), np.array([1.0, 2.0, 3.0])
    weighting = mtlopt.weight_by_ntk(3, decay=0)
    fixed = mtlopt.weight_by_fixed(factors)
    for extra in ({}, {"traces": traces}):
        plain, _ = weighting.update(
            TaskGrads.from_rows(rows, losses), weighting.init(None), **extra
        )
        grads = fixed.update(TaskGrads.from_rows(rows, losses), fixed.init(None))[0]
        scaled, _ = weighting.update(grads, weighting.init(None), **extra)
        ratio = scaled.loss_scales / plain.loss_scales
        np.testing.assert_allclose(ratio, ratio[0] * np.ones(3), rtol=1e-12)


def test_a_function_of_traces_is_called_only_if_they_are_due(problem):
    """Inside a step: the traces cost nothing where `every` reuses the weights."""
    params, x = problem
    oracle = mtlopt.task_grad(losses, "shared", tasks=TASKS)
    called = []

    def count(values):
        called.append(1)
        return values

    def traces_of(params):
        found = mtlopt.ntk_traces(residuals, params, x)
        return jax.pure_callback(count, found, found)

    weighting = mtlopt.every(3, mtlopt.weight_by_ntk(2, decay=0))

    @jax.jit
    def update(state):
        traces = lambda: traces_of(params)  # noqa: E731
        return weighting.update(oracle(params, x), state, params, traces=traces)[1]

    state = weighting.init(params)
    for _ in range(5):
        state = update(state)
    jax.block_until_ready(state)
    assert len(called) == 2
    own = mtlopt.ntk_traces(residuals, params, x)
    rates = np.array([own[task] for task in TASKS])
    np.testing.assert_allclose(state.task_weights, rates.mean() / rates, rtol=1e-9)


def test_intervals():
    traces = np.random.default_rng(1).uniform(0.1, 10, (7, 3))
    check_every(mtlopt.weight_by_ntk(3, decay=0.5))
    check_every(mtlopt.weight_by_ntk(3, decay=0.5), traces=traces)


def test_weights_stand_still_without_a_rate(float64):
    """A loss of zero, a gradient of zero, NaN, an absent task: others are alone."""
    rows, losses = random_run()
    expected = weights_over(mtlopt.weight_by_ntk(2), rows[:, ::2], losses[:, ::2])
    for row, loss, is_there in (
        (1.0, 0.0, True),
        (0.0, 1.0, True),
        (0.0, 0.0, True),
        (1.0, -1.0, True),
        (np.nan, np.nan, True),
        (np.nan, np.nan, False),
    ):
        now, own, present = rows.copy(), losses.copy(), np.ones((6, 3), bool)
        now[:, 1], own[:, 1], present[:, 1] = row, loss, is_there
        found = weights_over(mtlopt.weight_by_ntk(3), now, own, present)
        np.testing.assert_array_equal(found[:, 1], 1)
        np.testing.assert_allclose(found[:, ::2], expected, rtol=1e-12)


def test_bad_arguments():
    with pytest.raises(ValueError, match="`decay` must be at least 0 and below 1"):
        mtlopt.weight_by_ntk(2, decay=-0.1)
    weighting = mtlopt.weight_by_ntk(2)
    grads = TaskGrads.from_rows(jnp.eye(2), tasks=TASKS)
    with pytest.raises(ValueError, match="`traces` must have one entry per task"):
        weighting.update(grads, weighting.init(None), traces=jnp.ones(3))
    with pytest.raises(ValueError, match="`traces` must have the keys"):
        weighting.update(grads, weighting.init(None), traces={"edge": 1.0})


def test_losses_are_no_residuals():
    with pytest.raises(ValueError, match="`residuals` must return the residuals"):
        mtlopt.ntk_traces(lambda w, x: {"a": jnp.sum(w * x)}, 1.0, jnp.ones(3))
