"""Methods that a diagnosis suggests to try, in words."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from mtlopt.diagnostics.diagnose import Diagnosis, as_diagnosis

# At this ratio of lengths or above, the shortest gradient turns a sum by a tenth at
# most: the summed loss follows almost only the longest gradient.
NORM_RATIO = 10.0
# Gradient surgery removes |cos| of a gradient's length. If that is below a tenth,
# methods that resolve conflicts do no more than another learning rate would.
CONFLICT_COSINE = -0.1
# Ratio of the gap to the gap of orthogonal gradients of the same lengths; two equally
# long gradients reach a tenth at 172 degrees. The mean length would be a bad base: one
# short gradient makes the gap short without any conflict, and so do many orthogonal
# gradients.
GAP_OF_ORTHOGONAL = 0.1
# Condition number of the rows' Gramian, in units of 1 / eps: about 1e4 in float32.
# Above it, at most a hundredth of some gradient is independent of the other gradients.
CONDITION_EPS = 1e-3


class _Summary(NamedTuple):
    """Summary of all diagnoses, for the tasks that were ever present."""

    names: list[str]
    lengths: np.ndarray  # [tasks], median
    cosines: np.ndarray  # [tasks, tasks], mean; NaN for pairs never present together
    gap: float  # median ratio of the gap to the gap of orthogonal gradients
    condition: float  # median, in units of 1 / eps


def suggestions(
    diagnosis: Diagnosis | list[Diagnosis], tasks: Sequence[str] | None = None
) -> list[str]:
    """Suggests methods to try for these gradients, in plain sentences.

    The suggestions follow rules of thumb. The source file
    `mtlopt/diagnostics/suggestions.py` explains their thresholds. One batch says
    little, so pass the diagnoses of several steps or seeds. The function uses the
    median of each number over these diagnoses, and the mean of the cosines. Only a
    comparison with a tuned summed loss can tell whether a method helps. Methods are
    named by their keys in `METHODS`. The function runs on the host, outside `jit`.

    Args:
      diagnosis: a result of `diagnose`, whose arrays may have further leading axes, or
        a list of results.
      tasks: names of the tasks. Default: the names in the gradients.

    Returns:
      A list of at least one suggestion, each a string of one or more sentences.

    Raises:
      ValueError: if `tasks` does not have one name per task.

    Examples:
      >>> import jax.numpy as jnp
      >>> import mtlopt
      >>> grads = mtlopt.TaskGrads.from_rows(jnp.array([[40.0, 0.0], [0.1, 1.0]]))
      >>> for sentence in mtlopt.suggestions(mtlopt.diagnose(grads), ["seg", "depth"]):
      ...     print(sentence)
      The gradient of seg is 39.8 times as long as the gradient of depth, so the summed
      loss follows seg. Try fixed weights of the losses (weight_by_fixed), or a method
      that makes the lengths more equal (aligned_mtl, imtl_g, mgda_l2).

    References:
      Kurin et al., *In Defense of the Unitary Scalarization for Deep Multi-Task
      Learning*, NeurIPS 2022; Xin et al., *Do Current Multi-Task Optimization Methods
      in Deep Learning Even Help?*, NeurIPS 2022: a tuned sum is hard to beat.
    """
    diagnosis = as_diagnosis(diagnosis)
    num_tasks = np.shape(diagnosis.norms)[-1]
    names = [str(name) for name in (diagnosis.tasks if tasks is None else tasks)]
    if len(names) != num_tasks:
        raise ValueError(
            f"`tasks` must have one name per task, {num_tasks}, got {len(names)}."
        )
    broken = _not_finite(diagnosis, names)
    if broken:
        return broken
    if np.sum(diagnosis.present, axis=-1).max() < 2:
        return ["No batch has two tasks, so there is nothing to balance."]
    summary = _summarize(diagnosis, names)
    found = [*_zeros(summary), *_lengths(summary), *_directions(summary)]
    return found or [
        "Nothing is conspicuous: a summed loss (sum_tasks) with a tuned learning rate "
        "is hard to beat."
    ]


def _not_finite(diagnosis: Diagnosis, names: list[str]) -> list[str]:
    """Says which tasks have numbers that are not finite, in any of the diagnoses."""
    whose = []
    for what, finite in (
        ("loss", diagnosis.finite_losses),
        ("gradient", diagnosis.finite_gradients),
    ):
        everywhere = np.all(np.reshape(finite, (-1, len(names))), axis=0).tolist()
        broken = [name for name, ok in zip(names, everywhere, strict=True) if not ok]
        whose += [f"The {what} of {', '.join(broken)}"] if broken else []
    if not whose and not np.isfinite(diagnosis.cosines).all():
        whose = ["A cosine"]
    return [
        f"{one} is not finite. If a batch has no labels of the task, pass `present`: "
        "a mask does not keep labels that are NaN out of the gradient. Otherwise find "
        "the function that returns the value, or lower the learning rate. "
        "skip_not_finite leaves out such steps or, with per_task=True, such tasks."
        for one in whose
    ]


def _summarize(diagnosis: Diagnosis, names: list[str]) -> _Summary:
    num_tasks = len(names)
    present = np.asarray(diagnosis.present).reshape(-1, num_tasks)
    seen = np.any(present, axis=0)
    present = present[:, seen]
    norms = np.asarray(diagnosis.norms).reshape(-1, num_tasks)[:, seen]
    cosines = np.asarray(diagnosis.cosines).reshape(-1, num_tasks, num_tasks)
    cosines = cosines[:, seen][:, :, seen]
    pairs = present[:, :, None] & present[:, None]
    counts = pairs.sum(axis=0)
    with np.errstate(divide="ignore", invalid="ignore"):
        mean_cosines = np.where(pairs, cosines, 0).sum(axis=0) / counts
        inverse_squares = np.where(present, 1 / np.square(norms, dtype=float), 0)
        orthogonal = 1 / np.sqrt(inverse_squares.sum(axis=1))
        gaps = np.asarray(diagnosis.stationarity_gap).reshape(-1) / orthogonal
    # A batch of one task, or with a zero gradient, says nothing about directions.
    usable = (present.sum(axis=1) > 1) & (orthogonal > 0)
    conditions = np.asarray(diagnosis.condition)
    eps = float(np.finfo(conditions.dtype).eps)
    conditions = conditions.reshape(-1)[usable]
    return _Summary(
        names=[names[index] for index in np.flatnonzero(seen)],
        lengths=np.nanmedian(np.where(present, norms, np.nan), axis=0),
        cosines=mean_cosines,
        gap=float(np.median(gaps[usable])) if usable.any() else np.inf,
        condition=float(np.median(conditions)) * eps if usable.any() else 0.0,
    )


def _zeros(summary: _Summary) -> list[str]:
    if not summary.lengths.any():
        return [
            "No task has a gradient over shared parameters. If no parameter is shared, "
            "for example with a frozen trunk, aggregators have nothing to combine, and "
            "all of them act like sum_tasks. Otherwise all losses are constant."
        ]
    return [
        f"The gradient of {name} over the shared parameters is zero. If the task is "
        "absent, pass `present`. If its head does not read the shared part (a probe), "
        "wrap the aggregator in `leave_out`. Otherwise its loss is constant."
        for name, length in zip(summary.names, summary.lengths, strict=True)
        if length == 0
    ]


def _lengths(summary: _Summary) -> list[str]:
    lengths = np.where(summary.lengths > 0, summary.lengths, np.nan)
    if np.isnan(lengths).all():
        return []
    longest, shortest = np.nanargmax(lengths), np.nanargmin(lengths)
    ratio = lengths[longest] / lengths[shortest]
    if ratio < NORM_RATIO:
        return []
    long, short = summary.names[longest], summary.names[shortest]
    return [
        f"The gradient of {long} is {ratio:.3g} times as long as the gradient of "
        f"{short}, so the summed loss follows {long}. Try fixed weights of the losses "
        "(weight_by_fixed), or a method that makes the lengths more equal "
        "(aligned_mtl, imtl_g, mgda_l2)."
    ]


def _directions(summary: _Summary) -> list[str]:
    found = []
    lowest = np.nanmin(summary.cosines)
    others = ~np.eye(len(summary.names), dtype=bool) & ~np.isnan(summary.cosines)
    is_apart = others.any() and np.all(summary.cosines[others] == 0)
    if is_apart and np.all(summary.lengths > 0):
        found.append(
            "All cosines are exactly zero: no entry of the parameters (or of the "
            "latent) affects two tasks, so the tasks cannot conflict. Tasks that each "
            "have their own inputs share parameters, but no latent."
        )
    if summary.gap < GAP_OF_ORTHOGONAL:
        found.append(
            "The gradients nearly cancel (their shortest combination has "
            f"{summary.gap:.1%} of the length that it would have for orthogonal "
            "gradients), so the batches are nearly Pareto-stationary: a step that "
            "helps one task hurts another. Choose the trade-off (weight_by_fixed, or a "
            "preference), and decay the learning rate."
        )
    elif lowest < CONFLICT_COSINE:
        first, second = np.argwhere(summary.cosines == lowest)[0]
        found.append(
            f"The gradients of {summary.names[first]} and {summary.names[second]} "
            f"conflict (mean cosine {lowest:.2f}): try a method that resolves "
            "conflicts (pcgrad, cagrad), or one whose steps raise no loss to first "
            "order (upgrad, dualproj)."
        )
    if summary.condition > CONDITION_EPS:
        found.append(
            "The directions of the gradients are linearly dependent, or nearly so. If "
            "some tasks measure the same thing, merge them into one task. aligned_mtl "
            "takes short steps here, because it gives all components the length of "
            "the shortest component; imtl_g and conflict_free follow the small "
            "differences."
        )
    return found
