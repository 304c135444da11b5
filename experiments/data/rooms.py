"""Furnished rooms in the 13 classes of NYUv2."""

import math

import numpy as np

from experiments.data import furniture
from experiments.data.cameras import Camera, look_at
from experiments.data.furniture import VIVID
from experiments.data.nyuv2 import CLASSES as ROOM_CLASSES
from experiments.data.scenes import Place, Scene, SceneBuilder

_FOCAL = (0.62, 0.78)  # focal length in widths of the image; the Kinect's is 0.8
_CLEAR = 0.35  # between a camera and any thing, in metres


def sample_room(rng: np.random.Generator) -> Scene:
    """Draws a room: its size, its furniture, the things on its walls, and its light."""
    builder = SceneBuilder(ROOM_CLASSES, rng)
    width, length = builder.within(3.2, 5.2), builder.within(3.6, 5.6)
    height = builder.within(2.4, 3.0)
    _add_shell(builder, width, length, height)
    _add_furniture(builder, _Plan(width, length, rng), height)
    _add_hangings(builder, _Plan(width, length, rng), height)
    x, y = builder.within(0.15, 0.85) * width, builder.within(0.15, 0.85) * length
    drop = builder.within(0.05, 0.25) * height
    lamp = builder.thing("objects", Place((x, y, height - drop)))
    lamp.ball((0, 0, 0), 0.14, builder.paint("white", "yellow").glowing(0.9))
    return builder.build(
        light=(x, y, height - drop),
        reach=builder.within(3, 7),
        ambient=builder.within(0.35, 0.6),
        space=((0.3, 0.3, 1.0), (width - 0.3, length - 0.3, 1.9)),
    )


def sample_room_camera(scene: Scene, rng: np.random.Generator) -> Camera:
    """Draws a camera in a free place of a room that looks across it at some thing."""
    low, high = scene.space.astype(float)
    near = 0.4 * (high - low)[:2].max()
    things = np.flatnonzero(scene.instances > 0)
    attempts = 100  # then take any place
    while True:
        attempts -= 1
        position = rng.uniform(low, high)
        target = scene.centres[rng.choice(things)] + rng.normal(0, 0.3, 3)
        target[2] = np.clip(target[2] + 0.2, 0.2, 1.8)
        far = np.hypot(*(target - position)[:2]) > near
        if (far and _is_free(scene, position)) or not attempts:
            break
    roll, focal = rng.normal(0, 0.04), rng.uniform(*_FOCAL)
    return look_at(position, target, roll=roll, focal=focal)


def _is_free(scene: Scene, position: np.ndarray) -> bool:
    """Tells whether a place is clear of the bounding boxes of all parts of things."""
    local = np.einsum("pji,pj->pi", scene.rotations, position - scene.centres)
    within = (np.abs(local) < scene.halves + _CLEAR).all(axis=1)
    return not np.any(within & (scene.instances > 0))


class _Plan:
    """The occupied rectangles of a room's floor and along its walls."""

    def __init__(self, width: float, length: float, rng: np.random.Generator):
        self._sides = np.array([width, length])
        self._rng = rng
        self._taken: list[np.ndarray] = []

    def at_wall(self, width: float, depth: float) -> Place | None:
        """Takes a free place at a wall; returns None if there is none."""
        for _ in range(12):
            wall = int(self._rng.integers(4))
            along = self._sides[wall % 2]
            if width + 0.1 > along:
                continue
            x_axis = np.array([(1, 0), (0, 1), (-1, 0), (0, -1)][wall])
            y_axis = np.array([-x_axis[1], x_axis[0]])
            margin = 0.05 + width / 2
            corner = self._sides * [(0, 0), (1, 0), (1, 1), (0, 1)][wall]
            at = corner + self._rng.uniform(margin, along - margin) * x_axis
            half = np.abs(width * x_axis + depth * y_axis) / 2
            if self._take(at + depth / 2 * y_axis, half):
                return Place((float(at[0]), float(at[1]), 0.0), wall * math.pi / 2)
        return None

    def standing(self, radius: float) -> Place | None:
        """Takes a free place anywhere, with any rotation; None if there is none."""
        for _ in range(12):
            at = self._rng.uniform(radius + 0.1, self._sides - radius - 0.1)
            if self._take(at, np.full(2, radius)):
                turn = self._rng.uniform(0, 2 * math.pi)
                return Place((float(at[0]), float(at[1]), 0.0), turn)
        return None

    def _take(self, middle: np.ndarray, half: np.ndarray) -> bool:
        low, high = middle - half, middle + half
        if any(((low < end) & (start < high)).all() for start, end in self._taken):
            return False
        self._taken.append(np.stack([low, high]))
        return True


