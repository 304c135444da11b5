"""The error of float32 updates for gradients that point nearly the same way.

    python -m experiments.bench.correlated [--bundles 2] [--streaming]

The rows (task gradients) share a common direction. The cosines are from 0.9 to 1 - 1e-6
and the norms from 0.1 to 10. There are 2 to 32 tasks, and at least as many parameters
as tasks, up to 10,000. With `--bundles 2` every other row shares another direction.
Every method that works on the Gramian runs with its defaults. The rows are stored or,
with `--streaming`, computed one at a time. The error of an update is relative to the
update of the same method in float64 on the same rows. The table lists errors by the
condition number of the unit rows.
"""

import argparse
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import mtlopt
from experiments.bench.report import Report, add_out
from experiments.lab.tables import markdown_table

METHODS = (
    "aligned_mtl",
    "conflict_free",
    "imtl_g",
    "mgda",
    "edm",
    "upgrad",
    "dualproj",
    "pcd",
    "cagrad",
    "nash_mtl",
    "fairgrad",
)
TASKS = (2, 3, 8, 16, 32)
APART = (0.1, 1e-2, 1e-3, 1e-4, 1e-5, 1e-6)
LIMITS = (1e1, 1e2, 1e3, 1e4, np.inf)


class Error(NamedTuple):
    """The error of one update.

    Attributes:
        condition: Condition number of the unit rows.
        relative: Distance to the float64 update, divided by the length of the float64
            update.
        direction: The distance if both updates are scaled to unit length.
    """

    condition: float
    relative: float
    direction: float


def make_rows(
    seed: int, num_tasks: int, num_params: int, apart: float, bundles: int = 1
) -> np.ndarray:
    """Returns rows with cosines of about `1 - apart` in each bundle, float32."""
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(bundles, num_params))
    own = rng.normal(size=(num_tasks, num_params))
    own /= np.linalg.norm(own, axis=1, keepdims=True)
    centres /= np.linalg.norm(centres, axis=1, keepdims=True)
    common = centres[np.arange(num_tasks) % bundles]
    rows = np.sqrt(1 - apart) * common + np.sqrt(apart) * own
    rows *= 10 ** rng.uniform(-1, 1, size=(num_tasks, 1))
    return rows.astype(np.float32)


@functools.cache
def make_update(
    method: str, num_tasks: int, streaming: bool = False
) -> Callable[[Any], Any]:
    """Returns a compiled function from rows to the update of a method."""
    transform: optax.GradientTransformation = mtlopt.METHODS[method].make(num_tasks)

    def head(_params, z, task, _rows):
        return z[task]

    oracle = mtlopt.task_grad(
        mtlopt.stacked(head, num_tasks),
        "shared",
        encode=lambda params, rows: rows @ params,
        streaming=True,
    )

    def update(rows: jax.Array) -> Any:
        params = jnp.zeros(rows.shape[1], rows.dtype)
        streamed = oracle(params, rows)
        grads = streamed if streaming else mtlopt.TaskGrads.from_rows(rows)
        return transform.update(grads, transform.init(params), params)[0]

    return jax.jit(update)


def error_of(method: str, rows: np.ndarray, streaming: bool = False) -> Error:
    """Returns the error of one method on given rows."""
    update = make_update(method, len(rows), streaming)
    found = np.asarray(update(rows), np.float64)
    exact = rows.astype(np.float64)
    with jax.enable_x64(True):
        expected = np.asarray(make_update(method, len(rows))(exact))
    unit = exact / np.linalg.norm(exact, axis=1, keepdims=True)
    lengths = np.linalg.norm(found), np.linalg.norm(expected)
    return Error(
        float(np.linalg.cond(unit)),
        float(np.linalg.norm(found - expected) / lengths[1]),
        float(np.linalg.norm(found / lengths[0] - expected / lengths[1])),
    )


def cases(bundles: int, seeds: int) -> Iterator[np.ndarray]:
    """Yields all rows for the tables."""
    for num_tasks in TASKS:
        if num_tasks < 2 * bundles:
            continue
        for num_params in (num_tasks, 100, 10_000):
            for apart in APART:
                for seed in range(seeds):
                    yield make_rows(seed, num_tasks, num_params, apart, bundles)


def table(errors: dict[str, list[Error]]) -> str:
    """Returns the largest errors of each method by condition, as Markdown."""
    header = ["method", *(f"up to {limit:.0e}" for limit in LIMITS[:-1]), "beyond"]
    rows = []
    for method, found in errors.items():
        cells = [mtlopt.METHODS[method].title]
        for low, high in zip((0, *LIMITS), LIMITS, strict=False):
            inside = [error for error in found if low < error.condition <= high]
            if not inside:
                cells.append("")
                continue
            worst = max(error.relative for error in inside)
            direction = max(error.direction for error in inside)
            cells.append(f"{worst:.0e} ({direction:.0e}), {len(inside)}")
        rows.append(cells)
    return markdown_table(header, rows)


def main(argv: Sequence[str] | None = None) -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--methods", nargs="+", default=METHODS, choices=METHODS)
    parser.add_argument("--bundles", type=int, default=1)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--streaming", action="store_true")
    add_out(parser)
    args = parser.parse_args(argv)
    errors: dict[str, list[Error]] = {method: [] for method in args.methods}
    for rows in cases(args.bundles, args.seeds):
        for method in args.methods:
            errors[method].append(error_of(method, rows, args.streaming))
    report = Report("correlated", argv, args.out)
    report.print(
        "Largest relative error of the update (of its direction), number of cases, by "
        "the condition number of the unit rows:"
    )
    report.print(table(errors))
    report.write([])


if __name__ == "__main__":
    main()
