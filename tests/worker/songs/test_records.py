"""Records: what counts as done, whose songs they are, and the cost report that follows from them."""

import json
import math
from dataclasses import asdict

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.songs import Recording, finish, listed, record_of, wav_bytes
from worker.songs import records, report
from worker.songs.records import Damaged, Record

RAIN, SUN = listed("rain on a window ; 12.5 ; rain", "sun ; 30 ; sun ; seed=7")

# What a prompt may hold: any character that is no control character; not stripped at its ends.
prompts = st.text(st.characters(codec="utf-8", exclude_categories=["Cc"]), min_size=1)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=8,
)


# --- one record


@given(
    prompts,
    st.floats(0, 1e6),
    st.dictionaries(st.sampled_from(["seed", "lyrics"]), st.text(st.characters(codec="utf-8"))),
)
def test_any_record_survives_write_and_read(prompt, generation_s, options):
    record = record_of(RAIN, prompt=prompt, generation_s=generation_s, options=options)
    assert Record.from_json(record.to_json()) == record


def test_record_is_readable_utf8_and_carries_its_schema():
    text = record_of(*listed("тихо ; 30 ; quiet")).to_json().decode()
    assert json.loads(text)["schema"] == 1
    assert "тихо" in text and text.endswith("}\n")


def test_keys_of_a_later_schema_are_ignored():
    later = asdict(record_of(RAIN)) | {"mood": "blue", "schema": 2}
    assert Record.from_json(json.dumps(later).encode()).song == RAIN.song


@given(st.binary() | json_values.map(lambda value: json.dumps(value).encode()))
def test_garbage_is_damaged(content):
    with pytest.raises(Damaged):
        Record.from_json(content)


LATER = {"channels", "fade_s", "same_bytes", "licence", "made_s", "solver"}


@given(st.sampled_from(sorted(asdict(record_of(RAIN)))), json_values)
def test_a_field_of_another_kind_is_damaged_or_can_be_written_again(field, value):
    content = json.dumps(asdict(record_of(RAIN)) | {field: value}).encode()
    try:
        record = Record.from_json(content)
    except Damaged:
        return
    assert Record.from_json(record.to_json()) == record
    report.report_csv([RAIN], {RAIN.song: record})
    assert record.is_consistent in (True, False)


def test_record_of_an_earlier_version_is_mono_and_cut_and_promises_nothing():
    older = asdict(record_of(RAIN))
    for field in LATER:
        del older[field]
    assert Record.from_json(json.dumps(older).encode()) == record_of(RAIN)


@pytest.mark.parametrize("field", sorted(asdict(record_of(RAIN)).keys() - LATER))
def test_absent_field_is_damaged(field):
    lacking = asdict(record_of(RAIN))
    del lacking[field]
    with pytest.raises(Damaged, match=field):
        Record.from_json(json.dumps(lacking).encode())


@pytest.mark.parametrize(
    "content",
    [
        b"[" * 100_000,
        json.dumps(asdict(record_of(RAIN)) | {"generation_s": math.nan}).encode(),
        json.dumps(asdict(record_of(RAIN)) | {"estimated_cost_usd": 10**400}).encode(),
        json.dumps(asdict(record_of(RAIN)) | {"model": ["rehearsal"]}).encode(),
        json.dumps(asdict(record_of(RAIN)) | {"prompt": "\ud800"}).encode(),
    ],
    ids=["too deep", "NaN", "huge", "list as model", "half a surrogate pair"],
)
def test_what_could_not_be_reported_is_damaged(content):
    with pytest.raises(Damaged):
        Record.from_json(content)


# --- survey: what is done and what is left


def test_nothing_is_done_in_an_empty_place(store):
    found = records.survey(store, [RAIN, SUN])
    assert (found.done, found.todo) == ([], [RAIN, SUN])
    assert (found.records, found.kept, found.makers) == ({}, {}, {})


def test_song_with_record_and_wav_is_done(store):
    record = finish(store, RAIN)
    found = records.survey(store, [RAIN, SUN])
    assert (found.done, found.todo, found.kept) == ([RAIN], [SUN], {})
    assert found.records == {RAIN.song: record}
    assert found.makers == {"rehearsal": "0123456789ab"}


@pytest.mark.parametrize("store", ["folder"], indirect=True)
def test_record_that_is_younger_than_its_page_of_the_list_is_read(store):
    class Paged(Recording):
        def list(self, prefix=""):
            return {key: stored for key, stored in super().list(prefix).items() if key.endswith(".wav")}

    record = finish(store, RAIN)
    found = records.survey(Paged(store), [RAIN])
    assert (found.done, found.kept, found.records) == ([RAIN], {}, {RAIN.song: record})


def test_record_without_wav_is_still_to_make(store):
    store.write(records.record_key(RAIN), record_of(RAIN).to_json())
    found = records.survey(store, [RAIN])
    assert (found.todo, found.records) == ([RAIN], {})


@pytest.mark.parametrize(
    ("record", "why"),
    [
        (None, "no record"),
        (b"{", "damaged"),
        (record_of(SUN).to_json(), "that of 'sun_"),
        (record_of(RAIN, b"another length").to_json(), "4 bytes and its record says 14"),
    ],
    ids=["no record", "damaged record", "another song's record", "another size"],
)
def test_wav_that_its_record_does_not_account_for_is_kept_and_said(store, record, why):
    store.write(RAIN.song, b"song")
    if record:
        store.write(records.record_key(RAIN), record)
    found = records.survey(store, [RAIN])
    assert (found.done, found.todo, found.records) == ([], [], {})
    assert why in found.kept[RAIN.song]


def test_songs_of_other_lists_are_neither_done_nor_left(store):
    finish(store, SUN)
    found = records.survey(store, [RAIN])
    assert (found.done, found.todo) == ([], [RAIN])
    assert list(found.records) == [SUN.song], "its row stays in the report"


def test_more_records_than_readers_are_all_read(store):
    many = listed(*(f"song {n} ; 1 ; n{n}" for n in range(20)))
    for job in many:
        finish(store, job)
    assert records.survey(store, many).done == many


@pytest.mark.parametrize(
    "key", ["records/../up.json", "records/a/b.json", "records/x.txt", "other/x.json", "records/.json"]
)
def test_other_keys_are_no_records(key):
    assert records.song_of(key) is None


# --- checksums


def wrong_wav(store, job, **changes):
    """A finished song whose WAV was exchanged for another of the same size."""
    finish(store, job, wav_bytes(job.seconds), **changes)
    store.write(job.song, wav_bytes(job.seconds, level=7))


def test_wrong_content_of_the_right_size_is_found_when_asked_to_verify(store):
    wrong_wav(store, RAIN)
    assert records.survey(store, [RAIN]).done == [RAIN]
    found = records.survey(store, [RAIN], verify=True)
    assert (found.done, found.todo, found.records) == ([], [], {})
    assert "the checksum differs" in found.kept[RAIN.song]


def test_good_songs_pass_the_verification(store):
    finish(store, RAIN)
    assert records.survey(store, [RAIN], verify=True).done == [RAIN]


def test_checksum_is_compared_where_the_record_does_not_fit_itself(store):
    wrong_wav(store, RAIN, n_samples=5)
    assert "the checksum differs" in records.survey(store, [RAIN]).kept[RAIN.song]


def test_empty_wav_is_kept(store):
    finish(store, RAIN, wav_bytes(RAIN.seconds))
    store.write(RAIN.song, b"")
    assert "it has 0 bytes" in records.survey(store, [RAIN]).kept[RAIN.song]
