"""Rendered rooms and streets with labels for many tasks, drawn when asked for.

Stand-ins: rooms for NYUv2, and their attributes for CelebA's; streets for Cityscapes;
one room seen from many places for a scene of 7-Scenes. They have the form of these data
sets and none of their content: errors on these images say nothing about photographs.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from experiments.data.cameras import Camera
from experiments.data.renderer import render
from experiments.data.rooms import ROOM_CLASSES, sample_room, sample_room_camera
from experiments.data.samples import check_size
from experiments.data.scene_attributes import ROOM_ATTRIBUTES, Attributes, label
from experiments.data.scenes import Scene
from experiments.data.splits import Splits, check_counts, in_words
from experiments.data.streets import (
    STREET_CLASSES,
    sample_street,
    sample_street_camera,
)

Size = tuple[int, int]


class Drawn(NamedTuple):
    """Some images and their labels, by the fields of `Rendered` and `Camera`, stacked.

    attributes: bool [num, attributes].
    """

    images: np.ndarray
    classes: np.ndarray
    instances: np.ndarray
    offsets: np.ndarray
    depth: np.ndarray
    disparity: np.ndarray
    normals: np.ndarray
    attributes: np.ndarray
    positions: np.ndarray
    quaternions: np.ndarray
    focals: np.ndarray


class World(NamedTuple):
    """Scenes of one kind. attributes: the questions on them, see `label`."""

    classes: tuple[str, ...]
    attributes: Attributes
    sample_scene: Callable[[np.random.Generator], Scene]
    sample_camera: Callable[[Scene, np.random.Generator], Camera]


_ROOMS = World(ROOM_CLASSES, ROOM_ATTRIBUTES, sample_room, sample_room_camera)
_STREETS = World(STREET_CLASSES, {}, sample_street, sample_street_camera)


@dataclass(frozen=True)
class RenderedSplit:
    """Images that depend on the seed and their index only, in any order.

    `entropy` tells this split from all others. With a `fixed` scene, the images differ
    in the camera's place only.
    """

    world: World
    num: int
    size: Size
    entropy: tuple[int, ...]
    fixed: Scene | None = None

    def __len__(self) -> int:
        return self.num

    def view(self, index: int) -> tuple[Scene, Camera]:
        """Returns what `render` makes an image of."""
        if not 0 <= index < self.num:
            raise ValueError(f"`index` must be from 0 to {self.num - 1}, got {index}.")
        rng = np.random.default_rng([*self.entropy, index])
        scene = self.world.sample_scene(rng) if self.fixed is None else self.fixed
        return scene, self.world.sample_camera(scene, rng)

    def draw(self, indices: Sequence[int] | np.ndarray) -> Drawn:
        """Renders the images of some indices, one at least."""
        if not len(indices):
            raise ValueError("`indices` must not be empty.")
        rows = [self._draw_one(int(index)) for index in indices]
        return Drawn(*map(np.stack, zip(*rows, strict=True)))

    def _draw_one(self, index: int) -> tuple:
        scene, camera = self.view(index)
        maps = render(scene, camera, self.size)
        answers = label(scene, camera, maps, self.world.classes, self.world.attributes)
        return *maps[:-1], answers, *camera


@dataclass(frozen=True)
class RenderedData(Splits[RenderedSplit]):
    """Three splits, and the names of the classes and of the attributes."""

    classes: tuple[str, ...]
    attributes: tuple[str, ...]


def load_rooms(
    num_train: int = 800,
    num_validation: int = 100,
    num_test: int = 200,
    *,
    size: Size = (96, 128),
    seed: int = 0,
) -> RenderedData:
    """Returns rooms, a new one in each image: a stand-in for NYUv2 in its 13 classes.

    Nothing is rendered before it is asked for, and an image stays the same whatever the
    numbers of images. The size is height and width; (288, 384) in Pascal et al.

    Examples:
        >>> data = load_rooms(2, 1, 1, size=(24, 32))
        >>> samples = data.train.draw([1])
        >>> samples.images.shape, samples.normals.shape, samples.attributes.shape
        ((1, 24, 32, 3), (1, 24, 32, 3), (1, 40))
        >>> data.source
        'rendered rooms of 24 x 32 pixels (2 train / 1 validation / 1 test)'
    """
    numbers = (num_train, num_validation, num_test)
    return _load(_ROOMS, numbers, size, seed, "rendered rooms")


def load_streets(
    num_train: int = 800,
    num_validation: int = 100,
    num_test: int = 200,
    *,
    size: Size = (96, 192),
    seed: int = 0,
) -> RenderedData:
    """Returns streets, a new one in each image: a stand-in for Cityscapes.

    It has 19 classes. The arguments are those of `load_rooms`; (128, 256) is the size
    in Pascal et al. The sky has the depth of a dome 300 metres away, where a real depth
    map has no value.
    """
    numbers = (num_train, num_validation, num_test)
    return _load(_STREETS, numbers, size, seed, "rendered streets")


def load_room_views(
    num_train: int = 1000,
    num_validation: int = 100,
    num_test: int = 400,
    *,
    room: int = 0,
    size: Size = (96, 128),
    seed: int = 0,
) -> RenderedData:
    """Returns one room from many places: a stand-in for a scene of 7-Scenes.

    The arguments are those of `load_rooms`, and `room`, a non-negative integer, says
    which; 0 to 6 stand for the seven scenes. Positions and quaternions are the labels.
    """
    numbers = (num_train, num_validation, num_test)
    return _load(_ROOMS, numbers, size, seed, f"views of rendered room {room}", room)


def _load(
    world: World,
    numbers: tuple[int, int, int],
    size: Size,
    seed: int,
    name: str,
    room: int | None = None,
) -> RenderedData:
    check_counts(num_train=numbers[0], num_validation=numbers[1], num_test=numbers[2])
    for argument, value in (("seed", seed), ("room", room or 0)):
        if value < 0:
            raise ValueError(f"`{argument}` must not be negative, got {value}.")
    check_size(size)
    if room is None:
        entropy, fixed = (seed, int(world is _STREETS), 0), None
    else:
        entropy = (seed, 2, room)
        # Number 3, after those of the splits.
        fixed = world.sample_scene(np.random.default_rng([*entropy, 3, 0]))
    train, validation, test = (
        RenderedSplit(world, num, size, (*entropy, place), fixed)
        for place, num in enumerate(numbers)
    )
    source = f"{name} of {size[0]} x {size[1]} pixels ({in_words(*numbers)})"
    names = tuple(world.attributes)
    return RenderedData(train, validation, test, source, world.classes, names)
