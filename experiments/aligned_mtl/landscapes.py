r"""Two losses of two parameters, published as pictures of conflict and dominance.

There are two landscapes. Both have formulas, and so have their Pareto sets.

**Yu.** Both losses are logarithms of the distance `u` to a curved valley, cut off at
`floor = 5e-6`. The valleys meet only in the limit :math:`x_2 \to \infty`, at
:math:`x_1 = -2`. On this line, both losses are at their minimum if :math:`1 - \tanh
x_2` is below the floor. The front is this one point, :math:`(20 \log \text{floor}, 25
\log \text{floor}) = (-244.1, -305.2)`.

**CAGrad.** The upper half-plane has two logarithmic valleys, with losses above -6.3.
The lower half-plane has two parabolas times :math:`t = \tanh(-x_2 / 2)`. On a line of
constant :math:`x_1 = 7 (2 w - 1)` the weighted loss :math:`w L_1 + (1 - w) L_2`,
:math:`0 \le w \le 1`, is stationary in :math:`x_1`, and equal to

.. math:: h(x_2) = t \, (4.9 - x_1^2 / 10 + (x_2 + 8)^2 / 100 - 20)

So the Pareto set is the minimum of `h` for each :math:`x_1` in [-7, 7]. This is one
root of :math:`h'` in [-9, -8], found by bisection in float64 to the last bit. The set
is nearly, but not exactly, the line :math:`x_2 = -8.3552` of the published plots. The
front has 1,001 points and is interpolated between them; the error in the losses is
below 1e-5.
"""

import dataclasses
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

FLOOR = 5e-6


class Loss(NamedTuple):
    r"""A loss of two parameters, given by numbers, so that all share one program.

    .. math::
        L(x) = a \, (k \log \max(|u|, \text{floor}) + m) + b \, v \\
        u = x_1 / 2 + s + d \tanh x_2, \qquad
        v = ((x_1 - c)^2 + (x_2 + 8)^2 / 10) / 10 - 20

    `a` and `b` are the positive and the negative part of :math:`\tanh(x_2 / 2)` if the
    loss is `split`, and one and zero otherwise.
    """

    factor: float  # k, of the logarithm
    offset: float  # m
    shift: float  # s, where the valley u = 0 is
    bend: float  # d, the side to which the valley bends
    centre: float = 0.0  # c, of the parabola
    split: float = 0.0  # 1 or 0

    def __call__(self, x: jax.Array) -> jax.Array:
        """Returns the loss at `x`, `[2]`."""
        u = 0.5 * x[0] + self.shift + self.bend * jnp.tanh(x[1])
        valley = self.factor * jnp.log(jnp.maximum(jnp.abs(u), FLOOR)) + self.offset
        bowl = ((x[0] - self.centre) ** 2 + 0.1 * (x[1] + 8) ** 2) / 10 - 20
        gate = jnp.tanh(x[1] / 2)
        upper = 1 - self.split + self.split * jnp.maximum(gate, 0)
        return upper * valley + self.split * jnp.maximum(-gate, 0) * bowl


@dataclasses.dataclass(frozen=True, eq=False)
class Landscape:
    """Two losses, the starting points, and the Pareto set and front."""

    title: str
    losses: tuple[Loss, Loss]
    starts: tuple[tuple[float, float], ...]
    pareto_set: np.ndarray  # `[points, 2]`, in the order of the front
    front: np.ndarray  # the losses there, `[points, 2]`; the first loss increases
    tolerance: float  # near: at most this distance from the front, in loss units
    window: tuple[float, float, float, float]  # of x_1 and x_2, in a figure

    def distance(self, losses: np.ndarray) -> np.ndarray:
        r"""How far both losses `[..., 2]` can still fall: the distance to the front.

        .. math:: \min_{p \in \text{front}} \max_i \, (L_i - p_i)

        The distance is zero on the front and positive for all other losses that are
        possible. The nearest point has the same difference `p_1 - p_2` as the losses,
        or is the end of the front on that side. NaN gives NaN.
        """
        losses = np.asarray(losses, np.float64)
        gaps = self.front[:, 0] - self.front[:, 1]
        gap = losses[..., 0] - losses[..., 1]
        nearest = [np.interp(gap, gaps, values) for values in self.front.T]
        return np.max(losses - np.stack(nearest, axis=-1), axis=-1)


