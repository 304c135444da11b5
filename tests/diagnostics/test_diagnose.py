"""One diagnosis: closed forms, absent tasks, bad numbers, and what it costs."""

import functools
import math

import jax
import jax.extend
import jax.numpy as jnp
import numpy as np
import pytest

import mtlopt
from tests.problems import first, make_batches, make_oracle, make_params


@jax.jit
def diagnose(rows, present=None):
    return mtlopt.diagnose(mtlopt.TaskGrads.from_rows(rows, present=present))


def scalars(found):
    return {
        name: value for name, value in found._asdict().items() if not np.ndim(value)
    }


def test_two_gradients(dtype):
    """Of lengths a > b at an angle, all is known; gap = a b sin / |g_1 - g_2|.

    Unless b is shorter than the projection of g_1: then the gap is b.
    """
    a, b = 3.0, 2.0
    angles = np.deg2rad([20.0, 60.0, 90.0, 120.0, 170.0])

    def at(angle):
        direction = jnp.stack([jnp.cos(angle), jnp.sin(angle)])
        # In two leaves, the second of which is a matrix.
        return diagnose(
            {
                "v": jnp.stack([a * jnp.ones(1), b * direction[:1]]),
                "m": jnp.stack([jnp.zeros((1, 1)), b * direction[1:, None]]),
            }
        )

    found = jax.jit(jax.vmap(at))(angles.astype(dtype))
    cos = np.cos(angles)
    root = np.sqrt((a * a - b * b) ** 2 + (2 * a * b * cos) ** 2)
    apart = np.sqrt(a * a + b * b - 2 * a * b * cos)
    gap = np.where(a * cos > b, b, a * b * np.sin(angles) / apart)
    rtol = 1e-9 if dtype == np.float64 else 2e-5
    close = functools.partial(np.testing.assert_allclose, rtol=rtol, atol=rtol)
    close(found.cosines[:, 0, 1], cos)
    close(found.cosines, np.swapaxes(found.cosines, 1, 2))
    close(found.norms, np.tile([a, b], (5, 1)))
    close(found.norm_ratio, 1.5)
    close(
        found.dominance_rate,
        np.sqrt((a * a + b * b + root) / (a * a + b * b - root)),
    )
    close(found.conflict_rate, [0, 0, found.conflict_rate[2], 1, 1])
    close(found.stationarity_gap, gap)
    close(found.relative_gap, gap / 2.5)
    close(found.condition, (1 + abs(cos)) / (1 - abs(cos)))
    assert np.all(found.present)
    numbers = [leaf for leaf in jax.tree.leaves(found) if leaf.dtype != bool]
    assert all(leaf.dtype == dtype for leaf in numbers)


def test_orthogonal_gradients(dtype):
    """gap = (sum_i 1 / |g_i|^2)^(-1/2), over lengths from 1 to 1e-3."""
    norms = np.logspace(0, -3, 5)
    found = diagnose(np.diag(norms).astype(dtype))
    np.testing.assert_allclose(found.norm_ratio, 1e3, rtol=1e-6)
    np.testing.assert_allclose(found.dominance_rate, 1e3, rtol=1e-5)
    gap = 1 / math.sqrt(np.sum(norms**-2.0))
    np.testing.assert_allclose(found.stationarity_gap, gap, rtol=1e-6)
    np.testing.assert_allclose(found.relative_gap, gap / norms.mean(), rtol=1e-6)
    np.testing.assert_allclose(found.condition, 1, rtol=1e-6)
    assert found.conflict_rate == 0


def test_common_factor_of_the_losses(float64):
    """Lengths and gap are multiplied by it; all else stays."""
    rows = np.random.default_rng(0).normal(size=(4, 6))
    one, many = diagnose(rows), diagnose(1e-6 * rows)
    assert one.tasks == ("0", "1", "2", "3")
    for name, value in zip(one._fields[:-1], jax.tree.leaves(one), strict=True):
        factor = 1e-6 if name in ("norms", "stationarity_gap") else 1
        np.testing.assert_allclose(getattr(many, name), factor * value, rtol=1e-9)


@pytest.mark.slow
def test_metrics_of_stacked_diagnoses():
    """Each value, with its axis of diagnoses, is named by task."""
    rows = np.random.default_rng(0).normal(size=(5, 3, 4))
    found = jax.vmap(diagnose)(rows)
    metrics = jax.jit(mtlopt.Diagnosis.metrics)(found)
    lengths = np.linalg.norm(rows, axis=-1)
    np.testing.assert_allclose(metrics["norm/1"], lengths[:, 1], rtol=1e-5)
    cosines = np.sum(rows[:, 0] * rows[:, 2], axis=-1) / lengths[:, 0] / lengths[:, 2]
    np.testing.assert_allclose(metrics["cosine/0/2"], cosines, rtol=1e-5, atol=1e-6)
    assert metrics.keys() >= scalars(diagnose(rows[0])).keys()
    assert {np.shape(value) for value in metrics.values()} == {(5,)}


