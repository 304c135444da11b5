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
from experiments.aligned_mtl.landscapes import (
    LANDSCAPES,
    Landscape,
    Loss,
    Outcome,
    best_of_grid,
)
from experiments.aligned_mtl.toy_figures import draw_paths
from experiments.lab.errors import UsageError
from experiments.lab.folder import RunFolder
from experiments.lab.program import Program
from experiments.lab.settings import ShortOptions, methods_for, parse
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
class Settings(ShortOptions):
    """The settings that decide the numbers of a run.

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


# For each method its outcome on each landscape, by names.
Outcomes = dict[str, dict[str, Outcome]]
NUMBERS = ("learning_rate", "steps", "nearest", "end", "seconds")  # of an outcome


def main(argv: Sequence[str]) -> None:
    """Runs the experiment with the options `argv`, see `DESCRIPTION`."""
    names = {"methods": methods_for(2)}
    settings = parse(NAME, DESCRIPTION, Settings(), argv, names=names)
    if not 0 < settings.scale < 1:
        raise UsageError(f"--scale must be between 0 and 1, got {settings.scale:g}.")
    # Short enough to be run again: the same command writes the same files.
    with RunFolder(settings) as folder:
        outcomes, compile_seconds = run_methods(settings)
        command = command_line(NAME, argv)
        report = make_report(outcomes, settings, command)
        folder.write_results(
            settings,
            report,
            command=command,
            landscapes={
                name: _fields(LANDSCAPES[name], "title", "starts", "tolerance")
                for name in settings.landscapes
            },
            methods={
                method: {
                    "title": mtlopt.METHODS[method].title,
                    "compile_seconds": compile_seconds[method],
                    **{name: _fields(own, *NUMBERS) for name, own in entry.items()},
                }
                for method, entry in outcomes.items()
            },
        )
        what = f"{settings.optimizer}, {settings.steps} steps, scale {settings.scale:g}"
        for name in settings.landscapes:
            columns = {}
            for method, entry in outcomes.items():
                rate = entry[name].learning_rate
                columns[f"{mtlopt.METHODS[method].title}\nlr {rate:g}"] = entry[name]
            draw_paths(folder.path, name, columns, what)


def run_methods(settings: Settings) -> tuple[Outcomes, dict[str, float]]:
    """Runs every method on every landscape.

    Returns the outcomes, and for each method the seconds of its compilation, which
    serves for all landscapes.
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
            descend = Program(make_descend(settings, method))
            descend.compile(*problems[names[0]], rates)
            compile_seconds[method] = descend.compile_seconds
            for name in names:
                started = time.perf_counter()
                done = jax.block_until_ready(descend(*problems[name], rates))
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

    It is `descend(losses, starts, rates)` with two `Loss`, `[starts, 2]` and `[rates]`,
    and returns the parameters and the scaled losses, `[rates, starts, steps + 1, 2]`;
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


def _fields(of: object, *names: str) -> dict[str, Any]:
    return {name: getattr(of, name) for name in names}
