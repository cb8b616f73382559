"""Songs as windows, and windows as columns of the delay pattern."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.worker.musicgen.plan_steps import n_steps
from worker.engine import TO_GENERATE
from worker.musicgen import windows
from worker.musicgen.windows import Window

S = 99  # the special token


@st.composite
def plans(draw):
    """(n_frames, window, stride) of any sizes."""
    window = draw(st.integers(2, 60))
    return draw(st.integers(1, 400)), window, draw(st.integers(1, window - 1))


def numbered(n_codebooks, n_frames):
    """Tokens that are all different: codebook k of frame f is 1000 * k + f."""
    return (1000 * np.arange(n_codebooks)[:, None] + np.arange(n_frames)).astype(np.int16)


# --- the plan


@given(plans())
def test_every_frame_is_generated_exactly_once(song):
    made = [f for w in windows.plan(*song) for f in range(w.start + w.carried, w.end)]
    assert made == list(range(song[0]))


@given(plans())
def test_no_window_is_longer_than_the_window(song):
    assert max(w.length for w in windows.plan(*song)) <= song[1]


@given(plans())
def test_windows_start_a_stride_apart(song):
    starts = [w.start for w in windows.plan(*song)]
    assert starts == [i * song[2] for i in range(len(starts))]


@given(plans())
def test_only_the_last_window_is_shorter_than_the_window(song):
    assert all(w.length == song[1] for w in windows.plan(*song)[:-1])


@given(plans())
def test_carried_frames_are_those_that_the_window_before_has_made(song):
    planned = windows.plan(*song)
    assert planned[0].carried == 0
    for before, after in pairwise(planned):
        assert after.start + after.carried == before.end


@given(plans(), st.integers(1, 6))
def test_steps_are_the_columns_with_something_to_generate(song, n_codebooks):
    tokens, counted = windows.unmade(n_codebooks, song[0]), 0
    planned = windows.plan(*song)
    for window in planned:
        columns = windows.delayed(tokens, window, S)
        counted += int((columns == TO_GENERATE).any(axis=0).sum())
        tokens[:, window.start : window.end] = 0
    assert n_steps(planned, n_codebooks) == counted


def test_five_minutes_are_15048_steps_in_16_windows():
    planned = windows.plan(15_000, 1500, 900)
    assert n_steps(planned, 4) == 15_048 == 1503 + 15 * 903
    assert len(planned) == 16


def test_five_minutes_have_601_columns_before_each_continued_window():
    for window in windows.plan(15_000, 1500, 900)[1:]:
        tokens = windows.unmade(4, 15_000)
        tokens[:, : window.start + window.carried] = 0
        assert windows.first_unmade(windows.delayed(tokens, window, S)) == 601


def test_the_default_window_is_30_s_and_its_stride_18_s():
    assert (windows.WINDOW_S, windows.STRIDE_S) == (30.0, 18.0)


@pytest.mark.parametrize("stride", [0, -1, 1500, 1501])
def test_stride_under_1_or_not_under_the_window_is_refused(stride):
    with pytest.raises(ValueError, match=f"stride {stride} must be between"):
        windows.plan(3000, 1500, stride)


# --- columns


def test_the_picture_in_the_docstring_is_the_delay_pattern():
    picture = [line.split()[2:] for line in windows.__doc__.splitlines() if line.strip().startswith("codeb")]
    window = Window(0, 0, 3)
    columns = windows.delayed(numbered(4, 3), window, S)
    named = [["S" if t == S else "abcd"[t // 1000] + str(t % 1000) for t in row] for row in columns]
    assert named == picture


@given(plans(), st.integers(1, 6))
def test_undelayed_gives_back_what_was_delayed(song, n_codebooks):
    tokens = numbered(n_codebooks, song[0])
    for window in windows.plan(*song):
        undelayed = windows.undelayed(windows.delayed(tokens, window, S), window)
        assert np.array_equal(undelayed, tokens[:, window.start : window.end])


def test_undelayed_tokens_are_int16():
    window = Window(0, 0, 3)
    assert windows.undelayed(windows.delayed(numbered(4, 3), window, S), window).dtype == np.int16


def test_columns_of_a_song_not_begun_are_special_or_to_generate():
    columns = windows.delayed(windows.unmade(2, 2), Window(0, 0, 2), S)
    assert columns.tolist() == [[S, -1, -1, S], [S, S, -1, -1]]


@given(st.integers(1, 6), st.integers(1, 30))
def test_draws_are_in_the_columns_of_their_tokens(n_codebooks, length):
    tokens = numbered(n_codebooks, length)
    window = Window(0, 0, length)
    columns = windows.delayed(tokens, window, S)
    drawn = windows.in_columns(tokens.T.astype(np.float32), window)
    is_token = windows.delayed(np.full_like(tokens, TO_GENERATE), window, S) == TO_GENERATE
    assert drawn.shape == columns.T.shape
    assert np.array_equal(drawn.T[is_token], columns[is_token])


def test_first_unmade_column_of_a_new_song_is_1():
    assert windows.first_unmade(windows.delayed(windows.unmade(4, 8), Window(0, 0, 8), S)) == 1


def test_first_unmade_column_is_the_one_of_the_lowest_frame_and_codebook_missing():
    tokens = numbered(4, 8)
    tokens[2, 3] = TO_GENERATE
    assert windows.first_unmade(windows.delayed(tokens, Window(0, 0, 8), S)) == 1 + 2 + 3


def test_first_unmade_column_of_a_finished_window_is_beyond_it():
    columns = windows.delayed(numbered(4, 8), Window(0, 0, 8), S)
    assert windows.first_unmade(columns) == columns.shape[1] == windows.n_columns(8, 4)
