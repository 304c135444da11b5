"""GradNorm: balanced gradient norms and training rates (Chen et al., 2018)."""

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from mtlopt._checks import check_num_tasks, check_range
from mtlopt.common.task_weights import everyone
from mtlopt.grad import check_task_grads
from mtlopt.linalg.normalise import safe_divide
from mtlopt.linalg.simplex import share_out, shares_of
from mtlopt.partition import Partition
from mtlopt.per_label import advance
from mtlopt.rows.material import MaterialRows
from mtlopt.task_grads import TaskGrads


class WeightByGradnormState(NamedTuple):
    """State of `weight_by_gradnorm`.

    Attributes:
      task_weights: `[tasks]`, weights of the last update.
      learned: `[tasks]`, the weights of the next update; they sum to T.
      initial: `[tasks]`, the first loss of each task.
      seen: `[tasks]` bool, the tasks that have had a loss.
      inner_state: state of the optimizer of the weights, with a leading task axis.
    """

    task_weights: jax.Array
    learned: jax.Array
    initial: jax.Array
    seen: jax.Array
    inner_state: Any


def weight_by_gradnorm(
    num_tasks: int,
    alpha: Any = 1.5,
    optimizer: optax.GradientTransformation | None = None,
    layer: str | None = None,
) -> optax.GradientTransformationExtraArgs:
    r"""Learns weights that balance gradient norms and favour slow tasks: GradNorm.

    .. math:: \min_w \sum_i \left| G_i - \bar G \, r_i^\alpha \right|, \qquad
        G_i = w_i |g_i|, \qquad r_i = \frac{L_i / L_i[0]}{\mathrm{mean}_j L_j / L_j[0]}

    Each update takes one gradient step on this sum, with the target `mean(G) r^alpha`
    held constant. Then the weights are divided by their mean, so that they sum to T.
    The weights start at 1, and an update uses the weights from before its step. A
    weight that would become negative is set to zero and can grow again. The losses must
    not be negative. A loss that starts at zero counts as unchanged. If a task joins
    later, `L_i[0]` is its own first loss. The gradient for `w_i` is `|g_i|` up to sign,
    so steps of SGD grow with the gradients; steps of `optax.adam` do not.

    Args:
      num_tasks: number of tasks T.
      alpha: pull towards a common training rate, at least 0; 0 gives equal norms. The
        paper uses 1.5 for tasks that differ and 0.12 for similar tasks.
      optimizer: any Optax optimizer for the weights. Default: `optax.sgd(0.025)`.
      layer: path of the shared leaves in `g_i`, such as `"encoder/last"`; the paper
        uses the last shared layer. None means the latent, which is free. Without
        `encode`, None means all shared leaves, which costs T backward passes.

    Raises:
      ValueError: if `alpha` is negative or, at the update, `layer` is unknown.

    Examples:
      >>> import jax.numpy as jnp, mtlopt, optax
      >>> weighting = mtlopt.weight_by_gradnorm(2, optimizer=optax.sgd(0.1))
      >>> grads = mtlopt.TaskGrads.from_rows(jnp.array([[1.0, 0.0], [0.0, 4.0]]))
      >>> _, state = weighting.update(grads, weighting.init(jnp.zeros(2)))
      >>> print(*state.learned)  # doctest: +NUMBER
      1.294 0.706

    References:
      Chen et al., *GradNorm*, ICML 2018, algorithm 1, equations 1 and 2.
    """
    check_num_tasks(num_tasks)
    check_range("alpha", alpha)
    inner = optax.with_extra_args_support(optimizer or optax.sgd(0.025))

    def init_fn(params: Any) -> WeightByGradnormState:
        del params
        learned = jnp.ones(num_tasks)
        return WeightByGradnormState(
            jnp.ones(num_tasks),
            learned,
            jnp.zeros(num_tasks),
            jnp.zeros(num_tasks, bool),
            jax.vmap(inner.init)(learned),
        )

    def update_fn(
        updates: Any, state: Any, params: Any = None, **extra_args: Any
    ) -> tuple[Any, WeightByGradnormState]:
        del extra_args
        grads = check_task_grads(
            updates, num_tasks, params, state, "weight_by_gradnorm"
        )
        weights = state.learned
        there = everyone(num_tasks, grads.present)
        losses = jnp.where(there, grads.losses.astype(weights.dtype), 0)
        initial = jnp.where(state.seen, state.initial, losses)

        ratio = jnp.where(initial == 0, 1, safe_divide(losses, initial))
        rate = safe_divide(ratio, _mean(ratio, there))
        grads, norms = _with_norms(grads, layer)
        norms = norms.astype(weights.dtype)
        weighted = weights * norms
        target = _mean(weighted, there) * rate**alpha
        slope = jnp.where(there, jnp.sign(weighted - target) * norms, 0)

        steps, inner_state = jax.vmap(functools.partial(advance, inner))(
            slope, state.inner_state, weights, grads.present
        )
        moved = jnp.maximum(weights + steps, 0)
        shares = shares_of(moved, grads.present)
        return grads.scale_by(weights), WeightByGradnormState(
            task_weights=weights,
            learned=share_out(shares, weights, num_tasks, grads.present),
            initial=initial,
            seen=state.seen | there,
            inner_state=inner_state,
        )

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)


def _mean(values: jax.Array, there: jax.Array) -> jax.Array:
    """Returns the mean over the present tasks; zero if there are none."""
    total = jnp.sum(jnp.where(there, values, 0))
    return total / jnp.maximum(jnp.sum(there, dtype=values.dtype), 1)


def _with_norms(grads: TaskGrads, layer: str | None) -> tuple[TaskGrads, jax.Array]:
    """Returns the gradients, and the norms `[tasks]` of the leaves in `layer`."""
    if layer is None:
        seen = grads.in_latent_space() if grads.linear.has_latent else grads
        seen = seen.keep_rows()
        kept = dataclasses.replace(seen, in_latent=grads.in_latent)
        return kept, seen.rows().norms()
    chosen = _leaves_below(grads.partition, layer)
    rows = dataclasses.replace(grads, in_latent=False).rows().leaves()
    # XLA does not compute rows that are never read.
    kept = [row for row, below in zip(rows, chosen, strict=True) if below]
    return grads, MaterialRows(grads.num_tasks, kept).norms()


def _leaves_below(partition: Partition, layer: str) -> list[bool]:
    """Returns for each shared leaf whether it is at or below the path `layer`."""
    shared = partition.shared_paths
    parts = layer.strip("/").split("/")
    chosen = [path.split("/")[: len(parts)] == parts for path in shared]
    if not any(chosen):
        listed = ", ".join(repr(path) for path in shared)
        raise ValueError(
            f"`layer` must be the path of a shared leaf or of a subtree with shared "
            f"leaves, got {layer!r}. The shared leaves are {listed}."
        )
    return chosen
