"""One training step of many networks, each with its own preference."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.core import Tracer

from mtlopt._checks import as_int
from mtlopt.oracle import Oracle
from mtlopt.step import Run, StepOutput, check_oracle, train_step


class FrontStep(NamedTuple):
    """A training step of K networks. Every leaf of `runs` has a leading axis K.

    Attributes:
      init: `init(params, state=None) -> runs`. All networks begin with these parameters
        and, with `has_state=True`, with this state of the model.
      step: `step(runs, *args, present=None, **extra_args) -> (runs, output)`, like the
        step of `train_step`. All networks get the same arguments, such as the batch.
    """

    init: Callable[..., Run]
    step: Callable[..., tuple[Run, StepOutput]]


def front_step(
    oracle: Oracle,
    make_optimizer: Callable[[jax.Array], optax.GradientTransformation],
    preferences: Any,
    chunk_size: int | None = None,
) -> FrontStep:
    """Builds a step that trains one network for each of K preferences.

    The step is `train_step` under `jax.vmap`, in one compiled program. If you write
    this yourself, two mistakes raise no error. First, `jax.vmap` splits every keyword
    argument along its first axis, so it splits `present` by task if the numbers of
    tasks and of preferences are equal. Second, a wrong preference is accepted, because
    traced values are not checked. `front_step` splits only the preferences and the
    runs, and checks the preferences first. Random methods draw the same numbers for all
    networks.

    Args:
      oracle: an oracle from `task_grad`.
      make_optimizer: function that takes one preference `[tasks]` (a tracer) and
        returns the chain for `train_step`. Use any weighting or aggregator that takes a
        preference; `weight_by_fixed` gives a sweep over fixed weights.
      preferences: `[K, tasks]`, not negative.
      chunk_size: number of networks that are computed at once, as `batch_size` of
        `jax.lax.map`; by default all. Smaller chunks need less memory, and may be
        faster on a CPU.

    Returns:
      `init`, and a `step` that you put under `jax.jit` or use as the body of a
      `lax.scan`.

    Raises:
      TypeError: if `oracle` is not an `mtlopt.Oracle`.
      ValueError: if `preferences` has another shape, or a preference is negative, not
        finite, or zero for all tasks; if `chunk_size` is not a positive int.

    Examples:
      >>> import jax, jax.numpy as jnp
      >>> import mtlopt, optax
      >>> losses = lambda x: jnp.stack([(x - 1) ** 2, (x + 1) ** 2])
      >>> oracle = mtlopt.task_grad(losses, "shared", tasks=("a", "b"))
      >>> make_optimizer = lambda preference: optax.chain(
      ...     mtlopt.epo(2, preference), optax.sgd(0.05)
      ... )
      >>> preferences = jnp.array([[1.0, 9.0], [1.0, 1.0], [9.0, 1.0]])
      >>> front = mtlopt.front_step(oracle, make_optimizer, preferences)
      >>> runs, step = front.init(jnp.array(0.3)), jax.jit(front.step)
      >>> for _ in range(50):
      ...     runs, output = step(runs)
      >>> print(jnp.round(runs.params, 1), output.losses.shape)
      [-0.5  0.   0.5] (3, 2)
    """
    check_oracle(oracle)
    if not callable(make_optimizer):
        raise TypeError(
            "`make_optimizer` must be a function from a preference to a chain, got "
            f"{type(make_optimizer).__name__}."
        )
    preferences = _checked(preferences, oracle.num_tasks)
    if chunk_size is not None:
        chunk_size = as_int("chunk_size", chunk_size)

    def init(params: Any, state: Any = None) -> Run:
        def one(preference: jax.Array) -> Run:
            return Run(params, make_optimizer(preference).init(params), state)

        return jax.vmap(one)(preferences)

    def step(
        runs: Run, *args: Any, present: Any = None, **extra_args: Any
    ) -> tuple[Run, StepOutput]:
        def one(network: tuple[jax.Array, Run]) -> tuple[Run, StepOutput]:
            preference, run = network
            of_one = train_step(oracle, make_optimizer(preference))
            return of_one(run, *args, present=present, **extra_args)

        if chunk_size is None:
            return jax.vmap(one)((preferences, runs))
        # A chunk of one has no axis: its products are those of a network alone.
        batch_size = None if chunk_size == 1 else chunk_size
        return jax.lax.map(one, (preferences, runs), batch_size=batch_size)

    return FrontStep(init, step)


def _checked(preferences: Any, num_tasks: int) -> jax.Array:
    array = jnp.asarray(preferences, float)
    if array.ndim != 2 or array.shape[1] != num_tasks or not len(array):
        raise ValueError(
            f"`preferences` must have shape (K, {num_tasks}), one number for each task "
            f"in each row, got shape {array.shape}."
        )
    if not isinstance(array, Tracer) and array.is_fully_addressable:
        known = np.asarray(array)
        good = np.all(np.isfinite(known) & (known >= 0), axis=1) & np.any(known, axis=1)
        if not np.all(good):
            first = int(np.argmin(good))
            raise ValueError(
                f"`preferences[{first}]` must be finite and not negative, with a "
                f"positive entry, got {known[first]}."
            )
    return array
