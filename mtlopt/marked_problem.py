"""One function of all losses, whose latent may be marked: see `mtlopt.latent`."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax

from mtlopt.cut import NOTHING, Cut, Plan, trace
from mtlopt.heads import Inputs, SeparateHeadFns
from mtlopt.labels import FROZEN, SHARED
from mtlopt.linearization import PullbackLinearization, RowOptions
from mtlopt.problems import (
    NO_LATENT,
    Aux,
    Evaluation,
    HeadEvaluation,
    HeadProblem,
    Reads,
)
from mtlopt.vector_problem import VectorProblem

PyTree = Any


@dataclasses.dataclass(frozen=True, eq=False)
class MarkedProblem:
    """Losses of one function, which may mark a latent.

    The problem is a `HeadProblem` if the function marks a latent, and a `VectorProblem`
    otherwise. Each call looks for a mark in the program again.
    """

    function: Callable[..., Any]
    tasks: tuple[str, ...]
    has_aux: bool
    options: RowOptions
    has_latent = True  # possibly: without a mark `latent` returns None
    stacked = False
    takes_traced_task = True
    label_counts = None

    def present(self, args: tuple[Any, ...]) -> None:
        del args

    def losses(
        self, inputs: Inputs, z: PyTree = None, members: Any = None
    ) -> jax.Array:
        cut, whole = self._form(inputs, members)
        if cut is None:
            _check_no_latent(z)
            return whole.losses(inputs, z, members)
        return self._heads(cut, NOTHING).losses(inputs, z, members)

    def evaluate(
        self, inputs: Inputs, factors: Any, members: Any
    ) -> Evaluation[PullbackLinearization]:
        cut, whole = self._form(inputs, members)
        if cut is None:
            return whole.evaluate(inputs, factors, members)
        plan = cut.plan(range(len(self.tasks)) if members is None else members)
        out = self._heads(cut, plan).evaluate(inputs, factors, members)
        return out._replace(aux=self._aux(cut, plan, inputs, out.z, out.aux))

    def heads_at(self, inputs: Inputs, z: PyTree) -> HeadEvaluation:
        cut, _ = self._form(inputs)
        if cut is None:
            raise ValueError(NO_LATENT)
        shared = [label == SHARED for label in inputs.partition.labels]
        plan = cut.plan(range(len(self.tasks)), given_latent=shared)
        out = self._heads(cut, plan).heads_at(inputs, z)
        return out._replace(aux=self._aux(cut, plan, inputs, z, out.aux))

    def latent(self, inputs: Inputs) -> PyTree:
        cut, _ = self._form(inputs)
        if cut is None:
            return None
        return self._heads(cut, NOTHING).latent(inputs)

    def reads(
        self,
        params: PyTree,
        stacked: list[bool] | None,
        args: Any,
        z: PyTree = None,
        members: Any = None,
    ) -> Reads:
        still = [False] * len(jax.tree.leaves(params))
        cut, whole = self._at(params, args, still, members)
        if cut is None:
            _check_no_latent(z)
            return whole.reads(params, stacked, args, z, members)
        return self._heads(cut, NOTHING).reads(params, stacked, args, z, members)

    def _form(
        self, inputs: Inputs, members: Any = None
    ) -> tuple[Cut | None, VectorProblem]:
        labels = inputs.partition.labels
        params = inputs.params(inputs.shared, inputs.head_params)
        return self._at(
            params, inputs.args, [label == FROZEN for label in labels], members
        )

    def _at(
        self, params: PyTree, args: tuple[Any, ...], still: list[bool], members: Any
    ) -> tuple[Cut | None, VectorProblem]:
        """Returns the cut program, None if there is no cut, and the uncut problem."""
        form = VectorProblem(self.function, self.tasks, self.has_aux, self.options)
        traced = trace(lambda params: form.values(params, args), params)

        def run(params: PyTree, *args: Any) -> Any:
            del args  # the program holds them as constants
            out = traced.run(params)
            return out if self.has_aux else out[0]

        whole = dataclasses.replace(form, function=run)
        # If the index of a task is traced, no head can be chosen: all heads run.
        known = members is None or all(isinstance(i, int) for i in members)
        if not known or not traced.is_marked():
            return None, whole
        return Cut(traced, len(self.tasks), params, still), whole

    def _heads(self, cut: Cut, plan: Plan) -> HeadProblem:
        """Returns the problem with the encoder and the heads of the cut program."""

        def encode(params: PyTree, *args: Any) -> tuple[PyTree, Any]:
            del args  # the program holds them as constants
            return cut.encode(params, plan.encoder)

        def head(index: int, params: PyTree, z: PyTree, *args: Any) -> Any:
            del args
            return cut.head(index, params, z, plan.heads.get(index, []))

        heads = _by_task(self.tasks, head)
        return HeadProblem(_Encoder(encode), SeparateHeadFns(heads), True, self.options)

    def _aux(
        self, cut: Cut, plan: Plan, inputs: Inputs, z: PyTree, handed: Aux
    ) -> Aux | None:
        params = inputs.params(inputs.shared, inputs.head_params)
        encoder, heads = handed.encode or [], list(handed.tasks.values())
        beside = cut.beside(plan, params, z, encoder, heads)
        return Aux(beside, None) if self.has_aux else None


def cut_apart(
    function: Callable[..., Any], tasks: tuple[str, ...]
) -> tuple[Callable[..., Any], dict[str, Callable[..., Any]]]:
    """Splits a function that returns all losses into an encoder and a loss per task.

    The encoder and the losses trace the function again at each call, so you can vmap
    them over the arguments.
    """
    form = VectorProblem(function, tasks, False, RowOptions())

    def cut(params: PyTree, args: tuple[Any, ...]) -> Cut:
        traced = trace(lambda params: form.values(params, args), params)
        if not traced.is_marked():
            raise ValueError(
                "one function of samplewise losses must mark its latent, as in "
                "z = mtlopt.latent(z). Or pass a mapping from task to loss."
            )
        return Cut(traced, len(tasks), params, [False] * len(jax.tree.leaves(params)))

    def encode(params: PyTree, *args: Any) -> PyTree:
        return cut(params, args).encode(params)[0]

    def head(index: int, params: PyTree, z: PyTree, *args: Any) -> jax.Array:
        return cut(params, args).head(index, params, z)[0]

    return _Encoder(encode), _by_task(tasks, head)


@dataclasses.dataclass(frozen=True)
class _Encoder:
    """An encoder that is a part of a function of all losses."""

    run: Callable[..., Any]
    marked = True

    def __call__(self, *args: Any) -> Any:
        return self.run(*args)


def _by_task(
    tasks: tuple[str, ...], head: Callable[..., Any]
) -> dict[str, Callable[..., Any]]:
    return {task: functools.partial(head, i) for i, task in enumerate(tasks)}


def _check_no_latent(z: PyTree) -> None:
    if z is not None:
        raise ValueError(NO_LATENT)
