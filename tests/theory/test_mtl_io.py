"""Theorem 1 of MTL-IO (Pascal et al., 2021), where its constants are known.

With `gamma = 2 L / mu - 1` and `eta_t = 2 / (mu (gamma + t))` the theorem says

    E F(w_t) - F* <= L / (gamma + t) (2 B / mu^2 + (gamma + 1) |w_1 - w*|^2 / 2),
    B = sum_k (sigma_k / N)^2 + 2 L Gamma + G^2,

where F is the mean of the N losses, Gamma the mean of F* - F_k*, G^2 bounds the mean
squared stochastic gradients, and t counts steps of one task each, from 1.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax

import mtlopt


def make_step(loss, num_tasks, mu, largest, **options):
    """The optimizer with the theorem's rate, one state for all, and the step."""
    losses = {
        f"{k}": (lambda params, *args, k=k: loss(params, k, *args))
        for k in range(num_tasks)
    }
    gamma = 2 * largest / mu - 1
    inner = optax.sgd(lambda t: 2 / (mu * (gamma + t + 1)))
    tx = mtlopt.individual_optimizers(inner, num_tasks, "shared", share_state=True)
    oracle = mtlopt.task_grad(losses, "shared")
    return tx, mtlopt.individual_step(oracle, tx, **options)


def bound(steps, mu, largest, constant, distance):
    """The right side, before the first step and after each of `steps`."""
    t = 1 + np.arange(steps + 1)
    gamma = 2 * largest / mu - 1
    return largest / (gamma + t) * (2 * constant / mu**2 + (gamma + 1) / 2 * distance)


# Three tasks in four dimensions: F_k = (w - c_k)' A_k (w - c_k) / 2, noise additive.
NUM_TASKS, SIZE, MU, LARGEST, SIGMA = 3, 4, 0.5, 2.0, 0.3
RNG = np.random.default_rng(0)
BASES = [np.linalg.qr(RNG.normal(size=(SIZE, SIZE)))[0] for _ in range(NUM_TASKS)]
MATRICES = np.stack([q * np.linspace(MU, LARGEST, SIZE) @ q.T for q in BASES])
CENTRES = RNG.normal(size=(NUM_TASKS, SIZE))
START = 3 * np.ones(SIZE)


def rate(t):
    return 2 / (MU * (2 * LARGEST / MU - 1 + t))


def expected(steps):
    """E F(w_t) and the largest E |g_k|^2 at every t, by recursion of two moments."""
    mean, second = START, np.outer(START, START)
    values, squares = [], []
    for t in range(1, steps + 2):
        shifted = [
            second - np.outer(mean, c) - np.outer(c, mean) + np.outer(c, c)
            for c in CENTRES
        ]
        pairs = list(zip(MATRICES, CENTRES, shifted, strict=True))
        values.append(np.mean([np.sum(a * m) / 2 for a, _, m in pairs]))
        squares.append(max(np.sum(a @ a * m) for a, _, m in pairs) + SIGMA**2)
        eta, means, seconds = rate(t), [], []
        for a, c, _ in pairs:
            move, shift = np.eye(SIZE) - eta * a, eta * a @ c
            cross = np.outer(move @ mean, shift)
            means.append(move @ mean + shift)
            seconds.append(
                move @ second @ move.T
                + cross
                + cross.T
                + np.outer(shift, shift)
                + eta**2 * SIGMA**2 / SIZE * np.eye(SIZE)
            )
        mean, second = np.mean(means, axis=0), np.mean(seconds, axis=0)
    return np.array(values), np.array(squares)


