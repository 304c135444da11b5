"""The oracle: the same numbers whichever way a problem is written or evaluated."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import mtlopt
from mtlopt import METHODS
from tests.problems import (
    BATCH,
    INPUTS,
    LABELS,
    LOSSES,
    QUICK,
    ROUTES,
    STEPS,
    TASKS,
    WIDTH,
    assert_close,
    encode,
    first,
    gradient_of,
    in_parameter_space,
    losses_of,
    make_batches,
    make_oracle,
    make_params,
    make_run,
    matrix_oracle,
    plain_program,
    stack_heads,
    updates_of,
)

PARAMS, BATCHES = make_params(), make_batches()
ARGS = first(BATCHES)


# One call's numbers: what every method is made of.


def numbers(oracle, params=PARAMS, args=ARGS, space="both"):
    """Losses, heads' gradients, Gramians, Jacobian and one combination."""

    def measure(params, *args):
        grads = oracle(params, *args).scale_by(jnp.array([1.0, 0.5, -2.0]))
        out = {
            "losses": grads.losses,
            "gramian": grads.rows().gramian(),
            "norms": grads.rows().norms(),
            "sum": grads.total(),
            "sum of kept rows": grads.keep_rows().total(),
            "combination": grads.combine(jnp.array([0.2, 3.0, 1.0])),
            "rows": grads.updates(grads.rows().combine(jnp.array([1.0, 2.0, 4.0]))),
        }
        if space == "both":
            latent = grads.in_latent_space()
            out["latent"] = latent.rows().gramian()
            out["latent norms"] = latent.rows().norms()
            out["latent sum"] = latent.keep_rows().total()
        return out

    return jax.jit(measure, compiler_options=QUICK)(params, *args)


def scaled_gradients(params, args):
    """Losses, heads' gradients and the Jacobians, by plain jax.grad of each loss."""
    scales, shared = np.array([1.0, 0.5, -2.0]), params["encoder"]
    heads = {
        task: jax.tree.map(
            lambda leaf, i=i: scales[i] * leaf,
            gradient_of(task, params, *args)["heads"][task],
        )
        for i, task in enumerate(TASKS)
    }

    def of_shared(encoder):
        return losses_of(params | {"encoder": encoder}, *args) * scales

    def of_latent(z):
        return jnp.stack([LOSSES[t](params, z, *args) for t in TASKS]) * scales

    jacobian = jax.jacobian(of_shared)(shared)
    latent = jax.jacobian(of_latent)(encode(params, *args))
    return losses_of(params, *args), heads, jacobian, latent


@functools.cache
def by_autodiff(space="both"):
    """The same numbers from plain jax.grad of each loss."""
    run = jax.jit(scaled_gradients, compiler_options=QUICK)
    losses, heads, jacobian, latent = jax.device_get(run(PARAMS, ARGS))

    def combined(weights):
        encoder = jax.tree.map(lambda leaf: np.tensordot(weights, leaf, 1), jacobian)
        return {"encoder": encoder, "heads": heads}

    def products(tree):
        flat = np.concatenate(
            [leaf.reshape(3, -1) for leaf in jax.tree.leaves(tree)], 1
        )
        return flat @ flat.T

    total = combined([1.0, 1.0, 1.0])
    out = {
        "losses": losses,
        "gramian": products(jacobian),
        "norms": np.sqrt(np.diag(products(jacobian))),
        "sum": total,
        "sum of kept rows": total,
        "combination": combined([0.2, 3.0, 1.0]),
        "rows": combined([1.0, 2.0, 4.0]),
    }
    if space == "both":
        out["latent"] = products(latent)
        out["latent norms"] = np.sqrt(np.diag(products(latent)))
        out["latent sum"] = total
    return out


@pytest.mark.parametrize("batching", ["auto", "unroll", "vmap", "map", 1, 2, 3, 5])
def test_rows_equal_autodiff_however_they_are_batched(batching, float64):
    """Rows, Gramians and heads are those of jax.grad of each loss alone."""
    assert_close(numbers(make_oracle(batching=batching)), by_autodiff(), 1e-12)