def _yu_front() -> tuple[np.ndarray, np.ndarray]:
    # The place where both losses are cut off: u_1 = tanh(x_2) - 1 at x_1 = -2, and u_2
    # = -u_1.
    first = math.atanh(1 - FLOOR)
    pareto_set = np.array([[-2.0, first], [-2.0, 2 * first]])
    # The same point twice: the ends of an interval of length zero.
    return pareto_set, np.tile([20 * math.log(FLOOR), 25 * math.log(FLOOR)], (2, 1))


def _cagrad_front(points: int = 1_001) -> tuple[np.ndarray, np.ndarray]:
    x1 = np.linspace(7, -7, points)

    def slope(x2: np.ndarray) -> np.ndarray:
        t = np.tanh(-x2 / 2)
        inner = 4.9 - x1**2 / 10 + (x2 + 8) ** 2 / 100 - 20
        return -(1 - t**2) / 2 * inner + t * (x2 + 8) / 50

    low, high = np.full(points, -9.0), np.full(points, -8.0)
    for _ in range(60):
        x2 = (low + high) / 2
        falling = slope(x2) < 0
        low, high = np.where(falling, x2, low), np.where(falling, high, x2)
    x2 = (low + high) / 2
    front = [
        np.tanh(-x2 / 2) * (((x1 - centre) ** 2 + 0.1 * (x2 + 8) ** 2) / 10 - 20)
        for centre in (7, -7)
    ]
    return np.stack([x1, x2], axis=-1), np.stack(front, axis=-1)


_YU_SET, _YU_FRONT = _yu_front()
_CAGRAD_SET, _CAGRAD_FRONT = _cagrad_front()

LANDSCAPES = {
    "yu": Landscape(
        title="Yu et al. (PCGrad), figure 1",
        losses=(Loss(20.0, 0.0, 0.0, 1.0), Loss(25.0, 0.0, 2.0, -1.0)),
        # The first start is the paper's. The others are ours: inside and outside of the
        # valleys.
        starts=((0.5, -3.0), (-4.5, -3.0), (4.0, -1.0), (-8.0, -1.0), (0.0, 2.0)),
        pareto_set=_YU_SET,
        front=_YU_FRONT,
        # Within 0.11 of the first valley and 0.015 of the second, |u_1| + |u_2| >=
        # 2 - 2 tanh(x_2): beyond x_2 = 1.37, where the valleys have become one. Smaller
        # distances are chance: a step of Adam is as long as its learning rate, which is
        # far above the floor, and the loss is the logarithm of the distance after the
        # step.
        tolerance=200.0,
        window=(-9.5, 6.0, -4.5, 9.0),
    ),
    "cagrad": Landscape(
        title="Liu et al. (CAGrad)",
        losses=(
            Loss(1.0, 6.0, 3.5, -1.0, centre=7.0, split=1.0),
            Loss(1.0, 6.0, -3.5, 1.0, centre=-7.0, split=1.0),
        ),
        # The starts of the code of Nash-MTL and of Aligned-MTL.
        starts=((-8.5, 7.5), (0.0, 0.0), (9.0, 9.0), (-7.5, -0.5), (9.0, -1.0)),
        pareto_set=_CAGRAD_SET,
        front=_CAGRAD_FRONT,
        # The front spans 19.6 in both losses.
        tolerance=0.1,
        window=(-11.0, 11.0, -11.0, 11.0),
    ),
}
