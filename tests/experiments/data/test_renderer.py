"""The renderer's geometry: depth, normals, instances, offsets and pose."""

import itertools

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from experiments.data.cameras import Camera, look_at, rotation_matrix
from experiments.data.renderer import BASELINE, render
from experiments.data.rooms import ROOM_CLASSES, sample_room, sample_room_camera
from experiments.data.scenes import SHAPES, Place, SceneBuilder
from experiments.data.streets import (
    STREET_CLASSES,
    sample_street,
    sample_street_camera,
)

SIZE = (48, 64)
THINGS = {
    "room": set(ROOM_CLASSES) - {"ceiling", "floor", "wall"},
    "street": set(STREET_CLASSES[STREET_CLASSES.index("person") :]),
}
WORLDS = {
    "room": (sample_room, sample_room_camera, ROOM_CLASSES),
    "street": (sample_street, sample_street_camera, STREET_CLASSES),
}


@pytest.fixture(scope="module", params=[("room", 0), ("room", 1), ("street", 0)])
def view(request):
    """A world's name, its scene, a camera and what it sees."""
    world, seed = request.param
    sample_scene, sample_camera, _ = WORLDS[world]
    rng = np.random.default_rng(seed)
    scene = sample_scene(rng)
    camera = sample_camera(scene, rng)
    return world, scene, camera, render(scene, camera, SIZE)


def box_with(add):
    """A closed cube of 8 metres about the origin, and what `add` puts into it."""
    half = 4.0
    builder = SceneBuilder(("wall", "thing"), np.random.default_rng(0))
    for axis, side in itertools.product(range(3), (-1, 1)):
        sizes, at = [half + 1] * 3, [0.0] * 3
        sizes[axis], at[axis] = 0.5, side * (half + 0.5)
        builder.stuff("wall").box(tuple(at), tuple(sizes), builder.paint("white"))
    add(builder)
    return builder.build(light=(0, 0, half / 2), space=((0, 0, 0), (0, 0, 0)))


def rays(camera, size):
    """Directions in the camera's frame with 1 along the optical axis."""
    height, width = size
    focal = camera.focal * width
    x = (np.arange(width) + 0.5 - width / 2) / focal
    y = (np.arange(height) + 0.5 - height / 2) / focal
    x, y = np.meshgrid(x, y)
    return np.stack([x, y, np.ones_like(x)], axis=-1)


def world_points(camera, seen):
    w, x, y, z = camera.quaternion
    turn = Rotation.from_quat([x, y, z, w]).as_matrix()
    points = rays(camera, seen.depth.shape) * seen.depth[..., None].astype(float)
    return points @ turn.T + camera.position


def canonical(scene, points, parts):
    """Points of the world in the frames of parts, where these are unit shapes."""
    turned = np.einsum(
        "...ji,...j->...i", scene.rotations[parts], points - scene.centres[parts]
    )
    return turned / scene.halves[parts]


def levels(scene, points, parts):
    """1 on the surface of a part, less inside."""
    x, y, z = np.moveaxis(np.abs(canonical(scene, points, parts)), -1, 0)
    by_shape = {
        "box": np.maximum(np.maximum(x, y), z),
        "sphere": np.sqrt(x**2 + y**2 + z**2),
    }
    return np.choose(scene.shapes[parts], [by_shape[name] for name in SHAPES])


def test_depth_and_normals_are_sound(view):
    """Depth is positive and finite; normals are unit and face the camera."""
    _, _, camera, seen = view
    assert np.all(seen.depth > 0)
    assert np.all(np.isfinite(seen.depth))
    np.testing.assert_allclose(np.linalg.norm(seen.normals, axis=-1), 1, atol=1e-5)
    facing = np.sum(seen.normals * rays(camera, SIZE), axis=-1)
    assert np.all(facing < 1e-6)


def test_pixels_lie_on_their_surfaces(view):
    """The pose takes a camera's rays to the world: depth ends on the part's surface."""
    _, scene, camera, seen = view
    points = world_points(camera, seen)
    level = levels(scene, points, seen.surfaces)
    # In units of a part's half size, which may be 5 mm at a distance of 60 m.
    smallest = scene.halves[seen.surfaces].min(axis=-1)
    np.testing.assert_array_less(
        np.abs(level - 1) * smallest, 1e-5 * np.maximum(seen.depth, 1) + 1e-5
    )


def test_nothing_is_in_front(view):
    """No place on a ray before its end is inside a solid part."""
    _, scene, camera, seen = view
    rng = np.random.default_rng(0)
    rows, columns = rng.integers(0, SIZE, [60, 2]).T
    ends = world_points(camera, seen)[rows, columns]
    shares = np.linspace(0.05, 0.999, 100)[:, None, None]
    places = camera.position + shares * (ends - camera.position)
    dome = (scene.shapes == SHAPES.index("sphere")) & (scene.halves[:, 0] > 100)
    (solid,) = np.nonzero(~dome)
    far = np.linalg.norm(scene.centres[solid] - camera.position, axis=1)
    for part in solid[np.argsort(far)[:150]]:
        assert levels(scene, places, np.full(places.shape[:-1], part)).min() > 0.99


