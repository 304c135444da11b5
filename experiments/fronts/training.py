"""The program that trains networks on a front, also as a process of its own."""

import multiprocessing
import resource
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import optax

import mtlopt
from experiments.fronts import problem

FIXED = "fixed"
# Smoothing well below the losses; a penalty at which COSMOS leaves the corners.
OPTIONS: dict[str, dict[str, Any]] = {"stch": {"mu": 0.02}, "cosmos": {"penalty": 2.0}}


def make_optimizer(
    method: str, num_tasks: int, preference: Any, learning_rate: float
) -> optax.GradientTransformation:
    """Returns the chain of a method, or that of the weighted sum."""
    if method == FIXED:
        weights = mtlopt.weight_by_fixed(preference)
        made = optax.chain(weights, mtlopt.sum_tasks(num_tasks))
    else:
        options = {"preference": preference, **OPTIONS.get(method, {})}
        made = mtlopt.METHODS[method].make(num_tasks, **options)
    return optax.chain(made, optax.adam(learning_rate))


def front_of(method: str, num_tasks: int, settings: Any) -> mtlopt.FrontStep:
    """Returns the step of all networks."""
    rate = settings.learning_rate
    return mtlopt.front_step(
        problem.make_oracle(num_tasks),
        lambda preference: make_optimizer(method, num_tasks, preference, rate),
        problem.preferences(num_tasks, settings.preferences),
        settings.chunk_size,
    )


def one_of(method: str, settings: Any) -> tuple[Callable[..., Any], mtlopt.Run]:
    """Returns the step of one network with two equal preferences, and its start."""
    optimizer = make_optimizer(method, 2, np.full(2, 0.5), settings.learning_rate)
    params = problem.start(0)
    run = mtlopt.Run(params, optimizer.init(params))
    return mtlopt.train_step(problem.make_oracle(2), optimizer), run


def whole_program(step: Callable[..., Any], settings: Any) -> Callable[..., Any]:
    """Returns all steps, from runs and a seed of the batches, as one function."""

    def train(runs: mtlopt.Run, seed: Any) -> mtlopt.Run:
        def one(runs: mtlopt.Run, key: jax.Array) -> tuple[mtlopt.Run, None]:
            shape = (settings.batch, 2)
            x = jax.random.uniform(key, shape, minval=-1, maxval=1)
            return step(runs, x)[0], None

        keys = jax.random.split(jax.random.key(seed), settings.steps)
        return jax.lax.scan(one, runs, keys)[0]

    return train


def train_one(method: str, settings: Any) -> None:
    """Trains one network."""
    step, run = one_of(method, settings)
    jax.block_until_ready(jax.jit(whole_program(step, settings))(run, 0))


def train_all(method: str, settings: Any) -> None:
    """Trains all networks."""
    front = front_of(method, 2, settings)
    runs = front.init(problem.start(0))
    jax.block_until_ready(jax.jit(whole_program(front.step, settings))(runs, 0))


def seconds_of_process(train: Callable[..., None], *args: Any) -> float:
    """Returns the CPU seconds of a new process that imports, compiles and trains."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    process = multiprocessing.get_context("spawn").Process(target=train, args=args)
    process.start()
    process.join()
    if process.exitcode:
        raise RuntimeError(f"The timed process ended with code {process.exitcode}.")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime
