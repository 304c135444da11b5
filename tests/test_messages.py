"""One thing in the place of another: it works, or a sentence says what to do."""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import mtlopt
from mtlopt import METHODS
from tests.problems import ROUTES, assert_close, matrix_oracle

LABELS = {"w": "shared", "a": "a", "b": "b"}
PARAMS = {"w": jnp.ones(2), "a": jnp.array([1.0, 2.0]), "b": jnp.array([3.0, 1.0])}
ORACLE = mtlopt.task_grad(
    {name: lambda p, name=name: jnp.vdot(p[name], p["w"]) for name in ("a", "b")},
    LABELS,
)


def test_what_a_loss_may_not_read_of_the_encoder():
    """The advice is not to label it as it is labelled."""
    oracle = mtlopt.task_grad(
        {"a": lambda p, z: jnp.vdot(p["a"], z) + p["w"][0]},
        {"w": "shared", "a": "a"},
        encode=lambda p: p["w"],
    )
    with pytest.raises(ValueError, match="reads the shared leaf `w`") as error:
        oracle({"w": PARAMS["w"], "a": PARAMS["a"]})
    assert "Let encode return it as part of z" in str(error.value)
    assert "abel" not in str(error.value)


def notes(error):
    """The library's own: JAX adds one on its frames."""
    found = getattr(error.value, "__notes__", [])
    return [note for note in found if note.startswith("mtlopt")]


X = jnp.ones((4, 2))


def with_z(params, z, x):
    return params["a"] @ z + x.sum()


def swapped(z, params, *args):
    return params["a"] @ z


ENCODE = {"encode": lambda params, *_: params["w"]}
WRITTEN_FOR_OTHER_ARGUMENTS = {
    "loss": (
        {"a": swapped, "b": with_z},
        ENCODE,
        "the loss of task 'a' as f(params, latent, *args), with arguments (dict, "
        "float32[2], float32[4, 2]).",
    ),
    "encode": (
        {"a": with_z, "b": with_z},
        {"encode": lambda x, params: params["w"]},
        "encode as f(params, *args), with arguments (dict, float32[4, 2]).",
    ),
    "no latent": (
        {"a": lambda x, params: params["a"] @ params["w"]},
        {},
        "the loss of task 'a' as f(params, *args), with arguments (dict, "
        "float32[4, 2]).",
    ),
    "one function": (
        lambda x, params: [params["a"] @ params["w"]],
        {"tasks": ["a"]},
        "`losses` as f(params, *args), with arguments (dict, float32[4, 2]).",
    ),
    "stacked": (
        mtlopt.stacked(lambda params, task, z, x: params["a"] @ z[0], 2),
        ENCODE,
        "the stacked head as f(params, latent, task, *args), with arguments (dict, "
        "float32[2], int32[], float32[4, 2]). Leaves labelled 'stacked' have no "
        "task axis in this call.",
    ),
    "samplewise": (
        mtlopt.samplewise({"a": swapped}, lambda sample: 0),
        ENCODE,
        "the loss of task 'a' as f(params, latent, *args), with arguments (dict, "
        "float32[2], float32[2]).",
    ),
    "state": (
        {"a": lambda params, z, state: (z[state["count"]], state)},
        {"encode": lambda params, state: (params["w"], state), "has_state": True},
        "the loss of task 'a' as f(params, latent, *args, state), with "
        "arguments (dict, float32[2], float32[4, 2]).",
    ),
}


@pytest.mark.parametrize("name", WRITTEN_FOR_OTHER_ARGUMENTS)
def test_an_error_of_a_function_says_how_it_was_called(name):
    losses, options, expected = WRITTEN_FOR_OTHER_ARGUMENTS[name]
    oracle = mtlopt.task_grad(losses, "shared", **options)
    with pytest.raises((TypeError, IndexError), match="ind") as error:
        jax.jit(oracle)(PARAMS, X)
    assert notes(error) == [f"mtlopt called {expected}"]


