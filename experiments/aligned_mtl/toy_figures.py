"""The figure of the toy landscapes: the paths, and their distances to the front."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.aligned_mtl.landscapes import Landscape
from experiments.lab.figures import COLOURS, FAINT, drawing

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_COLUMNS = 5  # methods next to each other
_REACHED, _FAILED = COLOURS[0], COLOURS[1]


def draw_paths(
    path: Path, landscape: Landscape, outcomes: Sequence[Any], subtitle: str
) -> None:
    """Draws each `toy.Outcome`: the paths, and below them the distances."""
    width = min(_COLUMNS, len(outcomes))
    bands = -(-len(outcomes) // width)
    size = (0.6 + 2.2 * max(2, width), 0.9 + 3.4 * bands)
    title = f"{landscape.title}: paths and distance to the Pareto front ({subtitle})"
    options: Any = {"figsize": size, "height_ratios": [2, 1.3] * bands}
    contours = _contours(landscape)
    with drawing(path, title, 2 * bands, width, **options) as grid:
        for axis in grid.flat:
            axis.set_axis_off()
        for index, each in enumerate(outcomes):
            band, column = divmod(index, width)
            over, below = grid[2 * band, column], grid[2 * band + 1, column]
            for axis in (over, below):
                axis.set_axis_on()
                axis.tick_params(labelsize=7)
            first = "never" if each.steps[0] is None else f"{each.steps[0]:,} steps"
            over.set_title(f"{each.title}\nfrom the first start: {first}", fontsize=8)
            over.contour(*contours, levels=20, colors=FAINT, linewidths=0.5)
            _draw_runs(over, below, landscape, each)
            if column == 0:
                over.set_ylabel("$x_2$")
                below.set_ylabel("distance")


def _draw_runs(over: "Axes", below: "Axes", landscape: Landscape, runs: Any) -> None:
    front: Any = {"color": "black", "label": "Pareto set, and what is near"}
    over.plot(*landscape.pareto_set.T, linewidth=2.5, **front)
    below.axhline(landscape.tolerance, linewidth=0.8, **front)
    for path, distance, arrival in zip(
        runs.params, runs.distance, runs.steps, strict=True
    ):
        color, line, label = _REACHED, "-", "until it comes near the front"
        if arrival is None:
            color, line, label = _FAILED, "--", "never comes near"
        until = runs.at <= (runs.at[-1] if arrival is None else arrival)
        style: Any = {"color": color, "linestyle": line, "label": label}
        over.plot(*path[until].T, linewidth=0.9, **style)
        over.plot(*path[~until].T, color=color, alpha=0.3, linewidth=0.4)
        over.plot(*path[0], "o", color="black", markersize=3, label="start")
        over.plot(*path[until][-1], "X", color=color, markersize=5)
        # Step 0 has no place on a logarithmic axis.
        below.plot(runs.at[until][1:], distance[until][1:], linewidth=0.9, **style)
    left, right, bottom, top = landscape.window
    over.set(xlim=(left, right), ylim=(bottom, top))
    over.set_xlabel("$x_1$", labelpad=0)
    below.set(xscale="log", xlim=(1, runs.at[-1]), ylim=(0, None))
    below.set_xlabel("step", labelpad=0)


def _contours(landscape: Landscape) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns a mesh of the window and the sum of the losses on it."""
    left, right, bottom, top = landscape.window
    x1, x2 = np.meshgrid(np.linspace(left, right, 161), np.linspace(bottom, top, 161))
    points = jnp.asarray(np.stack([x1.ravel(), x2.ravel()], axis=-1))
    total = sum(jax.vmap(loss)(points) for loss in landscape.losses)
    return x1, x2, np.asarray(total).reshape(x1.shape)
