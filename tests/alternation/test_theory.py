"""The papers' theorems on problems whose constants are known."""

import jax
import jax.numpy as jnp
import numpy as np
import optax

import mtlopt

SEEDS = 256


def quadratics(seed, num_tasks, size, mu, largest):
    """Symmetric `A_k` with spectrum in [mu, largest], and minimisers `c_k`."""
    rng = np.random.default_rng(seed)
    matrices = []
    for _ in range(num_tasks):
        basis, _ = np.linalg.qr(rng.normal(size=(size, size)))
        spectrum = np.linspace(mu, largest, size)
        matrices.append(basis * spectrum @ basis.T)
    return np.stack(matrices), rng.normal(size=(num_tasks, size))


def test_individual_steps_meet_theorem_1(float64):
    """E F(w_T) - F* <= L / (gamma + T) (2 B / mu^2 + (gamma + 1) |w_1 - w*|^2 / 2).

    F^(k)(w) = (w - c_k)' A_k (w - c_k) / 2 with gradients in noise of variance
    sigma^2. G^2 is the largest mean squared gradient that occurs. F is the average of
    the losses, Gamma that of their minima (zero) below its own. T counts the steps of
    one task each.
    """
    num_tasks, size, mu, largest, sigma = 3, 4, 0.5, 2.0, 0.3
    matrices, centres = quadratics(0, num_tasks, size, mu, largest)
    tasks = [str(k) for k in range(num_tasks)]

    def make_loss(k):
        def loss(params, noise):
            away = params["w"] - centres[k]
            return 0.5 * away @ matrices[k] @ away + params["w"] @ noise[k]

        return loss

    oracle = mtlopt.task_grad(
        {task: make_loss(k) for k, task in enumerate(tasks)}, "shared"
    )
    gamma = 2 * largest / mu - 1
    # The schedule counts the steps of the one state that all tasks share.
    inner = optax.sgd(lambda t: 2 / (mu * (gamma + t + 1)))
    tx = mtlopt.individual_optimizers(inner, num_tasks, "shared", share_state=True)
    step = mtlopt.individual_step(oracle, tx)
    start, rounds = {"w": 3 * jnp.ones(size)}, 400
    average = np.mean(matrices, axis=0)
    best = np.linalg.solve(
        average, np.mean(np.einsum("kij,kj->ki", matrices, centres), axis=0)
    )

    def objective(w):
        away = w - centres
        return 0.5 * jnp.mean(jnp.einsum("ki,kij,kj->k", away, matrices, away))

    def run(key):
        def body(run, key):
            noise = sigma / np.sqrt(size) * jax.random.normal(key, (num_tasks, size))
            run, _ = step(run, noise)
            away = run.params["w"] - centres
            exact = jnp.einsum("kij,kj->ki", matrices, away)
            return run, (
                objective(run.params["w"]),
                jnp.sum(exact**2, axis=1) + sigma**2,
            )

        keys = jax.random.split(key, rounds)
        return jax.lax.scan(body, mtlopt.Run(start, tx.init(start)), keys)[1]

    values, squares = jax.jit(jax.vmap(run))(jax.random.split(jax.random.key(0), SEEDS))
    at_start = np.einsum("kij,kj->ki", matrices, start["w"] - centres)
    largest_square = max(
        np.max(np.mean(squares, axis=0)), np.max(np.sum(at_start**2, 1)) + sigma**2
    )
    optimum = objective(best)
    variance = num_tasks * (sigma / num_tasks) ** 2  # sum_k p_k^2 sigma_k^2
    constant = variance + 2 * largest * optimum + largest_square
    steps = num_tasks * np.arange(1, rounds + 1)
    distance = np.sum((start["w"] - best) ** 2)
    bound = (
        largest / (gamma + steps) * (2 * constant / mu**2 + (gamma + 1) / 2 * distance)
    )
    gap = np.mean(values, axis=0) - optimum
    assert np.all(gap <= bound)
    # And it does converge: the gap falls like 1 / T, not to a constant.
    assert gap[-1] < 0.02 * gap[0]


