"""Two losses of two parameters: figure 1 of Aligned-MTL."""

import dataclasses
import time
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from tqdm import tqdm

import mtlopt
from experiments.aligned_mtl.landscapes import LANDSCAPES, Landscape, Loss
from experiments.aligned_mtl.toy_figures import draw_paths
from experiments.lab.errors import UsageError
from experiments.lab.folder import RunFolder
from experiments.lab.program import Program
from experiments.lab.settings import ShortOptions, methods_for, parse
from experiments.lab.tables import command_line, markdown_table
from experiments.lab.verdicts import Verdict, verdict_table

NAME = "aligned_mtl.toy"

DESCRIPTION = """\
Minimises two losses of two parameters with Adam from five starting points, with the
published learning rate. Reports after how many steps a run is near the Pareto front, as
in figure 1 of Aligned-MTL (Senushkin et al., CVPR 2023).

--landscape yu      the two logarithmic valleys of PCGrad (Yu et al., NeurIPS 2020),
                    with its starting point and four of our own
--landscape cagrad  the landscape of CAGrad (Liu et al., NeurIPS 2021), with the five
                    starting points of the code of Nash-MTL and Aligned-MTL, which uses
                    --steps 35000
--scale S           minimises S times the first and 1 - S times the second loss, which
                    is the "task balance" of Aligned-MTL's code; 0.0909 is Nash-MTL's
                    0.1 to 1

A step of Adam is about as long as its learning rate. With more than 0.1 a run jumps
over the valleys, which are about 1 wide.
"""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings(ShortOptions):
    """The settings that decide the numbers of a run.

    Attributes:
      methods: some of the names in `mtlopt.METHODS`, or all.
      steps: updates of every run.
      scale: factor of the first loss, between 0 and 1. The factor of the second loss is
        one minus this factor.
      landscape: the pair of losses to minimise.
      learning_rates: constant learning rates of Adam; each rate has its own row and
        picture.
    """

    methods: tuple[str, ...] = ("sum_tasks", "mgda", "pcgrad", "cagrad", "aligned_mtl")
    steps: int = 500_000
    scale: float = 0.5
    landscape: Literal["yu", "cagrad"] = "yu"
    learning_rates: tuple[float, ...] = (0.001,)


class Outcome(NamedTuple):
    """The runs of one method with one learning rate, from all starts."""

    method: str
    learning_rate: float
    seconds: float  # seconds of all starts and learning rates, without compilation
    compile_seconds: float
    # For each start: the step at which the run is first within the tolerance (None for
    # never), the smallest distance to the front, and the distance at the end.
    steps: tuple[int | None, ...]
    nearest: tuple[float, ...]
    end: tuple[float, ...]
    # For some steps, including the steps of the arrivals:
    at: np.ndarray  # `[points]`, from 0
    params: np.ndarray  # `[starts, points, 2]`
    distance: np.ndarray  # `[starts, points]`

    @property
    def title(self) -> str:
        """The method and its learning rate."""
        return f"{mtlopt.METHODS[self.method].title}, {self.learning_rate:g}"


def main(argv: Sequence[str]) -> None:
    """Runs the experiment with the options `argv`, see `DESCRIPTION`."""
    names = {"methods": methods_for(2)}
    settings = parse(NAME, DESCRIPTION, Settings(), argv, names=names)
    if not 0 < settings.scale < 1:
        raise UsageError(f"--scale must be between 0 and 1, got {settings.scale:g}.")
    landscape = LANDSCAPES[settings.landscape]
    # A run is short enough to be repeated: the same command writes the same files.
    with RunFolder(settings) as folder:
        outcomes = run_methods(settings)
        command = command_line(NAME, argv)
        report = make_report(outcomes, settings, command)
        shown = ("title", "starts", "tolerance")
        folder.write_results(
            settings,
            report,
            command=command,
            landscape={name: getattr(landscape, name) for name in shown},
            runs=[
                {name: getattr(each, name) for name in Outcome._fields[:-3]}
                for each in outcomes
            ],
        )
        what = f"Adam, {settings.steps:,} steps, scale {settings.scale:g}"
        draw_paths(folder.path / "paths.png", landscape, outcomes, what)


def run_methods(settings: Settings) -> list[Outcome]:
    """Runs every method with every learning rate."""
    landscape, rates = LANDSCAPES[settings.landscape], settings.learning_rates
    scales = np.array([settings.scale, 1 - settings.scale])
    problem = (landscape.losses, jnp.array(landscape.starts), jnp.array(rates))
    outcomes = []
    for method in tqdm(settings.methods, unit="method", dynamic_ncols=True):
        descend = Program(make_descend(settings, method))
        descend.compile(*problem)
        started = time.perf_counter()
        done = jax.block_until_ready(descend(*problem))
        took = (time.perf_counter() - started, descend.compile_seconds)
        every_rate = zip(rates, *map(np.asarray, done), strict=True)
        outcomes += [
            Outcome(method, rate, *took, *follow(landscape, params, losses / scales))
            for rate, params, losses in every_rate
        ]
    return outcomes


