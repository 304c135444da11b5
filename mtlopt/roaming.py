"""Maximum Roaming chooses the units of each layer that a task uses (AAAI 2021)."""

import itertools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from mtlopt._checks import as_int, as_key, check_num_tasks, is_int

PyTree = Any


class MaximumRoamingState(NamedTuple):
    """State of `maximum_roaming`.

    Attributes:
      masks: the units that each task uses, a pytree of bool `[tasks, units]`.
      visited: the units that each task uses or has used, in the same form.
      count: number of steps so far, int32.
      key: PRNG key of the next swap.
    """

    masks: PyTree
    visited: PyTree
    count: jax.Array
    key: jax.Array


class MaximumRoaming(NamedTuple):
    """The result of `maximum_roaming`.

    Attributes:
      init: `init(key=0)` returns the state before training, from a seed or a key.
      update: `update(state)` returns the state after one more training step.
    """

    init: Callable[..., MaximumRoamingState]
    update: Callable[[MaximumRoamingState], MaximumRoamingState]


def maximum_roaming(
    num_tasks: int,
    widths: PyTree,
    sharing_ratio: float,
    num_steps: int,
    *,
    interval: int | None = None,
) -> MaximumRoaming:
    r"""Lets each task use a part of every layer's units, and over time all of them.

    .. math::
        i_- \sim \mathcal{U}(A_t), \quad
        i_+ \sim \mathcal{U}(\{1, \dots, S\} \setminus B_t), \quad
        A_t \leftarrow (A_t \setminus \{i_-\}) \cup \{i_+\}, \quad
        B_t \leftarrow B_t \cup \{i_+\}

    This swap of two units, each drawn uniformly, happens every `Delta` steps, for each
    task `t` and layer. `S` is the layer's number of units, `A_t` is the set of units
    that the task uses, and `B_t` the set that it has used so far. After `S - |A_t|`
    swaps every task has visited every unit, and the masks no longer change.

    A task uses `|A_t| = ceil(p S)` units throughout, for the sharing ratio `p`. The
    units at the start are drawn at random. The first units of all `T` tasks together
    cover the layer if `p T >= 1`, and no two tasks begin with a common unit if
    `T |A_t| <= S`. So `p = 1 / T` gives a partition if `T` divides the width, and
    `p = 1` gives the ordinary network.

    To use roaming, multiply the units (channels) of each hidden layer by the mask of
    the task for which the network runs (see `task_masks`). Masked units then get a
    gradient of exactly zero from that task. Every task has its own latent, so build an
    oracle of losses without `encode` (see `task_grad`).

    Args:
      num_tasks: number of tasks `T`.
      widths: pytree of the number of units `S` of each layer, such as
        `{"dense1": 512, "dense2": 512}`.
      sharing_ratio: `p`, above 0 and at most 1.
      num_steps: the number of training steps, at least `S - |A_t| + 1`. Within these
        steps, every task trains every unit for at least `Delta` steps.
      interval: one `Delta` for all layers. By default each layer has its own
        `Delta`, the longest that `num_steps` allows: `num_steps // (S - |A_t| + 1)`.

    Returns:
      A pair `(init, update)`: `init(key)` makes the first masks. Call `update(state)`
      once after each training step. Both are pure functions that work in `jit`, `vmap`
      (over keys or states) and `scan`.

    Raises:
      ValueError: if an argument is out of its range, or if `update` gets a state for
        other tasks or widths.

    Examples:
      The paper's Figure 1 with two tasks, ten units and `p = 0.6`: each task has
      visited all units after four swaps.

      >>> import jax, mtlopt
      >>> roaming = mtlopt.maximum_roaming(2, {"layer": 10}, 0.6, num_steps=10)
      >>> state, update = roaming.init(0), jax.jit(roaming.update)
      >>> for step in range(1, 9):  # Delta is 10 // (4 + 1) = 2
      ...     state = update(state)
      ...     if step % 2 == 0:
      ...         used, visited = state.masks["layer"], state.visited["layer"]
      ...         print(used.sum(axis=1), visited.sum(axis=1))
      [6 6] [7 7]
      [6 6] [8 8]
      [6 6] [9 9]
      [6 6] [10 10]

    References:
      Pascal, Michiardi, Bost, Huet and Zuluaga, *Maximum roaming multi-task learning*,
      AAAI 2021, https://arxiv.org/abs/2006.09762: the swaps above and Figure 1.

    Note:
      The paper has one `Delta` for all layers, so narrow layers finish early. To use
      one `Delta`, pass `interval`. By default each layer has its own `Delta`, with
      which all layers finish together, as in the authors' later code. The paper draws
      the first masks from a Bernoulli distribution under two constraints: every unit is
      in use, and all tasks use equally many units. The paper does not say how. The
      authors' code rounds `p S` up, as this function does. Their code gives unit `i` to
      task `i mod T` and then adds units at random; here the units are first shuffled.
    """
    check_num_tasks(num_tasks)
    if not 0 < sharing_ratio <= 1:
        raise ValueError(
            f"`sharing_ratio` must be above 0 and at most 1, got {sharing_ratio}."
        )
    _check_widths(widths)
    units, treedef = jax.tree.flatten(widths)
    # Subtract 1e-6, so that the rounding error of the product adds no unit.
    used = [max(1, math.ceil(sharing_ratio * size - 1e-6)) for size in units]
    # The first masks and the masks after each swap are all in use for `interval` steps.
    phases = [size - own + 1 for size, own in zip(units, used, strict=True)]
    if num_steps < max(phases):
        raise ValueError(
            f"`num_steps` must be at least {max(phases)} for every task to visit every "
            f"unit, got {num_steps}."
        )
    longest = num_steps // max(phases)
    if interval is not None and not 1 <= interval <= longest:
        raise ValueError(
            f"`interval` must be between 1 and {longest} for every task to visit every "
            f"unit in {num_steps} steps, got {interval}."
        )
    intervals = [num_steps // n if interval is None else interval for n in phases]
    ends = list(itertools.accumulate(units))

    def noise(key: jax.Array, rows: int) -> list[jax.Array]:
        drawn = jax.random.uniform(key, (rows, ends[-1]), jnp.float32)
        return jnp.split(drawn, ends[:-1], axis=1)  # one draw for all layers

    def init(key: int | jax.Array = 0) -> MaximumRoamingState:
        first, rest = jax.random.split(as_key(key))
        layers = zip(noise(first, 1 + num_tasks), used, strict=True)
        masks = treedef.unflatten(_first_mask(*layer) for layer in layers)
        visited = jax.tree.map(jnp.copy, masks)  # own buffers, to be donated
        return MaximumRoamingState(masks, visited, jnp.zeros([], jnp.int32), rest)

    def update(state: MaximumRoamingState) -> MaximumRoamingState:
        expected = treedef.unflatten((num_tasks, size) for size in units)
        shapes = jax.tree.map(jnp.shape, state.masks)
        if shapes != expected:
            raise ValueError(
                f"`state` must have masks of shapes {expected}, got {shapes}."
            )
        now, rest = jax.random.split(state.key)
        count = jnp.asarray(optax.safe_increment(state.count))
        layers = zip(
            noise(now, num_tasks),
            jax.tree.leaves(state.masks),
            jax.tree.leaves(state.visited),
            [count % steps == 0 for steps in intervals],
            strict=True,
        )
        masks, visited = zip(*(_swap(*layer) for layer in layers), strict=True)
        return MaximumRoamingState(
            treedef.unflatten(masks), treedef.unflatten(visited), count, rest
        )

    return MaximumRoaming(init, update)


def task_masks(masks: PyTree, task: Any) -> PyTree:
    """Returns the masks of one task: for each layer an array `[units]`.

    Args:
      masks: pytree of `[tasks, units]`, the `masks` of a `MaximumRoamingState`.
      task: index of the task; it may be traced, as in stacked heads.

    Raises:
      ValueError: if a Python index is out of range.

    Examples:
      >>> import jax.numpy as jnp
      >>> masks = {"layer": jnp.array([[True, False], [True, True]])}
      >>> task_masks(masks, 0)
      {'layer': Array([ True, False], dtype=bool)}
    """
    num_tasks = len(jax.tree.leaves(masks)[0])
    if is_int(task) and not 0 <= task < num_tasks:
        raise ValueError(f"`task` must be between 0 and {num_tasks - 1}, got {task}.")
    return jax.tree.map(lambda leaf: leaf[task], masks)


def _check_widths(widths: PyTree) -> None:
    leaves = jax.tree_util.tree_leaves_with_path(widths)
    if not leaves:
        raise ValueError(f"`widths` must have at least one layer, got {widths}.")
    for path, size in leaves:
        as_int(f"widths{jax.tree_util.keystr(path)}", size)


def _first_mask(noise: jax.Array, used: int) -> jax.Array:
    """Draws `used` units for each task; if possible, the tasks together use all units.

    The units are dealt out like cards. A task prefers the units dealt to it. It then
    adds others at random, or gives some up at random, until it has `used` units.

    Args:
      noise: `[1 + tasks, units]`, the random numbers that decide which units are drawn.
      used: number of units of each task.
    """
    num_tasks, size = len(noise) - 1, noise.shape[1]
    owner = jax.lax.top_k(noise[0], size)[1] % num_tasks
    dealt = owner == jnp.arange(num_tasks)[:, None]
    preferred = jax.lax.top_k(noise[1:] + dealt, used)[1]
    mask = jnp.zeros((num_tasks, size), bool)
    return jnp.put_along_axis(mask, preferred, True, axis=1, inplace=False)


def _swap(
    noise: jax.Array, masks: jax.Array, visited: jax.Array, due: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Replaces one unit of each task by a unit that the task has never used, if any.

    Args:
      noise: `[tasks, units]`, the random numbers that decide which unit leaves and
        which unit replaces it. Both draws can use the same numbers, because they are
        draws from different units.
      masks: `[tasks, units]`.
      visited: `[tasks, units]`.
      due: whether it is time for a swap.

    Returns:
      The new `masks` and the new `visited`.
    """

    def draw(among: jax.Array) -> jax.Array:
        drawn = jnp.argmax(jnp.where(among, noise, -1), axis=1, keepdims=True)
        return jnp.arange(masks.shape[1]) == drawn

    moved = (masks & ~draw(masks)) | draw(~visited)
    moves = due & ~jnp.all(visited, axis=1, keepdims=True)
    masks = jnp.where(moves, moved, masks)
    return masks, visited | masks
