"""One network on one device, data-parallel, and with sharded parameters."""

import dataclasses
import math
import re
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from tqdm import tqdm

import mtlopt
from experiments.lab.errors import UsageError
from experiments.lab.folder import RunFolder
from experiments.lab.settings import ShortOptions, methods_for, parse
from experiments.lab.tables import command_line, markdown_table

NAME = "bench.sharded"
DESCRIPTION = """\
Trains a small network on two synthetic tasks three times: on one device, with the batch
sharded over all devices (data-parallel), and with parameters and optimizer state
sharded too (fully sharded). Prints the losses, how far they are from the losses on one
device, and how much memory a device holds. Also prints how many bytes a step
communicates: the bytes that all-reduces, all-gathers and reduce-scatters return,
counted in the program that XLA compiled.

--devices N simulates N devices on a CPU; without it, all existing devices take part.
"""

INPUTS, WIDTH, PER_DEVICE = 64, 256, 32
TASKS = ("sines", "products")
LABELS = {"trunk": "shared", **{task: task for task in TASKS}}
PLACEMENTS = ("one device", "data-parallel", "fully sharded")
COLLECTIVES = ("all-reduce", "all-gather", "reduce-scatter")
_AXIS = "devices"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings(ShortOptions):
    """The settings that decide the numbers of a run.

    Attributes:
      methods: some of the names in `mtlopt.METHODS`, or all.
      steps: updates of every run.
      devices: number of devices to simulate on a CPU; 0 means all existing devices.
    """

    methods: tuple[str, ...] = ("sum_tasks", "mgda_ub", "mgda", "aligned_mtl")
    steps: int = 50
    devices: int = 0


@dataclasses.dataclass(frozen=True)
class Outcome:
    """The result of one method with one placement of parameters and batch.

    Attributes:
      losses: `[steps, tasks]`.
      held: bytes of parameters and optimizer state on a device.
      communicated: maps each kind of collective to its bytes in a step.
    """

    losses: np.ndarray
    held: int
    communicated: dict[str, int]


def main(argv: Sequence[str]) -> None:
    """Runs the experiment.

    Args:
      argv: the options, see `DESCRIPTION`.

    Raises:
      UsageError: if an option or the output folder is wrong.
    """
    names = {"methods": methods_for(len(TASKS))}
    settings = parse(NAME, DESCRIPTION, Settings(), argv, names=names)
    if settings.devices:
        simulate(settings.devices)
    settings = dataclasses.replace(settings, devices=jax.device_count())
    with RunFolder(settings) as folder:
        outcomes = run_methods(settings)
        command = command_line(NAME, argv)
        report = make_report(outcomes, settings, command)
        folder.write_results(
            settings,
            report,
            command=command,
            methods={
                method: {
                    placement: {
                        "final_losses": outcome.losses[-1].tolist(),
                        "distance": distance(outcome, runs[PLACEMENTS[0]]),
                        "held": outcome.held,
                        "communicated": outcome.communicated,
                    }
                    for placement, outcome in runs.items()
                }
                for method, runs in outcomes.items()
            },
        )


def run_methods(settings: Settings) -> dict[str, dict[str, Outcome]]:
    """Trains every method with every placement."""
    outcomes: dict[str, dict[str, Outcome]] = {}
    with tqdm(total=len(settings.methods) * len(PLACEMENTS), unit="run") as bar:
        for method in settings.methods:
            outcomes[method] = {}
            for placement in PLACEMENTS:
                bar.set_description(f"{method}, {placement}")
                outcomes[method][placement] = train(method, placement, settings)
                bar.update()
    return outcomes


def simulate(num_devices: int) -> None:
    """Simulates this many CPU devices, if JAX has not counted its devices yet.

    Raises: UsageError: if JAX has already found another number of devices.
    """
    try:
        jax.config.update("jax_num_cpu_devices", num_devices)
        jax.config.update("jax_platforms", "cpu")
    except RuntimeError:
        if jax.device_count() != num_devices:
            raise UsageError(
                f"--devices must be {jax.device_count()} in a process that has "
                f"computed already, got {num_devices}. Start a new process."
            ) from None


def init_params() -> dict[str, Any]:
    """Returns the parameters."""
    rng = np.random.default_rng(0)

    def normal(*shape: int) -> np.ndarray:
        return rng.normal(size=shape).astype(np.float32) / np.float32(shape[0] ** 0.5)

    trunk = {"first": normal(INPUTS, WIDTH), "second": normal(WIDTH, WIDTH)}
    return {"trunk": trunk, **{task: normal(WIDTH) for task in TASKS}}


def make_batches(settings: Settings) -> tuple[np.ndarray, np.ndarray]:
    """Returns inputs `[steps, batch, ...]` and targets `[steps, batch, tasks]`."""
    rng = np.random.default_rng(1)
    batch = PER_DEVICE * settings.devices
    x = rng.normal(size=(settings.steps, batch, INPUTS)).astype(np.float32)
    targets = (np.sin(2 * x[..., :4]).sum(-1), 3 * x[..., 2] * x[..., 3])
    return x, np.stack(targets, axis=-1)


def parameter_spec(leaf: np.ndarray, num_devices: int) -> PartitionSpec:
    """Returns the spec that shards a leaf's last axis, if its size is divisible."""
    if leaf.shape[-1] % num_devices:
        return PartitionSpec()
    return PartitionSpec(*[None] * (leaf.ndim - 1), _AXIS)


