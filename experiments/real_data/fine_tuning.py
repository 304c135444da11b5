"""Fine-tuning: adapters on a frozen base learn four domains, each with its own loss."""

import dataclasses
import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pandas as pd

import mtlopt
from experiments.data.digits import Digits, DigitSet, load_digits
from experiments.lab.comparison import paired
from experiments.lab.folder import RunFolder
from experiments.lab.program import Program
from experiments.lab.settings import ShortOptions, loaded, methods_for, parse
from experiments.lab.tables import (
    Frame,
    command_line,
    count,
    markdown_table,
    number,
    select,
)
from experiments.real_data.choice import at_edge, choose
from experiments.real_data.problem import PyTree

NAME = "real_data.fine_tuning"

DESCRIPTION = """\
A network that learned upright digits is fine-tuned to four domains at the same time:
the digits upright, shifted, mirrored and turned. The domains have 100 to 800 examples.
The weights of the network are frozen. Only adapters of rank four are trained, which are
added to the frozen weights. Each domain has its own loss.

Compares the summed loss, fixed weights tuned on a grid, and methods. Each row of the
table gets the learning rate with the lowest validation loss, and also the best weights
if the row has weights. Two seeds that are not reported make this choice.
"""

# The change of images `[num, side, side]`, and the number of examples to train on.
DOMAINS: dict[str, tuple[Callable[[np.ndarray], np.ndarray], int]] = {
    "upright": (lambda images: images, 100),
    "shifted": (lambda images: np.roll(images, 3, axis=2), 200),
    "mirrored": (lambda images: images[:, :, ::-1], 400),
    "turned": (lambda images: np.rot90(images, axes=(1, 2)), 800),
}
_NUM_TRAIN = sum(size for _, size in DOMAINS.values())
_SIZES = (14 * 14, 128, 128, 10)  # of the layers
_RANK, _BATCH = 4, 128
_BASE_STEPS, _BASE_RATE = 600, 3e-3
_CHOOSING = (1000, 1001)  # the seeds that choose; reported seeds start from 0
LABELS = {"base": "frozen", "adapters": "shared"}
# The weight of a domain is a power of its number of examples. Power 0 gives the sum of
# the domains' mean losses, power 1 the mean over all examples. The weights have mean
# one, so that a learning rate has the same meaning for all.
_EXAMPLES = np.array([size for _, size in DOMAINS.values()], float)
WEIGHTINGS = {
    f"examples^{power:g}": list(_EXAMPLES**power / np.mean(_EXAMPLES**power))
    for power in (-1.0, -0.5, 0.0, 0.5, 1.0)
}
ONES = {"": [1.0] * len(DOMAINS)}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings(ShortOptions):
    """The settings that decide the numbers of a run.

    Attributes:
      methods: some of the names in `mtlopt.METHODS`, or all.
      rates: learning rates of Adam; each row gets its best rate.
      steps: steps of every run.
      seeds: number of seeds that are reported.
    """

    methods: tuple[str, ...] = ("upgrad", "aligned_mtl")
    rates: tuple[float, ...] = (3e-3, 1e-2, 3e-2)
    steps: int = 300
    seeds: int = 3


def main(argv: Sequence[str]) -> None:
    """Runs the experiment with the options `argv`, see `DESCRIPTION`."""
    names = {"methods": methods_for(len(DOMAINS))}
    settings = parse(NAME, DESCRIPTION, Settings(), argv, names=names)
    data = make_data(loaded(load_digits))
    with RunFolder(settings) as folder:
        rows = run_rows(settings, data)
        told = {name: table.to_dict("records") for name, (_, table) in rows.items()}
        folder.write_results(
            settings,
            make_report(settings, rows),
            command=command_line(NAME, argv),
            chosen={name: chosen for name, (chosen, _) in rows.items()},
            runs=told,
        )


def make_data(digits: Digits) -> Mapping[str, PyTree]:
    """Returns upright digits for the base, and three splits of the domains."""
    shuffled = np.random.default_rng(0).permutation(len(digits.train.labels))
    parts = np.split(shuffled, [len(shuffled) - _NUM_TRAIN])
    base, train = (DigitSet(*(a[part] for a in digits.train)) for part in parts)
    ends = np.cumsum([0, *(size for _, size in DOMAINS.values())])
    each = [slice(*pair) for pair in itertools.pairwise(ends)]
    whole = [slice(None)] * len(DOMAINS)
    return {
        "base": _samples(base, ["upright"], whole[:1]),
        "train": _samples(train, DOMAINS, each),
        "validation": _samples(digits.validation, DOMAINS, whole),
        "test": _samples(digits.test, DOMAINS, whole),
    }


