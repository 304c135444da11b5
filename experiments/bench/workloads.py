"""The problems and training steps that the benchmarks measure."""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any, cast

import jax
import jax.numpy as jnp
import optax
from flax import nnx

import mtlopt
from mtlopt.models import MLP, Bert, LeNet, MultiTaskMLP, resnet

PyTree = Any
_ADAM = optax.adam(1e-3)
UNROLLED_TASKS = 8  # up to this number, the library makes no loop on CPU
REUSED_STEPS = 10  # steps for which `reused_step` keeps weights
Step = Callable[..., tuple[PyTree, Any, Any]]  # step(params, state, *args)


@dataclasses.dataclass(frozen=True)
class Workload:
    """A problem to optimise.

    Attributes:
      name: what the table calls it.
      oracle: the function that returns losses and task gradients.
      params: parameters.
      args: arguments of the oracle.
      total: `total(params, *args)`, the summed loss, written by hand.
      rows: `rows(params, *args)`, which returns losses, a list of T gradients of the
        shared leaves, and gradients of the heads, written by hand for speed.
      optimizer: the optimizer of all parameters.
      unrolls: whether it is worth compiling a program with T unrolled backward passes,
        for the hand-written step and for XLA's counts.
    """

    name: str
    oracle: mtlopt.Oracle
    params: PyTree
    args: tuple[Any, ...]
    total: Callable[..., jax.Array]
    rows: Callable[..., Any]
    optimizer: optax.GradientTransformation = _ADAM
    unrolls: bool = True


def lenet(batch_size: int = 256) -> Workload:
    """LeNet with two heads, as in Table 7 of the Aligned-MTL paper."""
    model = LeNet(rngs=nnx.Rngs(0))
    image_key, label_key = jax.random.split(jax.random.key(0))
    images = jax.random.normal(image_key, (batch_size, 28, 28, 1))
    labels = jax.random.randint(label_key, (batch_size, 2), 0, 10)

    def loss(task: int, logits: jax.Array) -> jax.Array:
        return _cross_entropy(logits, labels[:, task])

    return _branched("LeNet, T = 2", model, (images,), loss)


def synthetic_mlp(batch_size: int = 256) -> Workload:
    """The network of ATE-SG's synthetic problem (its Table 1), with SGD."""
    model = MultiTaskMLP(rngs=nnx.Rngs(0))
    points = jax.random.normal(jax.random.key(0), (batch_size, 2))
    quadrants = 2 * (points[:, 0] > 0) + (points[:, 1] > 0)
    inside = jnp.sum(points**2, axis=1) < 1

    def loss(task: int, logits: jax.Array) -> jax.Array:
        if task == 0:
            return _cross_entropy(logits, quadrants)
        return jnp.mean(optax.sigmoid_binary_cross_entropy(logits[:, 0], inside))

    workload = _branched("synthetic MLP, T = 2", model, (points,), loss)
    return dataclasses.replace(workload, optimizer=optax.sgd(1e-2))


def transformer(batch_size: int = 16) -> Workload:
    """BERT with four layers of 256 on 64 tokens, and three heads of two layers."""
    heads = dict.fromkeys("abc", (256, 1))
    model = Bert(
        heads,
        num_layers=4,
        hidden_size=256,
        num_heads=4,
        vocabulary_size=1000,
        max_length=64,
        pooling="mean",
        rngs=nnx.Rngs(0),
    )
    token_key, target_key = jax.random.split(jax.random.key(0))
    tokens = jax.random.randint(token_key, (batch_size, 64), 0, 1000)
    targets = jax.random.normal(target_key, (batch_size, 3))

    def loss(task: int, outputs: jax.Array) -> jax.Array:
        return jnp.mean((outputs[:, 0] - targets[:, task]) ** 2)

    return _branched("transformer, T = 3", model, (tokens,), loss)