def test_any_error_of_a_function_is_raised_as_it_is():
    problem = KeyError("label")

    def loss(params, z, x):
        raise problem

    oracle = mtlopt.task_grad({"a": loss}, "shared", **ENCODE)
    with pytest.raises(KeyError) as error:
        oracle(PARAMS, X)
    assert error.value is problem
    assert len(notes(error)) == 1
    # What mtlopt finds in its result is no error of the function.
    oracle = mtlopt.task_grad({"a": lambda params, z, x: None}, "shared", **ENCODE)
    with pytest.raises(ValueError, match="the loss of task 'a' must return a") as error:
        oracle(PARAMS, X)
    assert not notes(error)


def test_a_wrong_number_of_arguments():
    oracle = mtlopt.task_grad({"a": lambda params, z: z}, "shared", **ENCODE)
    message = (
        r"the loss of task 'a' must take 3 arguments, as f\(params, latent, \*args\), "
        r"with arguments \(dict, float32\[2\], float32\[4, 2\]\)\. "
        r".*: too many positional"
    )
    with pytest.raises(TypeError, match=message) as error:
        oracle(PARAMS, X)
    assert not notes(error)
    losses = {"a": lambda params, x: jnp.mean(x) * params["w"][0]}
    oracle = mtlopt.task_grad(
        losses, "shared", microbatches=2, label_counts=lambda params, x: jnp.ones(1)
    )
    with pytest.raises(TypeError, match=r"`label_counts` must .*as f\(batch, \*args"):
        oracle(PARAMS, X)


@pytest.mark.parametrize("encode", [None, lambda params: params["w"]])
def test_labels_of_two_heads_that_are_swapped(encode):
    def build(labels, read=lambda params, task: params[task]):
        losses = {
            task: lambda params, *z, task=task: jnp.vdot(
                read(params, task), z[0] if z else params["w"]
            )
            for task in ("a", "b")
        }
        return mtlopt.task_grad(losses, LABELS | labels, encode=encode)

    message = (
        "task 'a' reads `a`, which is labelled 'b'. The loss of task 'b' reads `b`, "
        "which is labelled 'a': the two labels look swapped"
    )
    with pytest.raises(ValueError, match=message):
        build({"a": "b", "b": "a"})(PARAMS)
    build({})(PARAMS)
    # Each reads both: nothing is swapped.
    with pytest.raises(ValueError, match=r"[Ll]abel .*'shared'") as error:
        build({}, lambda params, _: params["a"] * params["b"])(PARAMS)
    assert "swapped" not in str(error.value)


def test_stacked_heads_that_are_labelled_shared():
    head = mtlopt.stacked(lambda params, z, task: jnp.sum(params["heads"] * z), 3)
    params = {"w": jnp.ones(2), "heads": jnp.ones((3, 2))}
    encode = lambda params: params["w"]  # noqa: E731
    with pytest.raises(ValueError, match=r"`heads`.* label it 'stacked'"):
        mtlopt.task_grad(head, "shared", encode=encode)(params)
    labels = {"*": "shared", "heads": "stacked"}
    mtlopt.task_grad(head, labels, encode=encode)(params)


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class Module:
    """As one of Equinox before `eqx.partition`: an activation is a leaf."""

    w: jax.Array
    activation: Callable[..., Any]


MODULE = Module(jnp.ones(2), jax.nn.relu)


def test_functions_among_the_parameters():
    def encode(module):
        return module.activation(module.w)

    losses = {"a": lambda module, z: jnp.sum(z)}
    labels = {"w": "shared"}  # an activation has no label
    oracle = mtlopt.task_grad(losses, labels, encode=encode)
    sgd = optax.sgd(0.1)
    calls = {
        name: optax.chain(method.make(4, labels=labels), optax.adam(0.1)).init
        for name, method in METHODS.items()
    }
    calls["oracle"] = oracle
    calls["infer_labels"] = lambda m: mtlopt.infer_labels(losses, m, encode=encode)
    calls["per_label"] = mtlopt.per_label(sgd, labels).init
    calls["individual"] = mtlopt.individual_optimizers(sgd, 1, labels).init
    calls["blocks"] = mtlopt.alternate_blocks(sgd, sgd, labels).init
    for name, call in calls.items():
        with pytest.raises(ValueError, match=r"`activation` .*eqx\.partition"):
            pytest.fail(f"{name} returned {call(MODULE)}")


