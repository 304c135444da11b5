"""Drawn regions of interest with calcifications: a stand-in for MedIMeta's mammo_calc.

The three kinds of labels have the same structure as in the data set, and every label is
visible in the image. The shapes are cartoons of what the words mean, and the
frequencies of the labels are our own choice. So accuracies on these images say nothing
about mammograms.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from experiments.data.resizing import resize_linear

DISTRIBUTIONS = ("CLUSTERED", "DIFFUSELY_SCATTERED", "LINEAR", "REGIONAL", "SEGMENTAL")

_DISTRIBUTION_SHARES = (0.5, 0.1, 0.15, 0.1, 0.15)
_SECOND_TYPE, _SECOND_DISTRIBUTION = 0.25, 0.1  # how often an image has two
_SUSPICIOUS = ("AMORPHOUS", "FINE_LINEAR_BRANCHING", "PLEOMORPHIC")
_MALIGNANT, _MALIGNANT_IF_SUSPICIOUS = 0.25, 0.7
_NUM_SPECKS = (12, 19)  # in an image
_SPECK = (0.035, 0.05)  # radius, in sides of the image
_LINE = 0.12  # width of drawn lines, in radii of a speck
_THIRD = 2 * np.pi / 3


class _Speck(NamedTuple):
    """Coordinates in radii of the speck, and the width of lines."""

    u: np.ndarray  # along the axis
    v: np.ndarray  # across it
    r: np.ndarray  # polar ones
    angle: np.ndarray  # in radians
    line: float

    def inside(self, distance: np.ndarray) -> np.ndarray:
        """Returns 1 for negative signed distances, 0 for positive, with a soft edge."""
        return 0.5 - 0.5 * np.tanh(distance / self.line)

    def along(self, distance: np.ndarray) -> np.ndarray:
        """Draws a line along the points of distance zero."""
        return np.exp(-((distance / self.line) ** 2))

    def branches(self) -> np.ndarray:
        """Draws three arms, by folding the plane onto one of them."""
        arm = (self.angle + _THIRD / 2) % _THIRD - _THIRD / 2
        return self.along(self.r * np.sin(arm)) * self.inside(self.r - 1.4)


# Brightness from 0 to 1 of each type, in the order of the release.
_BRIGHTNESS: dict[str, Callable[[_Speck], np.ndarray]] = {
    "AMORPHOUS": lambda s: 0.5 * np.exp(-(s.r**2)),
    "COARSE": lambda s: s.inside(s.r - 1.2),
    "DYSTROPHIC": lambda s: (
        s.inside(s.r - 1 - 0.4 * np.cos(3 * s.angle)) * (s.r > 0.35)
    ),
    "EGGSHELL": lambda s: s.along(s.r - 1),
    "FINE_LINEAR_BRANCHING": lambda s: s.branches(),
    "LARGE_RODLIKE": lambda s: s.inside(
        np.maximum(np.abs(s.u) - 1.5, np.abs(s.v) - 0.3)
    ),
    "LUCENT_CENTER": lambda s: s.inside(s.r - 1) * s.inside(0.35 - s.r),
    "LUCENT_CENTERED": lambda s: s.inside(s.r - 1.2) * s.inside(0.75 - s.r),
    "MILK_OF_CALCIUM": lambda s: (
        s.inside(s.r - 1) * s.inside(0.9 - np.hypot(s.u, s.v + 0.6))
    ),
    "PLEOMORPHIC": lambda s: s.inside(np.abs(s.u) + 2 * np.abs(s.v) - 1),
    "PUNCTATE": lambda s: np.exp(-((s.r / 0.3) ** 2)),
    "ROUND_AND_REGULAR": lambda s: s.inside(s.r - 0.65),
    "SKIN": lambda s: s.along(np.maximum(np.abs(s.u), np.abs(s.v)) - 0.9),
    # Two parallel walls.
    "VASCULAR": lambda s: s.along(np.abs(s.v) - 0.45) * s.inside(np.abs(s.u) - 1.6),
}
TYPES = tuple(_BRIGHTNESS)


class Mammograms(NamedTuple):
    """Images with the labels of the three tasks, which are 0 or 1."""

    images: np.ndarray  # uint8 [num, side, side]
    distributions: np.ndarray  # int32 [num, 5], as in `DISTRIBUTIONS`
    types: np.ndarray  # int32 [num, 14], as in `TYPES`
    malignant: np.ndarray  # int32 [num]


def draw_mammograms(num: int, *, side: int, rng: np.random.Generator) -> Mammograms:
    """Draws images of cloudy tissue with 12 to 18 calcifications each.

    The types of an image say what its calcifications look like, and its distributions
    say where they lie. An image is malignant if thin bright rays spread from the
    lesion. Malignant images are more frequent with a suspicious type, so the tasks help
    each other.
    """
    types = _pick(num, [1 / len(TYPES)] * len(TYPES), _SECOND_TYPE, rng)
    distributions = _pick(num, _DISTRIBUTION_SHARES, _SECOND_DISTRIBUTION, rng)
    suspicious = types[:, [TYPES.index(name) for name in _SUSPICIOUS]].any(axis=1)
    share = np.where(suspicious, _MALIGNANT_IF_SUSPICIOUS, _MALIGNANT)
    malignant = (rng.uniform(size=num) < share).astype(np.int32)
    images = np.empty([num, side, side], np.uint8)
    labels = zip(distributions, types, malignant, strict=True)
    for image, (layout, kinds, rays) in zip(images, labels, strict=True):
        places = np.flatnonzero(layout), np.flatnonzero(kinds)
        drawn = draw_one(*places, bool(rays), side=side, rng=rng)
        image[:] = np.rint(255 * np.clip(drawn, 0, 1))
    # As in the release, in which the longer word also counts as the shorter word in it.
    types[:, TYPES.index("LUCENT_CENTER")] |= types[:, TYPES.index("LUCENT_CENTERED")]
    return Mammograms(images, distributions, types, malignant)


def draw_one(
    distributions: np.ndarray,  # places in `DISTRIBUTIONS`, one at least
    types: np.ndarray,  # places in `TYPES`, one at least
    malignant: bool,  # whether rays spread from the lesion
    *,
    side: int,
    rng: np.random.Generator,
) -> np.ndarray:
    """Draws one image, float64 [side, side], about in [0, 1].

    Each calcification follows one of the distributions and has one of the types. The
    random numbers do not depend on the labels.
    """
    image = 0.25 + 0.02 * rng.normal(size=[side, side])
    for size, contrast in ((6, 0.08), (14, 0.03)):
        noise = rng.normal(size=[size, size, 1])
        image += contrast * resize_linear(noise, (side, side))[..., 0]
    centre = rng.uniform(0.35, 0.65, 2)
    direction, num_rays = rng.uniform(0, 2 * np.pi), int(rng.integers(5, 9))
    num_specks = int(rng.integers(*_NUM_SPECKS))
    brightness = rng.uniform(0.45, 0.65, num_specks)
    radius, turn = rng.uniform(*_SPECK, num_specks), rng.uniform(size=num_specks)
    offsets = _offsets(num_specks, direction, rng)
    which = rng.uniform(size=[2, num_specks])
    distribution = distributions[(which[0] * len(distributions)).astype(int)]
    kind = types[(which[1] * len(types)).astype(int)]

    if malignant:
        image += _rays(side, centre, direction, num_rays)
    scattered = distribution == DISTRIBUTIONS.index("DIFFUSELY_SCATTERED")
    origin = np.where(scattered[:, None], 0.5, centre)
    places = np.clip(origin + offsets[distribution, np.arange(num_specks)], 0.04, 0.96)
    specks = np.zeros([side, side])
    for i in range(num_specks):
        _stamp(specks, kind[i], places[i], radius[i], turn[i], brightness[i])
    return image + specks


def draw_speck(kind: int, u: np.ndarray, v: np.ndarray, line: float) -> np.ndarray:
    """Draws a calcification of a type, a place in `TYPES`; see `_Speck`."""
    speck = _Speck(u, v, np.hypot(u, v), np.arctan2(v, u), line)
    return _BRIGHTNESS[TYPES[kind]](speck)


def _pick(
    num: int, shares: Sequence[float], second: float, rng: np.random.Generator
) -> np.ndarray:
    """Returns one label for each row, and sometimes two: int32 [num, labels]."""
    # The largest of log share + Gumbel noise is a draw by the shares; the second
    # largest is a draw from the other labels.
    scores = np.log(shares) + rng.gumbel(size=[num, len(shares)])
    rank = np.argsort(np.argsort(-scores, axis=1), axis=1)
    num_labels = 1 + (rng.uniform(size=[num, 1]) < second)
    return (rank < num_labels).astype(np.int32)


def _offsets(num: int, direction: float, rng: np.random.Generator) -> np.ndarray:
    """Returns where specks would lie from their origin: [distributions, num, 2]."""
    normal = rng.normal(size=[num, 2])
    uniform = rng.uniform(-1, 1, [num, 2])
    cos, sin = np.cos(direction), np.sin(direction)
    axes = np.array([[cos, sin], [-sin, cos]])
    # A wedge of 50 degrees with its tip at one side of the lesion.
    reach = 0.55 * np.sqrt(np.abs(uniform[:, :1]))
    spread = np.deg2rad(25) * uniform[:, 1:]
    wedge = reach * np.hstack([np.cos(spread), np.sin(spread)]) - [0.35, 0]
    line = np.stack([0.4 * uniform[:, 0], 0.008 * normal[:, 0]], axis=1)
    return np.stack(
        [0.06 * normal, 0.45 * uniform, line @ axes, 0.16 * normal, wedge @ axes]
    )


def _rays(side: int, centre: np.ndarray, direction: float, num_rays: int) -> np.ndarray:
    """Returns thin rays that fade with the distance from the centre."""
    y, x = np.mgrid[:side, :side] / side - centre[:, None, None]
    angle = np.arctan2(y, x) - direction
    fade = np.exp(-((np.hypot(x, y) / 0.3) ** 2))
    return 0.3 * fade * np.cos(num_rays * angle / 2) ** 8


def _stamp(
    image: np.ndarray,
    kind: int,
    place: np.ndarray,
    radius: float,
    turn: float,
    brightness: float,
) -> None:
    """Draws a speck into the image, in place, at pixels that it makes brighter."""
    side = len(image)
    reach = 2 * radius  # no shape is longer
    low = np.maximum(np.floor((place - reach) * side), 0).astype(int)
    high = np.minimum(np.ceil((place + reach) * side), side).astype(int)
    patch = image[low[0] : high[0], low[1] : high[1]]
    y = (np.arange(low[0], high[0])[:, None] + 0.5) / side - place[0]
    x = (np.arange(low[1], high[1])[None, :] + 0.5) / side - place[1]
    cos, sin = np.cos(2 * np.pi * turn), np.sin(2 * np.pi * turn)
    u, v = (cos * x + sin * y) / radius, (cos * y - sin * x) / radius
    line = max(_LINE, 0.5 / (radius * side))  # half a pixel, at least
    np.maximum(patch, brightness * draw_speck(kind, u, v, line), out=patch)
