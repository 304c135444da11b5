"""One task per sample: the same gradients as from one loss for each task."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import mtlopt
from mtlopt.rows import sample_leaves
from mtlopt.rows.streamed import StreamedRows
from tests.marks import slow
from tests.problems import QUICK, ROUTES, assert_close, make_run, methods_of

TASKS = ("a", "b", "c", "d")
STEPS, BATCH, INPUTS, WIDTH = 3, 12, 3, 5
LABELS = {"encoder": "shared", "heads": "stacked"}


def make_params(seed=0):
    rng = np.random.default_rng(seed)
    return {
        "encoder": {
            "w": rng.normal(size=(INPUTS, WIDTH)),
            "b": rng.normal(size=WIDTH),
        },
        "heads": {"w": rng.normal(size=(4, WIDTH)), "b": rng.normal(size=4)},
    }


def make_batches(seed=1, tasks=(0, 1, 2, 3)):
    """`STEPS` batches `({x, y, task},)`, with a different number of samples a task."""
    rng = np.random.default_rng(seed)
    ids = np.array([*tasks, *tasks[:1] * (BATCH - len(tasks))])
    return (
        {
            "x": rng.normal(size=(STEPS, BATCH, INPUTS)),
            "y": rng.normal(size=(STEPS, BATCH)),
            "task": np.stack([rng.permutation(ids) for _ in range(STEPS)]),
        },
    )


def encode(params, sample):
    layer = params["encoder"]
    return jnp.tanh(sample["x"] @ layer["w"] + layer["b"])


def error(head, z, y):
    return (jnp.vdot(z, head["w"]) + head["b"] - y) ** 2


def loss(params, z, task, sample):
    del task
    return error(params["heads"], z, sample["y"])


def task_of(sample):
    return sample["task"]


STACKED = mtlopt.stacked(loss, 4)


def samplewise(losses=STACKED, labels=LABELS, **options):
    names = ("weight_of", "reduce")
    chosen = {name: options.pop(name) for name in names if name in options}
    return mtlopt.task_grad(
        mtlopt.samplewise(losses, task_of, **chosen),
        labels,
        encode=encode,
        tasks=TASKS,
        **options,
    )


def mean_of_task(params, z, task, batch):
    own = batch["task"] == task
    errors = jax.vmap(functools.partial(error, params["heads"]))(z, batch["y"])
    return jnp.sum(jnp.where(own, errors, 0)) / jnp.maximum(jnp.sum(own), 1)


def encode_all(params, batch):
    return jax.vmap(functools.partial(encode, params))(batch)


def taskwise(**options):
    """The same problem with one loss of the whole batch for each task."""
    head = mtlopt.stacked(mean_of_task, 4)
    return mtlopt.task_grad(head, LABELS, encode=encode_all, tasks=TASKS, **options)


def sums_of_tasks(params, batch, weights):
    """Sums of weighted losses by task, as a plain function."""
    z = encode_all(params, batch)
    heads = jax.tree.map(lambda leaf: jnp.asarray(leaf)[batch["task"]], params["heads"])
    errors = jax.vmap(error)(heads, z, batch["y"])
    own = batch["task"] == np.arange(4)[:, None]
    return jnp.sum(jnp.where(own, weights * errors, 0), axis=1)


def quick(function, oracle, *args):
    """`function(oracle, params, *args)` of the parameters, compiled."""
    return jax.jit(
        lambda params: function(oracle, params, *args), compiler_options=QUICK
    )


def first(batches):
    return jax.tree.map(lambda leaf: leaf[0], batches[0])


ALL = methods_of(4)


@functools.cache
def program(kind, names, **options):
    oracle = {"samples": samplewise, "tasks": taskwise}[kind](**options)
    return make_run(oracle, names)


@functools.cache
def updates(kind, names=ROUTES, present=(True,) * 4, **options):
    """Of a batch with samples of the tasks that are present; a mask, by tasks."""
    batches = make_batches(tasks=tuple(np.flatnonzero(present)))
    mask = np.array(present) if kind == "tasks" else None
    return program(kind, names, **options)(make_params(), batches, mask)[0]


@pytest.mark.parametrize("name", ROUTES)
def test_methods(name):
    assert_close(updates("samples")[name], updates("tasks")[name], 1e-9)


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in ALL if name not in ROUTES])
def test_other_methods(name):
    rest = tuple(name for name in ALL if name not in ROUTES)
    assert_close(updates("samples", rest)[name], updates("tasks", rest)[name], 1e-8)


THREE = (True, True, False, True)


@pytest.mark.parametrize("name", ROUTES)
def test_task_without_a_sample_is_absent(name):
    expected = updates("tasks", present=THREE)[name]
    assert_close(updates("samples", present=THREE)[name], expected, 1e-9)


IN_PARTS = ("sum_tasks", "mgda", "mgda_ub", "moco")


@pytest.mark.slow
@pytest.mark.parametrize("name", IN_PARTS)
def test_microbatches(name):
    """The parts have different numbers of samples of a task, and none of some."""
    found = updates("samples", IN_PARTS, microbatches=4)[name]
    assert_close(found, updates("tasks")[name], 1e-9)


STREAMED = ("mgda", "aligned_mtl", "mgda_ub")


@pytest.mark.parametrize("name", STREAMED)
def test_streaming(name):
    found = updates("samples", STREAMED, streaming=True)[name]
    assert_close(found, updates("tasks")[name], 1e-9)


def test_streaming_of_leaves_that_are_large_and_no_products(monkeypatch, float64):
    """The biases: columns of the Gramian by pullback and pushforward."""
    monkeypatch.setattr(sample_leaves, "_row_limit", lambda groups: 0)

    def gramian(oracle, *args):
        rows = oracle(*args).keep_rows().rows()
        assert oracle.problem.options.streaming == isinstance(rows, StreamedRows)
        return rows.gramian()

    args = make_params(), first(make_batches())
    found, expected = (
        jax.jit(functools.partial(gramian, oracle))(*args)
        for oracle in (samplewise(streaming=True), taskwise())
    )
    np.testing.assert_allclose(found, expected, rtol=1e-12)


def test_weights(float64):
    """A weight of zero is a mask: what such a sample holds does not matter."""
    params, batch = make_params(), first(make_batches())
    weights = np.random.default_rng(3).uniform(size=BATCH)
    weights[batch["task"] == 3] = 0
    weights[np.argmax(batch["task"] == 0)] = 0
    sizes = [weights[batch["task"] == task].sum() for task in range(4)]
    scales = {"mean": 1 / np.maximum(sizes, 1e-300), "sum": np.ones(4)}
    spoilt = {
        name: np.where(weights.reshape(-1, *(1,) * (leaf.ndim - 1)) == 0, np.nan, leaf)
        for name, leaf in batch.items()
        if name != "task"
    }
    spoilt = {**batch, **spoilt, "weight": weights}
    oracles = {
        reduce: samplewise(weight_of=lambda sample: sample["weight"], reduce=reduce)
        for reduce in scales
    }

    def losses(params):
        return sums_of_tasks(params, batch, weights)

    @functools.partial(jax.jit, compiler_options=QUICK)
    def run(params, batch):
        found = {}
        for reduce, oracle in oracles.items():
            grads = oracle(params, batch)
            found[reduce] = grads, grads.jacobian(), grads.total()
        return found, (losses(params), jax.jacrev(losses)(params))

    found, (sums, rows_of_sums) = run(params, spoilt)
    for reduce, (grads, jacobian, total) in found.items():
        scale = np.where(np.arange(4) == 3, 0, scales[reduce])
        np.testing.assert_array_equal(grads.present, [True, True, True, False])
        np.testing.assert_allclose(grads.losses, scale * sums, rtol=1e-13)
        rows = jax.tree.map(
            lambda leaf: leaf * scale.reshape(-1, *(1,) * (leaf.ndim - 1)), rows_of_sums
        )
        assert_close(jacobian["encoder"], rows["encoder"], 1e-12)
        expected = jax.tree.map(lambda leaf: np.sum(leaf, axis=0), rows)
        assert_close(total, expected, 1e-12)


def test_samples_of_no_task_do_not_count(float64):
    params, batch = make_params(), first(make_batches())
    tasks = np.where(batch["task"] == 1, -1, batch["task"])
    tasks[np.argmax(tasks == 0)] = 4
    kept = np.flatnonzero((tasks >= 0) & (tasks < 4))
    few = {name: leaf[kept] for name, leaf in {**batch, "task": tasks}.items()}
    oracle = samplewise()
    found, expected = (
        jax.jit(lambda *args: oracle(*args).total())(params, b)
        for b in ({**batch, "task": tasks}, few)
    )
    assert_close(found, expected, 1e-12)


SEPARATE = {
    "encoder": "shared",
    **{f"heads/{task}": task for task in TASKS},
}


def separate_params():
    params = make_params()
    heads = {
        task: jax.tree.map(lambda leaf, i=i: leaf[i], params["heads"])
        for i, task in enumerate(TASKS)
    }
    return {**params, "heads": heads}


def loss_of(task):
    """A task's own loss, which is not a number for samples of another."""
    index = TASKS.index(task)

    def one(params, z, sample):
        other = jnp.sqrt(-jnp.abs(sample["task"] - index).astype(z.dtype))
        return error(params["heads"][task], z, sample["y"]) + other - other

    return one


