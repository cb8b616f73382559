"""Records: what counts as done, whose songs they are, and the cost report that follows from them."""

import csv
import io
import json
import math
from dataclasses import asdict

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.songs import Recording, finish, listed, record_of
from worker.errors import BadInput
from worker.songs import records
from worker.songs.jobs import Job
from worker.songs.records import REPORT_KEY, Damaged, Record

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


@given(st.sampled_from(sorted(asdict(record_of(RAIN)))), json_values)
def test_a_field_of_another_kind_is_damaged_or_can_be_written_again(field, value):
    content = json.dumps(asdict(record_of(RAIN)) | {field: value}).encode()
    try:
        record = Record.from_json(content)
    except Damaged:
        return
    assert Record.from_json(record.to_json()) == record
    records.report_csv([RAIN], {RAIN.song: record})


@pytest.mark.parametrize("field", sorted(asdict(record_of(RAIN))))
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
    assert (found.done, found.todo, found.records) == ([], [RAIN], {})


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


# --- one place, one model


def refuse(store, model, revision):
    records.refuse_other_model(records.survey(store, [RAIN]), model, revision, store.location)


def test_empty_place_takes_any_model(store):
    refuse(store, "facebook/musicgen-medium", "any")


def test_same_model_goes_on(store):
    finish(store, RAIN)
    refuse(store, "rehearsal", None)
    refuse(store, "rehearsal", "0123456789ab")


@pytest.mark.parametrize("finished", [RAIN, SUN], ids=["of this list", "of another list"])
def test_other_model_is_refused_with_the_place_and_the_remedy(store, finished):
    finish(store, finished)
    with pytest.raises(BadInput, match="rehearsal, not facebook/musicgen-medium; give another") as caught:
        refuse(store, "facebook/musicgen-medium", None)
    assert str(caught.value).startswith(store.location)


def test_other_revision_of_the_model_is_refused(store):
    finish(store, RAIN)
    with pytest.raises(BadInput, match="another revision of rehearsal"):
        refuse(store, "rehearsal", "ba9876543210")


def test_model_folder_is_known_by_its_own_name_wherever_it_lies(tmp_path, monkeypatch):
    (tmp_path / "mine").mkdir()
    monkeypatch.chdir(tmp_path / "mine")
    names = [records.model_name(text) for text in (str(tmp_path / "mine"), "../mine/", ".")]
    assert names == ["mine"] * 3
    assert records.model_name("facebook/musicgen-small") == "facebook/musicgen-small"


# --- cost_report.csv


def rows(content: bytes) -> list[list[str]]:
    return list(csv.reader(io.StringIO(content.decode(), newline=""), strict=True))


def test_header_is_exactly_the_five_columns():
    header = b"s3_filename,prompt,requested_duration_s,generation_time_s,estimated_cost_usd\r\n"
    assert records.report_csv([RAIN], {}) == header


def test_row_in_full():
    (_, row) = rows(records.report_csv([RAIN], {RAIN.song: record_of(RAIN)}))
    assert row == [RAIN.song, "rain on a window", "12.5", "12.500", "0.001389"]


@given(
    st.lists(prompts | st.sampled_from(['say "hi", twice', ",", '"', '""', " ; "]), min_size=1, max_size=5)
)
def test_any_prompt_comes_back_from_the_report(texts):
    jobs = [Job(text, 30.0, f"song{n}") for n, text in enumerate(texts)]
    content = records.report_csv(jobs, {job.song: record_of(job) for job in jobs})
    assert [row[1] for row in rows(content)[1:]] == texts


def test_quoting_is_rfc_4180():
    (job,) = listed('piano, "soft" ; 30 ; quoted')
    line = records.report_csv([job], {job.song: record_of(job)}).split(b"\r\n")[1]
    assert line.startswith(job.song.encode() + b',"piano, ""soft""",30,')


def test_rows_are_in_file_order_and_unfinished_songs_absent():
    one, two, three = listed("1 ; 1 ; one", "2 ; 1 ; two", "3 ; 1 ; three")
    done = {job.song: record_of(job) for job in (three, one)}
    assert [row[0] for row in rows(records.report_csv([one, two, three], done))[1:]] == [one.song, three.song]


def test_report_is_written(store):
    record = finish(store, RAIN)
    records.write_report(store, [RAIN, SUN], {RAIN.song: record})
    assert store.read(REPORT_KEY) == records.report_csv([RAIN], {RAIN.song: record})


def test_report_that_is_right_already_is_not_written_again(store):
    record = finish(store, RAIN)
    records.write_report(store, [RAIN], {RAIN.song: record})
    watched = Recording(store)
    records.write_report(watched, [RAIN], {RAIN.song: record})
    assert watched.changes == []


class Overtaken(Recording):
    """A store in which another worker finishes SUN, and reports it, just before our first report."""

    overtaken = False

    def _overtake(self):
        if not self.overtaken:
            self.overtaken = True
            finish(self._inner, SUN)
            records.write_report(self._inner, [RAIN, SUN], records.survey(self._inner, [RAIN, SUN]).records)

    def create(self, key, content):
        self._overtake()
        return super().create(key, content)

    def replace(self, key, content, etag):
        self._overtake()
        return super().replace(key, content, etag)


@pytest.mark.parametrize("report_exists", [False, True], ids=["first report", "later report"])
def test_report_is_derived_again_when_another_worker_was_first(store, report_exists):
    if report_exists:
        records.write_report(store, [RAIN, SUN], {})
    finish(store, RAIN)
    records.write_report(Overtaken(store), [RAIN, SUN], {RAIN.song: record_of(RAIN)})
    assert [row[0] for row in rows(store.read(REPORT_KEY))[1:]] == [RAIN.song, SUN.song]