@pytest.mark.parametrize(
    ("make_step", "tx"),
    [
        (mtlopt.train_step, optax.chain(mtlopt.mgda(2), optax.adam(0.1))),
        (
            mtlopt.block_step,
            mtlopt.alternate_blocks(optax.sgd(1), optax.sgd(1), LABELS),
        ),
        (
            mtlopt.individual_step,
            mtlopt.individual_optimizers(optax.adam(0.1), 2, LABELS),
        ),
    ],
)
def test_a_run_whose_parts_are_swapped(make_step, tx):
    run = mtlopt.Run(tx.init(PARAMS), PARAMS)
    with pytest.raises(
        TypeError, match=r"State\. The parameters come first .*opt_state\)"
    ):
        make_step(ORACLE, tx)(run)
    with pytest.raises(TypeError, match=r"got a Run\..* pass `run\.params`"):
        ORACLE(mtlopt.Run(PARAMS, tx.init(PARAMS)))


def test_parameters_may_be_tuples_with_names():
    class Leaves(NamedTuple):
        w: jax.Array
        masked: Any

    params = Leaves(jnp.ones(2), optax.MaskedNode())
    grads = mtlopt.task_grad({"a": lambda p: p.w[0]}, "shared")(params)
    assert grads.losses == 1


def test_a_batch_in_the_place_of_the_parameters():
    with pytest.raises(ValueError, match="in a call they come before the batch"):
        ORACLE(X, PARAMS)


def test_numpy_batches_with_stacked_heads():
    """A head indexes the batch by a traced task, also op by op."""

    def head(params, z, task, x, y, names):
        assert names == ["a name"]
        return jnp.mean((x @ params["heads"] * z - y[:, task]) ** 2)

    oracle = mtlopt.task_grad(
        mtlopt.stacked(head, 3),
        {"w": "shared", "heads": "stacked"},
        encode=lambda params, *_: jnp.sum(params["w"]),
    )
    params = {"w": jnp.ones(2), "heads": jnp.arange(6.0).reshape(3, 2)}
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(4, 2)), rng.normal(size=(4, 3))
    outputs = 2 * x @ np.asarray(params["heads"]).T
    grads = oracle(params, x, y, ["a name"])
    expected = np.mean((outputs - y) ** 2, axis=0)
    np.testing.assert_allclose(grads.losses, expected, rtol=1e-5)
    after = grads.losses_at(params)
    np.testing.assert_allclose(after, expected, rtol=1e-5)
    np.testing.assert_allclose(oracle.losses(params, x, y, ["a name"]), expected, 1e-5)
    alone = oracle.task(1, params, x, y, ["a name"])
    np.testing.assert_allclose(alone.losses, expected[1], rtol=1e-5)
    residual = 2 * (outputs - y)[:, 1] @ (2 * x) / 4
    np.testing.assert_allclose(alone.grad["heads"][1], residual, rtol=1e-5)


TAKES_UPDATES = {
    "per_label": mtlopt.per_label(optax.sgd(0.1), LABELS),
    "alternate_blocks": mtlopt.alternate_blocks(optax.sgd(0.1), optax.sgd(0.1), LABELS),
    "individual_optimizers": mtlopt.individual_optimizers(optax.sgd(0.1), 2, LABELS),
    "track_distance": mtlopt.track_distance(LABELS),
    "skip_not_finite": mtlopt.skip_not_finite(optax.sgd(0.1)),
}


@pytest.mark.parametrize("name", TAKES_UPDATES)
def test_a_grad_where_its_gradient_is_meant(name):
    tx = TAKES_UPDATES[name]
    grad = ORACLE.block("shared", PARAMS)
    with pytest.raises(TypeError, match=f"not be a Grad.*Pass its `.grad` to `{name}`"):
        tx.update(grad, tx.init(PARAMS), PARAMS)


@pytest.mark.parametrize("tx", [mtlopt.mgda(2), mtlopt.weight_by_dwa(2)])
def test_a_grad_where_those_of_all_tasks_are_meant(tx):
    grad = ORACLE.task("a", PARAMS)
    with pytest.raises(
        TypeError, match=r"got Grad, which has only one.*Pass its `\.grad`"
    ):
        tx.update(grad, tx.init(PARAMS), PARAMS)


