"""Problems, methods and steps of "Fast line search for multi-task learning"."""

import dataclasses
import functools
import statistics
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

import mtlopt
from experiments.lab import problem as lab
from experiments.lab.batches import num_examples, take
from experiments.lab.program import fastest

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


@dataclasses.dataclass(frozen=True, eq=False)
class Problem(lab.Problem):
    """A problem, and how it is judged; its splits are `train` and `test`."""

    # From parameters, state and batch to loss and error, each `[tasks, batch]`.
    score: Callable[[PyTree, PyTree, PyTree], dict[str, jax.Array]]


def make_problem(
    build: Callable[[jax.Array], Any],
    num_tasks: int,
    inputs: Callable[[PyTree], tuple[jax.Array, ...]],
    judge: Callable[[jax.Array, PyTree, Any], dict[str, jax.Array]],
    train: PyTree,
    test: PyTree,
) -> Problem:
    """Returns the problem of a network with heads stacked by `stack_heads`.

    Args:
      build: from a PRNG key to the network.
      num_tasks: of the heads.
      inputs: from a batch to the arguments of the encoder.
      judge: `judge(output, batch, task)`, the loss and the error of each example, from
        one head's output, `[batch, outputs]`. The loss of a task is the mean.
      train: the split to learn from, which is put on the device.
      test: that to judge by.
    """

    def encode(model: Any, batch: PyTree) -> Any:
        return model.encode(*inputs(batch))

    def loss(model: Any, z: Any, task: Any, batch: PyTree) -> jax.Array:
        return jnp.mean(judge(model.heads["stacked"](z), batch, task)["loss"])

    splits = jax.tree.map(jnp.asarray, {"train": train, "test": test})
    made = lab.make_problem(build, mtlopt.stacked(loss, num_tasks), encode, splits)

    def score(params: PyTree, state: PyTree, batch: PyTree) -> dict[str, jax.Array]:
        model = made.network(params, state)
        z = encode(model, batch)

        def one(head: Any, task: jax.Array) -> dict[str, jax.Array]:
            return judge(head(z), batch, task)

        return nnx.vmap(one)(model.heads["stacked"], jnp.arange(num_tasks))

    return Problem(**vars(made), score=score)


@dataclasses.dataclass(frozen=True)
class Method:
    """A way to choose the step, at several values of its one number."""

    title: str  # in tables
    symbol: str  # "β", a share of the linear decrease, or "η", a learning rate
    values: tuple[float, ...]  # that are run
    # From a value, which may be traced, to the complete optimizer.
    make: Callable[[Any], optax.GradientTransformation]


def make_methods(
    num_tasks: int, decay_steps: int, direction: str = "mgda"
) -> dict[str, Method]:
    """Returns all methods; FBLS + decay halves its bound every `decay_steps`."""
    find = functools.partial(DIRECTIONS[direction], num_tasks)

    def fast(**options: Any) -> Callable[[Any], optax.GradientTransformation]:
        return lambda beta: mtlopt.fast_backtracking(find(), beta=beta, **options)

    def slow(beta: Any) -> optax.GradientTransformation:
        return mtlopt.backtracking(find(), beta=beta)

    def latent(rate: Any) -> optax.GradientTransformation:
        return optax.chain(mtlopt.in_latent_space(find()), optax.sgd(rate))

    def summed(rate: Any) -> optax.GradientTransformation:
        return optax.chain(mtlopt.sum_tasks(num_tasks), optax.sgd(rate))

    halved = optax.exponential_decay(1.0, decay_steps, 0.5, staircase=True)
    calibrated = fast(calibrate=True)
    title = "MGDA-UB" if direction == "mgda" else f"{direction} on the latent"
    return {
        "fbls": Method("FBLS", "β", BETAS, fast()),
        "fbls_decay": Method("FBLS + decay", "β", BETAS[:1], fast(upper=halved)),
        "fbls_calibrated": Method("FBLS, calibrated", "β", BETAS[:1], calibrated),
        "bls": Method("BLS", "β", BETAS, slow),
        "mgda_ub": Method(title, "η", RATES, latent),
        "sgd": Method("SGD", "η", RATES, summed),
    }


def make_step(
    problem: Problem, method: Method
) -> Callable[..., tuple[mtlopt.Run, dict[str, jax.Array]]]:
    """Returns `step(value, run, rows, data)`, a step on the examples `rows` of a split.

    It returns the new run and, of a line search, what it did.
    """

    def step(
        value: jax.Array, run: mtlopt.Run, rows: jax.Array, data: PyTree
    ) -> tuple[mtlopt.Run, dict[str, jax.Array]]:
        one_step = mtlopt.train_step(problem.oracle, method.make(value))
        run, _ = one_step(run, take(data, rows))
        search = run.opt_state
        if not isinstance(search, SEARCH_STATES):
            return run, {}
        return run, {
            "trials": search.trials,
            "step_size": search.step_size,
            "at_upper": (search.trials == 1) & ~search.hit_floor,
            "at_floor": search.hit_floor,
        }

    return step


def start(problem: Problem, method: Method, value: float, seed: int) -> mtlopt.Run:
    """Returns what there is before the first step."""
    params, state = problem.init(seed)
    return mtlopt.Run(params, method.make(value).init(params), state)


def in_turns(
    steps: Mapping[str, Callable[..., tuple[mtlopt.Run, Any]]],
    runs: Mapping[str, mtlopt.Run],
    data: PyTree,
    batch_size: int,
    rounds: int,
) -> tuple[dict[str, float], dict[str, float]]:
    """Times `step(run, rows, data)` by name, in turns, on batches that all share.

    Returns by name the seconds of the fastest of so many steps, and of line searches
    the mean trials.
    """
    rng, num = np.random.default_rng(0), num_examples(data)
    # One more than is timed, to warm up.
    order = [jnp.asarray(rng.permutation(num)[:batch_size]) for _ in range(rounds + 1)]
    trials: dict[str, list[Any]] = {}

    def make_call(name: str) -> Callable[[], mtlopt.Run]:
        run, batches = runs[name], iter(order)

        def call() -> mtlopt.Run:
            nonlocal run
            run, did = steps[name](run, next(batches), data)
            if "trials" in did:
                trials.setdefault(name, []).append(did["trials"])
            return run

        return call

    seconds = fastest({name: make_call(name) for name in steps}, rounds)
    return seconds, {name: statistics.fmean(own[1:]) for name, own in trials.items()}
