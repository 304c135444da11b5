"""What a rendered scene is made of, and a builder that puts it together.

The world is in metres: x to the right, y ahead, z up. Everything is a plane, a box, a
sphere or a cylinder, moved, turned and stretched from one canonical shape: the square
|x|, |y| <= 1 at z = 0, the cube |x|, |y|, |z| <= 1, the unit sphere, and the cylinder
of unit radius about z between z = -1 and z = 1.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np

SHAPES = ("plane", "box", "sphere", "cylinder")
PATTERNS = ("plain", "stripes", "checks", "bricks", "panes", "grain", "mottle")
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

_JITTER = 0.04  # of a colour, about its name's
# Turns the canonical z axis to an axis of the object, and keeps y upright if it can.
_TURNS = {
    "x": np.array([[0, 0, 1], [1, 0, 0], [0, 1, 0]], np.float32),
    "y": np.array([[1, 0, 0], [0, 0, -1], [0, 1, 0]], np.float32),
    "z": np.eye(3, dtype=np.float32),
}

Axis = Literal["x", "y", "z"]
Triple = tuple[float, float, float]


class Place(NamedTuple):
    """Where a thing's origin is, and how far it is turned about its z axis.

    at: in the world, in metres. yaw: counterclockwise from above, in radians.
    """

    at: Triple
    yaw: float = 0.0

    def moved(self, x: float, y: float, z: float, turn: float = 0.0) -> "Place":
        """Returns a place given in the frame of this one.

        Examples:
            >>> Place((1.0, 0.0, 0.0)).moved(0.0, 2.0, 0.5)
            Place(at=(1.0, 2.0, 0.5), yaw=0.0)
        """
        cos, sin = math.cos(self.yaw), math.sin(self.yaw)
        at_x, at_y, at_z = self.at
        at = at_x + cos * x - sin * y, at_y + sin * x + cos * y, at_z + z
        return Place(at, self.yaw + turn)


ORIGIN = Place((0.0, 0.0, 0.0))


class Scene(NamedTuple):
    """Parts as arrays with one row each, and the light.

    A point p of a canonical shape is at `rotations @ (halves * p) + centres`.

    shapes: int8 [parts], places in `SHAPES`. centres: float32 [parts, 3]. rotations:
    float32 [parts, 3, 3]. halves: float32 [parts, 3], half the size along each
    canonical axis; 1 along the normal of a plane. classes: uint8 [parts]. instances:
    int16 [parts], from 1, and 0 for what belongs to no instance. hues: int8 [parts],
    places in `COLOURS`. colours and accents: float32 [parts, 3], the two colours
    between which the pattern varies. patterns: int8 [parts], places in `PATTERNS`.
    scales: float32 [parts], the size of the pattern in metres. glows: float32 [parts],
    from 0 for what is lit to 1 for what shines by itself. light: float32 [3], its
    place. reach: the distance at which the light has faded by half, in metres. ambient:
    the share of light from everywhere, in [0, 1]. haze: the distance at which haze
    hides all but 1 / e, in metres. space: float32 [2, 3], opposite corners of where a
    camera may be. seed: picks patterns and noise.
    """

    shapes: np.ndarray
    centres: np.ndarray
    rotations: np.ndarray
    halves: np.ndarray
    classes: np.ndarray
    instances: np.ndarray
    hues: np.ndarray
    colours: np.ndarray
    accents: np.ndarray
    patterns: np.ndarray
    scales: np.ndarray
    glows: np.ndarray
    light: np.ndarray
    reach: float
    ambient: float
    haze: float
    space: np.ndarray
    seed: int


class Paint(NamedTuple):
    """How a surface looks; see `Scene` for the words."""

    hue: str
    colour: Triple
    pattern: str = "plain"
    accent: Triple = (0.0, 0.0, 0.0)
    scale: float = 1.0
    glow: float = 0.0

    def patterned(self, pattern: str, scale: float, accent: float | Triple) -> "Paint":
        """With a pattern. An accent that is a number is that much of the colour."""
        if not isinstance(accent, tuple):
            r, g, b = (min(1.0, accent * channel) for channel in self.colour)
            accent = r, g, b
        return self._replace(pattern=pattern, scale=scale, accent=accent)

    def toned(self, contrast: float, brightness: float) -> "Paint":
        """Paler or darker, by contrast times colour plus brightness."""
        r, g, b = (contrast * channel + brightness for channel in self.colour)
        return self._replace(colour=(r, g, b))

    def glowing(self, glow: float = 1.0) -> "Paint":
        """Shining by itself."""
        return self._replace(glow=glow)


@dataclass(frozen=True)
class Thing:
    """An object under construction; parts are given in its own frame.

    Its frame is that of its place. `sizes` below are half sizes along its axes.
    """

    rows: list[tuple]
    label: int
    instance: int
    place: Place

    def plane(self, centre: Triple, sizes: Triple, paint: Paint, axis: Axis) -> None:
        """Adds a rectangle with its normal along an axis."""
        self._add("plane", centre, sizes, paint, axis)

    def box(self, centre: Triple, sizes: Triple, paint: Paint) -> None:
        """Adds a box."""
        self._add("box", centre, sizes, paint, "z")

    def ball(self, centre: Triple, sizes: Triple | float, paint: Paint) -> None:
        """Adds a sphere of a radius or an ellipsoid of three."""
        if not isinstance(sizes, tuple):
            sizes = (sizes, sizes, sizes)
        self._add("sphere", centre, sizes, paint, "z")

    def pole(
        self, centre: Triple, radius: float, half: float, paint: Paint, axis: Axis = "z"
    ) -> None:
        """Adds a cylinder of a radius and half a length along an axis."""
        x, y, z = (half if axis == name else radius for name in "xyz")
        self._add("cylinder", centre, (x, y, z), paint, axis)

    def _add(
        self, shape: str, centre: Triple, sizes: Triple, paint: Paint, axis: Axis
    ) -> None:
        row = SHAPES.index(shape), self.label, self.instance, *self.place
        self.rows.append((*row, centre, sizes, axis, paint))


class SceneBuilder:
    """Collects the parts of a scene, and is its source of randomness.

    Examples:
        >>> builder = SceneBuilder(("floor", "ball"), np.random.default_rng(0))
        >>> red = builder.paint("red")
        >>> builder.stuff("floor").plane((0, 0, 0), (9, 9, 0), red, "z")
        >>> builder.thing("ball", Place((0, 4, 0))).ball((0, 0, 1), 1.0, red)
        >>> scene = builder.build(light=(0, 0, 9), space=((0, 0, 1), (1, 1, 2)))
        >>> scene.classes.tolist(), scene.instances.tolist(), scene.centres[1].tolist()
        ([0, 1], [0, 1], [0.0, 4.0, 1.0])
    """

    def __init__(self, classes: tuple[str, ...], rng: np.random.Generator):
        self.rng = rng
        self._classes = classes
        self._rows: list[tuple] = []
        self._num_instances = 0

    def chance(self, share: float) -> bool:
        """Returns True in that share of cases."""
        return bool(self.rng.random() < share)

    def within(self, low: float, high: float) -> float:
        """Draws a number uniformly."""
        return float(self.rng.uniform(low, high))

    def one_of(self, *names: str) -> str:
        """Draws a name uniformly."""
        return names[self.rng.integers(len(names))]

    def paint(self, *hues: str) -> Paint:
        """Draws a plain paint, a little off one of the hues; without hues, of any."""
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
        """Begins what has a class and is no instance."""
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
        shapes, labels, instances, at, yaw, centres, sizes, axes, paints = zip(
            *self._rows, strict=True
        )
        hues, colours, patterns, accents, scales, glows = zip(*paints, strict=True)
        frames = np.zeros([len(shapes), 3, 3], np.float32)
        frames[:, 0, 0] = frames[:, 1, 1] = np.cos(yaw)
        frames[:, 1, 0] = np.sin(yaw)
        frames[:, 0, 1] = -frames[:, 1, 0]
        frames[:, 2, 2] = 1
        turns = np.stack([_TURNS[axis] for axis in axes])
        moved = np.einsum("pij,pj->pi", frames, _floats(centres))
        halves = np.abs(np.einsum("pji,pj->pi", turns, _floats(sizes)))
        halves[np.equal(shapes, SHAPES.index("plane")), 2] = 1
        return Scene(
            shapes=np.array(shapes, np.int8),
            centres=_floats(at) + moved,
            rotations=np.einsum("pij,pjk->pik", frames, turns),
            halves=halves,
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
