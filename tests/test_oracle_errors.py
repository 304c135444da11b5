"""Bad problems raise one message that names the argument, the task or the leaf."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import mtlopt
from tests.problems import matrix_oracle, methods_of

PARAMS = {"w": jnp.ones(2), "heads": {"a": jnp.ones(2), "b": jnp.ones(2)}}
LABELS = {"w": "shared", "heads/a": "a", "heads/b": "b"}


def encode(params, x):
    return params["w"] * x


def loss_a(params, z, x):
    return jnp.vdot(params["heads"]["a"], z)


def loss_b(params, z, x):
    return jnp.vdot(params["heads"]["b"], z)


def build(a=loss_a, b=loss_b, labels=LABELS, encode=encode, **options):
    return mtlopt.task_grad({"a": a, "b": b}, labels, encode=encode, **options)


X = jnp.ones(2)


@pytest.mark.parametrize("jit", [False, True])
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"a": lambda p, z, x: loss_a(p, z, x) + p["w"][0]},
            "the loss of task 'a' reads the shared leaf `w`",
        ),
        (
            {"a": lambda p, z, x: loss_a(p, z, x) + p["heads"]["b"][0]},
            "the loss of task 'a' reads `heads/b`, which is labelled 'b'",
        ),
        (
            {"encode": lambda p, x: p["w"] * p["heads"]["b"]},
            "encode reads `heads/b`, which is labelled 'b'",
        ),
        (
            {"b": lambda p, z, x: z},
            r"the loss of task 'b' must be a scalar, got shape \(2,\)",
        ),
        (
            {"b": lambda p, z, x: jnp.sum(z > 0)},
            "the loss of task 'b' must be floating point, got int32",
        ),
        (
            {"b": lambda p, z, x: (loss_b(p, z, x), {"right": 1})},
            "the loss of task 'b' must be a scalar, got tuple.*has_aux=True",
        ),
        ({"has_aux": True}, "must return a pair"),
        ({"labels": LABELS | {"heads/b": "c"}}, "`heads/b` must be one of.*'c'"),
        ({"labels": LABELS | {"heads/b": "a"}}, "the task 'b' has no parameters"),
        ({"labels": {"w": "shared", "heads/a": "a"}}, "no rule labels.*`heads/b`"),
        ({"labels": LABELS | {"tail": "a"}}, "the rule 'tail' matches no leaf"),
        ({"encode": lambda p, x: p["w"] > 0}, "at least one floating-point leaf"),
        ({"microbatches": 3}, r"the batch, .*leading axis that 3.*\(2,\)"),
        (
            {"microbatches": 2, "label_counts": lambda x: jnp.ones(3)},
            r"`label_counts` must have one entry per task, shape \(2,\)",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_functions_and_labels_that_do_not_agree(change, message, jit):
    oracle = build(**change)

    def losses(params, x):
        return oracle(params, x).losses

    with pytest.raises(ValueError, match=message):
        (jax.jit(losses) if jit else losses)(PARAMS, X)


def test_reads_are_found_in_the_program_not_in_numbers():
    """A read whose gradient happens to be zero is a read."""
    hidden = build(a=lambda p, z, x: loss_a(p, z, x) + 0 * jnp.max(p["heads"]["b"]))
    with pytest.raises(ValueError, match="task 'a' reads `heads/b`"):
        hidden(PARAMS, X)
    # And what is passed on without effect is none.
    harmless = build(a=lambda p, z, x: loss_a(jax.tree.map(jnp.negative, p), z, x))
    assert harmless(PARAMS, X).losses[0] == -2


@pytest.mark.parametrize(
    "wrap", [jax.jit, jax.checkpoint, lambda f: lambda *a: jax.lax.cond(True, f, f, *a)]
)
def test_wrapped_functions_are_seen_through(wrap):
    """Nested programs that take all parameters read only what they use."""
    oracle = build(a=wrap(loss_a), encode=wrap(encode))
    np.testing.assert_allclose(oracle(PARAMS, X).losses, [2, 2])
    with pytest.raises(ValueError, match="encode reads `heads/b`"):
        build(encode=wrap(lambda p, x: p["w"] * p["heads"]["b"]))(PARAMS, X)


@pytest.mark.parametrize("form", ["dict", "list", "vector"])
def test_vector_losses_may_not_read_foreign_heads(form):
    def losses(params):
        a = jnp.sum(params["w"] * params["heads"]["a"])
        b = jnp.sum(params["heads"]["a"] * params["heads"]["b"])
        if form == "dict":
            return {"b": b, "a": a}
        return [a, b] if form == "list" else jnp.stack([a, b])

    oracle = mtlopt.task_grad(losses, LABELS, tasks=["a", "b"])
    with pytest.raises(ValueError, match=r"task 'b' reads `heads/a`.*labelled 'a'"):
        oracle(PARAMS)


def test_vector_losses_that_cannot_be_told_apart():
    """Only with heads: a matmul hides which loss reads which of them."""

    def losses(params):
        return jnp.stack([params["heads"]["a"], params["heads"]["b"]]) @ params["w"]

    with pytest.raises(ValueError, match=r"jnp.stack of scalars"):
        mtlopt.task_grad(losses, LABELS, tasks=["a", "b"])(PARAMS)
    assert mtlopt.task_grad(losses, "shared", tasks=["a", "b"])(PARAMS).num_tasks == 2


@pytest.mark.parametrize(
    ("returned", "message"),
    [
        (lambda p: {"a": p, "c": p}, r"must return the tasks \('a', 'b'\), got.*'c'"),
        (lambda p: [p], "must return 2 losses, one for each of `tasks`, got 1"),
        (lambda p: jnp.stack([p] * 3), r"got an array of shape \(3,\)"),
        (lambda p: p, r"got an array of shape \(\)"),
        (lambda p: [p, p[None]], r"task 'b' must be a scalar, got shape \(1,\)"),
    ],
)
def test_vector_losses_of_the_wrong_form(returned, message):
    oracle = mtlopt.task_grad(
        lambda params: returned(params["w"]), "shared", tasks=["a", "b"]
    )
    with pytest.raises(ValueError, match=message):
        oracle({"w": jnp.ones(())})


@pytest.mark.parametrize(
    ("error", "arguments", "options", "message"),
    [
        (TypeError, (3, "shared"), {}, "`losses` must be a mapping.*got int"),
        (TypeError, ({"a": 3}, "shared"), {}, r"`losses\['a'\]` must be callable"),
        (ValueError, ({}, "shared"), {}, "at least one task"),
        (ValueError, (loss_a, "shared"), {}, "`tasks` must be a sequence"),
        (ValueError, (loss_a, "shared"), {"tasks": "ab"}, "`tasks` must be a sequence"),
        (
            ValueError,
            (loss_a, "shared"),
            {"encode": encode, "tasks": ["a"]},
            "`losses` must be a mapping.*when `encode` is given",
        ),
        (
            ValueError,
            ({"a": loss_a}, "shared"),
            {"tasks": ["b"]},
            r"`tasks` must be \('a',\) as in `losses`, or left out",
        ),
        (ValueError, ({"shared": loss_a}, "shared"), {}, "name of a task.*'shared'"),
        (ValueError, ({1: loss_a}, "shared"), {}, "name of a task must be a string"),
        (
            ValueError,
            ({"a": loss_a}, "shared"),
            {"headless": ["b"]},
            "`headless` must be one of 'a', got 'b'",
        ),
        (
            ValueError,
            ({"a": loss_a}, "shared"),
            {"batching": "loop"},
            "`batching` must be one of 'auto', 'unroll', 'vmap', 'map', got 'loop'",
        ),
        (ValueError, ({"a": loss_a}, "shared"), {"batching": 0}, "`batching` must be"),
        (
            ValueError,
            ({"a": loss_a}, "shared"),
            {"microbatches": 0},
            "`microbatches` must be a positive int, got 0",
        ),
        (
            ValueError,
            ({"a": loss_a}, "shared"),
            {"streaming": True},
            "`streaming` must be False for losses without `encode`",
        ),
        (
            ValueError,
            ({"a": loss_a}, "shared"),
            {"streaming": True, "microbatches": 2, "encode": encode},
            "`streaming` must be False with several microbatches",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_bad_arguments_of_task_grad(error, arguments, options, message):
    with pytest.raises(error, match=message):
        mtlopt.task_grad(*arguments, **options)


def test_bad_arguments_of_stacked():
    with pytest.raises(TypeError, match="`head` must be callable, got int"):
        mtlopt.stacked(3, 2)
    with pytest.raises(ValueError, match="`num_tasks` must be at least 1, got 0"):
        mtlopt.stacked(loss_a, 0)
    for num_tasks in (2.0, True):
        with pytest.raises(TypeError, match="`num_tasks` must be an int"):
            mtlopt.stacked(loss_a, num_tasks)


def test_stacked_head_may_not_read_shared_leaves():
    oracle = mtlopt.task_grad(
        mtlopt.stacked(lambda p, z, task: jnp.sum(p["heads"] * z * p["w"]), 2),
        {"w": "shared", "heads": "stacked"},
        encode=lambda p: p["w"],
    )
    with pytest.raises(ValueError, match="reads the shared leaf `w`"):
        oracle({"w": jnp.ones(2), "heads": jnp.ones((2, 2))})


def test_bad_arguments_of_the_oracle():
    oracle = build()
    with pytest.raises(
        ValueError, match=r"`present` must have.*\(2,\), got shape \(3,\)"
    ):
        oracle(PARAMS, X, present=[True, True, False])
    with pytest.raises(ValueError, match="`task` must be one of 'a', 'b', got 'c'"):
        oracle.task("c", PARAMS, X)
    for index in (2, -1, np.int32(2)):
        with pytest.raises(ValueError, match="`task` must be between 0 and 1"):
            oracle.task(index, PARAMS, X)
    with pytest.raises(ValueError, match=r"`task` must have one entry per task"):
        oracle.task(jnp.ones(3), PARAMS, X)
    with pytest.raises(
        ValueError, match="unless heads are stacked, got a traced index"
    ):
        jax.jit(lambda task: oracle.task(task, PARAMS, X).grad)(0)
    with pytest.raises(ValueError, match="`block` must be one of 'shared', 'task'"):
        oracle.block("heads", PARAMS, X)
    with pytest.raises(ValueError, match="at least one leaf, got an empty tree"):
        oracle({}, X)
    with pytest.raises(ValueError, match="`microbatches` needs a batch"):
        build(encode=lambda p: p["w"], microbatches=2)(PARAMS)
    integers = PARAMS | {"w": jnp.ones(2, int)}
    with pytest.raises(ValueError, match="the parameter `w` must be floating point"):
        oracle(integers, X)
    # As in an Equinox module before `eqx.partition`.
    for static, name in ((lambda x: x, "function"), ("float32", "str")):
        static_params = PARAMS | {"w": static}
        with pytest.raises(ValueError, match=f"parameter `w` must be .*, got {name}"):
            oracle(static_params, X)


def test_given_latent_needs_an_encoder():
    oracle = mtlopt.task_grad({"a": lambda p: p["w"]}, "shared")
    params = {"w": jnp.ones(())}
    with pytest.raises(ValueError, match=r"given latent needs.*`encode`"):
        oracle.heads(params, 1.0)
    with pytest.raises(ValueError, match=r"given latent needs.*`encode`"):
        oracle(params).losses_at(params, 1.0)


def test_checked_once_per_signature():
    """The check traces the functions only when something about the call is new."""
    calls = []

    def counted(params, z, x):
        calls.append(x.shape)
        return loss_a(params, z, x)

    oracle = build(a=counted)
    oracle(PARAMS, X)
    after_first = len(calls)
    oracle(PARAMS, X + 1)
    every_call = len(calls) - after_first
    assert after_first > every_call
    oracle(PARAMS, jnp.ones(1))
    assert len(calls) - after_first - every_call == after_first


def test_tasks_that_run_are_checked_and_no_others():
    """The foreign leaf is met when its reader runs, and not before."""
    oracle = build(a=lambda p, z, x: loss_a(p, z, x) + p["heads"]["b"][0])
    message = "the loss of task 'a' reads `heads/b`, which is labelled 'b'"
    oracle.task("b", PARAMS, X)
    oracle(PARAMS, X, present={"a": False, "b": True})
    for call in (
        lambda: oracle.task("a", PARAMS, X),
        lambda: oracle(PARAMS, X, present={"a": True, "b": False}),
        lambda: oracle(PARAMS, X, present={"a": jnp.array(False), "b": True}),
    ):
        with pytest.raises(ValueError, match=message):
            call()


# What a transform refuses.

GRADS = mtlopt.TaskGrads.from_rows({"w": jnp.eye(2)})
WEIGHTS = {"w": jnp.zeros(2)}

FOREIGN = {
    "adam": optax.adam(0.1),
    "sgd": optax.sgd(0.1),
    "momentum": optax.sgd(0.1, momentum=0.9),
    "scale": optax.scale(0.5),
    "clip": optax.clip(1.0),
    "clip_by_global_norm": optax.clip_by_global_norm(1.0),
    "add_decayed_weights": optax.add_decayed_weights(0.1),
    "add_noise": optax.add_noise(0.1, 0.5, 0),
    "ema": optax.ema(0.9),
    "normalize": optax.normalize_by_update_norm(),
    "multi_steps": optax.MultiSteps(optax.identity(), 2).gradient_transformation(),
}


@pytest.mark.parametrize("name", FOREIGN)
def test_ordinary_transforms_before_the_aggregator_raise(name):
    """The guard, a PRNG key, refuses their arithmetic instead of corrupting a part."""
    tx = optax.chain(FOREIGN[name], mtlopt.sum_tasks(2))
    with pytest.raises((TypeError, ValueError, NotImplementedError)):
        tx.update(GRADS, tx.init(WEIGHTS), WEIGHTS)


@pytest.mark.parametrize(
    "transform",
    [
        mtlopt.sum_tasks(2),
        mtlopt.mgda(2),
        mtlopt.weight_by_fixed([1.0, 2.0]),
        mtlopt.weight_by_dwa(2),
        mtlopt.weight_by_uncertainty(2),
        mtlopt.in_latent_space(mtlopt.mgda(2)),
    ],
)
def test_plain_gradients_are_refused(transform):
    with pytest.raises(
        TypeError, match=r"must be a mtlopt.TaskGrads, got dict.*task_grad"
    ):
        transform.update(WEIGHTS, transform.init(WEIGHTS), WEIGHTS)


@pytest.mark.parametrize("name", methods_of(3))
def test_wrong_number_of_tasks(name):
    grads = mtlopt.task_grad(
        {"a": lambda p, z: z, "b": lambda p, z: -z}, "shared", encode=lambda p: p["w"]
    )({"w": jnp.ones(())})
    method = mtlopt.METHODS[name].make(3)
    with pytest.raises(ValueError, match=r"`num_tasks`( of `\w+`)? must be 2.*got 3"):
        method.update(grads, method.init({"w": jnp.ones(())}))


def test_params_of_another_structure():
    tx = mtlopt.sum_tasks(2)
    with pytest.raises(ValueError, match="`params` must have the structure"):
        tx.update(GRADS, tx.init(WEIGHTS), {"v": jnp.zeros(2)})


def test_latent_space_needs_an_aggregator():
    with pytest.raises(
        TypeError, match=r"`aggregator` must be.*got the function mgda.*mgda\(num_tasks"
    ):
        mtlopt.in_latent_space(mtlopt.mgda)


def test_latent_space_needs_a_latent():
    tx = mtlopt.in_latent_space(mtlopt.mgda(2))
    with pytest.raises(ValueError, match=r"latent space needs a latent.*encode="):
        tx.update(GRADS, tx.init(WEIGHTS))


def test_methods_that_need_more_than_the_gramian_say_so():
    """`streaming` keeps no rows, and neither does the latent space of microbatches."""
    tx = mtlopt.graddrop(2)
    grads = build(streaming=True)(PARAMS, X)
    with pytest.raises(ValueError, match="`streaming` must be False"):
        tx.update(grads, tx.init(PARAMS), PARAMS)
    latent = mtlopt.in_latent_space(tx)
    grads = build(microbatches=2)(PARAMS, X)
    with pytest.raises(ValueError, match="`microbatches` must be 1"):
        latent.update(grads, latent.init(PARAMS), PARAMS)
    with pytest.raises(ValueError, match="nothing else is kept of them"):
        grads.in_latent_space().rows().pull([X])


def test_complex_latent_is_refused():
    """Its cotangent is not a row of real numbers, and must not be lost."""
    oracle = mtlopt.task_grad(
        {"a": lambda params, z: jnp.abs(z[1])},
        "shared",
        encode=lambda params: (params, params * (1 + 1j)),
    )
    with pytest.raises(ValueError, match="must return real leaves"):
        oracle(jnp.ones(()))


def test_tasks_must_differ():
    with pytest.raises(ValueError, match="in `tasks` must be different"):
        mtlopt.task_grad(lambda params: (params, params), "shared", tasks=("a", "a"))


def test_stacked_tasks_have_names():
    head = mtlopt.stacked(lambda params, task: params["w"] * task, 2)
    oracle = mtlopt.task_grad(head, {"w": "shared"}, tasks=("up", "down"))
    assert oracle.tasks == ("up", "down")
    with pytest.raises(ValueError, match="`tasks` must name the 2 stacked tasks"):
        mtlopt.task_grad(head, {"w": "shared"}, tasks=("up",))


def test_transform_that_skips_vectors_meets_the_guard():
    grads = mtlopt.TaskGrads.from_rows(jnp.ones((2, 3, 3)))
    with pytest.raises(NotImplementedError):
        optax.centralize().update(grads, optax.EmptyState())


@pytest.mark.parametrize("name", ["mgda", "pcgrad", "aligned_mtl", "mean_tasks"])
def test_nothing_shared_moves_the_heads_only(name):
    """Frozen features: every method is training each head on its own loss."""
    oracle = mtlopt.task_grad(
        {
            "a": lambda params, x: params["a"] * x,
            "b": lambda params, x: params["b"] * x,
        },
        {"a": "a", "b": "b"},
    )
    params = {"a": jnp.array(1.0), "b": jnp.array(2.0)}
    tx = mtlopt.METHODS[name].make(2, labels=oracle.labels)
    updates, _ = tx.update(oracle(params, 3.0), tx.init(params))
    assert updates == {"a": 3.0, "b": 3.0}


def test_an_encoder_that_closes_over_its_parameters_is_refused():
    params = {"trunk": jnp.ones(3), "a": jnp.ones(3), "b": jnp.ones(3)}
    losses = {
        name: lambda params, z, x, name=name: jnp.vdot(params[name], z * x)
        for name in "ab"
    }
    trunk = params["trunk"]
    oracle = mtlopt.task_grad(
        losses,
        {"trunk": "shared", "a": "a", "b": "b"},
        encode=lambda params, x: trunk * x,
    )
    with pytest.raises(ValueError, match="encode reads no leaf that is labelled"):
        oracle(params, jnp.ones(3))


TWO_HEADS = {key: jnp.ones(3) for key in ("w", "a", "b", "c")}
TWO_LABELS = {"w": "shared", "a": "a", "b": "b", "c": "b"}
STACKS = {"w": jnp.ones(3), "b": jnp.ones((2, 3)), "c": jnp.ones((2, 3))}
ENCODE = {"encode": lambda params: params["w"]}

# Where `read` tells from which parameters the second loss, or a stacked one, reads "b".
FORMS = {
    "heads": lambda read: (
        {"a": lambda p, z: p["a"] @ z, "b": lambda p, z: read(p)["b"] @ z},
        ENCODE,
    ),
    "losses": lambda read: (
        {"a": lambda p: p["a"] @ p["w"], "b": lambda p: read(p)["b"] @ p["w"]},
        {},
    ),
    "one function": lambda read: (
        lambda p: (p["a"] @ p["w"], read(p)["b"] @ p["w"]),
        {"tasks": ("a", "b")},
    ),
    "stacked": lambda read: (
        mtlopt.stacked(lambda p, z, task: jnp.sum(read(p)["b"] * z), 2),
        ENCODE,
    ),
    "stacked losses": lambda read: (
        mtlopt.stacked(lambda p, task: jnp.sum(read(p)["b"] * p["w"]), 2),
        {},
    ),
}


def check_reads(form, read, **changed_labels):
    """Traces a problem in which nobody reads "c"; a label of None drops the leaf."""
    losses, options = FORMS[form](read)
    params, labels = TWO_HEADS, TWO_LABELS
    if form.startswith("stacked"):
        params, labels = STACKS, {"w": "shared", "b": "stacked", "c": "stacked"}
    labels = {key: changed_labels.get(key, labels[key]) for key in params}
    kept = [key for key in params if labels[key] is not None]
    if "b" not in kept and "a" in kept:
        options = options | {"headless": ["b"]}
    oracle = mtlopt.task_grad(losses, {key: labels[key] for key in kept}, **options)
    return jax.eval_shape(oracle, {key: params[key] for key in kept}).losses


@pytest.mark.parametrize("form", FORMS)
def test_a_loss_that_closes_over_its_parameters_is_refused(form):
    task, label = ("0", "stacked") if form.startswith("stacked") else ("b", "b")
    message = (
        f"the loss of task '{task}' reads no leaf that is labelled '{label}', so "
        "`{}` would never move"
    )
    outside = STACKS if form.startswith("stacked") else TWO_HEADS
    with pytest.raises(ValueError, match=message.format("b")):
        check_reads(form, lambda params: outside)
    # The leaf that it reads is frozen, and is not the one that moves.
    with pytest.raises(ValueError, match=message.format("c")):
        check_reads(form, lambda params: params, b="frozen")
    # One leaf of its own is enough, and who has none that moves need not read any.
    for read, labels in (
        (lambda params: params, {}),
        (lambda params: outside, {"b": None, "c": None}),
        (lambda params: outside, {"b": "frozen", "c": "frozen"}),
    ):
        assert check_reads(form, read, **labels).shape == (2,)


def test_a_loss_that_closes_over_its_parameters_is_refused_on_a_given_latent():
    losses, options = FORMS["heads"](lambda params: TWO_HEADS)
    oracle = mtlopt.task_grad(losses, TWO_LABELS, **options)
    with pytest.raises(ValueError, match="task 'b' reads no leaf that is labelled"):
        oracle.heads(TWO_HEADS, jnp.ones(3))
    # The other's loss is not in the way where it does not run.
    assert oracle.task("a", TWO_HEADS).losses == 3
    assert oracle(TWO_HEADS, present={"a": True, "b": False}).losses[0] == 3


def test_the_advice_of_an_error_leads_out():
    """A head that reads another's leaf: what the message says to do works."""
    params = {"w": jnp.ones(2), "a": jnp.ones(2), "b": jnp.ones(2), "c": jnp.ones(2)}
    labels = {"w": "shared", "a": "a", "b": "b", "c": "b"}
    losses = {
        "a": lambda p, z: jnp.vdot(z, p["a"]) + jnp.vdot(z, p["c"]),
        "b": lambda p, z: jnp.vdot(z, p["b"]),
    }
    oracle = mtlopt.task_grad(losses, labels, encode=lambda p: p["w"])
    with pytest.raises(
        ValueError, match=r"reads `c`.*No other function reads it: label it 'a'"
    ):
        oracle(params)
    mtlopt.task_grad(losses, labels | {"c": "a"}, encode=lambda p: p["w"])(params)

    losses["b"] = lambda p, z: jnp.vdot(z, p["b"]) - jnp.vdot(z, p["c"])
    oracle = mtlopt.task_grad(losses, labels, encode=lambda p: p["w"])
    advice = r"reads `c`.* label it 'shared' and let encode return it as part of z"
    with pytest.raises(ValueError, match=advice):
        oracle(params)
    advice = r"'a', 'b' read `c`.* If it is shared, let encode return it as part of z"
    with pytest.raises(ValueError, match=advice):
        mtlopt.infer_labels(losses, params, encode=lambda p: p["w"])
    both = {
        "a": lambda p, z: jnp.vdot(z["w"], p["a"]) + jnp.vdot(z["w"], z["c"]),
        "b": lambda p, z: jnp.vdot(z["w"], p["b"]) - jnp.vdot(z["w"], z["c"]),
    }
    oracle = mtlopt.task_grad(
        both, labels | {"c": "shared"}, encode=lambda p: {"w": p["w"], "c": p["c"]}
    )
    assert oracle(params).losses.shape == (2,)


