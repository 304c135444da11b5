"""Multi-task optimization in JAX, in which every method is an Optax transform.

A method is a weighting, which scales the losses of the tasks, or an aggregator, which
combines the gradients of the tasks into one. A training step calls an oracle, which
computes the losses and gradients of all tasks. The step then passes them to weightings,
one aggregator and an ordinary Optax optimizer::

    params, batch
       |  oracle(params, batch)      losses and gradients of all tasks
       v
    TaskGrads --> weightings --> aggregator --> any Optax transform --> updates
                  weight_by_dwa  aligned_mtl    adam, clipping, schedules

The gradients of single tasks are computed only if a method reads them: under `jit`, XLA
deletes everything that is never read.

>>> import jax, jax.numpy as jnp, mtlopt, optax
>>> params = {"trunk": jnp.ones((3, 2)), "left": jnp.ones(2), "right": jnp.ones(2)}
>>> labels = mtlopt.label_params(
...     params, {"trunk": "shared", "left": "left", "right": "right"}
... )
>>> oracle = mtlopt.task_grad(
...     {
...         "left": lambda params, z, x: jnp.mean((z @ params["left"] - 1) ** 2),
...         "right": lambda params, z, x: jnp.mean((z @ params["right"] + 1) ** 2),
...     },
...     labels,
...     encode=lambda params, x: jnp.tanh(x @ params["trunk"]),
... )
>>> tx = optax.chain(mtlopt.aligned_mtl(2), optax.adam(1e-2))
>>> step = jax.jit(mtlopt.train_step(oracle, tx))
>>> run = mtlopt.Run(params, tx.init(params))
>>> run, output = step(run, jnp.ones((4, 3)))
>>> sorted(oracle.named(output.losses))
['left', 'right']
"""

import difflib
import importlib
import importlib.metadata
from typing import TYPE_CHECKING, Any

