"""The problems and training steps that the benchmarks measure."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx

import mtlopt
from mtlopt.models import LeNet, functional

PyTree = Any
Step = Callable[..., tuple[PyTree, Any, Any]]  # step(params, state, *args)


@dataclasses.dataclass(frozen=True)
class Workload:
    """A problem to step on.

    Attributes:
      name: what the table calls it.
      oracle: its per-task gradients.
      params: parameters.
      args: arguments of the oracle.
      total: `total(params, *args)`, the summed loss, written by hand.
      rows: `rows(params, *args)`, losses, list of T gradients of the shared leaves, and
        gradients of the heads, written by hand as tightly as JAX allows.
    """

    name: str
    oracle: mtlopt.Oracle
    params: PyTree
    args: tuple[Any, ...]
    total: Callable[..., jax.Array]
    rows: Callable[..., Any]


def lenet(batch_size: int = 256) -> Workload:
    """LeNet with two heads, as in Table 7 of the Aligned-MTL paper."""
    params, encode, heads = functional(LeNet(rngs=nnx.Rngs(0)))
    image_key, label_key = jax.random.split(jax.random.key(0))
    images = jax.random.normal(image_key, (batch_size, 28, 28, 1))
    labels = jax.random.randint(label_key, (batch_size, 2), 0, 10)
    tasks = ("left", "right")

    def loss(task: int, params: PyTree, z: jax.Array, labels: jax.Array) -> jax.Array:
        return _cross_entropy(heads[tasks[task]](params, z), labels[:, task])

    def total(params: PyTree, images: jax.Array, labels: jax.Array) -> jax.Array:
        z = encode(params, images)
        return loss(0, params, z, labels) + loss(1, params, z, labels)

    def rows(params: PyTree, images: jax.Array, labels: jax.Array) -> Any:
        encoder, others = params["encoder"], params["heads"]

        def head_losses(others: PyTree, copies: list[jax.Array]) -> Any:
            each = [
                loss(i, {"heads": others, "encoder": encoder}, z, labels)
                for i, z in enumerate(copies)
            ]
            return sum(each), jnp.stack(each)

        z, pull = jax.vjp(lambda e: encode({**params, "encoder": e}, images), encoder)
        (grads, cotangents), losses = jax.grad(head_losses, (0, 1), has_aux=True)(
            others, [z, z]
        )
        return losses, [pull(one)[0] for one in cotangents], {"heads": grads}

    oracle = mtlopt.task_grad(
        {
            "left": lambda params, z, _, labels: loss(0, params, z, labels),
            "right": lambda params, z, _, labels: loss(1, params, z, labels),
        },
        {"encoder": "shared", "heads/left": "left", "heads/right": "right"},
        encode=lambda params, images, _: encode(params, images),
    )
    return Workload("LeNet, T = 2", oracle, params, (images, labels), total, rows)


def stacked_lenet(num_tasks: int = 40, batch_size: int = 256) -> Workload:
    """LeNet's encoder with stacked binary heads."""
    params, encode, _ = functional(LeNet(("unused",), rngs=nnx.Rngs(0)))
    images = jax.random.normal(jax.random.key(0), (batch_size, 28, 28, 1))
    return _stacked(
        f"LeNet, T = {num_tasks} stacked",
        {"encoder": params["encoder"]},
        lambda params, images: encode(params, images),
        images,
        50,
        num_tasks,
    )


def stacked_mlp(num_tasks: int = 40, batch_size: int = 256) -> Workload:
    """An MLP encoder of two million parameters with stacked binary heads.

    The Gramian of T latent rows of size w adds `T^2 w / (3 P)` to a step of a dense
    network of P parameters: 1.2 % here.
    """
    keys = jax.random.split(jax.random.key(0), 4)
    sizes = (128, 1408, 1408, 50)
    encoder = {
        str(i): jax.random.normal(key, (inputs, outputs)) / jnp.sqrt(inputs)
        for i, (key, inputs, outputs) in enumerate(
            zip(keys[1:], sizes[:-1], sizes[1:], strict=True)
        )
    }
    x = jax.random.normal(keys[0], (batch_size, 128))

    def encode(params: PyTree, x: jax.Array) -> jax.Array:
        for i in range(3):
            x = jax.nn.relu(x @ params["encoder"][str(i)])
        return x

    return _stacked(
        f"MLP, T = {num_tasks} stacked",
        {"encoder": encoder},
        encode,
        x,
        sizes[-1],
        num_tasks,
    )