@pytest.mark.parametrize(
    ("name", "advice"),
    [
        ("per_label", "Chain an aggregator before `per_label`"),
        ("alternate_blocks", "Chain an aggregator before `alternate_blocks`"),
        ("individual_optimizers", "Use mtlopt.individual_step in place of train_step"),
        ("track_distance", "Chain an aggregator before `track_distance`"),
    ],
)
def test_task_gradients_where_updates_are_meant(name, advice):
    tx = TAKES_UPDATES[name]
    with pytest.raises(TypeError, match=advice):
        tx.update(ORACLE(PARAMS), tx.init(PARAMS), PARAMS)


@pytest.mark.parametrize(
    ("step", "name"),
    [
        (mtlopt.block_step, "alternate_blocks"),
        (mtlopt.individual_step, "individual_optimizers"),
    ],
)
@pytest.mark.parametrize("method", [mtlopt.mgda(2), mtlopt.weight_by_famo(2)])
def test_a_method_in_a_step_on_plain_losses(step, name, method):
    tx = optax.chain(method, TAKES_UPDATES[name])
    with pytest.raises(ValueError, match=f"`{name}` without a weighting or an aggreg"):
        step(ORACLE, tx)(mtlopt.Run(PARAMS, tx.init(PARAMS)))


def test_complex_parameters():
    with pytest.raises(ValueError, match=r"parameter `w` must be real, got complex64"):
        ORACLE(PARAMS | {"w": jnp.ones(2, complex)})


# Optax's own errors, which quote a class and a leaf.


def fails_from_the_second_step(inner):
    return optax.conditionally_mask(inner, lambda step: step < 1)


TRUNK = {"w": True, "a": False, "b": False}
AROUND = {
    "conditionally_mask": fails_from_the_second_step,
    "masked": lambda inner: optax.masked(inner, TRUNK),
    "MultiSteps": lambda inner: optax.MultiSteps(inner, 2).gradient_transformation(),
    "apply_if_finite": lambda inner: optax.apply_if_finite(inner, 3),
    "flatten": optax.flatten,
    "partition": lambda inner: optax.partition({True: inner, False: inner}, TRUNK),
}
BEFORE = {
    "zero_nans": optax.zero_nans(),
    "set_to_zero": optax.set_to_zero(),
    "clip": optax.clip(1.0),
    "clip_by_global_norm": optax.clip_by_global_norm(1.0),
    "scale": optax.scale(0.5),
    "trace": optax.trace(0.9),
    "adam": optax.scale_by_adam(),
    "masked": optax.masked(optax.clip(1.0), TRUNK),
    "lbfgs": optax.scale_by_lbfgs(),
    "sgd": optax.sgd(0.1),
    "add_decayed_weights": optax.add_decayed_weights(0.1),
    "centralize": optax.centralize(),
}
DWA, MGDA, KEY = mtlopt.weight_by_dwa(2), mtlopt.mgda(2), jax.random.key(0)


@pytest.mark.parametrize(
    "tx",
    [
        *(optax.chain(wrap(DWA), MGDA) for wrap in AROUND.values()),
        *(wrap(optax.chain(MGDA, optax.sgd(0.1))) for wrap in AROUND.values()),
        *(optax.chain(before, MGDA) for before in BEFORE.values()),
        optax.chain(DWA, optax.sgd(0.1)),
        DWA,
    ],
    ids=[
        *(f"{name} around the weighting" for name in AROUND),
        *(f"{name} around the chain" for name in AROUND),
        *(f"{name} before the aggregator" for name in BEFORE),
        "no aggregator",
        "a weighting alone",
    ],
)
def test_misplaced_transforms(tx):
    def step(state):
        updates, state = tx.update(ORACLE(PARAMS), state, PARAMS)
        return optax.apply_updates(PARAMS, updates), state

    with pytest.raises((TypeError, ValueError), match="an aggregator before this tran"):
        jax.eval_shape(step, tx.init(PARAMS))


