"""Fetching: only what is new and right comes, and nothing that is there is touched."""

import json
from dataclasses import asdict
from pathlib import Path

import boto3
import pytest

from ops import fetch as fetching
from ops.fetch import fetch
from tests.fakes.s3 import fresh_bucket
from tests.songs import finish, listed, record_of, tree, wav_bytes
from worker.amounts import size
from worker.errors import BadInput, UserError
from worker.songs import records
from worker.store.open import open_store

RAIN, SUN = listed("rain ; 1 ; rain", "sun ; 1 ; sun")
SONG = wav_bytes(level=7)


@pytest.fixture
def album(store):
    """A store with two finished songs, a report and a run."""
    finish(store, RAIN, SONG)
    finish(store, SUN)
    store.write("cost_report.csv", b"report")
    store.write("runs/run-1/summary.json", b"{}")
    return store


@pytest.fixture
def to(tmp_path):
    return tmp_path / "fetched"


def bring(store, to):
    return fetch(store.location, to, lambda _: None)


def test_songs_records_report_and_runs_come(album, to):
    fetched = bring(album, to)
    assert tree(to) == {key: album.read(key) for key in album.list()}
    assert fetched.new == [RAIN.song, SUN.song]
    assert (fetched.had, fetched.wrong, fetched.n_bytes) == ([], {}, len(SONG) + len(wav_bytes()))


def test_place_without_a_finished_song_is_named(store, to):
    store.write("runs/run-1/summary.json", b"{}")
    told = []
    fetch(store.location, to, told.append)
    assert told == [f"no song in {store.location} is finished"]


def test_second_fetch_downloads_no_song(album, to, monkeypatch):
    bring(album, to)
    monkeypatch.setattr(fetching, "_bring", lambda *_: pytest.fail("downloaded again"))
    fetched = bring(album, to)
    assert (fetched.new, fetched.had, fetched.n_bytes) == ([], [RAIN.song, SUN.song], 0)


def test_only_the_new_song_comes(album, to):
    (job,) = listed("late ; 1 ; late")
    bring(album, to)
    finish(album, job)
    assert bring(album, to).new == [job.song]


def test_report_that_changed_comes_again(album, to):
    bring(album, to)
    album.write("cost_report.csv", b"trophy")
    bring(album, to)
    assert (to / "cost_report.csv").read_bytes() == b"trophy"


def test_songs_that_are_not_finished_do_not_come(album, to):
    fog, mist = listed("fog ; 1 ; fog", "mist ; 1 ; mist")
    album.write(records.record_key(fog), record_of(fog).to_json())
    album.write(mist.song, b"without a record")
    fetched = bring(album, to)
    assert fetched.new == [RAIN.song, SUN.song] and fetched.wrong == {}
    assert not {fog.song, mist.song} & set(tree(to))


@pytest.mark.parametrize("stored", [SONG[:-2], SONG[:-2] + b"\xff\xff"], ids=["short", "changed"])
def test_corrupted_song_is_reported_and_not_left_under_its_name(album, to, stored):
    album.write(RAIN.song, stored)
    fetched = bring(album, to)
    assert fetched.wrong == {RAIN.song: "its size or checksum differs from its record; fetch again"}
    assert fetched.new == [SUN.song]
    assert not [name for name in tree(to) if "rain" in name]


def test_song_with_a_damaged_record_is_reported(album, to):
    album.write(records.record_key(RAIN), b"{")
    assert "its record is damaged" in bring(album, to).wrong[RAIN.song]
    assert RAIN.song not in tree(to)


def test_another_file_of_the_same_name_is_left_alone_and_reported(album, to):
    to.mkdir()
    (to / RAIN.song).write_bytes(b"mine")
    fetched = bring(album, to)
    assert (to / RAIN.song).read_bytes() == b"mine"
    assert "is a different file; move it away, fetch again" in fetched.wrong[RAIN.song]
    assert records.record_key(RAIN) not in tree(to)
    assert fetched.new == [SUN.song]


@pytest.mark.parametrize("error", [KeyboardInterrupt(), UserError("no answer from S3; try again")])
def test_interrupted_download_leaves_no_half_song_and_the_next_fetch_completes(album, to, monkeypatch, error):
    def break_off(store, key, path):
        path.write_bytes(SONG[:50])
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(type(album), "download", break_off)
        with pytest.raises(type(error)):
            bring(album, to)
    assert tree(to) == {}
    assert bring(album, to).new == [RAIN.song, SUN.song]


@pytest.mark.parametrize("key", ["records/../../evil.json", "records/..%2Fevil.json", "records/a/../b.json"])
def test_no_key_of_a_shared_bucket_leads_out_of_the_folder(s3_url, tmp_path, key):
    bucket = fresh_bucket(s3_url)
    evil = record_of(RAIN, SONG, song="../../evil.wav").to_json()
    client = boto3.session.Session().client("s3")
    for name, content in ((key, evil), (key.replace("records/", "").replace("json", "wav"), SONG)):
        client.put_object(Bucket=bucket, Key=name, Body=content)
    finish(open_store(f"s3://{bucket}"), RAIN, SONG)
    to = tmp_path / "deep" / "fetched"
    assert fetch(f"s3://{bucket}", to, lambda _: None).new == [RAIN.song]
    assert not list(tmp_path.rglob("*evil*"))


def test_record_that_names_another_path_is_damaged(album, to, tmp_path):
    evil = json.dumps(asdict(record_of(RAIN, SONG)) | {"song": "../evil.wav"}).encode()
    album.write(records.record_key(RAIN), evil)
    assert "damaged" in bring(album, to).wrong[RAIN.song]
    assert not list(tmp_path.rglob("evil*"))


def test_home_is_expanded_for_songs_too(album, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("USERPROFILE", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    fetch(album.location, Path("~/music"), lambda _: None)
    assert (tmp_path / "home" / "music" / RAIN.song).read_bytes() == SONG


def test_nothing_to_fetch_is_said(store, to):
    with pytest.raises(BadInput, match=r"nothing in .*; is that the right output, and is a song finished\?"):
        bring(store, to)
    assert not to.exists()


def test_fetching_into_the_place_itself_is_refused(tmp_path):
    place = open_store(str(tmp_path / "out"))
    finish(place, RAIN, SONG)
    with pytest.raises(BadInput, match="where the songs are already"):
        bring(place, tmp_path / "out")


def test_rows_and_closing_line_say_what_came(album, to):
    album.write(RAIN.song, SONG[:-2])
    fetched = bring(album, to)
    assert [row["state"] for row in fetched.rows()] == [fetched.wrong[RAIN.song], "new"]
    assert fetched.closing_line(to) == f"1 new song ({size(len(SONG))}) in {to}, 0 there before, 1 wrong"
