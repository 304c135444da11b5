"""The theorems of Aligned-MTL (Senushkin et al.): what holds, and what does not."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import mtlopt


def decompose(rows):
    """Left vectors `U`, singular values and right vectors `V` of the matrix whose
    columns are the gradients."""
    u, s, vt = np.linalg.svd(np.swapaxes(rows, -1, -2), full_matrices=False)
    return u, s, np.swapaxes(vt, -1, -2)


def aligned(rows, preference):
    """Definition 2: sigma_min U V' w."""
    u, s, v = decompose(rows)
    return np.min(s) * u @ (v.T @ preference)


def descend(oracle, aggregator, start, rate, steps):
    """Points before each step, gradients `[steps, tasks, P]`, directions, losses."""

    def body(point, _):
        grads = oracle(point)
        direction, _ = aggregator.update(grads, aggregator.init(point))
        rows = jnp.stack(oracle(point).rows().leaves()[0])
        return point - rate * direction, (point, rows, direction, grads.losses)

    run = jax.jit(lambda point: jax.lax.scan(body, point, length=steps)[1])
    return [np.asarray(leaf) for leaf in run(start)]


# Theorem 1


def test_theorem_1_each_step_lowers_the_total_loss(float64):
    """Equation 16: with a step of 1 / Lambda the mean loss falls by at least
    sigma_R^2 / (2 Lambda) sum_r (2 sigma_r / sigma_R - 1) (w' v_r)^2.

    Twelve problems of three losses x' A_k x / 2 + 0.3 sum sin(x), which are smooth but
    not convex: A_k is diagonal, with entries from -0.1 to 10, around centres c_k.
    """
    rng, size = np.random.default_rng(0), 6
    curvatures = rng.uniform(-0.1, 10, size=(12, 3, size))
    centres = rng.normal(size=(12, 3, size))
    smooth = np.max(np.abs(np.mean(curvatures, axis=1)), axis=1) + 0.3

    def make_loss(k):
        def loss(x, curvatures, centres):
            away = x - centres[k]
            return away @ (curvatures[k] * away) / 2 + 0.3 * jnp.sum(jnp.sin(x))

        return loss

    oracle = mtlopt.task_grad({f"{k}": make_loss(k) for k in range(3)}, "shared")
    aggregator = mtlopt.aligned_mtl(3)

    def run(x, curvatures, centres, rate):
        def body(x, _):
            grads = oracle(x, curvatures, centres)
            direction, _ = aggregator.update(grads, aggregator.init(x))
            return x - rate * direction, x

        return jax.lax.scan(body, x, length=40)[1]

    starts = 3 * rng.normal(size=(12, size))
    args = starts, curvatures, centres, 1 / smooth
    points = np.asarray(jax.jit(jax.vmap(run))(*args))
    away = points[:, :, None] - centres[:, None]
    scaled = curvatures[:, None] * away
    rows = scaled + 0.3 * np.cos(points)[:, :, None]
    losses = np.mean(np.sum(away * scaled, -1) / 2, -1) + 0.3 * np.sum(
        np.sin(points), -1
    )
    _, s, v = decompose(rows)
    shares = np.mean(v, axis=-2) ** 2  # (w' v_r)^2 with w = 1/3
    least = s[..., -1:]
    promised = np.sum((2 * s / least - 1) * shares * least**2, -1) / 2 / smooth[:, None]
    fallen = losses[:, :-1] - losses[:, 1:]
    assert np.all(fallen >= promised[:, :-1] - 1e-9)
    assert np.median(promised / np.abs(losses)) > 1e-6  # something is promised


