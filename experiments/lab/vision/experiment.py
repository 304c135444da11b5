"""A vision experiment, from its options to the files that it writes."""

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
Costs of a step are measured after the training. The methods take turns, and the fastest
of several rounds counts. Multiples are relative to the summed loss; single tasks run
the program of the summed loss, one by one. Operations in a loop are counted once, for
example in a loop over the turns of stacked heads."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings(Options):
    """The options that change the results of a run.

    Attributes:
      methods: some of the names in `mtlopt.METHODS`, ius, io (io_4 has four groups),
        roaming, sgd, fbls and single, or all. The summed loss is always added.
      epochs: passes over the train split.
      seeds: number of seeds, counted from 0.
      batch_size: samples in a batch.
      learning_rates: grid of learning rates; validation chooses the best rate of every
        method.
      num_images: for a trial, use only this number of images from each split; 0 means
        all images.
      data_dir: folder of the release; None means rendered images.
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
    """The parts that an experiment adds; most are functions of its settings."""

    name: str
    description: str
    quick: Settings  # without an option
    full: Mapping[str, Any]  # what `--full` changes in addition to the sizes
    load: Callable[[Any], Mapping[str, Samples]]  # the three splits
    tasks: Callable[[tuple[str, ...]], Tasks]  # from the names of the labels
    build: Callable[[Any, tuple[str, ...], jax.Array], Any]  # from names and key too
    num_tasks: int
    paper: Callable[[Any], Paper]
    # The factor of the learning rate in an epoch, counted from 0.
    decay: Callable[[Any, int], float] = lambda *_: 1.0
    stacked: bool = False  # whether its heads are
    # The share of the steps in which the masks of Maximum Roaming move; 0 if the
    # network has no masks, because shortcuts would bypass them.
    roams: float = 0.0
    alpha: float = 1.5  # of GradNorm
    verdicts: Callable[[Outcome], list[Verdict]] = lambda _: []
    draw: Callable[[Outcome, Path], None] = lambda *_: None  # more, into a folder

    @property
    def methods(self) -> tuple[str, ...]:
        """The names that `--methods` accepts."""
        return method_names(self.num_tasks, self.stacked, self.roams > 0)


def run(experiment: Experiment, argv: Sequence[str]) -> None:
    """Runs an experiment; wrong options, data or folders are a UsageError."""
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
    """Returns the settings, whose methods always include the summed loss."""
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
    """Returns the problem and the source of its data, most of which is not read yet."""
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
