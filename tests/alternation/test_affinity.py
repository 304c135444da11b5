"""Affinities and groups against loops by hand, and on gradients with known groups."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import mtlopt
from tests.problems import (
    LABELS,
    LOSSES,
    QUICK,
    TASKS,
    assert_close,
    encode,
    first,
    losses_of,
    make_batches,
    make_oracle,
    make_params,
)

PARAMS, ARGS = make_params(), first(make_batches())
RATE, DECAY = 0.5, 0.3
ALONE = np.arange(3)


@pytest.fixture(autouse=True)
def float64():
    with jax.enable_x64(True):
        yield


def optimizer(share_state=True):
    sgd = optax.sgd(RATE, momentum=0.5)
    return mtlopt.individual_optimizers(sgd, 3, LABELS, share_state=share_state)


@functools.cache
def compiled(share_state=True, **options):
    step = mtlopt.affinity_step(make_oracle(), optimizer(share_state), **options)
    return jax.jit(step, compiler_options=QUICK)


def start(groups=ALONE, share_state=True):
    run = mtlopt.Run(PARAMS, optimizer(share_state).init(PARAMS))
    state = mtlopt.AffinityState.alone(3)
    return run, state._replace(groups=jnp.asarray(groups, jnp.int32))


@functools.cache
def _gradients():
    return jax.jit(
        lambda params, weights: jax.grad(
            lambda params: losses_of(params, *ARGS) @ weights
        )(params)
    )


def by_hand(groups, order=None, present=(True, True, True)):
    """Parameters and affinities after one step with momentum, and all losses."""
    params, momentum = PARAMS, jax.tree.map(np.zeros_like, PARAMS)
    affinity, there = np.zeros((3, 3)), np.array(present)
    own = np.zeros(3)
    losses_at = jax.jit(lambda params: losses_of(params, *ARGS))
    for name in order or sorted(set(groups)):
        members = (np.array(groups) == name) & there
        before = np.asarray(losses_at(params))
        own[members] = before[members]
        grads = _gradients()(params, members.astype(float))
        moving = {task: members[i] for i, task in enumerate(TASKS)}
        for path in ("encoder", *TASKS):
            if path == "encoder":
                parts = params, momentum, grads
            elif moving[path]:
                parts = params["heads"], momentum["heads"], grads["heads"]
            else:
                continue
            where, kept, grad = parts
            kept[path] = jax.tree.map(lambda m, g: g + 0.5 * m, kept[path], grad[path])
            new = jax.tree.map(lambda p, m: p - RATE * m, where[path], kept[path])
            if path == "encoder":
                params = params | {"encoder": new}
            else:
                params = params | {"heads": params["heads"] | {path: new}}
        b = (1 - np.asarray(losses_at(params)) / before) / members.sum()
        for i in np.flatnonzero(members):
            for k in np.flatnonzero(there):
                if i == k and b[k] < 0:
                    continue
                value = b[k]
                if members[k] and b[i] * b[k] < 0:
                    value = -max(b[i], b[k])
                affinity[i, k] = DECAY * value
    return params, affinity, own


@pytest.mark.parametrize(
    "groups", [(0, 1, 2), (0, 0, 0), (0, 1, 0), (0, 1, 1)], ids=str
)
def test_one_step_by_hand(groups):
    """One program for all groups; those of three tasks have losses that rise."""
    run, affinity, output = compiled(decay=DECAY, warmup=0)(*start(groups), *ARGS)
    params, matrix, losses = by_hand(groups)
    assert_close(run.params, params)
    assert_close(affinity.affinity, matrix)
    assert_close(output.losses, losses)
    np.testing.assert_array_equal(affinity.groups, groups_by_hand(matrix))
    assert compiled(decay=DECAY, warmup=0)._cache_size() == 1


def test_some_losses_rise_within_a_group():
    """So that the rule on signs is tested above."""
    assert (by_hand((0, 0, 0))[1] < 0).any()


def test_absent_tasks_do_not_move_and_are_not_measured():
    present = jnp.array([True, False, True])
    args = *start((0, 0, 2)), *ARGS
    run, affinity, output = compiled(decay=DECAY, warmup=0)(*args, present=present)
    params, matrix, losses = by_hand((0, 0, 2), present=(True, False, True))
    assert_close(run.params, params)
    assert_close(affinity.affinity, matrix)
    assert_close(output.losses, losses)


def test_a_random_order():
    step = compiled(decay=DECAY, warmup=0)
    ends = [step(*start(), *ARGS, key=seed)[0].params for seed in range(6)]
    orders = [
        by_hand((0, 1, 2), order)[0]
        for order in [(0, 1, 2), (0, 2, 1), (1, 0, 2), (1, 2, 0), (2, 0, 1), (2, 1, 0)]
    ]
    found = set()
    for end in ends:
        distances = [
            float(optax.tree.norm(optax.tree.sub(end, order))) for order in orders
        ]
        assert min(distances) < 1e-9
        found.add(int(np.argmin(distances)))
    assert len(found) > 1


def test_a_state_for_each_task_is_that_of_the_first_member():
    step = compiled(share_state=False, decay=DECAY, warmup=0)
    run, _, _ = step(*start((0, 1, 1), share_state=False), *ARGS)
    momentum = run.opt_state.shared.states[0].trace["encoder"]["w"]
    assert momentum.shape[0] == 3
    assert momentum[:2].any(axis=(1, 2)).all()
    assert not momentum[2].any()


def test_warmup_and_the_count():
    step = compiled(decay=DECAY, warmup=2)
    run, affinity, _ = step(*start(), *ARGS)
    np.testing.assert_array_equal(affinity.groups, ALONE)
    before = affinity.affinity
    run, affinity, _ = step(run, affinity, *ARGS)
    assert affinity.count == 2
    expected = mtlopt.affinity_groups(affinity.affinity)
    np.testing.assert_array_equal(affinity.groups, expected)
    assert not np.allclose(before, affinity.affinity)


def test_what_is_no_affinity_is_left_out():
    """Of losses that are negative, or not numbers."""
    oracle = mtlopt.task_grad(
        {"low": lambda w: w - 3, "good": lambda w: w + 3, "nan": lambda w: w * jnp.nan},
        "shared",
    )
    tx = mtlopt.individual_optimizers(optax.sgd(0.1), 3, "shared")
    affinity = mtlopt.AffinityState.alone(3)._replace(groups=jnp.array([0, 1, 0]))
    run = mtlopt.Run(jnp.array(1.0), tx.init(jnp.array(1.0)))
    step = jax.jit(mtlopt.affinity_step(oracle, tx, decay=0.5), compiler_options=QUICK)
    present = jnp.array([True, True, False])
    _, affinity, _ = step(run, affinity, present=present)
    # The step of "low" takes "good" from 4 to 3.9, its own from there to 3.8.
    expected = np.zeros((3, 3))
    expected[0, 1], expected[1, 1] = 0.5 * (1 - 3.9 / 4), 0.5 * (1 - 3.8 / 3.9)
    np.testing.assert_allclose(affinity.affinity, expected, rtol=1e-6)


def test_aux_and_state_go_from_turn_to_turn():
    def with_state(function, moves):
        def run(params, *args):
            *others, state = args
            value = function(params, *others, *ARGS)
            return value, state + 1 if moves else state, moves

        return run

    oracle = mtlopt.task_grad(
        {task: with_state(LOSSES[task], 0) for task in TASKS},
        LABELS,
        encode=with_state(encode, 1),
        has_aux=True,
        has_state=True,
    )
    run, affinity = start((0, 1, 0))
    step = jax.jit(mtlopt.affinity_step(oracle, optimizer()), compiler_options=QUICK)
    run, _, output = step(run._replace(state=jnp.array(0)), affinity)
    assert run.state == 2  # one for each group
    np.testing.assert_array_equal(output.aux.encode, [1, 1, 0])


def groups_by_hand(affinity):
    """Joins of two groups, as long as their mean mutual affinity is positive."""
    num_tasks = len(affinity)
    share = np.zeros((num_tasks, num_tasks))
    for k in range(num_tasks):
        if affinity[k, k] > 0:
            share[:, k] = affinity[:, k] / affinity[k, k]
    groups = [[task] for task in range(num_tasks)]
    while len(groups) > 1:
        means = {
            (a, b): np.mean([share[i, k] + share[k, i] for i in one for k in other])
            for a, one in enumerate(groups)
            for b, other in enumerate(groups)
            if a < b
        }
        (a, b), best = max(means.items(), key=lambda item: item[1])
        if best <= 0:
            break
        groups[a] += groups.pop(b)
    names = np.zeros(num_tasks, int)
    for group in groups:
        names[group] = min(group)
    return names


def test_groups_by_hand():
    """Random matrices of six tasks, in one program."""
    rng = np.random.default_rng(0)
    matrices = rng.normal(size=(200, 6, 6)) + np.eye(6)
    found = np.asarray(jax.jit(jax.vmap(mtlopt.affinity_groups))(matrices))
    for matrix, groups in zip(matrices, found, strict=True):
        np.testing.assert_array_equal(groups, groups_by_hand(matrix))
    assert len({len(set(groups)) for groups in found.tolist()}) > 3


def test_groups_in_the_corners():
    np.testing.assert_array_equal(mtlopt.affinity_groups(np.ones((1, 1))), [0])
    np.testing.assert_array_equal(mtlopt.affinity_groups(np.zeros((3, 3))), ALONE)
    np.testing.assert_array_equal(mtlopt.affinity_groups(-np.eye(3)), ALONE)
    np.testing.assert_array_equal(mtlopt.affinity_groups(np.ones((3, 3))), [0, 0, 0])
    with pytest.raises(ValueError, match=r"`affinity` must have one row.*\(2, 3\)"):
        mtlopt.affinity_groups(np.ones((2, 3)))


SEEDS, STEPS, SIZE = 10, 1000, 12
TRUE = np.array([0, 1, 0, 1, 0, 1])


@functools.cache
def groups_found(shuffled):
    """The groups after 1,000 steps, `[seeds, tasks]`.

    Six tasks have unit gradients with cosine 0.5 within and -0.2 between two groups. On
    every batch each has noise of the same length, in a direction of its own.
    """
    same = np.equal.outer(TRUE, TRUE)
    cosines = np.where(same, 0.5, -0.2) + 0.5 * np.eye(6)
    rows = np.zeros((6, SIZE))
    rows[:, :6] = np.linalg.cholesky(cosines)
    np.testing.assert_allclose(rows @ rows.T, cosines, atol=1e-12)
    oracle = mtlopt.task_grad(
        lambda w, batch: 1 + batch @ w, "shared", tasks=tuple("abcdef")
    )
    tx = mtlopt.individual_optimizers(optax.sgd(1e-4), 6, "shared", share_state=True)
    step = mtlopt.affinity_step(oracle, tx)

    def body(carry, key):
        noise_key, shuffle_key = jax.random.split(key)
        noise = jax.random.normal(noise_key, (6, SIZE))
        noise /= jnp.linalg.norm(noise, axis=1, keepdims=True)
        means = jnp.asarray(rows, jnp.float32)
        if shuffled:  # whose labels they are is drawn anew
            means = jax.random.permutation(shuffle_key, means)
        run, affinity, _ = step(*carry, (means + noise).astype(jnp.float32))
        return (run, affinity), None

    def train(seed):
        params = jnp.zeros(SIZE, jnp.float32)
        start = mtlopt.Run(params, tx.init(params)), mtlopt.AffinityState.alone(6)
        keys = jax.random.split(jax.random.key(seed), STEPS)
        (_, affinity), _ = jax.lax.scan(body, start, keys)
        return affinity.groups

    with jax.enable_x64(False):
        return np.asarray(jax.jit(jax.vmap(train))(jnp.arange(SEEDS)))


@pytest.mark.slow
@pytest.mark.parametrize("shuffled", [False, True])
def test_the_right_groups_are_found(shuffled):
    right = (groups_found(shuffled) == TRUE).all(axis=1).sum()
    if shuffled:
        assert right == 0
    else:
        assert right >= 9


def test_errors():
    oracle, tx = make_oracle(), optimizer()
    with pytest.raises(TypeError, match=r"`oracle` must be a mtlopt\.Oracle, got"):
        mtlopt.affinity_step(losses_of, tx)
    with pytest.raises(ValueError, match="`decay` must be between 0 and 1, got 1"):
        mtlopt.affinity_step(oracle, tx, decay=1)
    with pytest.raises(
        ValueError, match="`warmup` must be an int that is not negative"
    ):
        mtlopt.affinity_step(oracle, tx, warmup=-1)
    with pytest.raises(TypeError, match="`num_tasks` must be an int"):
        mtlopt.AffinityState.alone(2.0)
    step = mtlopt.affinity_step(oracle, tx)
    run, _ = start()
    with pytest.raises(
        ValueError, match="`affinity_step` for 3 tasks, got a state for 2"
    ):
        step(run, mtlopt.AffinityState.alone(2), *ARGS)
    two = mtlopt.individual_optimizers(optax.adam(0.1), 2, LABELS)
    with pytest.raises(ValueError, match="`individual_optimizers` for 3 tasks or gro"):
        mtlopt.affinity_step(oracle, two)(
            mtlopt.Run(PARAMS, two.init(PARAMS)), mtlopt.AffinityState.alone(3), *ARGS
        )
