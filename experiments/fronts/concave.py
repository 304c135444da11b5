"""A front that weighted sums miss: one network for each preference, in one program."""

import dataclasses
import functools
import time
import types
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

import mtlopt
from experiments.fronts import problem, training
from experiments.fronts.figures import draw_fronts
from experiments.lab.errors import UsageError
from experiments.lab.folder import RunFolder
from experiments.lab.program import Program
from experiments.lab.settings import ShortOptions, parse
from experiments.lab.tables import command_line, count, markdown_table, number
from experiments.lab.verdicts import Verdict, verdict_table

NAME = "fronts.concave"
ROUNDS = 3  # of timing
# Of those, that keep the ratio of the weighted losses.
EXACT = ("chebyshev", "stch", "epo")
TAKING = tuple(n for n, method in mtlopt.METHODS.items() if method.takes_preference)

DESCRIPTION = """\
Trains networks with two hidden layers of 64 units, one for each of 32 preferences, all
in one program. The Pareto front of their two losses is known, and concave except at its
ends. Compares methods that take a preference with the sweep of fixed weights. Says how
much of the front's hypervolume they reach, how large the gaps are, and how long 32
networks take compared with one; for that, pin the process to one core (taskset -c 0).
Then does the same with three losses.
"""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings(ShortOptions):
    """The settings that decide the numbers of a run.

    Attributes:
      methods: some of the names in `mtlopt.METHODS` that take a preference, or all.
      three: the same for three losses.
      preferences: number of networks; for three losses this number, or a few more.
      steps: updates of every network.
      batch: inputs in a batch, drawn again in each step.
      learning_rate: learning rate of Adam.
      chunk_size: number of networks that are computed at once. On one core, one at a
        time is fastest.
      seeds: number of initial networks, counted from 0; each trains with all
        preferences.
    """

    methods: tuple[str, ...] = (
        *("chebyshev", "stch", "pbi", "cosmos", "epo"),
        *("nash_mtl", "upgrad"),
    )
    three: tuple[str, ...] = ("stch", "epo")
    preferences: int = 32
    steps: int = 1000
    batch: int = 256
    learning_rate: float = 0.003
    chunk_size: int = 1
    seeds: int = 3


class Outcome(NamedTuple):
    """The networks of one method."""

    method: str
    losses: np.ndarray  # `[seeds, preferences, tasks]`, on inputs that are new to them
    compile_seconds: float

    @property
    def title(self) -> str:
        """The name that the field uses."""
        if self.method == training.FIXED:
            return "Fixed weights"
        return mtlopt.METHODS[self.method].title


class Times(NamedTuple):
    """One network beside all of them, in seconds of the CPU."""

    steps: tuple[float, ...]  # all of them, compiled
    compiling: tuple[float, ...]
    process: tuple[float, ...]  # that imports, compiles and trains
    operations: float  # of a step of one network

    @property
    def ratios(self) -> tuple[float, float, float]:
        """All beside one: the steps, with compilation, and a whole process."""
        with_compilation = np.add(self.steps, self.compiling)
        times = (self.steps, with_compilation, self.process)
        first, second, third = (float(all_ / one) for one, all_ in times)
        return first, second, third


def main(argv: Sequence[str]) -> None:
    """Runs the experiment with the options `argv`, see `DESCRIPTION`."""
    names = {"methods": TAKING, "three": TAKING}
    settings = parse(NAME, DESCRIPTION, Settings(), argv, names=names)
    if settings.preferences < 2:
        raise UsageError("--preferences must be at least 2, got 1.")
    with RunFolder(settings) as folder:
        two = [run(m, 2, settings) for m in (training.FIXED, *settings.methods)]
        three = [run(m, 3, settings) for m in (training.FIXED, *settings.three)]
        times = measure("stch", settings)
        command = command_line(NAME, argv)
        folder.write_results(
            settings,
            make_report(two, three, times, settings, command),
            command=command,
            times=times._asdict(),
            losses={
                tasks: {each.method: each.losses.round(6).tolist() for each in outcomes}
                for tasks, outcomes in (("two", two), ("three", three))
            },
        )
        draw_fronts(folder.path / "fronts.png", two, three)


def run(method: str, num_tasks: int, settings: Settings) -> Outcome:
    """Trains a network for each preference, from each seed."""
    front = training.front_of(method, num_tasks, settings)
    program = Program(training.whole_program(front.step, settings))
    measured = jax.jit(jax.vmap(problem.make_losses(num_tasks), in_axes=(0, None)))
    inputs, losses = problem.draw(-1, 4096), []
    for seed in range(settings.seeds):
        runs = program(front.init(problem.start(seed)), seed)
        losses.append(np.asarray(measured(runs.params, inputs), float))
    return Outcome(method, np.stack(losses), program.compile_seconds)


