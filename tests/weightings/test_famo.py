"""FAMO against the reference trajectories, its gradient, and what it sees when."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import mtlopt
from mtlopt import TaskGrads
from mtlopt.weightings.famo import famo_weights, weight_by_famo
from tests import reference
from tests.problems import make_batches, make_forty_heads, make_oracle, make_params
from tests.weightings import scalarizations


def shifted(losses_after):
    """At update t the losses after step t - 1; NaN, never read, at the first."""
    after = np.asarray(losses_after)
    return np.concatenate([np.full_like(after[:1], np.nan), after[:-1]])


@pytest.mark.parametrize("sequence", reference.sequences())
@pytest.mark.parametrize(
    ("name", "optimizer"), [("famo", None), ("famo_sgd", optax.sgd(0.5))]
)
def test_reference_trajectory(sequence, name, optimizer, float64):
    """Weights in force at each step; a lower bound of -1e-8 is the reference's eps."""
    losses = reference.weighting(f"{sequence}/losses")
    after = reference.weighting(f"{sequence}/losses_after")
    weighting = weight_by_famo(3, 0.01, optimizer, min_losses=np.full(3, -1e-8))
    weights, states = scalarizations.run(weighting, losses, losses_after=shifted(after))
    expected = reference.weighting(f"{sequence}/{name}/weights")
    np.testing.assert_allclose(weights, expected, rtol=1e-10)
    logits = reference.weighting(f"{sequence}/{name}/logits")
    found = np.stack([state.logits for state in states])
    np.testing.assert_allclose(found, logits, rtol=1e-9, atol=1e-12)


def test_descends_its_combined_loss(float64):
    """S = c sum z log D with c held constant, from the logits in force."""

    def combined(losses):
        z = jnp.full(3, 1 / 3)
        c = 1 / jax.lax.stop_gradient(jnp.sum(z / losses))
        return c * jnp.sum(z * jnp.log(losses))

    scalarizations.assert_descends(weight_by_famo(3), combined)


def test_weights_are_derivatives(float64):
    logits = jnp.array([0.3, -1.0, 2.0, 0.0])

    def combined(losses):
        z = jax.nn.softmax(logits)
        c = 1 / jax.lax.stop_gradient(jnp.sum(z / losses))
        return c * jnp.sum(z * jnp.log(losses))

    scalarizations.assert_derivatives(
        lambda losses: famo_weights(losses, logits), combined
    )


def test_logits_descend_the_fall_of_the_losses(float64):
    """The step is minus the gradient of <softmax(x), delta> + gamma |x|^2 / 2."""
    rng = np.random.default_rng(0)
    losses, after = rng.uniform(0.1, 3.0, size=(2, 4, 5))
    weighting = weight_by_famo(5, 0.3, optax.sgd(1.0))
    _, states = scalarizations.run(weighting, losses, losses_after=shifted(after))
    energy = lambda x, delta: jax.nn.softmax(x) @ delta + 0.15 * jnp.sum(x**2)  # noqa: E731
    slope = jax.jit(jax.grad(energy))
    for t in range(3):
        x = states[t].logits
        expected = x - slope(x, np.log(losses[t] / after[t]))
        np.testing.assert_allclose(states[t + 1].logits, expected, rtol=1e-10)


def test_weight_goes_to_the_task_that_falls_least():
    losses = np.array([[4.0, 4.0], [1.0, 3.9]], np.float32)
    _, states = scalarizations.run(weight_by_famo(2), losses)
    assert states[0].logits[0] == states[0].logits[1] == 0
    assert states[1].logits[1] > 0 > states[1].logits[0]


def test_without_the_keyword_current_losses_stand_in(float64):
    """On one full batch they are the losses after the last step."""
    losses = reference.weighting("seq3/losses")
    alone = scalarizations.run(weight_by_famo(3), losses)[0]
    given = scalarizations.run(weight_by_famo(3), losses, losses_after=losses)[0]
    np.testing.assert_array_equal(alone, given)


