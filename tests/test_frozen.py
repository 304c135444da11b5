"""Leaves labelled "frozen": as if the functions closed over them."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import mtlopt
from tests.marks import cpu_only
from tests.problems import QUICK, assert_close, temporary_bytes

RNG = np.random.default_rng(0)
TASKS = ("a", "b")
X = RNG.normal(size=(4, 3))
ADAPTER = {"down": RNG.normal(size=(3, 2)), "up": RNG.normal(size=(2, 5))}
MOVING = {"lora": ADAPTER, **{task: RNG.normal(size=5) for task in TASKS}}
FROZEN = {
    "base": RNG.normal(size=(3, 5)),
    "bool": np.array([True, False, True, True, False]),
    "idle": np.float32(2.0),  # nobody reads it
    "int8": RNG.integers(-9, 9, size=(3, 5)).astype(np.int8),
}
LABELS = {"frozen": "frozen", "lora": "shared", "a": "a", "b": "b"}
STACKED = {"frozen": "frozen", "lora": "shared", "heads": "stacked"}


def encode(params, frozen, x):
    low_rank = params["lora"]["down"] @ params["lora"]["up"]
    return jnp.tanh(x @ (frozen["base"] + 0.1 * frozen["int8"] + low_rank))


def loss(head, frozen, task, z):
    error = (
        z @ head + jnp.sum(frozen["base"]) / 9 + jnp.where(frozen["bool"], z, 0) @ head
    )
    return jnp.mean(jnp.sin(error) * (1 + 3 * task))


def losses_of(params, frozen, x):
    z = encode(params, frozen, x)
    return {task: loss(params[task], frozen, i, z) for i, task in enumerate(TASKS)}


def make_oracle(kind, frozen=None, **options):
    """A problem of one shape; with `frozen` it closes over these leaves."""

    def leaves(params):
        return params["frozen"] if frozen is None else frozen

    labels = STACKED if kind == "stacked" else LABELS
    if frozen is not None:
        labels = {key: value for key, value in labels.items() if key != "frozen"}
    if kind == "vector":
        return mtlopt.task_grad(
            lambda params, x: losses_of(params, leaves(params), x),
            labels,
            tasks=TASKS,
            **options,
        )
    if kind == "independent":
        functions = {
            task: lambda params, x, task=task, i=i: loss(
                params[task], leaves(params), i, encode(params, leaves(params), x)
            )
            for i, task in enumerate(TASKS)
        }
        return mtlopt.task_grad(functions, labels, **options)
    if kind == "stacked":
        heads = mtlopt.stacked(
            lambda params, z, task, x: loss(params["heads"], leaves(params), task, z), 2
        )
    else:
        heads = {
            task: lambda params, z, x, task=task, i=i: loss(
                params[task], leaves(params), i, z
            )
            for i, task in enumerate(TASKS)
        }
    return mtlopt.task_grad(
        heads, labels, encode=lambda p, x: encode(p, leaves(p), x), **options
    )


def moving(kind):
    if kind != "stacked":
        return MOVING
    return {"lora": ADAPTER, "heads": np.stack([MOVING[task] for task in TASKS])}


def everything(oracle, params, names):
    """What every kind of caller reads."""

    def measure(params):
        grads = oracle(params, X)
        found = {
            "losses": oracle.losses(params, X),
            "task": oracle.task(1, params, X).grad,
            "group": oracle.task(jnp.array([1.0, 2.0]), params, X).grad,
            "shared": oracle.block("shared", params, X).grad,
            "heads": oracle.block("task", params, X).grad,
            "elsewhere": grads.losses_at(params),
            "rows": grads.rows().gramian(),
        }
        if grads.z is not None:
            found["given latent"] = oracle.heads(params, grads.z, X).grad
        for name in names:
            tx = mtlopt.METHODS[name].make(2, labels=oracle.labels)
            found[name] = tx.update(grads, tx.init(params), params)
        return found

    return jax.jit(measure, compiler_options=QUICK)(params)


def without_frozen(tree):
    """Drops the frozen leaves of all updates, after a look at them."""

    def drop(node):
        if not isinstance(node, dict) or "frozen" not in node:
            return node
        zeros = jax.tree.map(np.zeros_like, FROZEN)
        for found, zero in zip(
            jax.tree.leaves(node["frozen"]), jax.tree.leaves(zeros), strict=True
        ):
            assert found.dtype == zero.dtype
            np.testing.assert_array_equal(found, zero)
        return {key: value for key, value in node.items() if key != "frozen"}

    is_update = lambda node: isinstance(node, dict) and "frozen" in node  # noqa: E731
    return jax.tree.map(drop, tree, is_leaf=is_update)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("separate", {"microbatches": 2}),
        ("stacked", {"streaming": True}),
        ("vector", {}),
        ("independent", {}),
    ],
    ids=str,
)
def test_equals_closing_over_the_leaves(kind, options, float64):
    names = ["mgda_ub"] if options else ["sum_tasks", "mgda", "moco", "excess_mtl"]
    params = {**moving(kind), "frozen": FROZEN}
    found = everything(make_oracle(kind, **options), params, names)
    expected = everything(make_oracle(kind, FROZEN, **options), moving(kind), names)
    assert_close(without_frozen(found), expected, 1e-12)


def train(tx, oracle, params, steps=3, **extra_args):
    """Parameters after some steps, and the optimizer's state."""

    @functools.partial(jax.jit, compiler_options=QUICK)
    def step(params, state):
        updates, state = tx.update(oracle(params, X), state, params, **extra_args)
        return optax.apply_updates(params, updates), state

    state = tx.init(params)
    for _ in range(steps):
        params, state = step(params, state)
    return params, state


