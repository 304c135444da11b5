"""The registry of methods: one list drives the tests, the docs and the experiments."""

import dataclasses
import difflib
import functools
import math
from collections.abc import Callable
from typing import Any, NoReturn

import optax

from mtlopt.aggregators.aligned_mtl import aligned_mtl
from mtlopt.aggregators.balance_norms import balance_norms
from mtlopt.aggregators.cagrad import cagrad
from mtlopt.aggregators.conflict_free import conflict_free
from mtlopt.aggregators.cr_mogm import cr_mogm
from mtlopt.aggregators.dualproj import dualproj
from mtlopt.aggregators.edm import edm
from mtlopt.aggregators.fairgrad import fairgrad
from mtlopt.aggregators.graddrop import graddrop
from mtlopt.aggregators.gradvac import gradvac
from mtlopt.aggregators.imtl_g import imtl_g
from mtlopt.aggregators.krum import krum
from mtlopt.aggregators.mgda import mgda
from mtlopt.aggregators.moco import moco
from mtlopt.aggregators.modo import modo
from mtlopt.aggregators.nash_mtl import nash_mtl
from mtlopt.aggregators.pcd import pcd
from mtlopt.aggregators.pcgrad import pcgrad
from mtlopt.aggregators.sdmgrad import sdmgrad
from mtlopt.aggregators.sums import mean_tasks, sum_tasks
from mtlopt.aggregators.trimmed_mean import trimmed_mean
from mtlopt.aggregators.upgrad import upgrad
from mtlopt.labels import Rules
from mtlopt.latent import in_latent_space
from mtlopt.weightings.chebyshev import weight_by_chebyshev
from mtlopt.weightings.cosmos import weight_by_cosmos
from mtlopt.weightings.dwa import weight_by_dwa
from mtlopt.weightings.excess import weight_by_excess
from mtlopt.weightings.famo import weight_by_famo
from mtlopt.weightings.geometric_mean import weight_by_geometric_mean
from mtlopt.weightings.gradnorm import weight_by_gradnorm
from mtlopt.weightings.imtl_l import weight_by_imtl_l
from mtlopt.weightings.log import weight_by_log
from mtlopt.weightings.pbi import weight_by_pbi
from mtlopt.weightings.random import weight_by_random
from mtlopt.weightings.stch import weight_by_log_stch, weight_by_stch
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
      factory: `factory(num_tasks, labels, steps_per_epoch, **options)`.
      public: the public names that it is made of.
      equal: length of the first update on T equal gradients of length 1 and losses 1.
      backward: backward passes of the encoder a step: `"1"` or `"T"`.
      latent: whether it needs a problem with `encode`.
      parameter_space: whether it cannot be used in latent space.
      min_tasks: fewer tasks raise a `ValueError`.
      degree: d such that `A(s J) = s^d A(J)` for s > 0; None where there is none.
      properties: which of the claims below hold for every Jacobian; all are tested.
    """

    title: str
    factory: Callable[..., Aggregator]
    public: tuple[str, ...]
    equal: Callable[[int], float]
    backward: str
    latent: bool = False
    parameter_space: bool = False
    min_tasks: int = 1
    degree: float | None = 1.0
    properties: frozenset[str] = frozenset()

    def make(
        self,
        num_tasks: int,
        *,
        labels: Rules = "shared",
        steps_per_epoch: int = 1,
        **options: Any,
    ) -> Aggregator:
        """Returns the transform, by default with the defaults of the library.

        Args:
          num_tasks: number of tasks.
          labels: who owns which leaf, for methods that remember gradients.
          steps_per_epoch: for methods that count epochs.
          **options: further arguments of the public function that makes the method,
            such as `kind=["regression", "classification"]` of `weight_by_uncertainty`;
            for DB-MTL those of `balance_norms`.

        Raises:
          TypeError: if that function does not have an argument of this name.
        """
        return self.factory(num_tasks, labels, steps_per_epoch, **options)


def _simple(make: Callable[..., Aggregator]) -> Callable[..., Aggregator]:
    """A factory that needs the number of tasks and the method's options only."""
    return lambda num_tasks, _labels, _steps, **options: make(num_tasks, **options)


def _latent(make: Callable[..., Aggregator]) -> Callable[..., Aggregator]:
    """An aggregator of the latent rows."""
    return _simple(lambda *args, **options: in_latent_space(make(*args, **options)))


def _summed(make: Callable[..., Aggregator]) -> Callable[..., Aggregator]:
    """A weighting, chained before the sum."""
    return lambda num_tasks, *args, **options: optax.chain(
        make(num_tasks, *args, **options), sum_tasks(num_tasks)
    )


