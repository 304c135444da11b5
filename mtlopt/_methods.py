"""The registry of methods: one list drives the tests, the docs and the experiments."""

from typing import Any

from mtlopt._method import CLAIMS, Length, Method, Registry, Transform
from mtlopt.aggregators.aligned_mtl import aligned_mtl
from mtlopt.aggregators.balance_norms import balance_norms
from mtlopt.aggregators.cagrad import cagrad
from mtlopt.aggregators.conflict_free import conflict_free
from mtlopt.aggregators.cr_mogm import cr_mogm
from mtlopt.aggregators.dualproj import dualproj
from mtlopt.aggregators.edm import edm
from mtlopt.aggregators.epo import epo
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
from mtlopt.weightings.annealing import weight_by_norms
from mtlopt.weightings.chebyshev import weight_by_chebyshev
from mtlopt.weightings.cosmos import weight_by_cosmos
from mtlopt.weightings.dwa import weight_by_dwa
from mtlopt.weightings.excess import weight_by_excess
from mtlopt.weightings.famo import weight_by_famo
from mtlopt.weightings.geometric_mean import weight_by_geometric_mean
from mtlopt.weightings.gradnorm import weight_by_gradnorm
from mtlopt.weightings.imtl_l import weight_by_imtl_l
from mtlopt.weightings.log import weight_by_log
from mtlopt.weightings.ntk import weight_by_ntk
from mtlopt.weightings.pbi import weight_by_pbi
from mtlopt.weightings.random import weight_by_random
from mtlopt.weightings.relobralo import weight_by_relobralo
from mtlopt.weightings.softadapt import weight_by_softadapt
from mtlopt.weightings.stch import weight_by_log_stch, weight_by_stch
from mtlopt.weightings.uncertainty import weight_by_uncertainty

__all__ = ["CLAIMS", "METHODS", "Method"]


def _balance_norms(num_tasks: int, labels: Rules, **options: Any) -> Transform:
    """Makes `balance_norms`, with the `labels` only if a `decay` is given."""
    return balance_norms(num_tasks, labels if options else None, **options)


_SYMMETRIC = frozenset({"deterministic", "permutation_equivariant", "in_span"})
# Weights that do not depend on the gradients: of any sign, and positive.
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
# Each holds for a given order of the tasks.
_SURGERY = frozenset(
    {"in_span", "linear_under_scaling", "zero_only_if_strongly_stationary"}
)
_BARGAIN = _SYMMETRIC | {"task_scale_invariant", "zero_only_if_strongly_stationary"}
_ALIGNED = _SYMMETRIC | {"zero_only_if_strongly_stationary"}


