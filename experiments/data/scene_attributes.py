"""Forty yes-or-no attributes of a rendered room: a stand-in for the forty of CelebA.

Each attribute tells whether a measure of the visible things, of the light or of the
camera is above a threshold. Measures are shares of the image, metres or radians, so
that they hardly depend on the size of the image.
"""

import numpy as np

from experiments.data.cameras import Camera, rotation_matrix
from experiments.data.renderer import Rendered
from experiments.data.rooms import ROOM_CLASSES
from experiments.data.scenes import COLOURS, PATTERNS, SHAPES, Scene

# Thresholds are close to the medians if the words allow it.
# fmt: off
_HUES = {
    "red": 0.005, "orange": 0.005, "yellow": 0.005, "green": 0.005,
    "blue": 0.05, "purple": 0.005, "pink": 0.005, "brown": 0.03,
    "white": 0.02, "grey": 0.005, "black": 0.01,
}
_CLASSES = {
    "bed": 0.01, "books": 0.005, "ceiling": 0.02, "chair": 0.005,
    "furniture": 0.06, "picture": 0.01, "table": 0.005, "sofa": 0.005,
    "tv": 0.001, "window": 0.08,
}
# fmt: on
# The measure of each attribute, by its name, and the threshold.
_ATTRIBUTES = {
    "many spheres": ("sphere", 0.5),
    "many boxes": ("box", 22.5),
    **{f"something {hue}": (hue, above) for hue, above in _HUES.items()},
    "patterned things": ("patterned", 0.7),
    "many things": ("instances", 6.5),
    "one large thing": ("largest", 0.15),
    "more things on the left": ("things left", 0.0),
    "full of things": ("things", 0.36),
    "light from the left": ("light left", 0.0),
    "light from behind": ("light behind", -0.75),
    "light from above": ("light elevation", 0.45),
    "soft light": ("ambient", 0.475),
    "bright": ("brightness", 0.45),
    "camera looks down": ("down", 0.2),
    "camera leans to the left": ("roll", 0.0),
    "camera stands high": ("height", 1.45),
    "camera zooms in": ("focal", 0.7),
    "nothing close": ("nearest", 1.25),
    "far view": ("depth", 2.5),
    "deeper on the left": ("deeper left", 0.0),
    **{f"shows {name}": (name, above) for name, above in _CLASSES.items()},
}

_IN_SIGHT = 0.001  # smallest share of the image at which a part or an instance counts


def answer(scene: Scene, camera: Camera, rendered: Rendered) -> dict[str, bool]:
    """Returns the attributes, by name, of a view that `render` made of a room."""
    measures = _measure(scene, camera, rendered)
    return {name: measures[of] > above for name, (of, above) in _ATTRIBUTES.items()}


def _measure(scene: Scene, camera: Camera, rendered: Rendered) -> dict[str, float]:
    """Measures, by name, the visible things, the light and the camera.

    For each of `SHAPES` there is the number of visible parts, for each of `COLOURS` the
    share of the image with things of this colour, and for each class its share. There
    are other measures too.
    """
    num_parts, num_pixels = len(scene.shapes), rendered.surfaces.size
    shares = np.bincount(rendered.surfaces.reshape(-1), minlength=num_parts)
    shares = shares / num_pixels
    things = shares * (scene.instances > 0)
    seen = shares >= _IN_SIGHT
    counts = np.bincount(scene.shapes[seen], minlength=len(SHAPES))
    hues = np.bincount(scene.hues, weights=things, minlength=len(COLOURS))
    patterns = np.bincount(scene.patterns, weights=things, minlength=len(PATTERNS))
    labels = np.bincount(scene.classes, weights=shares, minlength=len(ROOM_CLASSES))
    instances = np.bincount(scene.instances, weights=shares)[1:]

    rotation = rotation_matrix(camera.quaternion).astype(float)
    x, y, z = (scene.light - camera.position) @ rotation
    elevation = (scene.light - camera.position)[2] / np.hypot(np.hypot(x, y), z)
    half = rendered.depth.shape[1] // 2
    left, right = rendered.depth[:, :half], rendered.depth[:, -half:]
    occupied = rendered.instances > 0
    return {
        **dict(zip(SHAPES, counts.tolist(), strict=True)),
        **dict(zip(COLOURS, hues.tolist(), strict=True)),
        **dict(zip(ROOM_CLASSES, labels.tolist(), strict=True)),
        "patterned": 1 - patterns[0] / max(1e-9, patterns.sum()),
        "instances": float(np.sum(instances >= _IN_SIGHT)),
        "largest": float(instances.max(initial=0)),
        "light left": -x,
        "light behind": -z,
        "light elevation": float(elevation),
        "ambient": scene.ambient,
        "brightness": float(rendered.image.mean()) / 255,
        "down": -float(rotation[2, 2]),
        "roll": float(rotation[2, 0]),
        "height": float(camera.position[2]),
        "focal": camera.focal,
        "nearest": float(rendered.depth[occupied].min(initial=np.inf)),
        "depth": float(np.median(rendered.depth)),
        "deeper left": float(np.median(left) - np.median(right)),
        "things left": float(occupied[:, :half].mean() - occupied[:, -half:].mean()),
        "things": float(occupied.mean()),
    }
