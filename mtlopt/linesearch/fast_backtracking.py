"""Multi-task backtracking line search in latent space (FBLS)."""

import dataclasses
from typing import Any, Literal

import jax
import jax.numpy as jnp
import optax

from mtlopt._checks import as_transform, check_choice
from mtlopt.labels import SHARED
from mtlopt.latent_leaves import split_latent
from mtlopt.linalg.normalise import safe_divide
from mtlopt.linesearch.armijo import Found, Search
from mtlopt.linesearch.finder import check_direction, check_searchable
from mtlopt.linesearch.safeguard import (
    Direction,
    check_forgets,
    num_tasks_of,
    safeguarded,
)
from mtlopt.linesearch.states import FastLineSearchState, SafeLineSearchState
from mtlopt.linesearch.steps import move, step_update
from mtlopt.partition import Partition
from mtlopt.rows.protocol import Leaves
from mtlopt.slopes import Slopes, slopes
from mtlopt.task_grads import TaskGrads

Armijo = Literal["full", "heads", "latent"]


def fast_backtracking(
    direction: optax.GradientTransformation,
    *,
    armijo: Armijo = "full",
    calibrate: bool = False,
    safeguard: bool = False,
    beta: Any = 0.1,
    shrink: Any = 0.5,
    upper: Any = 1.0,
    floor: Any = 1e-10,
    warm_start: bool = False,
) -> optax.GradientTransformationExtraArgs:
    r"""Searches for a step size on the encoder's output, without rerunning the encoder.

    .. math:: L_t(z - \eta d_z, \theta_t - \eta g_t) \le L_t - \eta \beta |g_t|^2
        - \eta \beta \langle \nabla_z L_t, d_z \rangle
        \quad \forall t, \qquad g_t = \nabla_{\theta_t} L_t

    The direction `d_z` combines the gradients of the latent `z`, the output of the
    encoder. The step size is the first of `upper`, `shrink * upper`, ... that meets
    this condition for every present task. Each trial starts from the same `z` and
    heads. Trials evaluate only the heads, so the encoder runs forward once and backward
    once per step, whatever the number of trials. The encoder's parameters then move by
    `-eta J^T d_z`, where `J` is the Jacobian of `z` with respect to these parameters.

    The method assumes that this step moves `z` by `-eta d_z` (equation 5 of the paper),
    which is true if `J J^T` is the identity. If `J J^T` stretches `d_z`, the encoder
    overshoots: for `z = 2 theta`, losses can rise, and for `z = 10 theta`, losses can
    grow without bound, although every trial passes. `J J^T` also grows with the batch
    size. So if the losses are means over the batch, a trial moves `z` much less than
    the encoder's step does. With `calibrate=True`, the trials move `z` as the encoder's
    step will, to first order:

    .. math:: L_t(z - \eta q, \theta_t - \eta g_t) \le L_t - \eta \beta |g_t|^2
        - \eta \beta \langle \nabla_z L_t, q \rangle, \qquad q = J J^T d_z

    The calibration costs one Jacobian-vector product of the encoder. The condition is
    then the condition of `backtracking` with a linearised encoder. If a step along `q`
    would raise some loss and a step along `d_z` would not, the trials move `z` along
    `d_z` instead, at least as far as the encoder would: `q` becomes
    `d_z |q|^2 / <d_z, q>`.

    With or without `calibrate`, a trial measures how far the losses fall on a latent
    that is moved directly. The step itself may raise a loss, even on the same batch.
    With `safeguard=True`, no step raises a loss: the losses are evaluated at the moved
    parameters, and the step shrinks until no present task's loss is above its value
    before the step. If the direction `J^T d_z` raises a loss to first order, or if no
    step along it passes and lowers a loss, `direction` is applied to the gradients of
    the parameters, as in `backtracking`. The trials then move the latent along `J d`,
    where `d` is the direction found in this way. If no step size passes for this
    direction either, the update is zero.

    The safeguard costs one Jacobian-vector product of the encoder per step, one forward
    pass for the losses before the step, and one forward pass per check. A step that
    falls back to the gradients of the parameters costs one more backward pass per task
    and one more Jacobian-vector product. Memory for these gradients is reserved in
    every step; under `vmap`, these gradients are also computed in every step.

    Failed trials, the floor and absent tasks are handled as in `backtracking`.

    Args:
      direction: an aggregator, or weightings chained with one. MGDA, EDM and UPGrad
        return a descent direction for all tasks. The direction has the shape of the
        latent. Momentum and weight decay need the shape of the parameters, so they
        cannot be chained with it.
      armijo: which decrease each loss must reach: `"full"` for the condition above,
        `"heads"` for the condition without the term of the latent, `"latent"` for the
        condition without the term of the heads.
      calibrate: whether trials move the latent as the encoder's step will. It is False
        by default, because the published method does not calibrate.
      safeguard: whether each step is checked with the losses at the moved parameters.
        It is False by default, because the published method has no safeguard. With a
        safeguard, `direction` needs `task_weights` in its state and must not keep
        gradients from earlier steps. If `calibrate` is also True, fewer checks fail.
      beta: fraction of the first-order decrease that each loss must reach, between 0
        and 1.
      shrink: factor from one trial step size to the next, between 0 and 1.
      upper: the first step size to try; a number, or a schedule of the step count.
      floor: the smallest step size to try.
      warm_start: whether the first trial is the last step size divided by `shrink`, if
        that is below `upper`. In the first step, and after a step without an accepted
        trial, the first trial is `upper` nevertheless.

    Returns:
      A transform from `TaskGrads` to the step. Its `update` needs `params`. Its state
      is a `FastLineSearchState`, or a `SafeLineSearchState` with `safeguard=True`.

    Raises:
      ValueError: if an argument is out of range; at the first update, if the gradients
        come from a problem without `encode` or from several microbatches, if the latent
        is narrower than float32 (rounding would hide what the trials change), or if
        `safeguard` is set and `direction` keeps gradients from earlier steps, as `moco`
        does.

    Examples:
      >>> import jax.numpy as jnp
      >>> import mtlopt
      >>> oracle = mtlopt.task_grad(
      ...     {"a": lambda p, z: (z - 1.0) ** 2, "b": lambda p, z: (z + 1.0) ** 2},
      ...     "shared",
      ...     encode=lambda p: 10 * p["w"],
      ... )
      >>> params = {"w": jnp.array(0.3)}
      >>> for options in ({}, {"calibrate": True}, {"safeguard": True}):
      ...     tx = mtlopt.fast_backtracking(mtlopt.mgda(2), **options)
      ...     updates, state = tx.update(oracle(params), tx.init(params), params)
      ...     z = 10 * (params["w"] + updates["w"])
      ...     print(state.step_size, round(float(z), 4))
      0.5 -197.0
      0.0078125 -0.125
      0.0078125 -0.125

    References:
      Fast line search for multi-task learning, 2021, Algorithm 2 and equations 6 to 8.
      Equations 8 and 9 (9 repeats 6) print the heads' parameters in place of the
      latent. Algorithm 2 moves `z` in place, trial after trial, but every trial must
      start from the same `z`. Algorithm 2 also shrinks the step size before the first
      test, and moves the encoder with the shrunk step size but the heads with the
      previous step size. Here, encoder and heads move with the step size that was
      tried.
    """
    search = Search(beta, shrink, upper, floor, warm_start)
    search.check()
    check_choice("armijo", armijo, ("full", "heads", "latent"))
    finder = as_transform("direction", direction)

    def init_fn(params: Any) -> FastLineSearchState | SafeLineSearchState:
        direction_state = finder.init(params)
        common = search.initial(direction_state)
        if not safeguard:
            return FastLineSearchState(**common, trial_decrease=jnp.zeros([]))
        return SafeLineSearchState(
            **common,
            trial_decrease=jnp.zeros([]),
            decrease=jnp.zeros([]),
            checks=jnp.zeros([], jnp.int32),
            descends=jnp.zeros(num_tasks_of(direction_state), bool),
            fell_back=jnp.array(False),
        )

    def update_fn(
        updates: Any, state: Any, params: Any = None, **extra_args: Any
    ) -> tuple[Any, FastLineSearchState | SafeLineSearchState]:
        grads = check_searchable(updates, params)
        linear = grads.linear
        if not linear.has_latent:
            raise ValueError(
                "`fast_backtracking` needs a latent that all tasks share: build the "
                "gradients with mtlopt.task_grad(..., encode=...), or mark the latent "
                "with mtlopt.latent(z) in your function of all losses. Without a "
                "latent, use `backtracking`."
            )
        at_latent, moves = with_latent_as_parameters(grads)
        moving, rest = split_latent(grads.z, moves)
        _check_wide(moving)
        if safeguard:
            check_forgets(finder, grads, state.direction_state, params, extra_args)
        found: tuple[Leaves, Leaves]
        found, finder_state = finder.update(  # pyright: ignore[reportAssignmentType]
            at_latent, state.direction_state, None, **extra_args
        )
        check_direction(found, at_latent)
        latent, head_grads = found
        shared = grads.in_latent_space().rows().pull(latent)
        pushed = linear.seen(shared)[1] if calibrate or safeguard else latent
        if calibrate:
            latent, slope = _calibrated(at_latent, found, pushed)
        else:
            slope = slopes(at_latent, found)
        direction = Direction(shared, head_grads, latent, slope, finder_state)
        unmoved, head_params, frozen = grads.partition.split(params)
        upper, floor = search.bounds(state)

        def trials(direction: Direction, first: jax.Array) -> Found:
            def evaluate(step: jax.Array) -> jax.Array:
                moved = move(head_params, direction.head_grads, step)
                return grads.losses_at(
                    grads.partition.merge(unmoved, moved, frozen),
                    rest.join(move(moving, direction.latent, step)),
                )

            wanted = _wanted(direction.slope, armijo)
            return search.armijo(evaluate, wanted, first, floor, grads.present)

        if not safeguard:
            first = jnp.where(slope.descends(), search.first(state, upper), 0)
            trial = trials(direction, first)
            state = FastLineSearchState(
                **search.after(state, trial, floor, finder_state),
                trial_decrease=trial.decrease.astype(state.trial_decrease.dtype),
            )
            return step_update(grads, shared, head_grads, state.step_size), state

        def over_parameters() -> Direction:
            found, finder_state = finder.update(
                grads, state.direction_state, params, **extra_args
            )
            shared, head_grads, _ = grads.partition.split(found)
            pushed = linear.seen(shared)[1]
            slope = slopes(at_latent, (pushed, head_grads))
            return Direction(shared, head_grads, pushed, slope, finder_state)

        descends = slopes(at_latent, (pushed, head_grads)).total > 0
        if grads.present is not None:
            descends |= ~grads.present
        return safeguarded(
            search, grads, params, state, trials, direction, descends, over_parameters
        )

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)


