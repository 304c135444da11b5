"""Rendered rooms and streets with labels for many tasks, drawn when asked for.

Stand-ins: rooms for NYUv2, streets for Cityscapes, one room seen from many places for a
scene of 7-Scenes, and the attributes of either for those of CelebA. They have the form
of these data sets and none of their content: errors on these images say nothing about
photographs.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np

from experiments.data.cameras import Camera
from experiments.data.renderer import render
from experiments.data.rooms import ROOM_CLASSES, sample_room, sample_room_camera
from experiments.data.scene_attributes import (
    ROOM_ATTRIBUTES,
    STREET_ATTRIBUTES,
    Attributes,
    label,
)
from experiments.data.scenes import Scene
from experiments.data.streets import (
    STREET_CLASSES,
    sample_street,
    sample_street_camera,
)

_SPLITS = ("train", "validation", "test", "fixed")

World = Literal["rooms", "streets"]
Size = tuple[int, int]


class Samples(NamedTuple):
    """Images and their labels; `Rendered` and `Camera` say what each of them means.

    images: uint8 [num, height, width, 3]. classes: uint8 [num, height, width].
    instances: int16 [num, height, width]. offsets: float32 [num, height, width, 2].
    depth and disparity: float32 [num, height, width]. normals: float32 [num, height,
    width, 3]. attributes: bool [num, 40]. positions: float32 [num, 3]. quaternions:
    float32 [num, 4]. focals: float32 [num].
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


class _Kind(NamedTuple):
    classes: tuple[str, ...]
    attributes: Attributes
    sample_scene: Callable[[np.random.Generator], Scene]
    sample_camera: Callable[[Scene, np.random.Generator], Camera]


_KINDS: dict[World, _Kind] = {
    "rooms": _Kind(ROOM_CLASSES, ROOM_ATTRIBUTES, sample_room, sample_room_camera),
    "streets": _Kind(
        STREET_CLASSES, STREET_ATTRIBUTES, sample_street, sample_street_camera
    ),
}


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
        """Returns what `render` makes an image of.

        Raises:
            ValueError: if `index` is not in the split.
        """
        if not 0 <= index < self.num:
            raise ValueError(f"`index` must be from 0 to {self.num - 1}, got {index}.")
        kind, rng = _KINDS[self.world], np.random.default_rng([*self.entropy, index])
        scene = kind.sample_scene(rng) if self.fixed is None else self.fixed
        return scene, kind.sample_camera(scene, rng)

    def draw(self, indices: Sequence[int] | np.ndarray) -> Samples:
        """Renders the images of some indices.

        Raises:
            ValueError: if `indices` is empty or not all of them are in the split.
        """
        if not len(indices):
            raise ValueError("`indices` must not be empty.")
        rows = [self._draw_one(int(index)) for index in indices]
        return Samples(*(np.stack(arrays) for arrays in zip(*rows, strict=True)))

    def batches(
        self, batch_size: int, rng: np.random.Generator | None = None
    ) -> Iterator[Samples]:
        """Renders all images once, a batch at a time; the last one may be smaller.

        Args:
            batch_size: images in a batch.
            rng: shuffles them. None keeps their order.

        Raises:
            ValueError: if `batch_size` is below 1.
        """
        if batch_size < 1:
            raise ValueError(f"`batch_size` must be at least 1, got {batch_size}.")
        order = np.arange(self.num) if rng is None else rng.permutation(self.num)
        starts = range(0, self.num, batch_size)
        return (self.draw(order[start : start + batch_size]) for start in starts)

    def _draw_one(self, index: int) -> Samples:
        scene, camera = self.view(index)
        maps, kind = render(scene, camera, self.size), _KINDS[self.world]
        return Samples(
            images=maps.image,
            classes=maps.classes,
            instances=maps.instances,
            offsets=maps.offsets,
            depth=maps.depth,
            disparity=maps.disparity,
            normals=maps.normals,
            attributes=label(scene, camera, maps, kind.classes, kind.attributes),
            positions=camera.position,
            quaternions=camera.quaternion,
            focals=np.asarray(camera.focal, np.float32),
        )


