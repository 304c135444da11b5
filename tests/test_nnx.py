"""Modules of Flax NNX: what plain NNX does with them, and what NNX forbids."""

import functools
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import mtlopt

TASKS = ("a", "b", "c")
LABELS = {"*": "shared", "a": "a", "b": "b", "c": "c"}


class Head(nnx.Module):
    def __init__(self, rngs):
        self.norm = nnx.BatchNorm(4, momentum=0.9, rngs=rngs)
        self.drop = nnx.Dropout(0.3, rngs=rngs)
        self.out = nnx.Linear(4, 1, rngs=rngs)

    def __call__(self, z):
        return self.out(self.drop(self.norm(z)))[:, 0]


class Net(nnx.Module):
    def __init__(self, rngs):
        self.trunk = nnx.Linear(3, 4, rngs=rngs)
        self.norm = nnx.BatchNorm(4, momentum=0.9, rngs=rngs)
        self.drop = nnx.Dropout(0.2, rngs=rngs)
        self.a, self.b, self.c = (Head(rngs) for _ in TASKS)

    def encode(self, x):
        return nnx.relu(self.drop(self.norm(self.trunk(x))))


def encode(model, x):
    return model.encode(x)


def loss_of(task, column):
    return lambda model, z, x: jnp.mean((getattr(model, task)(z) - x[:, column]) ** 2)


LOSSES = {task: loss_of(task, column) for column, task in enumerate(TASKS)}
ORACLE = mtlopt.nnx.task_grad(LOSSES, LABELS, encode=encode)
SGD = optax.sgd(0.1)
SUM = optax.chain(mtlopt.sum_tasks(3), SGD)  # one, so that a step is traced once
DATA = np.random.default_rng(1).normal(size=(6, 8, 3)).astype(np.float32)


def total(model, x):
    z = encode(model, x)
    return sum(loss(model, z, x) for loss in LOSSES.values())


def arrays(node):
    """All variables of a module or optimizer, keys as their data."""
    leaves = jax.tree.leaves(nnx.as_pure(nnx.state(node)))
    is_key = [jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key) for leaf in leaves]
    return [
        np.asarray(jax.random.key_data(leaf) if key else leaf)
        for leaf, key in zip(leaves, is_key, strict=True)
    ]


def assert_same_bits(one, other):
    for left, right in zip(arrays(one), arrays(other), strict=True):
        np.testing.assert_array_equal(left, right)


def make(tx=SUM, seed=0):
    model = Net(nnx.Rngs(seed))
    return model, mtlopt.nnx.Optimizer(model, tx, wrt=nnx.Param)


def step(model, optimizer, x):
    grads = ORACLE(model, x)
    optimizer.update(model, grads)
    return grads.losses


JITTED = nnx.jit(step)


@functools.cache
def functional():
    """The same step as a function of arrays, which are donated."""
    oracle = ORACLE.pure(nnx.eval_shape(lambda: Net(nnx.Rngs(0)))).oracle
    return jax.jit(mtlopt.train_step(oracle, SUM), donate_argnums=0)


def trained(steps, seed=0):
    model, optimizer = make(seed=seed)
    losses = [JITTED(model, optimizer, x) for x in DATA[:steps]]
    return model, optimizer, np.stack(losses)


def test_equals_plain_nnx_to_the_bit():
    """Parameters, statistics and counts, for the summed loss."""
    model, optimizer, losses = trained(5)
    plain = Net(nnx.Rngs(0))
    plain_optimizer = nnx.Optimizer(plain, optax.sgd(0.1), wrt=nnx.Param)

    @nnx.jit
    def plain_step(model, optimizer, x):
        loss, grads = nnx.value_and_grad(total)(model, x)
        optimizer.update(model, grads)
        return loss

    sums = [plain_step(plain, plain_optimizer, x) for x in DATA[:5]]
    assert_same_bits(model, plain)
    np.testing.assert_array_equal(optimizer.step[...], plain_optimizer.step[...])
    np.testing.assert_allclose(np.sum(losses, axis=1), np.stack(sums), rtol=1e-6)
    assert model.a.drop.rngs.count[...] == 5
    assert jnp.any(model.c.norm.mean[...] != 0)


