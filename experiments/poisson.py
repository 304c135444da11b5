"""A differential equation and its boundary: the README's first example."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import mtlopt
from experiments.lab.errors import UsageError
from experiments.lab.figures import COLOURS, drawing
from experiments.lab.folder import RunFolder
from experiments.lab.loop import Progress, Training, Values, train
from experiments.lab.program import Program
from experiments.lab.settings import ShortOptions, methods_for, parse
from experiments.lab.tables import Frame, command_line, count, markdown_table, select
from experiments.real_data.problem import dense

PyTree = Any
NAME, TASKS = "poisson", ("equation", "boundary")
SUM = "sum_tasks"
FACTORS = (1.0, 10.0, 100.0, 1e3, 1e4)  # of the loss at the boundary
METHODS = ("mgda", "pcgrad", "upgrad", "conflict_free", "imtl_g", "nash_mtl")
METHODS += ("aligned_mtl",)
WIDTH = 32
INSIDE, ENDS = np.linspace(0, 1, 128), np.array([0.0, 1.0])
POINTS = np.linspace(0, 1, 201)  # of the error and the figure

DESCRIPTION = """\
A network with two hidden layers solves u'' = f on an interval, with given values at
both ends. The gradient of the equation's loss is much longer than the gradient of the
boundary's loss, so the summed loss neglects the boundary. The table shows the error for
each learning rate, for the summed loss, for fixed weights of the boundary from 1 to
10,000, and for methods that have no weight to tune.
"""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings(ShortOptions):
    """The settings that decide the numbers of a run.

    Attributes:
      methods: some of the names in `mtlopt.METHODS`.
      learning_rates: initial learning rates of Adam; each rate falls to zero along a
        cosine.
      drawn: the learning rate in the figure, which must be one of the learning rates.
      seeds: number of seeds; all seeds and rates train in one program.
      steps: number of steps of each training.
    """

    methods: tuple[str, ...] = METHODS
    learning_rates: tuple[float, ...] = (1e-3, 3e-3, 1e-2, 3e-2)
    drawn: float = 3e-3
    seeds: int = 5
    steps: int = 2000


class Row(NamedTuple):
    """A row of the table."""

    method: str
    factor: float = 1.0  # of the loss at the boundary

    @property
    def title(self) -> str:
        """The name of the row in the table."""
        title = mtlopt.METHODS[self.method].title
        return title if self.factor == 1 else f"{title}, boundary x {self.factor:g}"


def main(argv: Sequence[str]) -> None:
    """Runs the experiment with the options `argv`, see `DESCRIPTION`."""
    names = {"methods": methods_for(len(TASKS))}
    settings = parse(NAME, DESCRIPTION, Settings(), argv, names=names)
    if settings.drawn not in settings.learning_rates:
        raise UsageError(
            f"--drawn must be one of the learning rates, got {settings.drawn:g}."
        )
    rows = [Row(SUM, factor) for factor in FACTORS]
    rows += [Row(name) for name in settings.methods if name != SUM]
    programs = {
        row.method: Program(make_run(row.method, settings.steps)) for row in rows
    }
    with RunFolder(settings) as folder:
        trainings = [make_training(row, programs[row.method], settings) for row in rows]
        table = train(trainings, 1, (), folder)
        command = command_line(NAME, argv)
        report = make_report(table, rows, settings, command)
        folder.write_results(settings, report, command=command)
        curves = {}
        for row in (Row(SUM), Row("conflict_free")):
            if row in rows:
                lanes = _lanes(row, settings)
                drawn = lanes[0] == np.float32(settings.drawn)
                curves[row.title] = programs[row.method](*lanes)[1][drawn]
        draw(curves, settings, folder.path / "poisson.png")


def solution(x: Any) -> Any:
    """Returns the exact solution u."""
    return jnp.sin(4 * jnp.pi * x) + x


def network(params: PyTree, x: jax.Array) -> jax.Array:
    """Returns the network's u at one point."""
    *hidden, last = params
    z = x[None]
    for layer in hidden:
        z = jnp.tanh(z @ layer["w"] + layer["b"])
    return (z @ last["w"] + last["b"])[0]


def init(key: jax.Array) -> PyTree:
    """Returns parameters of two hidden layers."""
    return dense(key, (1, WIDTH, WIDTH, 1))


