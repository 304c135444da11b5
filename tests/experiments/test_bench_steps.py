"""The benchmark of training steps: its hand-written steps, its counts and its turns."""

import dataclasses
import functools
import itertools
import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import mtlopt
from experiments.bench import steps, torch_steps, workloads
from experiments.bench.steps import (
    PRODUCT,
    REUSED,
    SETTINGS,
    TORCHJD,
    Result,
    TorchBlock,
    measure,
    take_turns,
)
from experiments.bench.workloads import Workload, product_step, reused_step
from tests.problems import QUICK

SMALL = {
    "lenet": lambda: workloads.lenet(2),
    "synthetic_mlp": lambda: workloads.synthetic_mlp(4),
    "wide_mlp": lambda: workloads.wide_mlp(3, 4),
    "transformer": lambda: workloads.transformer(2),
    "resnet18": lambda: workloads.resnet18(3, 2),
    "stacked_lenet": lambda: workloads.stacked_lenet(3, 2),
    "stacked_mlp": lambda: workloads.stacked_mlp(3, 4),
}


@pytest.fixture(scope="module")
def tiny() -> Workload:
    """Two tasks on a matrix."""
    params = {"encoder": jnp.ones((3, 4)), "a": jnp.ones(4), "b": jnp.ones(4)}
    x = jax.random.normal(jax.random.key(0), (5, 3))

    def loss(name, params, z, x):
        del x
        return jnp.mean((z @ params[name] - 1) ** 2)

    def encode(params, x):
        return jnp.tanh(x @ params["encoder"])

    tasks = {n: lambda p, z, x, n=n: loss(n, p, z, x) for n in "ab"}

    def total(params, x):
        z = encode(params, x)
        return loss("a", params, z, x) + loss("b", params, z, x)

    def rows(params, x):
        each = [
            jax.value_and_grad(lambda p, n=n: loss(n, p, encode(p, x), x))(params)
            for n in "ab"
        ]
        heads = {n: grads[n] for n, (_, grads) in zip("ab", each, strict=True)}
        shared = [grads["encoder"] for _, grads in each]
        return jnp.stack([value for value, _ in each]), shared, heads

    labels = {"encoder": "shared", "a": "a", "b": "b"}
    oracle = mtlopt.task_grad(tasks, labels, encode=encode)
    return Workload("tiny", oracle, params, (x,), total, rows, optax.sgd(0.1))


def test_every_workload_is_among_those_tested():
    makers = [getattr(make, "func", make) for make in workloads.WORKLOADS.values()]
    assert set(SMALL) == {make.__name__ for make in makers}


@pytest.mark.slow
def test_sizes_of_the_wide_mlp():
    sizes = {"wide_mlp": (40, 256), "wide_mlp_pair": (2, 256)}
    sizes |= {"wide_mlp_64": (40, 64), "wide_mlp_16": (40, 16)}
    for name, (num_tasks, size) in sizes.items():
        workload = workloads.WORKLOADS[name]()
        assert workload.oracle.num_tasks == num_tasks
        assert [len(each) for each in workload.args] == [size, size]
        assert hasattr(torch_steps, name)


def test_the_product_is_that_of_the_gramian_with_ones(tiny):
    step, state = product_step(tiny)
    params, _, product = jax.jit(step)(tiny.params, state, *tiny.args)
    _, rows, _ = tiny.rows(tiny.params, *tiny.args)
    gramian = [[jnp.vdot(one, two) for one in rows] for two in rows]
    np.testing.assert_allclose(product, jnp.sum(jnp.array(gramian), 1), rtol=1e-5)
    jax.tree.map(np.testing.assert_array_equal, params, tiny.params)


def test_reused_weights_are_those_of_the_last_tenth_step(tiny):
    step, state = reused_step(tiny, "aligned_mtl")
    step, params, weights = jax.jit(step), {**tiny.params, "b": jnp.arange(4.0)}, []
    for _ in range(11):
        params, state, _ = step(params, state, *tiny.args)
        weights.append(np.asarray(state[0].task_weights))
    np.testing.assert_array_equal(weights[:10], [weights[0]] * 10)
    assert np.abs(weights[10] - weights[0]).max() > 1e-3