def test_one_loss_for_each_task(float64):
    """Of all tasks, and without one that is known to be absent."""
    params, batch = separate_params(), first(make_batches())
    oracle = samplewise({task: loss_of(task) for task in TASKS}, SEPARATE)

    def read(oracle, params, tasks):
        one = [oracle.task(task, params, batch) for task in tasks]
        every = [oracle(params, batch, present=p) for p in (None, list(THREE))]
        return (
            [(grads.losses, grads.rows().gramian(), grads.total()) for grads in every],
            [(each.losses, each.grad["encoder"]) for each in one],
        )

    found, one = quick(read, oracle, (1, "b"))(params)
    expected, same = quick(read, taskwise(), (1,))(make_params())
    for (losses, gramian, total), theirs in zip(found, expected, strict=True):
        np.testing.assert_allclose(losses, theirs[0], rtol=1e-12)
        np.testing.assert_allclose(gramian, theirs[1], atol=1e-13)
        for i, task in enumerate(TASKS):
            own = jax.tree.map(lambda leaf, i=i: leaf[i], theirs[2]["heads"])
            assert_close(total["heads"][task], own, 1e-12)
        assert_close(total["encoder"], theirs[2]["encoder"], 1e-12)
    for task in one:
        assert_close(task, same[0], 1e-12)