def test_streamed_gramian_equals_materialised(float64):
    assert_close(numbers(make_oracle(streaming=True)), by_autodiff(), 1e-12)


@pytest.mark.slow
def test_streaming_passes_through_custom_derivatives(float64):
    """G_ij = <l_i, J J^T l_j> also where J is a custom_vjp's: 3 times the true one."""

    @jax.custom_vjp
    def tripled(x):
        return jnp.sin(x)

    tripled.defvjp(lambda x: (jnp.sin(x), x), lambda x, ct: (3 * ct * jnp.cos(x),))

    def custom(params, *args):
        return tripled(encode(params, *args))

    found = [
        numbers(
            mtlopt.task_grad(LOSSES, LABELS, encode=custom, streaming=streaming),
            space="params",
        )
        for streaming in (False, True)
    ]
    assert_close(found[1], found[0], 1e-12)
    plain = mtlopt.task_grad(
        LOSSES, LABELS, encode=lambda params, *args: jnp.sin(encode(params, *args))
    )
    expected = 9 * numbers(plain, space="params")["gramian"]
    assert_close(found[1]["gramian"], expected, 1e-12)


def test_streamed_gramian_is_float32_for_bfloat16():
    """|g|^2 = 257, which bfloat16 cannot hold."""
    params = {"w": jnp.ones(257, jnp.bfloat16)}
    for streaming in (False, True):
        oracle = mtlopt.task_grad(
            {"a": lambda params, z: jnp.sum(z)},
            "shared",
            encode=lambda params: params["w"],
            streaming=streaming,
        )
        gramian = oracle(params).rows().gramian()
        assert gramian.dtype == jnp.float32
        assert gramian == 257


# The three shapes of a problem.


def vector_losses(form, **options):
    def losses(params, *args):
        z = encode(params, *args)
        values = {task: loss(params, z, *args) for task, loss in LOSSES.items()}
        if form == "dict":
            return dict(reversed(values.items()))
        if form == "tuple":
            return tuple(values.values())
        return jnp.stack(list(values.values()))

    return mtlopt.task_grad(losses, LABELS, tasks=TASKS, **options)


def independent_losses():
    def make(loss):
        return lambda params, *args: loss(params, encode(params, *args), *args)

    return mtlopt.task_grad({task: make(LOSSES[task]) for task in TASKS}, LABELS)


SHAPES = {
    "dict": lambda: vector_losses("dict"),
    "tuple": lambda: vector_losses("tuple"),
    "vector": lambda: vector_losses("vector"),
    "independent": independent_losses,
}


@pytest.mark.parametrize("shape", SHAPES)
def test_shapes_of_the_problem_agree(shape, float64):
    actual = numbers(SHAPES[shape](), space="params")
    assert_close(actual, by_autodiff(space="params"), 1e-12)


@pytest.mark.parametrize("shape", ["dict", "vector"])
@pytest.mark.parametrize("option", [{"streaming": True}, {"batching": 2}])
def test_vector_problem_takes_the_options_of_rows(shape, option, float64):
    oracle = vector_losses(shape, **option)
    actual = numbers(oracle, space="params")
    assert_close(actual, by_autodiff(space="params"), 1e-12)


def test_one_task_may_return_any_vector_of_one():
    """With T = 1 nothing needs telling apart, however the vector was made."""
    for make in (jnp.atleast_1d, lambda loss: jnp.stack([loss]), lambda loss: [loss]):
        oracle = mtlopt.task_grad(
            lambda p, make=make: make(p["w"] * p["a"]),
            {"w": "shared", "a": "a"},
            tasks=["a"],
        )
        grads = oracle({"w": 2.0, "a": 3.0})
        updates = grads.combine(jnp.ones(1))
        assert (updates["w"], updates["a"]) == (3.0, 2.0)


