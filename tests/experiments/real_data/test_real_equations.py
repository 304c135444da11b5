"""The solutions solve their equations, and networks are differentiated rightly."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.integrate

from experiments.data import flows
from experiments.real_data import equations
from experiments.real_data.problem import dense


def derivatives_of(solution, points, step=1e-4):
    """Value, first and second differences of fourth order, in float64."""

    def at(shift):
        return solution(points + shift)

    value = at(0)
    first, second = [], []
    for direction in step * np.eye(2):
        near, far = (
            [at(sign * reach * direction) for sign in (1, -1)] for reach in (1, 2)
        )
        first.append((8 * (near[0] - near[1]) - (far[0] - far[1])) / (12 * step))
        around = 16 * (near[0] + near[1]) - (far[0] + far[1])
        second.append((around - 30 * value) / (12 * step**2))
    return value, np.stack(first), np.stack(second)


def test_kovasznay_flow_solves_navier_stokes():
    points = np.random.default_rng(0).uniform([-0.5, -0.5], [1.0, 1.5], (50, 2))
    value, first, second = derivatives_of(flows.kovasznay, points, 1e-3)
    with jax.enable_x64(True):
        residuals = equations.navier_stokes(value, first, second)
        np.testing.assert_allclose(residuals, 0, atol=1e-7)
        # Without the pressure its gradient is left, and mass is kept still.
        first[:, :, 2] = 0
        along_x, _, mass = equations.navier_stokes(value, first, second)
    decay = flows.REYNOLDS / 2 - np.hypot(flows.REYNOLDS / 2, 2 * np.pi)
    slope = -decay * np.exp(2 * decay * points[:, 0])  # of the pressure
    np.testing.assert_allclose(along_x, -slope, atol=1e-7)
    np.testing.assert_allclose(mass, 0, atol=1e-7)


def test_beltrami_flow_solves_navier_stokes(monkeypatch):
    """Exact derivatives: residuals are rounding, in each of the four equations."""
    monkeypatch.setattr(flows, "np", jnp)  # the same formula, to be differentiated
    rng = np.random.default_rng(0)
    points = rng.uniform([0, -1, -1, -1], [1, 1, 1, 1], (20, 4))

    def one(point):
        return flows.beltrami(point[None])[0]

    @jax.jit
    def at(points):
        slopes = jax.vmap(jax.jacfwd(one))(points).transpose(2, 0, 1)
        bends = jax.vmap(jax.jacfwd(jax.jacfwd(one)))(points)
        bends = jnp.diagonal(bends, axis1=2, axis2=3).transpose(2, 0, 1)
        return flows.beltrami(points), slopes, bends

    with jax.enable_x64(True):
        value, first, second = at(points)
        residuals = equations.unsteady_flow(value, first, second)
        np.testing.assert_allclose(residuals, 0, atol=1e-12)
        # Each term counts: without it the equations that have it do not hold.
        without = {"time": first.at[0].set(0), "pressure": first.at[1:, :, 3].set(0)}
        for slopes in without.values():
            wrong = np.abs(equations.unsteady_flow(value, slopes, second)).max(axis=1)
            assert (wrong[:3] > 0.1).all()
            assert wrong[3] < 1e-12
        wrong = np.abs(equations.unsteady_flow(value, first, 0 * second)).max(axis=1)
        assert (wrong[:3] > 0.1).all()
        # The curl is parallel to the velocity, as in every such flow.
        slope = first[1:]
        curl = [slope[i, :, j] - slope[j, :, i] for i, j in ((1, 2), (2, 0), (0, 1))]
        np.testing.assert_allclose(
            np.cross(np.array(curl).T, value[:, :3]), 0, atol=1e-12
        )


def test_burgers_solution_solves_its_equation():
    points = np.random.default_rng(0).uniform([0.05, 0.2], [0.95, 0.95], (50, 2))
    value, first, second = derivatives_of(flows.burgers, points, 1e-3)
    with jax.enable_x64(True):
        residual = equations.burgers(value, first, second)
    np.testing.assert_allclose(residual, 0, atol=1e-7)
    assert np.abs(first).max() > 1


def test_burgers_shock_is_as_steep_as_in_print():
    """152.00516 at pi t = 1.6037: Basdevant et al., 1986, Table 3."""
    steep = np.array([[1.6037 / np.pi, 1e-5]])
    slope = (flows.burgers(steep) - flows.burgers(steep * [1, -1])) / 2e-5
    np.testing.assert_allclose(slope, -152.00516, rtol=1e-6)


def test_burgers_solution_is_that_of_a_spectral_solver():
    """Fourier's method in space and Dormand and Prince's in time, of viscosity 0.1."""
    viscosity, num = 0.1, 64
    x = 2 * np.arange(num) / num - 1
    wave = 1j * np.pi * np.fft.fftfreq(num, 1 / num)

    def rate(_, u):
        modes = np.fft.fft(u)
        slope, bend = np.fft.ifft([wave * modes, wave**2 * modes]).real
        return viscosity * bend - u * slope

    times, start = [0.1, 0.5, 1.0], -np.sin(np.pi * x)
    exact = {"rtol": 1e-9, "atol": 1e-11}
    found = scipy.integrate.solve_ivp(rate, (0, 1), start, t_eval=times, **exact)
    for time, values in zip(times, found.y.T, strict=True):
        points = np.stack([np.full(num, time), x], axis=1)
        expected = flows.burgers(points, viscosity)[:, 0]
        np.testing.assert_allclose(values, expected, atol=1e-7)


def test_burgers_solution_starts_from_the_sine():
    points = np.stack([np.zeros(5), np.linspace(-1, 1, 5)], axis=1)
    expected = -np.sin(np.pi * points[:, 1:])
    np.testing.assert_allclose(flows.burgers(points), expected, atol=1e-15)


def test_derivatives_are_those_of_jax():
    """Against `jacfwd` of the plain network, twice."""
    params = dense(jax.random.key(0), (2, 5, 4, 3))
    params = jax.tree.map(lambda leaf: leaf + 0.1, params)
    points = jax.random.uniform(jax.random.key(1), (6, 2))

    def one(point):
        return equations.network(params, point[None])[0]

    @jax.jit
    def expected():
        first, second = (jax.jacfwd(one), jax.jacfwd(jax.jacfwd(one)))
        diagonal = jnp.diagonal(jax.vmap(second)(points), axis1=2, axis2=3)
        return jax.vmap(first)(points).transpose(2, 0, 1), diagonal.transpose(2, 0, 1)

    value, first, second = jax.jit(equations.derivatives)(params, points)
    np.testing.assert_allclose(value, equations.network(params, points), rtol=1e-5)
    np.testing.assert_allclose(first, expected()[0], rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(second, expected()[1], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("load", "box", "num_sides"),
    [
        (equations.load_kovasznay, ([-0.5, -0.5], [1.0, 1.5]), 4),
        (equations.load_burgers, ([0.0, -1.0], [1.0, 1.0]), 2),
        (equations.load_beltrami, ([0.0, -1, -1, -1], [1.0, 1, 1, 1]), 6),
    ],
)
def test_points_lie_where_they_should(load, box, num_sides):
    """On the edges, with the values there; all sides have some."""
    problem = load()
    edges = problem.splits["train"]
    for name, edge in edges.items():
        points = np.asarray(edge["points"], float)
        on = [[points[:, i] == end[i] for end in box] for i in range(len(box[0]))]
        assert np.any(on, axis=(0, 1)).all()
        sides = {"initial": 1, "boundary": num_sides}[name]
        assert np.sum(np.mean(on, axis=2) > 0.9 / sides) == sides
        if name == "boundary" and num_sides == 2:
            np.testing.assert_allclose(edge["values"], 0, atol=1e-6)
    batch = problem.draw(jax.random.key(0), edges)
    inside = np.asarray(batch["inside"])
    assert (inside >= box[0]).all()
    assert (inside <= box[1]).all()
    assert np.ptp(inside, axis=0) == pytest.approx(np.subtract(*box[::-1]), rel=0.15)
    assert set(problem.oracle.tasks) > set(edges)


def test_errors_are_relative():
    """Of a network that is zero all errors are one."""
    problem = equations.load_burgers()
    zero = jax.tree.map(jnp.zeros_like, problem.init(jax.random.key(0)))
    np.testing.assert_allclose(problem.errors(zero, problem.splits["test"]), 1)


@pytest.mark.parametrize("load", [equations.load_burgers, equations.load_beltrami])
def test_losses_are_means_of_squared_residuals(load):
    problem = load()
    params = problem.init(jax.random.key(0))
    batch = problem.draw(jax.random.key(1), problem.splits["train"])

    @jax.jit
    def both(params):
        return problem.oracle.losses(params, batch), problem.residuals(params, batch)

    found, residuals = both(params)
    expected = [np.mean(residuals[task] ** 2) for task in problem.oracle.tasks]
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    edges = set(problem.splits["train"])
    assert set(problem.inside) == set(problem.oracle.tasks) - edges