@pytest.mark.parametrize("one_each", [False, True])
def test_without_encode(one_each, float64):
    """One loss for each example, or for each group of them, of the whole network."""
    params, batch = make_params(), first(make_batches())
    num_tasks = BATCH if one_each else 4
    params["heads"] = jax.tree.map(lambda leaf: leaf[0], params["heads"])

    def whole(params, task, sample):
        del task
        return error(params["heads"], encode(params, sample), sample["y"])

    oracle = mtlopt.task_grad(
        mtlopt.samplewise(
            mtlopt.stacked(whole, num_tasks), None if one_each else task_of
        ),
        "shared",
    )
    every = jax.jit(jax.vmap(jax.grad(whole), (None, 0, 0)))
    rows = jax.device_get(every(params, batch["task"], batch))
    if not one_each:
        own = batch["task"] == np.arange(4)[:, None]
        own = own / own.sum(axis=1, keepdims=True)
        rows = jax.tree.map(lambda leaf: np.tensordot(own, leaf, 1), rows)

    def read(oracle, params):
        grads = oracle(params, batch)
        with pytest.raises(ValueError, match="latent space needs a latent"):
            grads.in_latent_space()
        mean = oracle.task(jnp.ones(num_tasks) / num_tasks, params, batch).grad
        return grads.jacobian(), grads.rows().gramian(), mean

    jacobian, gramian, found = quick(read, oracle)(params)
    assert_close(jacobian, rows, 1e-12)
    expected = sum(
        np.einsum("in,jn->ij", *[np.reshape(leaf, (num_tasks, -1))] * 2)
        for leaf in jax.tree.leaves(rows)
    )
    np.testing.assert_allclose(gramian, expected, rtol=1e-10)
    assert_close(found, jax.tree.map(lambda leaf: leaf.mean(axis=0), rows))


@pytest.mark.slow
def test_other_calls_of_the_oracle(float64):
    ours, theirs = samplewise(), taskwise()
    params, batch = make_params(), first(make_batches())
    moved = jax.tree.map(lambda leaf: 0.9 * leaf, params)
    z = encode_all(params, batch)
    weights = jnp.array([1.0, 0.0, 2.0, 3.0])
    every = [
        lambda oracle: oracle.losses(params, batch),
        lambda oracle: oracle(params, batch).losses_at(moved),
        lambda oracle: oracle(params, batch).losses_at(moved, z),
        lambda oracle: oracle.task(2, params, batch),
        lambda oracle: oracle.task(jnp.asarray(2), params, batch),
        lambda oracle: oracle.task(weights, params, batch),
        lambda oracle: oracle.block("shared", params, batch),
        lambda oracle: oracle.block("task", params, batch),
        lambda oracle: oracle.heads(params, z, batch),
    ]

    def read(oracle, _):
        return [call(oracle) for call in every]

    found, expected = (quick(read, oracle)(params) for oracle in (ours, theirs))
    jax.tree.map(
        functools.partial(np.testing.assert_allclose, rtol=1e-11), found, expected
    )