_SYMMETRIC = frozenset({"deterministic", "permutation_equivariant", "in_span"})
# Weights that the gradients do not decide: of any sign, and positive.
_FIXED = _SYMMETRIC | {"linear_under_scaling"}
_SUM = _FIXED | {"zero_only_if_strongly_stationary"}
_MGDA = _SYMMETRIC | {
    "non_conflicting",
    "zero_if_strongly_stationary",
    "zero_if_weakly_stationary",
}
_DUAL_CONE = _SYMMETRIC | {
    "non_conflicting",
    "zero_if_strongly_stationary",
    "zero_only_if_strongly_stationary",
}
# For a given order of the tasks.
_SURGERY = frozenset(
    {"in_span", "linear_under_scaling", "zero_only_if_strongly_stationary"}
)
_BARGAIN = _SYMMETRIC | {"task_scale_invariant", "zero_only_if_strongly_stationary"}
_ALIGNED = _SYMMETRIC | {"zero_only_if_strongly_stationary"}


def _one(_: int) -> float:
    """The length of one gradient, whatever the number of tasks."""
    return 1.0


class _Registry(dict[str, Method]):
    """A dict whose error says which names there are."""

    def __missing__(self, name: str) -> NoReturn:
        near = difflib.get_close_matches(str(name), self, n=3, cutoff=0.5)
        hint = f"Did you mean {' or '.join(map(repr, near))}? " if near else ""
        raise KeyError(f"no method {name!r}. {hint}There are {', '.join(self)}.")


