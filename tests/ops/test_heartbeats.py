"""What is said of a run that an output has the status of."""

import pytest

from ops import heartbeats
from tests.fakes.heartbeats import write
from worker.songs.status import Steps
from worker.store.open import open_store

RUN = "20261122T195000Z-ab12"


@pytest.mark.parametrize(("total", "said"), [(40, "training, step 25 of 40"), (None, "training, step 25")])
def test_training_is_told_by_its_steps(tmp_path, total, said):
    write(str(tmp_path), RUN, state="training", steps=Steps(done=25, total=total, epoch=None, loss=None))
    assert heartbeats.progress(heartbeats.of_run(open_store(str(tmp_path)), RUN)) == said
