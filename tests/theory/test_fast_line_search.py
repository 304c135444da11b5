"""What the fast line search guarantees about the losses of the network, and what not.

`tests/linesearch` has the searches themselves: that a trial meets its inequality, that
an encoder with J J' = 1 makes both searches one, and that the safeguard holds.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import mtlopt

FAST = mtlopt.fast_backtracking
BOUNDS = (1.0, 1e-2, 1e-4)


@pytest.mark.parametrize("armijo", ["full", "heads", "latent"])
def test_theorem_1_an_accumulation_point_need_not_be_stationary(armijo, float64):
    """z = sqrt(2) theta, and losses z^2 / 2 + b_1^2 / 2 and z^2 + b_2^2 / 2.

    The latent gradients are z and 2 z, the direction z. A trial of 1 ends at z = 0, the
    minimum of both losses, so it passes; the encoder moves theta by sqrt(2) z, which is
    2 theta, to the other side. The heads are at their minima from the start.
    """

    def head(task, curvature):
        return lambda params, z: curvature * z**2 / 2 + params[task] ** 2 / 2

    labels = {"theta": "shared", "a": "a", "b": "b"}
    oracle = mtlopt.task_grad(
        {"a": head("a", 1.0), "b": head("b", 2.0)},
        labels,
        encode=lambda params: jnp.sqrt(2.0) * params["theta"],
    )
    tx = FAST(mtlopt.mgda(2), armijo=armijo)

    def body(carry, _):
        params, state = carry
        updates, state = tx.update(oracle(params), state, params)
        params = optax.apply_updates(params, updates)
        return (params, state), (params["theta"], state.trial_decrease, state.hit_floor)

    start = {"theta": jnp.array(1.5), "a": jnp.zeros(()), "b": jnp.zeros(())}
    run = jax.jit(
        lambda params: jax.lax.scan(body, (params, tx.init(params)), length=50)
    )
    _, (theta, decrease, hit_floor) = run(start)
    np.testing.assert_allclose(theta, 1.5 * (-1.0) ** np.arange(1, 51), rtol=1e-12)
    np.testing.assert_allclose(decrease, 1.5**2, rtol=1e-12)
    assert not np.any(hit_floor)


ENCODER = np.array([[1.0, 0.0], [-2.0, 1.0]])


@pytest.mark.parametrize("calibrate", [False, True])
def test_no_step_size_helps_if_the_encoder_turns_the_direction(calibrate, float64):
    """Losses log(1 + exp(z_1)) and log(1 + exp(z_2)) of a linear z = E theta.

    At zero both gradients are half a unit vector, so MGDA finds d = (1, 1) / 4. The
    encoder, E E' = (1, -2; -2, 5), turns it to (-1, 3) / 4, along which the first loss
    rises; it is convex, so it rises at every step size. Every trial sees both fall.
    """
    np.testing.assert_array_equal(ENCODER @ ENCODER.T, [[1, -2], [-2, 5]])
    oracle = mtlopt.task_grad(
        {f"{k}": (lambda params, z, k=k: jax.nn.softplus(z[k])) for k in range(2)},
        "shared",
        encode=lambda params: jnp.asarray(ENCODER) @ params,
    )
    start = jnp.zeros(2)

    @jax.jit
    def rises(upper):
        tx = FAST(mtlopt.mgda(2), calibrate=calibrate, upper=upper)
        updates, state = tx.update(oracle(start), tx.init(start), start)
        return updates, state, mtlopt.would_rise(oracle(start), -updates)

    for upper in BOUNDS:
        updates, state, first_order = rises(upper)
        assert state.trial_decrease > 0
        assert not state.hit_floor
        along = ENCODER.T @ np.full(2, -0.25)
        np.testing.assert_allclose(updates, state.step_size * along, atol=1e-15)
        np.testing.assert_array_equal(first_order, [True, False])
        after = np.logaddexp(0, ENCODER @ np.asarray(updates))
        assert after[0] > np.log(2) > after[1]
    # With the safeguard neither rises.
    safe = FAST(mtlopt.mgda(2), safeguard=True)
    updates, state = jax.jit(safe.update)(oracle(start), safe.init(start), start)
    assert state.fell_back
    assert np.all(np.logaddexp(0, ENCODER @ np.asarray(updates)) < np.log(2))


def test_the_losses_weighted_as_the_direction_is_fall_to_first_order(float64):
    """With MGDA, whatever the encoder: sum_t a_t <grad L_t, J' d> = |J' d|^2.

    So not all losses rise. With Aligned-MTL they may: see its Theorem 2.
    """
    aggregator = mtlopt.in_latent_space(mtlopt.mgda(2))

    @jax.jit
    def update(rows, encoder):
        oracle = mtlopt.task_grad(
            {f"{k}": (lambda params, z, k=k: rows[k] @ z) for k in range(2)},
            "shared",
            encode=lambda params: encoder @ params,
        )
        start = jnp.zeros(5)
        direction, state = aggregator.update(oracle(start), aggregator.init(start))
        return direction, state.task_weights

    rng, rising = np.random.default_rng(0), 0
    for _ in range(50):
        rows, encoder = rng.normal(size=(2, 3)), rng.normal(size=(3, 5)) ** 3
        apart = rows[0] - rows[1]
        share = 1 - np.clip(apart @ rows[0] / (apart @ apart), 0, 1)
        weights = np.array([share, 1 - share])
        direction, found = update(rows, encoder)
        np.testing.assert_allclose(found, weights, atol=1e-9)
        np.testing.assert_allclose(direction, weights @ rows @ encoder, atol=1e-9)
        slopes = rows @ encoder @ direction
        np.testing.assert_allclose(weights @ slopes, direction @ direction)
        rising += np.min(slopes) < 0
    assert rising > 0  # one of the two may rise all the same