def assert_untouched(params):
    for found, before in zip(
        jax.tree.leaves(params["frozen"]), jax.tree.leaves(FROZEN), strict=True
    ):
        assert found.dtype == before.dtype
        assert np.asarray(found).tobytes() == np.asarray(before).tobytes()


ALL = {**MOVING, "frozen": FROZEN}


def test_adapters_train_as_if_alone(float64):
    """LoRA with weight decay: the base has no state and stays bit for bit."""
    adamw = optax.adamw(0.1, weight_decay=0.1)
    tx = optax.chain(mtlopt.mgda(2), mtlopt.per_label(adamw, LABELS))
    params, state = train(tx, make_oracle("separate"), ALL)
    assert_untouched(params)
    assert sorted(state[1].inner_states) == ["a", "b", "shared"]
    closed = optax.chain(
        mtlopt.mgda(2), mtlopt.per_label(adamw, {k: LABELS[k] for k in MOVING})
    )
    expected, alone = train(closed, make_oracle("separate", FROZEN), MOVING)
    assert_close({key: params[key] for key in MOVING}, expected, 1e-12)
    sizes = [sum(np.size(leaf) for leaf in jax.tree.leaves(s)) for s in (state, alone)]
    assert sizes[0] == sizes[1]


def test_weight_decay_outside_moves_it(float64):
    """The trap that the docs name, in a step by hand; `train_step` knows who is."""
    tx = optax.chain(mtlopt.mgda(2), optax.adamw(0.1, weight_decay=0.1))
    oracle = make_oracle("separate")
    params, _ = train(tx, oracle, ALL, steps=1)
    assert np.abs(params["frozen"]["base"] - FROZEN["base"]).max() > 1e-3
    run = mtlopt.Run(ALL, tx.init(ALL))
    run, _ = jax.jit(mtlopt.train_step(oracle, tx))(run, X)
    np.testing.assert_array_equal(run.params["frozen"]["base"], FROZEN["base"])
    assert np.abs(run.params["lora"]["up"] - ADAPTER["up"]).max() > 1e-3


SAFE = functools.partial(mtlopt.fast_backtracking, safeguard=True)


@pytest.mark.slow
@pytest.mark.parametrize(
    "search",
    [mtlopt.backtracking, mtlopt.fast_backtracking, SAFE],
    ids=["BLS", "FBLS", "safe"],
)
def test_line_search(search, float64):
    tx = search(mtlopt.mgda(2))
    params, state = train(tx, make_oracle("separate"), ALL)
    assert_untouched(params)
    expected, other = train(tx, make_oracle("separate", FROZEN), MOVING)
    assert_close({key: params[key] for key in MOVING}, expected, 1e-12)
    assert state.step_size == other.step_size


def test_alternation(float64):
    oracle = make_oracle("separate")
    blocks = mtlopt.alternate_blocks(optax.adamw(0.1), optax.adamw(0.1), LABELS)
    turns = mtlopt.individual_optimizers(optax.adamw(0.1), 2, LABELS)
    for tx, make in ((blocks, mtlopt.block_step), (turns, mtlopt.individual_step)):
        tx = optax.chain(tx, optax.add_decayed_weights(-0.1))  # outside
        step = jax.jit(make(oracle, tx), compiler_options=QUICK)
        run = mtlopt.Run(ALL, tx.init(ALL))
        for _ in range(2):
            run, _ = step(run, X)
        assert_untouched(run.params)
        moved = jax.tree.map(lambda *two: np.any(np.not_equal(*two)), run.params, ALL)
        assert all(all(jax.tree.leaves(moved[key])) for key in MOVING)
    with pytest.raises(ValueError, match="leaves of heads"):
        mtlopt.alternate_blocks(
            optax.sgd(1.0), optax.sgd(1.0), LABELS | {"a": "frozen", "b": "frozen"}
        ).init(ALL)


