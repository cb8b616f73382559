"""examples/train: a real training that resumes as if it had never stopped."""

import pytest

from tests.training import losses

pytestmark = pytest.mark.xdist_group("training")


def test_training_saves_its_newest_checkpoints_and_curves(trained):
    names = {path.name for path in (trained / "checkpoints" / "example").iterdir()}
    assert names == {"checkpoint-20", "checkpoint-30", "checkpoint-40"}
    assert len(list((trained / "logs" / "example").glob("events.out.tfevents.*"))) == 1


def test_it_learns(trained):
    loss = losses(trained / "checkpoints" / "example" / "checkpoint-40")
    assert [*loss] == list(range(1, 41))
    assert sum(loss[step] for step in range(31, 41)) < 0.9 * sum(loss[step] for step in range(1, 11))
