"""A vision experiment, from its options to the files that it leaves."""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import jax
import pandas as pd

from experiments.data.samples import Samples
from experiments.lab.folder import RunFolder
from experiments.lab.loop import train
from experiments.lab.settings import Options, UsageError, parse
from experiments.lab.tables import command_line, count
from experiments.lab.vision import figures
from experiments.lab.vision.data import Split, first
from experiments.lab.vision.methods import SINGLE, SUM, make_methods, method_names
from experiments.lab.vision.problem import Tasks, VisionProblem, vision_problem
from experiments.lab.vision.report import (
    Paper,
    Titles,
    choose,
    make_report,
    scores_by_method,
)
from experiments.lab.vision.training import make_trainings, measure_costs


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings(Options):
    """The options that decide the numbers of a run.

    Attributes:
      methods: some of the names in `mtlopt.METHODS`, ius and io (in groups: io_4),
        roaming, sgd, fbls, single, or all. The summed loss is always among them.
      epochs: passes over the train split.
      seeds: number of seeds, from 0.
      batch_size: samples per step.
      learning_rates: the grid of every method, which gets its best by validation.
      num_images: only the first of each split, for a trial; 0 for all.
      data_dir: folder of the release; None for rendered images.
      sizes: of images and network.
    """

    methods: tuple[str, ...]
    epochs: int = 4
    seeds: int = 2
    batch_size: int = 8
    learning_rates: tuple[float, ...] = (1e-3, 1e-2)
    num_images: int = 0
    data_dir: str | None = None
    sizes: Literal["small", "paper"] = "small"

    @property
    def small(self) -> bool:
        """Whether images and network are smaller than the paper's."""
        return self.sizes == "small"


@dataclasses.dataclass(frozen=True)
class Experiment:
    """The parts that one experiment adds.

    Attributes:
      name: of the command.
      description: for `--help`.
      quick: the settings without an option.
      full: what `--full` changes, besides the sizes.
      load: from the settings to the samples of the three splits.
      tasks: from the names of the labels to what is learnt.
      build: from the settings, the names of the labels and a key to the network.
      num_tasks: number of tasks.
      paper: from the settings to the paper's numbers.
      table: which table they are from.
      stacked: whether the heads are stacked.
      distances: the paper's distances by method.
      draw: draws more, `draw(the chosen runs, titles of methods, source, folder)`.
    """

    name: str
    description: str
    quick: Settings
    full: Mapping[str, Any]
    load: Callable[[Any], Mapping[str, Samples]]
    tasks: Callable[[tuple[str, ...]], Tasks]
    build: Callable[[Any, tuple[str, ...], jax.Array], Any]
    num_tasks: int
    paper: Callable[[Any], Paper]
    table: str
    stacked: bool = False
    distances: Mapping[str, Sequence[float]] = dataclasses.field(default_factory=dict)
    draw: Callable[[pd.DataFrame, Titles, str, Path], None] | None = None


def run(experiment: Experiment, argv: Sequence[str]) -> None:
    """Runs an experiment; bad options, data or folders are a UsageError."""
    settings = read_settings(experiment, argv)
    problem, source = load_problem(experiment, settings)
    size, rates, seeds = settings.batch_size, settings.learning_rates, settings.seeds
    steps = len(problem.splits["train"]) // size
    methods = make_methods(problem, settings.methods, steps * settings.epochs, steps)
    titles = {name: method.title for name, method in methods.items()}
    titles[SINGLE] = "Single task"
    with RunFolder(settings) as folder:
        out, command = folder.path, command_line(experiment.name, argv)
        trainings = make_trainings(problem, methods, rates, seeds, size, out / "drawn")
        table = train(trainings, settings.epochs, problem.tasks, folder)
        costs, chosen = measure_costs(problem, methods, size), choose(table)
        scores = scores_by_method(chosen, problem.learnt.metrics)
        times = f"{count(settings.epochs, 'epoch')}, {count(seeds, 'seed')}"
        report = make_report(
            table,
            scores,
            costs,
            titles,
            problem.learnt.metrics,
            heading=f"# {experiment.name}\n\n`{command}`\n\nData: {source}. Adam, "
            f"batch {size}, {times} (± is their standard deviation).",
            paper=experiment.paper(settings),
            paper_table=experiment.table,
            paper_distances=experiment.distances,
        )
        about = {"command": command, "data": source, "scores": scores, "costs": costs}
        folder.write_results(settings, report, **about)
        figures.draw(problem, table, titles, f"Data: {source}", out)
        if experiment.draw is not None:
            experiment.draw(chosen, titles, f"Data: {source}", out)
    print(f"\n{report}\nWritten to {out}.")


def read_settings(experiment: Experiment, argv: Sequence[str]) -> Settings:
    """Returns the settings; the summed loss is always among the methods."""
    names = method_names(experiment.num_tasks, stacked=experiment.stacked)
    settings = parse(
        experiment.name,
        experiment.description,
        experiment.quick,
        argv,
        full={**experiment.full, "sizes": "paper"},
        names={"methods": names},
    )
    methods = dict.fromkeys([SUM, *settings.methods])
    rates = sorted(set(settings.learning_rates))
    return dataclasses.replace(
        settings, methods=tuple(methods), learning_rates=tuple(rates)
    )


def load_problem(
    experiment: Experiment, settings: Settings
) -> tuple[VisionProblem, str]:
    """Returns the problem, of whose data little is read yet, and their source."""
    try:
        samples = experiment.load(settings)
        if settings.num_images:
            samples = {n: first(s, settings.num_images) for n, s in samples.items()}
        splits = {name: Split(each) for name, each in samples.items()}
    except (OSError, ValueError, ImportError) as error:
        raise UsageError(error) from error
    found, names = len(splits["train"]), splits["train"].tasks
    if settings.batch_size > found:
        raise UsageError(
            f"--batch-size must be at most {found}, the number of training images, got "
            f"{settings.batch_size}."
        )
    build = functools.partial(experiment.build, settings, names)
    tasks, stacked = experiment.tasks(names), experiment.stacked
    problem = vision_problem(build, tasks, splits, stacked=stacked)
    return problem, samples["train"].source
