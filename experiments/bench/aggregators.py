"""Time to compute the weights of T tasks from their Gramian, compared with TorchJD.

    python -m experiments.bench.aggregators --torch-python PATH [--out FILE]

PATH is a Python interpreter that has `torchjd[full]`. Both libraries run on the same
core in turn, on the same seeded Gramians. The parameters of the methods are the same,
and all other settings are the libraries' defaults. Our functions are jitted, and
TorchJD's objects are called eagerly. Each call is timed alone, including its dispatch.
Each call gets the next of a few Gramians, so that no call starts at its own solution.
Short blocks of calls alternate. A ratio is the median over rounds of TorchJD's median
time divided by ours, so that drift of the machine cancels. Without `--torch-python`
only our times are given.

`cosine` is the cosine between the two libraries' directions for the first Gramian. It
shows that both libraries compute the same direction. It is below 1 if orders are drawn
at random, or if TorchJD stops early (MGDA) or takes other steps (SDMGrad).
"""

import itertools
import json
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.bench import torchjd_weights
from experiments.bench.machine import pin_to_one_thread, timing_parser
from experiments.bench.other_process import OtherProcess
from experiments.bench.report import Report
from experiments.bench.torchjd_weights import timed_calls
from experiments.lab.tables import markdown_table
from mtlopt.aggregators.aligned_mtl import aligned_mtl_weights
from mtlopt.aggregators.balance_norms import balance_norms_weights
from mtlopt.aggregators.cagrad import cagrad_weights
from mtlopt.aggregators.conflict_free import conflict_free_weights
from mtlopt.aggregators.dualproj import dualproj_weights
from mtlopt.aggregators.edm import edm_weights
from mtlopt.aggregators.epo import epo_weights
from mtlopt.aggregators.fairgrad import fairgrad_weights
from mtlopt.aggregators.gradvac import gradvac_weights
from mtlopt.aggregators.imtl_g import imtl_g_weights
from mtlopt.aggregators.krum import krum_weights
from mtlopt.aggregators.mgda import mgda_weights
from mtlopt.aggregators.modo import modo_weights
from mtlopt.aggregators.nash_mtl import nash_mtl_weights
from mtlopt.aggregators.pcd import pcd_weights
from mtlopt.aggregators.pcgrad import pcgrad_weights
from mtlopt.aggregators.sdmgrad import sdmgrad_weights
from mtlopt.aggregators.upgrad import upgrad_weights
from mtlopt.common.task_weights import mean_weights
from mtlopt.linalg.surgery import random_orders

State = Any

NUM_GRAMIANS = 4
BLOCK_SECONDS = 0.05


@dataclass(frozen=True)
class Pair:
    """A method in both libraries.

    Attributes:
        ours: `ours(gramian, state)`, the weights and the next state.
        torchjd: An expression in the names of `torchjd.aggregation` and the number of
            tasks `T`, or None.
        init: `init(num_tasks)`, our first state, which holds what TorchJD's object
            keeps.
        rows: Whether TorchJD's object takes the Jacobian's rows (a T x T matrix) and
            not the Gramian.
        missing: The reason if there is no expression.
    """

    ours: Callable[[jax.Array, State], tuple[jax.Array, State]]
    torchjd: str | None
    init: Callable[[int], State] = lambda _: ()
    rows: bool = False
    missing: str = ""


def _stateless(
    weights: Callable[..., jax.Array], **options: Any
) -> Callable[[jax.Array, State], tuple[jax.Array, State]]:
    return lambda gramian, state: (weights(gramian, **options), state)


def _epo(gramian: jax.Array) -> jax.Array:
    # With these losses, the first losses may rise and the last loss may not.
    losses = jnp.linspace(1, 2, len(gramian), dtype=gramian.dtype)
    return epo_weights(gramian, losses)


def _pcgrad(gramian: jax.Array, seed: jax.Array) -> tuple[jax.Array, jax.Array]:
    # The orders are drawn in the timed function, as TorchJD does.
    _, order = random_orders(jax.random.key(seed), len(gramian))
    return pcgrad_weights(gramian, order), seed + 1


def _gradvac(gramian: jax.Array, state: State) -> tuple[jax.Array, State]:
    seed, targets = state
    _, order = random_orders(jax.random.key(seed), len(gramian))
    weights, targets = gradvac_weights(gramian, targets, order)
    return weights, (seed + 1, targets)


def _sdmgrad(gramian: jax.Array, weights: jax.Array) -> tuple[jax.Array, jax.Array]:
    # The number of steps is fixed, so the starting point does not change the time.
    return sdmgrad_weights(gramian, weights), weights


def _modo(gramian: jax.Array, weights: jax.Array) -> tuple[jax.Array, jax.Array]:
    weights = modo_weights(gramian, weights)
    return weights, weights


def _uniform(num_tasks: int) -> jax.Array:
    return jnp.full(num_tasks, 1 / num_tasks, float)


def _seed(_: int) -> jax.Array:
    return jnp.zeros([], jnp.uint32)


def _seed_and_targets(num_tasks: int) -> State:
    return _seed(num_tasks), jnp.zeros((num_tasks, num_tasks))


