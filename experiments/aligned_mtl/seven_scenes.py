"""The pose of a camera in a room: Senushkin et al., 2023 (Aligned-MTL), 7-Scenes."""

import dataclasses
import functools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, cast

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

import mtlopt
from experiments.aligned_mtl.photographs import best
from experiments.data.rendered import load_room_views
from experiments.data.rendered_samples import pose_labels, rendered_samples
from experiments.data.samples import Samples
from experiments.data.seven_scenes import SCENES, load_seven_scenes
from experiments.lab.comparison import growth_rate
from experiments.lab.folder import write_text
from experiments.lab.tables import markdown_table
from experiments.lab.verdicts import Verdict
from experiments.lab.vision import losses, metrics
from experiments.lab.vision.data import hold_out
from experiments.lab.vision.experiment import Experiment, Paper, read_settings
from experiments.lab.vision.metrics import Metric
from experiments.lab.vision.pretrained import (
    PretrainedSettings,
    prepare,
    run_photographs,
)
from experiments.lab.vision.problem import Task, separate
from experiments.lab.vision.report import SUM, Outcome
from mtlopt.models import ResNet, pose_resnet34

DESCRIPTION = """\
A ResNet-34 with two linear heads learns the place and the rotation of a camera in a
known room: Senushkin et al., "Independent component alignment for multi-task learning",
2023, Tables 4 and 6. A run trains one scene, or all seven with --scene all.

Without --data-dir the room is rendered, a stand-in for 7-Scenes. Each of the seven
names then means a rendered room, which has only the name in common with the scene. If
you give --data-dir, 7-Scenes is read, and a tenth of the train frames is held out for
validation. With images of the paper's size, the network reads crops of 224 x 224, and
the learning rate falls to a tenth every 40 epochs.
"""

FULL_METHODS = ("sum_tasks", "uncertainty", "gradnorm", "pcgrad", "mgda", "mgda_ub")
FULL_METHODS += ("aligned_mtl", "aligned_mtl_ub")
METHODS = (*FULL_METHODS, "ius", "io", "single")
# Table 6, means of ten seeds: metres, then degrees, for each scene in `SCENES`.
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
class Settings(PretrainedSettings):
    """The settings of all vision experiments, and the scene.

    Attributes:
      scene: one of the seven scenes, or all seven, one after the other.
    """

    scene: Literal[
        "chess", "fire", "heads", "office", "pumpkin", "redkitchen", "stairs", "all"
    ] = "chess"


def paper(settings: Settings) -> Paper:
    """Returns the paper's numbers for a scene."""
    place = SCENES.index(settings.scene)
    scores = {
        name: {metric: cells[place] for metric, cells in own.items()}
        for name, own in table_6().items()
    }
    return Paper("Table 6 of Senushkin et al., 2023", scores)


def table_6() -> dict[str, dict[str, Any]]:
    """Returns the paper's errors in all scenes, by method and metric."""
    lines = (line.split() for line in _TABLE.strip().splitlines())
    half = len(SCENES)
    return {
        name: {"translation": cells[:half], "rotation": cells[half:]}
        for name, *cells in lines
    }


def load(settings: Settings) -> dict[str, Samples]:
    """Reads a scene, or renders a room from many places."""
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
        # A prediction of NaN counts as the worst prediction, and is not left out.
        return jnp.where(known & jnp.isnan(errors), jnp.inf, errors)

    def scores(errors: np.ndarray) -> dict[str, Any]:
        return {name: np.nanmedian(errors)}  # NaN marks frames past the end

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


def build(settings: Settings, _: tuple[str, ...], key: jax.Array) -> Any:
    """Returns the paper's ResNet-34, which crops its images, or a small network."""
    if not settings.small:
        return prepare(pose_resnet34(rngs=nnx.Rngs(key)), settings, key, crop=224)
    heads = {"translation": (3,), "rotation": (4,)}
    network = ResNet((1, 1, 1), heads, width=8, rngs=nnx.Rngs(key))
    return prepare(network, settings, key)


def mean(values: Any) -> float:
    """Returns the mean of numbers or of printed numbers."""
    return float(np.mean(np.asarray(values, float)))


def scenes_table(scores: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> str:
    """Returns Table 4, made from the errors by scene, method and metric.

    Each error is a mean over seeds. The paper's means and growth rates R are computed
    from the rounded errors of Table 6.
    """
    theirs = table_6()
    header = ["method", "error", *scores, "mean", "R [%]", "mean, paper", "R, paper"]
    rows = []
    for name in next(iter(scores.values())):
        for metric, title in (("translation", "t [m]"), ("rotation", "r [°]")):
            errors = [mean(own[name][metric]) for own in scores.values()]
            sums = [mean(own[SUM][metric]) for own in scores.values()]
            cells = [f"{error:.2f}" for error in errors]
            both = [(errors, sums)]
            if name in theirs:
                both.append((theirs[name][metric], theirs[SUM][metric]))
            for own, uniform in both:
                growth = 100 * growth_rate(mean(own), mean(uniform))
                cells += [f"{mean(own):.2f}", f"{growth:+.2f}" if name != SUM else ""]
            cells += [""] * (len(header) - 2 - len(cells))
            known = mtlopt.METHODS.get(name)
            rows.append([known.title if known else name, title, *cells])
    return markdown_table(header, rows)


def verdicts(outcome: Outcome) -> list[Verdict]:
    """Returns the verdicts on the claims of section 5.4."""
    new, others = "aligned_mtl_ub", [name for name in table_6() if name != SUM]
    others = [name for name in others if not name.startswith("aligned")]
    claim = "Z-alignment turns best (section 5.4)"
    found = best(claim, outcome, "rotation", new, others)
    claim = "Z-alignment finds the place better than MGDA-UB (section 5.4)"
    return found + best(claim, outcome, "translation", new, ["mgda_ub"])


EXPERIMENT = Experiment(
    name="aligned_mtl.seven_scenes",
    description=DESCRIPTION,
    quick=Settings(methods=METHODS, epochs=6, batch_size=16),
    full={
        "methods": FULL_METHODS,
        "epochs": 120,
        "seeds": 10,
        "batch_size": 128,
        "learning_rates": (1e-3,),
        "scene": "all",
    },
    decay=lambda settings, epoch: 1.0 if settings.small else 0.1 ** (epoch // 40),
    load=load,
    tasks=lambda _: TASKS,
    build=build,
    num_tasks=2,
    verdicts=verdicts,
    paper=paper,
)


def main(argv: Sequence[str]) -> None:
    """Runs the experiment with the options `argv`, see `DESCRIPTION`."""
    settings = cast(Settings, read_settings(EXPERIMENT, argv))
    if settings.scene != "all":
        run_photographs(EXPERIMENT, argv)
        return
    out, scores = Path(settings.out), {}
    for scene in SCENES:
        own = ["--scene", scene, "--out", str(out / scene)]
        run_photographs(EXPERIMENT, [*argv, *own])
        scores[scene] = json.loads((out / scene / "results.json").read_text())["scores"]
    text = f"# Median errors in all scenes (Tables 4, 6)\n\n{scenes_table(scores)}\n"
    write_text(out / "scenes.md", text)
    print(text)