def test_the_documented_step_learns_from_one_batch_at_two_points(float64):
    """Through a chain, with an oracle: delta is over the previous batch."""
    oracle, params, batches = make_oracle(), make_params(), make_batches()
    tx = optax.chain(weight_by_famo(3), mtlopt.sum_tasks(3), optax.sgd(0.1))
    first, second = ([leaf[i] for leaf in batches] for i in range(2))

    @jax.jit
    def step(params, state, batch, previous):
        after = oracle.losses(params, *previous)
        grads = oracle(params, *batch)
        updates, state = tx.update(grads, state, params, losses_after=after)
        return optax.apply_updates(params, updates), state, grads.losses, after

    params, state, before, _ = step(params, tx.init(params), first, first)
    params, state, _, after = step(params, state, second, first)
    delta = np.log(before) - np.log(after)
    # Adam's first step is the sign of the gradient times the learning rate.
    expected = -0.025 * np.sign(delta - delta.mean())
    np.testing.assert_allclose(state[0].logits, expected, rtol=1e-5)


def test_units_of_the_losses_cancel(dtype):
    """w_i L_i keeps its shares and x its course when a loss is multiplied."""
    losses = reference.weighting("seq3/losses").astype(dtype)
    units = np.array([1e-12, 1.0, 1e12], dtype)
    plain, states = scalarizations.run(weight_by_famo(3), losses)
    found, scaled_states = scalarizations.run(weight_by_famo(3), losses * units)
    np.testing.assert_allclose(
        scaled_states[-1].logits, states[-1].logits, rtol=1e-3, atol=1e-6
    )
    shares, expected = found * losses * units, plain * losses
    np.testing.assert_allclose(
        shares / shares.sum(1, keepdims=True),
        expected / expected.sum(1, keepdims=True),
        rtol=1e-4,
    )


def test_absent_tasks_stand_still():
    """x and the optimizer move only where both losses of a batch are known."""
    losses = np.array([[4, 4, 4], [3, np.nan, 2], [2, 1, 1]], np.float32)
    after = np.array([[np.nan] * 3, [3.5, 3, 3.8], [2.9, np.nan, 1.5]], np.float32)
    present = np.isfinite(losses)
    weights, states = scalarizations.run(
        weight_by_famo(3), losses, present, losses_after=after
    )
    np.testing.assert_array_equal(weights[~present], 0)
    np.testing.assert_allclose(weights.sum(1), 1, rtol=1e-6)
    # Task 1 was there at step 0, so update 1 learns of it; update 2 does not.
    assert states[1].logits[1] != 0
    for left, right in zip(*map(jax.tree.leaves, states[1:3]), strict=True):
        if left.shape == (3,) and left.dtype == np.float32:
            assert np.all(np.isfinite(right))
    assert states[2].logits[1] == states[1].logits[1]
    counts = optax.tree.get(states[2].inner_state, "count")
    np.testing.assert_array_equal(counts, [2, 1, 2])


def test_absent_tasks_are_as_if_they_did_not_exist():
    losses = np.array([[4, 9, 1], [3, 9, 0.9], [2, 9, 0.7]], np.float32)
    present = np.tile([True, False, True], (3, 1))
    found, _ = scalarizations.run(weight_by_famo(3), losses, present)
    expected, _ = scalarizations.run(weight_by_famo(2), losses[:, [0, 2]])
    np.testing.assert_allclose(found[:, [0, 2]], expected, rtol=1e-6)
    scalarizations.assert_absent_are_left_out(famo_weights, logits=np.arange(5.0))


def test_zero_losses_weigh_nothing_and_teach_nothing():
    """Down to zero and up again: finite, and the other tasks go on."""
    losses = np.array([[1, 1], [0, 0.5], [0, 0.4], [2, 0.4], [1, 0.3]], np.float32)
    weights, states = scalarizations.run(weight_by_famo(2), losses)
    np.testing.assert_allclose(weights[1:3], [[0, 1], [0, 1]])
    logits = np.stack([state.logits for state in states])
    assert np.all(np.isfinite(logits))
    np.testing.assert_array_equal(logits[:4, 0], 0)
    assert logits[4, 0] != 0


