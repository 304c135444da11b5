"""One function with a marked latent is the problem that it is cut by hand."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import mtlopt
import mtlopt.nnx
from mtlopt import METHODS
from tests.problems import (
    LABELS,
    LOSSES,
    QUICK,
    TASKS,
    assert_close,
    encode,
    first,
    in_parts,
    make_batches,
    make_oracle,
    make_params,
    methods_of,
    updates_of,
)

PARAMS, BATCHES = make_params(), make_batches()
ARGS = first(BATCHES)


def losses(params, *args):
    z = mtlopt.latent(encode(params, *args))
    return {task: LOSSES[task](params, z, *args) for task in reversed(TASKS)}


def marked(function=losses, **options):
    return mtlopt.task_grad(function, LABELS, tasks=TASKS, **options)


def numbers(oracle, params=PARAMS, args=ARGS, **options):
    grads = oracle(params, *args, **options)
    latent = grads.in_latent_space()
    weights = jnp.array([0.2, 3.0, 1.0])
    return {
        "losses": grads.losses,
        "z": grads.z,
        "gramian": grads.rows().gramian(),
        "sum": grads.total(),
        "combination": grads.combine(weights),
        "latent": latent.rows().gramian(),
        "latent combination": latent.combine(weights),
    }


def both(run, *oracles):
    """Results of a function of an oracle for several, in one program."""
    results = jax.jit(
        lambda: [run(oracle) for oracle in oracles], compiler_options=QUICK
    )()
    return jax.device_get(results)


@pytest.mark.slow
def test_methods_make_the_same_update(plain, float64):
    found = updates_of(marked(), PARAMS, BATCHES)
    assert_close(found, {name: plain[name] for name in found}, 1e-9)


@pytest.mark.slow
def test_all_methods_make_the_same_update_in_both_spaces(float64):
    def spaces(name):
        method = METHODS[name].make(len(TASKS), labels=LABELS)
        if METHODS[name].parameter_space:
            return [method]
        return [method, mtlopt.in_latent_space(method)]

    def updates(names, oracle):
        grads = oracle(PARAMS, *ARGS)
        return {
            name: [tx.update(grads, tx.init(PARAMS), PARAMS)[0] for tx in spaces(name)]
            for name in names
        }

    for names in in_parts(methods_of(len(TASKS)), 6):
        run = functools.partial(updates, names)
        found, expected = both(run, marked(), make_oracle())
        assert_close(found, expected, 1e-9)


def in_jit(params, *args):
    """The mark two calls deep, the stack in a third."""

    @jax.jit
    def run(params, *args):
        return jax.jit(losses)(params, *args)

    found = run(params, *args)
    return jax.jit(lambda values: -jnp.stack(values))([-found[task] for task in TASKS])


class Encoder(nnx.Module):
    def __init__(self, params):
        self.w, self.b = nnx.Param(params["w"]), nnx.Param(params["b"])


def in_nnx(params, *args):
    """The mark in a method of a module that is itself an argument of `nnx.jit`."""

    @nnx.jit
    def run(encoder, x):
        return mtlopt.latent(jnp.tanh(x @ encoder.w[...] + encoder.b[...][None]))

    z = run(Encoder(params["encoder"]), args[0])
    return {task: LOSSES[task](params, z, *args) for task in TASKS}


def by_sample(params, *args):
    """Encoder and heads written for one sample, under one vmap."""

    def one(*sample):
        z = mtlopt.latent(encode(params, *(leaf[None] for leaf in sample)))[0]
        heads = [params["heads"][task] for task in TASKS]
        return [
            (z @ head["w"] + head["b"] - y) ** 2
            for head, y in zip(heads, sample[1], strict=True)
        ]

    return [jnp.mean(loss) for loss in jax.vmap(one)(*args)]


FORMS = {
    "dict": losses,
    "list": lambda *args: [value for _, value in sorted(losses(*args).items())],
    "vector": lambda *args: jnp.stack(list(losses(*args).values())[::-1]),
    "concatenated": lambda *args: jnp.array(list(losses(*args).values())[::-1]),
    "in jit": in_jit,
    "in nnx.jit": in_nnx,
    "in checkpoint": jax.checkpoint(losses),
    "in vmap": by_sample,
}


@pytest.mark.slow
def test_form_of_the_function_does_not_matter(float64):
    oracles = [marked(function) for function in FORMS.values()]
    expected, *found = both(numbers, make_oracle(), *oracles)
    for form, values in zip(FORMS, found, strict=True):
        values["z"] = values["z"].reshape(expected["z"].shape)
        assert_close({form: values}, {form: expected}, 1e-12)


def test_z_is_what_was_marked(float64):
    """A pytree with a mask and raw inputs: only what moves has rows."""

    def split(params, x, y, mask):
        return {"h": encode(params, x, y, mask), "raw": (x, mask)}

    def head(params, z, task):
        _, mask = z["raw"]
        error = z["h"] @ params["heads"][task]["w"] - jnp.sum(z["raw"][0], axis=1)
        return jnp.mean(jnp.where(mask[:, TASKS.index(task)], error, 0) ** 2)

    def whole(params, *args):
        z = mtlopt.latent(split(params, *args))
        return {task: head(params, z, task) for task in TASKS}

    cut = mtlopt.task_grad(
        {task: lambda p, z, *_, task=task: head(p, z, task) for task in TASKS},
        LABELS,
        encode=split,
    )
    found, expected = both(numbers, marked(whole), cut)
    assert_close(found, expected, 1e-12)


DEEP = {
    "one": np.linspace(-1, 1, 12).reshape(4, 3),
    "two": np.linspace(1, -2, 9).reshape(3, 3),
    "a": np.arange(1.0, 4.0),
    "b": np.arange(3.0)[::-1] - 1,
}
DEEP_LABELS = {"one": "shared", "two": "shared", "a": "a", "b": "b"}
X = ARGS[0]


def two_heads(params, h, g):
    """Task a reads both parts of the latent, task b the second one."""
    return {
        "a": jnp.mean((h @ params["a"] + jnp.sin(g @ params["a"])) ** 2),
        "b": jnp.mean((g @ params["b"] - 1) ** 2),
    }


def layer(h, kernel):
    return jnp.tanh(h @ kernel)


def skip(params, x):
    h = layer(x @ params["one"], params["two"])
    return h, layer(h, params["two"])


def by_hand(heads=two_heads, encode=skip):
    return mtlopt.task_grad(
        {task: lambda p, z, x, task=task: heads(p, *z)[task] for task in "ab"},
        DEEP_LABELS,
        encode=encode,
    )


def deep(function):
    return mtlopt.task_grad(function, DEEP_LABELS, tasks=("a", "b"))


def deep_numbers(oracle):
    grads = oracle(DEEP, X)
    latent = grads.in_latent_space()
    return {
        "z": grads.z,
        "gramian": grads.rows().gramian(),
        "latent": latent.rows().gramian(),
        "sum": grads.total(),
    }


def test_two_marks_and_a_mark_on_what_depends_on_a_mark(float64):
    """Both are parts of the latent; the encoder makes one from the other."""

    def apart(params, x):
        h = x @ params["one"]
        g = mtlopt.latent(h @ params["two"])
        return two_heads(params, mtlopt.latent(h), g)

    def chain(params, x):
        """One compiled layer, run twice: its program has one set of variables."""
        marked_layer = jax.jit(lambda *args: mtlopt.latent(layer(*args)))
        h = marked_layer(x @ params["one"], params["two"])
        return two_heads(params, h, marked_layer(h, params["two"]))

    def parts(params, x):
        h = x @ params["one"]
        return h @ params["two"], h

    found, expected, chained, by_chain = both(
        deep_numbers,
        deep(apart),
        by_hand(lambda params, g, h: two_heads(params, h, g), parts),
        deep(chain),
        by_hand(),
    )
    assert_close(found, expected, 1e-12)
    assert_close(chained, by_chain, 1e-12)


# It goes with all that a problem with an encoder goes with.


def runs(oracle):
    """What the calls of an oracle return."""
    args, kept = ARGS, jnp.array([True, False, True])
    known = {"a": True, "b": False, "c": True}
    search = mtlopt.fast_backtracking(mtlopt.mgda(3), calibrate=True)
    grads, z = oracle(PARAMS, *args), encode(PARAMS, *args) + 0.1
    return {
        "present": numbers(oracle, present=kept),
        "known present": numbers(oracle, present=known),
        "losses": oracle.losses(PARAMS, *args),
        "losses at z": grads.losses_at(PARAMS, z),
        "search": search.update(grads, search.init(PARAMS), PARAMS)[0],
        "shared": oracle.block("shared", PARAMS, *args).grad,
        "heads": oracle.block("task", PARAMS, *args).grad,
        "at z": tuple(oracle.heads(PARAMS, z, *args))[:2],
        "task": tuple(oracle.task("b", PARAMS, *args))[:2],
        "group": oracle.task({"a": 1, "b": 2, "c": 0}, PARAMS, *args).grad,
    }


@pytest.mark.slow
def test_calls_of_an_oracle(float64):
    found, expected = both(runs, marked(), make_oracle())
    assert_close(found, expected, 1e-12)


def test_options_of_an_oracle(float64):
    options = [{"streaming": True}, {"layerwise": True}, {"batching": "vmap"}]
    oracles = [marked(**option) for option in options]
    *found, expected = both(numbers, *oracles, make_oracle())
    for option, values in zip(options, found, strict=True):
        assert_close({str(option): values}, {str(option): expected}, 1e-12)


@pytest.mark.slow
def test_microbatches(float64):
    def run(oracle):
        rows = oracle(PARAMS, ARGS).rows()
        latent = oracle(PARAMS, ARGS).in_latent_space()
        return [rows.gramian(), latent.rows().gramian(), latent.total()]

    def of_batch(function):
        return lambda params, *args: function(params, *args[:-1], *args[-1])

    heads = {task: of_batch(LOSSES[task]) for task in TASKS}
    found, expected = both(
        run,
        marked(of_batch(losses), microbatches=2),
        mtlopt.task_grad(heads, LABELS, encode=of_batch(encode), microbatches=2),
    )
    assert_close(found, expected, 1e-12)


def test_the_loss_of_an_absent_task_need_not_be_finite(float64):
    def broken(*args):
        found = losses(*args)
        return found | {"b": found["b"] * jnp.nan}

    def run(oracle):
        grads = oracle(PARAMS, *ARGS, present=jnp.array([True, False, True]))
        return [grads.rows().gramian(), grads.combine(jnp.ones(3))["encoder"]]

    found, expected = both(run, marked(broken), make_oracle())
    assert_close(found, expected, 1e-12)


def test_a_traced_task_runs_the_whole_function(float64):
    """No head can be chosen then: all run, as without a mark."""
    oracle = marked()

    def run(oracle):
        return [oracle.task(i, PARAMS, *ARGS).grad for i in range(3)]

    traced = jax.lax.map(
        lambda i: oracle.task(i, PARAMS, *ARGS).grad, jnp.arange(3, dtype=jnp.int32)
    )
    (expected,) = both(run, make_oracle())
    expected = jax.tree.map(lambda *leaves: np.stack(leaves), *expected)
    assert_close(jax.device_get(traced), expected, 1e-12)


def test_vmap_over_seeds(float64):
    many = [make_params(seed) for seed in range(3)]
    stacked = jax.tree.map(lambda *leaves: np.stack(leaves), *many)
    oracle = marked()
    together = jax.jit(jax.vmap(lambda params: numbers(oracle, params)))(stacked)
    single = jax.jit(lambda params: numbers(oracle, params))
    each = [jax.device_get(single(params)) for params in many]
    assert_close(together, jax.tree.map(lambda *leaves: np.stack(leaves), *each), 1e-12)


def test_labels_are_inferred(float64):
    assert mtlopt.infer_labels(
        losses, PARAMS, *ARGS, tasks=TASKS
    ) == mtlopt.label_params(PARAMS, LABELS)


def test_the_function_is_traced_once_a_call(float64):
    """And once for the labels, at the first call with these shapes."""
    calls = []

    def counted(*args):
        calls.append(None)
        return losses(*args)

    oracle = marked(counted)
    jax.eval_shape(lambda: numbers(oracle))
    assert len(calls) == 2
    jax.eval_shape(lambda: numbers(oracle))
    assert len(calls) == 3


def test_the_mark_is_the_identity_elsewhere(float64):
    z = {"x": X, "key": jax.random.key(0), "scale": 2.0}
    assert jax.tree.all(jax.tree.map(lambda a, b: (a == b).all(), mtlopt.latent(z), z))

    @jax.jit
    def run():
        value = lambda params: sum(losses(params, *ARGS).values())  # noqa: E731
        grads = make_oracle()(PARAMS, *ARGS)
        expected = jnp.sum(grads.losses), grads.total()
        return jax.value_and_grad(value)(PARAMS), expected

    found, expected = jax.device_get(run())
    assert_close(found, expected, 1e-12)
    bent = jax.jit(jax.hessian(lambda x: mtlopt.latent(x) ** 3))(2.0)
    np.testing.assert_allclose(bent, 12.0)


# What the function returns beside the losses.


def with_aux(params, key, *args):
    """Every kind: of encoder, one head, two heads, arguments, and a string."""
    x, y, _ = args
    h = x @ params["encoder"]["w"] + params["encoder"]["b"][None]
    mean = jnp.mean(h, axis=0)
    z = mtlopt.latent(jnp.tanh(h) * jax.random.bernoulli(key, 0.9, h.shape))
    logits = {
        task: jax.jit(jnp.sin)(z @ head["w"] + head["b"])
        for task, head in params["heads"].items()
    }
    aux = {
        "mean": 0.9 + 0.1 * mean,
        "max": {task: jnp.max(logit) for task, logit in logits.items()},
        "sum": logits["a"] + logits["b"],
        "z": z,
        "labels": jnp.sum(y),
        "name": "run",
        "none": None,
    }
    values = [jnp.mean((logits[task] - y[:, i]) ** 2) for i, task in enumerate(TASKS)]
    return values, aux


def test_aux(float64):
    key = jax.random.key(3)
    oracle = marked(with_aux, has_aux=True)
    plain_losses, expected = with_aux(PARAMS, key, *ARGS)
    name = expected.pop("name")

    @jax.jit
    def run():
        out = {
            "all": oracle(PARAMS, key, *ARGS),
            "known": oracle(
                PARAMS, key, *ARGS, present={"a": False, "b": True, "c": True}
            ),
            "task": oracle.task("c", PARAMS, key, *ARGS),
            "heads": oracle.heads(PARAMS, expected["z"], key, *ARGS),
        }
        assert {found.aux.encode.pop("name") for found in out.values()} == {name}
        assert {found.aux.tasks for found in out.values()} == {None}
        return {call: (found.losses, found.aux.encode) for call, found in out.items()}

    # On a given latent nothing runs that comes before the mark.
    of_heads = expected | {"mean": None}
    for call, (values, aux) in jax.device_get(run()).items():
        right = jax.device_get(of_heads if call == "heads" else expected)
        assert_close({call: aux}, {call: right}, 1e-12)
        if call in ("all", "heads"):
            assert_close(values, np.stack(plain_losses), 1e-12)


def test_model_state(float64):
    """Encoder and heads write it; on a given latent the encoder's part stays."""
    state = {"count": 0, "trunk": np.zeros(5), **dict.fromkeys(TASKS, np.float64(1))}
    state = jax.tree.map(jnp.asarray, state)

    def stateful_encode(params, *args):
        *others, state = args
        z = encode(params, *others)
        own = {"count": state["count"] + 1, "trunk": jnp.mean(z, axis=0)}
        return z - own["trunk"], state | own

    def stateful_head(params, z, task, *args):
        *others, state = args
        loss = LOSSES[task](params, z, *others)
        return loss, state | {task: 0.9 * state[task] + jnp.sqrt(loss)}

    def whole(params, *args):
        *others, state = args
        z, state = stateful_encode(params, *args)
        z, values = mtlopt.latent(z), {}
        for task in TASKS:
            values[task], state = stateful_head(params, z, task, *others, state)
        return values, state

    def run(oracle):
        heads = oracle.heads(PARAMS, jnp.ones((8, 5)), *ARGS, state)
        present = {"a": True, "b": False, "c": True}
        return {
            "step": oracle(PARAMS, *ARGS, state).state,
            "known": oracle(PARAMS, *ARGS, state, present=present).state,
            "heads": heads.state,
            "grad": heads.grad,
        }

    cut = mtlopt.task_grad(
        {
            task: lambda params, z, *args, task=task: stateful_head(
                params, z, task, *args
            )
            for task in TASKS
        },
        LABELS,
        encode=stateful_encode,
        has_state=True,
    )
    labels = {"count": "shared", "trunk": "shared"} | {task: task for task in TASKS}
    oracle = marked(whole, has_state=True, state_labels=labels)
    found, expected = both(run, oracle, cut)
    assert_close(found, expected, 1e-12)


