"""BatchNorm and dropout in the encoder and in every head, and partial labels.

Each framework against a loop written by hand, which runs the encoder and the heads of
the tasks that are there, one after the other.
"""

import functools
import importlib
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest

import mtlopt
from tests.frameworks.common import (
    ABSENT,
    ADAMW,
    BATCHES,
    KEYS,
    TASKS,
    by_label,
    mean_loss,
)
from tests.marks import slow

FRAMEWORKS = (
    "plain_jax",
    "nnx",
    *map(slow, ("linen", "equinox", "haiku", "keras")),
)


class Case:
    """A framework, and its runs: compiled and run once, on first use."""

    def __init__(self, name):
        self.module = importlib.import_module(f"tests.frameworks.{name}")
        self.program = self.module.make_program()
        self.labels = mtlopt.label_params(self.program.params, self.program.labels)

    @functools.cached_property
    def upgrad(self):
        return self.module.make_trainer(self.program, mtlopt.upgrad(3))

    @functools.cached_property
    def with_upgrad(self):
        return train(self.upgrad)

    def of_task(self, run, task):
        """All that belongs to a task: its head, and both states."""
        opt_state = run.opt_state[-1].inner_states[task]
        state = self.program.state_of(run.state, task)
        return by_label(run.params, self.labels, task), opt_state, state


class Trained(NamedTuple):
    """Arrays before the first step and after each, and the losses of each step."""

    arrays: list[mtlopt.Run]
    losses: list[jax.Array]
    traces: int


def train(trainer):
    run, losses = trainer.start(), []
    arrays = [trainer.arrays(run)]
    for batch, key in zip(BATCHES, KEYS, strict=True):
        run, values = trainer.step(run, batch, key)
        arrays.append(trainer.arrays(run))
        losses.append(values)
    return Trained(arrays, losses, len(trainer.traces))


@pytest.fixture(scope="module", params=FRAMEWORKS)
def case(request):
    return Case(request.param)


def there(step):
    return tuple(task for task in TASKS if task != ABSENT[step])


@functools.partial(jax.jit, static_argnums=(0, 5))
def descent(program, params, state, batch, key, tasks):
    """Gradient of the sum of the losses of some tasks, the losses, and the state."""

    def total(params):
        z, new = program.encode(params, batch["x"], key, state)
        losses = {}
        for task in tasks:
            out, new = program.head(task, params, z, key, new)
            losses[task] = mean_loss(task, out, batch)
        return sum(losses.values()), (losses, new)

    gradient, (losses, new) = jax.grad(total, has_aux=True)(params)
    return gradient, losses, new


@jax.jit
def move(params, gradient, opt_state):
    updates, opt_state = ADAMW.update(gradient, opt_state, params)
    return jax.tree.map(jnp.add, params, updates), opt_state


def numbers(tree):
    """The leaves, keys as their data."""
    leaves = jax.tree.leaves(tree)
    is_key = [jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key) for leaf in leaves]
    return [
        np.asarray(jax.random.key_data(leaf) if key else leaf)
        for leaf, key in zip(leaves, is_key, strict=True)
    ]


def assert_close(found, expected):
    for one, other in zip(numbers(found), numbers(expected), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-6)


def same_bits(one, other):
    pairs = zip(numbers(one), numbers(other), strict=True)
    return [np.array_equal(left, right) for left, right in pairs]


def test_state_is_that_of_a_forward_pass(case):
    """Of encoder and heads, after each step; and the losses before it."""
    arrays, losses, _ = case.with_upgrad
    for i, (batch, key) in enumerate(zip(BATCHES, KEYS, strict=True)):
        before, after = arrays[i : i + 2]
        _, expected, state = descent(
            case.program, before.params, before.state, batch, key, there(i)
        )
        assert_close(after.state, state)
        by_task = dict(zip(TASKS, losses[i], strict=True))
        assert_close({task: by_task[task] for task in there(i)}, expected)


def test_equals_a_loop_for_the_summed_loss(case):
    """Parameters, the optimizer's state of every label, and the model's."""
    program, labels = case.program, case.labels
    found = train(case.module.make_trainer(program, mtlopt.sum_tasks(3))).arrays
    parts = {
        label: by_label(program.params, labels, label) for label in ("shared", *TASKS)
    }
    opt_states = {label: ADAMW.init(part) for label, part in parts.items()}
    params, state = program.params, program.state
    for i, (batch, key) in enumerate(zip(BATCHES, KEYS, strict=True)):
        gradient, _, state = descent(program, params, state, batch, key, there(i))
        for label in ("shared", *there(i)):
            own = by_label(gradient, labels, label)
            parts[label], opt_states[label] = move(parts[label], own, opt_states[label])
            params = jax.tree.map(
                lambda old, new: old if new is None else new,
                params,
                parts[label],
                is_leaf=lambda leaf: leaf is None,
            )
        assert_close(found[i + 1].params, params)
        assert_close(found[i + 1].state, state)
        for label, own in opt_states.items():
            assert_close(found[i + 1].opt_state[-1].inner_states[label], own)


def test_absent_heads_stand_still(case):
    """Parameters and both states, bit for bit; those of the others move."""
    found = case.with_upgrad.arrays
    for i, absent in enumerate(ABSENT):
        before, after = found[i : i + 2]
        for task in TASKS:
            parts = case.of_task(before, task), case.of_task(after, task)
            same = [same_bits(old, new) for old, new in zip(*parts, strict=True)]
            assert all(map(all, same)) == (task == absent)
            assert task == absent or not any(map(all, same))


def test_one_trace(case):
    """Though tasks come and go."""
    assert case.with_upgrad.traces == 1


def test_resumes_to_the_bit(case, tmp_path):
    """Through a file, in the middle."""
    found = case.with_upgrad.arrays
    trainer, middle = case.upgrad, 2
    run = trainer.start()
    for batch, key in zip(BATCHES[:middle], KEYS[:middle], strict=True):
        run, _ = trainer.step(run, batch, key)
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "run", trainer.save(run))
        checkpointer.wait_until_finished()
        like = trainer.save(trainer.start())
        resumed = trainer.load(checkpointer.restore(tmp_path / "run", like))
    assert all(same_bits(trainer.arrays(resumed), found[middle]))
    for batch, key in zip(BATCHES[middle:], KEYS[middle:], strict=True):
        resumed, _ = trainer.step(resumed, batch, key)
    assert all(same_bits(trainer.arrays(resumed), found[-1]))
