"""A batch that is not finite leaves no trace behind `skip_not_finite`."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import mtlopt
from mtlopt import METHODS, skip_not_finite
from tests.problems import (
    LABELS,
    QUICK,
    make_batches,
    make_oracle,
    make_params,
    methods_of,
)


def numbers(leaf):
    """Those of an array, or of a PRNG key."""
    is_key = jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
    return np.asarray(jax.random.key_data(leaf) if is_key else leaf)


def assert_same(actual, expected):
    """Trees agree bit for bit."""
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    for left, right in zip(*map(jax.tree.leaves, (actual, expected)), strict=True):
        np.testing.assert_array_equal(numbers(left), numbers(right))


@pytest.fixture(scope="module")
def runs():
    """Updates and states of every method after each of three batches, and without."""
    oracle, params = make_oracle(), make_params()
    good = [jax.tree.map(lambda leaf, i=i: leaf[i], make_batches()) for i in (0, 1)]
    spoilt = jax.tree.map(
        lambda leaf: (
            leaf * jnp.nan if jnp.issubdtype(leaf.dtype, jnp.floating) else leaf
        ),
        good[0],
    )
    transforms = {
        name: skip_not_finite(METHODS[name].make(3, labels=LABELS))
        for name in methods_of(3)
    }

    @functools.partial(jax.jit, compiler_options=QUICK)
    def step(states, batch):
        return {
            name: tx.update(oracle(params, *batch), states[name], params)
            for name, tx in transforms.items()
        }

    def run(batches):
        states, found = {name: tx.init(params) for name, tx in transforms.items()}, []
        for batch in batches:
            out = step(states, batch)
            states = {name: pair[1] for name, pair in out.items()}
            found.append(out)
        return found

    return run([good[0], spoilt, good[1]]), run(good)


@pytest.mark.parametrize("name", methods_of(3))
def test_the_batch_might_as_well_not_have_been_there(runs, name):
    """Nothing moves, the state stays bit for bit, and what follows is the same."""
    with_spoilt, without = ([out[name] for out in run] for run in runs)
    moved, state = with_spoilt[1]
    assert all(not np.any(leaf) for leaf in jax.tree.leaves(moved))
    assert_same(state.inner_state, without[0][1].inner_state)
    assert_same(with_spoilt[2][0], without[1][0])
    last, expected = with_spoilt[2][1], without[1][1]
    assert_same(last.inner_state, expected.inner_state)
    assert (int(last.num_skipped), int(expected.num_skipped)) == (1, 0)


def test_a_state_that_starts_from_infinity_is_taken():
    """Only what was finite and is no longer counts."""

    def update_fn(updates, state, params=None):
        return updates, jnp.minimum(state, updates)

    lowest = optax.GradientTransformation(lambda params: jnp.inf * params, update_fn)
    tx = skip_not_finite(lowest)
    state = tx.init(jnp.ones(2))
    for update, expected in (
        (jnp.array([jnp.inf, 1.0]), [jnp.inf, jnp.inf]),  # an update that is not finite
        (jnp.array([3.0, 2.0]), [3.0, 2.0]),
    ):
        _, state = tx.update(update, state)
        np.testing.assert_array_equal(state.inner_state, expected)
    assert state.num_skipped == 1


def test_a_state_that_alone_is_spoilt_is_not_taken():
    """As losses remembered for a later step."""

    def update_fn(updates, state, params=None, *, loss):
        return updates, state + loss

    remember = optax.GradientTransformationExtraArgs(
        lambda params: jnp.zeros([]), update_fn
    )
    tx = skip_not_finite(remember)
    params = jnp.ones(2)
    moved, state = tx.update(params, tx.init(params), params, loss=jnp.nan)
    np.testing.assert_array_equal(moved, np.zeros(2))
    np.testing.assert_array_equal(state.inner_state, 0)
    moved, state = tx.update(params, state, params, loss=2.0)
    np.testing.assert_array_equal(moved, params)
    np.testing.assert_array_equal(state.inner_state, 2)


def test_weightings_alone_are_refused():
    """An aggregator behind the wrapper would come too late."""
    oracle, params = make_oracle(), make_params()
    tx = skip_not_finite(mtlopt.weight_by_uncertainty(3))
    batch = jax.tree.map(lambda leaf: leaf[0], make_batches())
    with pytest.raises(TypeError, match="`inner` must end in updates"):
        tx.update(oracle(params, *batch), tx.init(params), params)


def test_python_numbers_in_a_state():
    """As in a transform that someone wrote quickly."""
    count = optax.GradientTransformation(
        lambda params: 0.0, lambda updates, state, params=None: (updates, state + 1)
    )
    tx = skip_not_finite(count)
    _, state = tx.update(jnp.ones(2), tx.init(None))
    assert state.inner_state == 1


def test_large_numbers_are_finite():
    """Their norm would not be."""
    tx = skip_not_finite(optax.identity())
    large = jnp.full(3, 1e38)
    np.testing.assert_array_equal(tx.update(large, tx.init(large))[0], large)


def test_weights_are_found_in_the_state():
    """Monitoring sees through the wrapper."""
    tx = skip_not_finite(METHODS["mgda"].make(3))
    state = tx.init(make_params())
    assert mtlopt.task_weights(state).shape == (3,)