class Net(nnx.Module):
    def __init__(self, rngs):
        self.trunk, self.norm = nnx.Linear(4, 6, rngs=rngs), nnx.BatchNorm(6, rngs=rngs)
        self.a, self.b = nnx.Linear(6, 1, rngs=rngs), nnx.Linear(6, 1, rngs=rngs)
        self.dropout = nnx.Dropout(0.5, rngs=rngs)

    def losses(self, x):
        z = mtlopt.latent(nnx.relu(self.norm(self.trunk(x))))
        b = self.b(self.dropout(z))
        return {"a": jnp.mean(self.a(z) ** 2), "b": jnp.mean(jnp.cos(b))}


def test_a_method_of_a_module():
    """Labels, gradient and state of the module are found from its one forward pass."""
    model, plain = Net(nnx.Rngs(0)), Net(nnx.Rngs(0))
    x = jnp.asarray(X, jnp.float32)

    def total(model):
        return sum(model.losses(x).values())

    expected = nnx.jit(nnx.grad(total))(plain)
    oracle = mtlopt.nnx.task_grad(Net.losses, tasks=("a", "b"))
    found = nnx.jit(lambda model: oracle(model, x).in_latent_space().total())(model)
    moved = [nnx.state(net, nnx.Not(nnx.Param)) for net in (model, plain)]
    for pair in ((found, expected), moved):
        leaves = [jax.tree.leaves(nnx.as_pure(each)) for each in pair]
        for one, other in zip(*leaves, strict=True):
            if jnp.issubdtype(one.dtype, jax.dtypes.prng_key):
                one, other = jax.random.key_data(one), jax.random.key_data(other)
            np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)


