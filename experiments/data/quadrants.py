"""Points of a square by quadrant and by circle: the synthetic set of the ATE paper."""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from experiments.data.splits import scaler, split_sizes

_HALF_SIDE = 2.0  # the square is [-2, 2]^2


class Split(NamedTuple):
    """Points, standardised, with the label of each task.

    points: float32 [num, 2]. quadrants: int32 [num], from 0 to 3, counterclockwise
    from the one with two positive coordinates. circles: int32 [num], 1 inside the unit
    circle and 0 outside.
    """

    points: np.ndarray
    quadrants: np.ndarray
    circles: np.ndarray


@dataclass(frozen=True)
class Quadrants:
    """Three splits and, in words, where they come from.

    `mean` and `std`, float32 [2], are those of the train points: `points * std + mean`
    lies in the square again.
    """

    train: Split
    validation: Split
    test: Split
    mean: np.ndarray
    std: np.ndarray
    source: str


def load_quadrants(num_points: int = 10_000, *, seed: int = 0) -> Quadrants:
    """Draws points uniformly from the square [-2, 2]^2 and labels them for two tasks.

    Task "quadrants" is to tell the quadrant, task "circles" to tell if a point lies
    inside the unit circle (about one in five does). The points are standardised by the
    mean and standard deviation of the train points.

    Args:
        num_points: the number of points, 10 at least. The paper's 10,000 give 5,600 to
            train, 1,400 for validation and 3,000 to test; see `split_sizes`.
        seed: picks the points. They are independent, so any cut is a random split.

    Returns:
        The splits. `source` names them for a table or a log.

    Raises:
        ValueError: if `num_points` is below 10.

    Examples:
        >>> data = load_quadrants(100)
        >>> data.train.points.shape, data.train.points.dtype
        ((56, 2), dtype('float32'))
        >>> data.source
        'points of the square [-2, 2]^2 (56 train / 14 validation / 30 test)'

    References:
        Bellavia et al., "ATE-SG: alternate through the epochs stochastic gradient for
        multi-task neural networks", section 4.1. The paper does not number the
        quadrants; the label 1 for the inside is that of the authors' example
        (Fra0013To/ATEforMTNN), the other way to read it renames two classes.
    """
    if num_points < 10:
        raise ValueError(f"`num_points` must be at least 10, got {num_points}.")
    rng = np.random.default_rng(seed)
    points = rng.uniform(-_HALF_SIDE, _HALF_SIDE, [num_points, 2]).astype(np.float32)
    quadrants, circles = label_points(points)
    num_train, num_validation, num_test = split_sizes(num_points)
    mean, std = scaler(points[:num_train])
    whole = Split((points - mean) / std, quadrants, circles)
    cuts = (num_train, num_train + num_validation)
    train, validation, test = (
        Split(*arrays)
        for arrays in zip(*(np.split(a, cuts) for a in whole), strict=True)
    )
    source = (
        f"points of the square [-2, 2]^2 ({num_train:,} train / "
        f"{num_validation:,} validation / {num_test:,} test)"
    )
    return Quadrants(train, validation, test, mean, std, source)


def label_points(points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns the quadrant and the circle label of every point.

    Args:
        points: points of the plane, not standardised, `[num, 2]`. A coordinate that is
            zero counts as positive, and the circle itself as inside.

    Returns:
        The quadrants and the circle labels, as in `Split`.

    Examples:
        >>> label_points(np.array([[0.5, 0.5], [-1, 1], [-0.1, -0.2], [2, -1]]))
        (array([0, 1, 2, 3], dtype=int32), array([1, 0, 1, 0], dtype=int32))
    """
    left, below = (points < 0).T
    # Counterclockwise: above, the right quadrant comes first; below, the left one.
    quadrants = 2 * below + (left ^ below)
    circles = np.square(points, dtype=np.float64).sum(axis=1) <= 1
    return quadrants.astype(np.int32), circles.astype(np.int32)