def train(method: str, placement: str, settings: Settings) -> Outcome:
    """Trains once.

    Args:
      method: a name in `mtlopt.METHODS`.
      placement: one of `PLACEMENTS`.
      settings: the settings of the run.
    """
    used = 1 if placement == "one device" else settings.devices
    mesh = jax.make_mesh(
        (used,), (_AXIS,), axis_types=(AxisType.Auto,), devices=jax.devices()[:used]
    )
    by_batch = NamedSharding(mesh, PartitionSpec(_AXIS))

    def param_sharding(leaf: np.ndarray) -> NamedSharding:
        spec = parameter_spec(leaf, used) if placement == "fully sharded" else ()
        return NamedSharding(mesh, PartitionSpec(*spec))

    shardings = jax.tree.map(param_sharding, init_params())
    params = jax.device_put(init_params(), shardings)
    tx = optax.chain(
        mtlopt.METHODS[method].make(len(TASKS), labels=LABELS), optax.adam(1e-3)
    )
    opt_state = _on_mesh(tx.init(params), mesh)
    oracle = make_oracle(by_batch)

    def step(params: Any, opt_state: Any, x: jax.Array, y: jax.Array) -> Any:
        grads = oracle(params, x, y)
        updates, opt_state = tx.update(grads, opt_state, params)
        return optax.apply_updates(params, updates), opt_state, grads.losses

    state_shardings = jax.tree.map(lambda leaf: leaf.sharding, opt_state)
    jitted = jax.jit(step, out_shardings=(shardings, state_shardings, None))
    batches = [
        jax.device_put(batch, by_batch)
        for batch in zip(*make_batches(settings), strict=True)
    ]
    compiled = jitted.lower(params, opt_state, *batches[0]).compile()
    losses = []
    for batch in batches:
        params, opt_state, values = compiled(params, opt_state, *batch)
        losses.append(np.asarray(values))
    leaves = jax.tree.leaves((params, opt_state))
    held = sum(
        leaf.addressable_shards[0].data.nbytes
        for leaf in leaves
        if not jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
    )
    return Outcome(np.stack(losses), held, communicated(compiled.as_text() or ""))


def _on_mesh(state: Any, mesh: Mesh) -> Any:
    """Replicates leaves that are not on the mesh: numbers and weights, not moments."""
    everywhere = NamedSharding(mesh, PartitionSpec())

    def place(leaf: jax.Array) -> jax.Array:
        placed = isinstance(leaf.sharding, NamedSharding)
        return leaf if placed else jax.device_put(leaf, everywhere)

    return jax.tree.map(place, state)


def make_oracle(by_batch: NamedSharding) -> mtlopt.Oracle:
    """Returns the oracle, with activations that stay sharded by batch.

    Args:
      by_batch: the sharding of the batch. Without this sharding, XLA may move
        activations instead of gathering parameters.
    """

    def encode(params: Any, x: jax.Array, y: jax.Array) -> jax.Array:
        del y
        for leaf in (params["trunk"]["first"], params["trunk"]["second"]):
            x = jax.lax.with_sharding_constraint(jnp.tanh(x @ leaf), by_batch)
        return x

    def make_loss(index: int) -> Any:
        def loss(params: Any, z: jax.Array, x: jax.Array, y: jax.Array) -> jax.Array:
            del x
            return jnp.mean((z @ params[TASKS[index]] - y[:, index]) ** 2)

        return loss

    losses = {task: make_loss(index) for index, task in enumerate(TASKS)}
    return mtlopt.task_grad(losses, LABELS, encode=encode)


def communicated(text: str) -> dict[str, int]:
    """Returns the bytes that each kind of collective returns in a compiled program.

    A collective in a loop counts once.

    Args:
      text: the program, as returned by `compiled.as_text()`.

    Examples:
      >>> text = "%a = (f32[4,2]{1,0}, bf16[3]{0}) all-reduce(%b, %c), channel_id=1"
      >>> communicated(text)
      {'all-reduce': 38, 'all-gather': 0, 'reduce-scatter': 0}
    """
    totals = {}
    for kind in COLLECTIVES:
        # For an asynchronous collective, read the second half: the first repeats its
        # operands.
        results = re.findall(rf"= (.*?) {kind}(?:-done)?\(", text)
        arrays = re.findall(r"\b[a-z]+?(\d+)\w*\[([\d,]*)\]", " ".join(results))
        totals[kind] = sum(
            int(bits) * math.prod(int(size) for size in shape.split(",") if size) // 8
            for bits, shape in arrays
        )
    return totals


def distance(outcome: Outcome, reference: Outcome) -> float:
    """Returns the largest relative difference of the losses over all steps."""
    return float(np.max(np.abs(outcome.losses / reference.losses - 1)))


def make_report(
    outcomes: dict[str, dict[str, Outcome]], settings: Settings, command: str
) -> str:
    """Returns the table as Markdown."""
    kinds = [f"{kind} [KiB]" for kind in COLLECTIVES]
    header = ["method", "placement", *TASKS, "from one device", "held [KiB]", *kinds]
    rows = []
    for method, runs in outcomes.items():
        for placement, outcome in runs.items():
            numbers = [f"{loss:.4f}" for loss in outcome.losses[-1]]
            numbers.append(f"{distance(outcome, runs[PLACEMENTS[0]]):.0e}")
            sizes = [outcome.held, *outcome.communicated.values()]
            numbers += [f"{size / 1024:.1f}" for size in sizes]
            rows.append([mtlopt.METHODS[method].title, placement, *numbers])
    return "\n\n".join(
        [
            "# Several devices",
            f"`{command}`",
            f"{settings.devices} devices ({jax.devices()[0].device_kind}), "
            f"{settings.steps} steps of Adam. The table has the losses of the last "
            "step, and their largest relative distance from the losses on one device, "
            "over all steps. It also has the bytes of the parameters and the optimizer "
            "state on a device, and the bytes that the collectives of a step return to "
            "a device.",
            markdown_table(header, rows),
        ]
    )
