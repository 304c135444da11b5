"""Mistakes of a first program: each message names the mistake and its cure."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import mtlopt

PARAMS = {"trunk": jnp.ones((3, 2)), "a": jnp.ones(2), "b": jnp.ones(2)}
LABELS = {"trunk": "shared", "a": "a", "b": "b"}
X = jnp.ones((4, 3))


def encode(params, x):
    return x @ params["trunk"]


LOSSES = {
    task: lambda params, z, x, task=task: jnp.mean((z @ params[task] - 1) ** 2)
    for task in "ab"
}
ORACLE = mtlopt.task_grad(LOSSES, LABELS, encode=encode)


def shapes(oracle, *args, **options):
    """Traces a call of an oracle: messages come before anything runs."""
    return jax.eval_shape(lambda: oracle(*args, **options).losses)


@pytest.mark.parametrize(
    ("present", "kind"),
    [
        ([1.0, 0.0], "float"),
        (np.array([3, 0]), "int"),
        (jnp.array([1, 0]), "int"),
        ({"a": 1, "b": 0}, "int"),
        ([True, 0.5], "float"),
        ({"a": jnp.array(2.0), "b": True}, "float"),
    ],
)
def test_present_of_counts(present, kind):
    says = rf"`present` must be bool, got {kind}\d+\. If it holds counts, pass x > 0"
    with pytest.raises(TypeError, match=says):
        shapes(ORACLE, PARAMS, X, present=present)
    with pytest.raises(TypeError, match=says):
        mtlopt.TaskGrads.from_rows(jnp.eye(2), tasks=("a", "b"), present=present)


def test_present_of_traced_counts():
    step = jax.jit(lambda counts: ORACLE(PARAMS, X, present=counts).losses)
    with pytest.raises(TypeError, match="`present` must be bool, got int32"):
        step(jnp.array([3, 0]))


@pytest.mark.parametrize(
    "present",
    [
        [True, False],
        np.array([True, False]),
        jnp.array([True, False]),
        {"a": True, "b": np.False_},
        [True, jnp.array(False)],
    ],
)
def test_present_of_bools(present):
    found = mtlopt.TaskGrads.from_rows(jnp.eye(2), tasks=("a", "b"), present=present)
    np.testing.assert_array_equal(found.present, [True, False])


def test_suggestions_without_a_shared_parameter():
    labels = LABELS | {"trunk": "frozen"}
    oracle = mtlopt.task_grad(LOSSES, labels, encode=encode)
    found = jax.jit(lambda: mtlopt.diagnose(oracle(PARAMS, X)))()
    (sentence,) = mtlopt.suggestions(found)
    assert "If no parameter is shared" in sentence
    assert "aggregators have nothing to combine, and all of them act like" in sentence


TRANSFORMS = {
    "train_step": lambda method: mtlopt.train_step(ORACLE, method),
    "block_step": lambda method: mtlopt.block_step(ORACLE, method),
    "individual_step": lambda method: mtlopt.individual_step(ORACLE, method),
    "affinity_step": lambda method: mtlopt.affinity_step(ORACLE, method),
    "every": lambda method: mtlopt.every(10, method),
    "skip_not_finite": mtlopt.skip_not_finite,
    "in_latent_space": mtlopt.in_latent_space,
    "leave_out": lambda method: mtlopt.leave_out(method, ["a"]),
    "backtracking": mtlopt.backtracking,
    "nnx.Optimizer": lambda method: mtlopt.nnx.Optimizer(
        Net(nnx.Rngs(0)), method, wrt=nnx.Param
    ),
}


@pytest.mark.parametrize("name", TRANSFORMS)
def test_a_method_that_was_not_called(name):
    says = r"must be .* got the function nash_mtl\. Call it: nash_mtl\(num_tasks\)\."
    with pytest.raises(TypeError, match=says):
        TRANSFORMS[name](mtlopt.nash_mtl)
    with pytest.raises(TypeError, match=r"got list\. Build it first, as in mgda\(2\)"):
        TRANSFORMS[name]([mtlopt.nash_mtl(2)])


class Net(nnx.Module):
    def __init__(self, rngs):
        self.trunk = nnx.Linear(3, 2, rngs=rngs)
        self.a = nnx.Linear(2, 1, rngs=rngs)
        self.b = nnx.Linear(2, 1, rngs=rngs)


MODULE_LOSSES = {
    task: lambda model, z, x, task=task: jnp.mean((getattr(model, task)(z) - 1) ** 2)
    for task in "ab"
}


def module_oracle(losses):
    return mtlopt.nnx.task_grad(losses, encode=lambda model, x: model.trunk(x))


def test_updates_of_the_nnx_optimizer():
    model = Net(nnx.Rngs(0))
    tx = optax.chain(mtlopt.mgda(2), optax.sgd(0.1))
    optimizer = mtlopt.nnx.Optimizer(model, tx, wrt=nnx.Param)
    grads = module_oracle(MODULE_LOSSES)(model, X)
    with pytest.raises(TypeError, match=r"Call update\(model, grads\)"):
        optimizer.update(grads, model)
    for wrong, kind in ((grads.losses, "ArrayImpl"), (model, "Net"), ({}, "dict")):
        with pytest.raises(TypeError, match=rf"`grads` must be .*, got {kind}\."):
            optimizer.update(model, wrong)
    ordinary = nnx.grad(lambda model: jnp.sum(model.trunk(X)))(model)
    with pytest.raises(TypeError, match="the result of an oracle of mtlopt"):
        optimizer.update(model, ordinary)
    tx = optax.chain(mtlopt.mgda(2), mtlopt.weight_by_uncertainty(2), optax.sgd(0.1))
    optimizer = mtlopt.nnx.Optimizer(model, tx, wrt=nnx.Param)
    with pytest.raises(TypeError, match="Place weightings first, then one aggregator"):
        optimizer.update(model, grads)


def test_the_order_of_per_label():
    labels = [["a", "b"], LABELS, lambda path, leaf: "shared"]
    for each in labels:
        with pytest.raises(TypeError, match="optimizer first, then the labels"):
            mtlopt.per_label(each, optax.sgd(0.1))


def test_an_error_while_labels_are_found():
    """The user's own error comes first."""
    with pytest.raises(ValueError, match=r"^TypeError: dot_general requires .*\n"):
        module_oracle(MODULE_LOSSES)(Net(nnx.Rngs(0)), jnp.ones((4, 5)))
    losses = {"a": lambda model, z, x: jnp.mean(model.a(z) * x["label"])}
    says = r"^KeyError: 'label'\n.*traces all functions together to find the labels"
    with pytest.raises(ValueError, match=says):
        mtlopt.nnx.task_grad(losses, encode=lambda model, x: model.trunk(x["x"]))(
            Net(nnx.Rngs(0)), {"x": X}
        )


