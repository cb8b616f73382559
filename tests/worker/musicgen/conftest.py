"""The rehearsal model, loaded once for each process that tests the engine."""

import pytest
import torch

from worker.musicgen import pretrained
from worker.musicgen.pretrained import Pretrained


@pytest.fixture(scope="session")
def loaded() -> Pretrained:
    torch.set_num_threads(1)  # as the engine does for so small a model: more threads wait for each other
    return pretrained.load("rehearsal")
