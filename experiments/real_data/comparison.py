"""Compares methods with tuned weights and other baselines on real data."""

import dataclasses
import functools
import itertools
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

import mtlopt
from experiments.lab.folder import RunFolder
from experiments.lab.loop import train
from experiments.lab.program import Program
from experiments.lab.settings import Options, parse
from experiments.lab.tables import Frame, command_line, count, markdown_table, select
from experiments.real_data import equations, learned
from experiments.real_data.choice import Standing, at_edge, choose, compare, errors_of
from experiments.real_data.pictures import draw_ratios
from experiments.real_data.problem import Problem
from experiments.real_data.training import ANNEALING, make_run, make_training, rows_of

NAME = "real_data.comparison"
PROBLEMS: dict[str, Callable[[], Problem]] = {
    "molecules": learned.load_molecules,
    "standardised": functools.partial(learned.load_molecules, standardised=True),
    "kovasznay": equations.load_kovasznay,
    "burgers": equations.load_burgers,
    "beltrami": equations.load_beltrami,
    "yeast": learned.load_yeast,
}
FEW = ("uncertainty", "mgda", "pcgrad", "nash_mtl", "conflict_free", "aligned_mtl")
# Fixed before the first run, independently of its results.
METHODS = (
    *FEW,
    *("dwa", "gradnorm", "famo", "log_stch", "geometric_mean", "rlw", "db_mtl"),
    *("upgrad", "cagrad", "fairgrad", "graddrop", "imtl_g"),
)
_CHOOSING = 1000  # the first of the choosing seeds; reported seeds start from 0
Outcome = tuple[str, str, Standing]  # title, weights and rate, and what the errors say

DESCRIPTION = """\
Compares methods on real problems with baselines that need no method. The baselines are
the summed loss, fixed weights tuned on a grid, and losses divided by their first
values. If a problem has targets, the baselines also include standardised targets and a
separate network for each task.

The problems are six properties of molecules in raw units, the same properties with
standardised targets, three equations that a network solves (Kovasznay's flow, Burgers'
shock and Beltrami's flow), and fourteen labels of yeast genes as a negative control.
Molecules and yeast need pip install -e ".[real-data]". Burgers takes the longest.

Each row of a table gets the learning rate with the lowest validation error, and also
the best weights if the row has weights. Separate seeds make this choice. The tables
report other seeds, with their errors on test data. Without options, two problems and
six methods run. The option --full runs the problems and methods that were fixed before
the first run: all problems except Beltrami's flow, and eighteen methods. With the
option --methods you can run any other method of the library, and `annealing` for
equations.
"""

FULL: dict[str, Any] = {
    "problems": tuple(name for name in PROBLEMS if name != "beltrami"),
    "methods": METHODS,
    "choosing_seeds": 3,
}
FULL |= {"seeds": 5, "rates": (3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1, 3e-1)}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings(Options):
    """The settings that decide the numbers of a run.

    Attributes:
      problems: some of the six problems, or all.
      methods: some of the names in `mtlopt.METHODS`, or all, and `annealing`, which is
        for equations. A problem leaves out methods that need more tasks than it has.
      rates: learning rates of Adam; each row gets its best rate.
      choosing_seeds: number of seeds that choose rates and weights; other seeds are
        reported.
      seeds: number of seeds that are reported.
    """

    problems: tuple[str, ...] = ("molecules", "kovasznay")
    methods: tuple[str, ...] = FEW
    rates: tuple[float, ...] = (1e-3, 3e-3, 1e-2, 3e-2, 1e-1, 3e-1)
    choosing_seeds: int = 1
    seeds: int = 3


def main(argv: Sequence[str]) -> None:
    """Runs the comparison with the options `argv`, see `DESCRIPTION`."""
    names = {"problems": PROBLEMS, "methods": (*mtlopt.METHODS, ANNEALING)}
    settings = parse(NAME, DESCRIPTION, Settings(), argv, full=FULL, names=names)
    problems = {name: PROBLEMS[name]() for name in settings.problems}
    text, results, command = _head(settings), {}, command_line(NAME, argv)
    with RunFolder(settings) as folder:
        for name, problem in problems.items():
            outcomes = run_problem(name, problem, settings, folder)
            text += f"\n\n{make_section(name, problem, list(outcomes.values()))}"
            results[name] = {
                row: {"chosen": chosen, "says": standing.words} | standing._asdict()
                for row, (_, chosen, standing) in outcomes.items()
            }
            # Write after each problem, because all problems together may take hours.
            folder.write_results(settings, text, command=command, problems=results)
            draw_ratios(folder.path / f"{name}.png", name, outcomes.values())


