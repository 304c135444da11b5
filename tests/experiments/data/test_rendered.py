"""Rendered data sets: splits, seeds, coverage of classes and attributes."""

import itertools

import numpy as np
import pytest

from experiments.data.rendered import load_room_views, load_rooms, load_streets
from experiments.data.rooms import ROOM_CLASSES
from experiments.data.scene_attributes import answer
from experiments.data.streets import STREET_CLASSES

SIZE = (24, 32)
LOADERS = {"rooms": load_rooms, "streets": load_streets, "views": load_room_views}


def load(name, num=3, **settings):
    return LOADERS[name](num, 2, 2, **{"size": SIZE, **settings})


def same(first, second):
    return all(a.tobytes() == b.tobytes() for a, b in zip(first, second, strict=True))


def draw_all(data):
    splits = (data.train, data.validation, data.test)
    return [split.draw(index) for split in splits for index in range(split.num)]


@pytest.mark.parametrize("name", LOADERS)
def test_shapes_and_source(name):
    data = load(name)
    seen = data.train.draw(2).seen
    assert seen.image.shape == seen.normals.shape == (*SIZE, 3)
    assert seen.image.dtype == np.uint8
    assert seen.offsets.shape == (*SIZE, 2)
    for labels in (seen.classes, seen.instances, seen.depth):
        assert labels.shape == SIZE
    assert "render" in data.source
    assert "24 x 32 pixels (3 train / 2 validation / 2 test)" in data.source


@pytest.mark.parametrize("name", LOADERS)
def test_image_depends_on_seed_and_index_only(name):
    """Any order, any number of images; another seed gives another image."""
    train = load(name).train
    last, first = train.draw(2), train.draw(0)
    again = load(name, num=9).train
    assert same(first.seen, again.draw(0).seen)
    assert same(last.seen, again.draw(2).seen)
    other = load(name, seed=1).train.draw(0)
    assert np.mean(other.seen.image != first.seen.image) > 0.5
    assert not np.array_equal(other.camera.position, first.camera.position)


@pytest.mark.parametrize("name", LOADERS)
def test_splits_are_disjoint(name):
    """No camera is in two splits, and no scene either unless there is one only."""
    drawn = draw_all(load(name))
    assert len({each.camera.position.tobytes() for each in drawn}) == len(drawn) == 7
    num_scenes = len({each.scene.centres.tobytes() for each in drawn})
    assert num_scenes == (1 if name == "views" else 7)


def test_rooms_differ():
    """Each room of each seed is another one, and none is in the set of rooms."""
    data = [
        load_room_views(1, 1, 1, room=room, size=(1, 1), seed=seed)
        for room, seed in itertools.product(range(3), range(2))
    ] + [load_rooms(1, 1, 1, size=(1, 1), seed=seed) for seed in range(2)]
    scenes = [each.train.draw(0).scene for each in data]
    assert len({scene.centres.tobytes() for scene in scenes}) == 8


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "classes", "num_attributes"),
    [("rooms", ROOM_CLASSES, 40), ("streets", STREET_CLASSES, 0)],
)
def test_every_class_and_attribute_occurs(name, classes, num_attributes):
    """Classes somewhere, and attributes with both values, each in a tenth or more."""
    num, size = (60, (36, 48)) if name == "rooms" else (45, (32, 64))
    train = LOADERS[name](num, 1, 1, size=size).train
    drawn = [train.draw(index) for index in range(num)]
    seen = np.concatenate([np.unique(each.seen.classes) for each in drawn])
    assert set(seen) == set(range(len(classes)))
    answers = [answer(*each) for each in drawn] if num_attributes else [{}]
    assert len(answers[0]) == num_attributes
    shares = {key: np.mean([each[key] for each in answers]) for key in answers[0]}
    assert {
        key: share for key, share in shares.items() if not 0.1 <= share <= 0.9
    } == {}


def test_views_look_about():
    """Places and directions of cameras in one room are spread, and clear of things."""
    train = load("views", num=40).train
    drawn = [train.draw(index) for index in range(40)]
    low, high = drawn[0].scene.space
    positions = np.stack([each.camera.position for each in drawn])
    quaternions = np.stack([each.camera.quaternion for each in drawn])
    assert np.all((positions >= low) & (positions <= high))
    assert np.all(positions.std(axis=0) > 0.15 * (high - low))
    assert np.all(quaternions[:, 0] >= 0)
    assert np.abs(quaternions @ quaternions.T).min() < 0.5  # some look far apart


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_train": 0}, "`num_train` must be at least 1, got 0"),
        ({"num_test": -1}, "`num_test` must be at least 1, got -1"),
        ({"seed": -1}, "`seed` must be at least 0, got -1"),
        ({"room": -2}, "`room` must be at least 0, got -2"),
        ({"size": (0, 4)}, r"`size` must be a height and a width, got \(0, 4\)"),
    ],
)
def test_bad_settings_are_refused(settings, message):
    numbers = {"num_train": 3, "num_validation": 2, "num_test": 2}
    with pytest.raises(ValueError, match=message):
        load_room_views(**{**numbers, "size": SIZE, **settings})
