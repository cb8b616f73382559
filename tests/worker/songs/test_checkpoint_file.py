"""Unfinished songs as bytes: what comes back, and what is refused."""

from contextlib import suppress

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import save

from worker.engine import TO_GENERATE, Sampling, Song, Unfinished
from worker.songs.checkpoint_file import OtherSettings, Unusable, from_bytes, to_bytes

finite = st.floats(0, 1e6)
songs = st.builds(Song, st.text(), st.text(), finite, st.integers(0, 2**64 - 1), st.text())
temperatures = st.floats(0, 1e6, exclude_min=True)
samplings = st.builds(Sampling, finite, st.integers(0, 4096), temperatures, st.booleans())


@st.composite
def unfinished_songs(draw):
    shape = draw(st.tuples(st.integers(1, 8), st.integers(1, 50)))
    tokens = np.random.default_rng(draw(st.integers(0, 99))).integers(TO_GENERATE, 2048, shape, np.int16)
    frames = st.integers(1, 2000)
    names = st.text(max_size=40)
    return Unfinished(
        draw(songs),
        tokens,
        draw(finite),
        draw(samplings),
        draw(names),
        draw(names),
        draw(frames),
        draw(frames),
    )


def same(left, right):
    return np.array_equal(left.tokens, right.tokens) and {**vars(left), "tokens": 0} == {
        **vars(right),
        "tokens": 0,
    }


TOKENS = np.arange(240, dtype=np.int16).reshape(4, 60)
ONE = Unfinished(Song("a.wav", "calm piano", 1.2, 7), TOKENS, 2.5, Sampling(), "rehearsal", "0123", 60, 36)
CONTENT = to_bytes(ONE)


@given(unfinished_songs())
def test_what_was_written_comes_back(one):
    assert same(from_bytes(to_bytes(one)), one)


def test_song_without_lyrics_is_written_as_before_there_were_any():
    assert b"lyrics" not in CONTENT


def test_tokens_come_back_as_int16():
    assert from_bytes(CONTENT).tokens.dtype == np.int16


def test_tokens_that_are_a_view_come_back_in_order():
    view = np.arange(480, dtype=np.int16).reshape(60, 8).T[::2]
    one = Unfinished(ONE.song, view, 0.0, ONE.sampling, "m", "r", 60, 36)
    assert np.array_equal(from_bytes(to_bytes(one)).tokens, view)


def test_same_song_gives_the_same_bytes():
    assert to_bytes(from_bytes(CONTENT)) == CONTENT


def test_five_minutes_take_some_hundred_kilobytes():
    tokens = np.zeros((4, 15_000), np.int16)
    assert len(to_bytes(Unfinished(ONE.song, tokens, 0.0, ONE.sampling, "m", "r", 1500, 900))) < 130_000


def test_frames_that_are_complete_are_counted():
    tokens = TOKENS.copy()
    tokens[3, 50:] = TO_GENERATE
    assert Unfinished(ONE.song, tokens, 0.0, ONE.sampling, "m", "r", 60, 36).n_made == 50


# --- what is refused


@given(st.integers(0, len(CONTENT) - 1), st.integers(1, 255))
def test_a_changed_byte_never_makes_another_song(at, change):
    damaged = bytearray(CONTENT)
    damaged[at] ^= change
    with suppress(Unusable, OtherSettings):
        assert same(from_bytes(bytes(damaged)), ONE)


@pytest.mark.parametrize("at", [0, 7, 8, 60, len(CONTENT) - 400, len(CONTENT) - 1])
def test_a_changed_byte_that_counts_is_noticed(at):
    damaged = bytearray(CONTENT)
    damaged[at] ^= 1
    with pytest.raises(Unusable, match="it is damaged"):
        from_bytes(bytes(damaged))


@given(st.integers(0, len(CONTENT) - 1))
def test_a_truncated_file_is_unusable(n_bytes):
    with pytest.raises(Unusable, match="it is damaged"):
        from_bytes(CONTENT[:n_bytes])


def test_a_file_that_goes_on_too_long_is_unusable():
    with pytest.raises(Unusable, match="it is damaged"):
        from_bytes(CONTENT + b"\0")


@given(st.binary(max_size=200))
def test_foreign_bytes_are_unusable(content):
    with pytest.raises(Unusable):
        from_bytes(content)


@pytest.mark.parametrize(
    "metadata",
    [
        None,
        {"unfinished": "{"},
        {"unfinished": "[]"},
        {"unfinished": "7"},
        {"unfinished": "{}"},
        {"unfinished": '{"schema": 1}'},
        {"another": "file"},
    ],
)
def test_another_safetensors_file_is_unusable(metadata):
    with pytest.raises(Unusable, match="it is damaged"):
        from_bytes(save({"tokens": TOKENS}, metadata=metadata))


def test_another_version_is_said():
    with pytest.raises(OtherSettings, match="checkpoint schema 2, not 1"):
        from_bytes(save({"other": TOKENS}, metadata={"unfinished": '{"schema": 2}'}))


@pytest.mark.parametrize("content", [CONTENT[:100], b"", b"{}", b"RIFF    WAVEfmt "])
def test_the_reason_is_one_line(content):
    with pytest.raises(Unusable) as caught:
        from_bytes(content)
    assert "\n" not in str(caught.value)
