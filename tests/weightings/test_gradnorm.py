"""GradNorm against the reference trajectories, and over chosen layers."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import mtlopt
from mtlopt import TaskGrads
from mtlopt.weightings.gradnorm import weight_by_gradnorm
from tests import reference
from tests.problems import (
    TASKS,
    encode,
    first,
    gradient_of,
    losses_of,
    make_batches,
    make_loss,
    make_oracle,
    make_params,
)


def run(weighting, jacobians, losses, presents=None):
    """Weights in force at every step, and the states after it."""
    update = jax.jit(
        lambda rows, losses, present, state: weighting.update(
            TaskGrads.from_rows(rows, losses, present), state
        )
    )
    state, weights, states = weighting.init(jnp.zeros(2)), [], []
    for step, (rows, row) in enumerate(zip(jacobians, losses, strict=True)):
        present = None if presents is None else jnp.asarray(presents[step])
        grads, state = update(jnp.asarray(rows), jnp.asarray(row), present, state)
        np.testing.assert_array_equal(grads.loss_scales, state.task_weights)
        weights.append(np.asarray(grads.loss_scales))
        states.append(state)
    return np.stack(weights), states


def sequence(name):
    return tuple(
        reference.weighting(f"{name}/{key}") for key in ("jacobians", "losses")
    )


@pytest.mark.parametrize("name", reference.sequences())
def test_reference_trajectory(name, float64):
    """Weights in force, and those after the last step."""
    weights, states = run(weight_by_gradnorm(3), *sequence(name))
    expected = reference.weighting(f"{name}/gradnorm/weights")
    np.testing.assert_allclose(weights, expected, rtol=1e-10)
    after = reference.weighting(f"{name}/gradnorm/weights_next")
    for state, row in zip(states, after, strict=True):
        np.testing.assert_allclose(state.learned, row, rtol=1e-10)


def test_steps_are_those_of_the_balancing_loss(float64):
    """|G - target| with the target constant, by any optimizer, then renormalised."""
    jacobians, losses = sequence("seq3")
    inner, alpha = optax.adam(0.1), 0.7
    weights, _ = run(weight_by_gradnorm(3, alpha, inner), jacobians, losses)

    @jax.jit
    def descend(w, state, norms, target):
        slope = jax.grad(lambda w: jnp.sum(jnp.abs(w * norms - target)))(w)
        steps, state = jax.vmap(inner.update)(slope, state, w)
        return (w + steps) * 3 / jnp.sum(w + steps), state

    w = jnp.ones(3)
    state = jax.vmap(inner.init)(w)
    for step, (rows, row) in enumerate(zip(jacobians, losses, strict=True)):
        np.testing.assert_allclose(weights[step], w, rtol=1e-9)
        norms = np.linalg.norm(rows, axis=1)
        ratio = row / losses[0]
        target = np.mean(np.asarray(w) * norms) * (ratio / ratio.mean()) ** alpha
        w, state = descend(w, state, norms, target)


def test_norms_become_equal():
    """At alpha = 0, w tends to T |g_i|^-1 / sum |g_j|^-1."""
    rows = np.diag([1.0, 4.0, 2.0]).astype(np.float32)
    inner = optax.sgd(optax.exponential_decay(0.1, 50, 0.5))
    weights, _ = run(weight_by_gradnorm(3, 0.0, inner), [rows] * 500, np.ones((500, 3)))
    expected = 3 / np.array([1, 4, 2]) / np.sum(1 / np.array([1, 4, 2]))
    np.testing.assert_allclose(weights[-1], expected, rtol=1e-2)


def steps_of(oracle, layer):
    """The first step of the weights, whose size is the norm of the gradient."""
    params, args = make_params(), first(make_batches())
    weighting = weight_by_gradnorm(3, optimizer=optax.sgd(1e-4), layer=layer)
    update = jax.jit(lambda *all: weighting.update(oracle(*all), weighting.init(None)))
    return np.asarray(update(params, *args)[1].learned) - 1


def expected_steps(norms):
    """Equal losses in their own units: targets are the mean norm."""
    moved = 1 - 1e-4 * np.sign(norms - norms.mean()) * norms
    return 3 * moved / moved.sum() - 1


LAYERS = {
    "encoder": ("w", "b"),
    "encoder/w": ("w",),
    "encoder/b/": ("b",),
    None: ("w", "b"),
}


@pytest.mark.parametrize("layer", LAYERS)
def test_norms_are_over_the_layer(layer, float64):
    """Shared leaves at or below a path; None without `encode`: all of them."""
    params, args = make_params(), first(make_batches())
    every = jax.jit(lambda *all: [gradient_of(t, *all)["encoder"] for t in TASKS])
    gradients = every(params, *args)
    norms = np.array(
        [np.sqrt(sum(np.sum(g[k] ** 2) for k in LAYERS[layer])) for g in gradients]
    )
    oracle = make_oracle()
    if layer is None:
        oracle = mtlopt.task_grad(losses_of, oracle.labels, tasks=TASKS, headless=())
    np.testing.assert_allclose(
        steps_of(oracle, layer), expected_steps(norms), atol=1e-12
    )


def test_norms_are_of_the_latent_by_default(float64):
    """With `encode`, and with several microbatches as well."""
    params, args = make_params(), first(make_batches())

    @jax.jit
    def gradients(z):
        return [jax.grad(make_loss(t), argnums=1)(params, z, *args) for t in TASKS]

    norms = np.array([np.linalg.norm(g) for g in gradients(encode(params, *args))])
    found = steps_of(make_oracle(), None)
    np.testing.assert_allclose(found, expected_steps(norms), atol=1e-12)
    streamed = steps_of(make_oracle(streaming=True), None)
    np.testing.assert_allclose(streamed, found, atol=1e-12)


def test_first_update_is_the_summed_loss():
    """All weights are one, heads too."""
    params, args = make_params(), first(make_batches())
    tx = optax.chain(weight_by_gradnorm(3), mtlopt.sum_tasks(3))

    @jax.jit
    def both(params, *args):
        grads = make_oracle()(params, *args)
        return tx.update(grads, tx.init(params))[0], grads.total()

    found, expected = both(params, *args)
    for left, right in zip(*map(jax.tree.leaves, (found, expected)), strict=True):
        np.testing.assert_allclose(left, right, rtol=1e-5)


def test_absent_tasks_stand_still():
    """Weight and moments are the same bits; the rest is as if it did not exist."""
    jacobians, losses = (x.astype(np.float32) for x in sequence("seq3"))
    keep = np.array([True, False, True])
    spoilt = np.where(keep[:, None], jacobians, np.nan), np.where(keep, losses, np.nan)
    inner = optax.adam(0.1)
    masked, states = run(weight_by_gradnorm(3, 1.5, inner), *spoilt, [keep] * 12)
    alone, _ = run(
        weight_by_gradnorm(2, 1.5, inner), jacobians[:, keep], losses[:, keep]
    )
    np.testing.assert_allclose(masked[:, keep], alone, rtol=1e-4)
    np.testing.assert_array_equal(masked[:, 1], 1)
    np.testing.assert_array_equal(
        optax.tree.get(states[-1].inner_state, "count"), [12, 0, 12]
    )
    presents = [np.ones(3, bool)] * 3 + [keep] * 8 + [np.zeros(3, bool)]
    mixed, states = run(weight_by_gradnorm(3, 1.5, inner), jacobians, losses, presents)
    np.testing.assert_array_equal(mixed[3:, 1], mixed[3, 1])
    np.testing.assert_allclose(mixed.sum(axis=1), 3, rtol=1e-6)
    np.testing.assert_array_equal(states[-1].learned, states[-2].learned)


def test_late_tasks_are_measured_by_their_first_loss():
    jacobians, losses = (x[:4].astype(np.float32) for x in sequence("seq3"))
    presents = np.ones((4, 3), bool)
    presents[:2, 1] = False
    spoilt = np.where(presents, losses, np.nan)
    _, states = run(weight_by_gradnorm(3), jacobians, spoilt, presents)
    expected = [losses[0, 0], losses[2, 1], losses[0, 2]]
    np.testing.assert_array_equal(states[-1].initial, expected)


def test_weights_stay_non_negative_and_come_back():
    """Steps far too long, for gradients of any size: finite, sum T, none is stuck."""
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(30, 3, 4)).astype(np.float32)
    rows *= (10.0 ** rng.integers(-3, 4, size=(30, 3, 1))).astype(np.float32)
    losses = rng.uniform(0.5, 2, size=(30, 3)).astype(np.float32)
    weights, _ = run(weight_by_gradnorm(3, optimizer=optax.sgd(1.0)), rows, losses)
    assert np.all(weights >= 0)
    np.testing.assert_allclose(weights.sum(axis=1), 3, rtol=1e-5)
    zero = weights == 0
    assert zero.any()
    for task in np.flatnonzero(zero.any(axis=0)):
        since = np.argmax(zero[:, task])
        assert weights[since:, task].max() > 0


@pytest.mark.parametrize(
    ("rows", "losses"),
    [
        (np.zeros((3, 2)), np.ones(3)),
        (np.ones((3, 2)), np.ones(3)),
        (np.ones((3, 2)), np.zeros(3)),
        (np.ones((1, 2)), np.full(1, 5.0)),
        ([[1, 0], [-1, 0]], np.ones(2)),
    ],
)
def test_nothing_to_balance(rows, losses):
    """Zero, equal and opposed gradients, zero losses, one task: all weights stay 1."""
    rows = np.asarray(rows, np.float32)
    weighting = weight_by_gradnorm(len(rows))
    weights, _ = run(weighting, [rows] * 3, [losses.astype(np.float32)] * 3)
    np.testing.assert_allclose(weights, 1, rtol=1e-6)


def test_weight_decay_of_the_model_does_not_touch_it():
    """The weights have their own optimizer."""
    jacobians, losses = (x[:4].astype(np.float32) for x in sequence("seq3"))
    alone = run(weight_by_gradnorm(3), jacobians, losses)[1][-1].learned
    decayed = optax.adamw(0.1, weight_decay=0.9)
    tx = optax.chain(weight_by_gradnorm(3), mtlopt.sum_tasks(3), decayed)
    params = jnp.ones(6)
    state = tx.init(params)

    @jax.jit
    def step(rows, losses, state, params):
        grads = TaskGrads.from_rows(rows, losses)
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    for rows, row in zip(jacobians, losses, strict=True):
        params, state = step(rows, row, state, params)
    np.testing.assert_allclose(state[0].learned, alone, rtol=1e-6)


def test_bad_arguments():
    with pytest.raises(ValueError, match="`alpha` must be at least 0, got -1"):
        weight_by_gradnorm(2, alpha=-1)
    grads = make_oracle()(make_params(), *first(make_batches()))
    for layer in ("heads/a", "enc", "encoder/c"):
        weighting = weight_by_gradnorm(3, layer=layer)
        with pytest.raises(ValueError, match="`layer` must be the path of a shared l"):
            weighting.update(grads, weighting.init(None))