def test_a_key_in_the_place_of_the_batch():
    says = "the batch, the first argument after the parameters and before keys, must"
    halves = mtlopt.task_grad(LOSSES, LABELS, encode=encode, microbatches=2)
    head = mtlopt.stacked(lambda params, z, task, x: jnp.sum(z), 2)
    each = mtlopt.samplewise(head, task_of=lambda x: 0)
    each = mtlopt.task_grad(each, "shared", encode=encode)
    for oracle in (halves, each):
        with pytest.raises(ValueError, match=says):
            shapes(oracle, PARAMS, jax.random.key(0), X)
        with pytest.raises(ValueError, match="the batch leaf `x` must have a leading"):
            shapes(oracle, PARAMS, {"x": jnp.array(1.0)})


def test_a_forgotten_state():
    losses = {
        task: lambda params, z, x, state, task=task: (jnp.mean(z @ params[task]), state)
        for task in "ab"
    }
    oracle = mtlopt.task_grad(
        losses,
        LABELS,
        encode=lambda params, x, state: (encode(params, x), state),
        has_state=True,
        state_labels={"mean": "shared"},
    )
    with pytest.raises(ValueError, match=r"must be the model's state.*, got one array"):
        shapes(oracle, PARAMS, X)


def test_names_of_tasks_as_labels_of_stacked_heads():
    params = {"trunk": jnp.ones((3, 2)), "heads": jnp.ones((2, 2))}
    tasks = ("sensor0", "sensor1")
    for labels in (tasks, {"*": "shared", "sensor0": "sensor0"}):
        oracle = mtlopt.task_grad(
            mtlopt.stacked(lambda params, z, task, x: jnp.sum(z), 2),
            labels,
            encode=encode,
            tasks=tasks,
        )
        with pytest.raises(ValueError, match="'sensor0' matches no leaf") as info:
            shapes(oracle, params, X)
        assert (
            info.value.__notes__[0]
            == "The heads are stacked: label their leaves 'stacked'."
        )
