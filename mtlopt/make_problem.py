"""Chooses the shape of a problem from the form in which its losses are given."""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

from mtlopt._checks import checked
from mtlopt.forms import map_functions
from mtlopt.heads import make_head_fns
from mtlopt.linearization import RowOptions
from mtlopt.marked_problem import MarkedProblem, cut_apart
from mtlopt.model_state import StateForm, StatefulProblem
from mtlopt.problems import HeadProblem, Problem
from mtlopt.sample_problem import SampleProblem
from mtlopt.samples import Samplewise

DEFAULTS = RowOptions()


def make_problem(
    losses: Any,
    encode: Callable[..., Any] | None,
    tasks: Sequence[str] | None,
    has_aux: bool,
    options: RowOptions = DEFAULTS,
    state: StateForm | None = None,
) -> Problem[Any]:
    """Chooses the shape of a problem from the form of its losses: see `task_grad`.

    Args:
      losses: the losses.
      encode: the encoder, if there is one.
      tasks: names of the tasks.
      has_aux: whether functions return aux as their last value.
      options: how rows are made.
      state: how the functions carry state; None if they do not.
    """
    check = functools.partial(
        checked, has_latent=encode is not None, has_state=state is not None
    )
    losses, encode = change_functions(losses, encode, check)
    if state is None:
        return _shape(losses, encode, tasks, has_aux, options)
    losses, encode = change_functions(losses, encode, state.carry)
    return StatefulProblem(_shape(losses, encode, tasks, True, options), state)


def _shape(
    losses: Any,
    encode: Callable[..., Any] | None,
    tasks: Sequence[str] | None,
    has_aux: bool,
    options: RowOptions,
) -> Problem[Any]:
    """Returns the problem of functions that return their state, if any, in aux."""
    if isinstance(losses, Samplewise):
        return _make_sample_problem(losses, encode, tasks, has_aux, options)
    head_fns = make_head_fns(losses, tasks)
    if head_fns is not None:
        if encode is None and options.streaming:
            raise ValueError(
                "`streaming` must be False for losses without `encode`, got True: "
                "without a common latent there is no pullback to run again."
            )
        return HeadProblem(encode, head_fns, has_aux, options)
    if not callable(losses):
        raise TypeError(
            "`losses` must be a mapping from task to function, mtlopt.stacked(...), "
            f"mtlopt.samplewise(...), or a function, got {type(losses).__name__}."
        )
    if encode is not None:
        raise ValueError(
            "`losses` must be a mapping from task to loss, or mtlopt.stacked(...), "
            "when `encode` is given, got one function. Or leave `encode` out and mark "
            "the latent in that function, as in z = mtlopt.latent(z)."
        )
    return MarkedProblem(losses, _names(tasks), has_aux, options)


def change_functions(
    losses: Any,
    encode: Callable[..., Any] | None,
    change: Callable[..., Callable[..., Any]],
) -> tuple[Any, Callable[..., Any] | None]:
    """Returns losses of the same form and an encoder, with each function replaced.

    Args:
      losses: see `task_grad`.
      encode: see `task_grad`.
      change: see `map_functions`.
    """
    if isinstance(losses, Samplewise):
        inner, encode = change_functions(losses.losses, encode, change)
        return dataclasses.replace(losses, losses=inner), encode
    losses = map_functions(losses, change, has_latent=encode is not None)
    return losses, encode and change(encode, "encode")


def _make_sample_problem(
    form: Samplewise,
    encode: Callable[..., Any] | None,
    tasks: Sequence[str] | None,
    has_aux: bool,
    options: RowOptions,
) -> SampleProblem:
    losses = form.losses
    if callable(losses):
        if encode is not None or has_aux:
            raise ValueError(
                "`encode`, `has_aux` and `has_state` must be left out if samplewise "
                "losses are one function: the function marks its latent, and returns "
                "only the losses of a sample."
            )
        encode, losses = cut_apart(losses, _names(tasks))
    head_fns = make_head_fns(losses, tasks)
    assert head_fns is not None  # `samplewise` has checked
    if encode is None and not head_fns.stacked:
        raise ValueError(
            "`encode` must be given for samplewise losses in a mapping, got None: each "
            "loss would run the whole network on all samples. Or write one loss for "
            "all tasks, samplewise(stacked(loss, num_tasks), ...)."
        )
    return SampleProblem(encode, head_fns, form, has_aux, options)


def _names(tasks: Sequence[str] | None) -> tuple[str, ...]:
    """Returns the names of the tasks of one joint function, or raises."""
    if not tasks or isinstance(tasks, str):
        raise ValueError(
            "`tasks` must be a sequence with the names of the tasks when `losses` "
            f"is one function, got {tasks!r}."
        )
    return tuple(tasks)
