"""Two losses of two parameters with every method: figure 1 of Aligned-MTL."""

import dataclasses
import time
from collections.abc import Callable, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax
from tqdm import tqdm

import mtlopt
from experiments.aligned_mtl.landscapes import LANDSCAPES, Landscape, Loss
from experiments.aligned_mtl.toy_figures import Paths, draw_paths
from experiments.lab.folder import RunFolder
from experiments.lab.settings import Options, UsageError, methods_for, parse
from experiments.lab.tables import command_line, markdown_table

NAME = "aligned_mtl.toy"
OPTIMIZERS = {"adam": optax.adam, "sgd": optax.sgd}

# One grid for all methods. A step of Adam is about as long as its learning rate: with
# more than 0.1 a run leaps over the valleys, about 1 wide, that are the difficulty.
LEARNING_RATES = (1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1)

DESCRIPTION = """\
Descends two losses of two parameters with every method, from five starting points and
with a grid of learning rates at once, and says after how many steps a run is near the
Pareto front (figure 1 of Aligned-MTL, Senushkin et al., CVPR 2023).

--landscape yu      the two logarithmic valleys of PCGrad (Yu et al., NeurIPS 2020),
                    with its starting point and four of ours
--landscape cagrad  the landscape of CAGrad (Liu et al., NeurIPS 2021), with the five
                    starting points of the code of Nash-MTL and Aligned-MTL
--scale S           minimises S times the first and 1 - S times the second loss, the
                    "task balance" of Aligned-MTL's code; 0.0909 is Nash-MTL's 0.1 to 1
--learning-rates    instead of the grid; the code of Nash-MTL and Aligned-MTL runs
                    --learning-rates 0.001 --steps 35000 --landscape cagrad

All distances are in units of the losses as published, without the scale. The learning
rate of a method is the best of the grid: that with which it comes near from most
starts, then in the fewest steps, then the nearest.
"""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings(Options):
    """What decides the numbers of a run.

    Attributes:
      methods: some of the names in `mtlopt.METHODS`, or all.
      steps: updates of every run.
      scale: factor of the first loss, between 0 and 1; that of the second is one minus
        it.
      landscape: which landscapes.
      optimizer: base optimizer, with a constant learning rate.
      learning_rates: of which each method gets its best.
    """

    methods: tuple[str, ...] = methods_for(2)
    steps: int = 5_000
    scale: float = 0.5
    landscape: Literal["yu", "cagrad", "both"] = "both"
    optimizer: Literal["adam", "sgd"] = "adam"
    learning_rates: tuple[float, ...] = LEARNING_RATES

    @property
    def landscapes(self) -> tuple[str, ...]:
        """Names of the landscapes."""
        return tuple(LANDSCAPES) if self.landscape == "both" else (self.landscape,)


@dataclasses.dataclass(frozen=True, eq=False)
class Outcome:
    """One method on one landscape, with the learning rate that is best for it.

    Attributes:
      learning_rate: that learning rate.
      steps: for each start the steps after which the run is first within the tolerance;
        None for never.
      nearest: the smallest distance to the front on the way, for each start.
      end: the distance after the last step, for each start; NaN if the run broke.
      params: the runs, `[starts, steps + 1, 2]`.
      losses: their losses, without the scale, `[starts, steps + 1, 2]`.
      seconds: execution of all starts and learning rates.
    """

    learning_rate: float
    steps: tuple[int | None, ...]
    nearest: tuple[float, ...]
    end: tuple[float, ...]
    params: np.ndarray
    losses: np.ndarray
    seconds: float


# For each method its outcome on each landscape, by names.
Outcomes = dict[str, dict[str, Outcome]]