METHODS: dict[str, Method] = _Registry(
    {
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
            _one,
            "1",
            properties=_SUM,
        ),
        # Weightings, chained before the sum.
        "uncertainty": Method(
            "Uncertainty",
            _summed(_simple(weight_by_uncertainty)),
            ("weight_by_uncertainty", "sum_tasks"),
            lambda num_tasks: num_tasks / 2,
            "1",
            properties=_SUM,
        ),
        "dwa": Method(
            "DWA",
            _summed(
                lambda num_tasks, _, steps_per_epoch, **options: weight_by_dwa(
                    num_tasks, steps_per_epoch=steps_per_epoch, **options
                )
            ),
            ("weight_by_dwa", "sum_tasks"),
            float,
            "1",
            properties=_SUM,
        ),
        "gradnorm": Method(
            "GradNorm",
            _summed(_simple(weight_by_gradnorm)),
            ("weight_by_gradnorm", "sum_tasks"),
            float,
            "1",
            properties=_SUM,
        ),
        "imtl_l": Method(
            "IMTL-L",
            _summed(_simple(weight_by_imtl_l)),
            ("weight_by_imtl_l", "sum_tasks"),
            float,
            "1",
            properties=_SUM,
        ),
        "famo": Method(
            "FAMO",
            _summed(_simple(weight_by_famo)),
            ("weight_by_famo", "sum_tasks"),
            _one,
            "1",
            properties=_SUM,
        ),
        "stch": Method(
            "STCH",
            _summed(_simple(weight_by_stch)),
            ("weight_by_stch", "sum_tasks"),
            lambda num_tasks: 1 / num_tasks,
            "1",
            properties=_SUM,
        ),
        "log_stch": Method(
            "STCH (log-losses)",
            _summed(
                lambda num_tasks, _, steps_per_epoch, **options: weight_by_log_stch(
                    num_tasks, **{"warmup_steps": steps_per_epoch, **options}
                )
            ),
            ("weight_by_log_stch", "sum_tasks"),
            float,
            "1",
            properties=_SUM,
        ),
        "geometric_mean": Method(
            "GLS",
            _summed(_simple(weight_by_geometric_mean)),
            ("weight_by_geometric_mean", "sum_tasks"),
            _one,
            "1",
            properties=_SUM,
        ),
        "rlw": Method(
            "RLW",
            _summed(_simple(weight_by_random)),
            ("weight_by_random", "sum_tasks"),
            _one,
            "1",
            properties=_SUM - {"deterministic", "permutation_equivariant"},
        ),
        "excess_mtl": Method(
            "ExcessMTL",
            _summed(
                lambda num_tasks, labels, _, **options: weight_by_excess(
                    num_tasks, labels, **options
                )
            ),
            ("weight_by_excess", "sum_tasks"),
            float,
            "T",
            parameter_space=True,
            properties=_SUM,
        ),
        "chebyshev": Method(
            "Chebyshev",
            _summed(_simple(weight_by_chebyshev)),
            ("weight_by_chebyshev", "sum_tasks"),
            lambda num_tasks: 1 / num_tasks,
            "1",
            properties=_FIXED,
        ),
        "pbi": Method(
            "PBI",
            _summed(_simple(weight_by_pbi)),
            ("weight_by_pbi", "sum_tasks"),
            math.sqrt,
            "1",
            properties=_FIXED,
        ),
        "cosmos": Method(
            "COSMOS",
            _summed(_simple(weight_by_cosmos)),
            ("weight_by_cosmos", "sum_tasks"),
            _one,
            "1",
            properties=_FIXED,
        ),
        # Aggregators.
        "mgda": Method(
            "MGDA",
            _simple(mgda),
            ("mgda",),
            _one,
            "T",
            properties=_MGDA,
        ),
        "mgda_ub": Method(
            "MGDA-UB",
            _latent(mgda),
            ("in_latent_space", "mgda"),
            _one,
            "1",
            latent=True,
            properties=_SYMMETRIC,
        ),
        "mgda_l2": Method(
            "MGDA (l2)",
            _simple(functools.partial(mgda, normalisation="l2")),
            ("mgda",),
            _one,
            "T",
            properties=_SYMMETRIC,
        ),
        "edm": Method(
            "EDM",
            _simple(edm),
            ("edm",),
            _one,
            "T",
            properties=_MGDA,
        ),
        "pcgrad": Method(
            "PCGrad",
            _simple(pcgrad),
            ("pcgrad",),
            float,
            "T",
            properties=_SURGERY,
        ),
        "upgrad": Method(
            "UPGrad",
            _simple(upgrad),
            ("upgrad",),
            _one,
            "T",
            properties=_DUAL_CONE | {"linear_under_scaling"},
        ),
        "dualproj": Method(
            "DualProj",
            _simple(dualproj),
            ("dualproj",),
            _one,
            "T",
            properties=_DUAL_CONE,
        ),
        "pcd": Method(
            "PCD",
            _simple(pcd),
            ("pcd",),
            _one,
            "T",
            properties=_FIXED - {"permutation_equivariant"},
        ),
        "cagrad": Method(
            "CAGrad",
            _simple(cagrad),
            ("cagrad",),
            lambda _: 1.4,
            "T",
            properties=_ALIGNED,
        ),
        "nash_mtl": Method(
            "Nash-MTL",
            _simple(nash_mtl),
            ("nash_mtl",),
            _one,
            "T",
            degree=0.0,
            properties=_BARGAIN,
        ),
        "fairgrad": Method(
            "FairGrad",
            _simple(fairgrad),
            ("fairgrad",),
            math.sqrt,
            "T",
            degree=0.0,
            properties=_BARGAIN,
        ),
        "gradvac": Method(
            "GradVac",
            _simple(gradvac),
            ("gradvac",),
            float,
            "T",
            properties=_SURGERY,
        ),
        "graddrop": Method(
            "GradDrop",
            _simple(graddrop),
            ("graddrop",),
            float,
            "T",
            properties=frozenset(
                {"permutation_equivariant", "zero_only_if_strongly_stationary"}
            ),
        ),
        "imtl_g": Method(
            "IMTL-G",
            _simple(imtl_g),
            ("imtl_g",),
            _one,
            "T",
            properties=_SYMMETRIC | {"zero_if_strongly_stationary"},
        ),
        "conflict_free": Method(
            "ConFIG",
            _simple(conflict_free),
            ("conflict_free",),
            float,
            "T",
            properties=_FIXED,
        ),
        "krum": Method(
            "Krum",
            _simple(krum),
            ("krum",),
            _one,
            "T",
            min_tasks=4,
            properties=frozenset({"deterministic", "in_span"}),
        ),
        "trimmed_mean": Method(
            "Trimmed mean",
            _simple(trimmed_mean),
            ("trimmed_mean",),
            _one,
            "T",
            min_tasks=3,
            properties=frozenset({"deterministic", "permutation_equivariant"}),
        ),
        "db_mtl": Method(
            "DB-MTL",
            # Averages, if a `decay` is given, have the shapes of the shared leaves.
            lambda num_tasks, labels, _, **options: optax.chain(
                weight_by_log(num_tasks),
                balance_norms(num_tasks, labels if options else None, **options),
            ),
            ("weight_by_log", "balance_norms"),
            float,
            "T",
            properties=_ALIGNED,
        ),
        "cr_mogm": Method(
            "CR-MOGM (MGDA)",
            _simple(cr_mogm),
            ("cr_mogm",),
            _one,
            "T",
            properties=_SYMMETRIC,
        ),
        "sdmgrad": Method(
            "SDMGrad",
            _simple(sdmgrad),
            ("sdmgrad",),
            _one,
            "T",
            properties=_ALIGNED,
        ),
        "modo": Method(
            "MoDo",
            _simple(modo),
            ("modo",),
            _one,
            "T",
            degree=None,
            properties=_SYMMETRIC,
        ),
        "moco": Method(
            "MoCo",
            lambda num_tasks, labels, _, **options: moco(num_tasks, labels, **options),
            ("moco",),
            _one,
            "T",
            parameter_space=True,
            degree=None,
            properties=_SYMMETRIC,
        ),
        "aligned_mtl": Method(
            "Aligned-MTL (θ-aligned)",
            _simple(aligned_mtl),
            ("aligned_mtl",),
            _one,
            "T",
            properties=_ALIGNED,
        ),
        "aligned_mtl_ub": Method(
            "Aligned-MTL (Z-aligned)",
            _latent(aligned_mtl),
            ("in_latent_space", "aligned_mtl"),
            _one,
            "1",
            latent=True,
            properties=_SYMMETRIC,
        ),
    }
)
