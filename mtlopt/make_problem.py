"""From the form of a user's losses to the shape of the problem."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from mtlopt.heads import SeparateHeads, Stacked, StackedHeads
from mtlopt.problems import IndependentProblem, LatentProblem, Problem, VectorProblem
from mtlopt.rows import Batching


def make_problem(
    losses: Any,
    encode: Callable[..., Any] | None,
    tasks: Sequence[str] | None,
    has_aux: bool,
    batching: Batching = "auto",
    streaming: bool = False,
) -> Problem:
    """Chooses the shape of a problem from the form of its losses: see `task_grad`."""
    if isinstance(losses, Stacked):
        heads = StackedHeads(losses, tasks)
    elif isinstance(losses, Mapping):
        if not losses:
            raise ValueError("`losses` must name at least one task, got none.")
        for task, function in losses.items():
            if not callable(function):
                raise TypeError(
                    f"`losses[{task!r}]` must be callable, got "
                    f"{type(function).__name__}."
                )
        heads = SeparateHeads(dict(losses))
    elif callable(losses):
        if encode is not None:
            raise ValueError(
                "`losses` must be a mapping from task to loss, or mtlopt.stacked(...), "
                "when `encode` is given, got one function."
            )
        if not tasks or isinstance(tasks, str):
            raise ValueError(
                "`tasks` must be a sequence with the names of the tasks when `losses` "
                f"is one function, got {tasks!r}."
            )
        return VectorProblem(losses, tuple(tasks), has_aux, batching, streaming)
    else:
        raise TypeError(
            "`losses` must be a mapping from task to function, mtlopt.stacked(...), or "
            f"a function, got {type(losses).__name__}."
        )
    if (
        isinstance(losses, Mapping)
        and tasks is not None
        and tuple(tasks) != heads.tasks
    ):
        raise ValueError(
            f"`tasks` must be {heads.tasks} as in `losses`, or left out, got {tasks}."
        )
    if encode is not None:
        return LatentProblem(encode, heads, has_aux, batching, streaming)
    if streaming:
        raise ValueError(
            "`streaming` must be False for losses without `encode`, got True: without "
            "a common latent there is no pullback to run again."
        )
    return IndependentProblem(heads, has_aux)
