"""Plots of a diagnosis and of a trade-off, which need Matplotlib."""

import importlib.util
import itertools
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import jax.numpy as jnp
import numpy as np

from mtlopt.diagnostics.diagnose import Diagnosis, as_diagnosis
from mtlopt.diagnostics.front import non_dominated

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_MAX_TASKS = 4  # in a trade-off plot, which then has six panels


def plot_diagnosis(
    diagnosis: Diagnosis | list[Diagnosis], steps: Any = None
) -> "Figure":
    """Draws the results of `diagnose` over a training run.

    There are four panels: the cosine of each pair, the length of each gradient, the
    relative gap, and the dominance rate. In the third panel, a dashed line shows the
    relative gap of orthogonal gradients of equal length. If a task is absent, its lines
    have a gap. The function runs on the host, outside `jit`, and needs Matplotlib: `pip
    install matplotlib`.

    Args:
      diagnosis: several diagnoses, in a list or stacked along a first axis.
      steps: `[diagnoses]`, the training steps of the diagnoses. Default: 0, 1, 2, ...

    Returns:
      The figure of `matplotlib.pyplot`; save it with `savefig`.

    Raises:
      ImportError: without Matplotlib.
      TypeError: if `diagnosis` is not from `diagnose`.
      ValueError: if its arrays have no first axis, or if this axis and `steps` differ
        in length.

    Examples:
      >>> import jax
      >>> import jax.numpy as jnp
      >>> import mtlopt
      >>> rows = jax.random.normal(jax.random.key(0), (20, 2, 5))
      >>> look = lambda rows: mtlopt.diagnose(mtlopt.TaskGrads.from_rows(rows))
      >>> figure = mtlopt.plot_diagnosis(jax.vmap(look)(rows), range(0, 200, 10))
      >>> print([axes.get_title() for axes in figure.axes])
      ['cosine', 'length of gradient', 'gap over mean length', 'dominance rate']
    """
    diagnosis = as_diagnosis(diagnosis)
    if np.ndim(diagnosis.norms) != 2:
        raise ValueError(
            "`diagnosis` must hold several diagnoses, stacked along a first axis: its "
            "`norms` must have shape [steps, tasks], got shape "
            f"{np.shape(diagnosis.norms)}. Pass a list of diagnoses."
        )
    num_steps, num_tasks = np.shape(diagnosis.norms)
    x = np.arange(num_steps) if steps is None else np.asarray(steps)
    if x.shape != (num_steps,):
        raise ValueError(
            f"`steps` must have an entry for each diagnosis, [{num_steps}], got shape "
            f"{x.shape}."
        )
    here, tasks = np.asarray(diagnosis.present), diagnosis.tasks
    figure, (cosine, norm, gap, dominance) = _subplots(4)
    for i, j in itertools.combinations(range(num_tasks), 2):
        values = np.where(here[:, i] & here[:, j], diagnosis.cosines[:, i, j], np.nan)
        cosine.plot(x, values, label=f"{tasks[i]}, {tasks[j]}")
    cosine.axhline(0, color="gray", linewidth=0.5)
    for i, task in enumerate(tasks):
        norm.plot(x, np.where(here[:, i], diagnosis.norms[:, i], np.nan), label=task)
    gap.plot(x, diagnosis.relative_gap)
    bound = here.sum(axis=1) ** -0.5
    gap.plot(x, bound, "--", color="gray", label="orthogonal, of equal length")
    gap.legend(fontsize="small")
    dominance.plot(x, diagnosis.dominance_rate)
    norm.set_yscale("log")
    dominance.set_yscale("log")
    titles = ("cosine", "length of gradient", "gap over mean length", "dominance rate")
    for axes, title in zip(figure.axes, titles, strict=True):
        axes.set(title=title, xlabel="step")
    for axes in (cosine, norm):
        if axes.lines[:-1]:
            axes.legend(fontsize="x-small", framealpha=0.5)
    return figure


