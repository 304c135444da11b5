"""Multi-task optimization in JAX: every method is an Optax transform.

An oracle computes the gradients of all tasks; weightings and one aggregator, chained
before any Optax optimizer, turn them into one update.

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
>>> @jax.jit
... def step(params, opt_state, x):
...     grads = oracle(params, x)
...     updates, opt_state = tx.update(grads, opt_state, params)
...     return optax.apply_updates(params, updates), opt_state, grads.losses
>>> params, opt_state, losses = step(params, tx.init(params), jnp.ones((4, 3)))
"""

import importlib.metadata

from mtlopt._methods import METHODS, Method
from mtlopt.aggregators.aligned_mtl import (
    aligned_mtl,
    aligned_mtl_weights,
)
from mtlopt.aggregators.by_weights import TaskWeightsState
from mtlopt.aggregators.mgda import mgda, mgda_weights
from mtlopt.aggregators.pcgrad import PcgradState, pcgrad, pcgrad_weights
from mtlopt.aggregators.sums import (
    mean_tasks,
    mean_weights,
    sum_tasks,
)
from mtlopt.alternation.blocks import (
    AlternateBlocksState,
    Stepped,
    alternate_blocks,
    block_at,
    block_step,
)
from mtlopt.alternation.individual import (
    IndividualOptimizersState,
    individual_optimizers,
    individual_step,
    random_groups,
)
from mtlopt.diagnostics.distance import TrackDistanceState, track_distance
from mtlopt.diagnostics.measures import (
    conflict_rate,
    cosine_similarity,
    dominance_rate,
)
from mtlopt.heads import stacked
from mtlopt.labels import label_params
from mtlopt.latent import in_latent_space
from mtlopt.linesearch.armijo import LineSearchState
from mtlopt.linesearch.backtracking import backtracking
from mtlopt.linesearch.fast_backtracking import fast_backtracking
from mtlopt.oracle import Grad, Oracle, task_grad
from mtlopt.ownership import infer_labels
from mtlopt.per_label import PerLabelState, per_label
from mtlopt.problems import Aux
from mtlopt.task_grads import TaskGrads
from mtlopt.weightings.dwa import WeightByDwaState, dwa_weights, weight_by_dwa
from mtlopt.weightings.fixed import weight_by_fixed
from mtlopt.weightings.uncertainty import (
    WeightByUncertaintyState,
    weight_by_uncertainty,
)

__version__ = importlib.metadata.version("mtlopt")

__all__ = [
    "METHODS",
    "AlternateBlocksState",
    "Aux",
    "Grad",
    "IndividualOptimizersState",
    "LineSearchState",
    "Method",
    "Oracle",
    "PcgradState",
    "PerLabelState",
    "Stepped",
    "TaskGrads",
    "TaskWeightsState",
    "TrackDistanceState",
    "WeightByDwaState",
    "WeightByUncertaintyState",
    "aligned_mtl",
    "aligned_mtl_weights",
    "alternate_blocks",
    "backtracking",
    "block_at",
    "block_step",
    "conflict_rate",
    "cosine_similarity",
    "dominance_rate",
    "dwa_weights",
    "fast_backtracking",
    "in_latent_space",
    "individual_optimizers",
    "individual_step",
    "infer_labels",
    "label_params",
    "mean_tasks",
    "mean_weights",
    "mgda",
    "mgda_weights",
    "pcgrad",
    "pcgrad_weights",
    "per_label",
    "random_groups",
    "stacked",
    "sum_tasks",
    "task_grad",
    "track_distance",
    "weight_by_dwa",
    "weight_by_fixed",
    "weight_by_uncertainty",
]