# Every method.


def stacked_head(params, z, task, x, y, mask):
    own = params["heads"]
    return jnp.mean((z @ own["w"] + own["b"] - jnp.asarray(y)[:, task]) ** 2)


@functools.cache
def recut_run():
    """The toy problem with its heads along one task axis, and other shared leaves.

    The weight is split into two halves, and the second is merged with the bias.
    """
    size = INPUTS * (WIDTH - 2)

    def joined(params):
        right, b = params["flat"][:size].reshape(INPUTS, -1), params["flat"][size:]
        w = jnp.concatenate([params["left"], right], axis=1)
        return {"encoder": {"w": w, "b": b}}

    oracle = mtlopt.task_grad(
        mtlopt.stacked(stacked_head, 3),
        {"*": "shared", "heads": "stacked"},
        encode=lambda params, *args: encode(joined(params), *args),
    )
    w, b = PARAMS["encoder"]["w"], PARAMS["encoder"]["b"]
    flat = np.concatenate([w[:, 2:].ravel(), b])
    params = {"left": w[:, :2], "flat": flat, "heads": stack_heads(PARAMS)["heads"]}
    return updates_of(oracle, params, BATCHES)


@pytest.mark.slow
@pytest.mark.parametrize("name", ROUTES)
def test_cutting_leaves_differently_changes_nothing(name, plain):
    """Stacked heads, and split or merged shared leaves, give the same update."""
    found, expected = recut_run()[name], stack_heads(plain[name], axis=1)
    left, right = np.split(expected["encoder"]["w"], [2], axis=2)
    flat = [right.reshape(STEPS, -1), expected["encoder"]["b"]]
    flat = np.concatenate(flat, axis=1)
    assert_close(found, {"left": left, "flat": flat, "heads": expected["heads"]})


def given(params, rows, losses, present=None):
    """In place of an oracle: gradients that are known."""
    return mtlopt.TaskGrads.from_rows(rows, losses, present, labels=LABELS, tasks=TASKS)


given.num_tasks, given.labels = len(TASKS), LABELS


@functools.cache
def shape_run(shape):
    """Updates by the rows and losses of a shape; one program for those of all."""
    oracle = SHAPES[shape]()

    @functools.partial(jax.jit, compiler_options=QUICK)
    @jax.vmap
    def rows_and_losses(*args):
        grads = oracle(PARAMS, *args)
        heads = grads.combine(jnp.ones(3))["heads"]
        for i, task in enumerate(TASKS):
            own = jnp.arange(3) == i
            heads[task] = jax.tree.map(
                lambda leaf, own=own: jnp.multiply.outer(own, leaf), heads[task]
            )
        return grads.jacobian() | {"heads": heads}, grads.losses

    with jax.enable_x64(True):
        return run_given()(PARAMS, rows_and_losses(*BATCHES))[0]


@functools.cache
def run_given():
    return make_run(given, in_parameter_space())


@pytest.mark.parametrize("name", in_parameter_space())
@pytest.mark.parametrize("shape", ["dict", "independent"])
def test_methods_do_not_see_the_shape_of_the_problem(name, shape, plain):
    assert_close(shape_run(shape)[name], plain[name])


def test_stacked_losses_without_encode_equal_stacked_heads(float64):
    """Shape 3 with stacked heads."""

    def head(params, task, x, y, mask):
        own = params["heads"]
        z = encode(params, x, y, mask)
        return jnp.mean((z @ own["w"] + own["b"] - y[:, task]) ** 2)

    labels = {"encoder": "shared", "heads": "stacked"}
    oracle = mtlopt.task_grad(mtlopt.stacked(head, 3), labels)
    found = numbers(oracle, stack_heads(PARAMS), space="params")
    expected = by_autodiff()
    assert_close(found["gramian"], expected["gramian"], 1e-12)
    for key in ("combination", "rows"):
        assert_close(found[key], stack_heads(expected[key]), 1e-12)


