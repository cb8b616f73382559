"""One contract for a folder and S3: whole objects, one winner, plain errors."""

import errno
import hashlib
import itertools
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.worker.store.parts import error_of, names_in
from worker.store.base import Missing


def test_written_content_is_read_back(store):
    store.write("records/rain_5c0ffee0.json", b"\x00content\xff")
    assert store.read("records/rain_5c0ffee0.json") == b"\x00content\xff"


def test_empty_content_is_an_object(store):
    store.write("empty", b"")
    assert store.read("empty") == b""
    assert store.list()["empty"].size == 0


def test_write_overwrites(store):
    store.write("key", b"long first content")
    store.write("key", b"second")
    assert store.read("key") == b"second"


@pytest.mark.parametrize("key", ["gone", "folder", "file/below"])
def test_reading_what_is_not_there_is_missing(store, key, tmp_path):
    store.write("folder/other", b"")
    store.write("file", b"")
    with pytest.raises(Missing):
        store.read(key)
    with pytest.raises(Missing):
        store.download(key, tmp_path / "download")
    assert not (tmp_path / "download").exists()


def test_empty_store_lists_nothing(store):
    assert store.list() == {}


def test_list_gives_every_key_under_a_string_prefix_with_its_size(store):
    for key in ("song.wav", "records/a.json", "records/b.json", "records.txt", "runs/1/deep/log"):
        store.write(key, key.encode())
    assert {key: stored.size for key, stored in store.list().items()} == {
        key: len(key)
        for key in ("song.wav", "records/a.json", "records/b.json", "records.txt", "runs/1/deep/log")
    }
    assert set(store.list("rec")) == {"records/a.json", "records/b.json", "records.txt"}
    assert set(store.list("records/")) == {"records/a.json", "records/b.json"}
    assert store.list("absent/") == {}


def test_create_refuses_a_taken_key(store):
    assert store.create("claims/rain.json", b"first")
    assert store.create("claims/rain.json", b"second") is None
    assert store.read("claims/rain.json") == b"first"


def test_create_again_after_delete(store):
    store.create("key", b"first")
    store.delete("key")
    assert store.create("key", b"second")


def test_replace_needs_the_current_etag(store):
    first = store.create("key", b"first")
    second = store.replace("key", b"second", first)
    assert second and second != first
    assert store.replace("key", b"third", first) is None
    assert store.read_tagged("key") == (b"second", second)


def test_replace_of_what_is_gone_makes_nothing(store):
    etag = store.create("key", b"first")
    store.delete("key")
    assert store.replace("key", b"second", etag) is None
    assert store.list() == {}


def test_every_way_to_write_gives_the_etag_that_reading_gives(store, tmp_path):
    (tmp_path / "file").write_bytes(b"file")
    etags = {
        "written": store.write("written", b"written"),
        "created": store.create("created", b"created"),
        "file": store.create_file("file", tmp_path / "file"),
        "replaced": store.replace("replaced", b"new", store.write("replaced", b"old")),
    }
    assert {key: store.read_tagged(key)[1] for key in etags} == etags
    assert all(stored.etag in (None, etags[key]) for key, stored in store.list().items())


def test_a_file_of_tens_of_megabytes_goes_up_and_down_unchanged(store, tmp_path, rng):
    song = rng.randbytes(20_000_000)
    (tmp_path / "song.wav").write_bytes(song)
    assert store.create_file("song.wav", tmp_path / "song.wav")
    assert store.create_file("song.wav", tmp_path / "song.wav") is None
    store.download("song.wav", tmp_path / "fetched/song.wav")
    assert (tmp_path / "fetched/song.wav").read_bytes() == song
    assert [path.name for path in (tmp_path / "fetched").iterdir()] == ["song.wav"]


def test_download_overwrites_the_file(store, tmp_path):
    store.write("key", b"new")
    (tmp_path / "file").write_bytes(b"old and longer")
    store.download("key", tmp_path / "file")
    assert (tmp_path / "file").read_bytes() == b"new"


def test_delete_removes_one_object_and_absent_is_fine(store):
    store.write("folder/a", b"")
    store.write("folder/b", b"")
    store.delete("folder/a")
    store.delete("folder/a")
    store.delete("never/there")
    store.delete("folder")
    assert set(store.list()) == {"folder/b"}


def test_check_writable_leaves_nothing(store):
    store.check_writable()
    assert store.list() == {}


BAD_KEYS = [
    *("", "/a", "a/", "a//b", ".", "..", "../a", "a/../b", "a/./b", "a\\b", "C:/a", "c:a", "a\0b", "a\nb"),
    *("a\x7f", "a\x85", "\ud800", "a/.. /b", "nul./a", "x" * 256, "x/" * 500 + "x"),
    *(".scratch/a", ".scratch", ".SCRATCH/lock"),
]


def test_key_that_is_not_valid_is_refused_everywhere(store, tmp_path):
    acts = (
        store.read,
        store.read_tagged,
        lambda key: store.write(key, b""),
        lambda key: store.create(key, b""),
        lambda key: store.create_file(key, Path(__file__)),
        lambda key: store.replace(key, b"", "etag"),
        lambda key: store.download(key, tmp_path / "file"),
        store.delete,
    )
    for act, key in itertools.product(acts, BAD_KEYS):
        with pytest.raises(ValueError, match="not a key"):
            act(key)
    assert names_in(tmp_path) == []


def test_one_of_eight_threads_creates(store):
    def attempt(number):
        barrier.wait()
        return store.create(f"claims/{turn}", str(number).encode())

    barrier = threading.Barrier(8)
    with ThreadPoolExecutor(8) as threads:
        for turn in range(5):
            won = [number for number, etag in enumerate(threads.map(attempt, range(8))) if etag]
            assert [store.read(f"claims/{turn}").decode()] == [str(number) for number in won]


def test_one_of_eight_threads_replaces(store):
    def attempt(content):
        barrier.wait()
        return store.replace("claim", content.encode(), etag)

    barrier = threading.Barrier(8)
    etag = store.write("claim", b"start")
    with ThreadPoolExecutor(8) as threads:
        for turn in range(5):
            won = [new for new in threads.map(attempt, (f"{turn} {number}" for number in range(8))) if new]
            assert len(won) == 1
            etag = won[0]


def test_readers_never_see_half_an_object(store):
    def write():
        for turn in range(20):
            store.write("key", b"AB"[turn % 2 :][:1] * 300_000)

    store.write("key", b"A" * 300_000)
    writer = threading.Thread(target=write)
    writer.start()
    while writer.is_alive():
        content = store.read("key")
        assert content in (b"A" * 300_000, b"B" * 300_000)
    writer.join()


def test_failed_download_leaves_no_file(store, tmp_path, monkeypatch):
    def fail(_file):
        raise OSError(errno.ENOSPC, "full")

    store.write("key", b"content")
    (tmp_path / "fetched").mkdir()
    monkeypatch.setattr(os, "fsync", fail)
    assert str(error_of(store.download, "key", tmp_path / "fetched/song")).startswith("disk full at ")
    assert names_in(tmp_path / "fetched") == []


def test_checksum_is_that_of_the_content_which_is_never_whole_in_memory(store, monkeypatch):
    content = os.urandom(3_000_000)
    store.write("large.wav", content)
    monkeypatch.setattr(store, "read_tagged", pytest.fail)
    assert store.sha256("large.wav") == hashlib.sha256(content).hexdigest()


def test_checksum_of_what_is_not_there_is_missing(store):
    with pytest.raises(Missing):
        store.sha256("none.wav")