def make_descend(
    settings: Settings, method: str
) -> Callable[..., tuple[jax.Array, jax.Array]]:
    """Returns the function that runs a method from all starts with all learning rates.

    The function is `descend(losses, starts, rates)`, with two `Loss`, `[starts, 2]` and
    `[rates]`. It returns the parameters and the scaled losses,
    `[rates, starts, steps + 1, 2]`; entry k is the value after k steps.
    """
    # The encoder is the identity, so that methods in latent space run too.
    oracle = mtlopt.task_grad(
        {
            "first": lambda _, z, losses: settings.scale * losses[0](z),
            "second": lambda _, z, losses: (1 - settings.scale) * losses[1](z),
        },
        "shared",
        encode=lambda params, _: params,
    )

    def descend(
        losses: tuple[Loss, Loss], start: jax.Array, rate: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        aggregator = mtlopt.METHODS[method].make(2, labels="shared")
        optimizer = optax.chain(aggregator, optax.adam(rate))

        def step(carry: Any, _: None) -> Any:
            params, state = carry
            grads = oracle(params, losses)
            updates, state = optimizer.update(grads, state, params)
            new = optax.apply_updates(params, updates)
            return (new, state), (params, grads.losses)

        first = (start, optimizer.init(start))
        return jax.lax.scan(step, first, length=settings.steps + 1)[1]

    every_start = jax.vmap(descend, in_axes=(None, 0, None))
    return jax.vmap(every_start, in_axes=(None, None, 0))


def follow(
    landscape: Landscape, params: np.ndarray, losses: np.ndarray
) -> tuple[Any, ...]:
    """Returns the last fields of `Outcome` for runs `[starts, steps + 1, 2]`."""
    distance = landscape.distance(losses)
    near = distance <= landscape.tolerance  # False for NaN
    arrivals = [int(np.argmax(own)) if own.any() else None for own in near]
    nearest = np.min(np.where(np.isnan(distance), np.inf, distance), axis=1)
    # More points could not be seen; most changes happen early.
    last, shares = distance.shape[1] - 1, np.linspace(0, 1, 400)
    at = np.concatenate([last * shares**2, last**shares]).round()
    at = np.union1d(at, [step for step in arrivals if step is not None]).astype(int)
    end = distance[:, -1].tolist()
    kept = (at, params[:, at], distance[:, at])
    return (tuple(arrivals), tuple(nearest.tolist()), tuple(end), *kept)


def make_report(outcomes: list[Outcome], settings: Settings, command: str) -> str:
    """Returns the tables as Markdown."""
    landscape = LANDSCAPES[settings.landscape]
    header = ["method", "learning rate"]
    header += [f"({x:g}, {y:g})" for x, y in landscape.starts]
    header += ["nearest", "at the end"]
    rows = []
    for each in outcomes:
        worst = (max(each.nearest), float(np.max(each.end)))
        # Because of the interpolated front, some distances are about -2e-6; print them
        # as zero.
        cells = [f"{round(value, 2) + 0.0:.2f}" for value in worst]
        title, rate = mtlopt.METHODS[each.method].title, f"{each.learning_rate:g}"
        rows.append([title, rate, *map(_count, each.steps), *cells])
    return f"""# {landscape.title}

`{command}`

Adam, loss scales {settings.scale:g} and {1 - settings.scale:g}.

## Steps until near the Pareto front

A run has {settings.steps:,} steps. The distance is how much both losses, without their
scales, can still fall together; near is {landscape.tolerance:g} or less. "nearest" and
"at the end" are distances from the worst start.

{markdown_table(header, rows)}

{verdict_section(outcomes, settings)}"""


def verdict_section(outcomes: list[Outcome], settings: Settings) -> str:
    """Returns the table of claims at the first learning rate, if there are claims."""
    rate = settings.learning_rates[0]
    steps = {e.method: e.steps for e in outcomes if e.learning_rate == rate}
    if settings.landscape != "yu" or not steps.keys() >= set(Settings.methods):
        return ""
    return f"""## Claims

At the learning rate {rate:g}, from the paper's start.

{verdict_table(verdicts(steps, settings.steps))}"""


def verdicts(steps: dict[str, tuple[int | None, ...]], most: int) -> list[Verdict]:
    """Returns the verdicts on the methods' steps from all starts, at most `most`."""
    far = most + 1
    first = {name: own[0] if own[0] is not None else far for name, own in steps.items()}
    aligned, mgda, pcgrad = (first[m] for m in ("aligned_mtl", "mgda", "pcgrad"))
    arrives = aligned <= most
    enough = arrives or most >= 5_000
    pairs = zip(steps["aligned_mtl"], steps["mgda"], strict=True)
    ahead = sum((own or far) < (other or far) for own, other in pairs)
    shown = {name: _count(own[0]) for name, own in steps.items()}
    return [
        Verdict(
            "Aligned-MTL needs 5k steps, PCGrad far more (section 5.1)",
            f"{shown['aligned_mtl']} and {shown['pcgrad']}",
            (aligned <= 5_000 and pcgrad >= 10 * aligned) if enough else None,
        ),
        Verdict(
            "the sum does not optimise the whole objective (section 5.1)",
            f"near the front: {shown['sum_tasks']}",
            first["sum_tasks"] > most if enough else None,
        ),
        Verdict(
            "Aligned-MTL converges faster than MGDA (Fig. 1)",
            f"{shown['aligned_mtl']} and {shown['mgda']}; faster from {ahead} of "
            f"{len(steps['mgda'])} starts",
            aligned < mgda if enough else None,
        ),
    ]


def _count(step: int | None) -> str:
    return "never" if step is None else f"{step:,}"
