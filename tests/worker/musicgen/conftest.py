"""The rehearsal model, loaded once for each process that tests the engine."""

import pytest
import torch

from worker.musicgen import pretrained, rehearsal
from worker.musicgen.pretrained import Pretrained


@pytest.fixture(scope="session")
def loaded() -> Pretrained:
    torch.set_num_threads(1)  # as the engine does for so small a model: more threads wait for each other
    return pretrained.load("rehearsal")


@pytest.fixture(scope="session")
def stereo(tmp_path_factory) -> Pretrained:
    """The rehearsal model's stereo variant."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("stereo")
    rehearsal.build(folder, channels=2)
    return pretrained.load(str(folder))
