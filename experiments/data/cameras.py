"""Pinhole cameras and their poses."""

from typing import NamedTuple

import numpy as np
from scipy.spatial.transform import Rotation


class Camera(NamedTuple):
    """A pinhole camera; its frame has x to the right, y down and z ahead."""

    position: np.ndarray  # float32 [3], in the world
    quaternion: np.ndarray  # float32 [4], unit, (w >= 0, x, y, z), to the world's frame
    focal: float  # the focal length in widths of the image


def look_at(
    position: np.ndarray, target: np.ndarray, *, roll: float = 0.0, focal: float = 0.7
) -> Camera:
    """Returns a camera at a position, with a target at the centre of its image.

    The target must not be straight above or below the camera. `roll` turns the camera
    about its axis, in radians; `focal` is in widths of the image.
    """
    ahead = np.subtract(target, position, dtype=np.float64)
    ahead /= np.linalg.norm(ahead)
    right = np.cross(ahead, [0, 0, 1])
    right /= np.linalg.norm(right)
    down = np.cross(ahead, right)
    cos, sin = np.cos(roll), np.sin(roll)
    columns = cos * right + sin * down, cos * down - sin * right, ahead
    rotation = Rotation.from_matrix(np.stack(columns, axis=1))
    quaternion = rotation.as_quat(canonical=True, scalar_first=True)
    place, pose = np.asarray(position, np.float32), quaternion.astype(np.float32)
    return Camera(place, pose, float(np.float32(focal)))


def rotation_matrix(quaternion: np.ndarray) -> np.ndarray:
    """Returns the rotation of a unit quaternion (w, x, y, z): float32 [3, 3]."""
    norm = np.linalg.norm(quaternion)
    if not abs(norm - 1) < 1e-3:
        raise ValueError(f"`quaternion` must have norm 1, got norm {norm:.4f}.")
    rotation = Rotation.from_quat(quaternion, scalar_first=True)
    return rotation.as_matrix().astype(np.float32)
