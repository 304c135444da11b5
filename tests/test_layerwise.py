"""Rows whose inner products are summed layer by layer, against rows that exist."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import mtlopt
from mtlopt import METHODS
from mtlopt.rows.layerwise import KeptProducts, LayerwiseRows, SummedProducts, pays
from mtlopt.rows.material import PulledRows
from tests.marks import cpu_only, slow
from tests.problems import QUICK, assert_close, in_parts, remembers, temporary_bytes

BATCH, WIDTH = 4, 24


def tasks_of(num_tasks):
    return tuple(f"t{i}" for i in range(num_tasks))


def make_params(num_tasks, depth=2, seed=0, stacked=True):
    """Dense layers of one width with biases, and one linear head for each task."""
    rng = np.random.default_rng(seed)
    layers = {
        str(i): {
            "kernel": rng.normal(size=(WIDTH, WIDTH)) / np.sqrt(WIDTH),
            "bias": rng.normal(size=WIDTH) / 10,
        }
        for i in range(depth)
    }
    heads = rng.normal(size=(num_tasks, WIDTH)) / np.sqrt(WIDTH)
    if not stacked:
        heads = dict(zip(tasks_of(num_tasks), heads, strict=True))
    return jax.device_put({"encoder": layers, "heads": heads})


def make_batch(num_tasks, seed=1):
    rng = np.random.default_rng(seed)
    x, y = rng.normal(size=(BATCH, WIDTH)), rng.normal(size=(BATCH, num_tasks))
    return jax.device_put((x, y))


def encode(params, x, y):
    for layer in params["encoder"].values():
        x = jnp.tanh(x @ layer["kernel"] + layer["bias"])
    return x


def make_oracle(num_tasks, encode=encode, stacked=True, **options):
    if stacked:

        def head(params, z, task, x, y):
            return jnp.mean((z @ params["heads"] - y[:, task]) ** 2)

        losses = mtlopt.stacked(head, num_tasks)
        labels = {"encoder": "shared", "heads": "stacked"}
    else:

        def head_of(i, task):
            def loss(params, z, x, y):
                return jnp.mean((z @ params["heads"][task] - y[:, i]) ** 2)

            return loss

        tasks = tasks_of(num_tasks)
        losses = {task: head_of(i, task) for i, task in enumerate(tasks)}
        labels = {"encoder": "shared", **{f"heads/{task}": task for task in tasks}}
    return mtlopt.task_grad(losses, labels, encode=encode, **options)


def both_ways(num_tasks, function, params, *args, **options):
    """`function(grads)` of layerwise rows and of rows that exist."""
    results = []
    for layerwise in (True, False):
        oracle = make_oracle(num_tasks, layerwise=layerwise, **options)

        def run(params, *args, oracle=oracle, layerwise=layerwise):
            grads = oracle(params, *args)
            assert isinstance(grads.rows(), LayerwiseRows) == layerwise
            return function(grads)

        results.append(jax.jit(run, compiler_options=QUICK)(params, *args))
    return results


def rotation(num_tasks):
    rng = np.random.default_rng(2)
    return rng.normal(size=(num_tasks, num_tasks))


def weights_of(num_tasks):
    return np.linspace(0.5, 2, num_tasks)


def everything(grads, with_norms=False):
    """What an aggregator may ask of the rows."""
    rows, num_tasks = grads.rows(), grads.num_tasks
    dtype = grads.losses.dtype
    basis = jnp.asarray(rotation(num_tasks), dtype)
    weights = jnp.asarray(weights_of(num_tasks), dtype)
    scaled = rows.scaled_gramian(grads.present)
    found = {
        "products": scaled.matrix / scaled.scales[:, None] / scaled.scales,
        "rotated": rows.gramian(basis),
        "update": grads.updates(rows.combine(weights)),
        "leaves": rows.leaves(),
    }
    if with_norms:
        found |= {"norms": rows.norms(), "stretched": rows.gramian(basis[0])}
    return found


def same_of_jacobian(losses, params, present=None, with_norms=False):
    """The same from the Jacobian of a function that returns all losses, in float64."""
    with jax.enable_x64(True):
        params = jax.tree.map(lambda leaf: leaf.astype(np.float64), params)
        jacobian = jax.jit(jax.jacrev(losses), compiler_options=QUICK)(params)
    leaves = [np.asarray(leaf) for leaf in jax.tree.leaves(jacobian["encoder"])]
    num_tasks = len(leaves[0])
    heads = np.einsum("iij->ij", jacobian["heads"])
    if present is not None:
        leaves = [
            np.where(present.reshape(-1, *(1,) * (leaf.ndim - 1)), leaf, 0)
            for leaf in leaves
        ]
        heads = np.where(present[:, None], heads, 0)
    matrix = np.concatenate([leaf.reshape(num_tasks, -1) for leaf in leaves], axis=1)
    basis, products = rotation(num_tasks), matrix @ matrix.T
    update = [np.tensordot(weights_of(num_tasks), leaf, 1) for leaf in leaves]
    structure = jax.tree.structure(params["encoder"])
    expected = {
        "products": products,
        "rotated": basis.T @ products @ basis,
        "update": {"encoder": structure.unflatten(update), "heads": heads},
        "leaves": leaves,
    }
    if with_norms:
        expected["norms"] = np.sqrt(np.diag(products))
        expected["stretched"] = products * basis[0] * basis[0][:, None]
    return expected


def losses_of(batch, encode=encode):
    """All losses as a function of the parameters."""

    def losses(params):
        x, y = (jnp.asarray(leaf, np.float64) for leaf in batch)
        return jnp.mean((encode(params, x, y) @ params["heads"].T - y) ** 2, axis=0)

    return losses


def layerwise(function, params, *args, encode=encode, **options):
    """`function(grads)` of layerwise rows."""
    oracle = make_oracle(len(params["heads"]), encode, layerwise=True, **options)

    @functools.partial(jax.jit, compiler_options=QUICK)
    def run(params, *args):
        grads = oracle(params, *args)
        assert isinstance(grads.rows(), LayerwiseRows)
        return function(grads)

    return run(params, *args)


# One by one, pair by pair, in a loop.
FEW_OR_MANY = pytest.mark.parametrize("num_tasks", [slow(3), 12])


@pytest.mark.parametrize(
    ("num_tasks", "precision"),
    [(2, 32), slow(3, 32), (6, 32), slow(12, 32), slow(2, 64), (3, 64), (12, 64)],
)
def test_equal_to_rows(num_tasks, precision):
    with jax.enable_x64(precision == 64):
        params, batch = make_params(num_tasks), make_batch(num_tasks)
        function = functools.partial(everything, with_norms=True)
        found = layerwise(function, params, *batch)
        expected = same_of_jacobian(losses_of(batch), params, with_norms=True)
        assert found["products"].dtype == np.dtype(f"float{precision}")
        assert_close(found, expected, 1e-6 if precision == 32 else 1e-12)


@pytest.mark.slow
@pytest.mark.parametrize("stacked", [True, False])
@pytest.mark.parametrize("batching", ["unroll", "vmap", "map", 4])
def test_equal_to_rows_however_tasks_are_run(batching, stacked, float64):
    params, batch = make_params(12, stacked=stacked), make_batch(12)
    options = {"batching": batching, "stacked": stacked}
    found, expected = both_ways(12, everything, params, *batch, **options)
    assert_close(found, expected, 1e-12)


def stacked_layers(layer):
    """An encoder whose layers lie in one leaf each."""

    def encode(params, x, y):
        return jax.lax.scan(layer, x, params["encoder"])[0]

    return encode


def dense(x, params):
    return jnp.tanh(x @ params["kernel"] + params["bias"]), None


def recomputed(params, x, y):
    for layer in params["encoder"].values():
        x = jax.checkpoint(dense)(x, layer)[0]
    return x


def tied(params, x, y):
    first, second, third = params["encoder"].values()
    return dense(dense(dense(dense(x, first)[0], second)[0], first)[0], third)[0]


def under_vmap(params, x, y):
    def one(x):
        for layer in params["encoder"].values():
            x = jnp.tanh(layer["kernel"] @ x + layer["bias"])
        return x

    return jax.vmap(one)(x)


@jax.custom_jvp
def doubled(x, kernel):
    return x @ kernel


@doubled.defjvp
def _doubled_jvp(primals, tangents):
    (x, kernel), (dx, dkernel) = primals, tangents
    return x @ kernel, 2 * (dx @ kernel + x @ dkernel)


@jax.custom_jvp
def clipped(x):
    return jnp.clip(x, -0.1, 0.1)


clipped.defjvp(lambda primals, tangents: (clipped(*primals), tangents[0]))


def with_rules(params, x, y):
    first, second, third = params["encoder"].values()
    x = clipped(doubled(x, first["kernel"]) + first["bias"])
    return dense(doubled(clipped(dense(x, second)[0]), third["kernel"]), first)[0]


@pytest.mark.parametrize(
    ("encode", "num_tasks"),
    [
        (recomputed, 12),
        slow(recomputed, 3),
        slow(tied, 12),
        (tied, 3),
        slow(under_vmap, 12),
        slow(under_vmap, 3),
        slow(with_rules, 12),
        (with_rules, 3),
    ],
)
def test_equal_to_rows_for_other_encoders(encode, num_tasks, float64):
    params, batch = make_params(num_tasks, depth=3), make_batch(num_tasks)
    found = layerwise(everything, params, *batch, encode=encode)
    assert_close(found, same_of_jacobian(losses_of(batch, encode), params), 1e-12)


@pytest.mark.parametrize(
    ("layer", "num_tasks"),
    [
        (dense, 3),
        slow(dense, 12),
        slow(jax.checkpoint(dense), 3),
        (jax.checkpoint(dense), 12),
    ],
)
def test_equal_to_rows_for_layers_in_a_loop(layer, num_tasks, float64):
    params, batch = make_params(num_tasks, depth=3), make_batch(num_tasks)
    layers = params["encoder"].values()
    stack = jax.tree.map(lambda *leaves: np.stack(leaves), *layers)
    params = {**params, "encoder": stack}
    encode = stacked_layers(layer)
    found = layerwise(everything, params, *batch, encode=encode)
    assert_close(found, same_of_jacobian(losses_of(batch, encode), params), 1e-12)


@FEW_OR_MANY
def test_one_function_that_returns_all_losses(num_tasks, float64):
    def losses(params, x, y):
        return jnp.mean((encode(params, x, y) @ params["heads"].T - y) ** 2, axis=0)

    params, batch = make_params(num_tasks), make_batch(num_tasks)
    tasks = tasks_of(num_tasks)
    oracle = mtlopt.task_grad(losses, "shared", tasks=tasks, layerwise=True)

    @functools.partial(jax.jit, compiler_options=QUICK)
    def run(params, *batch):
        rows = oracle(params, *batch).rows()
        assert isinstance(rows, LayerwiseRows)
        weights = jnp.asarray(weights_of(num_tasks))
        return rows.gramian(), rows.combine(weights), rows.leaves()

    rows = jax.jit(jax.jacrev(losses), compiler_options=QUICK)(params, *batch)
    leaves = [np.asarray(leaf) for leaf in jax.tree.leaves(rows)]
    matrix = np.concatenate([leaf.reshape(num_tasks, -1) for leaf in leaves], axis=1)
    combined = [np.tensordot(weights_of(num_tasks), leaf, 1) for leaf in leaves]
    assert_close(run(params, *batch), (matrix @ matrix.T, combined, leaves), 1e-12)


@pytest.mark.parametrize(
    ("known", "num_tasks"), [(True, 12), slow(True, 3), slow(False, 12), (False, 3)]
)
def test_absent_tasks_may_be_nan(known, num_tasks, float64):
    """And nothing of them reaches the others."""
    params, batch = make_params(num_tasks), make_batch(num_tasks)
    x, y = batch[0], np.where(np.arange(num_tasks) == 1, np.nan, batch[1])
    present, oracle = np.arange(num_tasks) != 1, make_oracle(num_tasks, layerwise=True)

    @functools.partial(jax.jit, compiler_options=QUICK)
    def run(params, mask):
        grads = oracle(params, x, y, present=present if known else mask)
        assert isinstance(grads.rows(), LayerwiseRows)
        return everything(grads, with_norms=True)

    expected = same_of_jacobian(losses_of(batch), params, present, with_norms=True)
    assert_close(run(params, present), expected, 1e-12)


@pytest.mark.slow
def test_seeds_may_be_mapped_over(float64):
    batch = make_batch(12)
    params = jax.tree.map(
        lambda *leaves: jnp.stack(leaves), *[make_params(12, seed=s) for s in range(2)]
    )

    def run(layerwise):
        oracle = make_oracle(12, layerwise=layerwise)
        return jax.vmap(lambda params: everything(oracle(params, *batch)))(params)

    assert_close(run(True), run(False), 1e-12)


@pytest.mark.parametrize(
    ("num_tasks", "size"), [(3, 1e-25), slow(3, 1e15), slow(12, 1e-25), (12, 1e15)]
)
def test_norms_whose_squares_are_no_numbers(num_tasks, size):
    """In float32, and with inputs or losses that are so small or large."""
    params, (x, y) = make_params(num_tasks), make_batch(num_tasks)

    def function(grads):
        grads = grads.scale_by(jnp.full(num_tasks, size))
        scaled = grads.rows().scaled_gramian(None)
        norms = jnp.sqrt(jnp.diagonal(scaled.matrix)) / scaled.scales
        return norms / size, grads.rows().norms() / size

    found, expected = both_ways(num_tasks, function, params, x, y)
    assert_close(found, expected, 3e-6)
    assert np.all(np.array(found[0]) > 0)


def half(params, x, y):
    cast = functools.partial(jax.tree.map, lambda leaf: leaf.astype(jnp.bfloat16))
    return encode(cast(params), cast(x), y).astype(jnp.float32)


@pytest.mark.parametrize(
    ("kind", "num_tasks"),
    [("compute", 3), slow("compute", 12), slow("params", 3), slow("params", 12)],
)
def test_bfloat16_is_that_of_rows(kind, num_tasks):
    """Up to the rounding of rows, entry by entry, which factors do not have."""
    params, batch = make_params(num_tasks), make_batch(num_tasks)
    if kind == "params":
        cast = functools.partial(jax.tree.map, lambda leaf: leaf.astype(jnp.bfloat16))
        params = {**params, "encoder": cast(params["encoder"])}

    def function(grads):
        rows = grads.rows()
        products = rows.scaled_gramian(None).matrix
        return products, rows.combine(jnp.ones(num_tasks))

    def run(params, encode):
        return both_ways(num_tasks, function, params, *batch, encode=encode)

    (found, step), (rows, rows_step) = jax.device_get(run(params, half))
    assert np.max(np.abs(found - rows)) <= 1e-2 * np.max(np.abs(rows))
    assert found.dtype == jnp.float32
    assert [leaf.dtype for leaf in step] == [leaf.dtype for leaf in rows_step]
    for left, right in zip(step, rows_step, strict=True):
        assert np.max(np.abs(left - right)) <= 2e-2 * np.max(np.abs(right))


@pytest.mark.slow
@pytest.mark.parametrize("num_tasks", [2, 3, 12])
@pytest.mark.parametrize("dtype", [np.float32, np.float64], ids=["float32", "float64"])
def test_updates_of_every_method(num_tasks, dtype):
    """A few programs: methods of one program share their rows."""
    names = [n for n in METHODS if METHODS[n].min_tasks <= num_tasks]
    labels = {"encoder": "shared", "heads": "stacked"}

    def updates_of(names, layerwise):
        oracle = make_oracle(num_tasks, layerwise=layerwise)

        @functools.partial(jax.jit, compiler_options=QUICK)
        def updates(params):
            grads, found = oracle(params, *batch), {}
            for name in names:
                method = METHODS[name].make(num_tasks, labels=labels)
                state = method.init(params)
                found[name], state = method.update(grads, state, params)
                if remembers(state):
                    found[name], _ = method.update(grads, state, params)
            return found

        return updates(params)

    with jax.enable_x64(dtype == np.float64):
        params, batch = make_params(num_tasks), make_batch(num_tasks)
        for some in in_parts(names, 5):
            found, expected = (updates_of(some, each) for each in (True, False))
            for name in some:
                tolerance = 1e-4 if dtype == np.float32 else 1e-9
                assert_close(found[name], expected[name], tolerance)


@pytest.mark.slow
@pytest.mark.parametrize("num_tasks", [3, slow(12)])
@pytest.mark.parametrize(
    "name", [slow("db_mtl"), "aligned_mtl", slow("excess_mtl"), slow("gradnorm")]
)
def test_methods_on_rows_that_are_kept(name, num_tasks, float64):
    """Weightings and `leave_out_not_finite` keep what the aggregator reads again."""
    batch, params = make_batch(num_tasks), make_params(num_tasks)
    labels = {"encoder": "shared", "heads": "stacked"}
    method = METHODS[name].make(num_tasks, labels=labels)

    def function(grads):
        state = method.init(params)
        kept = grads.leave_out_not_finite()
        return method.update(kept.keep_rows(), state, params)[0]

    found, expected = both_ways(num_tasks, function, params, *batch)
    assert_close(found, expected, 1e-9)


@FEW_OR_MANY
def test_kept_rows_are_those_of_the_scaled_losses(num_tasks, float64):
    params, batch = make_params(num_tasks), make_batch(num_tasks)
    factors = np.linspace(0.5, 2, num_tasks)

    def function(grads):
        kept = grads.keep_rows().scale_by(jnp.asarray(factors))
        assert not isinstance(kept.keep_rows(entries=True).rows(), LayerwiseRows)
        return everything(kept), kept.total(), kept.jacobian()["encoder"]

    losses = losses_of(batch)
    expected = same_of_jacobian(lambda params: factors * losses(params), params)
    rows = jax.tree.structure(params["encoder"]).unflatten(expected["leaves"])
    total = jax.tree.map(lambda leaf: leaf.sum(axis=0), rows)
    total = {**expected["update"], "encoder": total}
    found = layerwise(function, params, *batch)
    assert_close(found, (expected, total, rows), 1e-12)


@pytest.mark.slow
@pytest.mark.parametrize("num_tasks", [3, 12])
def test_tasks_may_be_hidden_after_rows_are_kept(num_tasks, float64):
    params, batch = make_params(num_tasks), make_batch(num_tasks)

    def function(grads):
        kept = grads.keep_rows().without_rows(np.arange(num_tasks) == 1)
        return everything(kept), grads.without_rows(np.arange(num_tasks) == 1).total()

    found, expected = both_ways(num_tasks, function, params, *batch)
    assert_close(found, expected, 1e-12)


def test_which_rows_an_oracle_makes():
    def kind(num_tasks=12, **options):
        oracle = make_oracle(num_tasks, **options)
        kinds, args = [], (make_params(num_tasks), *make_batch(num_tasks))
        jax.eval_shape(lambda *args: kinds.append(type(oracle(*args).rows())), *args)
        return kinds[0]

    assert kind(layerwise=True) == SummedProducts
    assert kind(3, layerwise=True) == KeptProducts
    assert kind(layerwise=False) == PulledRows
    assert kind(streaming=True) not in (SummedProducts, KeptProducts)
    assert kind(1, layerwise=True) == PulledRows
    alone = jax.default_backend() == "cpu" and jax.device_count() == 1
    assert kind() == (SummedProducts if alone else PulledRows)


def test_wrong_options():
    with pytest.raises(ValueError, match="`layerwise` must be"):
        make_oracle(2, layerwise="always")
    with pytest.raises(ValueError, match="`layerwise` must be False or 'auto'"):
        make_oracle(2, layerwise=True, streaming=True)


@pytest.mark.parametrize(
    ("num_tasks", "sizes", "expected"),
    [
        (2, (16, 512, 512), True),  # 2 * 31/32 against 1 + 1/32
        (2, (256, 512, 512), False),  # 1 against 1.5
        (3, (256, 512, 512), True),  # 1.5 against 1.5
        (40, (256, 128, 512), False),  # more positions than inputs
        (40, (16, 512, 1), False),  # 38.75 against 17 is more, a head of one output not
    ],
)
def test_where_it_pays(num_tasks, sizes, expected):
    positions, inputs, outputs = sizes
    rows = num_tasks * positions * inputs * outputs
    undone = positions**2 * (num_tasks * outputs + inputs)
    undone += positions * inputs * outputs
    assert pays(num_tasks, *sizes) == (undone <= rows)
    if outputs > 1:
        assert pays(num_tasks, *sizes) == expected


@pytest.mark.slow
def test_explanation_of_a_step():
    params, batch = make_params(12, depth=3), make_batch(12)
    plan = make_oracle(12, layerwise=True).explain(params, *batch)
    ways = {leaf.path: leaf.layerwise for leaf in plan.leaves}
    assert ways == {
        f"encoder/{i}/{name}": name == "kernel"
        for i in range(3)
        for name in ("bias", "kernel")
    }
    assert plan.leaves[1].sizes == (BATCH, WIDTH, WIDTH)
    assert plan.temporary_bytes > 0
    assert "encoder/0/kernel" in str(plan)
    shapes = jax.eval_shape(lambda: (params, *batch))
    method = mtlopt.mgda(12)
    plan = make_oracle(12, layerwise=False).explain(*shapes, method=method)
    assert {leaf.reason for leaf in plan.leaves if leaf.sizes} == {"layerwise=False"}
    assert not any(leaf.layerwise for leaf in plan.leaves)
    losses = {t: lambda p, x, y: jnp.sum(p["encoder"]["0"]["bias"]) for t in "ab"}
    plan = mtlopt.task_grad(losses, "shared").explain(params, *batch)
    assert {leaf.reason for leaf in plan.leaves} == {"tasks have no pullback in common"}
    plan = mtlopt.task_grad(
        mtlopt.stacked(lambda params, z, task, x: jnp.mean(z) * task, 12),
        "shared",
        encode=lambda params, x: x @ params,
        layerwise=True,
        microbatches=2,
    ).explain(np.ones((8, 8), np.float32), np.ones((4, 8), np.float32))
    assert plan.leaves[0].reason == "microbatches: rows are added up"


def wide_problem(num_tasks, batch_size, width, depth=3):
    """Kernels alone, so that operations are those of the formula."""

    def zeros(*shape):
        return np.zeros(shape, np.float32)

    params = {
        "encoder": [zeros(width, width)] * depth,
        "heads": zeros(num_tasks, width),
    }
    batch = zeros(batch_size, width), zeros(batch_size, num_tasks)

    def encode(params, x, y):
        for kernel in params["encoder"]:
            x = jnp.maximum(x @ kernel, 0)
        return x

    return params, batch, encode


@cpu_only
@pytest.mark.parametrize(
    ("num_tasks", "batch_size"), [(3, 32), slow(8, 32), slow(8, 64)]
)
def test_operations_fall_as_the_formula_says(num_tasks, batch_size):
    """Of Gramian and combination, in products `[R, m] x [m, n]` of one layer."""
    width, depth = 256, 3
    params, batch, encode = wide_problem(num_tasks, batch_size, width, depth)

    def operations(layerwise):
        oracle = make_oracle(num_tasks, encode, layerwise=layerwise)

        def step(params, *batch):
            grads = oracle(params, *batch)
            rows = grads.rows()
            weights = jnp.sum(rows.gramian(), axis=0)
            return rows.combine(weights)

        program = jax.jit(step).lower(params, *batch).compile()
        return program.cost_analysis()["flops"]

    share, unit = batch_size / width, 2 * batch_size * width**2
    # Rows: T products; pairs of products or all; one combination, one number each.
    pairs = num_tasks * (num_tasks + 1) / 2 if num_tasks <= 4 else num_tasks**2
    rows = num_tasks * unit + pairs * 2 * width**2 + 2 * num_tasks * width**2
    undone = unit * (num_tasks * share + share + 1)
    undone += (pairs + num_tasks) * 2 * batch_size * width
    saved = depth * (rows - undone)
    assert saved > 0
    measured = operations(False) - operations(True)
    assert abs(measured - saved) <= 0.05 * saved


@pytest.mark.slow
@cpu_only
def test_memory_of_many_tasks():
    """Three arrays of cotangents: the latent's and two layers'. Rows are T kernels."""
    num_tasks, batch_size, width = 40, 16, 256
    params, batch, encode = wide_problem(num_tasks, batch_size, width)

    def update(layerwise, name):
        oracle = make_oracle(num_tasks, encode, layerwise=layerwise)
        method = METHODS[name].make(num_tasks)

        def step(params, *batch):
            state = method.init(params)
            return method.update(oracle(params, *batch), state, params)[0]

        return temporary_bytes(step, params, *batch)

    cotangents = 4 * num_tasks * batch_size * width
    for name in ("mgda", "aligned_mtl"):
        assert update(True, name) <= 3.7 * cotangents
    assert update(False, "mgda") >= 3 * 4 * num_tasks * width**2
