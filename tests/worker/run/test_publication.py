"""worker/run/publication.py: of several workers with one song, record and WAV are of the same one."""

import itertools
import threading

import pytest

from tests.songs import Recording, listed, record_of, wav_bytes
from worker.errors import Unreachable
from worker.run.publication import Publication
from worker.songs.records import Record, key_of
from worker.store.open import open_store

(RAIN,) = listed("rain ; 1 ; rain")
KEY = key_of(RAIN.song)


@pytest.fixture
def folder(tmp_path):
    return open_store(str(tmp_path / "out"))


@pytest.fixture
def song(tmp_path):
    """Makes one worker's song: its record, and its WAV as a file."""

    def make(name, level=None):
        wav = wav_bytes(1, level or sum(name.encode()))
        path = tmp_path / f"{name}.wav"
        path.write_bytes(wav)
        return record_of(RAIN, wav, run_id=name), path

    return make


def fits(store):
    """The run whose record is there; it must be that of the WAV."""
    record = Record.from_json(store.read(KEY))
    assert store.read(RAIN.song) == wav_bytes(1, sum(record.run_id.encode()))
    return record.run_id


def test_song_and_record_are_put_there(folder, song):
    assert Publication(folder, *song("one"))()
    assert fits(folder) == "one"


def test_late_worker_overwrites_nothing(folder, song):
    late = Publication(folder, *song("late"))
    assert Publication(folder, *song("quick"))()
    assert not late()
    assert fits(folder) == "quick"


def test_record_of_a_run_that_was_killed_is_replaced(folder, song):
    folder.write(KEY, song("killed")[0].to_json())
    assert Publication(folder, *song("next"))()
    assert fits(folder) == "next"


def test_song_whose_answer_was_lost_is_ours(folder, song):
    class Lossy(Recording):
        def create_file(self, key, path):
            super().create_file(key, path)
            raise Unreachable("no answer from S3; check the network")

    publication = Publication(Lossy(folder), *song("one"))
    with pytest.raises(Unreachable):
        publication()
    assert publication()
    assert fits(folder) == "one"


def test_wav_of_something_else_keeps_no_record_of_ours(folder, song):
    class Late(Recording):
        def create_file(self, key, path):
            folder.create(key, b"made by something else")
            return super().create_file(key, path)

    assert not Publication(Late(folder), *song("one"))()
    assert folder.read(RAIN.song) == b"made by something else"
    assert folder.read(KEY) == b""


def test_same_bytes_of_another_worker_keep_its_record(folder, song):
    assert Publication(folder, *song("other"))()
    assert not Publication(folder, *song("ours", level=sum(b"other")))()
    assert fits(folder) == "other"


class Stepped(Recording):
    """A store that calls `before` with the request's number before each request."""

    def __init__(self, inner, before):
        super().__init__(inner)
        self._before, self._n = before, itertools.count()

    def read_tagged(self, key):
        self._before(next(self._n))
        return super().read_tagged(key)

    def list(self, prefix=""):
        self._before(next(self._n))
        return super().list(prefix)

    def create(self, key, content):
        self._before(next(self._n))
        return super().create(key, content)

    def create_file(self, key, path):
        self._before(next(self._n))
        return super().create_file(key, path)

    def replace(self, key, content, etag):
        self._before(next(self._n))
        return super().replace(key, content, etag)


@pytest.mark.parametrize("left", [False, True], ids=["nothing there", "a killed run's record"])
@pytest.mark.parametrize("stalled_at", range(8))
def test_worker_that_stalls_before_any_request_leaves_a_record_that_fits(folder, song, stalled_at, left):
    """The other worker publishes as a whole while this one stands still: dropped network, SIGSTOP."""
    if left:
        folder.write(KEY, song("killed")[0].to_json())
    other, results = Publication(folder, *song("other")), {}

    def before(n):
        if n == stalled_at and "other" not in results:
            results["other"] = other()

    results["late"] = Publication(Stepped(folder, before), *song("late"))()
    won = fits(folder)
    assert results["late"] == (won == "late")
    assert results.get("other", False) == (won == "other")


def test_any_interleaving_of_three_workers_leaves_a_record_that_fits(folder, song, rng):
    """Requests of three workers in random order, one at a time."""
    songs = [song(name) for name in ("one", "two", "three")]
    for n in range(60):
        folder.delete(KEY)
        folder.delete(RAIN.song)
        results = interleaved(folder, songs, rng)
        assert [name for name, won in results.items() if won] == [fits(folder)], f"round {n}"


def interleaved(store, songs, rng):
    """Each worker is a thread that is let go for one request at a time; -> who kept its song."""
    turns = [threading.Semaphore(0) for _ in songs]
    stepped = threading.Semaphore(0)
    results, alive = {}, set(range(len(songs)))

    def work(index):
        def before(_):
            stepped.release()
            turns[index].acquire()

        turns[index].acquire()
        record, path = songs[index]
        try:
            results[record.run_id] = Publication(Stepped(store, before), record, path)()
        finally:
            alive.discard(index)
            stepped.release()

    threads = [threading.Thread(target=work, args=[index]) for index in range(len(songs))]
    for thread in threads:
        thread.start()
    while alive:
        turns[rng.choice(sorted(alive))].release()
        stepped.acquire()
    for thread in threads:
        thread.join()
    return results
