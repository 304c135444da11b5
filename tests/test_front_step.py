"""One program for many preferences: each network is as if it were trained alone."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import mtlopt

PREFERENCES = jnp.array([[1.0, 3.0], [2.0, 1.0]])
PARAMS = {"trunk": jnp.array([0.5, -1.0]), "a": jnp.ones(()), "b": -jnp.ones(())}


def make_oracle(**options):
    """Two heads on one number; the state counts the steps."""

    def encode(params, x, state):
        return jnp.tanh(x @ params["trunk"]), state + 1

    def loss(task, target):
        return lambda params, z, x, state: (
            jnp.mean((params[task] * z - target * x[:, 0]) ** 2),
            state,
        )

    return mtlopt.task_grad(
        {"a": loss("a", 1.0), "b": loss("b", -2.0)},
        {"trunk": "shared", "a": "a", "b": "b"},
        encode=encode,
        has_state=True,
    )


def make_optimizer(preference):
    chain = mtlopt.weight_by_stch(2, preference=preference), mtlopt.pcgrad(2)
    return optax.chain(*chain, optax.adam(0.05))


@pytest.mark.parametrize("present", [None, np.array([True, False])])
def test_each_is_as_if_alone(present):
    """Parameters, state and losses, also if a task is absent.

    There are as many preferences as tasks, so a mask that is cut would go unseen.
    """
    oracle = make_oracle()
    front = mtlopt.front_step(oracle, make_optimizer, PREFERENCES)
    x = jax.random.normal(jax.random.key(0), (8, 2))
    runs, state = front.init(PARAMS, jnp.zeros(())), None
    step = jax.jit(front.step)
    for _ in range(3):
        runs, output = step(runs, x, present=present)
    for k, preference in enumerate(PREFERENCES):
        optimizer = make_optimizer(preference)
        alone = jax.jit(mtlopt.train_step(oracle, optimizer))
        run = mtlopt.Run(PARAMS, optimizer.init(PARAMS), jnp.zeros(()))
        for _ in range(3):
            run, state = alone(run, x, present=present)
        mine, losses = jax.tree.map(lambda leaf, k=k: leaf[k], (runs, output.losses))
        for found, expected in zip(
            jax.tree.leaves((mine.params, mine.state, losses)),
            jax.tree.leaves((run.params, run.state, state.losses)),
            strict=True,
        ):
            np.testing.assert_allclose(found, expected, rtol=1e-5)
    assert jax.tree.structure(runs) == jax.tree.structure(run)


@pytest.mark.parametrize(
    ("preferences", "message"),
    [
        (jnp.ones(2), r"`preferences` must have shape \(K, 2\)"),
        (jnp.ones((4, 3)), r"`preferences` must have shape \(K, 2\)"),
        (jnp.array([[1.0, 1.0], [1.0, -1.0]]), r"`preferences\[1\]` must be finite"),
        (jnp.array([[0.0, 0.0]]), r"`preferences\[0\]` must be finite"),
        (jnp.array([[1.0, jnp.nan]]), r"`preferences\[0\]` must be finite"),
    ],
)
def test_bad_preferences(preferences, message):
    with pytest.raises(ValueError, match=message):
        mtlopt.front_step(make_oracle(), make_optimizer, preferences)
    with pytest.raises(TypeError, match=r"`oracle` must be a mtlopt\.Oracle"):
        mtlopt.front_step(None, make_optimizer, PREFERENCES)
    with pytest.raises(TypeError, match="a function from a preference to a chain"):
        mtlopt.front_step(make_oracle(), mtlopt.epo(2), PREFERENCES)
    with pytest.raises(ValueError, match="`chunk_size` must be"):
        mtlopt.front_step(make_oracle(), make_optimizer, PREFERENCES, chunk_size=0)


@pytest.mark.slow
@pytest.mark.parametrize("chunk_size", [1, 2, 5])
def test_chunks_change_nothing(chunk_size):
    """Also if the last one is smaller, or one has room for more than all."""
    preferences = jnp.array([[1.0, 3.0], [2.0, 1.0], [1.0, 1.0]])
    x, found = jax.random.normal(jax.random.key(0), (8, 2)), []
    for size in (None, chunk_size):
        front = mtlopt.front_step(make_oracle(), make_optimizer, preferences, size)
        runs = front.init(PARAMS, jnp.zeros(()))
        runs, output = jax.jit(front.step)(runs, x, present=np.array([True, False]))
        found.append((runs.params, runs.state, output.losses))
    for one, other in zip(*map(jax.tree.leaves, found), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-7)


def test_a_batch_of_other_preferences_needs_no_new_program():
    """They may be traced: built inside `jit`, they are an argument."""
    oracle = mtlopt.task_grad(
        lambda x: jnp.stack([(x - 1) ** 2, (x + 1) ** 2]), "shared", tasks=("a", "b")
    )

    @jax.jit
    def step(preferences):
        front = mtlopt.front_step(
            oracle, lambda p: optax.chain(mtlopt.epo(2, p), optax.sgd(0.1)), preferences
        )
        return front.step(front.init(jnp.array(0.5)))[0].params

    moved = step(PREFERENCES)
    assert np.all(step(PREFERENCES[::-1]) == moved[::-1])
    assert step._cache_size() == 1
