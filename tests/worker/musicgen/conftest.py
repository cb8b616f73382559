"""The rehearsal model, loaded once for each process that tests the engine."""

import pytest

from worker.musicgen import pretrained
from worker.musicgen.pretrained import Pretrained


@pytest.fixture(scope="session")
def loaded() -> Pretrained:
    return pretrained.load("rehearsal")