def _stacked(
    name: str,
    encoder: PyTree,
    encode: Callable[..., jax.Array],
    x: jax.Array,
    latent: int,
    num_tasks: int,
) -> Workload:
    key, label_key = jax.random.split(jax.random.key(1))
    heads = {
        "kernel": jax.random.normal(key, (num_tasks, latent)) / jnp.sqrt(latent),
        "bias": jnp.zeros(num_tasks),
    }
    params = {**encoder, "heads": heads}
    labels = jax.random.bernoulli(label_key, 0.5, (len(x), num_tasks)).astype(float)

    def head(
        params: PyTree, z: jax.Array, task: jax.Array, x: jax.Array, labels: jax.Array
    ) -> jax.Array:
        del x
        logits = z @ params["heads"]["kernel"] + params["heads"]["bias"]
        return jnp.mean(optax.sigmoid_binary_cross_entropy(logits, labels[:, task]))

    def head_losses(heads: PyTree, copies: jax.Array, labels: jax.Array) -> jax.Array:
        def one(heads: PyTree, z: jax.Array, labels: jax.Array) -> jax.Array:
            logits = z @ heads["kernel"] + heads["bias"]
            return jnp.mean(optax.sigmoid_binary_cross_entropy(logits, labels))

        axes = (0, 0 if copies.ndim == 3 else None, 1)
        return jax.vmap(one, axes)(heads, copies, labels)

    def total(params: PyTree, x: jax.Array, labels: jax.Array) -> jax.Array:
        return jnp.sum(head_losses(params["heads"], encode(params, x), labels))

    def rows(params: PyTree, x: jax.Array, labels: jax.Array) -> Any:
        z, pull = jax.vjp(
            lambda encoder: encode({**params, "encoder": encoder}, x),
            params["encoder"],
        )
        copies = jnp.broadcast_to(z, (num_tasks, *z.shape))

        def summed(heads: PyTree, copies: jax.Array) -> Any:
            losses = head_losses(heads, copies, labels)
            return jnp.sum(losses), losses

        (grads, cotangents), losses = jax.grad(summed, (0, 1), has_aux=True)(
            params["heads"], copies
        )
        shared = [pull(cotangents[i])[0] for i in range(num_tasks)]
        return losses, shared, {"heads": grads}

    oracle = mtlopt.task_grad(
        mtlopt.stacked(head, num_tasks),
        {"encoder": "shared", "heads": "stacked"},
        encode=lambda params, x, _: encode(params, x),
    )
    return Workload(name, oracle, params, (x, labels), total, rows)


def _cross_entropy(logits: jax.Array, labels: jax.Array) -> jax.Array:
    return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(logits, labels))


def plain_step(workload: Workload) -> tuple[Step, Any]:
    """A step on the summed loss, without the library."""
    optimizer = optax.adam(1e-3)

    def step(params: PyTree, state: Any, *args: Any) -> Any:
        loss, grads = jax.value_and_grad(workload.total)(params, *args)
        updates, state = optimizer.update(grads, state, params)
        return optax.apply_updates(params, updates), state, loss

    return step, optimizer.init(workload.params)


def floor_step(workload: Workload) -> tuple[Step, Any]:
    """A step that any parameter-space method must make, without the library.

    One forward pass, one backward pass of the heads, T of the encoder, the Gramian of
    the rows, and their combination with weights that depend on it.
    """
    optimizer = optax.adam(1e-3)

    def step(params: PyTree, state: Any, *args: Any) -> Any:
        losses, rows, heads = workload.rows(params, *args)
        stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *rows)
        flats = [leaf.reshape(len(rows), -1) for leaf in jax.tree.leaves(stacked)]
        gramian = sum(
            (jnp.matmul(flat, flat.T, precision="highest") for flat in flats),
            jnp.zeros([]),
        )
        weights = 1 / jnp.diagonal(gramian)
        shared = jax.tree.map(
            lambda leaf: jnp.tensordot(weights, leaf, 1, precision="highest"), stacked
        )
        grads = {"encoder": shared, **heads}
        updates, state = optimizer.update(grads, state, params)
        return optax.apply_updates(params, updates), state, losses

    return step, optimizer.init(workload.params)


def unrolled(workload: Workload) -> Workload:
    """The same with one copy of the encoder's pullback per task: no loop."""
    oracle = workload.oracle
    problem: Any = oracle.problem
    problem = dataclasses.replace(problem, batching="unroll")
    return dataclasses.replace(
        workload, oracle=dataclasses.replace(oracle, problem=problem)
    )


def method_step(workload: Workload, name: str) -> tuple[Step, Any]:
    """A step with one of the library's methods."""
    oracle = workload.oracle
    method = mtlopt.METHODS[name].make(oracle.num_tasks, labels=oracle.labels)
    optimizer = optax.chain(method, optax.adam(1e-3))

    def step(params: PyTree, state: Any, *args: Any) -> Any:
        grads = workload.oracle(params, *args)
        updates, state = optimizer.update(grads, state, params)
        return optax.apply_updates(params, updates), state, grads.losses

    return step, optimizer.init(workload.params)