def _samples(digits: DigitSet, names: Any, parts: Sequence[slice]) -> PyTree:
    """Returns digits in some domains, domain by domain, at half their side length."""
    num = len(digits.labels)
    images = digits.images.reshape(num, 14, 2, 14, 2).mean(axis=(2, 4)) / 255
    each = [
        (DOMAINS[name][0](images[p]), p) for name, p in zip(names, parts, strict=True)
    ]
    domains = [np.full(len(x), number) for number, (x, _) in enumerate(each)]
    return {
        "x": jnp.asarray(
            np.concatenate([x.reshape(len(x), -1) for x, _ in each]), float
        ),
        "y": jnp.asarray(np.concatenate([digits.labels[p] for _, p in each])),
        "domain": jnp.asarray(np.concatenate(domains)),
    }


def encode(params: PyTree, sample: PyTree) -> jax.Array:
    """Returns the ten outputs for one sample."""
    z, last = sample["x"], len(params["base"]) - 1
    for i, (base, own) in enumerate(
        zip(params["base"], params["adapters"], strict=True)
    ):
        z = z @ base["w"] + z @ own["down"] @ own["up"] + base["b"]
        z = z if i == last else jax.nn.relu(z)
    return z


def cross_entropy(
    params: PyTree, z: jax.Array, task: jax.Array, sample: PyTree
) -> jax.Array:
    """Returns the loss of one sample of any domain."""
    del params, task
    return optax.softmax_cross_entropy_with_integer_labels(z, sample["y"])


ORACLE = mtlopt.task_grad(
    mtlopt.samplewise(
        mtlopt.stacked(cross_entropy, len(DOMAINS)),
        task_of=lambda sample: sample["domain"],
    ),
    LABELS,
    encode=encode,
    tasks=tuple(DOMAINS),
)


def init(seed: int) -> PyTree:
    """Returns parameters; the second factor of an adapter is zero, so it has no effect.

    This is as in LoRA (Hu et al., 2022). NumPy draws the numbers, because XLA would
    compile for seconds.
    """
    rng = np.random.default_rng(seed)

    def normal(*shape: int) -> jax.Array:
        return jnp.asarray(rng.normal(size=shape) / shape[0] ** 0.5, jnp.float32)

    pairs = list(itertools.pairwise(_SIZES))
    base = [{"w": normal(*pair), "b": jnp.zeros(pair[1])} for pair in pairs]
    adapters = [
        {"down": normal(size, _RANK), "up": jnp.zeros((_RANK, out))}
        for size, out in pairs
    ]
    return {"base": base, "adapters": adapters}


def learn_base(params: PyTree, seed: Any, samples: PyTree) -> PyTree:
    """Returns the parameters with a base that has learned upright digits."""
    adam = optax.adam(optax.cosine_decay_schedule(_BASE_RATE, _BASE_STEPS))
    key = jax.random.key(seed)

    def loss(base: PyTree, batch: PyTree) -> jax.Array:
        z = jax.vmap(lambda sample: encode(params | {"base": base}, sample))(batch)
        return optax.softmax_cross_entropy_with_integer_labels(z, batch["y"]).mean()

    def step(number: Any, carry: Any) -> Any:
        base, state = carry
        grads = jax.grad(loss)(base, _draw(key, number, samples))
        updates, state = adam.update(grads, state)
        return optax.apply_updates(base, updates), state

    start = params["base"], adam.init(params["base"])
    base, _ = jax.lax.fori_loop(0, _BASE_STEPS, step, start)
    return params | {"base": base}


def _draw(key: jax.Array, number: Any, samples: PyTree) -> PyTree:
    own = jax.random.fold_in(key, number)
    rows = jax.random.randint(own, (_BATCH,), 0, len(samples["y"]))
    return jax.tree.map(lambda leaf: leaf[rows], samples)


def make_train(
    method: str, steps: int, oracle: mtlopt.Oracle = ORACLE
) -> Callable[..., PyTree]:
    """Returns `train(params, rate, seed, weights, samples)`, which returns parameters.

    Adam has no state for the base, and its learning rate falls to zero along a cosine.
    """
    aggregator = mtlopt.METHODS[method].make(len(DOMAINS), labels=oracle.labels)

    def train(params: PyTree, rate: Any, seed: Any, weights: Any, samples: Any) -> Any:
        adam = optax.adam(optax.cosine_decay_schedule(rate, steps))
        optimizer = optax.chain(
            mtlopt.weight_by_fixed(weights),
            aggregator,
            mtlopt.per_label(adam, oracle.labels),
        )
        step, key = mtlopt.train_step(oracle, optimizer), jax.random.key(seed)
        run = mtlopt.Run(params, optimizer.init(params))
        body = lambda i, run: step(run, _draw(key, i, samples))[0]  # noqa: E731
        return jax.lax.fori_loop(0, steps, body, run).params

    return train


