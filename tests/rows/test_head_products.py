"""Latent gradients of heads that begin with a product: factors instead of arrays."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import mtlopt
from mtlopt.rows.head_products import HeadProductRows
from mtlopt.rows.material import MaterialRows

TASKS, WIDTH, BATCH, OUTPUTS = ("a", "b", "c"), 24, 16, (1, 2, 3)


def make_params(dtype=np.float32, stacked=False):
    rng = np.random.default_rng(0)

    def normal(*shape):
        return jnp.asarray(rng.normal(size=shape), dtype)

    if stacked:
        return {"trunk": normal(WIDTH, WIDTH), "heads": normal(3, 2, WIDTH)}
    heads = {t: normal(WIDTH, n) for t, n in zip(TASKS, OUTPUTS, strict=True)}
    return {"trunk": normal(WIDTH, WIDTH), "heads": heads}


def make_oracle(stacked=False, **options):
    """The kernel is on the right of the latent, or, if stacked, on the left."""

    def encode(params, x):
        z = jnp.tanh(x @ params["trunk"])
        return z.T if stacked else z

    if stacked:
        return mtlopt.task_grad(
            mtlopt.stacked(
                lambda p, z, task, x: jnp.mean(jnp.sin(p["heads"] @ z + task)), 3
            ),
            {"trunk": "shared", "heads": "stacked"},
            encode=encode,
            **options,
        )

    def make_loss(task):
        return lambda p, z, x: jnp.mean(jnp.sin(z @ p["heads"][task]))

    return mtlopt.task_grad(
        {task: make_loss(task) for task in TASKS},
        {"trunk": "shared", **{f"heads/{task}": task for task in TASKS}},
        encode=encode,
        **options,
    )


def make_x(dtype=np.float32, batch=BATCH):
    x = np.random.default_rng(1).normal(size=(batch, WIDTH)) / WIDTH**0.5
    return jnp.asarray(x, dtype)


def both(grads):
    """The rows as products, and the same rows as arrays."""
    rows = grads.in_latent_space().rows()
    assert isinstance(rows, HeadProductRows)
    assert not rows.made.rows  # every leaf is a product
    return rows, MaterialRows(3, rows.leaves(), rows.pull)


@pytest.mark.slow
@pytest.mark.parametrize("stacked", [False, True])
@pytest.mark.parametrize("present", [None, [True, False, True], np.array([0, 1, 1])])
def test_operations_equal_those_of_arrays(stacked, present, dtype):
    """Scaled losses, tasks absent at trace time and at run time."""
    if present is not None:
        present = np.asarray(present, bool)
        present = present if not present[0] else jnp.asarray(present)
    basis = np.linalg.qr(np.random.default_rng(2).normal(size=(3, 3)))[0].astype(dtype)

    @jax.jit
    def found(params, x):
        grads = make_oracle(stacked)(params, x, present=present)
        rows = both(grads.scale_by(jnp.array([2.0, 0.5, 3.0])))
        weights = jnp.array([0.3, -1.2, 0.5], dtype)
        return [
            (
                r.gramian(),
                r.gramian(basis),
                r.gramian(basis[0]),
                r.norms(),
                r.mix(weights),
                r.combine(weights),
                r.product(weights),
                r.scaled_gramian(grads.present).matrix,
            )
            for r in rows
        ]

    products, arrays = found(make_params(dtype, stacked), make_x(dtype))
    rtol = 1e-5 if dtype == np.float32 else 1e-13
    for a, b in zip(jax.tree.leaves(products), jax.tree.leaves(arrays), strict=True):
        np.testing.assert_allclose(a, b, rtol=rtol, atol=rtol * np.abs(b).max())


def test_an_absent_task_may_be_not_a_number():
    params = make_params()
    params["heads"]["b"] *= jnp.nan

    @jax.jit
    def run(params, present):
        rows, _ = both(make_oracle()(params, make_x(), present=present))
        return rows.gramian(), rows.mix(jnp.array([1.0, 0.0, 1.0]))[0]

    found = run(params, jnp.array([True, False, True]))
    assert all(np.isfinite(each).all() for each in found)


@pytest.mark.parametrize("size", [1e-30, 1e30])
def test_factors_of_any_size(size):
    """A latent as short as its heads are long has ordinary gradients, and extreme."""
    params, x = make_params(), make_x()
    params["heads"] = jax.tree.map(lambda leaf: leaf * size, params["heads"])

    def encode(params, x):
        return jnp.tanh(x @ params["trunk"]) / size

    oracle = mtlopt.task_grad(
        {t: lambda p, z, x, t=t: jnp.mean(jnp.sin(z @ p["heads"][t])) for t in TASKS},
        {"trunk": "shared", **{f"heads/{task}": task for task in TASKS}},
        encode=encode,
    )

    @jax.jit
    def run(params):
        rows, _ = both(oracle(params, x))
        return rows.scaled_gramian(None), rows.leaves()

    found, leaves = run(params)
    exact = [np.asarray(leaf, np.float64).reshape(3, -1) for leaf in leaves]
    expected = sum(leaf @ leaf.T for leaf in exact)
    scales = np.asarray(found.scales, np.float64)
    np.testing.assert_allclose(
        np.asarray(found.matrix, np.float64) / scales / scales[:, None],
        expected,
        rtol=1e-4,
        atol=1e-5 * np.abs(expected).max(),
    )


def test_half_precision_products_are_summed_in_float32():
    """Nearer to float32's than arrays that are rounded entry by entry."""

    def gramian(params, x):
        return both(make_oracle()(params, x))[0].gramian()

    exact = jax.jit(gramian)(make_params(), make_x())
    found = jax.jit(gramian)(make_params(jnp.bfloat16), make_x(jnp.bfloat16))
    assert found.dtype == jnp.float32
    assert np.abs(found - exact).max() < 3e-2 * np.abs(exact).max()