@pytest.mark.slow
def test_scan_vmap_and_donation():
    """Each equals a loop of jitted steps."""
    expected, expected_optimizer, losses = trained(3)

    model, optimizer = make()
    carry = nnx.StateAxes({...: nnx.Carry})
    scanned = nnx.jit(nnx.scan(step, in_axes=(carry, carry, 0), out_axes=0))
    np.testing.assert_allclose(scanned(model, optimizer, DATA[:3]), losses, rtol=1e-6)
    for one, other in ((model, expected), (optimizer, expected_optimizer)):
        for left, right in zip(arrays(one), arrays(other), strict=True):
            np.testing.assert_allclose(left, right, rtol=1e-5, atol=1e-6)

    donated = nnx.jit(step, donate_argnums=(0, 1))
    model, optimizer = make()
    for x in DATA[:3]:
        donated(model, optimizer, x)
    assert_same_bits(model, expected)


@pytest.mark.slow
def test_seeds_side_by_side():
    """`nnx.vmap` over modules and optimizers: each seed as alone."""
    seeds = 2

    @nnx.jit
    @nnx.split_rngs(splits=seeds)
    @nnx.vmap
    def create(rngs):
        model = Net(rngs)
        tx = optax.chain(mtlopt.upgrad(3), optax.sgd(0.1))
        return model, mtlopt.nnx.Optimizer(model, tx, wrt=nnx.Param)

    model, optimizer = create(nnx.Rngs(0))
    graphdef, state = nnx.split((model, optimizer))
    unstack = jax.jit(lambda state: jax.tree.map(tuple, state))
    alone = [
        nnx.merge(graphdef, each)
        for each in jax.tree.transpose(
            jax.tree.structure(state), jax.tree.structure((0,) * seeds), unstack(state)
        )
    ]
    together = nnx.jit(nnx.vmap(step, in_axes=(0, 0, None)))
    for x in DATA[:2]:
        losses = together(model, optimizer, x)
        each = [JITTED(*one, x) for one in alone]
        np.testing.assert_allclose(losses, np.stack(each), rtol=1e-5)
    for i, (one, _) in enumerate(alone):
        for left, right in zip(arrays(model), arrays(one), strict=True):
            np.testing.assert_allclose(left[i], right, rtol=1e-4, atol=1e-5)


def test_weights_of_the_last_update_are_an_array():
    """Not a variable of the optimizer, so that they can be named and logged."""
    _, optimizer = make(mtlopt.mgda(2))
    weights = mtlopt.task_weights(optimizer.opt_state)
    assert isinstance(weights, jax.Array)
    np.testing.assert_array_equal(weights, optimizer.opt_state.task_weights[...])


def test_a_step_under_plain_jit_moves_copies():
    """As in plain NNX: modules that are not returned stay as they were."""
    model, optimizer = make()
    before = arrays((model, optimizer))
    losses = jax.jit(step)(model, optimizer, DATA[0])
    assert losses.shape == (3,)
    for left, right in zip(before, arrays((model, optimizer)), strict=True):
        np.testing.assert_array_equal(left, right)


def test_the_functional_road_makes_the_same_steps():
    """`pure` gives copies, so that a donated run deletes nothing of the module."""
    expected, _, losses = trained(3)
    model, _ = make()
    params, state, _, merge = ORACLE.pure(model)
    run = mtlopt.Run(params, SUM.init(params), state)
    for x, values in zip(DATA[:3], losses, strict=True):
        run, output = functional()(run, x)
        np.testing.assert_array_equal(output.losses, values)
    assert functional()._cache_size() == 1
    assert_same_bits(merge(run.params, run.state), expected)
    arrays(model)  # not deleted


def test_shapes_remain_shapes():
    """And the functions of a module of shapes are those of every module like it."""
    model, _ = make()
    shapes = nnx.eval_shape(lambda: Net(nnx.Rngs(0)))
    params, state, oracle, merge = ORACLE.pure(shapes)
    arrays_of = ORACLE.pure(model)
    assert jax.eval_shape(lambda: arrays_of[:2]) == (params, state)
    assert arrays_of.oracle is oracle
    output = merge(*arrays_of[:2]).a(jnp.ones((2, 4)))
    np.testing.assert_array_equal(output, model.a(jnp.ones((2, 4))))


