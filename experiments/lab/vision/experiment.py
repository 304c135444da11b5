"""A vision experiment, from its options to the files that it leaves."""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import jax

from experiments.data.samples import Samples
from experiments.lab.folder import RunFolder
from experiments.lab.loop import train
from experiments.lab.settings import Options, check_batch_size, loaded, parse
from experiments.lab.tables import command_line, cost_table
from experiments.lab.verdicts import Verdict
from experiments.lab.vision import figures
from experiments.lab.vision.data import Split, first
from experiments.lab.vision.methods import make_methods, method_names
from experiments.lab.vision.problem import Tasks, VisionProblem, vision_problem
from experiments.lab.vision.report import SINGLE, SUM, Outcome, Paper, make_report
from experiments.lab.vision.training import make_trainings, measure_costs

_COSTS = """\
Costs of a step are measured after the training, with the methods in turns: the fastest
of several. Multiples are of the summed loss; single tasks run its program, one by one.
Operations in a loop, such as one over the turns of stacked heads, are counted once."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings(Options):
    """The options that decide the numbers of a run.

    Attributes:
      methods: some of the names in `mtlopt.METHODS`, ius, io (in four groups: io_4),
        roaming, sgd, fbls and single, or all. The summed loss is always added.
      epochs: passes over the train split.
      seeds: number of seeds, counted from 0.
      batch_size: samples in a batch.
      learning_rates: grid for every method, which gets its best rate by validation.
      num_images: use only the first images of each split, for a trial; 0 takes all.
      data_dir: folder of the release; None takes rendered images.
      sizes: sizes of the images and the network.
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
    """The parts that one experiment adds; most are functions of its settings."""

    name: str
    description: str
    quick: Settings  # without an option
    full: Mapping[str, Any]  # what `--full` changes, besides the sizes
    load: Callable[[Any], Mapping[str, Samples]]  # the three splits
    tasks: Callable[[tuple[str, ...]], Tasks]  # from the names of the labels
    build: Callable[[Any, tuple[str, ...], jax.Array], Any]  # from names and key too
    num_tasks: int
    paper: Callable[[Any], Paper]
    # The learning rate's share that is left in an epoch, from 0.
    decay: Callable[[Any, int], float] = lambda *_: 1.0
    stacked: bool = False  # whether its heads are
    # The share of the steps in which the masks of Maximum Roaming move; 0 if there are
    # none: a shortcut passes by them.
    roams: float = 0.0
    alpha: float = 1.5  # of GradNorm
    verdicts: Callable[[Outcome], list[Verdict]] = lambda _: []
    draw: Callable[[Outcome, Path], None] = lambda *_: None  # more, into a folder

    @property
    def methods(self) -> tuple[str, ...]:
        """The names that `--methods` knows."""
        return method_names(self.num_tasks, self.stacked, self.roams > 0)


def run(experiment: Experiment, argv: Sequence[str]) -> None:
    """Runs an experiment; bad options, data or folders are a UsageError."""
    settings = read_settings(experiment, argv)
    problem, source = load_problem(experiment, settings)
    size, rates, seeds = settings.batch_size, settings.learning_rates, settings.seeds
    steps = len(problem.splits["train"]) // size
    methods = make_methods(
        problem,
        settings.methods,
        steps_per_epoch=steps,
        roaming_steps=round(experiment.roams * steps * settings.epochs),
        alpha=experiment.alpha,
    )
    titles = {name: method.title for name, method in methods.items()}
    titles[SINGLE] = "Single task"
    with RunFolder(settings) as folder:
        out, command = folder.path, command_line(experiment.name, argv)
        decay = functools.partial(experiment.decay, settings)
        trainings = make_trainings(
            problem, methods, rates, seeds, size, out / "drawn", decay
        )
        table = train(trainings, settings.epochs, problem.tasks, folder)
        costs = measure_costs(problem, methods, size)
        paper, metrics = experiment.paper(settings), problem.learnt.metrics
        outcome = Outcome(table, titles, metrics, paper, f"Data: {source}")
        seconds, operations = costs["seconds"], costs["operations"]
        cost = f"{_COSTS}\n\n{cost_table(seconds, operations, titles, SUM)}"
        verdicts = experiment.verdicts(outcome)
        report = make_report(
            experiment.name, command, outcome, cost, settings, verdicts
        )
        about = {"command": command, "data": source, **outcome.results}
        folder.write_results(settings, report, **about, costs=costs)
        figures.draw(outcome, problem, out)
        experiment.draw(outcome, out)


def read_settings(experiment: Experiment, argv: Sequence[str]) -> Settings:
    """Returns the settings; the summed loss is always among the methods."""
    settings = parse(
        experiment.name,
        experiment.description,
        experiment.quick,
        argv,
        full={**experiment.full, "sizes": "paper"},
        names={"methods": experiment.methods},
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
    samples = loaded(experiment.load, settings)
    if settings.num_images:
        samples = {n: first(s, settings.num_images) for n, s in samples.items()}
    splits = {name: loaded(Split, each) for name, each in samples.items()}
    check_batch_size(settings.batch_size, len(splits["train"]))
    names = splits["train"].tasks
    build = functools.partial(experiment.build, settings, names)
    tasks, stacked = experiment.tasks(names), experiment.stacked
    problem = vision_problem(build, tasks, splits, stacked=stacked)
    return problem, samples["train"].source