def test_min_losses_are_taken_off():
    """Losses may be negative down to their bounds."""
    losses = np.array([[1.0, 4.0], [0.5, 3.0], [0.4, 1.0]], np.float32)
    bound = np.array([-20.0, 5.0], np.float32)
    expected, _ = scalarizations.run(weight_by_famo(2), losses)
    found, _ = scalarizations.run(weight_by_famo(2, min_losses=bound), losses + bound)
    np.testing.assert_allclose(found, expected, rtol=1e-4)


def test_finite_at_every_scale():
    scalarizations.assert_finite_at_every_scale(
        lambda losses: famo_weights(losses, jnp.array([0.0, 3.0, -90.0]))
    )


def test_one_task_and_nan():
    """One task weighs 1; NaN, or a loss below its bound, is not hidden."""
    np.testing.assert_array_equal(famo_weights(jnp.array([7.0]), jnp.ones(1)), [1.0])
    scalarizations.assert_nan_stays_visible(lambda x: famo_weights(x, jnp.zeros(3)))
    scalarizations.assert_nan_stays_visible(lambda x: famo_weights(-x, jnp.zeros(3)))


def test_weight_decay_of_the_model_does_not_touch_it():
    scalarizations.assert_decay_does_not_touch(weight_by_famo(2), "logits")


def test_bad_arguments():
    with pytest.raises(ValueError, match="`gamma` must be at least 0, got -1"):
        weight_by_famo(2, gamma=-1)
    with pytest.raises(ValueError, match="`min_losses` must have one entry per task"):
        weight_by_famo(2, min_losses=[0.0])
    weighting = weight_by_famo(2)
    grads = TaskGrads.from_rows(jnp.eye(2), [1.0, 1.0])
    with pytest.raises(ValueError, match="`losses_after` must have one entry per task"):
        weighting.update(grads, weighting.init(jnp.zeros(2)), losses_after=[1.0])


def test_exact_is_the_limit_of_the_difference(float64):
    """Logits of the two forms, for short steps: the difference per learning rate."""
    oracle, params, rate = make_oracle(), make_params(), 1e-6
    args = jax.tree.map(lambda leaf: leaf[0], make_batches())
    exact = weight_by_famo(3, 0.0, optax.sgd(0.3), exact=True)
    difference = weight_by_famo(3, 0.0, optax.sgd(0.3 / rate))
    sum_tasks = mtlopt.sum_tasks(3)

    @jax.jit
    def step(params, states, after):
        grads = oracle(params, *args)
        learned, first = exact.update(grads, states[0], params)
        other, second = difference.update(grads, states[1], params, losses_after=after)
        update, _ = sum_tasks.update(learned, sum_tasks.init(params), params)
        params = jax.tree.map(lambda x, d: x - rate * d, params, update)
        losses = oracle.losses(params, *args)
        return params, (first, second), losses, (learned.loss_scales, other.loss_scales)

    states = exact.init(params), difference.init(params)
    after, spread = jnp.zeros(3), 0.0
    for _ in range(4):
        params, states, after, weights = step(params, states, after)
        np.testing.assert_allclose(*weights, rtol=1e-5)
        spread = np.ptp(weights[0])
    assert spread > 0.05


def test_exact_costs_a_pushforward():
    """And forty latent rows, in operations; the backward pass is that of the sum."""
    params, _, oracle, x = make_forty_heads()

    def flops(**options):
        tx = optax.chain(weight_by_famo(40, **options), mtlopt.sum_tasks(40))
        step = jax.jit(lambda params: tx.update(oracle(params, x), tx.init(params)))
        return step.lower(params).compile().cost_analysis()["flops"]

    assert flops(exact=True) < 2 * flops()


def test_exact_needs_no_second_losses():
    weighting = weight_by_famo(2, exact=True)
    grads = TaskGrads.from_rows(jnp.eye(2), losses=[1.0, 2.0])
    with pytest.raises(ValueError, match="`losses_after` must be left out"):
        weighting.update(grads, weighting.init(jnp.ones(2)), losses_after=[1.0, 1.0])
