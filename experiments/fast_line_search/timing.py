"""The cost of a step of each method, measured in turns."""

import functools
import statistics
from collections.abc import Callable, Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

import mtlopt
from experiments.fast_line_search.methods import Method, Problem, start
from experiments.lab.batches import num_examples
from experiments.lab.program import Program, fastest
from experiments.lab.tables import cost_table

PyTree = Any
_ROUNDS = 9


def in_turns(
    steps: Mapping[str, Callable[..., tuple[mtlopt.Run, Any]]],
    runs: Mapping[str, mtlopt.Run],
    data: PyTree,
    batch_size: int,
    rounds: int,
) -> tuple[dict[str, float], dict[str, float]]:
    """Times steps in turns, on random batches that all share.

    Args:
      steps: by name `step(run, rows, data)`, compiled by their first call.
      runs: by name what there is before the first step.
      data: a split.
      batch_size: examples a step.
      rounds: timed steps of each.

    Returns:
      By name the seconds of the fastest step, and of line searches the mean trials.
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


def time_methods(
    problem: Problem,
    methods: Mapping[str, Method],
    programs: Mapping[str, Program],
    batch_size: int,
    paper: Mapping[str, str],
) -> tuple[str, Any]:
    """Times a step of each method, at its first value; `programs` are those of methods.

    Args:
      problem: what is trained.
      methods: by name.
      programs: their steps, compiled or not.
      batch_size: examples a step.
      paper: the paper's times, by name of the method, as shares of SGD's.

    Returns:
      A section of a report, Markdown, and its numbers.
    """
    values = {name: method.values[0] for name, method in methods.items()}
    runs = {name: start(problem, methods[name], at, 0) for name, at in values.items()}
    steps = {
        name: functools.partial(programs[name], jnp.float32(at))
        for name, at in values.items()
    }
    data = problem.splits["train"]
    seconds, trials = in_turns(steps, runs, data, batch_size, _ROUNDS)
    operations = {name: programs[name].operations for name in methods}
    titles = {name: method.title for name, method in methods.items()}
    base = "sgd" if "sgd" in methods else next(iter(methods))
    text = (
        "\n## Cost of a step\n\nAfter the training, methods in turns, the fastest of "
        f"{_ROUNDS} steps; multiples are of {titles[base]}. XLA counts one trial.\n\n"
        f"{cost_table(seconds, operations, titles, base, paper)}\n"
    )
    return text, {"seconds": seconds, "operations": operations, "trials": trials}