def test_theorem_1_needs_the_dominance_bounded_on_the_way(float64):
    """It bounds the initial dominance rate; its proof needs the bound in every step.

    Otherwise |grad L| need not go to zero.

    Here x' diag(1, 4) x / 2 is around (2, 0) and x' diag(4, 1) x / 2 around (0, 1). At
    the start, (3, 3), the rate is below 1.3. The steps lead to a point of the Pareto
    front, where it grows without bound, and shrink to nothing. The total loss stays
    above its minimum, 1, at (0.4, 0.2).
    """
    curvatures, centres = np.array([[1.0, 4], [4, 1]]), np.array([[2.0, 0], [0, 1]])

    def make_loss(k):
        return lambda x: curvatures[k] @ (x - centres[k]) ** 2 / 2

    oracle = mtlopt.task_grad({f"{k}": make_loss(k) for k in range(2)}, "shared")
    start = np.array([3.0, 3.0])
    points, rows, directions, losses = descend(
        oracle, mtlopt.aligned_mtl(2), start, 1 / 4, 21
    )
    x = np.array([3.0, 3.0])
    for point, own in zip(points, rows, strict=True):
        np.testing.assert_allclose(point, x, rtol=1e-9)
        np.testing.assert_allclose(own, curvatures * (point - centres), rtol=1e-12)
        x = x - aligned(curvatures * (x - centres), np.ones(2) / 2) / 4
    _, s, _ = decompose(rows)
    dominance, total = s[:, 0] / s[:, 1], np.mean(losses, axis=1)
    assert dominance[0] < 1.3
    assert dominance[-1] > 1e7
    assert np.all(np.diff(total) <= 0)
    assert np.linalg.norm(directions[-1]) < 1e-6
    assert np.linalg.norm(np.mean(rows[-1], axis=0)) > 0.3
    assert total[-1] > 1.02
    away = np.array([0.4, 0.2]) - centres
    np.testing.assert_allclose(np.sum(curvatures * away, axis=0), 0, atol=1e-12)
    np.testing.assert_allclose(np.sum(curvatures * away**2) / 4, 1)


# Theorem 2

GRADIENTS = np.array([[5.0, 2.0], [2.0, 1.0]])  # of the latent, one row a task
ENCODER = np.array([[2.0, 2.0], [-2.0, -3.0]])
W = np.ones(2) / 2


def logistic_oracle(gradients, encoder):
    """Two logistic losses log(1 + exp(g_k' z)) of a linear latent z = E theta."""
    losses = {
        f"{k}": lambda params, z, k=k: jax.nn.softplus(jnp.asarray(gradients[k]) @ z)
        for k in range(2)
    }
    return mtlopt.task_grad(
        losses, "shared", encode=lambda params: jnp.asarray(encoder) @ params
    )


def test_theorem_2_both_losses_may_rise_in_every_step(float64):
    """Z-aligned steps from theta = 0 raise both losses, whatever the step size.

    Both losses are convex, smooth and above zero; E is constant and has full rank. With
    s_k the slope of log(1 + exp(u)) at u_k = g_k' z and r = s_2 / s_1, the polar factor
    of (s_1 g_1, s_2 g_2) maps (1, 1) to a positive multiple of (3 + 3 r, 7 - r). With
    E E' = (8, -10; -10, 13) a step raises u_1 by a positive multiple of 108 - 84 r, and
    u_2 by the same multiple of 31 - 25 r. For r <= 1 both are positive and the first is
    the larger. At zero r = 1, so u_1 >= u_2 >= 0 and 1/2 <= r <= 1 for ever. There the
    multiple is at least a constant times the step size: both losses go to infinity.
    """
    np.testing.assert_array_equal(ENCODER @ ENCODER.T, [[8, -10], [-10, 13]])
    for r in np.linspace(0.5, 1, 11):
        rows = GRADIENTS * np.array([[1.0], [r]])
        moved = -GRADIENTS @ ENCODER @ ENCODER.T @ aligned(rows, W)
        multiple = moved[0] / (108 - 84 * r)
        assert multiple > 0.005
        np.testing.assert_allclose(moved[1], multiple * (31 - 25 * r))
    # The curvature of a loss is at most |E' g|^2 / 4, of (6, 4) and (2, 1).
    np.testing.assert_array_equal(GRADIENTS @ ENCODER, [[6, 4], [2, 1]])
    largest = 13.0
    oracle, start = logistic_oracle(GRADIENTS, ENCODER), np.zeros(2)
    latent = mtlopt.in_latent_space(mtlopt.aligned_mtl(2))
    for rate in (1 / largest, 1e-3 / largest):
        points, _, directions, losses = descend(oracle, latent, start, rate, 400)
        for point, direction in zip(points[::40], directions[::40], strict=True):
            slope = 1 / (1 + np.exp(-GRADIENTS @ ENCODER @ point))
            own = aligned(slope[:, None] * GRADIENTS, W)
            np.testing.assert_allclose(direction, ENCODER.T @ own, atol=1e-12)
        assert np.all(np.diff(losses, axis=0) > 0)
        # What the theorem bounds: the dominance rate, and the condition of J.
        slopes = 1 / (1 + np.exp(-points @ (GRADIENTS @ ENCODER).T))
        assert np.max(np.linalg.cond(slopes[:, :, None] * GRADIENTS)) < 61
    assert np.linalg.cond(ENCODER) < 10.5
    # In parameter space, and by plain gradient descent, the mean loss falls.
    for aggregator in (mtlopt.aligned_mtl(2), mtlopt.mean_tasks(2)):
        *_, losses = descend(oracle, aggregator, start, 1 / largest, 400)
        assert np.all(np.diff(np.mean(losses, axis=1)) < 0)


def largest_turn(condition):
    """Sine of the largest angle of y and A y, for a positive A of this condition."""
    return (condition - 1) / (condition + 1)


def turning(condition, sign):
    """Vectors and values of the matrix that turns (1, 1) farthest to one side."""
    angle = np.pi / 4 - sign * np.arctan(condition**0.5)
    basis = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    return basis, np.array([condition, 1.0])


@pytest.mark.parametrize(("dominance", "condition"), [(10.0, 2.0), (1.4, 12.5)])
def test_theorem_2_its_descent_inequality_fails_as_early_as_it_can(
    dominance, condition, float64
):
    """<grad L, d> >= 0 if (D - 1) / (D + 1) <= 2 K / (K^2 + 1), and not beyond.

    D is the dominance rate of the latent gradients, K the condition of J. With the
    polar form G_Z = Q P the product is sigma (Q P w)' J J' (Q w). P turns w, and J J'
    turns Q w, by angles of sines up to (D - 1) / (D + 1) and (K^2 - 1) / (K^2 + 1)
    (Wielandt); if they make less than a right angle, the product is positive. Two
    matrices that turn (1, 1) to opposite sides show the other half. The losses here are
    convex, so that the total loss rises at every step size. Of later steps nothing is
    said.
    """
    beyond = 2 * condition / (condition**2 + 1)
    assert beyond < largest_turn(dominance) < 1.1 * beyond
    basis, values = turning(dominance, 1)
    rows = basis * values @ basis.T
    basis, values = turning(condition**2, -1)
    encoder = basis * np.sqrt(values)
    np.testing.assert_allclose(np.linalg.cond(rows), dominance)
    np.testing.assert_allclose(np.linalg.cond(encoder), condition)
    oracle, start = logistic_oracle(rows, encoder), np.zeros(2)
    latent = mtlopt.in_latent_space(mtlopt.aligned_mtl(2))
    _, _, (direction,), _ = descend(oracle, latent, start, 1.0, 1)
    np.testing.assert_allclose(direction, encoder.T @ aligned(rows / 2, W), rtol=1e-9)
    assert W @ rows / 2 @ encoder @ direction < -1e-3
    for rate in (1e-3, 1e-2, 0.1, 1.0, 10.0):
        z = encoder @ (start - rate * direction)
        assert np.mean(np.logaddexp(0, rows @ z)) > np.log(2)


