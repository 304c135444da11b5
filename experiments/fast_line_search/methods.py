"""The methods of "Fast line search for multi-task learning", and how they step.

The experiments are `multimnist`, `cifar10` and `bert`.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

import mtlopt
from experiments.lab.training import take

PyTree = Any

# "eight step sizes evenly from log-range between -3 and -1"; Figure 4 averages over
# four values of beta, the first of which is that of all other figures.
RATES = tuple(10 ** (-3 + 2 * i / 7) for i in range(8))
BETAS = (0.1, 0.2, 0.3, 0.4)
SEARCH_STATES = (
    mtlopt.LineSearchState,
    mtlopt.FastLineSearchState,
    mtlopt.SafeLineSearchState,
)
DIRECTIONS = {"mgda": mtlopt.mgda, "edm": mtlopt.edm, "pcgrad": mtlopt.pcgrad}


@dataclasses.dataclass(frozen=True)
class Method:
    """A way to choose the step, at several values of its one number.

    Attributes:
      title: what tables call it.
      symbol: of the number: `"β"`, a share of the linear decrease, which is no learning
        rate, or `"η"`, a learning rate.
      values: that are run.
      make: from a value, which may be traced, to the complete optimizer.
    """

    title: str
    symbol: str
    values: tuple[float, ...]
    make: Callable[[Any], optax.GradientTransformation]


def make_methods(
    num_tasks: int, decay_steps: int, direction: str = "mgda"
) -> dict[str, Method]:
    """Returns all methods by name.

    Args:
      num_tasks: number of tasks.
      decay_steps: steps after which FBLS + decay halves its upper bound.
      direction: a name in `DIRECTIONS`.
    """

    def find() -> optax.GradientTransformation:
        return DIRECTIONS[direction](num_tasks)

    def search(**options: Any) -> Callable[[Any], optax.GradientTransformation]:
        return lambda beta: mtlopt.fast_backtracking(find(), beta=beta, **options)

    upper = optax.exponential_decay(1.0, decay_steps, 0.5, staircase=True)
    latent = "MGDA-UB" if direction == "mgda" else f"{direction} on the latent"
    return {
        "fbls": Method("FBLS", "β", BETAS, search()),
        "fbls_decay": Method("FBLS + decay", "β", BETAS[:1], search(upper=upper)),
        "fbls_calibrated": Method(
            "FBLS, calibrated", "β", BETAS[:1], search(calibrate=True)
        ),
        "bls": Method(
            "BLS", "β", BETAS, lambda beta: mtlopt.backtracking(find(), beta=beta)
        ),
        "mgda_ub": Method(
            latent,
            "η",
            RATES,
            lambda rate: optax.chain(mtlopt.in_latent_space(find()), optax.sgd(rate)),
        ),
        "sgd": Method(
            "SGD",
            "η",
            RATES,
            lambda rate: optax.chain(mtlopt.sum_tasks(num_tasks), optax.sgd(rate)),
        ),
    }


@dataclasses.dataclass(frozen=True, eq=False)
class Problem:
    """What is trained. A split or a batch is a pytree with a leading axis of examples.

    Attributes:
      oracle: gradients, called as `oracle(params, batch, stats)`.
      init: from a seed to the initial parameters and BatchNorm statistics, in arrays
        of their own.
      score: `score(params, stats, batch)`, the loss and the error of each example,
        `[tasks, batch]` each.
      train: the split to learn from.
      test: the split to judge by.
    """

    oracle: mtlopt.Oracle
    init: Callable[[int], tuple[PyTree, PyTree]]
    score: Callable[[PyTree, PyTree, PyTree], dict[str, jax.Array]]
    train: PyTree
    test: PyTree


def make_problem(
    build: Callable[[jax.Array], Any],
    num_tasks: int,
    inputs: Callable[[PyTree], tuple[jax.Array, ...]],
    judge: Callable[[jax.Array, PyTree, Any], dict[str, jax.Array]],
    train: PyTree,
    test: PyTree,
) -> Problem:
    """Returns the problem of a network with stacked heads.

    Args:
      build: from a PRNG key to the network, its heads stacked by `stack_heads`.
      num_tasks: number of tasks.
      inputs: from a batch to the arguments of the encoder.
      judge: `judge(output, batch, task)`, the loss and the error of each example, from
        one head's output, `[batch, outputs]`. The loss of a task is the mean.
      train: the split to learn from.
      test: the split to judge by.
    """
    from flax import nnx

    def encode(model: Any, batch: PyTree) -> Any:
        return model.encode(*inputs(batch))

    def loss(model: Any, z: Any, task: Any, batch: PyTree) -> jax.Array:
        return jnp.mean(judge(model.heads["stacked"](z), batch, task)["loss"])

    of_modules = mtlopt.nnx.task_grad(
        mtlopt.stacked(loss, num_tasks),
        {"encoder": "shared", "heads": "stacked"},
        encode=encode,
    )

    @functools.cache  # initialising takes longer than a short run
    def built(seed: int) -> Any:
        return of_modules.pure(build(jax.random.key(seed)))

    _, _, oracle, merge = built(0)

    def init(seed: int) -> tuple[PyTree, PyTree]:
        return jax.tree.map(jnp.copy, built(seed)[:2])  # training donates them

    def score(params: PyTree, stats: PyTree, batch: PyTree) -> dict[str, jax.Array]:
        model = merge(params, stats)
        model.eval()
        z = encode(model, batch)

        def one(head: Any, task: jax.Array) -> dict[str, jax.Array]:
            return judge(head(z), batch, task)

        return nnx.vmap(one)(model.heads["stacked"], jnp.arange(num_tasks))

    return Problem(oracle, init, score, train, test)


class State(NamedTuple):
    """All that changes while training one run."""

    params: PyTree
    stats: PyTree
    opt_state: PyTree


Step = Callable[..., tuple[State, dict[str, jax.Array]]]


def make_step(problem: Problem, method: Method) -> Step:
    """Returns the training step.

    Returns:
      `step(state, value, rows, data)`, one step on the examples `rows` of a split. It
      returns the new state and, of a line search, what it did.
    """

    def step(
        state: State, value: jax.Array, rows: jax.Array, data: PyTree
    ) -> tuple[State, dict[str, jax.Array]]:
        params, stats, opt_state = state
        one_step = mtlopt.train_step(problem.oracle, method.make(value))
        run, _ = one_step(mtlopt.Run(params, opt_state, stats), take(data, rows))
        params, opt_state, stats = run
        did = {}
        if isinstance(opt_state, SEARCH_STATES):
            did = {
                "trials": opt_state.trials,
                "step_size": opt_state.step_size,
                "at_upper": (opt_state.trials == 1) & ~opt_state.hit_floor,
                "at_floor": opt_state.hit_floor,
            }
        return State(params, stats, opt_state), did

    return step


def start(problem: Problem, method: Method, value: float, seed: int) -> State:
    """Returns the state before the first step."""
    params, stats = problem.init(seed)
    return State(params, stats, method.make(value).init(params))


def num_examples(split: PyTree) -> int:
    """Returns the number of examples of a split."""
    return jax.tree.leaves(split)[0].shape[0]
