"""The registry of methods: one list drives the tests, the docs and the experiments."""

import dataclasses
from collections.abc import Callable

import optax

from mtlopt.aggregators.aligned_mtl import aligned_mtl
from mtlopt.aggregators.mgda import mgda
from mtlopt.aggregators.pcgrad import pcgrad
from mtlopt.aggregators.sums import mean_tasks, sum_tasks
from mtlopt.labels import Rules
from mtlopt.latent import in_latent_space
from mtlopt.weightings.dwa import weight_by_dwa
from mtlopt.weightings.uncertainty import weight_by_uncertainty

Aggregator = optax.GradientTransformation

# Claims about the aggregate A(J) that hold for every Jacobian J, as they are tested.
# A Jacobian is strongly stationary if some positive weights make J^T w zero, weakly if
# some non-negative ones do.
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


@dataclasses.dataclass(frozen=True)
class Method:
    """A complete method: what stands between a `task_grad` and a base optimizer.

    Attributes:
      title: the name that the field uses.
      factory: `factory(num_tasks, labels, steps_per_epoch)`.
      public: the public names that it is made of.
      equal: length of the first update on T equal gradients of length 1 and losses 1.
      backward: backward passes of the encoder a step: `"1"` or `"T"`.
      latent: whether it needs a problem with `encode`.
      parameter_space: whether it cannot be used in latent space.
      degree: d such that `A(s J) = s^d A(J)` for s > 0; None where there is none.
      properties: which of the claims below hold for every Jacobian; all are tested.
    """

    title: str
    factory: Callable[[int, Rules, int], Aggregator]
    public: tuple[str, ...]
    equal: Callable[[int], float]
    backward: str
    latent: bool = False
    parameter_space: bool = False
    degree: float | None = 1.0
    properties: frozenset[str] = frozenset()

    def make(
        self, num_tasks: int, *, labels: Rules = "shared", steps_per_epoch: int = 1
    ) -> Aggregator:
        """Returns the transform, with the defaults of the library.

        Args:
          num_tasks: number of tasks.
          labels: who owns which leaf, for methods that remember gradients.
          steps_per_epoch: for methods that count epochs.
        """
        return self.factory(num_tasks, labels, steps_per_epoch)


def _simple(make: Callable[[int], Aggregator]) -> Callable[..., Aggregator]:
    """A factory that needs the number of tasks only."""
    return lambda num_tasks, *_: make(num_tasks)


def _summed(make: Callable[[int], Aggregator]) -> Callable[..., Aggregator]:
    """A weighting, chained before the sum."""
    return _simple(lambda num_tasks: optax.chain(make(num_tasks), sum_tasks(num_tasks)))


_SYMMETRIC = frozenset({"deterministic", "permutation_equivariant", "in_span"})
_SUM = _SYMMETRIC | {"linear_under_scaling", "zero_only_if_strongly_stationary"}
_MGDA = _SYMMETRIC | {
    "non_conflicting",
    "zero_if_strongly_stationary",
    "zero_if_weakly_stationary",
}
_ALIGNED = _SYMMETRIC | {"zero_only_if_strongly_stationary"}

METHODS: dict[str, Method] = {
    "sum_tasks": Method(
        "Summed loss",
        _simple(sum_tasks),
        ("sum_tasks",),
        float,
        "1",
        properties=_SUM,
    ),
    "mean_tasks": Method(
        "Uniform scaling",
        _simple(mean_tasks),
        ("mean_tasks",),
        lambda _: 1.0,
        "1",
        properties=_SUM,
    ),
    "uncertainty": Method(
        "Uncertainty",
        _summed(weight_by_uncertainty),
        ("weight_by_uncertainty", "sum_tasks"),
        lambda num_tasks: num_tasks / 2,
        "1",
        properties=_SUM,
    ),
    "dwa": Method(
        "DWA",
        lambda num_tasks, _labels, steps_per_epoch: optax.chain(
            weight_by_dwa(num_tasks, steps_per_epoch=steps_per_epoch),
            sum_tasks(num_tasks),
        ),
        ("weight_by_dwa", "sum_tasks"),
        float,
        "1",
        properties=_SUM,
    ),
    "mgda": Method(
        "MGDA",
        _simple(mgda),
        ("mgda",),
        lambda _: 1.0,
        "T",
        properties=_MGDA,
    ),
    "mgda_ub": Method(
        "MGDA-UB",
        _simple(lambda num_tasks: in_latent_space(mgda(num_tasks))),
        ("in_latent_space", "mgda"),
        lambda _: 1.0,
        "1",
        latent=True,
        properties=_MGDA - {"non_conflicting"},
    ),
    "pcgrad": Method(
        "PCGrad",
        _simple(pcgrad),
        ("pcgrad",),
        float,
        "T",
        properties=frozenset({"in_span", "zero_only_if_strongly_stationary"}),
    ),
    "aligned_mtl": Method(
        "Aligned-MTL (θ-aligned)",
        _simple(aligned_mtl),
        ("aligned_mtl",),
        lambda _: 1.0,
        "T",
        properties=_ALIGNED,
    ),
    "aligned_mtl_ub": Method(
        "Aligned-MTL (Z-aligned)",
        _simple(lambda num_tasks: in_latent_space(aligned_mtl(num_tasks))),
        ("in_latent_space", "aligned_mtl"),
        lambda _: 1.0,
        "1",
        latent=True,
        properties=_ALIGNED,
    ),
}
