"""worker/engine.py: sampling that no song can be made with."""

import math

import pytest

from worker.engine import Sampling
from worker.errors import BadInput


@pytest.mark.parametrize(
    "wrong",
    [
        {"temperature": 0.0},
        {"temperature": -1.0},
        {"temperature": math.nan},
        {"top_k": -5},
        {"guidance_scale": -1.0},
        {"guidance_scale": math.inf},
    ],
    ids=str,
)
def test_sampling_that_makes_no_song_is_refused_by_name(wrong):
    (name,) = wrong
    with pytest.raises(BadInput, match=f"^{name.replace('_', ' ')} must be .*; MusicGen's default is"):
        Sampling(**wrong)
