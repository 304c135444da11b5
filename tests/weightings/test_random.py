"""Random weights: their distribution, their key, absent tasks."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mtlopt import TaskGrads
from mtlopt.weightings.random import weight_by_random


def draw(weighting, num_tasks, steps, present=None):
    """Weights in force over the steps, `[steps, tasks]`."""

    @jax.jit
    def run(state, present):
        def step(state, _):
            grads = TaskGrads.from_rows(jnp.eye(num_tasks), present=present)
            grads, state = weighting.update(grads, state)
            return state, (grads.loss_scales, state.task_weights)

        return jax.lax.scan(step, state, length=steps)[1]

    scales, weights = run(weighting.init(jnp.zeros(num_tasks)), present)
    np.testing.assert_array_equal(scales, weights)
    return np.asarray(weights)


@pytest.mark.parametrize("distribution", ["normal", "dirichlet"])
@pytest.mark.parametrize("num_tasks", [1, 4])
def test_on_the_simplex(distribution, num_tasks):
    """Positive, sum 1, mean 1/T to four standard errors, anew at every step."""
    weights = draw(weight_by_random(num_tasks, distribution), num_tasks, 4000)
    assert np.all(weights > 0)
    np.testing.assert_allclose(weights.sum(axis=1), 1, rtol=1e-5)
    np.testing.assert_allclose(weights.mean(axis=0), 1 / num_tasks, atol=0.013)
    if num_tasks > 1:
        assert len(np.unique(weights[:, 0])) > 3900


def test_dirichlet_is_uniform_on_the_simplex():
    """P(w_0 <= x) = 1 - (1 - x)^(T - 1): Kolmogorov distance at 4000 draws."""
    weights = np.sort(draw(weight_by_random(4, "dirichlet"), 4, 4000)[:, 0])
    gap = np.arange(1, 4001) / 4000 - (1 - (1 - weights) ** 3)
    assert np.max(np.abs(gap)) < 1.63 / np.sqrt(4000)


def test_normal_is_a_softmax_of_normal_numbers():
    """log(w_0 / w_1) is normal with variance 2."""
    weights = draw(weight_by_random(4), 4, 4000)
    ratio = np.log(weights[:, 0] / weights[:, 1])
    np.testing.assert_allclose(ratio.mean(), 0, atol=0.09)
    np.testing.assert_allclose(ratio.var(), 2, rtol=0.09)
    np.testing.assert_allclose(np.mean(ratio**4), 12, rtol=0.3)


def test_one_key_one_sequence():
    same, again, other = (
        draw(weight_by_random(3, key=key), 3, 5) for key in (7, jax.random.key(7), 8)
    )
    np.testing.assert_array_equal(same, again)
    assert np.max(np.abs(same - other)) > 0.05


def test_absent_tasks_are_as_if_they_did_not_exist():
    present = np.array([True, False, True, True])
    found = draw(weight_by_random(4), 4, 5, present)
    expected = draw(weight_by_random(3), 3, 5)
    np.testing.assert_allclose(found[:, present], expected, rtol=1e-6)
    np.testing.assert_array_equal(found[:, 1], 0)
    np.testing.assert_array_equal(draw(weight_by_random(4), 4, 1, np.zeros(4, bool)), 0)


def test_bad_arguments():
    with pytest.raises(ValueError, match="`distribution` must be one of 'normal', 'di"):
        weight_by_random(2, "bernoulli")
    with pytest.raises(TypeError, match="`key` must be an int or a typed key"):
        weight_by_random(2, key=np.zeros(2, np.uint32))
