"""A segment's noise is a function of the song's seed and the segment."""

import hashlib

import numpy as np

from worker.decoding.sampling import draws
from worker.heartmula.noise import noise_of

SHAPE = (744, 256)


def test_a_segments_noise_is_the_same_at_any_time_and_in_any_order():
    one, other = noise_of(7, SHAPE), noise_of(7, SHAPE)
    forwards = [one(segment) for segment in range(3)]
    backwards = [other(segment) for segment in reversed(range(3))]
    assert all(map(np.array_equal, forwards, reversed(backwards)))


def test_noise_is_normal_and_different_for_every_seed_and_segment():
    many = [noise_of(seed, SHAPE)(segment).ravel() for seed in (0, 1, 2**63 - 1) for segment in (0, 1, 22)]
    for each in many:
        assert each.dtype == np.float32
        assert abs(each.mean()) < 0.01
        assert abs(each.std() - 1) < 0.01
        assert abs((np.abs(each) < 1).mean() - 0.6827) < 0.005
        assert 4 < np.abs(each).max() < 7
    assert np.abs(np.corrcoef(many) - np.eye(len(many))).max() < 0.02


def test_noise_shares_nothing_with_the_draws_of_the_songs_tokens():
    uniform = draws(7, 0, 1000, 8).ravel()
    noise = noise_of(7, SHAPE)(0).ravel()
    assert abs(np.corrcoef(uniform, noise[: len(uniform)])[0, 1]) < 0.05


def test_noise_stays_what_it_is():
    # Rounded, as the last bit of a few may be another on another machine.
    noise = (noise_of(20261127, SHAPE)(3) * 1000).round().astype(np.int16)
    digest = hashlib.sha256(noise.astype("<i2").tobytes()).hexdigest()
    assert digest == "7613998a0c868cb911d2b21318ae80e30533e92550158821a90a880c2ff15c71", (
        "songs that were decoded before would sound different now"
    )