def main(argv: Sequence[str]) -> None:
    """Runs the experiment.

    Args:
      argv: the options, see `DESCRIPTION`.

    Raises:
      UsageError: if an option or the output folder is at fault.
    """
    names = {"methods": methods_for(2)}
    settings = parse(NAME, DESCRIPTION, Settings(), argv, names=names)
    if not 0 < settings.scale < 1:
        raise UsageError(f"--scale must be between 0 and 1, got {settings.scale:g}.")
    # Short enough to be run again: the same command writes the same files.
    with RunFolder(settings, resume=True) as folder:
        outcomes, compile_seconds = run_methods(settings)
        command = command_line(NAME, argv)
        report = make_report(outcomes, settings, command)
        folder.write_results(
            settings,
            report,
            command=command,
            landscapes={name: _describe(name) for name in settings.landscapes},
            methods={
                method: {
                    "title": mtlopt.METHODS[method].title,
                    "compile_seconds": compile_seconds[method],
                    **{name: _summarize(outcome) for name, outcome in entry.items()},
                }
                for method, entry in outcomes.items()
            },
        )
        what = f"{settings.optimizer}, {settings.steps} steps, scale {settings.scale:g}"
        for name in settings.landscapes:
            paths = {
                _title(m, entry[name]): _paths(entry[name])
                for m, entry in outcomes.items()
            }
            draw_paths(folder.path, name, paths, what)
    print(f"\n{report}\nWritten to {folder.path}.")


def _title(method: str, outcome: Outcome) -> str:
    return f"{mtlopt.METHODS[method].title}\nlr {outcome.learning_rate:g}"


def run_methods(settings: Settings) -> tuple[Outcomes, dict[str, float]]:
    """Runs every method on every landscape.

    Args:
      settings: see there.

    Returns:
      The outcomes, and for each method the seconds of its compilation, which serves for
      all landscapes.
    """
    names = settings.landscapes
    rates = jnp.array(settings.learning_rates)
    scales = np.array([settings.scale, 1 - settings.scale])
    problems = {}
    for name in names:
        losses = jax.tree.map(jnp.asarray, LANDSCAPES[name].losses)
        problems[name] = losses, jnp.array(LANDSCAPES[name].starts)
    outcomes, compile_seconds = {}, {}
    total = len(settings.methods) * len(names)
    with tqdm(total=total, unit="run", dynamic_ncols=True) as bar:
        for method in settings.methods:
            bar.set_description(method)
            outcomes[method] = {}
            started = time.perf_counter()
            descend = jax.jit(make_descend(settings, method))
            compiled = descend.lower(*problems[names[0]], rates).compile()
            compile_seconds[method] = time.perf_counter() - started
            for name in names:
                started = time.perf_counter()
                done = jax.block_until_ready(compiled(*problems[name], rates))
                seconds = time.perf_counter() - started
                params, losses = map(np.asarray, done)
                outcomes[method][name] = best_of_grid(
                    LANDSCAPES[name],
                    settings.learning_rates,
                    params,
                    losses / scales,
                    seconds,
                )
                bar.update()
    return outcomes, compile_seconds