# A quadratic in both blocks: loss = x' H x / 2 with x = (w_0, w_ts), noise additive.
SIZE, SIGMA = 3, 0.5
HESSIAN = np.asarray(quadratics(1, 1, 2 * SIZE, 0.2, 1.0)[0][0])
L_0 = np.linalg.norm(HESSIAN[:SIZE, :SIZE], 2)
L_TS = np.linalg.norm(HESSIAN[SIZE:, SIZE:], 2)
L_TS_0 = np.linalg.norm(HESSIAN[SIZE:, :SIZE], 2)
BLOCKS = {"trunk": "shared", "head": "a"}


def block_oracle():
    def loss(params, z, noise):
        point = jnp.concatenate([z["trunk"], params["head"]])
        return (
            0.5 * point @ HESSIAN @ point + z["noise"] + params["head"] @ noise[SIZE:]
        )

    return mtlopt.task_grad(
        {"a": loss},
        BLOCKS,
        encode=lambda p, noise: {
            "trunk": p["trunk"],
            "noise": p["trunk"] @ noise[:SIZE],
        },
    )


def alternate(rate, lengths, steps):
    """Squared gradient norms `[seeds, steps + 1]` before each step, and the losses."""
    tx = mtlopt.alternate_blocks(optax.sgd(rate), optax.sgd(rate), BLOCKS, **lengths)
    step = mtlopt.block_step(block_oracle(), tx)
    start = {"trunk": 2 * jnp.ones(SIZE), "head": -jnp.ones(SIZE)}

    def run(key):
        def body(run, key):
            point = jnp.concatenate([run.params["trunk"], run.params["head"]])
            noise = SIGMA / np.sqrt(SIZE) * jax.random.normal(key, (2 * SIZE,))
            run, _ = step(run, noise)
            gradient = HESSIAN @ point
            return run, (gradient @ gradient, 0.5 * point @ gradient)

        keys = jax.random.split(key, steps)
        return jax.lax.scan(body, mtlopt.Run(start, tx.init(start)), keys)[1]

    # One seed after the other: under vmap the cond would compute both branches.
    keys = jax.random.split(jax.random.key(0), 64)
    return jax.jit(lambda keys: jax.lax.map(run, keys))(keys)


def test_simple_alternate_training_meets_its_bound(float64):
    """Equation 14, with M_2 = 1 and M_1 the noise's variance in a block.

    The mean over i = 0..J of E |grad l(w_i)|^2 is at most M_1 (L_0 + L_ts) eta / (2 G)
    + (l(w_0) - l_low) / ((J + 1) G eta), with G = C - L_ts^0 eta; a whole iteration is
    one step of each block.
    """
    c = 0.5
    rate = 0.9 * min((1 - c) / L_0, (1 - c) / L_TS, c / (2 * L_TS_0))
    g = c - L_TS_0 * rate
    assert g >= c / 2
    squares, losses = alternate(rate, {}, steps=600)
    means = np.cumsum(np.mean(squares[:, ::2], axis=0)) / np.arange(1, 301)
    noise = SIGMA**2 * (L_0 + L_TS) * rate / (2 * g)
    bound = noise + np.mean(losses[:, 0]) / (np.arange(1, 301) * g * rate)
    assert np.all(means <= bound)
    assert means[-1] > 1e-3 * noise  # there is noise to be bounded


def test_alternate_epochs_converge_with_diminishing_steps(float64):
    """Theorem 3.5: with sum eta = oo and sum eta^2 < oo the gradient goes to zero."""
    lengths = {"shared_steps": 5, "task_steps": 5}
    squares, _ = alternate(lambda t: 2.0 / (t + 4.0), lengths, steps=2000)
    constant, _ = alternate(0.3, lengths, steps=2000)
    early, late = np.mean(squares[:, :20]), np.mean(squares[:, -20:])
    assert late < 2e-3 * early
    # A constant rate stays in its noise.
    assert np.mean(constant[:, -20:]) > 5 * late
