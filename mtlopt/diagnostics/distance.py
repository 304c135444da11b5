"""How far training travels through the shared parameters."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from mtlopt.grad import check_updates
from mtlopt.labels import SHARED, Rules, label_params
from mtlopt.linalg.dtypes import solver_dtype


class TrackDistanceState(NamedTuple):
    """State of `track_distance`.

    Attributes:
      covered: sum of the lengths of all updates so far.
      shortest: distance between the initial and the current parameters.
      start: the shared leaves at initialization.
    """

    covered: jax.Array
    shortest: jax.Array
    start: list[jax.Array]


def track_distance(labels: Rules) -> optax.GradientTransformationExtraArgs:
    r"""Measures the path length and the net distance of the shared parameters.

    .. math:: \text{covered} = \sum_t \lVert \theta_{t+1} - \theta_t \rVert, \qquad
        \text{shortest} = \lVert \theta_t - \theta_0 \rVert

    The transform passes updates through unchanged. Chain it last, so that it gets the
    updates that are added to the parameters. The ratio of covered to shortest distance
    shows how much an optimizer wanders. The state keeps one copy of the shared
    parameters.

    Args:
      labels: which leaf is shared and which belongs to which task, see `label_params`.

    Returns:
      A transform whose `update` needs `params`.

    Raises:
      ValueError: if `update` is called without `params`.

    Examples:
      >>> import jax.numpy as jnp
      >>> import mtlopt, optax
      >>> params = {"trunk": jnp.zeros(2), "head": jnp.zeros(2)}
      >>> tracker = mtlopt.track_distance({"trunk": "shared", "head": "a"})
      >>> state = tracker.init(params)
      >>> for step in (jnp.array([3.0, 0.0]), jnp.array([0.0, 4.0])):
      ...     updates, state = tracker.update(
      ...         {"trunk": step, "head": step}, state, params
      ...     )
      ...     params = optax.apply_updates(params, updates)
      >>> state.covered, state.shortest
      (Array(7., dtype=float32), Array(5., dtype=float32))

    References:
      Pascal et al., Improved optimization strategies for deep multi-task networks,
      section 4.4 and table 4 (Frobenius norm over the shared parameters).
    """

    def shared_leaves(tree: Any) -> list[jax.Array]:
        names = jax.tree.leaves(label_params(tree, labels))
        leaves = zip(names, jax.tree.leaves(tree), strict=True)
        return [leaf for name, leaf in leaves if name == SHARED]

    def norm(leaves: list[jax.Array]) -> jax.Array:
        return jnp.sqrt(sum((jnp.sum(leaf * leaf) for leaf in leaves), jnp.zeros([])))

    def init_fn(params: Any) -> TrackDistanceState:
        # Copy them, because the caller may donate the parameters.
        start = [jnp.array(leaf, copy=True) for leaf in shared_leaves(params)]
        zero = norm(_differences(start, start))
        return TrackDistanceState(zero, jnp.zeros_like(zero), start)

    def update_fn(
        updates: Any,
        state: Any,
        params: Any = None,
        **extra_args: Any,
    ) -> tuple[Any, TrackDistanceState]:
        del extra_args
        check_updates(updates, "track_distance")
        if params is None:
            raise ValueError(
                "`params` must be given to the update of track_distance, got None."
            )
        old = shared_leaves(params)
        # The parameters after the update, rounding included.
        new = shared_leaves(optax.apply_updates(params, updates))
        covered = state.covered + norm(_differences(new, old))
        return updates, TrackDistanceState(
            covered, norm(_differences(new, state.start)), state.start
        )

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)


def _differences(left: list[jax.Array], right: list[jax.Array]) -> list[jax.Array]:
    """Returns `left - right` in float32 or wider."""
    return [
        a.astype(solver_dtype([a])) - b.astype(solver_dtype([b]))
        for a, b in zip(left, right, strict=True)
    ]
