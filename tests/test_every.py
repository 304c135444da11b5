"""`every`: weights computed on each k-th update and reused between."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import mtlopt
from mtlopt import TaskGrads
from tests import test_costs
from tests.linalg.matrices import gramian, structured
from tests.marks import cpu_only
from tests.problems import (
    LABELS,
    LOSSES,
    assert_close,
    encode,
    make_batches,
    make_oracle,
    make_params,
)

NUM_TASKS = 3


def run(tx, steps, present=None, losses=None):
    """Updates and states on one Jacobian `[tasks, params]` after the other."""

    @jax.jit
    def step(state, rows, present, losses):
        grads = TaskGrads.from_rows(rows, present=present, losses=losses)
        return tx.update(grads, state)

    state = jax.jit(tx.init)(steps[0][0])
    if present is None:
        present = np.ones((len(steps), len(steps[0])), bool)
    if losses is None:
        losses = np.ones((len(steps), len(steps[0])))
    out = []
    for now in zip(steps, present, losses, strict=True):
        update, state = step(state, *now)
        out.append((np.asarray(update), state))
    return out


def jacobians(count):
    rows = [structured("random", NUM_TASKS, seed) for seed in range(count)]
    return [matrix.astype(np.float32) for matrix in rows]


@pytest.mark.parametrize("name", ["nash_mtl", "aligned_mtl"])
def test_weights_are_reused(name):
    """Every third update computes, those between use its weights on their gradients."""
    weights = jax.jit(getattr(mtlopt, f"{name}_weights"))
    options = {"max_norm": None} if name == "nash_mtl" else {}
    tx = mtlopt.every(3, getattr(mtlopt, name)(NUM_TASKS, **options))
    steps = jacobians(7)
    for i, (update, state) in enumerate(run(tx, steps)):
        expected = np.asarray(weights(gramian(steps[i - i % 3], np.float32)))
        np.testing.assert_allclose(state.task_weights, expected, rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose(update, expected @ steps[i], rtol=1e-3, atol=1e-5)
        assert state.count == (i + 1) % 3


def test_clips_reused_weights_too():
    """Weights before clipping are reused: shorter gradients stay short, long do not."""
    (rows,) = jacobians(1)
    tx = mtlopt.every(4, mtlopt.nash_mtl(NUM_TASKS))
    lengths, reported = [], []
    for update, state in run(tx, [rows, 100 * rows, rows, 0.01 * rows]):
        lengths.append(np.linalg.norm(update))
        reported.append(np.asarray(state.task_weights))
    np.testing.assert_allclose(lengths, [1, 1, 1, 0.01 * 3**0.5], rtol=1e-4)
    np.testing.assert_allclose(reported[1], reported[0] / 100, rtol=1e-5)


@pytest.mark.parametrize("max_norm", [1.0, None])
def test_equals_a_loop_that_solves_every_third_time_to_the_bit(max_norm):
    """Nash-MTL as it is written by hand: the weights solved or kept, then clipped."""
    oracle, params = make_oracle(), make_params()

    @jax.jit
    def by_hand(solution, count, batch):
        grads = oracle(params, *batch)

        def solve():
            rows = grads.rows()
            weights = mtlopt.nash_mtl_weights(rows.scaled_gramian(None))
            return weights, rows.combine(weights)

        def keep():
            return solution, grads.rows().combine(solution)

        weights, direction = jax.lax.cond(count % 3 == 0, solve, keep)
        if max_norm is not None:
            length = optax.tree.norm(direction)
            factor = jnp.where(length <= max_norm, 1.0, max_norm / length)
            direction = [leaf * factor for leaf in direction]
        return grads.updates(direction), weights

    tx = mtlopt.every(3, mtlopt.nash_mtl(NUM_TASKS, max_norm=max_norm))
    update = jax.jit(lambda state, batch: tx.update(oracle(params, *batch), state))
    state, solution = tx.init(params), jnp.zeros(NUM_TASKS)
    for count in range(5):
        batch = jax.tree.map(lambda leaf, i=count: leaf[i], make_batches(steps=5))
        found, state = update(state, batch)
        expected, solution = by_hand(solution, count, batch)
        for a, b in zip(*map(jax.tree.leaves, (found, expected)), strict=True):
            np.testing.assert_array_equal(a, b)
        np.testing.assert_array_equal(state.kept, solution)


def methods():
    return {
        "mgda": mtlopt.mgda(NUM_TASKS),
        "pcgrad": mtlopt.pcgrad(NUM_TASKS),
        "modo": mtlopt.modo(NUM_TASKS),
        "mean_tasks": mtlopt.mean_tasks(NUM_TASKS),
        "sum_tasks": mtlopt.sum_tasks(NUM_TASKS),
        "balance_norms": mtlopt.balance_norms(NUM_TASKS),
        "weight_by_gradnorm": mtlopt.weight_by_gradnorm(NUM_TASKS),
        "weight_by_excess": mtlopt.weight_by_excess(NUM_TASKS, LABELS),
    }


def finished(tx, name):
    if not name.startswith("weight_by"):
        return tx
    return optax.chain(tx, mtlopt.sum_tasks(NUM_TASKS))


def updates_of(txs, oracle, params, batches, present=None):
    """Updates `[steps, ...]` of several transforms, by one scan."""

    def step(states, now):
        batch, there = now
        grads = oracle(params, *batch, present=there)
        out = {name: tx.update(grads, states[name], params) for name, tx in txs.items()}
        updates, states = ({n: o[i] for n, o in out.items()} for i in (0, 1))
        weights = {name: mtlopt.task_weights(states[name]) for name in txs}
        return states, (updates, weights)

    states = {name: tx.init(params) for name, tx in txs.items()}
    run = jax.jit(lambda now: jax.lax.scan(step, states, now)[1])
    return run((batches, present))


def test_every_first_is_the_method_itself():
    """k = 1 equals the method, aggregators and weightings, to the bit."""
    plain = {name: finished(tx, name) for name, tx in methods().items()}
    once = {n: finished(mtlopt.every(1, tx), n) for n, tx in methods().items()}
    run = make_oracle(), make_params(), make_batches()
    found, expected = (updates_of(txs, *run) for txs in (once, plain))
    for a, b in zip(*map(jax.tree.leaves, (found, expected)), strict=True):
        np.testing.assert_array_equal(a, b)


@functools.cache
def updates_with(**options):
    """Of a method over the parameters and, if rows are kept, of one over the latent."""
    txs = {"mgda": mtlopt.every(3, mtlopt.mgda(NUM_TASKS))}
    if "streaming" not in options:
        txs["latent"] = mtlopt.in_latent_space(txs["mgda"])
    losses = {
        n: lambda p, z, b, loss=loss: loss(p, z, *b) for n, loss in LOSSES.items()
    }
    oracle = mtlopt.task_grad(
        losses, LABELS, encode=lambda params, batch: encode(params, *batch), **options
    )
    return updates_of(txs, oracle, make_params(), (make_batches(),))


@pytest.mark.slow
@pytest.mark.parametrize("options", [{"microbatches": 2}, {"streaming": True}])
@pytest.mark.usefixtures("float64")
def test_ways_to_make_rows(options):
    """Microbatches and streaming give the updates of one batch and kept rows."""
    found, expected = updates_with(**options), updates_with()
    expected = tuple({name: each[name] for name in found[0]} for each in expected)
    assert_close(found, expected)


@pytest.mark.slow
@pytest.mark.usefixtures("float64")
def test_wrappers_go_inside_or_outside():
    """Latent space and tasks that are left out, with a weighting and absent tasks."""
    mgda, every = mtlopt.mgda(NUM_TASKS), mtlopt.every

    txs = {
        "latent inside": every(3, mtlopt.in_latent_space(mgda)),
        "latent outside": mtlopt.in_latent_space(every(3, mgda)),
        "left out inside": every(3, mtlopt.leave_out(mgda, ["b"])),
        "left out outside": mtlopt.leave_out(every(3, mgda), ["b"]),
    }
    weighting = mtlopt.weight_by_log(NUM_TASKS)
    txs = {name: optax.chain(weighting, tx) for name, tx in txs.items()}
    present = np.array([[1, 1, 1], [1, 1, 0], [0, 1, 1], [1, 0, 1]], bool)
    found = updates_of(txs, make_oracle(), make_params(), make_batches(), present)
    for each in found:
        for name in ("latent", "left out"):
            assert_close(each[f"{name} inside"], each[f"{name} outside"])
    weights = found[1]
    assert np.all(weights["left out inside"][:, 1] == 0)
    assert np.all(weights["latent inside"][~present] == 0)


def test_absent_tasks():
    """Weight zero while absent, and until computed again if absent when it was."""
    steps = jacobians(4)
    present = np.array([[1, 1, 1], [1, 0, 1], [0, 1, 1], [1, 1, 1]], bool)
    steps[1][1] = steps[2][0] = np.nan
    tx = mtlopt.every(2, mtlopt.nash_mtl(NUM_TASKS, max_norm=None))
    out = run(tx, steps, present)
    weights = np.stack([state.task_weights for _, state in out])
    expected = [[1, 1, 1], [1, 0, 1], [0, 1, 1], [0, 1, 1]]
    np.testing.assert_array_equal(weights > 0, expected)
    np.testing.assert_array_equal(weights[1, [0, 2]], weights[0, [0, 2]])
    assert all(np.all(np.isfinite(update)) for update, _ in out)


def test_a_task_that_was_away_for_an_update_has_its_weight_again():
    """Three updates of one computation: absent in the second, back in the third."""
    (rows,) = jacobians(1)
    present = np.array([[1, 1, 1], [1, 0, 1], [1, 1, 1]], bool)
    out = run(mtlopt.every(3, mtlopt.upgrad(NUM_TASKS)), [rows] * 3, present)
    np.testing.assert_array_equal(out[2][1].task_weights, out[0][1].task_weights)


def test_weights_that_are_not_finite_are_not_kept():
    """NaN is visible, and the next update computes, instead of reusing it."""
    steps = [np.full((NUM_TASKS, 8), np.nan, np.float32), *jacobians(1)]
    bad, good = run(mtlopt.every(5, mtlopt.mgda(NUM_TASKS)), steps)
    assert np.all(np.isnan(bad[0]))
    expected = jax.jit(mtlopt.mgda_weights)(gramian(steps[1], np.float32))
    np.testing.assert_allclose(good[1].task_weights, expected, rtol=1e-4, atol=1e-6)
    assert (bad[1].count, good[1].count) == (0, 1)


def test_a_weighting_sees_every_other_batch():
    """Loss weights and state as if the batches between did not exist; heads too."""
    losses = np.array([[1.0, 2, 4], [9, 9, 9], [2, 1, 3], [8, 8, 8], [5, 1, 2]])
    steps = jacobians(5)
    inner = optax.chain(mtlopt.weight_by_log(3), mtlopt.weight_by_dwa(3))
    tx = optax.chain(mtlopt.every(2, inner), mtlopt.sum_tasks(3))
    out = run(tx, steps, losses=losses)
    alone = run(optax.chain(inner, mtlopt.sum_tasks(3)), steps[::2], losses=losses[::2])
    for i, (update, state) in enumerate(out):
        expected = np.asarray(mtlopt.task_weights(alone[i // 2][1]))
        np.testing.assert_allclose(mtlopt.task_weights(state), expected, rtol=1e-6)
        np.testing.assert_allclose(update, expected @ steps[i], rtol=1e-4, atol=1e-5)


def test_under_vmap_each_seed_has_its_own_count():
    """Two states out of step: one computes while the other reuses."""
    first, second = jacobians(2)
    tx = mtlopt.every(2, mtlopt.mgda(NUM_TASKS))
    states = [tx.init(jnp.zeros(8)), run(tx, [first])[0][1]]

    def step(state, rows):
        return tx.update(TaskGrads.from_rows(rows), state)

    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *states)
    updates, after = jax.jit(jax.vmap(step, in_axes=(0, None)))(stacked, second)
    for i, state in enumerate(states):
        expected, alone = jax.jit(step)(state, second)
        np.testing.assert_allclose(updates[i], expected, rtol=1e-5, atol=1e-6)
        assert after.count[i] == alone.count == 1 - i


def cost_of(tx, count, **options):
    """FLOPs of an update with the state after so many."""
    oracle = mtlopt.task_grad(
        test_costs.LOSSES, test_costs.LABELS, encode=test_costs.encode, **options
    )

    def step(params, batch):
        state = tx.init(params)._replace(count=count)
        # Known when it is compiled, so that one branch is left.
        return tx.update(oracle(params, batch), state, params)

    batch = test_costs.make_batch()
    return test_costs.flops(step, test_costs.PARAMS, batch)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["mgda", "nash_mtl"])
def test_between_no_task_has_a_backward_pass(name):
    """1.04 plain steps of the 5 that the method takes with eight tasks."""
    tx = mtlopt.every(10, mtlopt.METHODS[name].make(8))
    assert cost_of(tx, np.int32(1)) <= 1.04 * test_costs.plain_step()
    assert cost_of(tx, np.int32(0)) > 4 * test_costs.plain_step()


@cpu_only
def test_convolutions_stay_out_of_the_branches():
    """Those of the combination, which take several times as long there."""
    params = {"w": np.ones((3, 3, 1, 2)), "a": np.ones(2), "b": -np.ones(2)}
    params = jax.tree.map(np.float32, params)

    def encode(params, x):
        z = jax.lax.conv_general_dilated(
            x, params["w"], (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
        return jnp.tanh(z)

    oracle = mtlopt.task_grad(
        {t: lambda p, z, x, t=t: jnp.mean((z @ p[t] - x[..., 0]) ** 2) for t in "ab"},
        {"w": "shared", "a": "a", "b": "b"},
        encode=encode,
    )
    x = np.random.default_rng(0).normal(size=(4, 6, 6, 1)).astype(np.float32)
    tx, plain = mtlopt.every(3, mtlopt.mgda(2)), mtlopt.mgda(2)
    compiled = [
        jax.jit(lambda params, state, of=of: of.update(oracle(params, x), state))
        .lower(params, of.init(params))
        .compile()
        for of in (mtlopt.mean_tasks(2), tx)
    ]
    counts = [
        str(program.as_text()).split("ENTRY")[1].count(" convolution(")
        for program in compiled
    ]
    assert counts[0] == counts[1] > 0
    update = jax.jit(lambda state: plain.update(oracle(params, x), state))
    expected, _ = update(plain.init(params))
    state = tx.init(params)
    for _ in range(2):
        updates, state = compiled[1](params, state)
        assert_close(updates, expected, rtol=1e-5)


def test_between_a_weighting_makes_no_rows():
    """Of ExcessMTL, which needs the gradients of all tasks."""
    tx = mtlopt.every(10, mtlopt.weight_by_excess(8, test_costs.LABELS))

    def with_sum(count):
        def update(updates, state, params=None):
            grads, _ = tx.update(updates, state._replace(count=count), params)
            return mtlopt.sum_tasks(8).update(grads, sum_state, params)

        sum_state = mtlopt.sum_tasks(8).init(test_costs.PARAMS)
        return optax.GradientTransformation(tx.init, update)

    assert test_costs.step(with_sum(np.int32(1))) <= 1.06 * test_costs.plain_step()
    assert test_costs.step(with_sum(np.int32(0))) > 4 * test_costs.plain_step()


def test_refusals():
    every = mtlopt.every

    def trace(tx):
        def first(rows, params):
            return tx.update(TaskGrads.from_rows(rows), tx.init(params))

        jax.eval_shape(first, np.ones((3, 4)), np.zeros(4))

    with pytest.raises(ValueError, match="`num_steps` must be a positive int, got 0"):
        every(0, mtlopt.mgda(3))
    with pytest.raises(
        TypeError, match=r"`inner` must be a gradient .*Call it: mgda\(num_tasks\)"
    ):
        every(10, mtlopt.mgda)  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="`inner` must keep `task_weights`"):
        every(10, optax.sgd(0.1)).init(jnp.zeros(4))
    for method in (
        mtlopt.graddrop(3),
        mtlopt.trimmed_mean(3),
        mtlopt.moco(3, "shared"),
        mtlopt.balance_norms(3, "shared", 0.5),
    ):
        tx = every(10, method)
        with pytest.raises(ValueError, match="`inner` must be a weighting, or an agg"):
            trace(tx)
    weighting = mtlopt.weight_by_dwa(3)
    for inner in (
        optax.chain(weighting, mtlopt.mgda(3)),
        optax.chain(weighting, mtlopt.sum_tasks(3)),
        optax.chain(mtlopt.mgda(3), optax.adam(0.1)),
    ):
        tx = every(10, inner)
        with pytest.raises(ValueError, match=r"got a chain .*\. Chain them outside"):
            trace(tx)
    for outer in (  # as the message says
        optax.chain(weighting, every(10, mtlopt.mgda(3)), optax.adam(0.1)),
        optax.chain(every(10, weighting), mtlopt.sum_tasks(3), optax.adam(0.1)),
    ):
        trace(outer)
    with pytest.raises(TypeError, match=r"`updates` must be a mtlopt\.TaskGrads"):
        tx.update(jnp.zeros(4), tx.init(jnp.zeros(4)))