def run_problem(
    name: str, problem: Problem, settings: Settings, folder: RunFolder
) -> dict[str, Outcome]:
    """Makes the choosing runs, then the reported runs; the tuned weights come first."""
    rows = rows_of(problem, settings.methods)
    programs = [Program(make_run(row)) for row in rows]

    def runs(stage: str, candidates: Iterable[Any], seeds: Sequence[int]) -> Frame:
        each = [
            make_training(name, row, program, stage, own, seeds)
            for row, program, own in zip(rows, programs, candidates, strict=True)
        ]
        return train(each, 1, (), folder, stream=f"{name}_{stage}")

    seeds = range(_CHOOSING, _CHOOSING + settings.choosing_seeds)
    grids = (itertools.product(row.weightings, settings.rates) for row in rows)
    search = runs("search", grids, seeds)
    found = ((row, select(search, row=row.name)) for row in rows)
    choices = [choose(table, problem.parts, alone=row.alone) for row, table in found]
    told = [list(dict.fromkeys(choice.values())) for choice in choices]
    table = runs("report", told, range(settings.seeds))
    outcomes, base = {}, None
    for row, choice, candidates in zip(rows, choices, told, strict=True):
        errors = errors_of(select(table, row=row.name), choice)
        base = errors if base is None else base
        words = ", ".join(f"{weights} {rate:g}".strip() for weights, rate in candidates)
        words += "*" * at_edge(choice, settings.rates, list(row.weightings))
        outcomes[row.name] = (row.title, words, compare(errors, base))
    return outcomes


def _head(settings: Settings) -> str:
    grid = ", ".join(f"{rate:g}" for rate in settings.rates)
    return (
        "# Which method, on real data\n\n"
        f"{count(settings.choosing_seeds, 'seed')} chose among the rates {grid} by "
        f"validation, {count(settings.seeds, 'other seed')} are reported by test. A "
        "star marks a rate, or weights, at the edge of the grid. Errors are geometric "
        'means over parts and seeds. The column "beside tuned weights" has ratios to '
        "the tuned weights for the same seeds, with the lowest and the highest seed in "
        "brackets. A row differs if the 95 % interval of the ratios' logarithms does "
        "not contain zero. Rounding is the factor by which the error changes, root "
        "mean square over seeds, if the last bit of the initial parameters differs."
    )


def make_section(name: str, problem: Problem, outcomes: Sequence[Outcome]) -> str:
    """Returns a problem's heading and table, sorted by error, with lost seeds last."""
    header = ["method", "rate", "error", "beside tuned weights", "worst part"]
    header += ["difference", "rounding", "lost seeds"]
    ordered = sorted(outcomes, key=lambda own: (own[-1].lost, own[-1].error))
    others = len(outcomes) - 1
    text = (
        f"{problem.source}. {problem.oracle.num_tasks} tasks, {problem.steps:,} steps. "
        f"Of {others} intervals at 95 %, {others / 20:.1f} miss zero by chance."
    )
    table = markdown_table(header, [_cells(*outcome) for outcome in ordered])
    return f"## {name}\n\n{text}\n\n{table}"


def _cells(title: str, chosen: str, standing: Standing) -> list[str]:
    cells = ["", "", ""]
    if standing.ratios:
        part, most = standing.worst
        low, mean, high = (np.exp(f(standing.ratios)) for f in (min, np.mean, max))
        ratio = f"{mean:.2f} ({low:.2f} to {high:.2f})"
        cells = [f"{np.exp(standing.error):.4f}", ratio, f"{np.exp(most):.2f} {part}"]
    cells += [standing.words, f"{np.exp(standing.rounding):.3f}", str(standing.lost)]
    return [title, chosen, *cells]
