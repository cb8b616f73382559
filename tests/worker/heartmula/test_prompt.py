"""Words become positions, and seconds frames. What heartlib makes of the words: test_against_heartlib.py."""

import pytest

from worker.errors import BadInput
from worker.heartmula.prompt import Prompter, n_frames, n_positions, refuse_oversized


@pytest.fixture
def prompter(trees):
    tree = trees["rehearsal"]
    return Prompter(tree.folder / "tokenizer.json", tree.generation)


def test_song_without_lyrics_has_an_empty_text(prompter, trees):
    """heartlib stops with an IndexError where the tokenizer adds no <bos>."""
    generation = trees["rehearsal"].generation
    prompt = prompter("piano", "")
    assert prompt.ids[prompt.reference + 1 :] == (generation.text_bos_id, generation.text_eos_id)


def test_positions_are_those_of_tags_reference_and_lyrics(prompter):
    prompt = prompter("ab", "cde")
    assert prompt.reference == len(["<bos>", "<tag>", *"ab", "</tag>", "<eos>"])
    assert prompt.n_positions == prompt.reference + 1 + len(["<bos>", *"cde", "<eos>"])


def test_damaged_tokenizer_is_refused(tmp_path, trees):
    path = tmp_path / "tokenizer.json"
    path.write_text("{", "utf-8")
    with pytest.raises(BadInput, match=r"tokenizer.json cannot be read .*; fetch it: `inv models --get"):
        Prompter(path, trees["rehearsal"].generation)


@pytest.mark.parametrize(
    ("seconds", "frames"), [(0.08, 1), (0.09, 2), (0.56, 7), (1, 13), (30, 375), (240, 3000)]
)
def test_song_is_at_least_as_long_as_was_asked(seconds, frames):
    assert n_frames(seconds) == frames


def test_last_frame_takes_no_position():
    assert n_positions(n_prompt=10, frames=1) == 10
    assert n_positions(n_prompt=10, frames=3) == 12


def test_song_that_is_too_long_says_by_how_much():
    refuse_oversized(n_prompt=192, seconds=640.08, most=8192)  # 8,001 frames
    with pytest.raises(BadInput, match=r"its 640.08 s are 8 positions over the model's 8,192: .*; shorten"):
        refuse_oversized(n_prompt=200, seconds=640.08, most=8192)