PAIRS: dict[str, Pair] = {
    "mean": Pair(
        _stateless(lambda gramian: mean_weights(len(gramian))), "MeanWeighting()"
    ),
    "mgda": Pair(_stateless(mgda_weights), "MGDAWeighting()"),
    "edm": Pair(_stateless(edm_weights), None, missing="not in TorchJD"),
    "epo": Pair(_stateless(_epo), None, missing="not in TorchJD"),
    "pcgrad": Pair(_pcgrad, "PCGradWeighting()", _seed),
    "gradvac": Pair(_gradvac, "GradVacWeighting()", _seed_and_targets),
    "cagrad": Pair(_stateless(cagrad_weights, c=0.4), "CAGradWeighting(c=0.4)"),
    "nash_mtl": Pair(_stateless(nash_mtl_weights), "NashMTL(T).weighting", rows=True),
    "fairgrad": Pair(
        _stateless(fairgrad_weights, alpha=2.0), "FairGradWeighting(alpha=2)"
    ),
    "imtl_g": Pair(_stateless(imtl_g_weights), "IMTLGWeighting()"),
    "conflict_free": Pair(
        _stateless(conflict_free_weights),
        None,
        missing="ConFIG takes the Jacobian there",
    ),
    "aligned_mtl": Pair(_stateless(aligned_mtl_weights), "AlignedMTLWeighting()"),
    "upgrad": Pair(_stateless(upgrad_weights), "UPGradWeighting()"),
    "dualproj": Pair(_stateless(dualproj_weights), "DualProjWeighting()"),
    "pcd": Pair(_stateless(pcd_weights), "PCDWeighting()"),
    "sdmgrad": Pair(_sdmgrad, "SDMGradWeighting()", _uniform),
    "modo": Pair(_modo, "MoDoWeighting(rho=0)", _uniform),
    "balance_norms": Pair(
        _stateless(balance_norms_weights), None, missing="not in TorchJD"
    ),
    "krum": Pair(
        _stateless(krum_weights, distance="plain"), "KrumWeighting(n_byzantine=1)"
    ),
}


def required_ratio(name: str, num_tasks: int) -> float | None:
    """Returns how many times faster than TorchJD a method must be; None for no goal."""
    if name == "mean":
        return None  # constant weights: nothing is computed
    if name in ("nash_mtl", "cagrad"):
        return 10.0
    return 20.0 if name in ("upgrad", "mgda", "pcgrad") and num_tasks == 128 else 1.0


@dataclass(frozen=True)
class Timing:
    """Microseconds of a call, over all calls."""

    median: float
    minimum: float
    calls: int


@dataclass(frozen=True)
class Result:
    """A line of the table.

    Attributes:
        name: Of the method.
        num_tasks: T.
        compile_seconds: Of our first call.
        ours: Our calls.
        torchjd: TorchJD's calls.
        ratio: TorchJD's time over ours.
        required: What the ratio has to be.
        cosine: Of our direction and TorchJD's.
        note: Why something is missing.
    """

    name: str
    num_tasks: int
    compile_seconds: float | None = None
    ours: Timing | None = None
    torchjd: Timing | None = None
    ratio: float | None = None
    required: float | None = None
    cosine: float | None = None
    note: str = ""


def make_gramians(num_tasks: int, dtype: str, seed: int = 0) -> np.ndarray:
    """Returns Gramians of 2T-dimensional rows in mild conflict, `[., tasks, tasks]`.

    The mean cosine of the rows is half the standard deviation of the cosines, so that a
    third of the pairs conflict for every T. The rows are linearly independent, so that
    zero is not in their convex hull and every method has a direction.

    Args:
        num_tasks: T.
        dtype: Dtype of the result.
        seed: Seed of the rows.
    """
    size = 2 * num_tasks
    generator = np.random.default_rng([seed, num_tasks])
    rows = generator.standard_normal((NUM_GRAMIANS, num_tasks, size))
    rows += (4 * size) ** -0.25
    return (rows @ rows.swapaxes(1, 2)).astype(dtype)