def make_descend(
    settings: Settings, method: str
) -> Callable[..., tuple[jax.Array, jax.Array]]:
    """Returns the descent of a method from all starts with all learning rates.

    Args:
      settings: see there.
      method: a name in `mtlopt.METHODS`.

    Returns:
      `descend(losses, starts, rates)` with two `Loss`, `[starts, 2]` and `[rates]`. It
      returns the parameters and the scaled losses, `[rates, starts, steps + 1, 2]`;
      entry k is after k steps.
    """
    # The identity as encoder: methods in latent space run too.
    oracle = mtlopt.task_grad(
        {
            "first": lambda _, z, losses: settings.scale * losses[0](z),
            "second": lambda _, z, losses: (1 - settings.scale) * losses[1](z),
        },
        "shared",
        encode=lambda params, _: params,
    )

    def descend(
        losses: tuple[Loss, Loss], start: jax.Array, rate: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        optimizer = optax.chain(
            mtlopt.METHODS[method].make(2, labels="shared"),
            OPTIMIZERS[settings.optimizer](rate),
        )

        def step(carry: Any, _: None) -> Any:
            params, state = carry
            grads = oracle(params, losses)
            updates, state = optimizer.update(grads, state, params)
            new = optax.apply_updates(params, updates)
            return (new, state), (params, grads.losses)

        first = (start, optimizer.init(start))
        return jax.lax.scan(step, first, length=settings.steps + 1)[1]

    every_start = jax.vmap(descend, in_axes=(None, 0, None))
    return jax.vmap(every_start, in_axes=(None, None, 0))


def best_of_grid(
    landscape: Landscape,
    rates: Sequence[float],
    params: np.ndarray,
    losses: np.ndarray,
    seconds: float,
) -> Outcome:
    """Chooses a method's learning rate, by what `DESCRIPTION` says.

    Args:
      landscape: what was descended.
      rates: the learning rates.
      params: `[rates, starts, steps + 1, 2]`.
      losses: without the scale, `[rates, starts, steps + 1, 2]`.
      seconds: execution time.

    Returns:
      The outcome with that learning rate.
    """
    distance = landscape.distance(losses)
    near = distance <= landscape.tolerance  # False for NaN
    reached = np.asarray(near.any(axis=-1))
    steps = np.argmax(near, axis=-1)
    # A run that breaks counts by what it was before.
    nearest = np.min(np.where(np.isnan(distance), np.inf, distance), axis=-1)
    late = np.where(reached, steps, 0).sum(axis=-1)
    order = np.lexsort((nearest.max(axis=-1), late, -reached.sum(axis=-1)))
    best = int(order[0])  # the last key counts most
    return Outcome(
        learning_rate=rates[best],
        steps=tuple(
            count if there else None
            for count, there in zip(
                steps[best].tolist(), reached[best].tolist(), strict=True
            )
        ),
        nearest=tuple(nearest[best].tolist()),
        end=tuple(distance[best, :, -1].tolist()),
        params=params[best],
        losses=losses[best],
        seconds=seconds,
    )


def make_report(outcomes: Outcomes, settings: Settings, command: str) -> str:
    """Returns the tables as Markdown."""
    rates = ", ".join(f"{rate:g}" for rate in settings.learning_rates)
    parts = [
        "# Toy landscapes",
        f"`{command}`",
        f"Steps until a run is near the Pareto front, of {settings.steps}; "
        f"{settings.optimizer} with the learning rate that is best for each method, "
        f"of {rates}; loss scales {settings.scale:g} and {1 - settings.scale:g}. The "
        "distance to the front is how much both losses, without their scales, can "
        'still fall together; "nearest" and "at the end" are those of the worst start.',
    ]
    for name in settings.landscapes:
        landscape = LANDSCAPES[name]
        runs = {method: entry[name] for method, entry in outcomes.items()}
        parts += [
            f"## {landscape.title}",
            f"Near is a distance of at most {landscape.tolerance:g}.",
            _table(landscape, runs),
            _verdict(runs),
        ]
    return "\n\n".join(parts)


def _table(landscape: Landscape, runs: dict[str, Outcome]) -> str:
    header = ["method", "learning rate"]
    header += [f"({x:g}, {y:g})" for x, y in landscape.starts]
    header += ["nearest", "at the end"]
    rows = []
    for method, outcome in runs.items():
        counts = ["never" if n is None else str(n) for n in outcome.steps]
        worst = [_digits(max(outcome.nearest)), _digits(float(np.max(outcome.end)))]
        title = mtlopt.METHODS[method].title
        rows.append([title, f"{outcome.learning_rate:g}", *counts, *worst])
    return markdown_table(header, rows)


def _digits(distance: float) -> str:
    """Rounds; the interpolated front leaves distances like -2e-6, which are zero."""
    return f"{round(distance, 2) + 0.0:.2f}"


def _verdict(runs: dict[str, Outcome]) -> str:
    """Says in words from how many starts the methods come near."""
    groups: dict[str, list[str]] = {"every start": [], "some": [], "none": []}
    for method, outcome in runs.items():
        never = outcome.steps.count(None)
        few = "none" if never == len(outcome.steps) else "some"
        groups[few if never else "every start"].append(mtlopt.METHODS[method].title)
    lines = [f"{key}: {', '.join(group)}" for key, group in groups.items() if group]
    return f"From {'; from '.join(lines)}."


def _summarize(outcome: Outcome) -> dict[str, Any]:
    """Returns the numbers of an outcome, without the paths."""
    entry = dataclasses.asdict(outcome)
    return {key: entry[key] for key in entry if key not in ("params", "losses")}


def _describe(name: str) -> dict[str, Any]:
    landscape = LANDSCAPES[name]
    return {
        "title": landscape.title,
        "starts": landscape.starts,
        "tolerance": landscape.tolerance,
    }


def _paths(outcome: Outcome) -> Paths:
    return Paths(outcome.params, outcome.losses, outcome.steps)