def twins():
    """Latent methods and the methods that they are in parameter space."""
    by_public = {}
    for name, method in METHODS.items():
        if not method.latent:
            by_public.setdefault(method.public, name)  # the first is the plain one
    pairs = []
    for name, method in METHODS.items():
        rest = tuple(part for part in method.public if part != "in_latent_space")
        if method.latent and rest in by_public:
            pairs.append((name, by_public[rest]))
    return pairs


@functools.cache
def identity_run():
    """Generic Jacobians of an identity encoder."""
    rng = np.random.default_rng(5)
    rows, losses = rng.normal(size=(STEPS, 3, 4)), rng.random((STEPS, 3)) + 0.5
    names = sorted({name for pair in twins() for name in pair})
    return updates_of(matrix_oracle(3), np.zeros(4), (rows, losses), names=names)


@pytest.mark.parametrize(("latent", "parameters"), twins())
def test_latent_space_of_an_identity_encoder_is_parameter_space(
    latent, parameters, plain
):
    """d = J^T A(G_z) with J = 1 is A(G); elsewhere the two differ."""
    assert_close(identity_run()[latent], identity_run()[parameters])
    difference = plain[latent]["encoder"]["w"] - plain[parameters]["encoder"]["w"]
    assert np.max(np.abs(difference)) > 1e-3


def test_every_latent_method_has_a_twin():
    assert [pair[0] for pair in twins()] == [n for n, m in METHODS.items() if m.latent]


@functools.cache
def true_gradients():
    """The gradient of every task alone, at every batch."""
    with jax.enable_x64(True):
        gradients = jax.jit(
            lambda *args: [gradient_of(t, PARAMS, *args) for t in TASKS]
        )
        steps = [[leaf[step] for leaf in BATCHES] for step in range(STEPS)]
        return jax.device_get([gradients(*args) for args in steps])


@functools.cache
def true_losses():
    """At the first batch."""
    with jax.enable_x64(True):
        return jax.device_get(jax.jit(losses_of)(PARAMS, *ARGS))


def test_sum_tasks_is_the_gradient_of_the_summed_loss(plain):
    for step, gradients in enumerate(true_gradients()):
        summed = jax.tree.map(lambda *leaves: sum(leaves), *gradients)
        assert_close(jax.tree.map(lambda leaf: leaf[step], plain["sum_tasks"]), summed)


# Parts of the gradient.


@pytest.mark.parametrize("shape", ["encode", *SHAPES])
def test_task_is_the_gradient_of_one_loss(shape, float64):
    """By name and by index; by a group's members or weights, their weighted sum."""
    oracle = make_oracle() if shape == "encode" else SHAPES[shape]()
    keys = ("b", 1, np.int64(1), np.asarray(1), jnp.asarray(1))
    groups = ([1, 0, 1], [0.5, 0.0, -2.0], [True, True, False])

    @functools.partial(jax.jit, compiler_options=QUICK)
    def everything(params):
        single = [oracle.task(key, params, *ARGS) for key in keys]
        several = [oracle.task(jnp.array(group), params, *ARGS) for group in groups]
        return single, several

    gradients, losses = true_gradients()[0], true_losses()
    single, several = jax.device_get(everything(PARAMS))
    for found in single:
        assert found.losses.shape == ()
        assert_close(found.losses, losses[1], 1e-12)
        assert_close(found.grad, gradients[1], 1e-12)
    for weights, found in zip(groups, several, strict=True):
        summed = jax.tree.map(
            lambda *leaves: sum(
                w * leaf for w, leaf in zip(weights, leaves, strict=True)
            ),
            *gradients,
        )
        assert_close(found.losses, losses, 1e-12)
        assert_close(found.grad, summed, 1e-12)


