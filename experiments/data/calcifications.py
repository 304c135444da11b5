"""Drawn regions of interest with calcifications: a stand-in for MedIMeta's mammo_calc.

The three label structures are those of the data set, and every label can be seen in
the image. The shapes are cartoons of what the words mean, and how often a label comes
is our own choice: accuracies on these images say nothing about mammograms.
"""

from typing import NamedTuple

import numpy as np

from experiments.data.resizing import resize_matrix

# In the order of the release.
TYPES = (
    "AMORPHOUS",
    "COARSE",
    "DYSTROPHIC",
    "EGGSHELL",
    "FINE_LINEAR_BRANCHING",
    "LARGE_RODLIKE",
    "LUCENT_CENTER",
    "LUCENT_CENTERED",
    "MILK_OF_CALCIUM",
    "PLEOMORPHIC",
    "PUNCTATE",
    "ROUND_AND_REGULAR",
    "SKIN",
    "VASCULAR",
)
DISTRIBUTIONS = ("CLUSTERED", "DIFFUSELY_SCATTERED", "LINEAR", "REGIONAL", "SEGMENTAL")

_DISTRIBUTION_SHARES = (0.5, 0.1, 0.15, 0.1, 0.15)
_SECOND_TYPE, _SECOND_DISTRIBUTION = 0.25, 0.1  # how often there are two
_SUSPICIOUS = ("AMORPHOUS", "FINE_LINEAR_BRANCHING", "PLEOMORPHIC")
_MALIGNANT, _MALIGNANT_IF_SUSPICIOUS = 0.25, 0.7
_NUM_SPECKS = (12, 19)  # in an image
_SPECK = (0.035, 0.05)  # radius, in sides of the image
_LINE = 0.12  # width of drawn lines, in radii of a speck


class Mammograms(NamedTuple):
    """Images with the labels of the three tasks, which are 0 or 1.

    images: uint8 [num, side, side]. distributions: int32 [num, 5], in the order of
    `DISTRIBUTIONS`. types: int32 [num, 14], in the order of `TYPES`. malignant: int32
    [num].
    """

    images: np.ndarray
    distributions: np.ndarray
    types: np.ndarray
    malignant: np.ndarray


def draw_mammograms(num: int, *, side: int, rng: np.random.Generator) -> Mammograms:
    """Draws images of cloudy tissue with 12 to 18 calcifications each.

    The types of an image say what its calcifications look like, its distributions
    where they lie, and it is malignant if thin bright rays spread from the lesion. As
    in the release, whatever is LUCENT_CENTERED is LUCENT_CENTER too. Malignant is more
    frequent with a suspicious type, so the tasks help each other.

    Args:
        num: the number of images.
        side: their height and width in pixels.
        rng: the source of randomness.

    Returns:
        The images and their labels.

    Examples:
        >>> drawn = draw_mammograms(2, side=32, rng=np.random.default_rng(0))
        >>> drawn.images.shape, drawn.types.shape
        ((2, 32, 32), (2, 14))
    """
    types = _pick(num, np.full(len(TYPES), 1 / len(TYPES)), _SECOND_TYPE, rng)
    distributions = _pick(
        num, np.array(_DISTRIBUTION_SHARES), _SECOND_DISTRIBUTION, rng
    )
    suspicious = types[:, [TYPES.index(name) for name in _SUSPICIOUS]].any(axis=1)
    share = np.where(suspicious, _MALIGNANT_IF_SUSPICIOUS, _MALIGNANT)
    malignant = (rng.uniform(size=num) < share).astype(np.int32)
    images = np.empty([num, side, side], np.uint8)
    for image, its_distributions, its_types, is_malignant in zip(
        images, distributions, types, malignant, strict=True
    ):
        drawn = draw_one(
            np.flatnonzero(its_distributions),
            np.flatnonzero(its_types),
            bool(is_malignant),
            side=side,
            rng=rng,
        )
        image[:] = np.rint(255 * np.clip(drawn, 0, 1))
    # The release searches its labels for the shorter word and finds it in the longer.
    types[:, TYPES.index("LUCENT_CENTER")] |= types[:, TYPES.index("LUCENT_CENTERED")]
    return Mammograms(images, distributions, types, malignant)


