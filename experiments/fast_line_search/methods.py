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

# The paper: "eight step sizes evenly from log-range between -3 and -1". Figure 4
# averages over four values of beta; all other figures use the first value.
RATES = tuple(10 ** (-3 + 2 * i / 7) for i in range(8))
BETAS = (0.1, 0.2, 0.3, 0.4)
DIRECTIONS = {"mgda": mtlopt.mgda, "edm": mtlopt.edm, "pcgrad": mtlopt.pcgrad}


@dataclasses.dataclass(frozen=True, eq=False)
class Problem(lab.Problem):
    """A problem and its evaluation; its splits are `train` and `test`."""

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

    `build` makes the network from a PRNG key, and `inputs` makes the arguments of its
    encoder from a batch. `judge(output, batch, task)` returns the loss and the error of
    each example, from one head's output `[batch, outputs]`. The loss of a task is the
    mean loss of the examples.
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
    """A way to choose the step, with several values of its only parameter."""

    title: str  # in tables
    symbol: str  # "β", a share of the linear decrease, or "η", a learning rate
    values: tuple[float, ...]  # that are run
    # Function from a value, which may be traced, to the complete optimizer.
    make: Callable[[Any], optax.GradientTransformation]


def make_methods(
    num_tasks: int,
    decay_steps: int,
    direction: str = "mgda",
    betas: tuple[float, ...] = BETAS,
) -> dict[str, Method]:
    """Returns all methods; FBLS + decay halves its bound every `decay_steps`.

    FBLS and BLS run with all betas, the variants of FBLS with the first beta.
    """
    find = functools.partial(DIRECTIONS[direction], num_tasks)

    def search(title: str, values: Any, make: Any = None, **options: Any) -> Method:
        make = functools.partial(make or mtlopt.fast_backtracking, find(), **options)
        return Method(title, "β", values, lambda beta: make(beta=beta))

    def constant(title: str, make: Callable[[], Any]) -> Method:
        return Method(
            title, "η", RATES, lambda rate: optax.chain(make(), optax.sgd(rate))
        )

    halved = optax.exponential_decay(1.0, decay_steps, 0.5, staircase=True)
    title = "MGDA-UB" if direction == "mgda" else f"{direction} on the latent"
    return {
        "fbls": search("FBLS", betas),
        "fbls_decay": search("FBLS + decay", betas[:1], upper=halved),
        "fbls_safe": search("FBLS, safeguarded", betas[:1], safeguard=True),
        "fbls_calibrated": search("FBLS, calibrated", betas[:1], calibrate=True),
        "bls": search("BLS", betas, mtlopt.backtracking),
        "mgda_ub": constant(title, lambda: mtlopt.in_latent_space(find())),
        "sgd": constant("SGD", lambda: mtlopt.sum_tasks(num_tasks)),
    }


def make_step(
    problem: Problem, method: Method
) -> Callable[..., tuple[mtlopt.Run, dict[str, jax.Array]]]:
    """Returns `step(value, run, rows, data)`, a step on the examples `rows` of a split.

    The step returns the new run, the losses before the step, and what a line search
    did.
    """

    def step(
        value: jax.Array, run: mtlopt.Run, rows: jax.Array, data: PyTree
    ) -> tuple[mtlopt.Run, dict[str, jax.Array]]:
        one_step = mtlopt.train_step(problem.oracle, method.make(value))
        run, before = one_step(run, take(data, rows))
        did = {"losses": before.losses}
        search = run.opt_state
        if not hasattr(search, "trials"):  # the state does not belong to a line search
            return run, did
        return run, did | {
            "trials": search.trials,
            "step_size": search.step_size,
            "at_upper": (search.trials == 1) & ~search.hit_floor,
            "at_floor": search.hit_floor,
        }

    return step


def start(problem: Problem, method: Method, value: float, seed: int) -> mtlopt.Run:
    """Returns the run before the first step."""
    params, state = problem.init(seed)
    return mtlopt.Run(params, method.make(value).init(params), state)


def in_turns(
    steps: Mapping[str, Callable[..., tuple[mtlopt.Run, Any]]],
    runs: Mapping[str, mtlopt.Run],
    data: PyTree,
    batch_size: int,
    rounds: int,
) -> tuple[dict[str, float], dict[str, float]]:
    """Times `step(run, rows, data)` by name, in turns, on the same batches.

    Returns the seconds of the fastest step, and the mean trials of line searches.
    """
    rng, num = np.random.default_rng(0), num_examples(data)
    # One step more than is timed, to warm up.
    order = [jnp.asarray(rng.permutation(num)[:batch_size]) for _ in range(rounds + 1)]
    runs, did = dict(runs), {name: [] for name in steps}

    def call(name: str) -> mtlopt.Run:
        runs[name], own = steps[name](runs[name], order[len(did[name])], data)
        did[name].append(own)
        return runs[name]

    seconds = fastest({name: functools.partial(call, name) for name in steps}, rounds)
    return seconds, {
        name: statistics.fmean(one["trials"] for one in own[1:])
        for name, own in did.items()
        if "trials" in own[0]
    }
