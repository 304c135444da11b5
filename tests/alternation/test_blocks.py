"""Alternate blocks: SAT and ATE against loops written by hand."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import mtlopt
from tests.problems import (
    LABELS,
    QUICK,
    TASKS,
    assert_close,
    encode,
    first,
    losses_of,
    make_batches,
    make_forty_heads,
    make_oracle,
    make_params,
    temporary_bytes,
)

STEPS = 7
BATCHES = make_batches(steps=STEPS)
SHARED, TASK = optax.adam(0.1), optax.sgd(0.05, momentum=0.9)


def make_optimizer(shared_steps=2, task_steps=3):
    return mtlopt.alternate_blocks(
        SHARED, TASK, LABELS, shared_steps=shared_steps, task_steps=task_steps
    )


def start(tx=None, seed=0):
    params = make_params(seed)
    return mtlopt.Run(params, (tx or make_optimizer()).init(params))


def batch(step):
    return [leaf[step] for leaf in BATCHES]


@functools.cache
def compiled(block, shared_steps=2, task_steps=3):
    step = mtlopt.block_step(make_oracle(), make_optimizer(shared_steps, task_steps))
    if block is not None:
        step = mtlopt.block_step(make_oracle(), make_optimizer(), block)
    return jax.jit(step, compiler_options=QUICK)


def same_bits(left, right):
    return all(
        np.array_equal(a, b)
        for a, b in zip(jax.tree.leaves(left), jax.tree.leaves(right), strict=True)
    )


@pytest.mark.parametrize("how", ["count", "phases"])
def test_cycles_equal_two_loops_by_hand(how, float64):
    """Each block by its own optimizer on the summed loss's gradient, in turn."""
    total = jax.jit(jax.grad(lambda p, *args: jnp.sum(losses_of(p, *args))))
    expected, states = make_params(), {}
    for name, optimizer in (("encoder", SHARED), ("heads", TASK)):
        states[name] = optimizer.init(expected[name])
    run = start()
    for step in range(STEPS):
        gradient = total(expected, *batch(step))
        name, optimizer = ("encoder", SHARED) if step % 5 < 2 else ("heads", TASK)
        updates, states[name] = optimizer.update(gradient[name], states[name])
        moved = optax.apply_updates(expected[name], updates)
        expected = {**expected, name: moved}

        block = mtlopt.block_at(step, 2, 3) if how == "phases" else None
        run, output = compiled(block)(run, *batch(step))
        assert_close(run.params, expected, 1e-12)
        assert output.losses.shape == (len(TASKS),)
    inner = run.opt_state.inner_state.inner_states
    assert_close(inner["shared"][0].mu["encoder"], states["encoder"][0].mu, 1e-12)
    trace = states["heads"][0].trace
    assert_close(inner["b"][0].trace["heads"]["b"], trace["b"], 1e-12)
    assert run.opt_state.count == STEPS


@pytest.mark.parametrize("how", ["count", "phases"])
def test_the_other_block_and_its_state_keep_their_bits(how, float64):
    run = start()
    for step in range(STEPS):
        block = mtlopt.block_at(step, 2, 3)
        chosen = block if how == "phases" else None
        after, _ = compiled(chosen)(run, *batch(step))
        states = [each.opt_state.inner_state.inner_states for each in (run, after)]
        still, moving = ("heads", "encoder")[:: 1 if block == "shared" else -1]
        assert same_bits(run.params[still], after.params[still])
        assert not same_bits(run.params[moving], after.params[moving])
        for label in ("shared", *TASKS):
            stands = (label == "shared") != (block == "shared")
            assert same_bits(states[0][label], states[1][label]) == stands
        run = after


def test_one_step_each_is_sat(float64):
    """w_0 moves on the first batch; the heads on the second, at the moved w_0."""
    oracle, rate = make_oracle(), 0.1
    tx = mtlopt.alternate_blocks(optax.sgd(rate), optax.sgd(rate), LABELS)
    step = jax.jit(mtlopt.block_step(oracle, tx), compiler_options=QUICK)
    run = start(tx)
    for i in range(2):
        run, _ = step(run, *batch(i))
    total = jax.jit(jax.grad(lambda p, *args: jnp.sum(losses_of(p, *args))))

    def descend(params, name, args):
        gradient = total(params, *args)[name]
        moved = jax.tree.map(lambda p, g: p - rate * g, params[name], gradient)
        return {**params, name: moved}

    expected = descend(descend(make_params(), "encoder", batch(0)), "heads", batch(1))
    assert_close(run.params, expected, 1e-12)


