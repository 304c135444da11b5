"""The registry's facts about a method, and the transform built from them."""

import dataclasses
import difflib
import inspect
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, NoReturn

import optax

from mtlopt.aggregators.sums import sum_tasks
from mtlopt.labels import Rules
from mtlopt.latent_space import in_latent_space

Transform = optax.GradientTransformation

# Claims about the aggregate A(J) that hold for every Jacobian J, as they are tested. A
# Jacobian is strongly stationary if J^T w is zero for some positive weights w, and
# weakly stationary if it is zero for some weights w that are non-negative and not all
# zero.
CLAIMS = (
    "deterministic",
    "permutation_equivariant",  # the order of the tasks does not matter
    "non_conflicting",  # no task's inner product with A(J) is negative
    "linear_under_scaling",  # A(diag(c) J) is linear in c > 0
    "task_scale_invariant",  # A(diag(c) J) = A(J) for c > 0
    "zero_if_strongly_stationary",
    "zero_if_weakly_stationary",
    "zero_only_if_strongly_stationary",
    "in_span",  # A(J) is a combination of the rows
)


class Length(NamedTuple):
    """Length `factor * T**power` of an update for T tasks.

    Attributes:
      factor: the number that multiplies the power of T.
      power: the exponent of T.
    """

    factor: float = 1.0
    power: float = 0.0

    def __call__(self, num_tasks: int) -> float:
        return self.factor * num_tasks**self.power


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Method:
    """A complete method: the transform between `task_grad` and a base optimizer.

    Attributes:
      title: the name of the method in the literature.
      weighting: function that makes the weighting from the number of tasks and options;
        None if there is no weighting.
      aggregator: function that makes the aggregator from the same arguments.
      options: options whose values define the method.
      needs: mapping from the arguments that depend on the problem to what they need,
        `"labels"` or `"steps_per_epoch"`.
      public: the public names that the method is made of.
      equal: length of the first update for T equal gradients of length 1 and losses of
        1.
      backward: number of backward passes through the encoder per step: `"1"`, `"2"`
        (and a forward derivative) or `"T"`.
      latent: whether the method works in latent space and needs a problem with
        `encode`.
      parameter_space: whether the method works in parameter space only, not in latent
        space.
      min_tasks: the smallest number of tasks; fewer raise a `ValueError`.
      degree: d such that `A(s J) = s^d A(J)` for s > 0, where `A(J)` is the update for
        the Jacobian `J`; None if there is no such d.
      properties: the names in `CLAIMS` of the properties that the update has for every
        Jacobian; all are tested.
    """

    title: str
    weighting: Callable[..., Transform] | None = None
    aggregator: Callable[..., Transform] = sum_tasks
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    needs: Mapping[str, str] = dataclasses.field(default_factory=dict)
    public: tuple[str, ...]
    equal: Length
    backward: str
    latent: bool = False
    parameter_space: bool = False
    min_tasks: int = 1
    degree: float | None = 1.0
    properties: frozenset[str]

    def __getattr__(self, name: str) -> NoReturn:
        hint = ""
        if name in ("init", "update"):
            hint = ": a Method is not a transform, but .make(num_tasks) makes one"
        raise AttributeError(f"'Method' object has no attribute {name!r}{hint}")

    @property
    def takes_preference(self) -> bool:
        """Returns whether `make` takes a `preference`, one number for each task."""
        by_weighting = self.weighting is not None and self.aggregator is sum_tasks
        made_by = self.weighting if by_weighting else self.aggregator
        return made_by is not None and (
            "preference" in inspect.signature(made_by).parameters
        )

    def make(
        self,
        num_tasks: int,
        *,
        labels: Rules = "shared",
        steps_per_epoch: int = 1,
        **options: Any,
    ) -> Transform:
        """Returns the transform; arguments that you omit keep the library's defaults.

        Args:
          num_tasks: number of tasks.
          labels: which task owns which leaf, for methods that remember gradients.
          steps_per_epoch: number of updates in an epoch, for methods that count epochs.
          **options: further arguments of the public function that makes the method,
            such as `kind=["regression", "classification"]` of `weight_by_uncertainty`;
            for DB-MTL, arguments of `balance_norms`.

        Raises:
          TypeError: if that function does not have an argument of this name, or if you
            give `preference` to a method that takes none.
        """
        if "preference" in options and not self.takes_preference:
            raise TypeError(
                f"`preference` must not be given: {self.title} takes none. Use a "
                "method whose METHODS[name].takes_preference is true, or scale the "
                "losses with mtlopt.weight_by_fixed first."
            )
        problem = {"labels": labels, "steps_per_epoch": steps_per_epoch}
        needed = {name: problem[source] for name, source in self.needs.items()}
        options = {**self.options, **needed, **options}
        if self.weighting is not None and self.aggregator is sum_tasks:
            return optax.chain(
                self.weighting(num_tasks, **options), sum_tasks(num_tasks)
            )
        aggregator = self.aggregator(num_tasks, **options)
        if self.latent:
            aggregator = in_latent_space(aggregator)
        if self.weighting is None:
            return aggregator
        return optax.chain(self.weighting(num_tasks), aggregator)


class Registry(dict[str, Method]):
    """A dict whose error for an unknown key lists the names that exist."""

    def of_title(self, name: str) -> list[str]:
        """Returns the keys of the methods with this name, title or public function."""
        return [
            key
            for key, method in self.items()
            if name.lower() in (key, method.title.lower()) or name in method.public
        ]

    def __missing__(self, name: str) -> NoReturn:
        near = self.of_title(str(name))
        near = near or difflib.get_close_matches(str(name), self, n=3, cutoff=0.5)
        hint = f"Did you mean {' or '.join(map(repr, near))}? " if near else ""
        raise KeyError(f"no method {name!r}. {hint}The methods are {', '.join(self)}.")