def draw_one(
    distributions: np.ndarray,
    types: np.ndarray,
    malignant: bool,
    *,
    side: int,
    rng: np.random.Generator,
) -> np.ndarray:
    """Draws one image.

    Args:
        distributions: places in `DISTRIBUTIONS`, one at least. A calcification lies
            as any of them says.
        types: places in `TYPES`, one at least. A calcification is of any of them.
        malignant: whether rays spread from the lesion.
        side: height and width in pixels.
        rng: the source of randomness. It is drawn from in the same way whatever the
            labels, so the same state gives the same tissue.

    Returns:
        The image, float64 [side, side], about in [0, 1].
    """
    image = 0.25 + 0.02 * rng.normal(size=[side, side])
    for size, contrast in ((6, 0.08), (14, 0.03)):
        matrix = resize_matrix(size, side, "linear")
        image += contrast * matrix @ rng.normal(size=[size, size]) @ matrix.T
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
    """Draws one calcification.

    Args:
        kind: its type, a place in `TYPES`.
        u: coordinates along its axis, in radii; any shape.
        v: coordinates across its axis.
        line: the width of lines, in radii.

    Returns:
        Brightness from 0 to 1, of the shape of `u` and `v`.
    """
    r, angle = np.hypot(u, v), np.arctan2(v, u)

    def inside(distance: np.ndarray) -> np.ndarray:
        """1 where the signed distance is negative, 0 where positive, soft between."""
        return 0.5 - 0.5 * np.tanh(distance / line)

    def along(distance: np.ndarray) -> np.ndarray:
        """A line where the distance is zero."""
        return np.exp(-((distance / line) ** 2))

    match TYPES[kind]:
        case "AMORPHOUS":
            return 0.5 * np.exp(-(r**2))
        case "COARSE":
            return inside(r - 1.2)
        case "DYSTROPHIC":
            return inside(r - 1 - 0.4 * np.cos(3 * angle)) * (r > 0.35)
        case "EGGSHELL":
            return along(r - 1)
        case "FINE_LINEAR_BRANCHING":
            third = 2 * np.pi / 3  # three arms: fold the plane onto one of them
            arm = (angle + third / 2) % third - third / 2
            return along(r * np.sin(arm)) * inside(r - 1.4)
        case "LARGE_RODLIKE":
            return inside(np.maximum(np.abs(u) - 1.5, np.abs(v) - 0.3))
        case "LUCENT_CENTER":
            return inside(r - 1) * inside(0.35 - r)
        case "LUCENT_CENTERED":
            return inside(r - 1.2) * inside(0.75 - r)
        case "MILK_OF_CALCIUM":
            return inside(r - 1) * inside(0.9 - np.hypot(u, v + 0.6))
        case "PLEOMORPHIC":
            return inside(np.abs(u) + 2 * np.abs(v) - 1)
        case "PUNCTATE":
            return np.exp(-((r / 0.3) ** 2))
        case "ROUND_AND_REGULAR":
            return inside(r - 0.65)
        case "SKIN":
            return along(np.maximum(np.abs(u), np.abs(v)) - 0.9)
        case _:  # VASCULAR, two parallel walls
            return along(np.abs(v) - 0.45) * inside(np.abs(u) - 1.6)


def _pick(
    num: int, shares: np.ndarray, second: float, rng: np.random.Generator
) -> np.ndarray:
    """Returns one label of each row or, at times, two: int32 [num, labels]."""
    # The largest of log share + Gumbel noise is a draw by the shares; the second
    # largest is a draw from the rest.
    scores = np.log(shares) + rng.gumbel(size=[num, len(shares)])
    rank = np.argsort(np.argsort(-scores, axis=1), axis=1)
    num_labels = 1 + (rng.uniform(size=[num, 1]) < second)
    return (rank < num_labels).astype(np.int32)


def _offsets(num: int, direction: float, rng: np.random.Generator) -> np.ndarray:
    """Returns where specks would lie from their origin: [distributions, num, 2]."""
    normal = rng.normal(size=[num, 2])
    uniform = rng.uniform(-1, 1, [num, 2])
    axes = np.array(
        [
            [np.cos(direction), np.sin(direction)],
            [-np.sin(direction), np.cos(direction)],
        ]
    )
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
    """Draws a speck into the image, in place, where it is brighter."""
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