def losses(params: PyTree) -> jax.Array:
    """Returns the mean squares of u'' - f inside and of the error of u at the ends."""

    def bent(function: Callable[[Any], Any]) -> jax.Array:
        return jax.vmap(jax.grad(jax.grad(function)))(jnp.asarray(INSIDE))

    def u(x: Any) -> jax.Array:
        return network(params, x)

    inside = bent(u) - bent(solution)
    ends = jax.vmap(u)(jnp.asarray(ENDS)) - solution(ENDS)
    return jnp.stack([jnp.mean(inside**2), jnp.mean(ends**2)])


def make_run(name: str, steps: int) -> Callable[..., tuple[jax.Array, jax.Array]]:
    """Returns `run(rates, seeds, factors)`: errors `[runs]`, and u at `POINTS`."""
    oracle = mtlopt.task_grad(losses, "shared", tasks=TASKS)
    method = mtlopt.METHODS[name].make(len(TASKS), labels=oracle.labels)

    @jax.vmap
    def run(rate: Any, seed: Any, factor: Any) -> tuple[jax.Array, jax.Array]:
        weighted = mtlopt.weight_by_fixed(jnp.array([1, factor]))
        falling = optax.cosine_decay_schedule(rate, steps)
        optimizer = optax.chain(weighted, method, optax.adam(falling))
        step = mtlopt.train_step(oracle, optimizer)
        params = init(jax.random.key(seed))
        run = mtlopt.Run(params, optimizer.init(params))
        run = jax.lax.fori_loop(0, steps, lambda _, run: step(run)[0], run)
        u = jax.vmap(lambda x: network(run.params, x))(jnp.asarray(POINTS))
        right = solution(POINTS)
        return jnp.linalg.norm(u - right) / jnp.linalg.norm(right), u

    return run


def make_training(row: Row, program: Program, settings: Settings) -> Training:
    """Returns the training of a row: all rates and seeds in one program."""
    lanes = _lanes(row, settings)
    runs = [
        {"row": row.title, "rate": rate, "seed": seed}
        for rate in settings.learning_rates
        for seed in range(settings.seeds)
    ]

    def epoch(state: tuple[()], _: int, progress: Progress) -> tuple[Any, Values]:
        errors, _ = program(*lanes)
        progress(1, row.title)
        return state, {"error": errors}

    return Training(f"{row.method}-{row.factor:g}", runs, tuple, epoch, 1)


def _lanes(row: Row, settings: Settings) -> tuple[np.ndarray, ...]:
    """Returns the rate, the seed and the factor of each run of a row."""
    rates, seeds = np.array(settings.learning_rates, np.float32), settings.seeds
    factors = np.full(len(rates) * seeds, np.float32(row.factor))
    return np.repeat(rates, seeds), np.tile(np.arange(seeds), len(rates)), factors


def make_report(
    table: Frame, rows: Sequence[Row], settings: Settings, command: str
) -> str:
    """Returns the errors as Markdown."""
    rates, seeds = settings.learning_rates, settings.seeds
    cells = [
        [row.title, *(_cell(select(table, row=row.title, rate=rate)) for rate in rates)]
        for row in rows
    ]
    return f"""# Poisson's equation

`{command}`

u'' = f on [0, 1], with u = sin 4πx + x. Two hidden layers of {WIDTH}, \
{settings.steps:,} steps of Adam, {count(seeds, "seed")}.

## Relative error of u by learning rate

Errors are in the L2 norm, as geometric means over seeds. The brackets contain the
lowest and the highest.

{markdown_table(["", *(f"{rate:g}" for rate in rates)], cells)}"""


def _cell(runs: Frame) -> str:
    errors = runs["value"].to_numpy()
    middle, low, high = np.exp(np.log(errors).mean()), errors.min(), errors.max()
    return f"{middle:.2g} ({low:.2g} to {high:.2g})"


def draw(curves: Mapping[str, Any], settings: Settings, path: Path) -> None:
    """Draws u of every seed, in a panel for each row."""
    size = {"figsize": (3.6 * len(curves), 2.6), "sharex": True, "sharey": True}
    title = f"u of {count(settings.seeds, 'seed')} after {settings.steps:,} steps from "
    title += f"{settings.drawn:g}; the solution is black"
    with drawing(path, title, 1, len(curves), **size) as grid:
        for axis, name, colour in zip(grid.flat, curves, COLOURS, strict=False):
            axis.set_title(name)
            axis.set_xlabel("x")
            axis.plot(POINTS, np.asarray(curves[name]).T, color=colour, linewidth=1)
            axis.plot(POINTS, solution(POINTS), "k--", linewidth=1)