def test_absent_tasks_are_left_out(float64):
    """All is as if the others were alone, whatever is in the absent rows."""
    rows = np.random.default_rng(0).normal(size=(4, 6))
    present = np.array([True, False, True, True])
    expected = diagnose(rows[present])
    rows[1] = np.nan
    found = diagnose(rows, present)
    for name, value in scalars(expected).items():
        np.testing.assert_allclose(getattr(found, name), value, rtol=1e-9)
    np.testing.assert_allclose(np.asarray(found.norms)[present], expected.norms)
    cosines = np.asarray(found.cosines)[present][:, present]
    np.testing.assert_allclose(cosines, expected.cosines, atol=1e-12)
    assert np.asarray(found.norms)[1] == 0
    assert not np.asarray(found.cosines)[1].any()
    np.testing.assert_array_equal(found.present, present)
    metrics = found.metrics()
    lost = {name for name, value in metrics.items() if np.isnan(value)}
    assert lost == {"norm/1", "cosine/0/1", "cosine/1/2", "cosine/1/3"}
    assert metrics["norm/3"] == found.norms[3]
    assert metrics["cosine/0/3"] == found.cosines[0, 3]


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_bad_numbers_stay_visible(bad):
    found = diagnose(np.array([[1.0, 2.0], [bad, 0.0], [0.0, 1.0]]))
    assert all(np.isnan(value) for value in scalars(found).values())
    assert not np.isfinite(found.norms)[1]
    assert np.isnan(found.cosines)[1].all()


def test_zero_gradients():
    """One: infinite ratios and no gap. All: lengths have no ratio."""
    one = diagnose(np.array([[1.0, 2.0], [0.0, 0.0]]))
    assert one.norm_ratio == one.dominance_rate == one.condition == np.inf
    assert one.stationarity_gap == one.relative_gap == one.conflict_rate == 0
    every = diagnose(np.zeros((2, 3)))
    assert np.isnan(every.norm_ratio)
    assert np.isnan(every.dominance_rate)
    assert every.stationarity_gap == every.relative_gap == 0


def test_one_task():
    found = diagnose(np.array([[3.0, 4.0]]))
    assert found.norm_ratio == found.dominance_rate == found.condition == 1
    assert found.conflict_rate == 0
    np.testing.assert_allclose([found.stationarity_gap, found.relative_gap], [5, 1])


def test_opposed_gradients_cancel():
    """-g and 3 g: the directions are dependent, the point is stationary."""
    found = diagnose(np.array([[1.0, 2.0], [-3.0, -6.0]]))
    np.testing.assert_allclose(found.relative_gap, 0, atol=1e-6)
    np.testing.assert_allclose(found.norm_ratio, 3, rtol=1e-6)
    assert found.condition == np.inf


@pytest.mark.slow
def test_parameters_or_latent_by_the_gradients(float64):
    """Rows of the oracle's own space; scales of a weighting are in them."""
    oracle, params, batch = make_oracle(), make_params(), first(make_batches())
    factors = np.array([1.0, 10.0, 0.1])

    @jax.jit
    def both(params, batch):
        grads = oracle(params, *batch).scale_by(factors)
        jacobian, latent = grads.jacobian(), grads.in_latent_space()
        found = [mtlopt.diagnose(each) for each in (grads, latent)]
        rows = [jax.tree.leaves(jacobian), latent.rows().leaves()]
        return found, rows

    for found, leaves in zip(*both(params, batch), strict=True):
        matrix = np.concatenate([np.reshape(leaf, (3, -1)) for leaf in leaves], axis=1)
        norms = np.linalg.norm(matrix, axis=1)
        singular = np.linalg.svd(matrix / norms[:, None], compute_uv=False)
        np.testing.assert_allclose(found.norms, norms)
        np.testing.assert_allclose(found.dominance_rate, np.linalg.cond(matrix))
        np.testing.assert_allclose(found.condition, (singular[0] / singular[-1]) ** 2)
        assert 0 < found.stationarity_gap <= norms.min()


def test_one_gramian_leaf_by_leaf():
    """One product of rows for each leaf, and no array as large as the Jacobian."""
    rows = {"a": np.ones((3, 3000)), "b": np.ones((3, 7, 500))}  # none is short
    jaxpr = jax.make_jaxpr(diagnose)(rows)

    def equations(jaxpr):
        for equation in jaxpr.eqns:
            yield equation
            if equation.primitive.name == "cond":  # where squares are lost
                continue
            for inner in jax.extend.core.jaxprs_in_params(equation.params):
                yield from equations(inner)

    found = list(equations(jaxpr.jaxpr))
    assert len(found) > 100
    products = [
        equation
        for equation in found
        if equation.primitive.name == "dot_general"
        and max(variable.aval.size for variable in equation.invars) > 3 * 4
    ]
    assert len(products) == 2
    assert all(out.aval.size < 3 * 6500 for each in found for out in each.outvars)


def test_needs_task_grads():
    with pytest.raises(
        TypeError, match=r"`grads` must be a mtlopt\.TaskGrads, got dict"
    ):
        mtlopt.diagnose({"w": np.ones(2)})
