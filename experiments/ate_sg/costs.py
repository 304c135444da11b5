"""What an epoch of each phase costs, in epochs of the full gradient."""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import mtlopt
from experiments.ate_sg.phases import Moving, Problem, make_steps, moving_at
from experiments.lab.training import take

# The operations are counted before machine code is made of them: it may be poor.
NO_CODE = {
    "xla_backend_optimization_level": 0,
    "xla_llvm_disable_expensive_passes": True,
}


class Costs(NamedTuple):
    """Costs of an epoch, that of the full gradient being 1.

    Attributes:
      shared: an epoch of the shared parameters.
      task: an epoch of the heads.
      encode: what the first epoch of a phase of the heads costs besides.
    """

    shared: float
    task: float
    encode: float

    def until(self, epochs: int, length: int | None) -> np.ndarray:
        """Returns the cost from the start to the end of each epoch, `[epochs]`.

        Args:
          epochs: how many.
          length: of both phases in epochs; None for no alternation.

        Examples:
          >>> Costs(shared=0.75, task=0.25, encode=0.125).until(4, 2)
          array([0.75 , 1.5  , 1.875, 2.125])
          >>> Costs(shared=0.75, task=0.25, encode=0.125).until(2, None)
          array([1., 2.])
        """
        order: Sequence[Moving] = [moving_at(epoch, length) for epoch in range(epochs)]
        prices = {"full": 1.0, "shared": self.shared, "task": self.task}
        each = [
            prices[now] + self.encode * (now == "task" and before != "task")
            for before, now in zip(["full", *order], order, strict=False)
        ]
        return np.cumsum(each)


def parameter_costs(problem: Problem) -> Costs:
    """Returns the costs by the paper's estimate: shares of the parameters.

    An epoch of the heads costs their share of the parameters, because backpropagation
    stops before the encoder; an epoch of the shared parameters passes through the
    heads too and costs 1. The forward pass counts for nothing.

    References:
      Bellavia et al., ATE-SG, section 4.
    """
    shared, total = count_params(problem)
    return Costs(shared=1.0, task=1 - shared / total, encode=0.0)


def count_params(problem: Problem) -> tuple[int, int]:
    """Returns the numbers of shared and of all parameters."""
    params = jax.eval_shape(problem.init, jax.random.key(0)).params
    names = mtlopt.label_params(params, problem.oracle.labels)
    sizes = [leaf.size for leaf in jax.tree.leaves(params)]
    shared = [name == "shared" for name in jax.tree.leaves(names)]
    return sum(np.array(sizes)[shared].tolist()), sum(sizes)


def flop_costs(problem: Problem, batch_size: int) -> Costs:
    """Returns the costs by XLA's count of the operations of the compiled steps.

    With the forward pass and SG, of one seed; encoding the training split for a phase
    of the heads is counted apart. Adam's own operations, a dozen a parameter, are few
    beside those of a batch.

    Args:
      problem: what is trained.
      batch_size: examples per step.
    """
    optimizers, steps = make_steps(problem, "sgd")
    model = jax.eval_shape(problem.init, jax.random.key(0))
    batch = jax.eval_shape(
        lambda split: take(split, jnp.arange(batch_size)), problem.train
    )
    z = jax.eval_shape(problem.encode, model, batch)
    flops = {}
    for moving, step in steps.items():
        opt_state = jax.eval_shape(optimizers[moving].init, model.params)
        run = mtlopt.Run(model.params, opt_state, model.stats)
        latent = z if moving == "task" else None
        flops[moving] = _flops(step, run, latent, batch)
    encoding = _flops(problem.encode, model, batch)
    # An epoch leaves out what does not fill a batch; encoding leaves out nothing.
    batches = problem.num_train / batch_size
    full = flops["full"] * int(batches)
    return Costs(
        shared=flops["shared"] / flops["full"],
        task=flops["task"] / flops["full"],
        encode=encoding * batches / full,
    )


def _flops(function: Any, *args: Any) -> float:
    """Counts the operations of a program that is compiled, but never run."""
    lowered = jax.jit(function).lower(*args)
    analysis = lowered.compile(NO_CODE).cost_analysis()
    return math.nan if analysis is None else analysis["flops"]