def with_latent_as_parameters(grads: TaskGrads) -> tuple[TaskGrads, tuple[bool, ...]]:
    """Returns the same gradients with the latent in place of the shared leaves.

    An update of these gradients is a pair `(latent leaves, heads' leaves)`, whose
    direction is not yet pulled back to the parameters. The second return value
    says for each leaf of `z` whether it is one of the latent leaves.
    """
    linear = grads.in_latent_space().linear.with_latent_as_parameters()
    rows, own = linear.latent_grads, grads.partition
    _, paths, _ = own.split(own.treedef.unflatten(own.paths))
    partition = Partition(
        jax.tree.structure((rows, grads.head_grads)),
        (
            *(f"z/{i}" for i in range(len(rows))),
            *paths,
        ),
        (SHARED,) * len(rows) + tuple(own.head_labels),
        own.tasks,
    )
    at_latent = dataclasses.replace(
        grads, linear=linear, partition=partition, frozen=[]
    )
    return at_latent, linear.moves


def _wanted(slope: Slopes, armijo: Armijo) -> jax.Array:
    if armijo == "heads":
        return slope.of_heads
    return slope.of_shared if armijo == "latent" else slope.total


def _calibrated(
    grads: TaskGrads, found: tuple[Leaves, Leaves], pushed: Leaves
) -> tuple[Leaves, Slopes]:
    """Returns the latent's direction in calibrated trials, and the slopes along it."""
    latent, head_grads = found

    def dot(left: Leaves, right: Leaves) -> jax.Array:
        pairs = zip(left, right, strict=True)
        return sum((jnp.vdot(a, b) for a, b in pairs), start=jnp.zeros([]))

    stretch = safe_divide(dot(pushed, pushed), dot(latent, pushed))
    along = [stretch.astype(leaf.dtype) * leaf for leaf in latent]
    exact = slopes(grads, (pushed, head_grads))
    other = slopes(grads, (along, head_grads))
    descends = exact.descends()
    return jax.tree.map(
        lambda left, right: jnp.where(descends, left, right),
        (pushed, exact),
        (along, other),
    )


def _check_wide(latent: Leaves) -> None:
    for leaf in latent:
        dtype = jnp.result_type(leaf)
        if jnp.finfo(dtype).bits < 32:
            raise ValueError(
                f"the latent must be float32 or wider for `fast_backtracking`, got "
                f"{dtype}: rounding would hide the changes that the trials make. Let "
                "encode return z.astype(jnp.float32)."
            )