def test_a_drawn_task_in_each_step_meets_the_bound(float64):
    """The steps are those of the scheme that is proved; its exact means obey (5)."""
    seeds, steps = 96, 150

    def loss(params, k, noise):
        away = params - CENTRES[k]
        return away @ MATRICES[k] @ away / 2 + params @ noise[k]

    tx, step = make_step(loss, NUM_TASKS, MU, LARGEST, draws=1)

    def run(noises, keys):
        def body(run, now):
            run, output = step(run, now[0], key=now[1])
            return run, (run.params, output.losses)

        start = mtlopt.Run(jnp.asarray(START), tx.init(jnp.asarray(START)))
        return jax.lax.scan(body, start, (noises, keys))[1]

    noises = np.random.default_rng(1).normal(size=(seeds, steps, NUM_TASKS, SIZE))
    noises *= SIGMA / np.sqrt(SIZE)
    keys = jax.random.split(jax.random.key(0), (seeds, steps))
    course, losses = map(np.asarray, jax.jit(jax.vmap(run))(noises, keys))

    # A task has a loss only if it was drawn: always one, each equally often, and
    # whatever was drawn before (four standard deviations of a binomial).
    drawn = np.isfinite(losses)
    np.testing.assert_array_equal(np.sum(drawn, axis=2), 1)
    task = np.argmax(drawn, axis=2)
    pairs = np.bincount((3 * task[:, :-1] + task[:, 1:]).ravel(), minlength=9)
    deviation = np.sqrt(np.sum(pairs) / 9 * 8 / 9)
    assert np.max(np.abs(pairs - np.sum(pairs) / 9)) < 4 * deviation

    # The same steps by NumPy.
    w, every = np.tile(START, (seeds, 1)), np.arange(seeds)
    values = []
    for t in range(1, steps + 1):
        k = task[:, t - 1]
        away = w - CENTRES[k]
        gradient = np.einsum("sij,sj->si", MATRICES[k], away) + noises[every, t - 1, k]
        w = w - rate(t) * gradient
        np.testing.assert_allclose(course[:, t - 1], w, rtol=1e-9, atol=1e-12)
        away = w[:, None] - CENTRES
        values.append(np.einsum("ski,kij,skj->sk", away, MATRICES, away).mean(1) / 2)

    # Their means are the exact ones, which obey the bound for much longer.
    exact, squares = expected(3_000)
    errors = np.std(values, axis=1) / np.sqrt(seeds)
    assert np.all(np.abs(np.mean(values, axis=1) - exact[1 : steps + 1]) < 5 * errors)
    average = np.mean(MATRICES, axis=0)
    right = np.mean(np.einsum("kij,kj->ki", MATRICES, CENTRES), axis=0)
    best = np.linalg.solve(average, right)
    away = best - CENTRES
    optimum = np.mean(np.einsum("ki,kij,kj->k", away, MATRICES, away)) / 2
    constant = SIGMA**2 / NUM_TASKS + 2 * LARGEST * optimum + np.max(squares)
    limit = bound(3_000, MU, LARGEST, constant, np.sum((START - best) ** 2))
    gap = exact - optimum
    assert np.all(gap <= limit)
    # And the gap falls like 1 / t, as the bound does: t times it settles.
    settled = np.arange(1_500, 3_001) * gap[1_500:]
    assert np.ptp(settled) < 0.01 * np.max(settled)


def test_the_fixed_order_can_exceed_the_bound(float64):
    """Equation 4 takes the tasks in turn; the proof draws them, and says that it
    covers both. Here are 40 tasks (w + 1)^2 / 2 and then (w - 1)^2 / 2, twenty of each.

    L = mu = 1, so gamma = 1 and eta_1 = 1. F = (w^2 + 1) / 2, F* = Gamma = 1/2, w* = 0.
    On the way w stays between -1 and 1, so G^2 = 4 and B = 5. From w_1 = 0 the bound
    is 10 / (1 + t). The first step leads to w = -1, where nineteen others leave it: the
    gap is 1/2, and the bound 10/22.
    """
    centres = np.repeat([-1.0, 1.0], 20)

    def loss(w, k):
        return (w - centres[k]) ** 2 / 2

    tx, step = make_step(loss, 40, 1.0, 1.0)
    run, output = jax.jit(step)(mtlopt.Run(jnp.zeros(()), tx.init(jnp.zeros(()))))
    w, course, before = 0.0, [0.0], []
    for t, centre in enumerate(centres, start=1):
        before.append((w - centre) ** 2 / 2)
        w -= 2 / (1 + t) * (w - centre)
        course.append(w)
    np.testing.assert_allclose(output.losses, before, atol=1e-12)
    np.testing.assert_allclose(run.params, w, rtol=1e-12)
    assert np.max(np.abs(course)) == 1
    gap, limit = np.square(course) / 2, bound(40, 1, 1, constant=5, distance=0)
    np.testing.assert_allclose(gap[1:21], 0.5)
    assert limit[20] < 0.46
    # Drawn tasks obey it: E w^2 moves to (1 - eta)^2 E w^2 + eta^2.
    mean_square = 0.0
    for t in range(1, 41):
        mean_square = (1 - 2 / (1 + t)) ** 2 * mean_square + (2 / (1 + t)) ** 2
        assert mean_square / 2 <= limit[t]