@dataclass(frozen=True)
class RenderedData:
    """Three splits that share no image, names, and where the images come from.

    classes: names of the values of `Samples.classes`. attributes: names of the columns
    of `Samples.attributes`. source: in words.
    """

    train: RenderedSplit
    validation: RenderedSplit
    test: RenderedSplit
    classes: tuple[str, ...]
    attributes: tuple[str, ...]
    source: str


def load_rooms(
    num_train: int = 800,
    num_validation: int = 100,
    num_test: int = 200,
    *,
    size: Size = (96, 128),
    seed: int = 0,
) -> RenderedData:
    """Returns rooms, a new one in each image: a stand-in for NYUv2.

    Nothing is rendered before it is asked for, and an image stays the same whatever the
    numbers.

    Args:
        num_train: the number of train images.
        num_validation: of validation images.
        num_test: of test images.
        size: height and width in pixels; (288, 384) is the size in Pascal et al.
        seed: a non-negative integer; another one gives other rooms.

    Returns:
        The splits, in the 13 classes of NYUv2.

    Raises:
        ValueError: if a number is below 1, or `seed` is negative.

    Examples:
        >>> data = load_rooms(2, 1, 1, size=(24, 32))
        >>> samples = data.train.draw([1])
        >>> samples.images.shape, samples.normals.shape, samples.attributes.shape
        ((1, 24, 32, 3), (1, 24, 32, 3), (1, 40))
        >>> data.source
        'rendered rooms of 24 x 32 pixels (2 train / 1 validation / 1 test)'
    """
    numbers = (num_train, num_validation, num_test)
    return _load("rooms", numbers, size, (seed, 0, 0), "rendered rooms")


def load_streets(
    num_train: int = 800,
    num_validation: int = 100,
    num_test: int = 200,
    *,
    size: Size = (96, 192),
    seed: int = 0,
) -> RenderedData:
    """Returns streets, a new one in each image: a stand-in for Cityscapes.

    The arguments are those of `load_rooms`; (128, 256) is the size in Pascal et al.

    Returns:
        The splits, in the 19 classes of Cityscapes. `streets.GROUP_OF_CLASS[classes]`
        gives the 7 groups. The sky has the depth of a dome 300 metres away; leave out
        its class where a real depth map would have no value.
    """
    numbers = (num_train, num_validation, num_test)
    return _load("streets", numbers, size, (seed, 1, 0), "rendered streets")


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

    Args:
        num_train: see `load_rooms`.
        num_validation: see `load_rooms`.
        num_test: see `load_rooms`.
        room: which room, a non-negative integer; 0 to 6 stand for the seven scenes.
        size: see `load_rooms`.
        seed: see `load_rooms`.

    Returns:
        The splits; positions and quaternions are the labels.

    Raises:
        ValueError: if a number is below 1, or `room` or `seed` is negative.
    """
    if room < 0:
        raise ValueError(f"`room` must not be negative, got {room}.")
    numbers, name = (
        (num_train, num_validation, num_test),
        f"views of rendered room {room}",
    )
    return _load("rooms", numbers, size, (seed, 2, room), name, one_scene=True)


def _load(
    world: World,
    numbers: tuple[int, int, int],
    size: Size,
    entropy: tuple[int, int, int],
    name: str,
    *,
    one_scene: bool = False,
) -> RenderedData:
    for split, num in zip(_SPLITS, numbers, strict=False):
        if num < 1:
            raise ValueError(f"`num_{split}` must be at least 1, got {num}.")
    if entropy[0] < 0:
        raise ValueError(f"`seed` must not be negative, got {entropy[0]}.")
    if len(size) != 2 or min(size) < 1:
        raise ValueError(f"`size` must be two positive integers, got {size}.")
    kind, fixed = _KINDS[world], None
    if one_scene:
        rng = np.random.default_rng([*entropy, _SPLITS.index("fixed"), 0])
        fixed = kind.sample_scene(rng)
    train, validation, test = (
        RenderedSplit(world, num, size, (*entropy, place), fixed)
        for place, num in enumerate(numbers)
    )
    parts = zip(numbers, _SPLITS, strict=False)
    counts = " / ".join(f"{num:,} {split}" for num, split in parts)
    source = f"{name} of {size[0]} x {size[1]} pixels ({counts})"
    names = tuple(kind.attributes)
    return RenderedData(train, validation, test, kind.classes, names, source)
