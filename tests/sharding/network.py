"""A network with four tasks, and where its leaves lie on several devices."""

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import mtlopt

TASKS = ("a", "b", "c", "d")  # as many as Krum needs
LABELS = {"encoder": "shared", **{f"heads/{task}": task for task in TASKS}}
BIAS_FROZEN = {**LABELS, "encoder/bias": "frozen"}
STEPS, BATCH, INPUTS, WIDTH, LATENT = 2, 32, 16, 24, 40  # no two sizes alike
AXIS = "devices"
# One leaf is sharded along its last axis: to flatten its rows would gather them.
ENCODER_SPECS = {
    "first": PartitionSpec(AXIS, None),
    "bias": PartitionSpec(AXIS),
    "second": PartitionSpec(None, AXIS),
}


def make_params(seed=0):
    rng = np.random.default_rng(seed)

    def normal(*shape):
        return np.float32(rng.normal(size=shape) / np.sqrt(shape[0]))

    return {
        "encoder": {
            "first": normal(INPUTS, WIDTH),
            "bias": normal(WIDTH),
            "second": normal(WIDTH, LATENT),
        },
        "heads": {task: normal(LATENT) for task in TASKS},
    }


def make_batches(seed=1):
    """`STEPS` batches `(x, y)`."""
    rng = np.random.default_rng(seed)
    x = np.float32(rng.normal(size=(STEPS, BATCH, INPUTS)))
    y = np.float32(rng.normal(size=(STEPS, BATCH, len(TASKS))) * [1.0, 3.0, 0.5, 1.0])
    return list(zip(x, y, strict=True))


def make_oracle(
    constrain=lambda array: array,
    whole=lambda leaf: leaf,
    reduce=lambda loss: loss,
    labels=LABELS,
    **options,
):
    """Returns the oracle.

    Args:
      constrain: applied to the activations.
      whole: applied to the encoder's leaves before they are used.
      reduce: applied to the losses.
      labels: who owns which leaf.
      **options: of `task_grad`.
    """

    def encode(params, batch):
        leaves = jax.tree.map(whole, params["encoder"])
        z = constrain(jnp.tanh(batch[0] @ leaves["first"] + leaves["bias"]))
        return constrain(jnp.tanh(z @ leaves["second"]))

    def make_loss(task):
        index = TASKS.index(task)
        return lambda params, z, batch: reduce(
            jnp.mean((z @ params["heads"][task] - batch[1][:, index]) ** 2)
        )

    losses = {task: make_loss(task) for task in TASKS}
    return mtlopt.task_grad(losses, labels, encode=encode, **options)


def make_mesh(axis_type=AxisType.Auto):
    return jax.make_mesh((jax.device_count(),), (AXIS,), axis_types=(axis_type,))


def replicated(mesh):
    return NamedSharding(mesh, PartitionSpec())


def by_batch(mesh):
    return NamedSharding(mesh, PartitionSpec(AXIS))


def param_shardings(mesh, *, fully):
    """Shardings of the parameters: the encoder's along one axis each, or none."""
    if not fully:
        return jax.tree.map(lambda _: replicated(mesh), make_params())
    encoder = {name: NamedSharding(mesh, spec) for name, spec in ENCODER_SPECS.items()}
    return {"encoder": encoder, "heads": {task: replicated(mesh) for task in TASKS}}
