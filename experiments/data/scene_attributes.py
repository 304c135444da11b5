"""Forty yes-or-no attributes of a rendered scene: a stand-in for the forty of CelebA.

Each asks whether a measure of what is in sight, of the light or of the camera lies
above a threshold. Measures are shares of the image, metres or radians, so that they
hardly depend on the size of the image. Thresholds differ between rooms and streets.
"""

import numpy as np

from experiments.data.cameras import Camera, rotation_matrix
from experiments.data.renderer import Rendered
from experiments.data.scenes import COLOURS, PATTERNS, SHAPES, Scene

# The measure and the threshold behind each attribute, by its name.
Attributes = dict[str, tuple[str, float]]

# Thresholds in rooms and in streets, close to the medians where the words allow it.
_COMMON = {
    "many spheres": ("sphere", 0.5, 8.5),
    "many cylinders": ("cylinder", 1.5, 5.5),
    "many boxes": ("box", 22.5, 33.5),
    "something red": ("red", 0.005, 0.004),
    "something orange": ("orange", 0.005, 0.002),
    "something yellow": ("yellow", 0.005, 0.004),
    "something green": ("green", 0.005, 0.004),
    "something blue": ("blue", 0.05, 0.004),
    "something purple": ("purple", 0.005, 0.002),
    "something pink": ("pink", 0.005, 0.002),
    "something brown": ("brown", 0.03, 0.002),
    "something white": ("white", 0.02, 0.002),
    "something grey": ("grey", 0.005, 0.004),
    "something black": ("black", 0.01, 0.045),
    "patterned things": ("patterned", 0.7, 0.003),
    "many things": ("instances", 6.5, 9.5),
    "one large thing": ("largest", 0.15, 0.045),
    "more things on the left": ("things left", 0.0, 0.02),
    "full of things": ("things", 0.36, 0.1),
    "light from the left": ("light left", 0.0, 0.0),
    "light from behind": ("light behind", -0.75, 0.0),
    "light from above": ("light elevation", 0.45, 0.72),
    "soft light": ("ambient", 0.475, 0.58),
    "bright": ("brightness", 0.45, 0.38),
    "camera looks down": ("down", 0.2, 0.0),
    "camera leans to the left": ("roll", 0.0, 0.0),
    "camera stands high": ("height", 1.45, 1.55),
    "camera zooms in": ("focal", 0.7, 0.95),
    "nothing close": ("nearest", 1.25, 8.5),
    "far view": ("depth", 2.5, 17.0),
    "deeper on the left": ("deeper left", 0.0, 9.0),
}
_ROOM_CLASSES = {
    "bed": 0.01,
    "books": 0.005,
    "ceiling": 0.02,
    "chair": 0.005,
    "furniture": 0.06,
    "picture": 0.01,
    "sofa": 0.005,
    "tv": 0.001,
    "window": 0.08,
}
_STREET_CLASSES = {
    "wall": 0.0005,
    "terrain": 0.0015,
    "traffic light": 0.0015,
    "traffic sign": 0.003,
    "person": 0.005,
    "rider": 0.0005,
    "truck": 0.008,
    "bus": 0.0015,
    "train": 0.001,
}
ROOM_ATTRIBUTES: Attributes = {
    **{name: (key, above) for name, (key, above, _) in _COMMON.items()},
    **{f"shows {name}": (name, above) for name, above in _ROOM_CLASSES.items()},
}
STREET_ATTRIBUTES: Attributes = {
    **{name: (key, above) for name, (key, _, above) in _COMMON.items()},
    **{f"shows {name}": (name, above) for name, above in _STREET_CLASSES.items()},
}

_IN_SIGHT = 0.001  # share of the image from which a part or an instance counts


def measure(
    scene: Scene, camera: Camera, rendered: Rendered, classes: tuple[str, ...]
) -> dict[str, float]:
    """Measures an image.

    Args:
        scene: the scene.
        camera: the camera.
        rendered: what `render` gave for them.
        classes: the names of the scene's classes.

    Returns:
        Measures by name: for each of `SHAPES`, how many parts are in sight; for each of
        `COLOURS`, the share of the image that things of that colour have; for each
        class, its share of the image; and others, see the code.
    """
    num_parts, num_pixels = len(scene.shapes), rendered.surfaces.size
    shares = np.bincount(rendered.surfaces.reshape(-1), minlength=num_parts)
    shares = shares / num_pixels
    things = shares * (scene.instances > 0)
    seen = shares >= _IN_SIGHT
    counts = np.bincount(scene.shapes[seen], minlength=len(SHAPES))
    hues = np.bincount(scene.hues, weights=things, minlength=len(COLOURS))
    patterns = np.bincount(scene.patterns, weights=things, minlength=len(PATTERNS))
    labels = np.bincount(scene.classes, weights=shares, minlength=len(classes))
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
        **dict(zip(classes, labels.tolist(), strict=True)),
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


def label(
    scene: Scene,
    camera: Camera,
    rendered: Rendered,
    classes: tuple[str, ...],
    attributes: Attributes,
) -> np.ndarray:
    """Answers the 40 questions: bool [40], in the order of `attributes`."""
    measures = measure(scene, camera, rendered, classes)
    return np.array([measures[name] > above for name, above in attributes.values()])