def test_the_adapter_costs_nothing():
    """XLA's operations are those of the functional form."""
    model, optimizer = make()
    params, state, *_ = ORACLE.pure(model)
    run = mtlopt.Run(params, SUM.init(params), state)
    lowered = functional().lower(run, DATA[0]), JITTED.lower(model, optimizer, DATA[0])
    one, other = (each.compile().cost_analysis()["flops"] for each in lowered)
    assert other <= one + 2  # the optimizer's own count of steps


def test_absent_heads_stand_still():
    """Parameters, the optimizer's state and the module's, bit for bit."""
    tx = optax.chain(
        mtlopt.upgrad(3), mtlopt.per_label(optax.adamw(0.1, weight_decay=0.1), LABELS)
    )
    model, optimizer = make(tx)

    @nnx.jit
    def masked(model, optimizer, x, present):
        grads = ORACLE(model, x, present=present)
        optimizer.update(model, grads)
        return ORACLE.named(grads.losses)

    masked(model, optimizer, DATA[0], jnp.array([True, True, True]))
    before, adam = arrays(model.b), arrays(optimizer.opt_state[1].inner_states["b"])
    moving = arrays(model.c)
    losses = masked(model, optimizer, DATA[1], jnp.array([True, False, True]))
    assert set(losses) == set(TASKS)
    after = arrays(model.b)
    for left, right in zip(before, after, strict=True):
        np.testing.assert_array_equal(left, right)
    for left, right in zip(
        adam, arrays(optimizer.opt_state[1].inner_states["b"]), strict=True
    ):
        np.testing.assert_array_equal(left, right)
    assert any(
        np.any(left != right)
        for left, right in zip(moving, arrays(model.c), strict=True)
    )


class Adapted(nnx.Module):
    def __init__(self, rngs):
        self.trunk = nnx.LoRALinear(3, 4, lora_rank=2, rngs=rngs)
        self.a, self.b = (nnx.Linear(4, 1, rngs=rngs) for _ in range(2))


def test_adapters_alone():
    """`wrt` freezes the rest exactly: no rows, no update, no state."""
    model = Adapted(nnx.Rngs(0))
    model.trunk.lora.lora_b[...] += 0.1
    oracle = mtlopt.nnx.task_grad(
        {
            name: lambda m, z, x, name=name, i=i: jnp.mean(
                (getattr(m, name)(z)[:, 0] - x[:, i]) ** 2
            )
            for i, name in enumerate("ab")
        },
        "shared",
        encode=lambda m, x: m.trunk(x),
        wrt=nnx.LoRAParam,
    )
    tx = optax.chain(mtlopt.mgda(2), optax.adam(0.1))
    optimizer = mtlopt.nnx.Optimizer(model, tx, wrt=nnx.LoRAParam)
    kernel, lora = model.trunk.kernel[...], model.trunk.lora.lora_a[...]

    @nnx.jit
    def adapt(model, optimizer, x):
        grads = oracle(model, x)
        optimizer.update(model, grads)
        return grads.jacobian()

    assert len(jax.tree.leaves(adapt(model, optimizer, DATA[0]))) == 2
    np.testing.assert_array_equal(model.trunk.kernel[...], kernel)
    assert np.any(np.not_equal(model.trunk.lora.lora_a[...], lora))


class StackedHeads(nnx.Module):
    def __init__(self, rngs):
        self.trunk = nnx.Linear(3, 4, rngs=rngs)

        @nnx.split_rngs(splits=3)
        @nnx.vmap
        def make_heads(rngs):
            return Head(rngs)

        self.heads = make_heads(rngs)


@pytest.mark.slow
def test_stacked_heads_have_state_of_their_own():
    """One head for all tasks; of its statistics each task has an entry."""
    oracle = mtlopt.nnx.task_grad(
        mtlopt.stacked(
            lambda model, z, task, x: jnp.mean((model.heads(z) - x[:, task]) ** 2), 3
        ),
        {"*": "shared", "heads": "stacked"},
        encode=lambda model, x: model.trunk(x),
    )
    model = StackedHeads(nnx.Rngs(0))
    z = model.trunk(DATA[0])
    graphdef, state = nnx.split(nnx.clone(model.heads))
    nnx.jit(lambda m, x: oracle(m, x, present=jnp.array([True, False, True])).losses)(
        model, DATA[0]
    )
    run = nnx.jit(lambda head: head(z))
    for task in range(3):
        own = jax.tree.map(lambda leaf, task=task: leaf[task], state)
        head = nnx.merge(graphdef, own)
        if task != 1:
            run(head)
        np.testing.assert_allclose(
            model.heads.norm.mean[...][task], head.norm.mean[...], rtol=1e-5, atol=1e-7
        )
        count = model.heads.drop.rngs.count[...][task]
        assert count == head.drop.rngs.count[...]


