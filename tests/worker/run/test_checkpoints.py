"""Checkpoints: what is saved of an unfinished song, where, and what is refused."""

import shutil
import threading
import time
from dataclasses import replace

import numpy as np
import pytest

from tests.songs import Recording
from tests.worker.run.scripted import Listener, request
from worker.engine import TO_GENERATE, Sampling, Song, Unfinished
from worker.errors import BadInput, UserError
from worker.run.checkpoints import Checkpoints, refuse_other_settings
from worker.run.claims import Claims
from worker.run.context import RunContext
from worker.run.progress import ProgressMeter
from worker.songs.checkpoint_file import OtherSettings, checkpoint_key
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


class Held:
    """Claims of which `lost` have run out."""

    def __init__(self, lost=()):
        self.lost = set(lost)

    def in_time(self, stem):
        return stem not in self.lost

    def renew(self, stem):
        return False


class Notes(Listener):
    """An observer that keeps what is noted."""

    def __init__(self, notes):
        super().__init__()
        self.notes = notes

    def note(self, event, text, **facts):
        self.notes.append((event, text))


@pytest.fixture
def opened(notes):
    """Makes Checkpoints whose notes are in `notes`; they are closed at the end."""
    made = []

    def make(store, spare=None, claims=None, **asked):
        context = RunContext(request(**asked), store, Notes(notes), ProgressMeter(), spare=spare)
        made.append(Checkpoints(context, claims or Held()))
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
def test_damaged_checkpoint_is_reported_and_removed(store, opened, notes, content):
    store.write(checkpoint_key(STEM), content)
    assert opened(store).load(STEM, anything) is None
    assert [event for event, _ in notes] == ["checkpoint-unusable"]
    assert store.list("checkpoints/") == {}


def refuse(song):
    raise OtherSettings(f"model {song.model}, not mine")


def saved(store, opened, notes):
    """The bytes of a checkpoint that another run has left."""
    first = opened(store)
    first.save(unfinished())
    assert first.close(10)
    notes.clear()
    return store.read(checkpoint_key(STEM))


def test_checkpoint_with_other_settings_is_refused_and_stays(store, opened, notes):
    content = saved(store, opened, notes)
    with pytest.raises(OtherSettings, match="model rehearsal, not mine"):
        opened(store).load(STEM, refuse)
    assert store.read(checkpoint_key(STEM)) == content


def test_checkpoint_with_other_settings_goes_when_asked_to_start_over(store, opened, notes):
    saved(store, opened, notes)
    assert opened(store, start_over=True).load(STEM, refuse) is None
    assert notes == [
        ("checkpoint-unusable", f"{STEM} starts over: it was begun with model rehearsal, not mine")
    ]
    assert store.list("checkpoints/") == {}


def test_other_settings_are_bad_input_before_the_run_with_the_way_out(store, opened, notes):
    content = saved(store, opened, notes)
    with pytest.raises(BadInput, match=rf"{STEM} was begun with model rehearsal, not mine; .*--start-over"):
        refuse_other_settings([store], [STEM, "other_12345678"], refuse)
    assert store.read(checkpoint_key(STEM)) == content


def test_settings_of_songs_that_are_not_asked_for_do_not_matter(store, opened, notes):
    saved(store, opened, notes)
    refuse_other_settings([store], ["other_12345678"], refuse)


def test_damaged_checkpoint_is_not_refused_before_the_run(store):
    store.write(checkpoint_key(STEM), b"garbage")
    refuse_other_settings([store], [STEM], refuse)


def test_spare_folder_that_cannot_be_read_does_not_end_the_run(store, tmp_path, opened, notes, monkeypatch):
    def denied(prefix=""):
        raise UserError("permission denied")

    spare = open_store(str(tmp_path / "spare"))
    monkeypatch.setattr(spare, "list", denied)
    refuse_other_settings([store, spare], [STEM], refuse)
    saved(store, opened, notes)
    with pytest.raises(BadInput):
        refuse_other_settings([store, spare], [STEM], refuse)


# --- claims and this machine's disk