def test_under_vmap(float64):
    """Over seeds, stacked heads too."""
    oracle, x = make_oracle(True), make_x(float64)
    params = make_params(float64, True)
    seeds = jax.tree.map(lambda leaf: jnp.stack([leaf, 2 * leaf]), params)

    def gramian(params):
        return both(oracle(params, x))[0].gramian()

    found = jax.jit(jax.vmap(gramian))(seeds)
    for i in range(2):
        one = jax.tree.map(lambda leaf, i=i: leaf[i], seeds)
        np.testing.assert_allclose(found[i], jax.jit(gramian)(one), rtol=1e-13)


def test_other_heads_have_arrays():
    """A head that reads the latent twice, or in a wide product: no small factors."""
    for loss in (
        lambda p, z, x: jnp.mean(jnp.sin(z @ p["heads"]["a"]) + jnp.mean(z**2)),
        lambda p, z, x: jnp.mean(jnp.tanh(z @ p["trunk_like"]) @ p["heads"]["a"]),
    ):
        params = make_params() | {"trunk_like": jnp.eye(WIDTH)}
        oracle = mtlopt.task_grad(
            {"a": loss, "b": lambda p, z, x: jnp.mean(z @ p["heads"]["b"])},
            {"trunk": "shared", "trunk_like": "a", "heads/a": "a", "heads/b": "b"},
            encode=lambda p, x: jnp.tanh(x @ p["trunk"]),
        )
        params["heads"].pop("c")
        kinds = []

        def run(params, oracle=oracle, kinds=kinds):
            kinds.append(oracle(params, make_x()).in_latent_space().rows())

        jax.eval_shape(run, params)
        assert isinstance(kinds[0], MaterialRows)


def test_tasks_with_inputs_of_their_own(float64):
    """Without a latent the rows of a small batch are products as well."""
    rng = np.random.default_rng(3)
    params = {"w": jnp.asarray(rng.normal(size=(WIDTH, WIDTH)))}
    x = jnp.asarray(rng.normal(size=(3, 2, WIDTH)))

    def loss(params, x):
        return jnp.mean(jnp.tanh(x @ params["w"]) ** 2)

    oracle = mtlopt.task_grad(
        {t: lambda p, x, i=i: loss(p, x[i]) for i, t in enumerate(TASKS)}, "shared"
    )
    weights = np.array([0.2, 0.3, -0.5])

    @jax.jit
    def run(params):
        rows = oracle(params, x).rows()
        assert isinstance(rows, HeadProductRows)
        return rows.gramian(), rows.combine(jnp.asarray(weights))[0].ravel()

    grad = jax.jit(jax.grad(loss))
    gradients = np.stack([grad(params, one)["w"].ravel() for one in x])
    gramian, found = run(params)
    np.testing.assert_allclose(gramian, gradients @ gradients.T, rtol=1e-12)
    np.testing.assert_allclose(found, weights @ gradients, rtol=1e-12)


@pytest.mark.slow
@pytest.mark.parametrize("num_tasks", [16, 40])
def test_operations_of_a_step(num_tasks):
    """MGDA-UB costs a twentieth more than the summed loss, in operations of XLA."""
    width, batch = 128, 64
    rng = np.random.default_rng(0)
    params = {
        "trunk": jnp.asarray(rng.normal(size=(3, width, width)), jnp.float32),
        "heads": jnp.asarray(rng.normal(size=(num_tasks, width)), jnp.float32),
    }

    def encode(params, x):
        for kernel in params["trunk"]:
            x = jnp.tanh(x @ kernel)
        return x

    oracle = mtlopt.task_grad(
        mtlopt.stacked(lambda p, z, t, x: jnp.mean((z @ p["heads"]) ** 2), num_tasks),
        {"trunk": "shared", "heads": "stacked"},
        encode=encode,
    )
    flops = {}
    for name in ("sum_tasks", "mgda"):
        tx = mtlopt.in_latent_space(getattr(mtlopt, name)(num_tasks))
        step = jax.jit(
            lambda p, x, tx=tx: tx.update(oracle(p, x), tx.init(p), p)[0]
        ).lower(params, jnp.ones((batch, width)))
        flops[name] = step.compile().cost_analysis()["flops"]
    assert flops["mgda"] < 1.1 * flops["sum_tasks"]


def test_a_gradient_may_be_a_constant():
    """A head on `stop_gradient(z)` has the latent gradient zero, a literal of it."""
    oracle = mtlopt.task_grad(
        {
            "a": lambda params, z: params["a"] * z,
            "probe": lambda params, z: params["probe"] * jax.lax.stop_gradient(z),
        },
        {"w": "shared", "a": "a", "probe": "probe"},
        encode=lambda params: 2 * params["w"],
    )
    params = {"w": jnp.array(1.0), "a": jnp.array(3.0), "probe": jnp.array(1.0)}
    for run in (oracle, jax.jit(oracle.__call__)):
        rows = run(params).in_latent_space().rows()
        np.testing.assert_array_equal(rows.leaves()[0], [3, 0])