def test_repr_is_short():
    """JAX's errors quote the argument that they do not like."""
    grads = mtlopt.TaskGrads.from_rows({"w": jnp.ones((2, 300)), "b": jnp.ones((2, 3))})
    assert repr(grads) == (
        "TaskGrads(tasks=('0', '1'), shared_leaves=2, head_leaves=0, in_latent=False: "
        "not an update, chain an aggregator before this transform)"
    )


def test_present_by_name():
    params, oracle = PARAMS, build()
    found = oracle(params, X, present={"b": False, "a": True}).present
    np.testing.assert_array_equal(found, [True, False])
    with pytest.raises(ValueError, match=r"`present` must have the keys.*got \('a',\)"):
        oracle(params, X, present={"a": True})
    with pytest.raises(TypeError, match="pass a mapping from task to bool"):
        oracle(params, X, present=["a", "b"])
    with pytest.raises(ValueError, match=r"shape \(4,\) for task 'b'.* mask.any\(\)"):
        oracle(params, X, present={"a": True, "b": jnp.ones(4, bool)})


def test_misspelt_names_are_hinted_at():
    with pytest.raises(KeyError, match=r"no method 'up_grad'.*Did you mean 'upgrad'"):
        _ = mtlopt.METHODS["up_grad"]
    for name, key in (("MGDA-UB", "mgda_ub"), ("weight_by_dwa", "dwa")):
        with pytest.raises(KeyError, match=f"Did you mean '{key}'"):
            _ = mtlopt.METHODS[name]
    with pytest.raises(AttributeError, match="'famo' is built from weight_by_famo"):
        _ = mtlopt.famo
    with pytest.raises(AttributeError, match="'pcgrad' is built from pcgrad"):
        _ = mtlopt.PCGrad
    with pytest.raises(AttributeError, match=r"\.make\(num_tasks\) makes one"):
        optax.chain(mtlopt.METHODS["upgrad"], optax.adam(1e-3))
    with pytest.raises(AttributeError, match=r"built from aligned_mtl: see METHODS"):
        _ = mtlopt.aligned_MTL
    with pytest.raises(AttributeError, match=r"Did you mean suggestions\?"):
        _ = mtlopt.suggestion
    with pytest.raises(AttributeError, match=r"has no attribute 'nothing'$"):
        _ = mtlopt.nothing