def test_labels_are_found_and_written():
    model = Net(nnx.Rngs(0))
    found = mtlopt.nnx.task_grad(LOSSES, encode=encode).labels(model, DATA[0])
    assert found == ORACLE.labels(model)
    heads = {"a": model.a, "b": [model.b], "c": model.c}
    assert mtlopt.nnx.label_modules(model, **heads) == found
    with pytest.raises(ValueError, match="the head of 'a' must be a part of `model`"):
        mtlopt.nnx.label_modules(model, a=nnx.Linear(1, 1, rngs=nnx.Rngs(0)))


def test_rules_for_some_leaves():
    """What no rule covers is found."""
    oracle = mtlopt.nnx.task_grad(
        LOSSES, {"trunk": "frozen", "a/norm": "a"}, encode=encode
    )
    model = Net(nnx.Rngs(0))
    found = oracle.labels(model, DATA[0])
    full = {**LABELS, "trunk": "frozen"}
    expected = mtlopt.nnx.task_grad(LOSSES, full, encode=encode)
    assert found == expected.labels(model)
    with pytest.raises(ValueError, match="the rule 'stem' matches no leaf"):
        mtlopt.nnx.task_grad(LOSSES, {"stem": "frozen"}, encode=encode).labels(
            model, DATA[0]
        )


def test_labels_of_a_state_fit_in_an_optimizer_of_nnx():
    """There a leaf is a variable around an array, and its path that of the variable."""
    model = Net(nnx.Rngs(0))
    labels = mtlopt.label_params(nnx.state(model, nnx.Param), LABELS)
    rules = {"*": "shared", "a/out/bias": "a", "b/norm": "b", "c": "c"}

    def by_path(path, _):
        return "a" if path == "trunk/bias" else "shared"

    grads = nnx.jit(nnx.grad(total))(model, DATA[0])
    for each in (labels, rules, by_path):
        optimizer = nnx.Optimizer(
            model, mtlopt.per_label(optax.adam(0.1), each), wrt=nnx.Param
        )
        nnx.jit(lambda *both: both[1].update(both[0], grads))(model, optimizer)
    assert np.any(optimizer.opt_state.inner_states["a"][0].mu.trunk.bias[...] != 0)


def other_losses(**losses):
    return mtlopt.nnx.task_grad({**LOSSES, **losses}, LABELS, encode=encode)


def sowing(model, x):
    z = model.encode(x)
    model.extra = nnx.Intermediate(z)
    return z


@functools.cache
def outer():
    return Net(nnx.Rngs(0))


@pytest.mark.parametrize(
    ("oracle", "kind", "message"),
    [
        (
            other_losses(a=lambda _, z, x: jnp.mean(outer().a.out(z))),
            ValueError,
            "the loss of task 'a' reads no leaf that is labelled 'a'",
        ),
        (
            other_losses(b=lambda model, z, x: jnp.mean(model.b(model.a.drop(z)))),
            ValueError,
            "`a/drop/rngs/count` is written by the loss of task 'a' and by the loss of "
            "task 'b'",
        ),
        (
            mtlopt.nnx.task_grad(LOSSES, LABELS, encode=sowing),
            ValueError,
            "encode adds `extra` to the module, but this addition would be lost",
        ),
        (
            other_losses(a=lambda model, z: jnp.mean(model.a(z))),
            TypeError,
            "the loss of task 'a' must take 3 arguments",
        ),
        (
            other_losses(c=lambda model, z, x: None),
            ValueError,
            "the loss of task 'c' must return a value, got None",
        ),
        (
            mtlopt.nnx.task_grad(LOSSES, LABELS, encode=encode, has_aux=True),
            ValueError,
            r"with has_aux=True, encode must return a pair \(value, aux\)",
        ),
    ],
)
def test_errors_name_the_function(oracle, kind, message):
    model = nnx.eval_shape(lambda: Net(nnx.Rngs(0)))
    with pytest.raises(kind, match=message):
        nnx.eval_shape(lambda model, x: oracle(model, x).losses, model, DATA[0])