from mtlopt._methods import METHODS, Method
from mtlopt.aggregators.aligned_mtl import (
    aligned_mtl,
    aligned_mtl_weights,
)
from mtlopt.aggregators.balance_norms import (
    BalanceNormsState,
    balance_norms,
    balance_norms_weights,
)
from mtlopt.aggregators.cagrad import (
    cagrad,
    cagrad_weights,
)
from mtlopt.aggregators.conflict_free import (
    conflict_free,
    conflict_free_weights,
)
from mtlopt.aggregators.cr_mogm import (
    CrMogmState,
    cr_mogm,
)
from mtlopt.aggregators.dualproj import (
    dualproj,
    dualproj_weights,
)
from mtlopt.aggregators.edm import (
    edm,
    edm_weights,
)
from mtlopt.aggregators.epo import epo, epo_weights
from mtlopt.aggregators.fairgrad import (
    fairgrad,
    fairgrad_weights,
)
from mtlopt.aggregators.graddrop import (
    GraddropState,
    graddrop,
)
from mtlopt.aggregators.gradvac import (
    GradvacState,
    gradvac,
    gradvac_weights,
)
from mtlopt.aggregators.imtl_g import (
    imtl_g,
    imtl_g_weights,
)
from mtlopt.aggregators.krum import (
    krum,
    krum_weights,
)
from mtlopt.aggregators.mgda import mgda, mgda_weights
from mtlopt.aggregators.moco import (
    MocoState,
    moco,
)
from mtlopt.aggregators.modo import (
    ModoState,
    modo,
    modo_weights,
)
from mtlopt.aggregators.nash_mtl import nash_mtl, nash_mtl_weights
from mtlopt.aggregators.pcd import (
    PcdState,
    pcd,
    pcd_weights,
)
from mtlopt.aggregators.pcgrad import PcgradState, pcgrad, pcgrad_weights
from mtlopt.aggregators.sdmgrad import (
    SdmgradState,
    sdmgrad,
    sdmgrad_weights,
)
from mtlopt.aggregators.sums import mean_tasks, sum_tasks
from mtlopt.aggregators.trimmed_mean import (
    trimmed_mean,
)
from mtlopt.aggregators.upgrad import (
    upgrad,
    upgrad_weights,
)
from mtlopt.alternation.affinity import (
    AffinityState,
    affinity_groups,
    affinity_step,
)
from mtlopt.alternation.blocks import (
    AlternateBlocksState,
    alternate_blocks,
    block_at,
    block_step,
)
from mtlopt.alternation.individual import (
    IndividualOptimizersState,
    individual_optimizers,
    random_groups,
)
from mtlopt.alternation.individual_step import individual_step
from mtlopt.common.task_weights import TaskWeightsState, mean_weights, task_weights
from mtlopt.diagnostics.diagnose import Diagnosis, diagnose
from mtlopt.diagnostics.distance import TrackDistanceState, track_distance
from mtlopt.diagnostics.front import (
    FrontSpread,
    front_spread,
    hypervolume,
    non_dominated,
)
from mtlopt.diagnostics.latent_spread import latent_spread
from mtlopt.diagnostics.measures import (
    conflict_rate,
    cosine_similarity,
    dominance_rate,
)
from mtlopt.diagnostics.plots import plot_diagnosis, plot_trade_off
from mtlopt.diagnostics.suggestions import suggestions
from mtlopt.diagnostics.would_rise import would_rise
from mtlopt.every import EveryState, every
from mtlopt.forms import stacked
from mtlopt.front_step import FrontStep, front_step
from mtlopt.grad import Grad
from mtlopt.labels import label_params
from mtlopt.latent_space import in_latent_space
from mtlopt.leave_out import leave_out
from mtlopt.linesearch.backtracking import backtracking
from mtlopt.linesearch.fast_backtracking import fast_backtracking
from mtlopt.linesearch.states import (
    FastLineSearchState,
    LineSearchState,
    SafeLineSearchState,
)
from mtlopt.make_oracle import task_grad
from mtlopt.mark import latent
from mtlopt.memory import keep_memory
from mtlopt.oracle import Oracle
from mtlopt.ownership import infer_labels
from mtlopt.per_label import PerLabelState, per_label
from mtlopt.problems import Aux
from mtlopt.roaming import (
    MaximumRoaming,
    MaximumRoamingState,
    maximum_roaming,
    task_masks,
)
from mtlopt.samples import samplewise
from mtlopt.sharpness import sharpness_aware
from mtlopt.skip_not_finite import SkipNotFiniteState, skip_not_finite
from mtlopt.step import Run, StepOutput, train_step
from mtlopt.task_grads import TaskGrads
from mtlopt.weightings.annealing import (
    WeightByAnnealingState,
    weight_by_annealing,
    weight_by_norms,
)
from mtlopt.weightings.chebyshev import (
    chebyshev_weights,
    weight_by_chebyshev,
)
from mtlopt.weightings.cosmos import (
    cosmos_weights,
    weight_by_cosmos,
)
from mtlopt.weightings.dwa import WeightByDwaState, dwa_weights, weight_by_dwa
from mtlopt.weightings.excess import (
    WeightByExcessState,
    weight_by_excess,
)
from mtlopt.weightings.famo import (
    WeightByFamoState,
    famo_weights,
    weight_by_famo,
)
from mtlopt.weightings.fixed import weight_by_fixed
from mtlopt.weightings.geometric_mean import (
    geometric_mean_weights,
    weight_by_geometric_mean,
)
from mtlopt.weightings.gradnorm import (
    WeightByGradnormState,
    weight_by_gradnorm,
)
from mtlopt.weightings.imtl_l import (
    WeightByImtlLState,
    weight_by_imtl_l,
)
from mtlopt.weightings.log import (
    log_weights,
    weight_by_log,
)
from mtlopt.weightings.ntk import WeightByNtkState, ntk_traces, weight_by_ntk
from mtlopt.weightings.pbi import (
    pbi_weights,
    weight_by_pbi,
)
from mtlopt.weightings.random import (
    WeightByRandomState,
    weight_by_random,
)
from mtlopt.weightings.relobralo import (
    WeightByRelobraloState,
    relobralo_weights,
    weight_by_relobralo,
)
from mtlopt.weightings.softadapt import (
    WeightBySoftadaptState,
    softadapt_weights,
    weight_by_softadapt,
)
from mtlopt.weightings.stch import (
    WeightByLogStchState,
    log_stch_weights,
    stch_weights,
    weight_by_log_stch,
    weight_by_stch,
)
from mtlopt.weightings.uncertainty import (
    WeightByUncertaintyState,
    weight_by_uncertainty,
)

__version__ = importlib.metadata.version("mtlopt")