def test_boxes_in_front_are_seen():
    """A flat box hides what is behind it, within its bounds and not beyond."""

    def add(builder):
        poster = builder.thing("thing", Place((0, 3, 0)))
        poster.box((0, 0, 0), (1, 1, 0.5), builder.paint("red"))

    camera = look_at(np.zeros(3), np.array([0, 1, 0]), focal=0.5)
    seen = render(box_with(add), camera, (40, 40))
    x, y, _ = np.moveaxis(rays(camera, (40, 40)), -1, 0)
    inside = (np.abs(2 * x) < 1) & (np.abs(2 * y) < 0.5)
    np.testing.assert_array_equal(seen.classes == 1, inside)
    np.testing.assert_allclose(seen.depth[inside], 2, rtol=1e-6)


def angles(seen, camera):
    """Between normals and the depth's gradient, in degrees, where it may be taken.

    That is where the four neighbours are of the same surface, with normals within 17
    degrees.
    """
    points = rays(camera, seen.depth.shape) * seen.depth[..., None].astype(float)
    along_x = points[1:-1, 2:] - points[1:-1, :-2]
    along_y = points[2:, 1:-1] - points[:-2, 1:-1]
    expected = np.cross(along_y, along_x)
    expected /= np.linalg.norm(expected, axis=-1, keepdims=True)
    middle, normals = seen.surfaces[1:-1, 1:-1], seen.normals
    smooth = np.ones(middle.shape, bool)
    flat = np.ones(middle.shape, bool)
    height, width = seen.depth.shape
    for down, right in ((0, 1), (2, 1), (1, 0), (1, 2)):
        window = slice(down, height - 2 + down), slice(right, width - 2 + right)
        cosine = np.sum(normals[1:-1, 1:-1] * normals[window], axis=-1)
        smooth &= (seen.surfaces[window] == middle) & (cosine > 0.955)
        flat &= smooth & (cosine > 1 - 1e-5)
    sine = np.cross(expected, normals[1:-1, 1:-1])
    cosine = np.sum(expected * normals[1:-1, 1:-1], axis=-1)
    angle = np.degrees(np.arctan2(np.linalg.norm(sine, axis=-1), cosine))
    return angle, smooth, flat


def test_normals_are_the_gradient_of_depth(view):
    """The cross product of differences of points, on flat faces to 0.1 degrees."""
    _, _, camera, seen = view
    angle, smooth, flat = angles(seen, camera)
    assert flat.mean() > 0.2
    assert np.percentile(angle[flat], 99) < 0.1
    assert np.median(angle[smooth]) < 0.1
    assert angle[smooth].max() < 20


def test_curved_normals_are_the_gradient_of_depth():
    """Second order in the pixel: a quarter of the angle at half the spacing."""

    def add(builder):
        thing = builder.thing("thing", Place((0.3, 2.5, 0.2), 0.7))
        thing.ball((0, 0, 0), (1.0, 0.6, 0.8), builder.paint("red"))

    camera = look_at(np.zeros(3), np.array([0.2, 1, 0.1]), roll=0.3, focal=0.8)
    medians = []
    for side in (48, 96):
        seen = render(box_with(add), camera, (side, side))
        angle, smooth, flat = angles(seen, camera)
        curved = smooth & ~flat & (seen.classes[1:-1, 1:-1] == 1)
        medians.append(np.median(angle[curved]))
    assert medians[0] < 1
    assert 3 < medians[0] / medians[1] < 5


def test_each_instance_has_one_class(view):
    """Things have an instance everywhere, stuff has none."""
    world, _, _, seen = view
    _, _, classes = WORLDS[world]
    for instance in np.unique(seen.instances[seen.instances > 0]):
        assert len(np.unique(seen.classes[seen.instances == instance])) == 1
    things = [classes.index(name) for name in THINGS[world]]
    np.testing.assert_array_equal(seen.instances > 0, np.isin(seen.classes, things))


def test_offsets_point_to_the_centre(view):
    """Pixel plus offset is the mean of the instance's pixels, the same for all."""
    seen = view[-1]
    places = np.moveaxis(np.indices(SIZE), 0, -1)
    for instance in np.unique(seen.instances[seen.instances > 0]):
        inside = seen.instances == instance
        aims = (places + seen.offsets)[inside]
        expected = np.broadcast_to(places[inside].mean(axis=0), aims.shape)
        np.testing.assert_allclose(aims, expected, atol=1e-4)
    assert np.isnan(seen.offsets[seen.instances == 0]).all()


