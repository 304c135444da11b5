"""Points with their quadrant and circle: the synthetic data of the ATE-SG paper."""

from typing import NamedTuple

import numpy as np

from experiments.data.splits import Splits, check_least, cut, in_words, scaler

_HALF_SIDE = 2.0  # the square is [-2, 2]^2


class Split(NamedTuple):
    """Points, standardised, with the label of each task."""

    points: np.ndarray  # float32 [num, 2]
    quadrants: np.ndarray  # int32 [num], 0 to 3, counterclockwise from x, y > 0
    circles: np.ndarray  # int32 [num], 1 inside the unit circle and 0 outside


def load_quadrants(num_points: int = 10_000, *, seed: int = 0) -> Splits[Split]:
    """Draws points uniformly from the square [-2, 2]^2 and labels them for two tasks.

    In the task "quadrants" a network predicts the quadrant. In the task "circles" it
    predicts whether a point lies inside the unit circle (about one in five does). There
    must be at least 10 points. The points are independent, so every way to cut them is
    a random split.

    References:
        Bellavia et al., "ATE-SG: alternate through the epochs stochastic gradient for
        multi-task neural networks", section 4.1. The paper does not number the
        quadrants; the label 1 for the inside follows the authors' example
        (Fra0013To/ATEforMTNN).
    """
    check_least(10, num_points=num_points)
    rng = np.random.default_rng(seed)
    points = rng.uniform(-_HALF_SIDE, _HALF_SIDE, [num_points, 2]).astype(np.float32)
    quadrants, circles = label_points(points)
    places = cut(np.arange(num_points))
    mean, std = scaler(points[places[0]])
    train, validation, test = (
        Split((points[part] - mean) / std, quadrants[part], circles[part])
        for part in places
    )
    source = f"points of the square [-2, 2]^2 ({in_words(*map(len, places))})"
    return Splits(train, validation, test, source)


def label_points(points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns the quadrant and the circle label of points `[num, 2]`, as in `Split`.

    A coordinate that is zero counts as positive, and the circle itself as inside.
    """
    left, below = (points < 0).T
    # Counterclockwise: in the upper half the right quadrant comes first, in the lower
    # half the left one.
    quadrants = 2 * below + (left ^ below)
    circles = np.square(points, dtype=np.float64).sum(axis=1) <= 1
    return quadrants.astype(np.int32), circles.astype(np.int32)
