"""Rendered data sets: splits, seeds, coverage of classes and attributes."""

import itertools

import numpy as np
import pytest

from experiments.data.cameras import Camera
from experiments.data.rendered import load_room_views, load_rooms, load_streets
from experiments.data.renderer import render

SIZE = (24, 32)
LOADERS = {"rooms": load_rooms, "streets": load_streets, "views": load_room_views}


def load(name, num=3, **settings):
    return LOADERS[name](num, 2, 2, **{"size": SIZE, **settings})


def same(first, second):
    return all(a.tobytes() == b.tobytes() for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize("name", LOADERS)
def test_shapes_and_source(name):
    data = load(name)
    samples = data.train.draw([0, 2])
    images = (2, *SIZE)
    assert samples.images.shape == samples.normals.shape == (*images, 3)
    assert samples.images.dtype == np.uint8
    assert samples.offsets.shape == (*images, 2)
    for labels in (samples.classes, samples.instances, samples.depth):
        assert labels.shape == images
    num_attributes = 0 if name == "streets" else 40
    assert samples.attributes.shape == (2, len(data.attributes)) == (2, num_attributes)
    assert samples.positions.shape == (2, 3)
    assert samples.quaternions.shape == (2, 4)
    assert samples.classes.max() < len(data.classes)
    assert "render" in data.source
    assert "24 x 32 pixels (3 train / 2 validation / 2 test)" in data.source


@pytest.mark.parametrize("name", LOADERS)
def test_image_depends_on_seed_and_index_only(name):
    """Any order, any number of images; another seed gives another image."""
    samples = load(name).train.draw([2, 0])
    assert same(samples, load(name, num=9).train.draw([2, 0]))
    alone = load(name).train.draw([0])
    assert same([array[1] for array in samples], [array[0] for array in alone])
    other = load(name, seed=1).train.draw([0])
    assert np.mean(other.images != alone.images) > 0.5
    assert not np.array_equal(other.positions, alone.positions)


@pytest.mark.parametrize("name", LOADERS)
def test_stored_pose_renders_the_image(name):
    train = load(name).train
    samples, (scene, _) = train.draw([1]), train.view(1)
    camera = Camera(
        samples.positions[0], samples.quaternions[0], float(samples.focals[0])
    )
    np.testing.assert_array_equal(render(scene, camera, SIZE).image, samples.images[0])


@pytest.mark.parametrize("name", LOADERS)
def test_splits_are_disjoint(name):
    """No camera is in two splits, and no scene either unless there is one only."""
    data = load(name)
    views = [
        split.view(index)
        for split in (data.train, data.validation, data.test)
        for index in range(len(split))
    ]
    assert len({camera.position.tobytes() for _, camera in views}) == len(views) == 7
    num_scenes = len({scene.centres.tobytes() for scene, _ in views})
    assert num_scenes == (1 if name == "views" else 7)


def test_rooms_differ():
    """Each room of each seed is another one, and none is in the set of rooms."""
    rooms = [
        load_room_views(1, 1, 1, room=room, seed=seed)
        for room, seed in itertools.product(range(3), range(2))
    ]
    scenes = [data.train.view(0)[0] for data in rooms] + [
        load_rooms(1, 1, 1, seed=seed).train.view(0)[0] for seed in range(2)
    ]
    assert len({scene.centres.tobytes() for scene in scenes}) == 8


@pytest.mark.parametrize("name", ["rooms", "streets"])
def test_every_class_and_attribute_occurs(name):
    """Classes somewhere, and attributes with both values, each in a tenth or more."""
    num, size = (60, (36, 48)) if name == "rooms" else (45, (32, 64))
    data = LOADERS[name](num, 1, 1, size=size)
    drawn = data.train.draw(range(num))
    assert set(np.unique(drawn.classes)) == set(range(len(data.classes)))
    named = dict(zip(data.attributes, drawn.attributes.mean(axis=0), strict=True))
    rare = {key: share for key, share in named.items() if not 0.1 <= share <= 0.9}
    assert rare == {}


def test_views_look_about():
    """Places and directions of cameras in one room are spread, and clear of things."""
    data = load("views", num=40)
    views = [data.train.view(index) for index in range(40)]
    low, high = views[0][0].space
    positions = np.stack([camera.position for _, camera in views])
    quaternions = np.stack([camera.quaternion for _, camera in views])
    assert np.all((positions >= low) & (positions <= high))
    assert np.all(positions.std(axis=0) > 0.15 * (high - low))
    assert np.all(quaternions[:, 0] >= 0)
    assert np.abs(quaternions @ quaternions.T).min() < 0.5  # some look far apart


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_train": 0}, "`num_train` must be at least 1, got 0"),
        ({"num_test": -1}, "`num_test` must be at least 1, got -1"),
        ({"seed": -1}, "`seed` must not be negative, got -1"),
        ({"room": -2}, "`room` must not be negative, got -2"),
        ({"size": (0, 4)}, r"`size` must be a height and a width, got \(0, 4\)"),
    ],
)
def test_bad_settings_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        load_room_views(**settings)


def test_bad_indices_are_refused():
    train = load("rooms").train
    with pytest.raises(ValueError, match="`index` must be from 0 to 2, got 3"):
        train.view(3)
    with pytest.raises(ValueError, match="`index` must be from 0 to 2, got -1"):
        train.draw([-1])
    with pytest.raises(ValueError, match="`indices` must not be empty"):
        train.draw([])