@pytest.mark.slow
@pytest.mark.parametrize("name", SMALL)
def test_hand_written_steps_are_the_library_s(name):
    workload = SMALL[name]()

    @functools.partial(jax.jit, compiler_options=QUICK)
    def both(params, *args):
        losses, shared, heads = workload.rows(params, *args)
        stacked = jax.tree.map(lambda *rows: jnp.stack(rows), *shared)
        written = losses, workload.total(params, *args), stacked, heads["heads"]
        grads, tx = workload.oracle(params, *args), mtlopt.sum_tasks(len(losses))
        rows, (updates, _) = grads.jacobian(), tx.update(grads, tx.init(params))
        total = grads.losses.sum()
        return written, (grads.losses, total, rows["encoder"], updates["heads"])

    written, found = both(workload.params, *workload.args)
    for tolerance, some in ({"rtol": 1e-5}, slice(2)), ({"atol": 1e-5}, slice(2, 4)):
        close = functools.partial(np.testing.assert_allclose, **tolerance)
        jax.tree.map(close, found[some], written[some])


class FakeProcess:
    """Answers that a step took two seconds, or that an aggregator is broken."""

    def __call__(self, question: str) -> str:
        request = json.loads(question)
        if request["aggregator"] == "MGDA()":
            return json.dumps({"error": "ValueError: broken"})
        return json.dumps({"cpu_seconds": 2.0 * request["steps"]})


def test_a_table_has_counts_ratios_and_errors(tiny, monkeypatch):
    monkeypatch.setattr(steps, "BLOCK_SECONDS", 0.0)
    found = {
        result.step: result
        for result in measure(tiny, ["sum_tasks", "mgda", "dwa"], FakeProcess(), 2)
    }
    assert list(found) == ["plain", "Jacobian floor", "sum_tasks", "mgda", "dwa"]
    assert found["plain"].operations == 1
    assert found["sum_tasks"].operations == pytest.approx(1, rel=0.01)
    assert found["mgda"].operations >= found["Jacobian floor"].operations > 1
    for result in found.values():
        assert result.milliseconds > 0
        assert result.torch == pytest.approx(result.milliseconds / 2e3, rel=0.9)
    assert found["mgda"].torchjd == dict.fromkeys(SETTINGS, "ValueError: broken")
    assert found["sum_tasks"].torchjd["chunk 1"] < 1
    assert found["dwa"].torchjd == {}
    assert len(found["mgda"].cells()) == len(found["dwa"].cells()) == len(steps.HEADER)


def test_without_rounds_it_only_counts(tiny):
    (_, _, mgda) = measure(tiny, ["mgda"], None, 0)
    assert mgda.operations > 1
    assert (mgda.milliseconds, mgda.plain, mgda.torch) == (None, None, None)
    assert mgda.cells()[1:3] == ["", ""]


def test_blocks_take_turns():
    seen = []
    blocks = {name: lambda name=name: seen.append(name) for name in "ab"}
    take_turns(blocks, 2)
    assert seen == ["a", "b", "a", "b"]


def test_a_broken_step_is_asked_once():
    questions = []

    def process(question):
        questions.append(question)
        return '{"error": "no"}'

    block = TorchBlock(process, "MGDA()")
    assert block() is None
    assert block.error == "no"
    assert len(questions) == 1


def test_a_block_is_timed_by_its_clock(tiny):
    program = steps.compiled(tiny, *workloads.plain_step(tiny))
    ticks = itertools.count(0.0, 0.05)
    block = steps.Block(program, tiny, clock=lambda: next(ticks))
    assert block.num_steps == 4  # a fifth of a second
    assert block() == pytest.approx(0.05 / 4)


def test_a_block_of_reused_weights_is_whole_periods(tiny, monkeypatch):
    monkeypatch.setattr(steps, "BLOCK_SECONDS", 0.0)
    seen = []

    class Seen(steps.Block):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            seen.append(self.num_steps)

    monkeypatch.setattr(steps, "Block", Seen)
    _, _, product, reused = measure(tiny, [PRODUCT, REUSED], None, 1)
    assert seen == [1] * 7 + [10]
    assert product.operations > 1
    assert reused.milliseconds > 0
    assert reused.operations is None


def test_torchjd_has_a_counterpart_of_known_methods_only():
    assert set(TORCHJD) <= set(mtlopt.METHODS)


def test_results_are_plain_values():
    result = Result("w", "s", 1.0, None, 1.0, 1.0, 0.1, None, {"default": "no"})
    assert json.loads(json.dumps(dataclasses.asdict(result)))["torchjd"] == {
        "default": "no"
    }


def test_a_wrong_workload_is_named(capsys):
    with pytest.raises(SystemExit):
        steps.main(["lent"])
    assert "WORKLOAD: must be one of lenet" in capsys.readouterr().err
