"""Tasks that are updated in turn, alone or in groups: Pascal et al., 2021 (IUS, IO)."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path

from experiments.data.digits import load_digits
from experiments.lab.errors import UsageError
from experiments.lab.figures import COLOURS, Curve, draw_panels
from experiments.lab.folder import RunFolder
from experiments.lab.loop import train
from experiments.lab.settings import check_batch_size, loaded, parse
from experiments.lab.tables import command_line, markdown_table
from experiments.lab.verdicts import Verdict
from experiments.lab.vision.figures import BANDS, draw_learning_rates
from experiments.lab.vision.report import SUM, Outcome, Paper, make_report
from experiments.mtl_io import celeba_groups, claims, nyuv2
from experiments.mtl_io.group_problems import NUM_ATTRIBUTES, PARTS, Part
from experiments.mtl_io.group_training import (
    Settings,
    Way,
    make_evaluate,
    make_training,
    measure_costs,
)

NAME = "mtl_io.task_groups"
PAPERS = {
    "attributes": Paper(
        "Table 3 of Pascal et al., 2021, on CelebA",
        celeba_groups.SCORES,
        celeba_groups.DISTANCES,
    ),
    "mixed": Paper(
        "in the place of Table 1 of Pascal et al., 2021",
        {},
        nyuv2.DISTANCES,
        "Losses are divided by the losses of the best constants. Errors of slant and "
        "ink are mean\nabsolute errors.",
    ),
}

DESCRIPTION = """\
Tasks are updated in turn, alone or in random groups. All groups share one state of Adam
(IUS), or each group has its own (IO). The experiment compares IUS and IO with the
summed loss (SUS). The paper is Pascal et al., "Improved optimization strategies for
deep multi-task networks", 2021.

--problem attributes  40 binary attributes of real digits, a stand-in for CelebA's 40
                      facial attributes: error and F1 (Table 3), distance covered in the
                      shared parameters (Table 4), loss against learning rate (Fig. 3)
--problem mixed       the digit, its slant and its ink: a classification and two
                      regressions of different scale, instead of NYUv2 (Fig. 1)