def test_prints_come_once(float64):
    seen = []

    def chatty(params, *args):
        z = encode(params, *args)
        jax.debug.callback(lambda _: seen.append("encoder"), z)
        z = mtlopt.latent(z)
        jax.debug.callback(lambda _: seen.append("heads"), z)
        jax.debug.callback(lambda _: seen.append("arguments"), args[0])
        return {task: LOSSES[task](params, z, *args) for task in TASKS}

    oracle = marked(chatty)
    grads = jax.jit(lambda: oracle(PARAMS, *ARGS).rows().gramian())()
    jax.block_until_ready(grads)
    jax.effects_barrier()
    assert sorted(seen) == ["arguments", "encoder", "heads"]


def flops(oracle, params, *args, latent):
    """XLA's count of a step: rows, Gramian, combination, and aux."""

    def step(params, *args):
        grads = oracle(params, *args)
        if latent:
            grads = grads.in_latent_space()
        weights = jnp.sum(grads.rows().gramian(), axis=0)
        return grads.combine(weights), grads.losses, grads.aux

    compiled = jax.jit(step).lower(params, *args).compile()
    return compiled.cost_analysis()["flops"]


@pytest.mark.slow
@pytest.mark.parametrize("latent", [False, True])
def test_operations_are_those_of_the_problem_cut_by_hand(latent):
    """With aux of encoder and heads, and a pipeline that both sides read."""
    width, key = 64, jax.random.key(0)
    params = {"w": jnp.ones((width, width)), "v": jnp.ones((width, width))}
    params |= {task: jnp.ones((width, width)) for task in TASKS}
    labels = {"w": "shared", "v": "shared", **{task: task for task in TASKS}}
    x = jnp.ones((32, width))

    def noisy(x, key):
        return x + jax.random.normal(key, x.shape)

    def trunk(params, x):
        h = x @ params["w"]
        return jnp.tanh(h) @ params["v"], jnp.mean(h, axis=0)

    def head(params, z, x, task):
        logits = jax.nn.gelu(z @ params[task])
        return jnp.mean((logits - x) ** 2), jnp.max(logits)

    def whole(params, x, key):
        x = noisy(x, key)
        z, mean = trunk(params, x)
        z = mtlopt.latent(z)
        out = {task: head(params, z, x, task) for task in TASKS}
        aux = mean, {task: logit for task, (_, logit) in out.items()}
        return {task: loss for task, (loss, _) in out.items()}, aux

    def encode_pair(params, x, key):
        x = noisy(x, key)
        z, mean = trunk(params, x)
        return (z, x), mean

    def loss(task):
        return lambda params, z, x, key: head(params, *z, task)

    cut = mtlopt.task_grad(
        {task: loss(task) for task in TASKS}, labels, encode=encode_pair, has_aux=True
    )
    oracle = mtlopt.task_grad(whole, labels, tasks=TASKS, has_aux=True)
    expected = flops(cut, params, x, key, latent=latent)
    assert abs(flops(oracle, params, x, key, latent=latent) / expected - 1) < 0.01


# One task per sample.


def of_sample(params, sample):
    z = mtlopt.latent(encode(params, *(leaf[None] for leaf in sample["args"])))
    args = jax.tree.map(lambda leaf: leaf[None], sample["args"])
    return {task: LOSSES[task](params, z, *args) for task in TASKS}


def test_one_task_per_sample(float64):
    def task_of(sample):
        return sample["task"]

    def ones(function):
        return lambda params, *args: function(
            params, *args[:-1], *(leaf[None] for leaf in args[-1]["args"])
        )

    batch = {"args": ARGS, "task": jnp.arange(8) % 3}
    by_hand = mtlopt.samplewise(
        {task: ones(LOSSES[task]) for task in TASKS}, task_of=task_of
    )
    found, expected = both(
        lambda oracle: numbers(oracle, args=(batch,)),
        marked(mtlopt.samplewise(of_sample, task_of=task_of)),
        mtlopt.task_grad(by_hand, LABELS, encode=ones(encode)),
    )
    assert_close(found, expected, 1e-12)