@pytest.mark.parametrize("name", BEFORE)
@pytest.mark.parametrize("jit", [True, False])
def test_a_key_among_the_arguments_hides_no_message(name, jit):
    """A key, as of dropout, is a leaf of the gradients and has no arithmetic."""

    def encode(params, key):
        return params["w"] * jax.random.bernoulli(key, 0.5, (2,))

    losses = {task: lambda p, z, _, t=task: jnp.vdot(p[t], z) for task in ("a", "b")}
    oracle = mtlopt.task_grad(losses, LABELS, encode=encode)
    for tx in (BEFORE[name], optax.chain(BEFORE[name], MGDA)):
        step, run = mtlopt.train_step(oracle, tx), mtlopt.Run(PARAMS, tx.init(PARAMS))
        with pytest.raises(TypeError, match="`optimizer` must have an aggregator"):
            (jax.jit(step) if jit else step)(run, KEY)

    def update(key):
        tx = optax.with_extra_args_support(BEFORE[name])
        return tx.update(oracle(PARAMS, key), tx.init(PARAMS), PARAMS)

    if jit:
        with pytest.raises((TypeError, ValueError), match="an aggregator before this"):
            jax.eval_shape(update, KEY)


@pytest.mark.parametrize("opaque", [True, False])
@pytest.mark.parametrize("jit", [True, False])
def test_sam_of_optax_names_the_wrapper(opaque, jit):
    """In a step of one's own, JAX's error does, unless it runs op by op."""
    up = optax.chain(optax.contrib.normalize(), optax.sgd(0.1))
    tx = optax.contrib.sam(optax.chain(MGDA, optax.sgd(0.1)), up, opaque_mode=opaque)
    step = mtlopt.train_step(ORACLE, tx)
    run, wrapper = mtlopt.Run(PARAMS, tx.init(PARAMS)), r"mtlopt\.sharpness_aware\(o"
    with pytest.raises(TypeError, match=rf"optax\.contrib\.sam, which.*{wrapper}"):
        (jax.jit(step) if jit else step)(run)
    arguments = {"grad_fn": lambda p, _: ORACLE(p)} if opaque else {}
    with pytest.raises(TypeError, match=rf"of optax\.contrib\.sam, use {wrapper}"):
        jax.eval_shape(
            lambda: tx.update(ORACLE(PARAMS), run.opt_state, PARAMS, **arguments)
        )


@pytest.mark.parametrize("name", ["zero_nans", "set_to_zero"])
def test_zeros_are_refused_op_by_op(name):
    with pytest.raises(
        TypeError, match=r"replace gradients of the tasks with zeros\. Put"
    ):
        BEFORE[name].update(ORACLE(PARAMS), BEFORE[name].init(PARAMS), PARAMS)


def test_a_weighting_that_ends_is_no_mistake():
    """Where the condition fails, the gradients pass unchanged: the plain sum."""
    weighting = mtlopt.weight_by_fixed([1.0, 5.0])
    tx = optax.chain(
        optax.conditionally_transform(weighting, lambda step: step < 1),
        mtlopt.sum_tasks(2),
    )

    @jax.jit
    def update(state):
        return tx.update(ORACLE(PARAMS), state, PARAMS)

    first, state = update(tx.init(PARAMS))
    second, _ = update(state)
    np.testing.assert_allclose(first["w"], PARAMS["a"] + 5 * PARAMS["b"])
    np.testing.assert_allclose(second["w"], PARAMS["a"] + PARAMS["b"])
    assert update._cache_size() == 1


def test_a_grad_in_optax():
    """JAX names the class, in whose name newer versions read what to do."""
    assert repr(mtlopt.Grad) == "<class 'mtlopt.Grad': pass its `.grad`>"
    grad, adam = ORACLE.block("task", PARAMS), optax.adam(0.1)
    for update in (
        lambda: adam.update(grad, adam.init(PARAMS), PARAMS),
        lambda: optax.apply_updates(PARAMS, grad),
    ):
        with pytest.raises(ValueError, match=r"Grad|Expected named tuple"):
            update()


# NumPy's numbers, as `len` of an array or a configuration gives them.


