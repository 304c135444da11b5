"""From a Flax NNX network to the pure functions that multi-task training needs."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Protocol, cast

import jax
import jax.numpy as jnp
from flax import nnx


class MultiTaskModel(Protocol):
    """A network with one encoder and a head for each task."""

    @property
    def heads(self) -> Mapping[str, Any]:
        """For each task a module from the latent representation to its output."""
        ...

    @property
    def encode(self) -> Callable[..., Any]:
        """Maps a batch, and more, to the latent representation that all heads read."""
        ...


class Functional(NamedTuple):
    """A network as parameters and pure functions of them.

    Attributes:
        params: Nested dict of arrays. A path is as in "encoder/conv1/kernel".
        encode: `encode(params, x) -> z`, with the other arguments of the model's
            `encode` if it has any; reads only the encoder's leaves.
        heads: For each task `head(params, z) -> output`; reads only its own leaves.
    """

    params: dict[str, Any]
    encode: Callable[..., Any]
    heads: dict[str, Callable[[Any, Any], jax.Array]]


class FunctionalWithStats(NamedTuple):
    """A network with BatchNorm as parameters, statistics and pure functions of them.

    Attributes:
        params: Nested dict of arrays. A path is as in "encoder/stem/norm/scale".
        stats: The running statistics, such as "encoder/stem/norm/mean".
        encode: `encode(params, stats, x, train=True) -> (z, stats)`. In training mode
            it normalises by the batch and returns `stats` with the encoder's moved, in
            evaluation mode it normalises by `stats` and returns them as they are.
        heads: For each task `head(params, z) -> output`; reads only its own leaves. A
            head with statistics is called as `encode` is, `head(params, stats, z,
            train=True) -> (output, stats["heads"][task])`, and moves its own; call a
            stacked head with the parameters and the statistics of one task.
    """

    params: dict[str, Any]
    stats: dict[str, Any]
    encode: Callable[..., tuple[Any, dict[str, Any]]]
    heads: dict[str, Callable[..., Any]]


def functional(model: MultiTaskModel) -> Functional:
    """Splits a network into a parameter pytree and pure functions of it.

    Args:
        model: A Flax NNX module with `encode` and `heads`, all of whose state is
            `nnx.Param`.

    Returns:
        `Functional(params, encode, heads)`.

    Raises:
        ValueError: If the model has other state. For BatchNorm statistics there is
            `functional_with_stats`.

    Examples:
        >>> import jax.numpy as jnp
        >>> from mtlopt.models import LeNet
        >>> params, encode, heads = functional(LeNet(rngs=nnx.Rngs(0)))
        >>> z = encode(params, jnp.zeros([8, 28, 28, 1]))
        >>> heads["left"](params, z).shape
        (8, 10)
    """
    graphdef, state = nnx.split(model, nnx.Param)

    def merge(params: Any) -> MultiTaskModel:
        return nnx.merge(graphdef, nnx.State(params), copy=True)

    def make_head(task: str) -> Callable[[Any, Any], jax.Array]:
        return lambda params, z: merge(params).heads[task](z)

    return Functional(
        params=nnx.to_pure_dict(state),
        encode=lambda params, *args, **kwargs: merge(params).encode(*args, **kwargs),
        heads={task: make_head(task) for task in model.heads},
    )


def functional_with_stats(model: MultiTaskModel) -> FunctionalWithStats:
    """Splits a network with BatchNorm into parameters, statistics and pure functions.

    The statistics are no parameters: pass them to the oracle as an argument, and take
    the new ones from its aux, the encoder's from `aux.encode`. They move once a step,
    however many tasks there are. Where heads have statistics too, losses return them
    as their aux, and the new ones are `{**aux.encode, "heads": aux.tasks}`.

    Args:
        model: A Flax NNX module with `encode` and `heads`, all of whose state is
            `nnx.Param` and `nnx.BatchStat`.

    Returns:
        `FunctionalWithStats(params, stats, encode, heads)`.

    Raises:
        ValueError: If the model has other state.

    Examples:
        >>> import jax.numpy as jnp
        >>> import mtlopt
        >>> from mtlopt.models import ResNet
        >>> tasks = {"a": (2,), "b": (3,)}
        >>> model = ResNet((1,), tasks, width=2, small_images=True, rngs=nnx.Rngs(0))
        >>> params, stats, encode, heads = functional_with_stats(model)
        >>> def loss(task):
        ...     def one_loss(params, z, x, stats):
        ...         return jnp.mean(heads[task](params, z) ** 2), None
        ...     return one_loss
        >>> oracle = mtlopt.task_grad(
        ...     {"a": loss("a"), "b": loss("b")},
        ...     {"encoder": "shared", "heads/a": "a", "heads/b": "b"},
        ...     encode=lambda params, x, stats: encode(params, stats, x),
        ...     has_aux=True,
        ... )
        >>> @jax.jit
        ... def step(params, stats, x):
        ...     grads = oracle(params, x, stats)
        ...     return grads.losses, grads.aux.encode  # the new statistics
        >>> losses, new_stats = step(params, stats, jnp.ones([2, 8, 8, 3]))
        >>> jax.tree.structure(new_stats) == jax.tree.structure(stats)
        True
        >>> z, _ = jax.jit(encode, static_argnames="train")(
        ...     params, new_stats, jnp.ones([1, 8, 8, 3]), train=False
        ... )
        >>> z.shape
        (1, 2)
    """
    graphdef, state, initial = nnx.split(model, nnx.Param, nnx.BatchStat)
    stats = nnx.to_pure_dict(initial)

    def merge(params: Any, stats: Any) -> MultiTaskModel:
        return nnx.merge(graphdef, nnx.State(params), nnx.State(stats), copy=True)

    def encode(
        params: Any, stats: Any, *args: Any, train: bool = True, **kwargs: Any
    ) -> tuple[Any, dict[str, Any]]:
        model = merge(params, stats)
        return _run(cast(nnx.Module, model), model.encode, train, *args, **kwargs)

    def make_head(task: str) -> Callable[..., Any]:
        def head(params: Any, stats: Any, z: Any, train: bool = True) -> Any:
            module = merge(params, stats).heads[task]
            return _run(module, module, train, z)

        if jax.tree.leaves(nnx.state(model.heads[task], nnx.BatchStat)):
            return head
        # It does not matter with which statistics such a head is built.
        return lambda params, z: merge(params, stats).heads[task](z)

    return FunctionalWithStats(
        params=nnx.to_pure_dict(state),
        stats=stats,
        encode=encode,
        heads={task: make_head(task) for task in model.heads},
    )


def _run(
    module: nnx.Module,
    function: Callable[..., Any],
    train: bool,
    *args: Any,
    **kwargs: Any,
) -> tuple[Any, dict[str, Any]]:
    """Calls a function of a module; returns its output and the module's statistics."""
    module.train() if train else module.eval()
    out = function(*args, **kwargs)
    return out, nnx.to_pure_dict(nnx.state(module, nnx.BatchStat))