def _split(model: nnx.Module) -> tuple[PyTree, Callable[[PyTree], Any]]:
    """Splits a module into parameters and a function back, with fixed statistics."""
    graph, params, rest = nnx.split(model, nnx.Param, ...)
    rest = nnx.as_pure(rest)
    return nnx.to_pure_dict(params), lambda params: nnx.merge(graph, params, rest)


def _branched(
    name: str,
    model: Any,
    inputs: tuple[jax.Array, ...],
    loss: Callable[[int, jax.Array], jax.Array],
) -> Workload:
    """A model of `mtlopt.models` with a head for each task.

    `loss(task, outputs)` closes over the labels.
    """
    params, merge = _split(model)
    tasks = tuple(model.heads)

    def encode(params: PyTree, *inputs: jax.Array) -> jax.Array:
        return merge(params).encode(*inputs)

    def one(task: int, params: PyTree, z: PyTree, *_: jax.Array) -> jax.Array:
        return loss(task, merge(params).heads[tasks[task]](z))

    def losses(params: PyTree, copies: Sequence[PyTree]) -> jax.Array:
        return jnp.stack([one(i, params, z) for i, z in enumerate(copies)])

    def total(params: PyTree, *inputs: jax.Array) -> jax.Array:
        return jnp.sum(losses(params, [encode(params, *inputs)] * len(tasks)))

    def rows(params: PyTree, *inputs: jax.Array) -> Any:
        encoder, others = params["encoder"], params["heads"]

        def head_losses(others: PyTree, copies: list[PyTree]) -> Any:
            each = losses({"heads": others, "encoder": encoder}, copies)
            return jnp.sum(each), each

        z, pull = jax.vjp(lambda e: encode({**params, "encoder": e}, *inputs), encoder)
        (grads, cotangents), each = jax.grad(head_losses, (0, 1), has_aux=True)(
            others, [z] * len(tasks)
        )
        return each, [pull(one)[0] for one in cotangents], {"heads": grads}

    oracle = mtlopt.task_grad(
        {task: functools.partial(one, i) for i, task in enumerate(tasks)},
        {"encoder": "shared", **{f"heads/{task}": task for task in tasks}},
        encode=encode,
    )
    return Workload(name, oracle, params, inputs, total, rows)


def stacked_lenet(num_tasks: int = 40, batch_size: int = 256) -> Workload:
    """LeNet's encoder with stacked binary heads."""
    encoder, merge = _split(LeNet(rngs=nnx.Rngs(0)).encoder)
    images = jax.random.normal(jax.random.key(0), (batch_size, 28, 28, 1))
    return _stacked(
        f"LeNet, T = {num_tasks} stacked",
        {"encoder": encoder},
        lambda params, images: merge(params["encoder"])(images),
        images,
        50,
        num_tasks,
    )


def stacked_mlp(
    num_tasks: int = 40, batch_size: int = 256, width: int = 1408
) -> Workload:
    """An MLP encoder with stacked binary heads; two million parameters by default.

    The Gramian of T latent rows of size w adds `T^2 w / (3 P)` to the cost of a step of
    a dense network with P parameters, which is 1.2 % here.
    """
    keys = jax.random.split(jax.random.key(0), 4)
    sizes = (128, width, width, 50)
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


def wide_mlp(num_tasks: int = 40, batch_size: int = 256) -> Workload:
    """Four layers of 512 with stacked binary heads."""
    trunk = MLP([128, *[512] * 4], activate_last=True, rngs=nnx.Rngs(0))
    graph, state = nnx.split(trunk)
    return _stacked(
        f"MLP of 512, T = {num_tasks} stacked, batch {batch_size}",
        {"encoder": nnx.to_pure_dict(state)},
        lambda params, x: nnx.merge(graph, nnx.State(params["encoder"]))(x),
        jax.random.normal(jax.random.key(0), (batch_size, 128)),
        512,
        num_tasks,
    )