def evaluate(params: PyTree, samples: PyTree) -> tuple[jax.Array, jax.Array]:
    """Returns the mean loss and the share of errors by domain, `[domains]`."""
    z = jax.vmap(lambda sample: encode(params, sample))(samples)
    own = jax.nn.one_hot(samples["domain"], len(DOMAINS))
    wrong = jnp.argmax(z, axis=1) != samples["y"]
    return ORACLE.losses(params, samples), wrong @ own / jnp.sum(own, axis=0)


def run_rows(
    settings: Settings, data: Mapping[str, PyTree]
) -> dict[str, tuple[str, Frame]]:
    """Returns the choice and the runs of every row; the tuned weights come first."""
    learn, tell = Program(learn_base), jax.jit(evaluate)
    told = range(settings.seeds)
    bases = {
        seed: learn(init(seed), jnp.asarray(seed), data["base"])
        for seed in (*_CHOOSING, *told)
    }

    def measured(params: PyTree, part: str, **run: Any) -> list[dict[str, Any]]:
        each = zip(DOMAINS, *tell(params, data[part]), strict=True)
        return [
            run | {"part": name, "value": float(loss), "error": float(error)}
            for name, loss, error in each
        ]

    def runs(program: Program, weightings: Any, candidates: Any, part: str) -> Frame:
        records = []
        for name, rate, seed in candidates:
            args = jnp.asarray(rate), jnp.asarray(seed), jnp.asarray(weightings[name])
            params = program(bases[seed], *args, data["train"])
            about = {"weights": name, "rate": rate, "seed": seed}
            records += measured(params, part, **about)
        return pd.DataFrame(records)

    names = {name: mtlopt.METHODS[name].title for name in settings.methods}
    rows = [("Tuned weights", "sum_tasks", WEIGHTINGS)]
    rows += [("Summed loss", "sum_tasks", ONES)]
    rows += [(title, name, ONES) for name, title in names.items()]
    programs = {
        method: Program(make_train(method, settings.steps)) for _, method, _ in rows
    }
    found = {}
    for title, method, weightings in rows:
        program = programs[method]
        grid = itertools.product(weightings, settings.rates, _CHOOSING)
        search = runs(program, weightings, grid, "validation")
        choice = choose(search, list(DOMAINS))
        weights, rate = choice["upright"]  # the same for all parts
        star = "*" * at_edge(choice, settings.rates, list(weightings))
        best = [(weights, rate, seed) for seed in told]
        table = runs(program, weightings, best, "test")
        found[title] = f"{weights} {rate:g}{star}".strip(), table
    still = [own for s in told for own in measured(bases[s], "test", seed=s)]
    return found | {"Base alone": ("", pd.DataFrame(still))}


def make_report(settings: Settings, rows: Mapping[str, tuple[str, Frame]]) -> str:
    """Returns losses and errors by domain."""
    grid = ", ".join(f"{rate:g}" for rate in settings.rates)
    base, losses, errors = None, [], []
    for title, (chosen, table) in rows.items():
        logs = np.log(table.pivot(index="seed", columns="part", values="value"))
        seeds = logs.mean(axis=1).to_numpy()  # of the geometric mean
        base = seeds if base is None else base
        by_domain = [select(table, part=name) for name in DOMAINS]
        cells = [number(own["value"], digits=3) for own in by_domain]
        cells += [number(np.exp(seeds), digits=3)]
        cells += [f"{np.exp(np.mean(seeds - base)):.2f}", _words(seeds, base)]
        losses.append([title, chosen, *cells])
        mean = table.groupby("seed")["error"].mean()
        cells = [number(own["error"], 100, 1) for own in by_domain]
        errors.append([title, *cells, number(mean, 100, 1)])
    examples = ", ".join(f"{size} {name}" for name, (_, size) in DOMAINS.items())
    columns = [*DOMAINS, "mean"]
    return (
        "# Fine-tuning of a frozen base by domain\n\n"
        f"Adapters of rank {_RANK}, {settings.steps} steps of {_BATCH} examples of "
        f"{examples}. Two seeds chose among the rates {grid} by validation, "
        f"{count(settings.seeds, 'other seed')} are reported by test: mean and "
        "standard deviation. A star marks a rate, or weights, at the edge of the "
        "grid.\n\n"
        "## Losses by domain\n\nThe mean is geometric. The ratio is the mean "
        "divided by the mean of the tuned weights, for the same seeds. A row differs "
        "if the 95 % interval of the ratio's logarithm does not contain zero.\n\n"
        + markdown_table(["method", "rate", *columns, "ratio", "says"], losses)
        + "\n\n## Errors by domain, in percent\n\n"
        + markdown_table(["method", *columns], errors)
    )


def _words(seeds: np.ndarray, base: np.ndarray) -> str:
    if base is seeds:
        return ""
    return ("no difference", "higher", "lower")[paired(seeds, base).sign]