@pytest.mark.parametrize("name", mtlopt.METHODS)
def test_state_of_another_number_of_tasks(name):
    """One sentence, also where a state of one task would broadcast."""
    method = mtlopt.METHODS[name]
    num_tasks = method.min_tasks + 1
    oracle, params = matrix_oracle(num_tasks), jnp.zeros(3)
    rows, losses = jnp.ones((num_tasks, 3)), jnp.ones(num_tasks)
    tx = method.make(num_tasks)
    last = (
        method.public[0] if method.public[0] != "in_latent_space" else method.public[1]
    )
    for other in (num_tasks - 1, num_tasks + 1):
        state = method.make(other).init(params)
        message = f"the state of `{last}` for {num_tasks} tasks, got .* {other}"
        with pytest.raises(ValueError, match=message):
            jax.eval_shape(
                lambda state: tx.update(oracle(params, rows, losses), state, params),
                state,
            )


def test_states_of_other_heads_and_turns():
    """The same of transforms that keep a state per head or per turn."""
    params = {"w": jnp.ones(2), "heads": jnp.ones((3, 2))}
    labels = {"w": "shared", "heads": "stacked"}
    fewer = params | {"heads": jnp.ones((1, 2))}
    tx = mtlopt.per_label(optax.adam(0.1), labels)
    with pytest.raises(
        ValueError, match=r"the state of `per_label` for 3 tasks, got .* 1"
    ):
        tx.update(params, tx.init(fewer), params)
    with pytest.raises(
        ValueError, match=r"for the labels \['shared', 'stacked'\], got"
    ):
        tx.update(params, mtlopt.per_label(optax.adam(0.1), "shared").init(params))
    turns = [
        mtlopt.individual_optimizers(optax.adam(0.1), num_turns, labels)
        for num_turns in (2, 3)
    ]
    message = "the state of `individual_optimizers` for 3 tasks, got a state for 2"
    with pytest.raises(ValueError, match=message):
        turns[1].update(params, turns[0].init(params), params, task=2)


def test_state_of_another_method():
    tx = mtlopt.mgda(2)
    with pytest.raises(
        TypeError, match=r"`state` must be the state of `mgda`.*got tuple"
    ):
        tx.update(GRADS, optax.chain(tx).init(WEIGHTS), WEIGHTS)
