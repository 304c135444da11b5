"""The rows of a table, and what a run does."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import mtlopt
from experiments.real_data import training
from experiments.real_data.equations import (
    load_beltrami,
    load_burgers,
    load_kovasznay,
)
from experiments.real_data.training import make_method, make_run, rows_of


def test_rows_of_a_problem(problem):
    """Standardised targets and single networks are rows where there are any."""
    names = [row.name for row in rows_of(problem, ["mgda"])]
    assert names == ["tuned", "sum", "over_first", "standardised", "alone", "mgda"]
    scaled = [row.name for row in rows_of(problem.standardised, [])]
    assert scaled == ["tuned", "sum", "over_first", "alone"]
    assert [row.name for row in rows_of(load_burgers(), [])] == scaled[:3]


def shapes(row) -> dict[str, tuple[int, ...]]:
    ones = np.ones(row.problem.oracle.num_tasks)
    found = jax.eval_shape(make_run(row), 0.1, 0, 0, ones, row.problem.splits)
    return {name: leaf.shape for name, leaf in found.items()}


@pytest.mark.slow
def test_runs_give_an_error_for_each_part(problem):
    kovasznay = dataclasses.replace(load_kovasznay(), steps=2)
    beltrami = dataclasses.replace(load_beltrami(), steps=2)
    for own, methods in (
        (problem, ["mgda_ub"]),
        (kovasznay, ["pcgrad"]),
        (beltrami, ["ntk"]),
    ):
        parts = (len(own.parts),)
        for row in rows_of(own, methods):
            assert shapes(row) == {"validation": parts, "test": parts}


def test_annealing_is_for_equations(problem):
    names = [row.name for row in rows_of(problem, ["annealing", "krum"])]
    assert not {"annealing", "krum"} & set(names)  # two tasks, no equation
    row = rows_of(load_burgers(), ["annealing"])[-1]
    assert (row.name, row.title) == ("annealing", "Learning-rate annealing")
    state = make_method(row).init(None)
    np.testing.assert_array_equal(mtlopt.task_weights(state), 1)


@pytest.mark.slow
def test_ntk_weights_get_traces_where_residuals_are_known():
    """The first weights of a run on an equation are those of exact traces."""
    problem = dataclasses.replace(load_burgers(), steps=1)
    row = rows_of(problem, ["ntk"])[-1]
    params = problem.init(jax.random.key(0))
    batch = problem.draw(jax.random.key(1), problem.splits["train"])
    method = optax.chain(make_method(row), optax.sgd(0.1))
    step = training._with_traces(
        mtlopt.train_step(problem.oracle, method), problem.residuals
    )
    run = mtlopt.Run(params, method.init(params))
    weights = mtlopt.task_weights(jax.jit(step)(run, batch)[0].opt_state)

    @functools.partial(jax.jit, static_argnums=0)
    def rate(task):
        jacobian = jax.jacrev(lambda params: problem.residuals(params, batch)[task])
        squares = sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(jacobian(params)))
        return squares / len(problem.residuals(params, batch)[task])

    rates = np.array([rate(task) for task in problem.oracle.tasks])
    expected = 0.9 + 0.1 * rates.mean() / rates
    np.testing.assert_allclose(weights, expected, rtol=1e-4)


@pytest.fixture(scope="module")
def plain(problem):
    run = jax.jit(make_run(rows_of(problem, [])[0]))
    return lambda seed, nudged, weights: run(
        0.1, seed, nudged, np.asarray(weights, float), problem.splits
    )


def test_a_plain_run_is_that_of_the_library(problem, plain):
    """Adam on the summed loss, with and without `sum_tasks`, whatever its weights."""
    row = rows_of(problem, ["sum_tasks"])[-1]
    ones = np.ones(2)
    found = jax.jit(make_run(row))(0.1, 3, 0, ones, problem.splits)
    expected = plain(3, 0, ones)
    np.testing.assert_allclose(found["test"], expected["test"], rtol=1e-5)
    np.testing.assert_allclose(found["validation"], expected["validation"], rtol=1e-5)
    other = plain(3, 0, [1.0, 0.0])["test"]
    assert abs(other / expected["test"] - 1).max() > 1e-3


def test_runs_differ_by_seed_and_hardly_by_rounding(plain):
    ones = np.ones(2)
    first, nudged, other = plain(0, 0, ones), plain(0, 1, ones), plain(1, 0, ones)
    np.testing.assert_allclose(first["test"], nudged["test"], rtol=1e-4)
    assert (first["test"] != nudged["test"]).any()
    assert abs(other["test"] / first["test"] - 1).max() > 1e-3


def test_each_network_has_its_own_task(problem):
    """The losses of two networks are those of each network's own task."""
    losses = problem.oracle.losses

    @jax.jit
    def run(key):
        keys = jax.random.split(key)
        params = jax.vmap(problem.init)(keys)
        batch = problem.draw(keys[0], problem.splits["train"])
        expected = [losses(problem.init(keys[i]), batch)[i] for i in range(2)]
        return training._each_own(losses)(params, batch), expected

    found, expected = run(jax.random.key(0))
    np.testing.assert_allclose(found, expected, rtol=1e-5)