def measure(method: str, settings: Settings) -> Times:
    """Times one network and all of them, in turns.

    Seconds of the CPU, which are those of one core if the process is pinned to it: what
    else the machine does counts less than on a clock.
    """
    front = training.front_of(method, 2, settings)
    step, run = training.one_of(method, settings)
    runs = run, front.init(problem.start(0))
    jitted = [
        jax.jit(training.whole_program(each, settings)) for each in (step, front.step)
    ]
    compiling, programs = zip(
        *(
            cpu_seconds(lambda f=f, each=each: f.lower(each, 0).compile())
            for f, each in zip(jitted, runs, strict=True)
        ),
        strict=True,
    )
    rounds = [
        [cpu_seconds(lambda i=i: programs[i](runs[i], 0))[0] for i in range(2)]
        for _ in range(ROUNDS + 1)
    ]
    one, all_ = np.min(rounds[1:], axis=0)  # the first warms up
    # Without the class, whose module imports more than training needs.
    plain = types.SimpleNamespace(**dataclasses.asdict(settings))
    whole = [
        [
            training.seconds_of_process(train, method, plain)
            for train in (training.train_one, training.train_all)
        ]
        for _ in range(ROUNDS)
    ]
    process = tuple(float(least) for least in np.min(whole, axis=0))
    operations = float(programs[0].cost_analysis()["flops"])
    return Times((float(one), float(all_)), compiling, process, operations)


def cpu_seconds(call: Callable[[], Any]) -> tuple[float, Any]:
    """Returns the seconds of the CPU that a call takes, and what it returns."""
    started = time.process_time()
    result = jax.block_until_ready(call())
    return time.process_time() - started, result


def make_report(
    two: list[Outcome],
    three: list[Outcome],
    times: Times,
    settings: Settings,
    command: str,
) -> str:
    """Returns the tables as Markdown."""
    ratio, with_compilation, whole = times.ratios
    rows = [
        [
            name,
            f"{steps:.2f}",
            f"{compiling:.1f}",
            f"{process:.1f}",
            f"{networks * times.operations / 1e6:.1f}",
            f"{rate:.1f}",
        ]
        for name, networks, steps, compiling, process, rate in zip(
            ("one network", f"{settings.preferences} networks"),
            (1, settings.preferences),
            times.steps,
            times.compiling,
            times.process,
            rates(times, settings),
            strict=True,
        )
    ]
    header = ["program", "steps, s", "to compile, s", "whole process, s"]
    header += ["MFLOP a step", "GFLOP/s"]
    return f"""\
# A front that weighted sums miss

`{command}`

Adam at {settings.learning_rate:g}, {settings.steps:,} steps with batches of \
{settings.batch}, {count(settings.seeds, "seed")}.

## Two losses

{settings.preferences} preferences. The hypervolume is that of all networks of a seed \
below (1, 1), in percent of the analytic front's. The largest gap is the largest \
distance between neighbours among the networks that no other dominates. In the middle, \
{middle_words()}, no weighted sum has a minimum. {even_words(2, settings)}

{markdown_table(*front_table(two, 2))}

## Three losses

{len(problem.preferences(3, settings.preferences))} preferences. The \
analytic front is given by 1,000 points. {even_words(3, settings)}

{markdown_table(*front_table(three, 3))}

## Time

Seconds of CPU time for STCH, with all steps in one program: the least of {ROUNDS} \
rounds in turns. The whole process imports JAX, compiles and trains. The steps of \
{settings.preferences} networks take {ratio:.1f} times as long as those of one, \
{with_compilation:.1f} times with compilation, and the whole process {whole:.1f} times.

{markdown_table(header, rows)}

## Claims

{verdict_table(verdicts(two, times, settings))}"""


def front_table(
    outcomes: list[Outcome], num_tasks: int
) -> tuple[list[str], list[list[str]]]:
    """Returns header and rows of what the networks of each method cover."""
    best = best_volume(num_tasks)
    header = ["method", "hypervolume, %", "largest gap", "not dominated"]
    header += ["in the middle"] if num_tasks == 2 else []
    rows = []
    for each in outcomes:
        kept = [own[np.asarray(mtlopt.non_dominated(own))] for own in each.losses]
        gaps = [
            float(_spread(own).largest_gap) if len(own) > 1 else np.nan for own in kept
        ]
        row = [each.title, number([volume(own) / best for own in each.losses], 100, 1)]
        row += [number(gaps), number([len(own) for own in kept], 1, 0)]
        row += [in_middle(each)] if num_tasks == 2 else []
        rows.append(row)
    return header, rows


