"""per_label: what is not active stands still, bit for bit; the rest is plain Optax."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import mtlopt
from tests.problems import assert_close

LABELS = {"trunk": "shared", "a": "a", "b": "b"}
PARAMS = {
    "trunk": jnp.linspace(-1.0, 1.0, 4),
    "a": {"w": jnp.linspace(1.0, 2.0, 3), "bias": jnp.zeros(())},
    "b": jnp.linspace(-2.0, 0.0, 2),
}
INNER = {
    "adam": optax.adam(0.1),
    "momentum": optax.sgd(0.1, momentum=0.9),
    "adamw": optax.adamw(0.1, weight_decay=0.3),
    "rmsprop": optax.rmsprop(0.1),
    "schedule": optax.sgd(optax.linear_schedule(1.0, 0.0, 10)),
    "noise": optax.chain(optax.add_noise(0.1, 0.5, 0), optax.sgd(0.1)),
}


def gradients(step):
    rng = np.random.default_rng(step)
    return jax.tree.map(
        lambda leaf: jnp.asarray(rng.normal(size=leaf.shape), leaf.dtype), PARAMS
    )


def train(tx, active_at, params=PARAMS, steps=6, gradients=gradients):
    """Returns params and state after each step."""
    update, state, history = jax.jit(tx.update), tx.init(params), []
    for step in range(steps):
        updates, state = update(gradients(step), state, params, active=active_at(step))
        params = optax.apply_updates(params, updates)
        history.append((params, state))
    return history


def same_bits(left, right):
    leaves = zip(jax.tree.leaves(left), jax.tree.leaves(right), strict=True)
    return all(
        np.array_equal(jax.device_get(data(a)), jax.device_get(data(b)))
        for a, b in leaves
    )


def data(leaf):
    is_key = jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
    return jax.random.key_data(leaf) if is_key else leaf


@pytest.mark.parametrize("name", INNER)
def test_inactive_label_stands_still_and_active_ones_do_not_notice(name):
    """Params and state of b are the same bits; a and the trunk move as if alone."""
    inner = INNER[name]
    tx = mtlopt.per_label(inner, LABELS)
    history = train(tx, lambda step: {"b": jnp.array(step < 3)})
    for step in (3, 4, 5):
        (before, before_state), (after, after_state) = history[step - 1 : step + 1]
        assert same_bits(before["b"], after["b"])
        assert same_bits(before_state.inner_states["b"], after_state.inner_states["b"])
        for label in ("a", "shared"):
            pair = (s.inner_states[label] for s in (before_state, after_state))
            assert name == "noise" or not same_bits(*pair)

    # Each label is that optimizer on its own leaves.
    for label, leaf in (("a", "a"), ("shared", "trunk")):
        params, state = {leaf: PARAMS[leaf]}, inner.init({leaf: PARAMS[leaf]})
        for step in range(6):
            own = {leaf: gradients(step)[leaf]}
            updates, state = jax.jit(inner.update)(own, state, params)
            params = optax.apply_updates(params, updates)
        assert_close(history[-1][0][leaf], params[leaf], 1e-6)
        assert label in history[-1][1].inner_states


def test_all_active_is_the_plain_optimizer():
    """Element-wise optimizers do not notice the wrapper."""
    for active in (None, {}, {"a": True}):
        wrapped = train(mtlopt.per_label(optax.adam(0.1), LABELS), lambda _: active)
        params, state = PARAMS, optax.adam(0.1).init(PARAMS)
        for step in range(6):
            updates, state = optax.adam(0.1).update(gradients(step), state, params)
            params = optax.apply_updates(params, updates)
        assert_close(wrapped[-1][0], params, 1e-6)


@pytest.mark.parametrize("name", ["adam", "momentum"])
def test_plain_optimizers_do_move_an_unlabelled_head(name):
    """Why the wrapper exists: five zero gradients still move the head."""
    inner = INNER[name]
    params, state = {"b": PARAMS["b"]}, inner.init({"b": PARAMS["b"]})
    updates, state = inner.update({"b": gradients(0)["b"]}, state, params)
    last_real_step = jnp.linalg.norm(updates["b"])
    drift = jnp.zeros(2)
    for _ in range(5):
        updates, state = inner.update({"b": jnp.zeros(2)}, state, params)
        drift += updates["b"]
    assert jnp.linalg.norm(drift) > 1.5 * last_real_step


def test_schedules_count_per_label():
    """b's learning rate is that of its own third step, not of the batch's fifth."""
    tx = mtlopt.per_label(optax.sgd(optax.linear_schedule(1.0, 0.0, 10)), LABELS)
    ones = jax.tree.map(jnp.ones_like, PARAMS)
    history = train(
        tx, lambda step: {"b": step not in (1, 2)}, steps=5, gradients=lambda _: ones
    )
    steps = [
        after["b"][0] - before["b"][0]
        for (before, _), (after, _) in zip(
            [(PARAMS, None), *history], history, strict=False
        )
    ]
    np.testing.assert_allclose(steps, [-1.0, 0, 0, -0.9, -0.8], rtol=1e-5)


STACKED = {"trunk": jnp.ones(2), "heads": {"w": jnp.ones((3, 4)), "b": jnp.ones(3)}}
STACKED_LABELS = {"trunk": "shared", "heads": "stacked"}


def stacked_gradients(step):
    rng = np.random.default_rng(step)
    return jax.tree.map(
        lambda leaf: jnp.asarray(rng.normal(size=leaf.shape), leaf.dtype), STACKED
    )


def test_every_task_of_stacked_heads_is_a_label_of_its_own():
    """Rows of the state, counts included, advance only where their task is active."""
    plan = np.array([[1, 1, 1], [1, 0, 1], [0, 0, 1], [1, 1, 1]], bool)
    tx = mtlopt.per_label(optax.adam(0.1), STACKED_LABELS)
    history = train(
        tx,
        lambda step: {"stacked": jnp.array(plan[step])},
        STACKED,
        steps=4,
        gradients=stacked_gradients,
    )
    state = history[-1][1].inner_states["stacked"]
    np.testing.assert_array_equal(optax.tree.get(state, "count"), plan.sum(axis=0))
    for task in range(3):
        params = jax.tree.map(lambda leaf: leaf[task], STACKED["heads"])
        alone = optax.adam(0.1).init(params)
        for step in range(4):
            if plan[step, task]:
                own = jax.tree.map(
                    lambda leaf: leaf[task], stacked_gradients(step)["heads"]
                )
                updates, alone = optax.adam(0.1).update(own, alone)
                params = optax.apply_updates(params, updates)
            row = jax.tree.map(lambda leaf: leaf[task], history[step][0]["heads"])
            assert_close(row, params, 1e-6)
            if step and not plan[step, task]:
                before = jax.tree.map(lambda leaf: leaf[task], history[step - 1][0])
                assert same_bits(before["heads"], row)
                moments = (
                    jax.tree.map(lambda leaf: leaf[task], s.inner_states["stacked"])
                    for _, s in history[step - 1 : step + 1]
                )
                assert same_bits(*moments)


@pytest.mark.parametrize("form", [list, tuple, np.array, jnp.array])
def test_activity_of_stacked_heads_may_be_any_sequence(form):
    tx = mtlopt.per_label(optax.sgd(1.0), STACKED_LABELS)
    ones = jax.tree.map(jnp.ones_like, STACKED)
    updates, _ = tx.update(
        ones, tx.init(STACKED), active={"stacked": form([True, False, True])}
    )
    np.testing.assert_array_equal(updates["heads"]["b"], [-1, 0, -1])


def test_absent_tasks_of_a_batch_stand_still():
    """The whole recipe: oracle(present), aggregator, per_label(adam, labels)."""
    oracle = mtlopt.task_grad(
        {
            "a": lambda p, z: jnp.sum((p["a"]["w"] * z[0] + p["a"]["bias"]) ** 2),
            "b": lambda p, z: jnp.sum(p["b"] * z[1:3]),
        },
        LABELS,
        encode=lambda p: jnp.tanh(p["trunk"]),
    )
    tx = optax.chain(mtlopt.mgda(2), mtlopt.per_label(optax.adam(0.1), LABELS))

    @jax.jit
    def run(plan):
        def step(carry, present):
            params, state = carry
            grads = oracle(params, present=present)
            updates, state = tx.update(grads, state, params, active=grads.active)
            carry = optax.apply_updates(params, updates), state
            return carry, carry

        return jax.lax.scan(step, (PARAMS, tx.init(PARAMS)), plan)[1]

    plan = np.array([[1, 1], [1, 0], [0, 0], [0, 1]], bool)
    params, state = run(plan)
    counts = {
        label: optax.tree.get(inner, "count")
        for label, inner in state[1].inner_states.items()
    }
    np.testing.assert_array_equal(counts["a"], [1, 2, 2, 2])
    np.testing.assert_array_equal(counts["b"], [1, 1, 1, 2])
    np.testing.assert_array_equal(counts["shared"], [1, 2, 2, 3])
    moved = {
        name: np.any(np.diff(leaf, axis=0) != 0, axis=1)
        for name, leaf in {
            "trunk": params["trunk"],
            "a": params["a"]["w"],
            "b": params["b"],
        }.items()
    }
    np.testing.assert_array_equal(moved["trunk"], [True, False, True])
    np.testing.assert_array_equal(moved["a"], [True, False, False])
    np.testing.assert_array_equal(moved["b"], [False, False, True])


def test_extra_arguments_reach_the_inner_transform():
    def update_fn(updates, state, params=None, *, factor, **extra_args):
        return jax.tree.map(lambda leaf: factor * leaf, updates), state

    inner = optax.GradientTransformationExtraArgs(
        lambda _: optax.EmptyState(), update_fn
    )
    for params, labels in ((PARAMS, LABELS), (STACKED, STACKED_LABELS)):
        tx = mtlopt.per_label(inner, labels)
        updates, _ = tx.update(params, tx.init(params), params, factor=3.0)
        assert_close(updates, jax.tree.map(lambda leaf: 3 * leaf, params), 1e-6)


def test_nan_of_an_inactive_label_does_not_spread():
    tx = mtlopt.per_label(optax.adam(0.1), LABELS)
    state = tx.init(PARAMS)
    grads = gradients(0) | {"b": jnp.full(2, jnp.nan)}
    updates, after = tx.update(grads, state, PARAMS, active={"b": False})
    assert same_bits(updates["b"], jnp.zeros(2))
    assert same_bits(after.inner_states["b"], state.inner_states["b"])


def test_state_types_do_not_change():
    """In a scan, a cond and under donation the state keeps its types."""
    for inner in (optax.adam(0.1), INNER["noise"]):
        for params, labels in ((PARAMS, LABELS), (STACKED, STACKED_LABELS)):
            tx = mtlopt.per_label(inner, labels)
            state = jax.eval_shape(tx.init, params)
            updates, after = jax.eval_shape(
                lambda g, s, p: tx.update(g, s, p, active={"shared": False}),
                params,
                state,
                params,
            )
            assert after == state
            assert jax.tree.map(jnp.shape, updates) == jax.tree.map(jnp.shape, params)


def test_an_aggregator_comes_first():
    tx = mtlopt.per_label(optax.sgd(0.1), "shared")
    grads = mtlopt.TaskGrads.from_rows({"w": jnp.ones((2, 3))})
    with pytest.raises(TypeError, match=r"got TaskGrads\. Chain an aggregator before"):
        tx.update(grads, tx.init({"w": jnp.ones(3)}))


@pytest.mark.parametrize(
    ("params", "labels", "active", "message"),
    [
        (PARAMS, LABELS, {"c": True}, r"`active` must name labels of.*'a'.*got 'c'"),
        (STACKED, STACKED_LABELS, {"0": True}, "`active` must name labels.*got '0'"),
        (
            STACKED,
            ["heads"],  # names no task: `active` is that of the oracle's labels
            {"stacked": [True, False, True]},
            r"labels of \('heads', 'shared'\), got 'stacked'\. Pass .* of the oracle",
        ),
        (PARAMS, LABELS, {"b": [True, True]}, r"`active\['b'\]` must have shape \(\)"),
        (
            STACKED,
            STACKED_LABELS,
            {"stacked": [True, False]},
            r"`active\['stacked'\]` must have shape \(3,\), got \(2,\)",
        ),
    ],
)
def test_bad_activity_names_the_label(params, labels, active, message):
    tx = mtlopt.per_label(optax.sgd(0.1), labels)
    with pytest.raises(ValueError, match=message):
        tx.update(params, tx.init(params), params, active=active)


def test_what_is_no_optimizer():
    with pytest.raises(TypeError, match=r"`inner` must be .* dict\. .* mapping\.get"):
        mtlopt.per_label({"shared": optax.sgd(0.1)}, LABELS)
    some = mtlopt.per_label({"shared": optax.sgd(0.1)}.get, LABELS)
    with pytest.raises(TypeError, match=r"optimizer for every .* NoneType for 'a'"):
        some.init(PARAMS)


SWAPPED = {"shared": "shared", "a": "b", "b": "a"}


@pytest.mark.parametrize("present", [None, (True, False)])
def test_labels_that_differ_from_those_of_the_oracle(present):
    """Otherwise the head of the present task would stand still."""
    params = {"shared": jnp.ones(()), "a": jnp.ones(()), "b": jnp.ones(())}
    oracle = mtlopt.task_grad(
        {task: lambda p, t=task: p[t] * p["shared"] for task in ("a", "b")},
        ["a", "b"],
    )
    tx = optax.chain(mtlopt.sum_tasks(2), mtlopt.per_label(optax.sgd(0.1), SWAPPED))
    run = mtlopt.Run(params, tx.init(params))
    message = "the label of `a` must be 'a', as in the oracle, got 'b'"
    with pytest.raises(ValueError, match=message):
        mtlopt.train_step(oracle, tx)(run, present=present)
    # Labels of a part of the parameters are not compared.
    only = optax.masked(
        mtlopt.per_label(optax.sgd(0.1), lambda *_: "all"),
        {"shared": False, "a": True, "b": True},
    )
    tx = optax.chain(mtlopt.sum_tasks(2), only)
    mtlopt.train_step(oracle, tx)(mtlopt.Run(params, tx.init(params)))