METHODS: dict[str, Method] = Registry(
    {
        "sum_tasks": Method(
            title="Summed loss",
            aggregator=sum_tasks,
            public=("sum_tasks",),
            equal=Length(power=1),
            backward="1",
            properties=_SUM,
        ),
        "mean_tasks": Method(
            title="Uniform scaling",
            aggregator=mean_tasks,
            public=("mean_tasks",),
            equal=Length(),
            backward="1",
            properties=_SUM,
        ),
        # Weightings, chained before the sum.
        "uncertainty": Method(
            title="Uncertainty",
            weighting=weight_by_uncertainty,
            public=("weight_by_uncertainty", "sum_tasks"),
            equal=Length(factor=0.5, power=1),
            backward="1",
            properties=_SUM,
        ),
        "dwa": Method(
            title="DWA",
            weighting=weight_by_dwa,
            needs={"steps_per_epoch": "steps_per_epoch"},
            public=("weight_by_dwa", "sum_tasks"),
            equal=Length(power=1),
            backward="1",
            properties=_SUM,
        ),
        "gradnorm": Method(
            title="GradNorm",
            weighting=weight_by_gradnorm,
            public=("weight_by_gradnorm", "sum_tasks"),
            equal=Length(power=1),
            backward="1",
            properties=_SUM,
        ),
        "norms": Method(
            title="Gradient-norm weights",
            weighting=weight_by_norms,
            public=("weight_by_norms", "sum_tasks"),
            equal=Length(power=1),
            backward="T",
            properties=_SUM,
        ),
        "ntk": Method(
            title="NTK weights",
            weighting=weight_by_ntk,
            public=("weight_by_ntk", "sum_tasks"),
            equal=Length(power=1),
            backward="T",
            properties=_ALIGNED,
        ),
        "softadapt": Method(
            title="SoftAdapt",
            weighting=weight_by_softadapt,
            needs={"steps_per_epoch": "steps_per_epoch"},
            public=("weight_by_softadapt", "sum_tasks"),
            equal=Length(power=1),
            backward="1",
            properties=_SUM,
        ),
        "relobralo": Method(
            title="ReLoBRaLo",
            weighting=weight_by_relobralo,
            public=("weight_by_relobralo", "sum_tasks"),
            equal=Length(power=1),
            backward="1",
            properties=_SUM - {"deterministic"},
        ),
        "imtl_l": Method(
            title="IMTL-L",
            weighting=weight_by_imtl_l,
            public=("weight_by_imtl_l", "sum_tasks"),
            equal=Length(power=1),
            backward="1",
            properties=_SUM,
        ),
        "famo": Method(
            title="FAMO",
            weighting=weight_by_famo,
            public=("weight_by_famo", "sum_tasks"),
            equal=Length(),
            backward="1",
            properties=_SUM,
        ),
        "stch": Method(
            title="STCH",
            weighting=weight_by_stch,
            public=("weight_by_stch", "sum_tasks"),
            equal=Length(power=-1),
            backward="1",
            properties=_SUM,
        ),
        "log_stch": Method(
            title="STCH (log-losses)",
            weighting=weight_by_log_stch,
            needs={"warmup_steps": "steps_per_epoch"},
            public=("weight_by_log_stch", "sum_tasks"),
            equal=Length(power=1),
            backward="1",
            properties=_SUM,
        ),
        "geometric_mean": Method(
            title="GLS",
            weighting=weight_by_geometric_mean,
            public=("weight_by_geometric_mean", "sum_tasks"),
            equal=Length(),
            backward="1",
            properties=_SUM,
        ),
        "rlw": Method(
            title="RLW",
            weighting=weight_by_random,
            public=("weight_by_random", "sum_tasks"),
            equal=Length(),
            backward="1",
            properties=_SUM - {"deterministic", "permutation_equivariant"},
        ),
        "excess_mtl": Method(
            title="ExcessMTL",
            weighting=weight_by_excess,
            needs={"labels": "labels"},
            public=("weight_by_excess", "sum_tasks"),
            equal=Length(power=1),
            backward="T",
            parameter_space=True,
            properties=_SUM,
        ),
        "chebyshev": Method(
            title="Chebyshev",
            weighting=weight_by_chebyshev,
            public=("weight_by_chebyshev", "sum_tasks"),
            equal=Length(power=-1),
            backward="1",
            properties=_FIXED,
        ),
        "pbi": Method(
            title="PBI",
            weighting=weight_by_pbi,
            public=("weight_by_pbi", "sum_tasks"),
            equal=Length(power=0.5),
            backward="1",
            properties=_FIXED,
        ),
        "cosmos": Method(
            title="COSMOS",
            weighting=weight_by_cosmos,
            public=("weight_by_cosmos", "sum_tasks"),
            equal=Length(),
            backward="1",
            properties=_FIXED,
        ),
        # Aggregators.
        "mgda": Method(
            title="MGDA",
            aggregator=mgda,
            public=("mgda",),
            equal=Length(),
            backward="T",
            properties=_MGDA,
        ),
        "mgda_ub": Method(
            title="MGDA-UB",
            aggregator=mgda,
            public=("in_latent_space", "mgda"),
            equal=Length(),
            backward="1",
            latent=True,
            properties=_SYMMETRIC,
        ),
        "mgda_l2": Method(
            title="MGDA (l2)",
            aggregator=mgda,
            options={"normalisation": "l2"},
            public=("mgda",),
            equal=Length(),
            backward="T",
            properties=_SYMMETRIC,
        ),
        "edm": Method(
            title="EDM",
            aggregator=edm,
            public=("edm",),
            equal=Length(),
            backward="T",
            properties=_MGDA,
        ),
        "epo": Method(
            title="EPO",
            aggregator=epo,
            public=("epo",),
            equal=Length(),
            backward="T",
            properties=_SYMMETRIC,
        ),
        "pcgrad": Method(
            title="PCGrad",
            aggregator=pcgrad,
            public=("pcgrad",),
            equal=Length(power=1),
            backward="T",
            properties=_SURGERY,
        ),
        "upgrad": Method(
            title="UPGrad",
            aggregator=upgrad,
            public=("upgrad",),
            equal=Length(),
            backward="T",
            properties=_DUAL_CONE | {"linear_under_scaling"},
        ),
        "dualproj": Method(
            title="DualProj",
            aggregator=dualproj,
            public=("dualproj",),
            equal=Length(),
            backward="T",
            properties=_DUAL_CONE,
        ),
        "pcd": Method(
            title="PCD",
            aggregator=pcd,
            public=("pcd",),
            equal=Length(),
            backward="T",
            properties=_FIXED - {"permutation_equivariant"},
        ),
        "cagrad": Method(
            title="CAGrad",
            aggregator=cagrad,
            public=("cagrad",),
            equal=Length(factor=1.4),
            backward="T",
            properties=_ALIGNED,
        ),
        "nash_mtl": Method(
            title="Nash-MTL",
            aggregator=nash_mtl,
            public=("nash_mtl",),
            equal=Length(),
            backward="T",
            degree=0.0,
            properties=_BARGAIN,
        ),
        "fairgrad": Method(
            title="FairGrad",
            aggregator=fairgrad,
            public=("fairgrad",),
            equal=Length(power=0.5),
            backward="T",
            degree=0.0,
            properties=_BARGAIN,
        ),
        "gradvac": Method(
            title="GradVac",
            aggregator=gradvac,
            public=("gradvac",),
            equal=Length(power=1),
            backward="T",
            properties=_SURGERY,
        ),
        "graddrop": Method(
            title="GradDrop",
            aggregator=graddrop,
            public=("graddrop",),
            equal=Length(power=1),
            backward="T",
            properties=frozenset(
                {"permutation_equivariant", "zero_only_if_strongly_stationary"}
            ),
        ),
        "imtl_g": Method(
            title="IMTL-G",
            aggregator=imtl_g,
            public=("imtl_g",),
            equal=Length(),
            backward="T",
            properties=_SYMMETRIC | {"zero_if_strongly_stationary"},
        ),
        "conflict_free": Method(
            title="ConFIG",
            aggregator=conflict_free,
            public=("conflict_free",),
            equal=Length(power=1),
            backward="T",
            properties=_FIXED,
        ),
        "krum": Method(
            title="Krum",
            aggregator=krum,
            public=("krum",),
            equal=Length(),
            backward="T",
            min_tasks=4,
            properties=frozenset({"deterministic", "in_span"}),
        ),
        "trimmed_mean": Method(
            title="Trimmed mean",
            aggregator=trimmed_mean,
            public=("trimmed_mean",),
            equal=Length(),
            backward="T",
            min_tasks=3,
            properties=frozenset({"deterministic", "permutation_equivariant"}),
        ),
        "db_mtl": Method(
            title="DB-MTL",
            weighting=weight_by_log,
            aggregator=_balance_norms,
            needs={"labels": "labels"},
            public=("weight_by_log", "balance_norms"),
            equal=Length(power=1),
            backward="T",
            properties=_ALIGNED,
        ),
        "cr_mogm": Method(
            title="CR-MOGM (MGDA)",
            aggregator=cr_mogm,
            public=("cr_mogm",),
            equal=Length(),
            backward="T",
            properties=_SYMMETRIC,
        ),
        "sdmgrad": Method(
            title="SDMGrad",
            aggregator=sdmgrad,
            public=("sdmgrad",),
            equal=Length(),
            backward="T",
            properties=_ALIGNED,
        ),
        "modo": Method(
            title="MoDo",
            aggregator=modo,
            public=("modo",),
            equal=Length(),
            backward="2",
            degree=None,
            properties=_SYMMETRIC,
        ),
        "moco": Method(
            title="MoCo",
            aggregator=moco,
            needs={"labels": "labels"},
            public=("moco",),
            equal=Length(),
            backward="T",
            parameter_space=True,
            degree=None,
            properties=_SYMMETRIC,
        ),
        "aligned_mtl": Method(
            title="Aligned-MTL (θ-aligned)",
            aggregator=aligned_mtl,
            public=("aligned_mtl",),
            equal=Length(),
            backward="T",
            properties=_ALIGNED,
        ),
        "aligned_mtl_ub": Method(
            title="Aligned-MTL (Z-aligned)",
            aggregator=aligned_mtl,
            public=("in_latent_space", "aligned_mtl"),
            equal=Length(),
            backward="1",
            latent=True,
            properties=_SYMMETRIC,
        ),
    }
)