def test_an_error_of_a_function_says_how_it_was_called():
    """With the module that it takes, and once."""
    loss = lambda z, model, x: jnp.mean(model.a(z))  # noqa: E731
    with pytest.raises(AttributeError) as error:
        other_losses(a=loss)(Net(nnx.Rngs(0)), DATA[0])
    found = [note for note in error.value.__notes__ if note.startswith("mtlopt")]
    assert found == [
        "mtlopt called the loss of task 'a' as f(model, latent, *args), with "
        "arguments (Net, float32[8, 4], float32[8, 3])."
    ]


def test_a_batch_in_the_place_of_the_module():
    model, (x, *_) = Net(nnx.Rngs(0)), DATA
    for batch in (x, (x, x), {"x": x}, None):
        for call in (ORACLE, ORACLE.losses, ORACLE.labels, ORACLE.pure):
            with pytest.raises(
                ValueError, match=r"`model` must be .* before the batch"
            ):
                call(batch, model)


def test_modules_in_the_place_of_other_things():
    model, _ = make()
    with pytest.raises(TypeError, match=r"got the Flax NNX module Net\. Use mtlopt"):
        mtlopt.task_grad(LOSSES, LABELS, encode=encode)(model, DATA[0])
    with pytest.raises(ValueError, match="`model` must be a module with variables of"):
        ORACLE({"w": jnp.ones(2)}, DATA[0])
    plain = nnx.Optimizer(model, mtlopt.sum_tasks(3), wrt=nnx.Param)
    with pytest.raises(TypeError, match=r"State of Flax NNX.* to mtlopt\.nnx\.Optim"):
        nnx.eval_shape(step, model, plain, DATA[0])
    _, optimizer = make(optax.adam(0.1))
    with pytest.raises(TypeError, match="`optimizer` must have an aggregator"):
        nnx.eval_shape(step, model, optimizer, DATA[0])
    with pytest.raises(ValueError, match="`batching` must be a positive int"):
        mtlopt.nnx.task_grad(LOSSES, LABELS, encode=encode, batching=1.5)
    for make_step, tx in (
        (mtlopt.train_step, mtlopt.sum_tasks(3)),
        (mtlopt.block_step, mtlopt.alternate_blocks(SGD, SGD, LABELS)),
        (mtlopt.individual_step, mtlopt.individual_optimizers(SGD, 3, LABELS)),
    ):
        with pytest.raises(TypeError, match=r"got mtlopt\.nnx\.Oracle.*pure\(model\)"):
            make_step(ORACLE, tx)
    with pytest.raises(TypeError, match="unexpected keyword argument 'strem'"):
        mtlopt.nnx.task_grad(LOSSES, LABELS, encode=encode, strem=True)


def test_ordinary_gradients_go_to_the_optimizer_of_nnx():
    model, _ = make()
    optimizer = mtlopt.nnx.Optimizer(model, optax.sgd(0.1), wrt=nnx.Param)
    plain = nnx.clone(model)
    plain_optimizer = nnx.Optimizer(plain, optax.sgd(0.1), wrt=nnx.Param)
    for one, other in ((model, optimizer), (plain, plain_optimizer)):
        other.update(one, nnx.jit(nnx.grad(total))(one, DATA[0]))
    assert_same_bits(model, plain)


class Normed(nnx.Module):
    def __init__(self, rngs):
        self.trunk = nnx.WeightNorm(nnx.Linear(3, 4, rngs=rngs), rngs=rngs)
        self.a = nnx.Linear(4, 1, rngs=rngs)


def test_parameters_that_a_function_writes_are_kept():
    """Weight normalisation writes the normalised kernel."""
    model = Normed(nnx.Rngs(0))
    oracle = mtlopt.nnx.task_grad(
        {"a": lambda m, z, x: jnp.mean(m.a(z) ** 2)},
        {"*": "shared", "a": "a"},
        encode=lambda m, x: m.trunk(x),
    )
    before = nnx.as_pure(nnx.state(model, nnx.Param))
    nnx.jit(lambda m, x: oracle(m, x).losses)(model, DATA[0])
    after = nnx.as_pure(nnx.state(model, nnx.Param))
    jax.tree.map(np.testing.assert_array_equal, before, after)