def plot_trade_off(
    losses: Mapping[str, Any], tasks: Sequence[str] | None = None
) -> "Figure":
    """Plots the losses, or other errors, of each pair of tasks against each other.

    There is one panel for each pair of tasks. A hollow point is dominated by another
    point of the plot, which is no worse for any task and better for at least one. The
    function runs on the host, outside `jit`, and needs Matplotlib: `pip install
    matplotlib`.

    Args:
      losses: mapping from a label, such as the method, to `[tasks]`, or to
        `[points, tasks]` for several seeds or preferences; lower is better. There must
        be two to four tasks.
      tasks: names of the tasks. Default: 0, 1, ...

    Returns:
      The figure of `matplotlib.pyplot`; save it with `savefig`.

    Raises:
      ImportError: without Matplotlib.
      TypeError: if `losses` is not a mapping.
      ValueError: if there are no losses, if the number of tasks is below two, above
        four or differs between labels, or if there is not one name per task.

    Examples:
      >>> import mtlopt
      >>> found = {"sum": [[1.0, 3.0], [1.2, 2.5]], "mgda": [2.0, 2.0], "mine": [3, 3]}
      >>> figure = mtlopt.plot_trade_off(found, tasks=["left", "right"])
      >>> print([text.get_text() for text in figure.axes[0].get_legend().get_texts()])
      ['sum', 'mgda', 'mine']
    """
    if not isinstance(losses, Mapping):
        raise TypeError(
            f"`losses` must map labels to arrays, got {type(losses).__name__}. Pass "
            '{"name": losses}.'
        )
    points = {label: np.atleast_2d(np.asarray(own)) for label, own in losses.items()}
    shapes = {label: own.shape for label, own in points.items()}
    widths = {shape[-1] for shape in shapes.values()}
    num_tasks = widths.pop() if len(widths) == 1 else 0
    flat = all(len(shape) == 2 for shape in shapes.values())
    if not (flat and 2 <= num_tasks <= _MAX_TASKS):
        raise ValueError(
            "`losses` must map labels to arrays [tasks] or [points, tasks] of the same "
            f"2 to {_MAX_TASKS} tasks, got shapes {shapes}. If there are more, choose "
            "some."
        )
    names = [str(i) for i in range(num_tasks)] if tasks is None else list(tasks)
    if len(names) != num_tasks:
        raise ValueError(
            f"`tasks` must have one name per task, {num_tasks}, got {len(names)}."
        )
    best = np.asarray(non_dominated(jnp.concatenate(list(points.values()))))
    ends = np.cumsum([len(own) for own in points.values()])[:-1]
    pairs = list(itertools.combinations(range(num_tasks), 2))
    figure, panels = _subplots(len(pairs))
    for axes, (i, j) in zip(panels, pairs, strict=True):
        for number, (own, kept) in enumerate(
            zip(points.values(), np.split(best, ends), strict=True)
        ):
            colour = f"C{number}"
            axes.plot(*own[kept][:, [i, j]].T, "o", color=colour)
            axes.plot(*own[~kept][:, [i, j]].T, "o", color=colour, mfc="none")
            axes.plot([], [], "o", color=colour, label=list(points)[number])
        axes.set(xlabel=names[i], ylabel=names[j])
    panels[0].legend(fontsize="small")
    return figure


def _subplots(num: int) -> tuple["Figure", Any]:
    """Returns a figure and its panels: up to three in one row, more in two rows."""
    if importlib.util.find_spec("matplotlib") is None:
        raise ImportError("mtlopt's plots need Matplotlib: pip install matplotlib.")
    import matplotlib.pyplot as plt

    rows = 1 if num <= 3 else 2
    columns = -(-num // rows)
    size = (3.4 * columns, 2.7 * rows)
    figure, panels = plt.subplots(
        rows, columns, figsize=size, layout="constrained", squeeze=False
    )
    return figure, panels.flat
