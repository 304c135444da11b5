"""Casts one ray for each pixel into a scene, for an image with exact labels.

A ray is the camera's place plus depth times a direction whose component along the
optical axis is 1. So the parameter of a point on the ray is its depth. This also holds
in the frame in which a part is a canonical shape, because the maps between frames are
affine. Each part is tested only inside the rectangle of pixels onto which its bounding
box projects.
"""

from typing import NamedTuple

import numpy as np

from experiments.data.cameras import Camera, rotation_matrix
from experiments.data.offsets import centre_offsets
from experiments.data.resizing import Size
from experiments.data.scenes import SHAPES, Scene
from experiments.data.shading import shade

BASELINE = 0.209313  # of the stereo camera of Cityscapes, in metres

_NEAREST = 0.05  # things closer to the camera than this are invisible, in metres
_CORNERS = np.array(np.meshgrid(*[[-1, 1]] * 3), np.float32).reshape(3, 8).T


class Rendered(NamedTuple):
    """An image and its labels, for each pixel."""

    image: np.ndarray  # uint8 [height, width, 3]
    classes: np.ndarray  # uint8 [height, width]
    instances: np.ndarray  # int16 [height, width], from 1; 0 for none
    offsets: np.ndarray  # float32 [height, width, 2], see `centre_offsets`
    depth: np.ndarray  # float32 [height, width], along the optical axis, in metres
    disparity: np.ndarray  # float32 [height, width], of cameras `BASELINE` apart
    normals: np.ndarray  # float32 [height, width, 3], unit, in the camera's frame
    surfaces: np.ndarray  # int16 [height, width], the part of the scene


class _View(NamedTuple):
    """A camera, and the tangents to the middles of a row's and a column's pixels."""

    position: np.ndarray  # float32 [3]
    rotation: np.ndarray  # float32 [3, 3], to the world's frame
    right: np.ndarray  # float32 [width]
    down: np.ndarray  # float32 [height]


def render(scene: Scene, camera: Camera, size: Size) -> Rendered:
    """Renders the view of a camera in a scene that encloses the camera.

    The result depends only on the arguments, because the image's noise is drawn from
    the scene's seed and the camera's pose. `size` is the height and the width in
    pixels.
    """
    height, width = size
    rotation = rotation_matrix(camera.quaternion)
    focal = camera.focal * width  # in pixels
    right, down = (
        ((np.arange(num) + 0.5 - num / 2) / focal).astype(np.float32)
        for num in (width, height)
    )

    inverses = scene.rotations.transpose(0, 2, 1) / scene.halves[:, :, None]
    origins = np.einsum("pij,pj->pi", inverses, camera.position - scene.centres)
    axes = np.einsum("pij,jk->pik", inverses, rotation)
    view = _View(camera.position, rotation, right, down)
    depth, surfaces = _trace(scene, view, origins, axes)
    if not np.isfinite(depth).all():
        raise ValueError("`scene` must enclose the camera, but some ray left it.")

    parts = surfaces.reshape(-1).astype(np.intp)
    points = np.stack([depth * right, depth * down[:, None], depth])
    points = points.reshape(3, -1)  # in the camera's frame
    local = _mapped(axes, parts, points) + origins.T.take(parts, axis=1)
    canonical = _canonical_normals(scene.shapes.take(parts), local)
    # Normals are mapped by the inverse transpose of the map from canonical to camera
    # frame.
    turns = np.einsum("ji,pjk->pik", rotation, scene.rotations)
    normals = _mapped(turns / scene.halves[:, None, :], parts, canonical)
    length = np.sqrt(_dot(normals, normals))
    normals /= np.where(_dot(normals, points) > 0, -length, length)
    pose = np.concatenate([camera.position, camera.quaternion]).astype(np.float32)
    image = shade(
        scene,
        parts,
        points=rotation @ points + camera.position[:, None],
        normals=rotation @ normals,
        local=local * scene.halves.T.take(parts, axis=1),
        local_normals=canonical,
        distance=np.sqrt(_dot(points, points)),
        rng=np.random.default_rng([scene.seed, *pose.view(np.uint32).tolist()]),
    )
    instances = scene.instances.take(surfaces)
    return Rendered(
        image=np.moveaxis(image.reshape(3, height, width), 0, -1).copy(),
        classes=scene.classes.take(surfaces),
        instances=instances,
        offsets=centre_offsets(np.where(instances > 0, instances, -1)),
        depth=depth,
        disparity=np.float32(focal * BASELINE) / depth,
        normals=np.moveaxis(normals.reshape(3, height, width), 0, -1).copy(),
        surfaces=surfaces,
    )