def test_disparity_times_depth_is_constant(view):
    """Focal length in pixels times the baseline."""
    _, _, camera, seen = view
    expected = camera.focal * SIZE[1] * BASELINE
    np.testing.assert_allclose(seen.disparity * seen.depth, expected, rtol=1e-6)


def test_pose_renders_the_same_image_again(view):
    """Bit for bit, from copies of the seven numbers and the focal length."""
    _, scene, camera, seen = view
    pose = np.concatenate([camera.position, camera.quaternion])
    again = render(scene, Camera(pose[:3], pose[3:], camera.focal), SIZE)
    for first, second in zip(seen, again, strict=True):
        assert first.tobytes() == second.tobytes()


def test_sphere_before_a_wall():
    """Closed forms: the depth of its front, its outline, its centre, the wall."""

    def add(builder):
        builder.thing("thing").ball((0, 2, 0), 0.5, builder.paint("blue"))

    camera = look_at(np.zeros(3), np.array([0, 1, 0]), focal=1.0)
    seen = render(box_with(add), camera, (65, 65))
    assert seen.depth[32, 32] == pytest.approx(1.5, rel=1e-6)
    assert seen.depth[0, 32] == pytest.approx(4, rel=1e-6)
    tangent = np.linalg.norm(rays(camera, (65, 65))[..., :2], axis=-1)
    expected = tangent < 0.5 / np.sqrt(2**2 - 0.5**2)
    np.testing.assert_array_equal(seen.classes == 1, expected)
    np.testing.assert_allclose(seen.offsets[32, 32], 0, atol=1e-5)
    np.testing.assert_allclose(seen.normals[32, 32], [0, 0, -1], atol=1e-6)


def test_two_views_agree():
    """Points of one view that the other sees too have its depth there."""
    rng = np.random.default_rng(3)
    scene = sample_room(rng)
    first, second = (sample_room_camera(scene, rng) for _ in range(2))
    second = first._replace(position=first.position + np.array([0.1, 0.05, -0.05]))
    one, other = render(scene, first, SIZE), render(scene, second, SIZE)
    turned = (world_points(first, one) - second.position) @ rotation_matrix(
        second.quaternion
    )
    x, y, depth = np.moveaxis(turned, -1, 0)
    focal = second.focal * SIZE[1]
    columns = np.floor(focal * x / depth + SIZE[1] / 2).astype(int)
    rows = np.floor(focal * y / depth + SIZE[0] / 2).astype(int)
    inside = (columns >= 0) & (columns < SIZE[1]) & (rows >= 0) & (rows < SIZE[0])
    inside &= depth > 0
    same = other.surfaces[rows[inside], columns[inside]] == one.surfaces[inside]
    found = other.depth[rows[inside], columns[inside]][same]
    assert same.mean() > 0.75
    assert np.median(np.abs(found / depth[inside][same] - 1)) < 0.02


@pytest.mark.parametrize("seed", range(5))
def test_quaternion_is_unit_with_fixed_sign(seed):
    """And is SciPy's of the same rotation; the optical axis meets the target."""
    rng = np.random.default_rng(seed)
    position, target = rng.normal(size=[2, 3])
    camera = look_at(position, target, roll=rng.uniform(-3, 3))
    w, x, y, z = camera.quaternion
    assert np.linalg.norm(camera.quaternion) == pytest.approx(1, abs=1e-6)
    assert w >= 0
    matrix = rotation_matrix(camera.quaternion)
    expected = Rotation.from_quat([x, y, z, w]).as_matrix()
    np.testing.assert_allclose(matrix, expected, atol=1e-6)
    ahead = (target - position) / np.linalg.norm(target - position)
    np.testing.assert_allclose(matrix @ [0, 0, 1], ahead, atol=1e-6)


def test_roll_turns_the_image():
    """Half a turn shows a symmetric box upside down."""

    def add(builder):
        builder.thing("thing").ball((0.5, 2, 0.4), 0.3, builder.paint("blue"))

    scene, target = box_with(add), np.array([0, 1, 0])
    upright = render(scene, look_at(np.zeros(3), target), (32, 32))
    turned = render(scene, look_at(np.zeros(3), target, roll=np.pi), (32, 32))
    same = upright.classes == turned.classes[::-1, ::-1]
    assert same.mean() > 0.99
    rows, columns = np.nonzero(upright.classes)
    assert rows.mean() < 15.5  # above the middle, as z is up
    assert columns.mean() > 15.5


def test_bad_input_is_refused_in_one_line():
    scene = box_with(lambda builder: None)
    camera = look_at(np.zeros(3), np.array([0, 1, 0]))
    with pytest.raises(ValueError, match="`quaternion` must have norm 1, got norm 2"):
        render(scene, camera._replace(quaternion=2 * camera.quaternion), (4, 4))
    outside = look_at(np.array([0, 9, 0]), np.array([0, 10, 0]))
    with pytest.raises(ValueError, match="`scene` must enclose the camera"):
        render(scene, outside, (4, 4))
