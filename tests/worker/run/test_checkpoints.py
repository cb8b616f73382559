"""Checkpoints: what is kept of an unfinished song, where, and what is refused."""

from dataclasses import replace

import numpy as np
import pytest

from tests.songs import Recording
from worker.engine import TO_GENERATE, Sampling, Song, Unfinished
from worker.errors import UserError
from worker.run.checkpoints import Checkpoints, key_of
from worker.songs.checkpoint_file import Unusable
from worker.store.open import open_store

STEM = "rain_5c0ffee0"


def unfinished(n_made=3, stem=STEM):
    tokens = np.full((4, 10), TO_GENERATE, np.int16)
    tokens[:, :n_made] = n_made
    song = Song(f"{stem}.wav", "rain", 0.2, 7)
    return Unfinished(song, tokens, 1.5, Sampling(), "rehearsal", "0123456789ab", 8, 5)


def anything(_song):
    """Accepts every checkpoint."""


@pytest.fixture
def notes():
    return []


@pytest.fixture
def opened(notes):
    """Makes Checkpoints whose notes are in `notes`; they are closed at the end."""
    made = []

    def make(store, spare=None):
        made.append(Checkpoints(store, spare, lambda event, text, **facts: notes.append((event, text))))
        return made[-1]

    yield make
    for checkpoints in made:
        assert checkpoints.close(10)


def test_what_is_saved_is_loaded_by_another(store, opened):
    first = opened(store)
    first.save(unfinished())
    assert first.close(10)
    found = opened(store).load(STEM, anything)
    assert found.n_made == 3
    assert (found.song, found.generation_s) == (unfinished().song, 1.5)


def test_nothing_saved_is_nothing_loaded(store, opened):
    assert opened(store).load(STEM, anything) is None


def test_newest_state_of_a_song_stays(store, opened):
    checkpoints = opened(store)
    for n_made in range(1, 9):
        checkpoints.save(unfinished(n_made))
    assert checkpoints.close(10)
    assert opened(store).load(STEM, anything).n_made == 8


def test_removed_checkpoint_does_not_come_back(store, opened):
    checkpoints = opened(store)
    for n_made in range(1, 9):
        checkpoints.save(unfinished(n_made))
    checkpoints.remove(STEM)
    assert checkpoints.close(10)
    assert store.list("checkpoints/") == {}


@pytest.mark.parametrize("content", [b"", b"garbage", b"\x08\0\0\0\0\0\0\0{}      "])
def test_damaged_checkpoint_is_said_and_removed(store, opened, notes, content):
    store.write(key_of(STEM), content)
    assert opened(store).load(STEM, anything) is None
    assert [event for event, _ in notes] == ["checkpoint-unusable"]
    assert store.list("checkpoints/") == {}


def test_refused_checkpoint_is_said_with_the_reason_and_removed(store, opened, notes):
    def refuse(song):
        raise Unusable(f"it was begun with model {song.model}")

    first = opened(store)
    first.save(unfinished())
    first.close(10)
    notes.clear()
    assert opened(store).load(STEM, refuse) is None
    assert notes == [("checkpoint-unusable", f"{STEM} starts over: it was begun with model rehearsal")]
    assert store.list("checkpoints/") == {}


class Refusing(Recording):
    """A store that takes no checkpoint."""

    def write(self, key, content):
        raise UserError("no answer from S3; check the network")


def test_what_the_store_does_not_take_is_kept_on_this_machine(store, tmp_path, opened, notes):
    spare = open_store(str(tmp_path / "spare"))
    first = opened(Refusing(store), spare)
    first.save(unfinished())
    assert first.close(10)
    assert [event for event, _ in notes] == ["checkpoint-failed", "checkpoint"]
    assert opened(store, spare).load(STEM, anything).n_made == 3


def test_of_store_and_spare_the_one_with_more_is_gone_on_with(store, tmp_path, opened):
    spare = open_store(str(tmp_path / "spare"))
    for place, n_made in ((store, 2), (spare, 6)):
        only = opened(place)
        only.save(unfinished(n_made))
        assert only.close(10)
    assert opened(store, spare).load(STEM, anything).n_made == 6


def test_done_song_leaves_nothing_in_the_spare_either(store, tmp_path, opened):
    spare = open_store(str(tmp_path / "spare"))
    only = opened(spare)
    only.save(unfinished())
    assert only.close(10)
    opened(store, spare).remove(STEM)
    assert spare.list() == {}


def test_how_often_a_song_was_resumed_is_kept(store, opened):
    first = opened(store)
    first.save(replace(unfinished(), resumed=4))
    assert first.close(10)
    assert opened(store).load(STEM, anything).resumed == 4
