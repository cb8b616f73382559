"""remote/training/curves.py, on the event files of a real training."""

import math
import shutil

import pytest

from remote.training.curves import Curves, Point
from tests.training import losses

pytestmark = pytest.mark.xdist_group("training")


@pytest.fixture
def events(trained):
    """The bytes of a real event file: 40 steps."""
    (file,) = (trained / "logs" / "example").glob("events.out.tfevents.*")
    return file.read_bytes()


def of(points, tag):
    return {point.step: point.value for point in points if point.tag == tag}


def test_every_step_of_a_real_training_is_read_with_its_loss(trained):
    curves = Curves([trained / "none"])
    curves._folders.append(trained / "logs")  # as if the training had begun only now
    found = of(curves.poll(), "train/loss")
    wanted = losses(trained / "checkpoints" / "example" / "checkpoint-40")
    assert found.keys() == wanted.keys()
    assert all(math.isclose(found[step], wanted[step], rel_tol=1e-3) for step in wanted)


def test_file_that_grows_byte_by_byte_gives_every_point_once(tmp_path, events):
    curves, found = Curves([tmp_path]), []
    with (tmp_path / "events.out.tfevents.1").open("wb", buffering=0) as file:
        for at in range(0, len(events), 997):
            file.write(events[at : at + 997])
            found += curves.poll()
    assert [point.step for point in found if point.tag == "train/loss"] == list(range(1, 41))


def test_steps_of_an_earlier_run_are_not_new(tmp_path, events):
    old = tmp_path / "events.out.tfevents.1"
    old.write_bytes(events)
    curves = Curves([tmp_path])
    assert curves.poll() == []
    (tmp_path / "later").mkdir()
    (tmp_path / "later" / "events.out.tfevents.2").write_bytes(events)
    assert len(of(curves.poll(), "train/loss")) == 40


def test_folder_may_come_later_and_go_again(tmp_path, events):
    curves = Curves([tmp_path / "logs"])
    assert curves.poll() == []
    (tmp_path / "logs").mkdir()
    (tmp_path / "logs" / "events.out.tfevents.1").write_bytes(events)
    assert curves.poll()
    shutil.rmtree(tmp_path / "logs")
    assert curves.poll() == []


@pytest.mark.parametrize("content", [b"", b"no event file", bytes(4000), b"\xff" * 4000])
def test_file_that_is_none_gives_nothing(tmp_path, content):
    curves = Curves([tmp_path])
    (tmp_path / "events.out.tfevents.1").write_bytes(content)
    assert [point for point in curves.poll() if isinstance(point, Point)] == []