The network is small and dense. Validation chooses the learning rate and the epoch. For
`mixed`, validation divides the losses by the losses of constant predictions. The paper
trains these tasks for 500 epochs.
"""

FULL = {
    "groups": (2, 4, 8, 20, 40),
    "epochs": 15,
    "mixed_epochs": 100,
    "seeds": 3,
    "learning_rates": (3e-5, 1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2),
}


def main(argv: Sequence[str]) -> None:
    """Runs the experiment with the options `argv`, see `DESCRIPTION`."""
    settings, reports, results = read(argv), [], {}
    release, command = settings.data_dir, command_line(NAME, argv)
    digits = loaded(load_digits, release and Path(release))
    check_batch_size(settings.batch_size, len(digits.train.labels))
    with RunFolder(settings) as folder:
        for name in PARTS if settings.problem == "both" else [settings.problem]:
            epochs = settings.mixed_epochs if name == "mixed" else settings.epochs
            own = dataclasses.replace(settings, epochs=epochs)
            outcome, costs = run_part(name, PARTS[name](digits), own, folder)
            cost = cost_section(costs, outcome.titles)
            title, verdicts = f"{NAME}, {name}", CLAIMS[name](outcome)
            report = make_report(title, command, outcome, cost, own, verdicts)
            reports.append(report.replace("\n## ", f"\n## {name.capitalize()}: "))
            results[name] = {"data": outcome.source, **outcome.results, "costs": costs}
        text = "\n".join(reports)
        folder.write_results(settings, text, command=command, parts=results)


def attribute_claims(outcome: Outcome) -> list[Verdict]:
    """Returns the verdicts on Table 3, Fig. 3 and Table 4, for tasks of one kind."""
    verdicts = claims.few_groups(outcome, outcome.metrics[0])
    for kind in ("ius", "io"):
        claim = f"many groups of {kind.upper()} are better at the lowest rate, and "
        claim += "worse at the highest (Fig. 3)"
        verdicts += claims.at_rates(claim, outcome, kind, highest=True)
    return verdicts + claims.farther(outcome)


def mixed_claims(outcome: Outcome) -> list[Verdict]:
    """Returns the verdicts on Table 1 and Table 4, for tasks of different kinds."""
    whole, *each = outcome.metrics
    control = f"sum_{len(each)}"
    return [
        *claims.better("IO is best (Table 1)", outcome, [whole], "io", SUM),
        *claims.better("IO is best (Table 1)", outcome, [whole], "io", "ius"),
        *claims.better("IO gains on each task (Fig. 1)", outcome, each, "io", SUM),
        *claims.alike("IUS is level with SUS (Table 1)", outcome, [whole], "ius", SUM),
        *claims.better("control: IO", outcome, [whole], "io", control),
        *claims.farther(outcome),
    ]


CLAIMS = {"attributes": attribute_claims, "mixed": mixed_claims}


def run_part(
    name: str, part: Part, settings: Settings, folder: RunFolder
) -> tuple[Outcome, dict[str, dict[str, float]]]:
    """Trains and draws a part; returns its outcome and costs."""
    ways, evaluate, tasks = settings.ways(name), make_evaluate(part), part.problem.tasks
    trainings = {
        way.name: make_training(name, part, way, settings, evaluate) for way in ways
    }
    each = [training for training, _ in trainings.values()]
    table = train(each, settings.epochs, tasks, folder, stream=f"{name}_metrics")
    titles, source = {way.name: way.title for way in ways}, f"Data: {part.source}"
    outcome = Outcome(table, titles, part.metrics, PAPERS[name], source)
    draw_learning_rates(outcome, tasks, folder.path / f"{name}_learning_rate.png")
    if name == "attributes":
        draw_distances(outcome, ways, folder.path / f"{name}_distance.png")
    return outcome, measure_costs(trainings)


def read(argv: Sequence[str]) -> Settings:
    """Returns the settings with sorted numbers."""
    settings = parse(NAME, DESCRIPTION, Settings(), argv, full=FULL)
    groups = tuple(sorted(set(settings.groups)))
    rates = tuple(sorted(set(settings.learning_rates)))
    if not all(2 <= num <= NUM_ATTRIBUTES for num in groups):
        raise UsageError(
            f"--groups must be from 2 to {NUM_ATTRIBUTES}, got "
            f"{' '.join(map(str, groups))}."
        )
    return dataclasses.replace(settings, groups=groups, learning_rates=rates)


def cost_section(
    costs: Mapping[str, Mapping[str, float]], titles: Mapping[str, str]
) -> str:
    """Returns the time of an epoch, and the memory of the optimizer's state."""
    header = ["method", "seconds an epoch", "multiple"]
    header += ["state, shared [KiB]", "multiple", "state, heads [KiB]"]
    rows = []
    for name, title in titles.items():
        row = [title]
        for key, digits, factor in (("seconds", 2, 1), ("shared", 1, 1024)):
            own = costs[key][name]
            row += [f"{own / factor:.{digits}f}", f"{own / costs[key][SUM]:.1f}"]
        rows.append([*row, f"{costs['heads'][name] / 1024:.1f}"])
    return (
        "The time is for an epoch of all learning rates and seeds together. It is "
        "measured after the\ntraining, in turns, and the faster of two measurements "
        "counts. The memory is for the arrays of\nthe optimizer's state of one run."
        "\n\n"
        f"{markdown_table(header, rows)}"
    )


def draw_distances(outcome: Outcome, ways: Sequence[Way], path: Path) -> None:
    """Draws distances in the shared parameters over the number of groups."""
    rate, epoch, values = outcome.distances
    names = {"covered": "covered distance", "shortest": "shortest path"}
    panels = {}
    for column, title in {**names, "ratio": "covered / shortest"}.items():
        by_seed, panels[title] = values[column].unstack("seed"), []
        for kind, colour in zip(("IUS", "IO"), COLOURS, strict=False):
            own = [way for way in ways if way.name.split("_")[0] == kind.lower()]
            own = [ways[0], *own]
            y = by_seed.loc[[way.name for way in own]].to_numpy()
            panels[title].append(Curve(kind, [way.groups for way in own], y, colour))
    draw_panels(
        path,
        panels,
        xlabel="number of groups (1: SUS)",
        title=f"Distance in the shared parameters, learning rate {rate:g}, epoch "
        f"{epoch} ({BANDS}). {outcome.source}",
        log=True,
        at_points=True,
        common=False,
    )