def test_the_condition_of_descent_is_enough(float64):
    """On random problems in the plane that meet it with equality."""
    rng = np.random.default_rng(0)

    def rotations():
        angle = rng.uniform(0, 2 * np.pi, size=4000)
        c, s = np.cos(angle), np.sin(angle)
        return np.stack([np.stack([c, -s], -1), np.stack([s, c], -1)], -2)

    condition = rng.uniform(1.5, 6, size=4000)
    sine = 2 * condition / (condition**2 + 1)
    dominance, ones = (1 + sine) / (1 - sine), np.ones(4000)
    u, v, p = rotations(), rotations(), rotations()
    polar = u @ np.swapaxes(v, 1, 2)
    gradients = (u * np.stack([dominance, ones], -1)[:, None]) @ np.swapaxes(v, 1, 2)
    product = (p * np.stack([condition**2, ones], -1)[:, None]) @ np.swapaxes(p, 1, 2)
    w = rng.uniform(size=(4000, 2, 1))
    left, right = gradients @ w, product @ polar @ w
    cosine = np.sum(left * right, axis=(1, 2)) / np.linalg.norm(left, axis=(1, 2))
    cosine /= np.linalg.norm(right, axis=(1, 2))
    assert 0 < np.min(cosine) < 0.02


# Theorem 3


def test_theorem_3_weights_may_be_negative(float64):
    """Then its mu, and with it the step size, need not be positive.

    At zero, 2 |x - c_1|^2 and |x - c_2|^2 / 2 with gradients (5, 2) and (2, 1) have the
    weights sigma_min (-1/2, 3/2), because that matrix is its own polar factor's: so
    mu = sigma_min (-4/2 + 3/2) < 0, and the theorem takes a square root of it.
    """
    sigma = 3 - 8**0.5
    weights = jax.jit(mtlopt.aligned_mtl_weights)(GRADIENTS @ GRADIENTS.T)
    weights = np.array(weights)
    np.testing.assert_allclose(weights, [-sigma / 2, 3 * sigma / 2], rtol=1e-9)
    assert weights @ np.array([4.0, 1.0]) < 0
    assert weights @ np.array([1.0, 4.0]) > 0


@pytest.mark.slow
@pytest.mark.parametrize(
    ("tasks", "size", "low", "high"),
    [(2, 2, 0.10, 0.15), (5, 10, 0.04, 0.08), (8, 40, 0, 0)],
)
def test_theorem_3_how_often_a_weight_is_negative(tasks, size, low, high, float64):
    """Normal gradients: in one of eight problems of two tasks in the plane."""
    rows = np.random.default_rng(0).normal(size=(1000, tasks, size))
    _, s, v = decompose(rows)
    preference = np.mean(v, axis=-2)
    expected = np.einsum("bkr,br->bk", v, s[:, -1:] / s * preference)
    gramian = rows @ np.swapaxes(rows, 1, 2)
    found = np.array(jax.jit(jax.vmap(mtlopt.aligned_mtl_weights))(gramian))
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-8)
    assert low <= np.mean(np.min(found, axis=1) < 0) <= high


def test_theorem_3_its_bound_of_a_norm_is_that_of_a_spectral_radius():
    """Equation 36: the norm is at least 1 by the block I; the bound is below 1."""
    mu, smooth = 1.0, 4.0
    rate = 4 / (smooth**0.5 + mu**0.5) ** 2
    bound = max(abs(1 - (rate * curvature) ** 0.5) for curvature in (mu, smooth))
    assert bound < 1
    for momentum in (bound, bound**2):
        step = [(1 + momentum) * np.eye(2) - rate * np.diag([mu, smooth])]
        step = np.block(
            [[step[0], -momentum * np.eye(2)], [np.eye(2), np.zeros((2, 2))]]
        )
        assert np.linalg.norm(step, 2) > 1
    # With the square, which is Polyak's momentum, the spectral radius is the bound.
    np.testing.assert_allclose(
        np.max(np.abs(np.linalg.eigvals(step))), bound, rtol=1e-6
    )