def _trace(
    scene: Scene, view: _View, origins: np.ndarray, axes: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Returns the depth and the part that every ray hits first."""
    depth = np.full([len(view.down), len(view.right)], np.inf, np.float32)
    surfaces = np.zeros(depth.shape, np.int16)
    rectangles, least = _bounds(scene, view)
    with np.errstate(divide="ignore", invalid="ignore"):
        for part in np.argsort(least, kind="stable").tolist():
            top, bottom, left, end = rectangles[part]
            window = slice(top, bottom), slice(left, end)
            seen = depth[window]
            if seen.size == 0 or seen.max() <= least[part]:
                continue  # outside the image, or behind a part that was already hit
            along_x, along_y, along_z = axes[part].T[:, :, None, None]
            rows = along_y * view.down[top:bottom, None] + along_z
            directions = along_x * view.right[left:end] + rows
            cut = _CUTS[scene.shapes[part]](origins[part], directions)
            nearer = (cut > _NEAREST) & (cut < seen)
            np.copyto(seen, cut, where=nearer)
            np.copyto(surfaces[window], np.int16(part), where=nearer)
    return depth, surfaces


def _bounds(scene: Scene, view: _View) -> tuple[list[list[int]], np.ndarray]:
    """Returns the rectangle that bounds every part in the image, and its least depth.

    A rectangle is given by the first row, the row after the last, the first column and
    the column after the last: top, bottom, left, end.
    """
    corners = _CORNERS * scene.halves[:, None, :]
    corners = np.einsum("pij,pcj->ipc", scene.rotations, corners)
    corners += (scene.centres - view.position).T[:, :, None]
    x, y, z = np.einsum("ji,jpc->ipc", view.rotation, corners)
    # A part that reaches behind the camera may be anywhere in the image.
    behind = z.min(axis=1) < _NEAREST
    hidden = z.max(axis=1) < _NEAREST
    z = np.where(behind[:, None], 1, z)
    sides = []
    for tangent, ticks in ((y / z, view.down), (x / z, view.right)):
        first = np.searchsorted(ticks, tangent.min(axis=1)) - 1
        last = np.searchsorted(ticks, tangent.max(axis=1)) + 1
        first = np.where(behind, 0, np.maximum(first, 0))
        last = np.where(behind, len(ticks), np.minimum(last, len(ticks)))
        sides += [first, np.where(hidden, 0, last)]
    rectangles = np.maximum(np.stack(sides, axis=1), 0).tolist()
    return rectangles, np.where(behind, 0, z.min(axis=1))


def _cut_box(origin: np.ndarray, directions: np.ndarray) -> np.ndarray:
    # A ray parallel to a face never leaves the slab; a direction of 0 would give NaN.
    inverse = 1 / np.where(directions == 0, np.float32(1e-20), directions)
    middle, half = -origin[:, None, None] * inverse, np.abs(inverse)
    near, far = (middle - half).max(axis=0), (middle + half).min(axis=0)
    return np.where(near < far, near, np.inf)


def _cut_sphere(origin: np.ndarray, directions: np.ndarray) -> np.ndarray:
    """Returns the hit, the far side for a ray from inside; NaN for rays that miss."""
    # Find the point nearest to the centre first, which is stable for small parts far
    # away.
    square = _dot(directions, directions)
    middle = -np.einsum("i,ihw->hw", origin, directions) / square
    nearest = origin[:, None, None] + middle * directions
    half = np.sqrt((1 - _dot(nearest, nearest)) / square)
    near = middle - half
    return np.where(near > _NEAREST, near, middle + half)


_CUTS = (_cut_box, _cut_sphere)  # in the order of `SHAPES`


def _canonical_normals(shapes: np.ndarray, local: np.ndarray) -> np.ndarray:
    """Returns normals, of any length, at points on canonical shapes."""
    normals, boxes = local.copy(), shapes == SHAPES.index("box")
    faces = np.argmax(np.abs(local[:, boxes]), axis=0)
    normals[:, boxes] *= np.arange(3)[:, None] == faces
    return normals


def _mapped(maps: np.ndarray, parts: np.ndarray, vectors: np.ndarray) -> np.ndarray:
    """Maps each vector by the matrix of its part: [parts, 3, 3], ..., [3, points]."""
    x, y, z = maps.transpose(2, 1, 0)  # by column, and row, and part
    mapped = x.take(parts, axis=1) * vectors[0]
    mapped += y.take(parts, axis=1) * vectors[1]
    mapped += z.take(parts, axis=1) * vectors[2]
    return mapped


def _dot(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Returns inner products along the first axis."""
    return np.einsum("i...,i...->...", a, b)