class Aliased(nnx.Module):
    def __init__(self, rngs):
        self.trunk = nnx.Linear(3, 4, rngs=rngs)
        self.first = nnx.Linear(4, 1, rngs=rngs)
        self.also = self.first


def test_a_module_under_two_names_has_the_first():
    """Rules on the other say so."""
    model = Aliased(nnx.Rngs(0))
    losses = {"a": lambda m, z, x: jnp.mean(m.first(z) ** 2)}
    encode = lambda m, x: m.trunk(x)  # noqa: E731
    oracle = mtlopt.nnx.task_grad(losses, {"*": "shared", "also": "a"}, encode=encode)
    shapes = nnx.eval_shape(lambda model: oracle(model, DATA[0]).losses, model)
    assert shapes.shape == (1,)
    oracle = mtlopt.nnx.task_grad(losses, {"*": "shared", "first": "a"}, encode=encode)
    with pytest.raises(ValueError, match="the rule 'first' matches no leaf"):
        oracle(model, DATA[0])


@pytest.mark.slow
def test_flax_is_loaded_on_first_use():
    """And without it a sentence names the extra."""
    program = (
        "import sys, mtlopt; assert 'flax' not in sys.modules\n"
        "sys.modules['flax'] = None\n"
        "try:\n    mtlopt.nnx\nexcept ImportError as error:\n"
        "    assert \"pip install 'mtlopt[models]'\" in str(error)\n"
        "else:\n    raise AssertionError"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


class HalfFrozen(nnx.Module):
    def __init__(self, rngs):
        self.t = nnx.Linear(3, 4, rngs=rngs)
        self.a, self.b = Head(rngs), Head(rngs)


def test_state_of_a_head_with_frozen_parameters():
    """It is the head's: with one function it stands still where the task is absent."""
    oracle = mtlopt.nnx.task_grad(
        lambda m, x: [jnp.mean(h(m.t(x)) ** 2) for h in (m.a, m.b)],
        {"t": "shared", "a": "a", "b": "b", "a/norm": "frozen"},
        tasks=("a", "b"),
    )
    model = HalfFrozen(nnx.Rngs(0))
    nnx.jit(lambda m, x: oracle(m, x, present=jnp.array([False, True])).losses)(
        model, DATA[0]
    )
    assert np.all(model.a.norm.mean[...] == 0)
    assert np.any(model.b.norm.mean[...] != 0)


def test_labels_of_stacked_heads_are_found():
    """Also if their state has a key for each task."""
    head = mtlopt.stacked(
        lambda model, z, task, x: jnp.mean((model.heads(z) - x[:, task]) ** 2), 3
    )
    oracle = mtlopt.nnx.task_grad(head, encode=lambda model, x: model.trunk(x))
    found = oracle.labels(StackedHeads(nnx.Rngs(0)), DATA[0])
    assert set(jax.tree.leaves(found["heads"])) == {"stacked"}


def test_what_cannot_be_found_or_moved():
    model = Net(nnx.Rngs(0))
    unlabelled = mtlopt.nnx.task_grad(LOSSES, encode=encode)
    with pytest.raises(ValueError, match="traces all functions together to find"):
        unlabelled.pure(model)
    with pytest.raises(TypeError, match="got a variable of Flax NNX"):
        ORACLE(model, nnx.Rngs(0))
    model.tree = nnx.Variable({"a": jnp.ones(2), "b": jnp.ones(2)})
    with pytest.raises(
        ValueError, match="must hold one array, got a variable that holds a dict"
    ):
        ORACLE(model, DATA[0])
    with pytest.raises(TypeError, match="`state_labels` must be left out"):
        mtlopt.nnx.task_grad(LOSSES, LABELS, encode=encode, state_labels="shared")
    model, optimizer = make()
    other = mtlopt.nnx.Optimizer(model, optimizer.tx, wrt=nnx.All(nnx.Param, HasBias()))
    with pytest.raises(ValueError, match="`wrt` of the optimizer must be the `wrt` of"):
        nnx.eval_shape(step, model, other, DATA[0])


class HasBias:
    """A filter: biases alone."""

    def __call__(self, path, _):
        return "bias" in path
