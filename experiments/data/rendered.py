"""Rendered rooms and streets with labels for many tasks, drawn when they are read.

The images are stand-ins: rooms for NYUv2, rooms with attributes for CelebA, streets for
Cityscapes, and one room seen from many places for a scene of 7-Scenes. They have the
form of these data sets, but none of their content. So errors on these images say
nothing about photographs.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from experiments.data.cameras import Camera
from experiments.data.renderer import Rendered, render
from experiments.data.resizing import Size
from experiments.data.rooms import sample_room, sample_room_camera
from experiments.data.samples import check_size
from experiments.data.scenes import Scene
from experiments.data.splits import Splits, check_least, in_words
from experiments.data.streets import sample_street, sample_street_camera


class World(NamedTuple):
    """Scenes of one kind."""

    sample_scene: Callable[[np.random.Generator], Scene]
    sample_camera: Callable[[Scene, np.random.Generator], Camera]


_ROOMS = World(sample_room, sample_room_camera)
_STREETS = World(sample_street, sample_street_camera)


class Drawn(NamedTuple):
    """A camera in a scene, and its rendered image."""

    scene: Scene
    camera: Camera
    seen: Rendered


@dataclass(frozen=True)
class RenderedSplit:
    """Images that depend only on the seed and the index, and are read in any order.

    `entropy` makes this split different from all other splits. With a `fixed` scene,
    the images differ only in the camera's place.
    """

    world: World
    num: int
    size: Size
    entropy: tuple[int, ...]
    fixed: Scene | None = None

    def draw(self, index: int) -> Drawn:
        """Renders an image."""
        rng = np.random.default_rng([*self.entropy, index])
        scene = self.world.sample_scene(rng) if self.fixed is None else self.fixed
        camera = self.world.sample_camera(scene, rng)
        return Drawn(scene, camera, render(scene, camera, self.size))


RenderedData = Splits[RenderedSplit]


def load_rooms(
    num_train: int, num_validation: int, num_test: int, *, size: Size, seed: int = 0
) -> RenderedData:
    """Returns rooms, a new one in each image: a stand-in for NYUv2 in its 13 classes.

    An image is rendered when it is read, and does not depend on the number of images.
    The size in Pascal et al. is (288, 384).
    """
    numbers = (num_train, num_validation, num_test)
    return _load(_ROOMS, "rendered rooms", numbers, size, (seed, 0, 0))


def load_streets(
    num_train: int, num_validation: int, num_test: int, *, size: Size, seed: int = 0
) -> RenderedData:
    """Returns streets, a new one in each image: a stand-in for Cityscapes.

    There are 19 classes. The arguments are the same as for `load_rooms`; the size in
    Pascal et al. is (128, 256). The sky has the depth of a dome 300 metres away, but in
    a real depth map it has no value.
    """
    numbers = (num_train, num_validation, num_test)
    return _load(_STREETS, "rendered streets", numbers, size, (seed, 1, 0))


def load_room_views(
    num_train: int,
    num_validation: int,
    num_test: int,
    *,
    room: int = 0,
    size: Size,
    seed: int = 0,
) -> RenderedData:
    """Returns one room from many places: a stand-in for a scene of 7-Scenes.

    The arguments are the same as for `load_rooms`. The non-negative integer `room`
    selects the room; 0 to 6 stand for the seven scenes.
    """
    check_least(0, room=room, seed=seed)
    # Number 3, because the splits have the numbers 0 to 2.
    scene = sample_room(np.random.default_rng([seed, 2, room, 3, 0]))
    numbers = (num_train, num_validation, num_test)
    name = f"views of rendered room {room}"
    return _load(_ROOMS, name, numbers, size, (seed, 2, room), scene)


def _load(
    world: World,
    name: str,
    numbers: tuple[int, int, int],
    size: Size,
    entropy: tuple[int, int, int],
    fixed: Scene | None = None,
) -> RenderedData:
    check_least(1, num_train=numbers[0], num_validation=numbers[1], num_test=numbers[2])
    check_least(0, seed=entropy[0])
    check_size(size)
    train, validation, test = (
        RenderedSplit(world, num, size, (*entropy, place), fixed)
        for place, num in enumerate(numbers)
    )
    source = f"{name} of {size[0]} x {size[1]} pixels ({in_words(*numbers)})"
    return RenderedData(train, validation, test, source)