@pytest.mark.parametrize("name", ROUTES)
def test_numbers_of_tasks_of_numpy(name):
    """All types are those of a Python int, also in double precision."""
    oracle = matrix_oracle(4)
    txs = [METHODS[name].make(number) for number in (np.int64(4), 4)]

    def types(tx):
        state = jax.eval_shape(tx.init, jnp.zeros(6))
        out = jax.eval_shape(
            lambda state: tx.update(
                oracle(jnp.zeros(6), jnp.ones((4, 6)), jnp.ones(4)), state
            ),
            state,
        )
        return jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), (state, out))

    with jax.enable_x64(True):
        found, expected = map(types, txs)
    assert found == expected


def test_other_ints_of_numpy():
    two = np.int64(2)
    groups = mtlopt.random_groups(0, np.int32(4), two)
    assert jnp.bincount(groups).tolist() == [2, 2]
    for make in (
        lambda n: mtlopt.every(n, mtlopt.mgda(4)),
        lambda n: mtlopt.sdmgrad(4, num_steps=n),
        lambda n: mtlopt.krum(6, num_byzantine=n, num_selected=n),
        lambda n: mtlopt.trimmed_mean(5, trim=n),
        lambda n: mtlopt.weight_by_dwa(4, steps_per_epoch=n),
        lambda n: mtlopt.weight_by_log_stch(4, warmup_steps=n, nadir_steps=n),
        lambda n: mtlopt.maximum_roaming(n, {"a": n}, 0.5, 4),
        lambda n: mtlopt.task_grad({"a": jnp.sum}, "shared", batching=n),
        lambda n: mtlopt.task_grad({"a": jnp.sum}, "shared", microbatches=n),
        lambda n: mtlopt.individual_step(ORACLE, optax.sgd(0.1), num_groups=n),
    ):
        make(two)
        for wrong in (two.astype(float), np.int64(-1), True):
            with pytest.raises((ValueError, TypeError), match=r"must be a|from 1 to"):
                make(wrong)
    tx = mtlopt.every(two, mtlopt.nash_mtl(2))
    with jax.enable_x64(True):
        rows = mtlopt.TaskGrads.from_rows(jnp.eye(2))
        state = jax.eval_shape(lambda s: tx.update(rows, s)[1], tx.init(jnp.zeros(2)))
        assert state.count.dtype == jnp.int32
    masks = {"layer": jnp.eye(2, dtype=bool)}
    assert_close(mtlopt.task_masks(masks, np.int64(1)), mtlopt.task_masks(masks, 1))
    with pytest.raises(ValueError, match="`task` must be between 0 and 1"):
        mtlopt.task_masks(masks, two)


def test_optimizers_in_the_place_of_other_arguments():
    sgd = optax.sgd(0.1)
    with pytest.raises(
        TypeError, match=r"number of steps comes first.*every\(10, mgda"
    ):
        mtlopt.every(MGDA, 10)
    for arguments in ((LABELS, sgd, sgd), (sgd, LABELS, sgd)):
        with pytest.raises(TypeError, match=r"got dict.*the labels third"):
            mtlopt.alternate_blocks(*arguments)


@pytest.mark.parametrize(
    ("step", "name", "right"),
    [
        (mtlopt.train_step, "alternate_blocks", "block_step"),
        (mtlopt.train_step, "individual_optimizers", "individual_step"),
        (mtlopt.block_step, "individual_optimizers", "individual_step"),
        (mtlopt.individual_step, "alternate_blocks", "block_step"),
    ],
)
def test_an_optimizer_of_another_step(step, name, right):
    tx = TAKES_UPDATES[name]
    with pytest.raises((TypeError, ValueError), match=rf"[uU]se mtlopt\.{right}"):
        step(ORACLE, tx)(mtlopt.Run(PARAMS, tx.init(PARAMS)))


@pytest.mark.parametrize("value", [True, 3])
def test_python_numbers_of_a_module_that_is_not_partitioned(value):
    kind = jnp.result_type(value)
    message = (
        rf"`inference` must be floating point, got {kind}\. Separate "
        r".*eqx\.partition\(model, eqx\.is_inexact_array\)\."
    )
    with pytest.raises(ValueError, match=message):
        mtlopt.task_grad(
            {"a": lambda p: p["w"] ** 2}, {"w": "shared", "inference": "shared"}
        )({"w": 1.0, "inference": value})
