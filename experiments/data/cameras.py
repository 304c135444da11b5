"""Pinhole cameras and their poses."""

from typing import NamedTuple

import numpy as np


class Camera(NamedTuple):
    """A pinhole camera whose optical axis meets the centre of the image.

    Its frame has x to the right, y down and z ahead. position: float32 [3], in the
    world. quaternion: float32 [4], unit, (w, x, y, z) with w >= 0; it turns vectors of
    the camera's frame to the world's. focal: the focal length in widths of the image.
    """

    position: np.ndarray
    quaternion: np.ndarray
    focal: float


def look_at(
    position: np.ndarray, target: np.ndarray, *, roll: float = 0.0, focal: float = 0.7
) -> Camera:
    """Returns the camera that looks at a point.

    Args:
        position: its place, [3], not straight above or below the target.
        target: what is at the centre of the image, [3].
        roll: by how much it is turned about its axis, in radians.
        focal: the focal length in widths of the image.

    Returns:
        The camera.

    Examples:
        >>> camera = look_at(np.zeros(3), np.array([0, 1, 0]))  # level, along y
        >>> rotation_matrix(camera.quaternion).round(6).tolist()
        [[1.0, 0.0, 0.0], [0.0, 0.0, 1.0], [0.0, -1.0, 0.0]]
    """
    ahead = np.subtract(target, position, dtype=np.float64)
    ahead /= np.linalg.norm(ahead)
    right = np.cross(ahead, [0, 0, 1])
    right /= np.linalg.norm(right)
    down = np.cross(ahead, right)
    cos, sin = np.cos(roll), np.sin(roll)
    columns = cos * right + sin * down, cos * down - sin * right, ahead
    quaternion = _quaternion(np.stack(columns, axis=1))
    return Camera(
        np.asarray(position, np.float32), quaternion, float(np.float32(focal))
    )


def rotation_matrix(quaternion: np.ndarray) -> np.ndarray:
    """Returns the rotation of a unit quaternion (w, x, y, z): float32 [3, 3].

    Raises:
        ValueError: if `quaternion` is not unit.
    """
    w, x, y, z = quaternion.astype(np.float64)
    norm = np.sqrt(w * w + x * x + y * y + z * z)
    if not abs(norm - 1) < 1e-3:
        raise ValueError(f"`quaternion` must have norm 1, got norm {norm:.4f}.")
    cross = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    return (np.eye(3) + 2 * (w * cross + cross @ cross)).astype(np.float32)


def _quaternion(rotation: np.ndarray) -> np.ndarray:
    """Returns the quaternion with w >= 0 of a rotation."""
    (a, b, c), (d, e, f), (g, h, i) = rotation
    # Four times the outer product of the quaternion with itself.
    outer = np.array(
        [
            [1 + a + e + i, h - f, c - g, d - b],
            [h - f, 1 + a - e - i, b + d, c + g],
            [c - g, b + d, 1 - a + e - i, f + h],
            [d - b, c + g, f + h, 1 - a - e + i],
        ]
    )
    row = outer[np.argmax(np.diag(outer))]  # the best conditioned
    row = row / np.linalg.norm(row) * (1 if row[0] >= 0 else -1)
    return row.astype(np.float32)