def test_song_whose_claim_has_run_out_is_not_saved_in_the_store(store, tmp_path, opened, notes):
    spare = open_store(str(tmp_path / "spare"))
    late = opened(store, spare, Held(lost=[STEM]))
    late.save(unfinished())
    assert late.close(10)
    assert store.list("checkpoints/") == {}
    assert list(spare.list()) == [checkpoint_key(STEM)]
    assert ("claim-lost", f"another worker may have {STEM}: not saved in the store") in notes


def slept(store, tmp_path, name="here"):
    """Claims whose clock can be set on, and which do not renew anything by themselves."""
    now_s = [0.0]
    claims = Claims(store, "run", ttl_s=60, clock=lambda: now_s[0], box=tmp_path / name)
    claims._keep_renewing = lambda: None
    return claims, now_s


def test_song_that_is_still_ours_after_a_sleep_is_saved_where_there_is_no_spare(store, tmp_path, opened):
    claims, now_s = slept(store, tmp_path)
    with claims:
        assert claims.take(STEM)
        now_s[0] = 100
        late = opened(store, claims=claims)
        late.save(unfinished())
        assert late.close(10)
    assert opened(store).load(STEM, anything).n_made == 3


def test_song_that_another_worker_has_after_a_sleep_is_not_saved_over_its_own(store, tmp_path, opened):
    claims, now_s = slept(store, tmp_path)
    with claims, Claims(store, "other", ttl_s=0.05, box=tmp_path / "there") as other:
        assert claims.take(STEM)
        now_s[0] = 100
        while not other.take(STEM):
            time.sleep(0.01)
        late = opened(store, claims=claims)
        late.save(unfinished())
        assert late.close(10)
    assert store.list("checkpoints/") == {}


def test_fault_while_one_song_is_saved_does_not_cost_the_next(store, opened, notes):
    class Broken(Recording):
        def write(self, key, content):
            if STEM in key:
                raise RuntimeError("of a library")
            return super().write(key, content)

    checkpoints = opened(Broken(store))
    checkpoints.save(unfinished())
    checkpoints.save(unfinished(4, "sun_0ddba11e"))
    assert checkpoints.close(10)
    assert list(store.list()) == [checkpoint_key("sun_0ddba11e")]
    assert notes[0] == ("checkpoint-failed", f"no checkpoint of {STEM}: RuntimeError: of a library")


def test_spare_that_is_removed_in_the_middle_of_a_run_does_not_end_it(store, tmp_path, opened):
    spare = open_store(str(tmp_path / "spare"))
    checkpoints = opened(store, spare)
    checkpoints.save(unfinished())
    checkpoints.save_locally([unfinished(4)])
    assert checkpoints.close(10)
    shutil.rmtree(tmp_path / "spare")
    assert checkpoints.load(STEM, anything).n_made == 4
    checkpoints.remove(STEM)
    assert store.list() == {}


class Hanging(Recording):
    """A store whose writes hang until `back` is set."""

    def __init__(self, inner):
        super().__init__(inner)
        self.back = threading.Event()

    def write(self, key, content):
        self.back.wait(20)
        return super().write(key, content)


def test_local_copies_are_there_while_the_store_hangs(store, tmp_path, opened):
    hanging, spare = Hanging(store), open_store(str(tmp_path / "spare"))
    checkpoints = opened(hanging, spare)
    checkpoints.save(unfinished(2))
    checkpoints.save(unfinished(1, "sun_0ddba11e"))
    checkpoints.save_locally([unfinished(5)])
    assert set(spare.list()) == {checkpoint_key(STEM), checkpoint_key("sun_0ddba11e")}
    assert opened(spare).load(STEM, anything).n_made == 5
    hanging.back.set()


def test_local_copy_goes_once_the_store_has_it(store, tmp_path, opened):
    spare = open_store(str(tmp_path / "spare"))
    checkpoints = opened(store, spare)
    checkpoints.save_locally([unfinished()])
    assert checkpoints.close(10)
    assert spare.list() == {}
    assert opened(store).load(STEM, anything).n_made == 3


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


def test_of_store_and_spare_the_one_with_more_is_resumed(store, tmp_path, opened):
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
