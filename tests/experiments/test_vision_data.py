"""The samples of the vision experiments: rendered, read once, held out."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from experiments.data.rendered import load_room_views, load_rooms, load_streets
from experiments.data.rendered_samples import (
    attribute_labels,
    pose_labels,
    rendered_samples,
    room_labels,
    street_groups,
    street_labels,
)
from experiments.data.samples import Sample, Samples, make_sample
from experiments.lab.errors import UsageError
from experiments.lab.vision.data import Split, hold_out

SIZE = (6, 8)


@pytest.mark.parametrize(
    ("data", "labels", "shapes"),
    [
        (load_rooms, room_labels, {"segmentation": (), "depth": (1,), "normals": (3,)}),
        (
            load_streets,
            street_labels,
            {"segmentation": (), "instances": (2,), "disparity": (1,)},
        ),
        (load_streets, street_groups, {"segmentation": ()}),
    ],
)
def test_rendered_maps_have_the_form_of_the_loaders(
    data: Callable[..., Any], labels: Callable[..., Any], shapes: dict[str, Any]
):
    drawn = data(2, 1, 1, size=SIZE)
    sample = rendered_samples(drawn, labels)["train"][1]
    assert {k: v.shape for k, v in sample.labels.items()} == {
        task: (*SIZE, *channels) for task, channels in shapes.items()
    }
    np.testing.assert_allclose(sample.image, drawn.train.draw(1).seen.image / 255)
    assert all(
        label.dtype == (np.int32 if task == "segmentation" else np.float32)
        for task, label in sample.labels.items()
    )


def test_rendered_attributes_and_poses_have_the_form_of_the_loaders():
    rooms = load_rooms(2, 1, 1, size=SIZE)
    sample = rendered_samples(rooms, attribute_labels)["test"][0]
    assert len(sample.labels) == 40
    assert {int(label) for label in sample.labels.values()} == {0, 1}
    views = load_room_views(2, 1, 1, size=SIZE)
    pose = rendered_samples(views, pose_labels)["train"][0].labels
    np.testing.assert_allclose(np.linalg.norm(pose["rotation"]), 1, rtol=1e-5)
    assert pose["translation"].shape == (3,)


def counted(num: int) -> tuple[Samples, list[int]]:
    """Samples whose labels are their places, and which of them were read."""
    read: list[int] = []

    def one(place: int) -> Sample:
        read.append(place)
        if place == 7:
            raise ValueError("seven.png is broken.")
        labels = {"place": np.array(place), "half": np.array([place / 2])}
        return make_sample(np.full([2, 3, 3], place / 255), labels)

    return Samples([str(i) for i in range(num)], one, "counted"), read


def test_samples_are_read_once_and_when_asked_for():
    """The first tells the shapes; what was read before is not read again."""
    samples, read = counted(6)
    split = Split(samples)
    assert len(split) == 6
    assert split.tasks == ("place", "half")
    read.clear()
    batch = split.batch(np.array([4, 2, 4]))
    assert sorted(read) == [2, 4]
    assert batch["image"].dtype == np.uint8
    assert batch["labels"]["place"].dtype == np.int8
    assert batch["labels"]["half"].dtype == np.float32
    split.batch(np.array([2, 3]))
    assert sorted(read) == [2, 3, 4]
    for row, place in enumerate((4, 2, 4)):
        np.testing.assert_array_equal(batch["image"][row], np.full([2, 3, 3], place))
        assert batch["labels"]["place"][row] == place
        assert batch["labels"]["half"][row] == place / 2


def test_samples_past_the_end_have_no_label():
    """And what they are made of is not changed by it."""
    split = Split(counted(3)[0])
    batch = split.padded(2, 2)["labels"]
    assert batch["place"].tolist() == [2, -1]
    np.testing.assert_array_equal(batch["half"], [[1.0], [np.nan]])
    assert split.batch(np.arange(3))["labels"]["place"].tolist() == [0, 1, 2]


def test_the_last_tenth_is_held_out():
    splits = hold_out(counted(7)[0], counted(1)[0])
    kept = {name: list(split.names) for name, split in splits.items()}
    assert kept == {"train": list("012345"), "validation": ["6"], "test": ["0"]}
    assert splits["validation"].read(0).labels["place"] == 6


def test_one_sample_cannot_be_trained_and_validated_on():
    with pytest.raises(ValueError, match="`train` must have 2 samples or more"):
        hold_out(counted(1)[0], counted(1)[0])


def test_a_sample_that_cannot_be_read_is_named():
    split = Split(counted(9)[0])
    split.batch(np.arange(5))
    with pytest.raises(UsageError, match=r"seven\.png is broken"):
        split.batch(np.arange(5, 9))
