"""A batch that is not finite leaves no trace behind `skip_not_finite`."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import mtlopt
from mtlopt import METHODS, skip_not_finite
from tests.marks import slow
from tests.problems import (
    LABELS,
    QUICK,
    ROUTES,
    in_parts,
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


# Methods that share a program.
PARTS = [
    part
    for few in (True, False)
    for part in in_parts(name for name in methods_of(3) if (name in ROUTES) == few)
]


@functools.cache
def runs(names):
    """Updates and states of methods after each of three batches, and without one."""
    oracle, params = make_oracle(), make_params()
    good = [jax.tree.map(lambda leaf, i=i: leaf[i], make_batches()) for i in (0, 1)]
    spoilt = jax.tree.map(
        lambda leaf: leaf * np.nan if np.issubdtype(leaf.dtype, np.floating) else leaf,
        good[0],
    )
    transforms = {
        name: skip_not_finite(METHODS[name].make(3, labels=LABELS)) for name in names
    }

    @functools.partial(jax.jit, compiler_options=QUICK)
    def step(states, batch):
        return {
            name: tx.update(oracle(params, *batch), states[name], params)
            for name, tx in transforms.items()
        }

    @jax.jit
    def start():
        return {name: tx.init(params) for name, tx in transforms.items()}

    def run(batches):
        states, found = start(), []
        for batch in batches:
            out = step(states, batch)
            states = {name: pair[1] for name, pair in out.items()}
            found.append(out)
        return found

    return run([good[0], spoilt, good[1]]), run(good)


@pytest.mark.parametrize(
    "name",
    [name if name in ROUTES else slow(name) for name in methods_of(3)],
)
def test_the_batch_might_as_well_not_have_been_there(name):
    """Nothing moves, the state stays bit for bit, and what follows is the same."""
    both = runs(next(part for part in PARTS if name in part))
    with_spoilt, without = ([out[name] for out in run] for run in both)
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
    state, next_state = tx.init(np.ones(2)), jax.jit(tx.update)
    for update, expected in (
        (np.array([np.inf, 1.0]), [np.inf, np.inf]),  # an update that is not finite
        (np.array([3.0, 2.0]), [3.0, 2.0]),
    ):
        _, state = next_state(update, state)
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

    def update(params):
        return tx.update(oracle(params, *batch), tx.init(params), params)

    with pytest.raises(TypeError, match="`inner` must return updates"):
        jax.eval_shape(update, params)


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


# Single tasks are left out.

TASKS, DEFECTS = ("a", "b", "c"), ("loss", "row", "head")
PARAMS = {"w": np.float32([0.5, -1.0]), **{t: np.float32([1.0, 2.0]) for t in TASKS}}
OWNERS = {"w": "shared", **{task: task for task in TASKS}}


def defect(here, value):
    """Zero; its derivative is NaN if `here`, because that of the root is infinite."""
    return jnp.sqrt(jnp.where(here, 0.0, 1.0) + 0 * jnp.sum(value)) - ~here


def with_defects(task):
    index = TASKS.index(task)

    def loss(params, z, x, bad):
        loss, row, head = bad[:, index]
        value = jnp.mean((z @ params[task] - x[:, 0] * index) ** 2)
        value += jnp.where(loss, jnp.nan, 0.0) + defect(row, z)
        return value + defect(head, params[task])

    return loss


def encode(params, x, bad):
    return jnp.tanh(x * params["w"])


DEFECTIVE = mtlopt.task_grad({t: with_defects(t) for t in TASKS}, OWNERS, encode=encode)
X = np.arange(8, dtype=np.float32).reshape(4, 2) / 8
CHAINS = {
    "weights": lambda: optax.chain(
        mtlopt.weight_by_uncertainty(3), mtlopt.sum_tasks(3), ADAM
    ),
    "rows": lambda: optax.chain(mtlopt.mgda(3), ADAM),
}
ADAM = mtlopt.per_label(optax.adam(0.1), OWNERS)


def bad_at(*places):
    """`[defects, tasks]`, from pairs of a defect and a task."""
    bad = np.zeros((len(DEFECTS), len(TASKS)), bool)
    for kind, task in places:
        bad[DEFECTS.index(kind), TASKS.index(task)] = True
    return bad


SPACES = {"parameters": lambda tx: tx, "latent": mtlopt.in_latent_space}


def two_steps(transforms, gradients, batches):
    """Updates of the last step and states after it; Adam has a momentum by then."""

    def step(states, batch):
        grads, options = gradients(batch)
        found = {
            case: tx.update(grads, states[case], PARAMS, **options)
            for case, tx in transforms.items()
        }
        updates, states = ({c: pair[i] for c, pair in found.items()} for i in (0, 1))
        return states, updates

    init = {case: tx.init(PARAMS) for case, tx in transforms.items()}
    states, updates = jax.lax.scan(step, init, batches)
    return jax.tree.map(lambda leaf: leaf[-1], updates), states


@functools.cache
def one_task_left_out():
    """Two steps, the first without defects: with one of them, and as if it were known.

    Returns:
      Updates and states of each, by chain and space; the first case has no defect.
    """
    skipping, knowing = {}, {}
    for chain, space in itertools.product(CHAINS, SPACES):
        tx, put = CHAINS[chain](), SPACES[space]
        skipping[chain, space] = put(skip_not_finite(tx, per_task=True))
        knowing[chain, space] = put(tx)
    good = bad_at()

    def skip(bad):
        gradients = lambda now: (DEFECTIVE(PARAMS, X, now), {})  # noqa: E731
        return two_steps(skipping, gradients, jnp.stack([good, bad]))

    def know(present):
        def gradients(now):
            grads = DEFECTIVE(PARAMS, X, good, present=now)
            return grads, {"active": grads.active}

        batches = jnp.stack([jnp.ones_like(present), present])
        return two_steps(knowing, gradients, batches)

    cases = [(), *((kind, "b") for kind in DEFECTS)]
    bad = np.stack([bad_at(*([case] if case else [])) for case in cases])
    found = jax.jit(jax.vmap(skip), compiler_options=QUICK)(bad)
    present = ~bad.any(axis=1)
    return found, jax.jit(jax.vmap(know), compiler_options=QUICK)(present)


@pytest.mark.slow
@pytest.mark.parametrize("space", SPACES)
@pytest.mark.parametrize("chain", CHAINS)
def test_one_task_is_left_out(chain, space):
    """As if its absence had been known, whatever is not finite; under vmap."""
    (updates, state), expected = (
        [trees[chain, space] for trees in found] for found in one_task_left_out()
    )
    for left, right in zip(
        *map(jax.tree.leaves, ([updates, state.inner_state], expected)), strict=True
    ):
        np.testing.assert_allclose(left, right, rtol=1e-5, atol=1e-6)
    assert not np.any(updates["b"][1:])
    assert np.all(np.abs(updates["b"][0]) > 1e-3)
    np.testing.assert_array_equal(state.num_left_out, [0, 1, 1, 1])
    np.testing.assert_array_equal(state.num_skipped, 0)


def test_if_all_tasks_are_left_out_the_step_is_skipped():
    """Also the last one of a batch in which others are absent."""
    tx = skip_not_finite(CHAINS["rows"](), per_task=True)

    @functools.partial(jax.jit, compiler_options=QUICK)
    def update(state, bad, present):
        return tx.update(DEFECTIVE(PARAMS, X, bad, present=present), state, PARAMS)

    everyone = np.ones(3, bool)
    _, before = update(tx.init(PARAMS), bad_at(), everyone)
    for bad, present in (
        (bad_at(("loss", "a"), ("row", "b"), ("head", "c")), everyone),
        (bad_at(("row", "b")), np.array([False, True, False])),
    ):
        updates, after = update(before, bad, present)
        assert all(not np.any(leaf) for leaf in jax.tree.leaves(updates))
        assert_same(after.inner_state, before.inner_state)
        assert (int(after.num_skipped), int(after.num_left_out)) == (1, present.sum())


def test_one_stacked_head_is_left_out():
    """And one that the caller keeps still."""
    labels = {"w": "shared", "heads": "stacked"}

    def head(params, z, task, bad):
        root = defect(bad[task], params["heads"])
        return jnp.vdot(params["heads"], z) + root

    oracle = mtlopt.task_grad(
        mtlopt.stacked(head, 3), labels, encode=lambda params, bad: params["w"]
    )
    params = {"w": jnp.ones(2), "heads": jnp.ones((3, 2))}
    tx = skip_not_finite(
        optax.chain(mtlopt.sum_tasks(3), mtlopt.per_label(optax.sgd(1.0), labels)),
        per_task=True,
    )

    @jax.jit
    def step(params):
        grads = oracle(params, jnp.array([False, True, False]))
        active = {"stacked": jnp.array([True, True, False])}
        updates, _ = tx.update(grads, tx.init(params), params, active=active)
        return grads.finite_tasks(), updates

    finite, updates = step(params)
    np.testing.assert_array_equal(finite, [True, False, True])
    np.testing.assert_array_equal(updates["heads"], [[-1, -1], [0, 0], [0, 0]])
    np.testing.assert_array_equal(updates["w"], [-2, -2])


@pytest.mark.parametrize("broken", [False, True])
def test_one_task_alone(broken):
    oracle = mtlopt.task_grad(
        {"a": lambda p, here: jnp.sum(p) + defect(here, p)}, "shared"
    )
    tx = skip_not_finite(mtlopt.sum_tasks(1), per_task=True)

    @jax.jit
    def first(params, broken):
        return tx.update(oracle(params, broken), tx.init(params), params)

    updates, state = first(np.ones(2), broken)
    np.testing.assert_array_equal(updates, 0.0 if broken else 1.0)
    assert state.num_skipped == broken


def test_tasks_are_left_out_of_gradients_of_tasks_only():
    tx = skip_not_finite(optax.sgd(0.1), per_task=True)
    with pytest.raises(TypeError, match="`per_task` must be False for a transform"):
        tx.update(PARAMS, tx.init(PARAMS), PARAMS)


def test_long_gradients_are_finite_and_infinite_ones_are_not():
    """The square of 1e25 is no float32; it is a gradient all the same."""
    rows = np.float32([[np.inf, 0.0], [1e25, 0.0], [np.nan, 1.0], [0.0, 0.0]])
    finite = jax.jit(lambda rows: mtlopt.TaskGrads.from_rows(rows).finite_tasks())(rows)
    np.testing.assert_array_equal(finite, [False, True, False, True])


@pytest.mark.parametrize("outside", ["leave_out", "skip_not_finite"])
def test_hidden_tasks_and_tasks_that_are_not_finite(outside):
    """Hidden "a" moves its head only, "b" with a NaN row nothing, and "c" both."""
    params = {"w": jnp.array(2.0), **dict.fromkeys("abc", jnp.array(3.0))}
    oracle = mtlopt.task_grad(
        {
            "a": lambda p, z: p["a"] * z,
            "b": lambda p, z: p["b"] ** 2 + jnp.sqrt(0 * z),
            "c": lambda p, z: 5 * p["c"] * z,
        },
        {"w": "shared", "a": "a", "b": "b", "c": "c"},
        encode=lambda p: p["w"],
    )
    tx = mtlopt.mgda(3)
    if outside == "leave_out":
        tx = mtlopt.leave_out(skip_not_finite(tx, per_task=True), ["a"])
    else:
        tx = skip_not_finite(mtlopt.leave_out(tx, ["a"]), per_task=True)
    step = jax.jit(lambda p: tx.update(oracle(p), tx.init(p), p)[0])
    updates = step(params)
    expected = {"w": 15.0, "a": 2.0, "b": 0.0, "c": 10.0}
    for name, update in updates.items():
        np.testing.assert_allclose(update, expected[name], rtol=1e-6)
