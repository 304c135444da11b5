"""One training step: what changes in it, and the step of a chain of transforms."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import optax

from mtlopt.oracle import Oracle

PyTree = Any


class Run(NamedTuple):
    """All that a training step changes: save it, donate it, carry it through a scan.

    Attributes:
      params: parameters.
      opt_state: state of the optimizer, from its `init`.
      state: the model's state, with `task_grad(..., has_state=True)`.
    """

    params: PyTree
    opt_state: PyTree
    state: PyTree = None


class StepOutput(NamedTuple):
    """What a training step tells.

    Attributes:
      losses: `[tasks]`, before the step.
      aux: an `Aux`; None without `has_aux`.
    """

    losses: jax.Array
    aux: Any


def train_step(
    oracle: Oracle, optimizer: optax.GradientTransformation
) -> Callable[..., tuple[Run, StepOutput]]:
    """Builds a training step from an oracle and a chain of transforms.

    The step evaluates the gradients of all tasks, lets the chain make one update of
    them, and moves parameters, optimizer and the model's state. Heads of absent tasks
    stand still if the chain ends with `per_label`, which is told who is present.

    Args:
      oracle: from `task_grad`.
      optimizer: an aggregator, or a chain with one: weightings before it, any Optax
        transforms after it. Or a line search.

    Returns:
      `step(run, *args, present=None, **extra_args) -> (run, output)`, to be jitted, or
      the body of a `lax.scan`. `args` are the arguments of the functions without the
      model's state, `present` is as in `Oracle.__call__`, and `extra_args` are for the
      optimizer.

    Raises:
      ValueError: at a step, if `run.state` is missing or not asked for.

    Examples:
      >>> import jax, jax.numpy as jnp
      >>> import mtlopt, optax
      >>> params = {"trunk": jnp.ones(2), "up": jnp.ones(()), "down": jnp.ones(())}
      >>> oracle = mtlopt.task_grad(
      ...     {
      ...         "up": lambda params, z, x: (params["up"] * z - 1) ** 2,
      ...         "down": lambda params, z, x: (params["down"] * z + 1) ** 2,
      ...     },
      ...     {"trunk": "shared", "up": "up", "down": "down"},
      ...     encode=lambda params, x: params["trunk"] @ x,
      ... )
      >>> optimizer = optax.chain(mtlopt.upgrad(2), optax.sgd(0.05))
      >>> step = jax.jit(mtlopt.train_step(oracle, optimizer))
      >>> run = mtlopt.Run(params, optimizer.init(params))
      >>> for _ in range(100):
      ...     run, output = step(run, jnp.ones(2))
      >>> print(jnp.round(output.losses, 3))
      [0. 0.]
    """
    transform = optax.with_extra_args_support(optimizer)

    def step(
        run: Run, *args: Any, present: Any = None, **extra_args: Any
    ) -> tuple[Run, StepOutput]:
        args = with_state(oracle, args, run.state)
        grads = oracle(run.params, *args, present=present)
        updates, opt_state = transform.update(
            grads,  # pyright: ignore[reportArgumentType]
            run.opt_state,
            run.params,
            active=grads.active,
            **extra_args,
        )
        params = optax.apply_updates(run.params, updates)
        return Run(params, opt_state, grads.state), StepOutput(grads.losses, grads.aux)

    return step


def with_state(oracle: Oracle, args: tuple[Any, ...], state: PyTree) -> tuple[Any, ...]:
    """Returns the arguments of a call, with the model's state if there is one."""
    if oracle.has_state:
        if state is None:
            raise ValueError(
                "`run.state` must be the model's state with has_state=True, got None."
            )
        return *args, state
    if state is not None:
        raise ValueError(
            "`run.state` must be None unless the oracle is built with has_state=True."
        )
    return args