_volume, _spread = jax.jit(mtlopt.hypervolume), jax.jit(mtlopt.front_spread)


def volume(losses: np.ndarray) -> float:
    """Hypervolume below the losses of a network that is far from all targets."""
    return float(_volume(losses, np.ones(losses.shape[1])))


@functools.cache
def best_volume(num_tasks: int) -> float:
    """That of the analytic front."""
    return volume(problem.front(num_tasks, 20_001 if num_tasks == 2 else 1000))


def even_words(num_tasks: int, settings: Settings) -> str:
    """How much of the front's hypervolume so few points can have."""
    points = problem.front(num_tasks, settings.preferences)
    share = 100 * volume(points) / best_volume(num_tasks)
    return (
        "The same number of evenly placed points on the analytic front reaches "
        f"{share:.1f} %."
    )


def middle() -> tuple[float, float]:
    """The places between the targets where a weighted sum has no minimum."""
    end = problem.supported_end()
    return end, 1 - end


def middle_words() -> str:
    """The same in words."""
    low, high = middle()
    return f"from {100 * low:.0f} to {100 * high:.0f} % of the way between the targets"


def in_middle(outcome: Outcome) -> str:
    """How many of all networks are there, with five percent to spare."""
    low, high = middle()
    places = problem.place(outcome.losses)
    inside = (places > low + 0.05) & (places < high - 0.05)
    return f"{np.sum(inside)} of {inside.size}"


def rates(times: Times, settings: Settings) -> list[float]:
    """Billions of operations a second, of one network and of all."""
    done = settings.steps * times.operations / 1e9
    one, all_ = times.steps
    return [done / one, settings.preferences * done / all_]


def verdicts(two: list[Outcome], times: Times, settings: Settings) -> list[Verdict]:
    """Returns what the run says of the claims."""
    found = {each.method: each for each in two}
    enough = settings.steps >= 1000 and settings.preferences >= 8
    best = best_volume(2)
    missed = in_middle(found[training.FIXED])
    said = [
        Verdict(
            "a weighted sum has no minimum in the middle of this front",
            f"fixed weights put {missed} networks there",
            missed.startswith("0 ") if enough else None,
        )
    ]
    shares = {
        name: min(volume(own) / best for own in found[name].losses)
        for name in EXACT
        if name in found
    }
    if shares:
        words = ", ".join(
            f"{found[n].title} {100 * s:.0f} %" for n, s in shares.items()
        )
        claim = (
            "methods that equalise the weighted losses reach 90 % of the hypervolume"
        )
        holds = min(shares.values()) >= 0.9 if enough else None
        said.append(Verdict(claim, words, holds))
    if "epo" in found:
        missing = off_preference(found["epo"], settings)
        claim = "EPO ends where the weighted losses are equal (Mahapatra and Rajan)"
        words = f"they differ by {100 * missing:.0f} % (median of the networks)"
        said.append(Verdict(claim, words, missing <= 0.1 if enough else None))
    steps, compiled, whole = times.ratios
    many = f"{settings.preferences} networks take at most four times as long as one"
    enough = settings.preferences >= 32 and settings.steps >= 1000
    one, all_ = rates(times, settings)
    words = f"{steps:.1f} times, with {settings.preferences} times the operations "
    words += f"({all_:.0f} GFLOP/s; one network reaches {one:.0f})"
    for part, ratio, measured in (
        ("steps only", steps, words),
        ("with compilation", compiled, f"{compiled:.1f} times"),
        ("whole process", whole, f"{whole:.1f} times"),
    ):
        holds = ratio <= 4 if enough else None
        said.append(Verdict(f"{many}, {part}", measured, holds))
    return said


def off_preference(outcome: Outcome, settings: Settings) -> float:
    """By how much the two weighted losses differ, relative to the larger one.

    Of preferences with both positive: at the ends one loss is to be zero.
    """
    shares = problem.preferences(2, settings.preferences)[1:-1]
    weighted = outcome.losses[:, 1:-1] * shares
    least, most = weighted.min(axis=2), weighted.max(axis=2)
    return float(np.median(1 - least / most))