@pytest.mark.parametrize("shape", ["encode", "independent"])
def test_task_runs_on_a_batch_of_its_own(shape, float64):
    """Only that task's functions are traced: the batch need not fit the others."""
    losses = {
        task: lambda params, z, batch, task=task: (
            jnp.mean((z - batch[task]) ** 2) * params[task]
        )
        for task in ("topic", "score")
    }

    def encode(params, batch):
        return batch["x"] * params["w"]

    labels = {"w": "shared", "topic": "topic", "score": "score"}
    if shape == "independent":
        oracle = mtlopt.task_grad(
            {
                task: lambda params, batch, loss=loss: loss(
                    params, encode(params, batch), batch
                )
                for task, loss in losses.items()
            },
            labels,
        )
    else:
        oracle = mtlopt.task_grad(losses, labels, encode=encode)
    params = {"w": 2.0, "topic": 3.0, "score": 4.0}
    batch = {"x": jnp.array([1.0, 2.0]), "topic": jnp.array([0.0, 1.0])}
    # mean((2 - 0)^2, (4 - 1)^2) = 6.5; d/dw = 3 * mean(2 * 2 * 1, 2 * 3 * 2) = 24.
    for task in ("topic", 0):
        found = oracle.task(task, params, batch)
        np.testing.assert_allclose(found.losses, 19.5)
        assert_close(found.grad, {"w": 24.0, "topic": 6.5, "score": 0.0})
    with pytest.raises(KeyError, match="score"):
        oracle.task("score", params, batch)


def test_task_index_may_be_traced_where_heads_are_stacked(float64):
    oracle = mtlopt.task_grad(
        mtlopt.stacked(stacked_head, 3),
        {"encoder": "shared", "heads": "stacked"},
        encode=encode,
    )
    params = stack_heads(PARAMS)
    gradient = jax.jit(lambda task: oracle.task(task, params, *ARGS))
    known = jax.jit(lambda: [oracle.task(i, params, *ARGS) for i in range(3)])()
    for i, gradients in enumerate(true_gradients()[0]):
        for found in (gradient(i), known[i]):
            assert_close(found.grad, stack_heads(gradients), 1e-12)
            assert_close(found.losses, true_losses()[i], 1e-12)
    assert gradient._cache_size() == 1


@pytest.mark.parametrize("shape", ["encode", *SHAPES])
def test_blocks_are_the_two_halves_of_the_gradient(shape, float64):
    """shared + task = the gradient of the summed loss, each zero in the other."""
    oracle = make_oracle() if shape == "encode" else SHAPES[shape]()
    zeros = jax.tree.map(np.zeros_like, PARAMS)

    @functools.partial(jax.jit, compiler_options=QUICK)
    def run(params):
        blocks = [oracle.block(block, params, *ARGS) for block in ("shared", "task")]
        return [(block.grad, block.losses) for block in blocks]

    (shared, losses), (task, same) = run(PARAMS)
    gradients = true_gradients()[0]
    summed = jax.tree.map(lambda *leaves: sum(leaves), *gradients)
    assert_close(shared, zeros | {"encoder": summed["encoder"]}, 1e-12)
    assert_close(task, zeros | {"heads": summed["heads"]}, 1e-12)
    assert_close(losses, true_losses(), 1e-12)
    assert_close(same, true_losses(), 1e-12)


def test_block_leaves_absent_tasks_out(float64):
    @functools.partial(jax.jit, compiler_options=QUICK)
    def run(present):
        blocks = ("shared", "task")
        return [make_oracle().block(b, PARAMS, *ARGS, present=present) for b in blocks]

    shared, task = (block.grad for block in run(np.array([True, False, True])))
    a, _, c = (gradient["encoder"] for gradient in true_gradients()[0])
    assert_close(shared["encoder"], jax.tree.map(np.add, a, c), 1e-12)
    assert not np.any(task["heads"]["b"]["w"])
    assert np.all(task["heads"]["a"]["w"])


