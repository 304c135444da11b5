"""The parts of a rendered scene, and a builder that puts it together.

The world is in metres: x to the right, y ahead, z up. Everything is a box or a sphere.
Each is made from a canonical shape, the cube |x|, |y|, |z| <= 1 or the unit sphere,
which is stretched, turned about z and moved.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

SHAPES = ("box", "sphere")
PATTERNS = ("plain", "stripes", "checks", "mottle")
COLOURS = {
    "red": (0.72, 0.13, 0.11),
    "orange": (0.90, 0.48, 0.12),
    "yellow": (0.90, 0.78, 0.22),
    "green": (0.22, 0.50, 0.20),
    "blue": (0.16, 0.32, 0.70),
    "purple": (0.46, 0.22, 0.56),
    "pink": (0.88, 0.52, 0.62),
    "brown": (0.46, 0.30, 0.18),
    "white": (0.90, 0.89, 0.86),
    "grey": (0.52, 0.53, 0.54),
    "black": (0.10, 0.10, 0.11),
}
_JITTER = 0.04  # spread of a colour around the colour of its name

Triple = tuple[float, float, float]


class Place(NamedTuple):
    """The origin of a thing, and its rotation about its z axis."""

    at: Triple
    yaw: float = 0.0

    def moved(self, x: float, y: float, z: float, turn: float = 0.0) -> "Place":
        """Returns a place that is given in the frame of this place."""
        cos, sin = math.cos(self.yaw), math.sin(self.yaw)
        at_x, at_y, at_z = self.at
        at = at_x + cos * x - sin * y, at_y + sin * x + cos * y, at_z + z
        return Place(at, self.yaw + turn)


ORIGIN = Place((0.0, 0.0, 0.0))


class Scene(NamedTuple):
    """Parts as arrays with one row each, and the light.

    A point p of a canonical shape is at `rotations @ (halves * p) + centres`. A pattern
    varies between colour and accent.
    """

    shapes: np.ndarray  # int8 [parts], places in `SHAPES`
    centres: np.ndarray  # float32 [parts, 3]
    rotations: np.ndarray  # float32 [parts, 3, 3]
    halves: np.ndarray  # float32 [parts, 3], half sizes along the canonical axes
    classes: np.ndarray  # uint8 [parts]
    instances: np.ndarray  # int16 [parts], from 1; 0 for parts without an instance
    hues: np.ndarray  # int8 [parts], places in `COLOURS`
    colours: np.ndarray  # float32 [parts, 3]
    accents: np.ndarray  # float32 [parts, 3]
    patterns: np.ndarray  # int8 [parts], places in `PATTERNS`
    scales: np.ndarray  # float32 [parts], the size of the pattern in metres
    glows: np.ndarray  # float32 [parts], 0 for lit parts, 1 for parts that shine
    light: np.ndarray  # float32 [3], its place
    reach: float  # the distance at which the light has faded by half, in metres
    ambient: float  # the share of light from everywhere, in [0, 1]
    haze: float  # the distance at which haze hides all but 1 / e, in metres
    space: np.ndarray  # float32 [2, 3], opposite corners of where a camera may be
    seed: int  # of patterns and noise


class Paint(NamedTuple):
    """How a surface looks; see `Scene` for the words."""

    hue: str
    colour: Triple
    pattern: str = "plain"
    accent: Triple = (0.0, 0.0, 0.0)
    scale: float = 1.0
    glow: float = 0.0

    def patterned(self, pattern: str, scale: float, accent: float | Triple) -> "Paint":
        """Returns the paint with a pattern; a number as accent scales the colour."""
        if not isinstance(accent, tuple):
            r, g, b = (min(1.0, accent * channel) for channel in self.colour)
            accent = r, g, b
        return self._replace(pattern=pattern, scale=scale, accent=accent)

    def toned(self, contrast: float, brightness: float) -> "Paint":
        """Returns a paler or darker paint: contrast times colour plus brightness."""
        r, g, b = (contrast * channel + brightness for channel in self.colour)
        return self._replace(colour=(r, g, b))

    def glowing(self, glow: float = 1.0) -> "Paint":
        """Returns a paint that shines by itself."""
        return self._replace(glow=glow)


@dataclass(frozen=True)
class Thing:
    """An object under construction; parts are given in the frame of its place."""

    rows: list[tuple]
    label: int
    instance: int
    place: Place

    def box(self, centre: Triple, sizes: Triple, paint: Paint) -> None:
        """Adds a box, given its half sizes along the axes."""
        self._add("box", centre, sizes, paint)

    def ball(self, centre: Triple, sizes: Triple | float, paint: Paint) -> None:
        """Adds a sphere, given its radius, or an ellipsoid, given three."""
        if not isinstance(sizes, tuple):
            sizes = (sizes, sizes, sizes)
        self._add("sphere", centre, sizes, paint)

    def _add(self, shape: str, centre: Triple, sizes: Triple, paint: Paint) -> None:
        place = self.place.moved(*centre)
        row = SHAPES.index(shape), self.label, self.instance, *place, sizes, paint
        self.rows.append(row)


class SceneBuilder:
    """Collects the parts of a scene, and draws its random numbers."""

    def __init__(self, classes: tuple[str, ...], rng: np.random.Generator):
        self.rng = rng
        self._classes = classes
        self._rows: list[tuple] = []
        self._num_instances = 0

    def chance(self, share: float) -> bool:
        """Returns True in this share of cases."""
        return bool(self.rng.random() < share)

    def within(self, low: float, high: float) -> float:
        """Draws a number uniformly."""
        return float(self.rng.uniform(low, high))

    def one_of(self, *names: str) -> str:
        """Draws a name uniformly."""
        return names[self.rng.integers(len(names))]

    def paint(self, *hues: str) -> Paint:
        """Draws a plain paint close to one of the hues, or of any colour."""
        hue = self.one_of(*(hues or COLOURS))
        jitter = self.rng.normal(0, _JITTER, 3)
        r, g, b = np.clip(COLOURS[hue] + jitter, 0.03, 0.97).tolist()
        return Paint(hue, (r, g, b))

    def thing(self, name: str, place: Place = ORIGIN) -> Thing:
        """Begins an object of a class, a new instance."""
        self._num_instances += 1
        label = self._classes.index(name)
        return Thing(self._rows, label, self._num_instances, place)

    def stuff(self, name: str, place: Place = ORIGIN) -> Thing:
        """Begins an object that has a class but is not an instance."""
        return Thing(self._rows, self._classes.index(name), 0, place)

    def build(
        self,
        *,
        light: Triple,
        space: tuple[Triple, Triple],
        reach: float = np.inf,
        ambient: float = 0.5,
        haze: float = np.inf,
    ) -> Scene:
        """Returns the scene; see `Scene` for the arguments."""
        shapes, labels, instances, centres, yaw, halves, paints = zip(
            *self._rows, strict=True
        )
        hues, colours, patterns, accents, scales, glows = zip(*paints, strict=True)
        rotations = np.tile(np.eye(3, dtype=np.float32), (len(shapes), 1, 1))
        rotations[:, 0, 0] = rotations[:, 1, 1] = np.cos(yaw)
        rotations[:, 1, 0] = np.sin(yaw)
        rotations[:, 0, 1] = -rotations[:, 1, 0]
        return Scene(
            shapes=np.array(shapes, np.int8),
            centres=_floats(centres),
            rotations=rotations,
            halves=_floats(halves),
            classes=np.array(labels, np.uint8),
            instances=np.array(instances, np.int16),
            hues=np.array([list(COLOURS).index(hue) for hue in hues], np.int8),
            colours=_floats(colours),
            accents=_floats(accents),
            patterns=np.array([PATTERNS.index(name) for name in patterns], np.int8),
            scales=_floats(scales),
            glows=_floats(glows),
            light=_floats(light),
            reach=reach,
            ambient=ambient,
            haze=haze,
            space=_floats(space),
            seed=int(self.rng.integers(2**31)),
        )


def _floats(values: Sequence) -> np.ndarray:
    return np.array(values, np.float32)