@pytest.mark.slow
def test_line_searches(float64):
    params, batch = make_params(), first(make_batches())
    searches = [mtlopt.backtracking(mtlopt.mgda(4))]
    searches += [mtlopt.fast_backtracking(mtlopt.mgda(4))]

    def update(oracle, params):
        grads = oracle(params, batch)
        return [tx.update(grads, tx.init(params), params)[0] for tx in searches]

    found, expected = (
        quick(update, oracle)(params) for oracle in (samplewise(), taskwise())
    )
    assert_close(found, expected, 1e-10)


@pytest.mark.slow
def test_individual_step(float64):
    """A task without a sample takes no step, whether it is alone or in a group."""
    params, batch = make_params(), first(make_batches(tasks=(0, 1, 3)))

    def read(oracle, params, present):
        found = []
        for turns, groups in ((None, None), (2, [0, 1, 1, 0])):
            tx = mtlopt.individual_optimizers(optax.adam(0.1), turns or 4, LABELS)
            step = mtlopt.individual_step(oracle, tx, turns)
            start = mtlopt.Run(params, tx.init(params))
            found.append(step(start, batch, groups=groups, present=present))
        return found

    found, expected = (
        quick(read, oracle, present)(params)
        for oracle, present in ((samplewise(), None), (taskwise(), np.array(THREE)))
    )
    for (run, output), (of_tasks, outputs) in zip(found, expected, strict=True):
        np.testing.assert_allclose(output.losses, outputs.losses, rtol=1e-11)
        assert_close(run.params, of_tasks.params, 1e-11)
        np.testing.assert_array_equal(
            run.params["heads"]["w"][2], params["heads"]["w"][2]
        )


@pytest.mark.slow
def test_individual_step_without_the_task(float64):
    params = separate_params()
    oracle = samplewise({task: loss_of(task) for task in TASKS}, SEPARATE)
    tx = mtlopt.individual_optimizers(optax.adam(0.1), 4, SEPARATE)
    batch = first(make_batches(tasks=(0, 1, 3)))
    start = mtlopt.Run(params, tx.init(params))
    found, _ = jax.jit(mtlopt.individual_step(oracle, tx))(start, batch)
    assert_close(found.params["heads"]["c"], params["heads"]["c"], 0)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(found.params))


def test_alternation_of_blocks(float64):
    params, batch = make_params(), first(make_batches(tasks=(0, 1, 3)))
    tx = mtlopt.alternate_blocks(optax.adam(0.1), optax.adam(0.1), LABELS)
    start = mtlopt.Run(params, tx.init(params))
    (found, _), (expected, _) = (
        jax.jit(mtlopt.block_step(oracle, tx))(start, batch, present=present)
        for oracle, present in ((samplewise(), None), (taskwise(), np.array(THREE)))
    )
    assert_close(found.params, expected.params, 1e-11)


def test_only_heads_of_present_tasks_move():
    params = make_params()
    optimizer = optax.chain(mtlopt.mgda(4), mtlopt.per_label(optax.adam(0.1), LABELS))
    oracle, state = samplewise(), optimizer.init(params)

    @functools.partial(jax.jit, compiler_options=QUICK)
    def step(params, batch, state):
        grads = oracle(params, batch)
        return optimizer.update(grads, state, params, active=grads.active)

    for tasks in ((0, 1, 2, 3), (0, 1, 3)):
        update, state = step(params, first(make_batches(tasks=tasks)), state)
    np.testing.assert_array_equal(np.any(update["heads"]["w"] != 0, axis=1), THREE)


def test_seeds_under_vmap(float64):
    oracle, batches = samplewise(), make_batches()[0]
    params = jax.tree.map(lambda *leaves: np.stack(leaves), *map(make_params, range(3)))

    def update(params, batch):
        grads = oracle(params, batch)
        rows = grads.rows()
        return grads.updates(rows.combine(jnp.diagonal(rows.gramian())))

    found = jax.device_get(jax.jit(jax.vmap(update))(params, batches))
    for i in range(3):
        one = [jax.tree.map(lambda leaf: leaf[i], tree) for tree in (params, batches)]
        own = jax.tree.map(lambda leaf, i=i: leaf[i], found)
        assert_close(own, jax.jit(update)(*one), 1e-12)