def _add_shell(
    builder: SceneBuilder, width: float, length: float, height: float
) -> None:
    """Adds floor, ceiling and walls around the room, all 0.2 metres thick."""
    x, y, z = width / 2, length / 2, height / 2
    boards = builder.paint("brown", "orange", "grey", "white")
    pattern, scale = builder.one_of("checks", "mottle"), builder.within(0.15, 0.5)
    boards = boards.patterned(pattern, scale, builder.within(0.6, 0.85))
    paper = builder.paint("white", "white", "grey", *VIVID).toned(0.35, 0.55)
    if builder.chance(0.4):
        pattern = builder.one_of("stripes", "checks", "mottle")
        paper = paper.patterned(pattern, builder.within(0.1, 0.3), 0.9)
    builder.stuff("floor").box((x, y, -0.1), (x, y, 0.1), boards)
    white, wall = builder.paint("white"), builder.stuff("wall")
    builder.stuff("ceiling").box((x, y, height + 0.1), (x, y, 0.1), white)
    for at in (-0.1, width + 0.1):
        wall.box((at, y, z), (0.1, y + 0.2, z + 0.2), paper)
    for at in (-0.1, length + 0.1):
        wall.box((x, at, z), (x + 0.2, 0.1, z + 0.2), paper)


def _add_furniture(builder: SceneBuilder, plan: _Plan, height: float) -> None:
    """Adds the things on the floor, the largest first."""
    wood, chance = furniture.mix_wood(builder), builder.chance
    if chance(0.5) and (place := plan.at_wall(1.7, 2.1)):
        furniture.add_bed(builder, place, wood)
    if chance(0.6) and (place := plan.at_wall(2.0, 0.95)):
        furniture.add_sofa(builder, place)
    if chance(0.6) and (place := plan.at_wall(1.5, 0.5)):
        furniture.add_screen(builder, place, wood)
    if chance(0.7) and (place := plan.standing(1.0)):
        furniture.add_table(builder, place, wood)
    if chance(0.6) and (place := plan.at_wall(1.0, 0.35)):
        furniture.add_shelf(builder, place, wood, builder.within(1.2, height - 0.3))
    for _ in range(builder.rng.integers(3)):
        if place := plan.at_wall(0.9, 0.55):
            furniture.add_cabinet(builder, place)
    if chance(0.6) and (place := plan.standing(0.4)):
        furniture.add_chair(builder, place, wood)
    for _ in range(builder.rng.integers(1, 5)):
        if place := plan.standing(0.25):
            furniture.add_object(builder, place, builder.within(0.9, 1.6))


def _add_hangings(builder: SceneBuilder, plan: _Plan, height: float) -> None:
    """Adds windows and pictures."""
    for _ in range(builder.rng.integers(1, 4)):
        half = builder.within(0.4, 0.8)
        if place := plan.at_wall(2 * half + 0.5, 0.1):
            furniture.add_window(builder, place, half, height)
    for _ in range(builder.rng.integers(1, 5)):
        half = builder.within(0.2, 0.45)
        if place := plan.at_wall(2 * half, 0.1):
            furniture.add_picture(builder, place, half)