__all__ = [
    "METHODS",
    "AffinityState",
    "AlternateBlocksState",
    "Aux",
    "BalanceNormsState",
    "CrMogmState",
    "Diagnosis",
    "EveryState",
    "FastLineSearchState",
    "FrontSpread",
    "FrontStep",
    "Grad",
    "GraddropState",
    "GradvacState",
    "IndividualOptimizersState",
    "LineSearchState",
    "MaximumRoaming",
    "MaximumRoamingState",
    "Method",
    "MocoState",
    "ModoState",
    "Oracle",
    "PcdState",
    "PcgradState",
    "PerLabelState",
    "Run",
    "SafeLineSearchState",
    "SdmgradState",
    "SkipNotFiniteState",
    "StepOutput",
    "TaskGrads",
    "TaskWeightsState",
    "TrackDistanceState",
    "WeightByAnnealingState",
    "WeightByDwaState",
    "WeightByExcessState",
    "WeightByFamoState",
    "WeightByGradnormState",
    "WeightByImtlLState",
    "WeightByLogStchState",
    "WeightByNtkState",
    "WeightByRandomState",
    "WeightByRelobraloState",
    "WeightBySoftadaptState",
    "WeightByUncertaintyState",
    "affinity_groups",
    "affinity_step",
    "aligned_mtl",
    "aligned_mtl_weights",
    "alternate_blocks",
    "backtracking",
    "balance_norms",
    "balance_norms_weights",
    "block_at",
    "block_step",
    "cagrad",
    "cagrad_weights",
    "chebyshev_weights",
    "conflict_free",
    "conflict_free_weights",
    "conflict_rate",
    "cosine_similarity",
    "cosmos_weights",
    "cr_mogm",
    "diagnose",
    "dominance_rate",
    "dualproj",
    "dualproj_weights",
    "dwa_weights",
    "edm",
    "edm_weights",
    "epo",
    "epo_weights",
    "every",
    "fairgrad",
    "fairgrad_weights",
    "famo_weights",
    "fast_backtracking",
    "front_spread",
    "front_step",
    "geometric_mean_weights",
    "graddrop",
    "gradvac",
    "gradvac_weights",
    "hypervolume",
    "imtl_g",
    "imtl_g_weights",
    "in_latent_space",
    "individual_optimizers",
    "individual_step",
    "infer_labels",
    "keep_memory",
    "krum",
    "krum_weights",
    "label_params",
    "latent",
    "latent_spread",
    "leave_out",
    "log_stch_weights",
    "log_weights",
    "maximum_roaming",
    "mean_tasks",
    "mean_weights",
    "mgda",
    "mgda_weights",
    "moco",
    "modo",
    "modo_weights",
    "nash_mtl",
    "nash_mtl_weights",
    "non_dominated",
    "ntk_traces",
    "pbi_weights",
    "pcd",
    "pcd_weights",
    "pcgrad",
    "pcgrad_weights",
    "per_label",
    "plot_diagnosis",
    "plot_trade_off",
    "random_groups",
    "relobralo_weights",
    "samplewise",
    "sdmgrad",
    "sdmgrad_weights",
    "sharpness_aware",
    "skip_not_finite",
    "softadapt_weights",
    "stacked",
    "stch_weights",
    "suggestions",
    "sum_tasks",
    "task_grad",
    "task_masks",
    "task_weights",
    "track_distance",
    "train_step",
    "trimmed_mean",
    "upgrad",
    "upgrad_weights",
    "weight_by_annealing",
    "weight_by_chebyshev",
    "weight_by_cosmos",
    "weight_by_dwa",
    "weight_by_excess",
    "weight_by_famo",
    "weight_by_fixed",
    "weight_by_geometric_mean",
    "weight_by_gradnorm",
    "weight_by_imtl_l",
    "weight_by_log",
    "weight_by_log_stch",
    "weight_by_norms",
    "weight_by_ntk",
    "weight_by_pbi",
    "weight_by_random",
    "weight_by_relobralo",
    "weight_by_softadapt",
    "weight_by_stch",
    "weight_by_uncertainty",
    "would_rise",
]

if TYPE_CHECKING:
    from mtlopt import nnx as nnx
else:  # for a type checker `__getattr__` would hide misspelt names

    def __getattr__(name: str) -> Any:
        """Returns `mtlopt.nnx`, which needs Flax and is therefore loaded on first use.

        Any other name raises an error. If the name is a method of `METHODS`, the error
        lists the public names from which the method is built.
        """
        if name == "nnx":
            return importlib.import_module("mtlopt.nnx")
        public = {each.lower(): each for each in __all__}
        near = difflib.get_close_matches(name.lower(), public, n=1, cutoff=0.8)
        hint = f". Did you mean {public[near[0]]}?" if near else ""
        for key in METHODS.of_title(name)[:1]:
            parts = ", ".join(METHODS[key].public)
            hint = f". The method {key!r} is built from {parts}: see METHODS[{key!r}]"
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}{hint}")

    def __dir__() -> list[str]:
        """Returns the public names, for completion in editors and shells."""
        return [*__all__, "models", "nnx"]