def test_samples_have_noise_and_aux_of_their_own():
    def noisy(params, sample, key, scale):
        noise = jax.random.normal(key)
        return params["w"] * sample * scale, noise

    oracle = mtlopt.task_grad(
        mtlopt.samplewise(
            mtlopt.stacked(lambda p, z, t, *args: (z, args[0]), 2), lambda s: s > 2
        ),
        "shared",
        encode=noisy,
        has_aux=True,
    )
    x, key = jnp.array([1, 2, 3]), jax.random.key(0)
    with pytest.raises(TypeError, match="`task_of` must return an integer, got bool"):
        jax.eval_shape(oracle, {"w": jnp.ones(())}, x, key, 2.0)
    oracle = mtlopt.task_grad(
        mtlopt.samplewise(
            mtlopt.stacked(lambda p, z, t, *args: (z, args[0]), 2), lambda s: s // 3
        ),
        "shared",
        encode=noisy,
        has_aux=True,
    )
    grads = jax.jit(oracle.__call__)({"w": jnp.ones(())}, x, key, 2.0)
    noise = [jax.random.normal(jax.random.fold_in(key, i)) for i in range(3)]
    np.testing.assert_array_equal(grads.aux.encode, noise)
    np.testing.assert_array_equal(grads.aux.tasks, x)
    np.testing.assert_array_equal(grads.losses, [3, 6])


def correlated(apart, dtype):
    """Two tasks whose gradients are the same but for a share `apart` of them."""
    rng = np.random.default_rng(0)
    x = np.repeat(rng.normal(size=(16, 40)), 2, axis=0)
    x[1::2] += apart * rng.normal(size=(16, 40))
    batch = {"x": x.astype(dtype), "task": np.arange(32) % 2}
    params = {"w": rng.normal(size=(40, 60)).astype(dtype)}
    oracle = mtlopt.task_grad(
        mtlopt.samplewise(mtlopt.stacked(lambda p, z, task, s: jnp.sum(z), 2), task_of),
        "shared",
        encode=lambda params, sample: jnp.tanh(sample["x"] @ params["w"]),
    )
    return oracle, params, batch


@pytest.mark.parametrize("apart", [slow(1e-2), 1e-3])
def test_tasks_whose_gradients_nearly_depend_on_each_other(apart, monkeypatch):
    """Aligned-MTL looks at the rows a second time: right where products are not."""
    monkeypatch.setattr(sample_leaves, "_form", lambda *sizes: "pairs")
    method, found = mtlopt.aligned_mtl(2), {}
    for dtype in (np.float32, np.float64):
        with jax.enable_x64(True):
            oracle, params, batch = correlated(apart, dtype)

            @functools.partial(jax.jit, compiler_options=QUICK)
            def step(*args, oracle=oracle):
                grads = oracle(*args)
                assert grads.rows().made.undone  # pairs of samples are compared
                return method.update(grads, state)[0]

            state = method.init(params)
            found[dtype] = np.float64(step(params, batch)["w"])
    error = np.linalg.norm(found[np.float32] - found[np.float64])
    assert error < 1e-3 * np.linalg.norm(found[np.float64])


def test_bfloat16():
    """Parameters and compute in half precision: products are summed in float32."""
    params, batch = jax.tree.map(np.asarray, (make_params(), first(make_batches())))
    params, batch = (
        jax.tree.map(np.float32, params),
        {
            **batch,
            "x": np.float32(batch["x"]),
            "y": np.float32(batch["y"]),
            "task": np.int32(batch["task"]),
        },
    )
    exact = jax.jit(lambda *args: taskwise()(*args).rows().gramian())(params, batch)

    @functools.partial(jax.jit, compiler_options=QUICK)
    def step(params, batch):
        grads = samplewise()(params, batch)
        rows = grads.rows()
        return rows.gramian(), grads.updates(rows.combine(jnp.ones(4)))

    half = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), params)
    gramian, update = step(half, {**batch, "x": batch["x"].astype(jnp.bfloat16)})
    assert gramian.dtype == jnp.float32
    np.testing.assert_allclose(gramian, exact, rtol=0, atol=0.03 * exact.max())
    assert all(leaf.dtype == jnp.bfloat16 for leaf in jax.tree.leaves(update))