def test_heads_on_a_given_latent(float64):
    """Gradients at the latent that is given, not at the encoder's."""
    z = np.random.default_rng(0).normal(size=(BATCH, WIDTH))

    def losses(params):
        return jnp.stack([loss(params, z, *ARGS) for loss in LOSSES.values()])

    @functools.partial(jax.jit, compiler_options=QUICK)
    def run(params):
        expected = jax.grad(lambda params: jnp.sum(losses(params)))(params)
        return make_oracle().heads(params, z, *ARGS), expected, losses(params)

    found, gradient, values = run(PARAMS)
    assert_close(found.grad, gradient, 1e-12)
    assert_close(found.losses, values, 1e-12)


def test_heads_never_run_the_encoder():
    """Cached features need no inputs: encode may not even accept the arguments."""
    oracle = mtlopt.task_grad(
        {"a": lambda params, z, x, y: jnp.mean((z * params["a"] - y) ** 2)},
        {"w": "shared", "a": "a"},
        encode=lambda params, x, y: params["w"] * x[:, 0],
    )
    params = {"w": jnp.ones(3), "a": jnp.ones(3)}
    found = oracle.heads(params, jnp.ones(3), None, jnp.zeros(3))
    np.testing.assert_allclose(found.grad["a"], 2 / 3)
    grads = oracle(params, jnp.ones((3, 1)), jnp.zeros(3))
    np.testing.assert_allclose(grads.losses_at(params, 2 * jnp.ones(3)), [4.0])


def test_losses_and_losses_at(float64):
    """Recomputed on the same batch at other parameters, or on another latent."""
    oracle = make_oracle()

    @functools.partial(jax.jit, compiler_options=QUICK)
    def run(params, other):
        grads, z = oracle(params, *ARGS), encode(other, *ARGS)
        mixed = {"encoder": params["encoder"], "heads": other["heads"]}
        shapes = [shape()(params, *ARGS) for shape in SHAPES.values()]
        found = [
            oracle.losses(other, *ARGS),
            grads.losses_at(other),
            grads.losses_at(mixed, z),
            *(grads.losses_at(other) for grads in shapes),
        ]
        return found, losses_of(other, *ARGS), grads.z, encode(params, *ARGS)

    found, expected, z, latent = run(PARAMS, make_params(seed=9))
    for losses in found:
        assert_close(losses, expected, 1e-12)
    assert_close(z, latent, 1e-12)


# Latents that are more than one array.


def test_latent_may_be_any_pytree(float64):
    """Skip connections; integers and bools pass through untouched."""
    labels = {"w": "shared", "v": "shared", "a": "a", "b": "b"}
    params = {name: np.linspace(-1, 1, 4) + i for i, name in enumerate(labels)}

    def encode(params, x):
        deep = jnp.tanh(params["w"] * x)
        index = jnp.argmax(deep)
        return {"deep": (deep, index), "skip": params["v"] * deep, "sign": deep > 0}

    def loss_a(params, z, x):
        deep, index = z["deep"]
        return jnp.vdot(params["a"], deep) * deep[index] + jnp.sum(
            z["skip"][z["sign"] * 1]
        )

    def loss_b(params, z, x):
        return jnp.sum(jnp.where(z["sign"], z["skip"] * params["b"], 0) ** 2)

    x = np.array([0.3, -1.0, 2.0, 0.1])
    oracle = mtlopt.task_grad({"a": loss_a, "b": loss_b}, labels, encode=encode)

    def total(params):
        z = encode(params, x)
        return 2 * loss_a(params, z, x) + 3 * loss_b(params, z, x)

    @functools.partial(jax.jit, compiler_options=QUICK)
    def run(params):
        grads = oracle(params, x).scale_by(jnp.array([2.0, 3.0]))
        latent = grads.in_latent_space().rows().combine(jnp.ones(2))
        sums = grads.combine(jnp.ones(2)), grads.updates(latent)
        losses = grads.losses_at(params, grads.z), grads.losses
        heads = oracle.heads(params, grads.z, x).grad
        return sums, jax.grad(total)(params), grads.z, encode(params, x), losses, heads

    sums, expected, found, z, losses, heads = run(params)
    assert_close(sums, (expected, expected), 1e-12)
    assert_close(found, z, 1e-15)
    assert_close(*losses, 1e-15)
    assert_close(heads["a"], sums[0]["a"] / 2, 1e-12)


