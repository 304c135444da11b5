"""The pose of a camera in a room: Senushkin et al., 2023 (Aligned-MTL), on 7-Scenes."""

import dataclasses
import functools
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from experiments.data.rendered import load_room_views
from experiments.data.rendered_samples import pose_labels, rendered_samples
from experiments.data.samples import Samples
from experiments.data.seven_scenes import SCENES, load_seven_scenes
from experiments.lab.vision import experiment, losses, metrics
from experiments.lab.vision.data import hold_out
from experiments.lab.vision.experiment import Experiment, Paper, run
from experiments.lab.vision.metrics import Metric
from experiments.lab.vision.problem import Task, separate
from mtlopt.models import ResNet, pose_resnet34

DESCRIPTION = """\
The place and the rotation of a camera in a known room, by a ResNet-34 with two linear
heads: Senushkin et al., "Independent component alignment for multi-task learning",
2023, Tables 4 and 6. A run is one scene.

Without --data-dir the room is rendered, a stand-in: the seven names stand for seven
rooms that have nothing else of the scenes. With it, 7-Scenes is read; a tenth of the
train frames is held out. Images are not cropped here, and the learning rate is
constant; the paper crops at random and lowers the rate.
"""

METHODS = ("sum_tasks", "uncertainty", "gradnorm", "pcgrad", "mgda", "mgda_ub")
METHODS += ("aligned_mtl", "aligned_mtl_ub", "ius", "io", "single")
# Table 6, mean of ten seeds: metres, then degrees, of each scene in `SCENES`.
_TABLE = """
sum_tasks      0.49 0.91 1.03 0.68 0.70 0.90 0.55 6.26 11.75 13.08  8.26  6.68  8.72 11.81
mgda           0.32 0.65 0.75 0.31 0.44 0.34 0.50 6.02 11.59 12.99  8.55  6.59  8.84 11.61
mgda_ub        0.33 0.73 0.72 0.58 0.48 0.64 0.52 5.95 11.76 12.96  8.44  6.42  8.73 11.58
gradnorm       0.18 0.33 0.25 0.25 0.25 0.27 0.43 7.41 12.77 14.35  9.76  8.75  9.74 13.94
pcgrad         0.17 0.33 0.24 0.24 0.25 0.26 0.40 8.29 13.56 14.96 10.81  9.86 10.43 14.42
uncertainty    0.19 0.37 0.29 0.26 0.26 0.29 0.46 9.04 15.44 18.69 10.60 10.19 10.35 15.69
aligned_mtl    0.26 0.53 0.63 0.26 0.35 0.29 0.59 7.47 14.40 18.95  9.14  7.72  9.58 14.08
aligned_mtl_ub 0.20 0.48 0.50 0.29 0.31 0.32 0.58 5.81 12.18 13.58  9.03  6.31  9.38 12.26
"""  # noqa: E501


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings(experiment.Settings):
    """As in the other vision experiments.

    Attributes:
      scene: which of the seven.
    """

    scene: Literal[
        "chess", "fire", "heads", "office", "pumpkin", "redkitchen", "stairs"
    ] = "chess"


def paper(settings: Settings) -> Paper:
    """Returns the paper's numbers for a scene."""
    place = SCENES.index(settings.scene)
    lines = (line.split() for line in _TABLE.strip().splitlines())
    scores = {
        name: {"translation": cells[place], "rotation": cells[len(SCENES) + place]}
        for name, *cells in lines
    }
    return Paper("Table 6 of Senushkin et al., 2023", scores)


def load(settings: Settings) -> dict[str, Samples]:
    """Reads a scene, or draws a room from many places."""
    size, scene = (48, 64) if settings.small else (256, 341), settings.scene
    if settings.data_dir is None:
        numbers = (160, 32, 64) if settings.small else (1000, 100, 400)
        views = load_room_views(*numbers, room=SCENES.index(scene), size=size)
        return rendered_samples(views, pose_labels)
    read = functools.partial(load_seven_scenes, settings.data_dir, scene, size=size)
    return hold_out(read("train"), read("test"))


def error(name: str, loss: Any, count: Any) -> Task:
    """Returns a task whose metric is the median of the errors of all frames."""

    def errors_of(out: jax.Array, label: jax.Array) -> jax.Array:
        errors, known = count(out, label), jnp.all(jnp.isfinite(label), axis=-1)
        # A prediction that is NaN is the worst, and is not left out.
        return jnp.where(known & jnp.isnan(errors), jnp.inf, errors)

    def scores(errors: np.ndarray) -> dict[str, Any]:
        return {name: np.nanmedian(errors)}  # NaN is for frames past the end

    return Task(loss, errors_of, scores, join=np.concatenate)


TASKS = separate(
    {
        "translation": error("translation", losses.translation_loss, metrics.distances),
        "rotation": error("rotation", losses.rotation_loss, metrics.rotation_angles),
    },
    (
        Metric("translation", "median translation [m]", "translation", False, 1, 3),
        Metric("rotation", "median rotation [°]", "rotation", False),
    ),
)


def build(settings: Settings, _: tuple[str, ...], key: jax.Array) -> ResNet:
    """Returns the paper's ResNet-34 or a small one."""
    if not settings.small:
        return pose_resnet34(rngs=nnx.Rngs(key))
    heads = {"translation": (3,), "rotation": (4,)}
    return ResNet((1, 1, 1), heads, width=8, rngs=nnx.Rngs(key))


EXPERIMENT = Experiment(
    name="aligned_mtl.seven_scenes",
    description=DESCRIPTION,
    quick=Settings(methods=METHODS, epochs=6, batch_size=16),
    full={
        "epochs": 120,
        "seeds": 10,
        "batch_size": 128,
        "learning_rates": (1e-4, 1e-3, 1e-2),
    },
    load=load,
    tasks=lambda _: TASKS,
    build=build,
    num_tasks=2,
    paper=paper,
)

main = functools.partial(run, EXPERIMENT)