def stack_heads(model: Any, name: str = "stacked") -> Any:
    """Returns a network whose like heads are stacked along a leading task axis.

    The form for many tasks: `mtlopt.stacked` runs one program instead of a copy of it
    for each head. The stacked head is one head whose leaves are `[tasks, ...]`, in the
    order of `model.heads`; call it with the leaves of one task, as `mtlopt.stacked`
    does, or under `jax.vmap`.

    Args:
        model: A network whose heads are modules of the same layers and sizes.
        name: The stacked head's name.

    Returns:
        A copy of the network with one head.

    Raises:
        ValueError: If the heads differ in layers or sizes.

    Examples:
        >>> import jax.numpy as jnp
        >>> import mtlopt
        >>> from mtlopt.models import MultiTaskMLP
        >>> model = MultiTaskMLP(2, (8,), {"a": (1,), "b": (1,)}, rngs=nnx.Rngs(0))
        >>> params, encode, heads = functional(stack_heads(model))
        >>> params["heads"]["stacked"]["dense1"]["kernel"].shape
        (2, 8, 1)
        >>> def head(params, z, task, x, targets):
        ...     error = heads["stacked"](params, z)[:, 0] - targets[:, task]
        ...     return jnp.mean(error**2)
        >>> oracle = mtlopt.task_grad(
        ...     mtlopt.stacked(head, 2),
        ...     {"encoder": "shared", "heads": "stacked"},
        ...     encode=lambda params, x, targets: encode(params, x),
        ... )
        >>> oracle(params, jnp.ones([4, 2]), jnp.zeros([4, 2])).losses.shape
        (2,)
    """
    graphdefs, states = zip(*map(nnx.split, model.heads.values()), strict=True)
    shapes = [jax.tree.map(jnp.shape, state) for state in states]
    if any(graphdef != graphdefs[0] for graphdef in graphdefs) or any(
        shape != shapes[0] for shape in shapes
    ):
        raise ValueError(
            "`model` must have heads of the same layers and sizes to stack."
        )
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *states)
    model = nnx.clone(model)
    model.heads = nnx.Dict({name: nnx.merge(graphdefs[0], stacked)})
    return model