def measure(
    name: str,
    gramians: np.ndarray,
    torchjd: Callable[[str], str] | None = None,
    *,
    num_rounds: int = 11,
    limit: float = 60.0,
) -> Result:
    """Measures a method at one size.

    Args:
        name: A name in `PAIRS`.
        gramians: `[., tasks, tasks]`.
        torchjd: The process that runs `torchjd_weights`.
        num_rounds: Blocks of each library.
        limit: Number of seconds after which no new round starts.
    """
    pair, num_tasks = PAIRS[name], gramians.shape[1]
    compiled = jax.jit(pair.ours)
    state = pair.init(num_tasks)
    inputs = [jnp.asarray(gramian) for gramian in gramians]
    start = time.perf_counter()
    try:
        weights, state = jax.block_until_ready(compiled(inputs[0], state))
    except ValueError as error:  # too few tasks
        return Result(name, num_tasks, note=str(error))
    compile_seconds = time.perf_counter() - start
    given = itertools.cycle(inputs)

    def ours() -> None:
        nonlocal state
        weights, state = compiled(next(given), state)
        weights.block_until_ready()

    cosine, note = None, pair.missing
    if torchjd and pair.torchjd:
        answer = json.loads(torchjd(json.dumps(_request(pair, gramians))))
        note = answer.get("error", "")
        if not note:
            cosine = _cosine(gramians[0], weights, answer["weights"])
    both = torchjd if cosine is not None else None

    blocks: list[tuple[list[float], list[float]]] = []
    start = time.perf_counter()
    while not blocks or (
        len(blocks) < num_rounds and time.perf_counter() - start < limit
    ):
        theirs: list[float] = []
        if both:
            answer = json.loads(both(json.dumps({"seconds": BLOCK_SECONDS})))
            if "error" in answer:
                both, note = None, answer["error"]
            theirs = answer.get("times", [])
        blocks.append((timed_calls(ours, BLOCK_SECONDS), theirs))

    pairs = [(mine, theirs) for mine, theirs in blocks if theirs]
    ratios = [statistics.median(b) / statistics.median(a) for a, b in pairs]
    return Result(
        name,
        num_tasks,
        compile_seconds,
        _timing([mine for mine, _ in blocks]),
        _timing([theirs for _, theirs in pairs]) if pairs else None,
        statistics.median(ratios) if pairs else None,
        required_ratio(name, num_tasks) if pairs else None,
        cosine,
        note,
    )


def _request(pair: Pair, gramians: np.ndarray) -> dict[str, Any]:
    return {
        "weighting": pair.torchjd,
        "rows": pair.rows,
        "gramians": gramians.tolist(),
        "dtype": gramians.dtype.name,
        "device": jax.default_backend().replace("gpu", "cuda"),
    }


def _cosine(gramian: np.ndarray, left: Any, right: Any) -> float:
    """Returns the cosine of two combinations of the rows."""
    left, right = np.asarray(left, np.float64), np.asarray(right, np.float64)
    squares = (left @ gramian @ left) * (right @ gramian @ right)
    return float(left @ gramian @ right / np.sqrt(squares))


def _timing(blocks: Sequence[Sequence[float]]) -> Timing:
    times = [1e6 * seconds for block in blocks for seconds in block]
    return Timing(statistics.median(times), min(times), len(times))


HEADER = [
    "method",
    "tasks",
    "ours, µs",
    "TorchJD, µs",
    "ratio",
    "required",
    "cosine",
    "our compile, s",
    "note",
]


def cells(result: Result) -> list[str]:
    """A line under `HEADER`; microseconds are medians, with the minimum in brackets."""
    return [
        result.name,
        str(result.num_tasks),
        _microseconds(result.ours),
        _microseconds(result.torchjd),
        _format(result.ratio, ".3g"),
        _format(result.required, "g"),
        _format(result.cosine, ".4f"),
        _format(result.compile_seconds, ".2f"),
        result.note,
    ]


def _microseconds(timing: Timing | None) -> str:
    return f"{timing.median:.1f} ({timing.minimum:.1f})" if timing else ""


def _format(number: float | None, form: str) -> str:
    return "" if number is None else format(number, form)


def missed(results: Sequence[Result]) -> list[str]:
    """Returns a sentence for each result that is not as fast as required."""
    return [
        f"{r.name}, T = {r.num_tasks}: {r.ratio:.3g} times, required {r.required:g}."
        for r in results
        if r.ratio is not None and r.required is not None and r.ratio < r.required
    ]


def main(argv: Sequence[str] | None = None) -> None:
    """Command line."""
    parser = timing_parser(__doc__ or "", rounds=11)
    parser.add_argument(
        "--methods",
        nargs="*",
        default=list(PAIRS),
        choices=list(PAIRS),
        help="methods to time; default: all",
    )
    parser.add_argument("--tasks", nargs="*", type=int, default=[2, 8, 32, 64, 128])
    parser.add_argument("--dtype", choices=("float32", "float64"), default="float32")
    parser.add_argument("--platform", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument(
        "--limit", type=float, default=60.0, help="seconds for a method at one size"
    )
    args = parser.parse_args(argv)
    pin_to_one_thread(args.core)
    jax.config.update("jax_platforms", args.platform)
    jax.config.update("jax_enable_x64", args.dtype == "float64")
    torchjd = (
        OtherProcess(
            args.torch_python, torchjd_weights.__file__, "--limit", str(args.limit)
        )
        if args.torch_python
        else None
    )
    report = Report("aggregators", argv, args.out)
    results = []
    for name, num_tasks in itertools.product(args.methods, args.tasks):
        print(f"{name}, T = {num_tasks}", file=sys.stderr)
        gramians = make_gramians(num_tasks, args.dtype)
        result = measure(
            name, gramians, torchjd, num_rounds=args.rounds, limit=args.limit
        )
        results.append(result)
    if torchjd:
        torchjd.close()
    report.print(markdown_table(HEADER, [cells(result) for result in results]))
    for sentence in missed(results):
        print(sentence, file=sys.stderr)
    report.write(results)


if __name__ == "__main__":
    main()