def test_tied_embedding_has_its_exact_gradient(float64):
    """A shared leaf that heads read too is part of z."""
    rng = np.random.default_rng(0)
    params = {"embedding": rng.normal(size=(6, 3)), "a": rng.normal(size=3)}
    tokens = np.array([0, 4, 4, 2])

    def encode(params, tokens):
        return jnp.tanh(params["embedding"][tokens]), params["embedding"]

    def language(params, z, tokens):
        hidden, embedding = z
        logits = hidden @ embedding.T
        return -jnp.mean(jax.nn.log_softmax(logits)[jnp.arange(4), tokens])

    def sentiment(params, z, tokens):
        return jnp.mean(z[0] @ params["a"]) ** 2

    oracle = mtlopt.task_grad(
        {"language": language, "a": sentiment},
        {"embedding": "shared", "a": "a"},
        encode=encode,
        headless=["language"],
    )

    def total(params):
        z = encode(params, tokens)
        return language(params, z, tokens) + sentiment(params, z, tokens)

    @functools.partial(jax.jit, compiler_options=QUICK)
    def run(params):
        grads = oracle(params, tokens)
        found = grads.combine(jnp.ones(2)), grads.jacobian()["embedding"][0]
        alone = jax.grad(lambda p: language(p, encode(p, tokens), tokens))(params)
        return found, (jax.grad(total)(params), alone["embedding"])

    assert_close(*run(params), 1e-12)


# Values beside the losses, and many runs at once.


@pytest.mark.parametrize("shape", ["encode", "vector", "independent", "stacked"])
def test_aux_is_handed_through(shape):
    """has_aux: one value of encode and one of every task."""
    labels = {"w": "shared", "a": "a", "b": "b"}
    params = {"w": 2.0, "a": 3.0, "b": 5.0}
    if shape == "encode":
        oracle = mtlopt.task_grad(
            {
                "a": lambda p, z: (p["a"] * z, "of a"),
                "b": lambda p, z: (p["b"] * z, {"square": z**2}),
            },
            labels,
            encode=lambda p: (p["w"] ** 2, jnp.array([7, 8])),
            has_aux=True,
        )
        aux = oracle(params).aux
        assert aux.tasks == {"a": "of a", "b": {"square": 16.0}}
        np.testing.assert_array_equal(aux.encode, [7, 8])
        np.testing.assert_array_equal(oracle.block("task", params).aux.encode, [7, 8])
        assert oracle.task("b", params).aux.tasks == {"b": {"square": 16.0}}
        assert oracle.heads(params, 3.0).aux.tasks["b"] == {"square": 9.0}
    elif shape == "vector":
        oracle = mtlopt.task_grad(
            lambda p: ((p["w"] * p["a"], p["w"] * p["b"]), p["w"] + 1),
            labels,
            tasks=["a", "b"],
            has_aux=True,
        )
        assert oracle(params).aux == mtlopt.Aux(3.0, None)
    elif shape == "independent":
        oracle = mtlopt.task_grad(
            {name: lambda p, name=name: (p["w"] * p[name], p[name]) for name in "ab"},
            labels,
            has_aux=True,
        )
        assert oracle(params).aux == mtlopt.Aux(None, {"a": 3.0, "b": 5.0})
    else:
        oracle = mtlopt.task_grad(
            mtlopt.stacked(lambda p, z, task: (p["heads"] * z, task + 10), 2),
            {"w": "shared", "heads": "stacked"},
            encode=lambda p: (p["w"], None),
            has_aux=True,
        )
        aux = oracle({"w": 2.0, "heads": jnp.array([3.0, 5.0])}).aux
        np.testing.assert_array_equal(aux.tasks, [10, 11])