def test_both_blocks_at_once_are_plain_sgd(float64):
    """The two halves of one gradient step, from the same point."""
    tx = mtlopt.alternate_blocks(optax.sgd(0.1), optax.sgd(0.1), LABELS)
    params = make_params()
    grads = jax.grad(lambda p: jnp.sum(losses_of(p, *batch(0))))(params)
    state, found = tx.init(params), params
    for block in ("shared", "task"):
        updates, state = tx.update(grads, state, params, block=block)
        found = optax.apply_updates(found, updates)
    expected = jax.tree.map(lambda p, g: p - 0.1 * g, params, grads)
    assert_close(found, expected, 1e-12)


def test_scan_equals_phases(float64):
    """The step is a scan's body; the count chooses what Python chose."""
    step = mtlopt.block_step(make_oracle(), make_optimizer())

    def train(run):
        return jax.lax.scan(lambda run, args: step(run, *args), run, BATCHES)

    run = start()
    scanned, outputs = jax.jit(train, compiler_options=QUICK)(run)
    for i in range(STEPS):
        run, output = compiled(mtlopt.block_at(i, 2, 3))(run, *batch(i))
        np.testing.assert_allclose(outputs.losses[i], output.losses, rtol=1e-12)
    assert_close(scanned, run, 1e-12)


def test_vmapped_seeds_equal_single_runs(float64):
    """Static phases under vmap: the other block keeps its bits for every seed."""
    seeds = [start(seed=seed) for seed in range(3)]
    together = jax.tree.map(lambda *leaves: np.stack(leaves), *seeds)
    for i in range(STEPS):
        block = mtlopt.block_at(i, 2, 3)
        step = mtlopt.block_step(make_oracle(), make_optimizer(), block)
        every = jax.vmap(step, in_axes=(0, None, None, None))
        together, _ = jax.jit(every, compiler_options=QUICK)(together, *batch(i))
    for index, run in enumerate(seeds):
        for i in range(STEPS):
            run, _ = compiled(mtlopt.block_at(i, 2, 3))(run, *batch(i))
        one = jax.tree.map(lambda leaf, index=index: leaf[index], together)
        assert_close(one.params, run.params, 1e-12)


def test_cached_features_equal_a_task_phase(float64):
    """The trunk stands still, so its features are encoded once for all steps."""
    oracle, params = make_oracle(), make_params()
    tx = make_optimizer()
    run = start()
    for i in range(3):
        run, output = compiled("task")(run, *batch(i))

    cache = [encode(params, *batch(i)) for i in range(3)]

    @jax.jit
    def on_cache(params, opt_state, z, args):
        grad = oracle.heads(params, z, *args)
        updates, opt_state = tx.update(grad.grad, opt_state, params, block="task")
        return optax.apply_updates(params, updates), opt_state, grad.losses

    found, state = params, tx.init(params)
    for i in range(3):
        found, state, values = on_cache(found, state, cache[i], batch(i))
    assert_close(found, run.params, 1e-6)
    np.testing.assert_allclose(values, output.losses, rtol=1e-6)


def test_absent_heads_stand_still_in_their_phase(float64):
    tx = mtlopt.alternate_blocks(optax.adam(0.1), optax.adam(0.1), LABELS)
    step = jax.jit(mtlopt.block_step(make_oracle(), tx), compiler_options=QUICK)
    run = start(tx)
    for i in range(4):
        present = np.array([True, i < 2, True])
        after, _ = step(run, *batch(i), present=present)
        if i == 3:
            heads, moved = run.params["heads"], after.params["heads"]
            assert same_bits(heads["b"], moved["b"])
            assert same_bits(
                run.opt_state.inner_state.inner_states["b"],
                after.opt_state.inner_state.inner_states["b"],
            )
            assert not same_bits(heads["a"], moved["a"])
        run = after


def test_behind_an_aggregator(float64):
    """The transform takes any gradient: here MGDA's direction for the trunk."""
    oracle, params = make_oracle(), make_params()
    tx = optax.chain(mtlopt.mgda(3), make_optimizer(1, 1))

    @jax.jit
    def both(params):
        grads, mgda = oracle(params, *first(BATCHES)), mtlopt.mgda(3)
        updates, _ = tx.update(grads, tx.init(params), params)
        direction, _ = mgda.update(grads, mgda.init(params))
        encoder = params["encoder"]
        return updates, SHARED.update(
            direction["encoder"], SHARED.init(encoder), encoder
        )[0]

    updates, expected = both(params)
    assert_close(updates["encoder"], expected, 1e-12)
    assert all(np.all(leaf == 0) for leaf in jax.tree.leaves(updates["heads"]))