def test_heads_alone_where_nothing_is_shared(float64):
    """A frozen trunk: no rows, and a line search does not move the latent."""
    labels = LABELS | {"lora": "frozen"}
    oracle = mtlopt.task_grad(
        make_oracle("separate").problem.head_fns.head_fns,
        labels,
        encode=lambda p, x: encode(p, p["frozen"], x),
    )
    methods = {
        name: mtlopt.METHODS[name].make(2)
        for name in ("sum_tasks", "mgda", "mgda_ub", "graddrop")
    }
    methods["search"] = SAFE(mtlopt.mgda(2))

    @functools.partial(jax.jit, compiler_options=QUICK)
    def run(params):
        grads = oracle(params, X)
        found = {
            name: tx.update(grads, tx.init(params), params)
            for name, tx in methods.items()
        }
        moved = optax.apply_updates(params, found["search"][0])
        return found, grads.losses - oracle.losses(moved, X)

    def total(params):
        return sum(losses_of(params, FROZEN, X).values())

    found, lowered = run(ALL)
    expected = jax.jit(jax.grad(total))(MOVING)
    expected["lora"] = jax.tree.map(np.zeros_like, ADAPTER)
    _, state = found.pop("search")
    for updates, _ in found.values():
        assert_close(without_frozen(updates), expected, 1e-12)
    np.testing.assert_allclose(np.min(lowered), state.decrease, rtol=1e-9)


def test_a_task_whose_leaves_are_all_frozen():
    oracle = mtlopt.task_grad(
        make_oracle("separate").problem.head_fns.head_fns,
        LABELS | {"b": "frozen"},
        encode=lambda p, x: encode(p, p["frozen"], x),
    )

    @functools.partial(jax.jit, compiler_options=QUICK)
    def run(params, present):
        grads = oracle(params, X, present=present)
        return grads.active, oracle.block("task", params, X).grad["b"]

    active, of_block = run(ALL, np.ones(2, bool))
    assert set(active) == {"shared", "a"}
    assert not np.any(of_block)


def test_jacobian_has_no_rows_of_it():
    oracle = make_oracle("vector")
    jacobian = jax.eval_shape(lambda params: oracle(params, X).jacobian(), ALL)
    assert jacobian["lora"]["up"].shape == (2, 2, 5)
    assert jax.tree.leaves(jacobian["frozen"]) == []


def test_inferred_where_it_cannot_be_trained():
    params = {**MOVING, "frozen": {"int8": FROZEN["int8"], "bool": FROZEN["bool"]}}

    def losses(params, x):
        z = encode(params, {**params["frozen"], "base": 0.0}, x)
        return {t: jnp.mean(z @ params[t]) for t in TASKS}

    labels = mtlopt.infer_labels(losses, params, X, tasks=TASKS)
    assert labels == {
        **{task: task for task in TASKS},
        "lora": {"down": "shared", "up": "shared"},
        "frozen": {"bool": "frozen", "int8": "frozen"},
    }


def test_errors():
    with pytest.raises(ValueError, match=r"name of a task .*'frozen'"):
        mtlopt.task_grad({"frozen": lambda p: p}, "shared")
    oracle = mtlopt.task_grad({"a": lambda p: p["w"] * 1.0}, "shared")
    with pytest.raises(ValueError, match=r"`w` must be floating point.*'frozen'"):
        oracle({"w": jnp.array(3)})
    keys = mtlopt.task_grad({"a": lambda p: p["w"]}, {"w": "shared", "k": "frozen"})
    with pytest.raises(ValueError, match="`k` must be an array of numbers"):
        keys({"w": 1.0, "k": jax.random.key(0)})
    tx = mtlopt.per_label(optax.sgd(1.0), LABELS)
    with pytest.raises(ValueError, match="`active` must name labels"):
        tx.update(ALL, tx.init(ALL), active={"frozen": True})


@pytest.mark.slow
@cpu_only
@pytest.mark.parametrize("kind", ["separate", "vector", "independent"])
def test_memory(kind):
    """A large leaf has T rows if it is shared, and none if it is frozen."""
    size, num_bytes = 300, 300 * 300 * 4
    tasks = [str(i) for i in range(6)]
    params = {"w": np.ones(size), "base": np.ones((size, size))}
    x = np.ones((2, size))

    def encode(params, x):
        base = params["base"]  # used twice, so that its rows are no products
        return jnp.tanh(x @ base + x @ base.T) * params["w"]

    def head(z, i):
        return jnp.mean(jnp.sin((1 + i) * z))

    def temporaries(label):
        labels = {"w": "shared", "base": label}
        if kind == "vector":
            oracle = mtlopt.task_grad(
                lambda p, x: [head(encode(p, x), i) for i in range(6)],
                labels,
                tasks=tasks,
                layerwise=False,  # rows are what needs memory
            )
        elif kind == "independent":
            oracle = mtlopt.task_grad(
                {t: lambda p, x, t=t: head(encode(p, x), int(t)) for t in tasks}, labels
            )
        else:
            oracle = mtlopt.task_grad(
                {t: lambda p, z, x, t=t: head(z, int(t)) for t in tasks},
                labels,
                encode=encode,
                layerwise=False,
            )
        tx = optax.chain(mtlopt.mgda(6), mtlopt.per_label(optax.adam(0.1), labels))

        def step(params, state, x):
            updates, state = tx.update(oracle(params, x), state, params)
            return optax.apply_updates(params, updates), state

        return temporary_bytes(step, params, jax.eval_shape(tx.init, params), x)

    assert temporaries("shared") > 6 * num_bytes
    assert temporaries("frozen") < num_bytes / 2
