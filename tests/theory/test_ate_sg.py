"""Lemma 3.2 and Theorems 3.3, 3.5 of ATE-SG, where their constants are known.

L_0, L_ts and L_ts^0 are the Lipschitz constants of the blocks' gradients: of each in
its own parameters, and of the heads' in the trunk. The noise meets equations 4 and 5
with M_2 = 1, and M_1 its variance in a block.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax

import mtlopt

C = 0.5


def largest_rates(l_0, l_ts, l_ts_0):
    """A little below the bounds of equation 8, with M_2 = 1."""
    return 0.99 * np.minimum((1 - C) / np.array([l_0, l_ts]), min(2, C / l_ts_0))


# Lemma 3.2: one iteration, all batches. A batch is one of four examples.


def every_iteration(oracle, labels, rates, points, examples):
    """`z` [points, first, ...] and the next `w` [points, first, second, ...]."""
    optimizers = (optax.sgd(rate) for rate in rates)
    tx = mtlopt.alternate_blocks(*optimizers, labels)

    def from_point(params):
        def step(run, block):
            one = mtlopt.block_step(oracle, tx, block)
            return jax.vmap(lambda example: one(run, example)[0])(examples)

        middle = step(mtlopt.Run(params, tx.init(params)), "shared")
        return middle.params, jax.vmap(lambda run: step(run, "task"))(middle).params

    found = jax.jit(jax.vmap(from_point))(points)
    return jax.tree.map(np.asarray, found)


def test_lemma_3_2_is_sharp_for_even_curvature(float64):
    """Equations 6 and 7 with equality.

    l = L_0 |w_0|^2 / 2 + w_0' K w_ts + L_ts |w_ts|^2 / 2, and an example adds to each
    block's gradient one of +-a e_1, +-a e_2.
    """
    l_0, l_ts, a = 3.0, 0.7, 1.5
    coupling = np.array([[0.3, -0.2], [0.1, 0.4]])
    signs = np.array([[1.0, 0], [-1, 0], [0, 1], [0, -1]])
    noise = a * np.stack([signs, signs[[2, 0, 3, 1]]], axis=1)
    labels = {"trunk": "shared", "head": "a"}

    def head(params, z, noise):
        own = params["head"]
        return (
            l_ts / 2 * own @ own
            + z["trunk"] @ coupling @ own
            + z["alone"]
            + (own @ noise[1])
        )

    def encode(params, noise):
        w_0 = params["trunk"]
        return {"trunk": w_0, "alone": l_0 / 2 * w_0 @ w_0 + w_0 @ noise[0]}

    rng = np.random.default_rng(0)
    points = {"trunk": rng.normal(size=(20, 2)), "head": rng.normal(size=(20, 2))}
    rates = np.array([0.4, 1.1])
    oracle = mtlopt.task_grad({"a": head}, labels, encode=encode)
    middle, after = every_iteration(oracle, labels, rates, points, noise)

    def loss(params):
        w_0, w_ts = params["trunk"], params["head"]
        mixed = np.einsum("...i,ij,...j->...", w_0, coupling, w_ts)
        own = l_0 * np.sum(w_0**2, -1) + l_ts * np.sum(w_ts**2, -1)
        return own / 2 + mixed

    np.testing.assert_array_equal(middle["head"], points["head"][:, None].repeat(4, 1))
    gains = 1 - rates * np.array([l_0, l_ts]) / 2
    noise_0, noise_ts = rates**2 * a**2 * np.array([l_0, l_ts]) / 2
    slope = l_0 * points["trunk"] + points["head"] @ coupling.T
    sixth = loss(points) - rates[0] * gains[0] * np.sum(slope**2, -1) + noise_0
    np.testing.assert_allclose(np.mean(loss(middle), axis=1), sixth, rtol=1e-12)
    slope = l_ts * middle["head"] + middle["trunk"] @ coupling
    seventh = loss(middle) - rates[1] * gains[1] * np.sum(slope**2, -1) + noise_ts
    np.testing.assert_allclose(np.mean(loss(after), axis=2), seventh, rtol=1e-12)


def test_lemma_3_2_on_a_loss_that_is_not_convex(float64):
    """Equation 10: r^2 / (1 + r^2) of residuals r = s_k w_0' x + w_k - y_k, two heads.

    The curvature of that function is at most 2. (The proof takes E |g| <= |E g| for the
    trunk's gradient g of a batch, and Jensen's inequality is the other way round: with
    zero-mean noise at a stationary point the left is positive. So this is evidence for
    the bound, at the points tried.)
    """
    slopes = np.array([1.0, -0.6])
    rng = np.random.default_rng(1)
    x = np.array([0.6, -0.4]) + 0.04 * rng.normal(size=(4, 2))
    y = np.array([0.5, -0.2]) + 0.04 * rng.normal(size=(4, 2))
    labels = {"w0": "shared", "a": "a", "b": "b"}

    def head(task, k):
        def loss(params, z, example):
            r = slopes[k] * z + params[task] - example[2 + k]
            return r**2 / (1 + r**2)

        return loss

    oracle = mtlopt.task_grad(
        {"a": head("a", 0), "b": head("b", 1)},
        labels,
        encode=lambda params, example: params["w0"] @ example[:2],
    )
    points = {
        "w0": rng.normal(size=(60, 2)),
        **dict(zip("ab", rng.normal(size=(2, 60)), strict=True)),
    }
    longest = np.max(np.linalg.norm(x, axis=1))
    constants = (
        2 * longest**2 * slopes @ slopes,
        2.0,
        2 * longest * np.linalg.norm(slopes),
    )
    rates = 0.3 * largest_rates(*constants)
    examples = np.concatenate([x, y], axis=1)
    middle, after = every_iteration(oracle, labels, rates, points, examples)

    def residuals(params):
        heads = np.stack([params["a"], params["b"]], -1)[..., None, :]
        return (params["w0"] @ x.T)[..., None] * slopes + heads - y

    def loss(params):
        r = residuals(params)
        return np.mean(np.sum(r**2 / (1 + r**2), -1), -1)

    def gradients(params):
        """Of every example: `[..., examples, 2]` of the trunk, and of the heads."""
        r = residuals(params)
        slope = 2 * r / (1 + r**2) ** 2
        return (slope @ slopes)[..., None] * x, slope

    def variance(gradient):
        mean = np.mean(gradient, axis=-2, keepdims=True)
        return np.max(np.mean(np.sum((gradient - mean) ** 2, -1), -1))

    def square(gradient):
        return np.sum(np.mean(gradient, axis=-2) ** 2, axis=-1)

    trunk, heads = gradients(points)
    m_1 = max(variance(trunk), variance(gradients(middle)[1]))
    g = C - constants[2] * np.max(rates)
    assert g > 0
    fall = np.min(rates) * g * (square(trunk) + square(heads))
    rise = m_1 / 2 * rates**2 @ np.array(constants[:2])
    assert np.all(np.mean(loss(after), axis=(1, 2)) <= loss(points) - fall + rise)
    assert np.mean(fall > rise) > 0.1  # it promises a descent at some points


# Theorems 3.3 and 3.5: a quadratic in both blocks, x' H x / 2, in normal noise.

SIZE, SIGMA, SEEDS = 3, 0.5, 16
BASIS = np.linalg.qr(np.random.default_rng(1).normal(size=(2 * SIZE, 2 * SIZE)))[0]
HESSIAN = BASIS * np.linspace(0.2, 1.0, 2 * SIZE) @ BASIS.T
L_0 = np.linalg.norm(HESSIAN[:SIZE, :SIZE], 2)
L_TS = np.linalg.norm(HESSIAN[SIZE:, SIZE:], 2)
L_TS_0 = np.linalg.norm(HESSIAN[SIZE:, :SIZE], 2)
START = np.concatenate([2 * np.ones(SIZE), -np.ones(SIZE)])
LABELS = {"trunk": "shared", "head": "a"}
BLOCKS = [np.arange(2 * SIZE) < SIZE, np.arange(2 * SIZE) >= SIZE]


@functools.cache
def oracle():
    def loss(params, z, noise):
        point = jnp.concatenate([z["trunk"], params["head"]])
        return (
            0.5 * point @ HESSIAN @ point + z["noise"] + params["head"] @ noise[SIZE:]
        )

    def encode(params, noise):
        return {"trunk": params["trunk"], "noise": params["trunk"] @ noise[:SIZE]}

    return mtlopt.task_grad({"a": loss}, LABELS, encode=encode)


@functools.cache
def trainer(n, m):
    """Trains with schedules given as arrays, for phases of `n` and `m` steps."""

    def train(rates, noises):
        optimizers = [optax.sgd(lambda t, own=own: own[t]) for own in rates]
        tx = mtlopt.alternate_blocks(*optimizers, LABELS, shared_steps=n, task_steps=m)
        step = mtlopt.block_step(oracle(), tx)

        def body(run, noise):
            run, _ = step(run, noise)
            return run, jnp.concatenate([run.params["trunk"], run.params["head"]])

        start = {"trunk": jnp.asarray(START[:SIZE]), "head": jnp.asarray(START[SIZE:])}
        return jax.lax.scan(body, mtlopt.Run(start, tx.init(start)), noises)[1]

    # One seed after the other: under vmap the cond would compute both branches.
    return jax.jit(lambda rates, all_: jax.lax.map(lambda one: train(rates, one), all_))


def scheme(rates, n, m, steps):
    """The block that moves in each step, and with which rate: each counts its own."""
    block = (np.arange(steps) % (n + m) >= n).astype(int)
    counts = np.stack([np.cumsum(block == b) - 1 for b in (0, 1)])
    return block, np.where(block == 0, rates[0](counts[0]), rates[1](counts[1]))


def expected(rates, n, m, steps, sigma=SIGMA):
    """E |grad l|^2 before each step, by recursion of mean and covariance."""
    mean, covariance, values = START, np.zeros_like(HESSIAN), []
    for b, rate in zip(*scheme(rates, n, m, steps), strict=True):
        gradient = HESSIAN @ mean
        values.append(gradient @ gradient + np.sum(HESSIAN @ HESSIAN * covariance))
        mask = BLOCKS[b][:, None]
        move = np.eye(2 * SIZE) - rate * mask * HESSIAN
        mean, covariance = move @ mean, move @ covariance @ move.T
        covariance = covariance + np.diag(rate**2 * sigma**2 / SIZE * BLOCKS[b])
    return np.array(values)


def trained(rates, n, m, steps=400):
    """|grad l|^2 `[seeds, steps]` before each step, checked step by step by NumPy."""
    noises = np.random.default_rng(2).normal(size=(SEEDS, steps, 2 * SIZE))
    noises *= SIGMA / np.sqrt(SIZE)
    tables = tuple(np.asarray(rate(np.arange(steps)), float) for rate in rates)
    course = np.asarray(trainer(n, m)(tables, noises))
    x, squares = np.tile(START, (SEEDS, 1)), []
    for t, (b, rate) in enumerate(zip(*scheme(rates, n, m, steps), strict=True)):
        squares.append(np.sum((x @ HESSIAN) ** 2, axis=1))
        x = x - rate * BLOCKS[b] * (x @ HESSIAN + noises[:, t])
        np.testing.assert_allclose(course[:, t], x, rtol=1e-9, atol=1e-12)
    squares = np.stack(squares, axis=1)
    exact = expected(rates, n, m, steps)
    errors = np.std(squares, axis=0) / np.sqrt(SEEDS)
    assert np.mean(np.abs(np.mean(squares, axis=0) - exact) < 3 * errors + 1e-9) > 0.9
    return squares


RATES = largest_rates(L_0, L_TS, 2 * L_TS_0)
LOSS = START @ HESSIAN @ START / 2


def test_constant_rates_meet_their_bound(float64):
    """Theorem 3.3 (ii), equation 14, with G = C - L_ts^0 max(eta) >= C / 2.

    The mean over iterations of E |grad l|^2 is at most
    M_1 (L_0 eta_0^2 + L_ts eta_ts^2) / (2 G min(eta)) + (l(w_0) - l_low) / ((J + 1) G
    min(eta)); an iteration is one step of each block.
    """
    for factors in ((1, 1), (1, 0.3), (0.3, 1)):
        eta = RATES * factors
        rates = [lambda t, own=own: np.full(np.shape(t), own) for own in eta]
        trained(rates, 1, 1)
        g = C - L_TS_0 * np.max(eta)
        assert g >= C / 2
        iterations = np.arange(1, 1001)
        means = np.cumsum(expected(rates, 1, 1, 2000)[::2]) / iterations
        noise = SIGMA**2 * eta**2 @ np.array([L_0, L_TS]) / (2 * g * np.min(eta))
        assert np.all(means <= noise + LOSS / (iterations * g * np.min(eta)))
        # There is noise to be bounded: a constant rate does not get below it.
        assert means[-1] > 1e-2 * noise


def falling(factor, power):
    return [lambda t, own=own: own / (1 + factor * t) ** power for own in RATES]


def test_falling_rates_lead_to_a_stationary_point(float64):
    """Theorem 3.3 (i): sum min(eta) = oo and sum max(eta)^2 < oo.

    The sum of eta_min G |grad l|^2, of which its proof shows that it is finite, has at
    most the mean l(w_0) - l_low + M_1 / 2 sum (L_0 eta_0^2 + L_ts eta_ts^2).
    """
    rates = [falling(0.05, 1.0)[0], falling(0.05, 0.75)[1]]
    squares = trained(rates, 1, 1)
    exact = expected(rates, 1, 1, 8000)[::2]
    eta = np.stack([rate(np.arange(4000)) for rate in rates])
    g = C - L_TS_0 * np.max(eta, axis=0)
    assert np.all(g > 0)
    total = np.cumsum(np.min(eta, axis=0) * g * exact)
    noise = SIGMA**2 / 2 * np.cumsum(np.array([L_0, L_TS]) @ eta**2)
    assert np.all(total <= LOSS + noise)
    assert exact[-1] < 1e-3 * exact[0]
    # In every run the gradient comes near zero, not in the mean alone.
    assert np.all(np.min(squares, axis=1) < 1e-2 * squares[:, 0])
    # With a finite sum of the rates it stops on the way, noise or none.
    stopped = expected(falling(0.5, 2.0), 1, 1, 8000, sigma=0)
    assert stopped[-1] > 0.9 * stopped[-4000] > 1e-2 * stopped[0]


def test_phases_of_any_length_lead_there(float64):
    """Theorem 3.5, whose proof is written out for phases of equal length."""
    for n, m in ((5, 5), (6, 2)):
        rates = falling(0.05, 1.0)
        squares = trained(rates, n, m)
        assert np.all(np.min(squares, axis=1) < 1e-2 * squares[:, 0])
        exact = expected(rates, n, m, 8000)
        assert np.max(exact[-(n + m) :]) < 1e-3 * exact[0]
    # One block's rates have a finite sum (equation 19a fails): its gradient stays.
    rates = [falling(0.05, 1.0)[0], falling(0.5, 2.0)[1]]
    assert expected(rates, 5, 5, 8000, sigma=0)[-1] > 1e-2 * exact[0]


def test_a_phase_that_is_longer_than_its_block_needs_wastes_steps(float64):
    """Steps until |grad l|^2 has fallen to a millionth, without noise, by phase length.

    At a rate of 0.3 the blocks settle within some tens of steps. The library's steps
    are these recursions: see `trained`.
    """
    rates = [lambda t: np.full(np.shape(t), 0.3)] * 2

    def steps(n):
        values = expected(rates, n, n, 1200, sigma=0)
        return int(np.argmax(values < 1e-6 * values[0]))

    assert [steps(n) for n in (1, 10, 100)] == [98, 111, 509]