def test_a_phase_never_builds_the_other_gradient():
    """Fewer operations than a full step, and no product with the frozen block."""
    oracle = make_oracle()
    params = make_params()
    tx = make_optimizer()

    def flops(block):
        step = mtlopt.block_step(oracle, tx, block)
        lowered = jax.jit(step).lower(start(tx), *batch(0))
        return lowered.compile().cost_analysis()["flops"]

    def full(params, opt_state, *args):
        grads = oracle(params, *args).total()
        return tx.update(grads, opt_state, params)

    lowered = jax.jit(full).lower(params, tx.init(params), *batch(0))
    whole = lowered.compile().cost_analysis()["flops"]
    assert flops("task") < 0.75 * whole
    assert flops("shared") < 0.95 * whole


def test_a_phase_needs_no_more_memory_than_a_full_step():
    """By XLA's count: no row per task is kept."""
    params, labels, oracle, x = make_forty_heads()
    tx = mtlopt.alternate_blocks(optax.sgd(0.1), optax.sgd(0.1), labels)
    args = mtlopt.Run(params, tx.init(params)), x

    def full(run, x):
        return tx.update(oracle(run.params, x).total(), run.opt_state, run.params)

    for block in ("shared", "task", None):
        step = mtlopt.block_step(oracle, tx, block)
        assert temporary_bytes(step, *args) <= 2 * temporary_bytes(full, *args)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"shared_steps": 0}, "`shared_steps` must be a positive int, got 0"),
        ({"task_steps": 1.5}, "`task_steps` must be a positive int, got 1.5"),
    ],
)
def test_bad_lengths(arguments, message):
    with pytest.raises(ValueError, match=message):
        mtlopt.alternate_blocks(SHARED, TASK, LABELS, **arguments)


def test_bad_use():
    params, tx = make_params(), make_optimizer()
    with pytest.raises(ValueError, match="`block` must be one of 'shared', 'task'"):
        tx.update(params, tx.init(params), params, block="heads")
    with pytest.raises(ValueError, match="`block` must be one of 'shared', 'task'"):
        mtlopt.block_step(make_oracle(), tx, "heads")
    with pytest.raises(ValueError, match=r"`active` must name labels of.*got 'z'"):
        tx.update(params, tx.init(params), params, active={"z": True})
    for block in (None, "task"):
        step = mtlopt.block_step(make_oracle(), optax.sgd(0.1), block)
        with pytest.raises(ValueError, match="must have one `alternate_blocks` in it"):
            step(start(optax.sgd(0.1)), *batch(0))


@pytest.mark.parametrize("labels", ["shared", {"encoder": "Shared", "heads": "a"}])
def test_labels_without_one_of_the_blocks(labels):
    tx = mtlopt.alternate_blocks(SHARED, TASK, labels)
    with pytest.raises(ValueError, match="labelled 'shared' and leaves of heads"):
        tx.init(make_params())


@pytest.mark.parametrize("block", [None, "task"])
def test_labels_that_are_not_the_oracle_s(block):
    wrong = LABELS | {"heads": {"a": "shared", "b": "b", "c": "c"}}
    tx = mtlopt.alternate_blocks(SHARED, TASK, wrong)
    step = mtlopt.block_step(make_oracle(), tx, block)
    with pytest.raises(ValueError, match=r"label of `heads/a.*must be 'a'.*'shared'"):
        step(start(tx), *batch(0))


def test_numpy_lengths():
    """A product of numbers of batches and epochs is often a NumPy integer."""
    found = mtlopt.alternate_blocks(SHARED, TASK, LABELS, task_steps=np.int64(2))
    state = found.init(make_params())
    turns = []
    for _ in range(4):
        turns.append(bool(state.shared_is_next))
        _, state = found.update(make_params(), state, make_params())
    assert turns == [True, False, False, True]


def test_what_the_optimizer_wants_beside():
    """`value`, of which `reduce_on_plateau` makes the rate."""
    plateau = optax.contrib.reduce_on_plateau(factor=0.5, patience=1)
    tx = mtlopt.alternate_blocks(optax.chain(SHARED, plateau), TASK, LABELS)
    step = jax.jit(mtlopt.block_step(make_oracle(), tx), compiler_options=QUICK)
    run = start(tx)
    for i in range(5):
        run, _ = step(run, *batch(i), value=1.0)
    # Its steps are the first, third and fifth; the last two halve the rate.
    assert optax.tree.get(run.opt_state, "scale") == 0.25
