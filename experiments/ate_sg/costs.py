"""The cost of an epoch of each phase, relative to an epoch of the full gradient."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import mtlopt
from experiments.ate_sg.training import make_steps, moving_at
from experiments.lab.batches import take
from experiments.lab.problem import Problem

# Operations are counted before XLA makes machine code, so the code need not be fast.
NO_CODE = {
    "xla_backend_optimization_level": 0,
    "xla_llvm_disable_expensive_passes": True,
}


class Costs(NamedTuple):
    """Costs of an epoch, relative to an epoch of the full gradient."""

    shared: float  # an epoch of the shared parameters
    task: float  # an epoch of the heads
    encode: float  # additional cost of the first epoch of a phase of the heads

    def until(self, epochs: int, length: int) -> np.ndarray:
        """Returns the cost from the start to the end of each epoch, `[epochs]`.

        Examples:
          >>> Costs(shared=0.75, task=0.25, encode=0.125).until(4, 2)
          array([0.75 , 1.5  , 1.875, 2.125])
        """
        order = [moving_at(epoch, length) for epoch in range(epochs)]
        prices = {"full": 1.0, "shared": self.shared, "task": self.task}
        each = [
            prices[now] + self.encode * (now == "task" and before != "task")
            for before, now in zip(["full", *order], order, strict=False)
        ]
        return np.cumsum(each)


def parameter_costs(problem: Problem) -> Costs:
    """Returns the costs by the paper's estimate (section 4): shares of the parameters.

    Backpropagation to the heads stops before the encoder. Backpropagation to the shared
    parameters passes through the heads and costs 1. The estimate ignores the forward
    pass.
    """
    shared, total = count_params(problem)
    return Costs(1.0, 1 - shared / total, 0.0)


def count_params(problem: Problem) -> tuple[int, int]:
    """Returns the number of shared parameters and of all parameters."""
    params, _ = jax.eval_shape(problem.init, 0)
    shared, total = map(jax.tree.leaves, (params["encoder"], params))
    return sum(leaf.size for leaf in shared), sum(leaf.size for leaf in total)


class Count(NamedTuple):
    """XLA's counts for a program that is compiled, but never run."""

    operations: float
    temporary_bytes: int


def count_steps(problem: Any, batch_size: int) -> dict[str, Count]:
    """Counts a step of every phase with SG for one seed, and the encoding of a batch.

    Adam's own operations, a dozen for each parameter, are few compared with the
    operations of a batch.
    """
    model = jax.eval_shape(problem.init, 0)
    train = problem.splits["train"]
    batch = jax.eval_shape(take, train, jnp.arange(batch_size))
    z = jax.eval_shape(problem.encode, model, batch)
    counts = {"encode": count(problem.encode, model, batch)}
    for moving, (transform, step) in make_steps(problem, "sgd").items():
        opt_state = jax.eval_shape(transform.init, model[0])
        run = mtlopt.Run(model[0], opt_state, model[1])
        counts[moving] = count(step, run, z if moving == "task" else None, batch)
    return counts


def count(function: Callable[..., Any], *args: Any) -> Count:
    """Counts one program."""
    compiled = jax.jit(function).lower(*args).compile(NO_CODE)
    costs, memory = compiled.cost_analysis(), compiled.memory_analysis()
    assert costs is not None  # XLA counts on CPU, GPU and TPU
    assert memory is not None
    return Count(costs["flops"], memory.temp_size_in_bytes)


def flop_costs(
    counts: Mapping[str, Count], num_examples: int, batch_size: int
) -> Costs:
    """Returns the costs in operations of SG, including the forward pass."""
    full, shared, task, encode = (
        counts[name].operations for name in ("full", "shared", "task", "encode")
    )
    # An epoch leaves out an incomplete batch; encoding leaves out nothing.
    batches = num_examples / batch_size
    encode *= batches / int(batches)
    return Costs(shared / full, task / full, encode / full)