def test_batch_statistics_move_once_a_step():
    """The state after a step on 8 tasks is the state after a step on 1."""
    nnx = pytest.importorskip("flax.nnx")

    class Encoder(nnx.Module):
        def __init__(self, rngs):
            self.linear = nnx.Linear(INPUTS, WIDTH, rngs=rngs)
            self.norm = nnx.BatchNorm(WIDTH, momentum=0.5, rngs=rngs)

        def __call__(self, x):
            return self.norm(self.linear(x))

    graphdef, weights, statistics = nnx.split(
        Encoder(nnx.Rngs(0)), nnx.Param, nnx.BatchStat
    )

    def encode(params, statistics, x):
        model = nnx.merge(graphdef, params["encoder"], statistics, copy=True)
        z = model(x)
        return z, nnx.state(model, nnx.BatchStat)

    x = np.random.default_rng(0).normal(size=(BATCH, INPUTS)).astype(np.float32) + 3
    after = {}
    for num_tasks in (1, 8):

        def head(params, z, task, statistics, x):
            return jnp.mean((z @ params["heads"] - task) ** 2), None

        oracle = mtlopt.task_grad(
            mtlopt.stacked(head, num_tasks),
            {"encoder": "shared", "heads": "stacked"},
            encode=encode,
            has_aux=True,
        )
        method = METHODS["aligned_mtl"].make(num_tasks)
        params = {"encoder": weights, "heads": jnp.ones((num_tasks, WIDTH))}

        def step(params, statistics, x):
            grads = oracle(params, statistics, x)
            updates, _ = method.update(grads, method.init(params), params)
            return grads.aux.encode, updates

        after[num_tasks], updates = jax.jit(step, compiler_options=QUICK)(
            params, statistics, x
        )
        assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(updates))
    assert_close(after[8], after[1], 0)
    model = nnx.merge(graphdef, weights, statistics, copy=True)
    model(x)
    assert_close(after[1], nnx.state(model, nnx.BatchStat), 1e-6)
    moved = jax.tree.map(lambda a, b: np.any(a != b), after[1], statistics)
    assert any(jax.tree.leaves(moved))


@pytest.mark.slow
def test_vmapped_seeds_equal_single_runs():
    """11 runs at once are 11 runs: of each route, and of one that trains by Adam."""
    oracle, seeds = make_oracle(), np.arange(11)
    routes = {name: METHODS[name].make(3, labels=LABELS) for name in ROUTES}
    adam = optax.chain(routes["pcgrad"], optax.adam(1e-2))

    def updates(params):
        def step(states, batch):
            grads = oracle(params, *batch)
            found = {n: tx.update(grads, states[n], params) for n, tx in routes.items()}
            states = {name: state for name, (_, state) in found.items()}
            return states, {name: updates for name, (updates, _) in found.items()}

        states = {name: tx.init(params) for name, tx in routes.items()}
        return jax.lax.scan(step, states, BATCHES)[1]

    def train(params):
        def step(carry, batch):
            params, state = carry
            moves, state = adam.update(oracle(params, *batch), state, params)
            return (optax.apply_updates(params, moves), state), moves

        return jax.lax.scan(step, (params, adam.init(params)), BATCHES)[1]

    def both(params):
        return updates(params), train(params)

    quick = functools.partial(jax.jit, compiler_options=QUICK)
    with jax.enable_x64(True):
        singles = [make_params(seed) for seed in seeds]
        stacked = jax.tree.map(lambda *leaves: np.stack(leaves), *singles)
        together = jax.device_get(quick(jax.vmap(both))(stacked))
        program, single = plain_program(True), quick(train)
        for seed in seeds:
            run = jax.tree.map(lambda leaf, seed=seed: leaf[seed], together)
            expected = program(singles[seed], BATCHES)[0], single(singles[seed])
            assert_close(run, expected, 1e-8)