def resnet18(num_tasks: int = 40, batch_size: int = 16) -> Workload:
    """ResNet-18 of width 16 on images of 32 x 32, with stacked binary heads."""
    model = resnet(18, {"unused": (1,)}, width=16, small_images=True, rngs=nnx.Rngs(0))
    encoder, merge = _split(model.encoder)
    workload = _stacked(
        f"ResNet-18, T = {num_tasks} stacked",
        {"encoder": encoder},
        lambda params, images: merge(params["encoder"])(images),
        jax.random.normal(jax.random.key(0), (batch_size, 32, 32, 3)),
        128,
        num_tasks,
    )
    return dataclasses.replace(workload, unrolls=num_tasks <= UNROLLED_TASKS)


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
    """Returns a step on the summed loss, without the library."""
    optimizer = workload.optimizer

    def step(params: PyTree, state: Any, *args: Any) -> Any:
        loss, grads = jax.value_and_grad(workload.total)(params, *args)
        updates, state = optimizer.update(grads, state, params)
        return optax.apply_updates(params, updates), state, loss

    return step, optimizer.init(workload.params)


def floor_step(workload: Workload) -> tuple[Step, Any]:
    """Returns the step that every parameter-space method needs, without the library.

    The step makes one forward pass, one backward pass of the heads and T of the
    encoder. It computes the Gramian of the rows, and combines the rows with weights
    that depend on the Gramian.
    """
    optimizer = workload.optimizer

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


def with_options(workload: Workload, **options: Any) -> Workload:
    """Returns the workload with other options of `mtlopt.task_grad`."""
    oracle = workload.oracle
    problem = cast(Any, oracle.problem)
    changed = dataclasses.replace(problem.options, **options)
    problem = dataclasses.replace(problem, options=changed)
    return dataclasses.replace(
        workload, oracle=dataclasses.replace(oracle, problem=problem)
    )


def method_step(workload: Workload, name: str) -> tuple[Step, Any]:
    """Returns a step with one of the library's methods."""
    oracle = workload.oracle
    method = mtlopt.METHODS[name].make(oracle.num_tasks, labels=oracle.labels)
    return transform_step(workload, method)


def transform_step(
    workload: Workload, method: optax.GradientTransformation
) -> tuple[Step, Any]:
    """Returns a step with a chain that ends in an aggregator."""
    optimizer = optax.chain(method, workload.optimizer)

    def step(params: PyTree, state: Any, *args: Any) -> Any:
        grads = workload.oracle(params, *args)
        updates, state = optimizer.update(grads, state, params)
        return optax.apply_updates(params, updates), state, grads.losses

    return step, optimizer.init(workload.params)


def product_step(workload: Workload) -> tuple[Step, Any]:
    """Returns a step that multiplies the Gramian by a vector, and makes no update."""

    def step(params: PyTree, state: Any, *args: Any) -> Any:
        rows = workload.oracle(params, *args).rows()
        return params, state, rows.product(jnp.ones(workload.oracle.num_tasks))

    return step, ()


def reused_step(workload: Workload, name: str) -> tuple[Step, Any]:
    """Returns a step of a method whose weights are computed on each tenth step."""
    oracle = workload.oracle
    method = mtlopt.METHODS[name].make(oracle.num_tasks, labels=oracle.labels)
    return transform_step(workload, mtlopt.every(REUSED_STEPS, method))


WORKLOADS: dict[str, Callable[[], Workload]] = {
    "lenet": lenet,
    "synthetic_mlp": synthetic_mlp,
    "wide_mlp": wide_mlp,
    "wide_mlp_64": functools.partial(wide_mlp, batch_size=64),
    "wide_mlp_16": functools.partial(wide_mlp, batch_size=16),
    "wide_mlp_pair": functools.partial(wide_mlp, num_tasks=2),
    "transformer": transformer,
    "resnet18": resnet18,
    "stacked_lenet": stacked_lenet,
    "stacked_mlp": stacked_mlp,
}
