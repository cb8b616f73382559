"""worker/songs/report.py: cost_report.csv, whichever runs and lists made the songs."""

import csv
import io

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.songs import Recording, finish, listed, record_of
from worker.songs import records, report
from worker.songs.job import Job
from worker.songs.report import REPORT_KEY

RAIN, SUN = listed("rain on a window ; 12.5 ; rain", "sun ; 3 ; sun")
prompts = st.text(st.characters(codec="utf-8", exclude_categories=["Cc"]), min_size=1)


def rows(content: bytes) -> list[list[str]]:
    return list(csv.reader(io.StringIO(content.decode(), newline=""), strict=True))


def test_header_is_exactly_the_five_columns():
    header = b"s3_filename,prompt,requested_duration_s,generation_time_s,estimated_cost_usd\r\n"
    assert report.report_csv([RAIN], {}) == header


def test_row_in_full():
    (_, row) = rows(report.report_csv([RAIN], {RAIN.song: record_of(RAIN)}))
    assert row == [RAIN.song, "rain on a window", "12.5", "12.500", "0.001389"]


@given(
    st.lists(prompts | st.sampled_from(['say "hi", twice', ",", '"', '""', " ; "]), min_size=1, max_size=5)
)
def test_any_prompt_comes_back_from_the_report(texts):
    jobs = [Job(text, 30.0, f"song{n}") for n, text in enumerate(texts)]
    content = report.report_csv(jobs, {job.song: record_of(job) for job in jobs})
    assert [row[1] for row in rows(content)[1:]] == texts


def test_quoting_is_rfc_4180():
    (job,) = listed('piano, "soft" ; 30 ; quoted')
    line = report.report_csv([job], {job.song: record_of(job)}).split(b"\r\n")[1]
    assert line.startswith(job.song.encode() + b',"piano, ""soft""",30,')


def test_rows_are_in_file_order_and_unfinished_songs_absent():
    one, two, three = listed("1 ; 1 ; one", "2 ; 1 ; two", "3 ; 1 ; three")
    done = {job.song: record_of(job) for job in (three, one)}
    assert [row[0] for row in rows(report.report_csv([one, two, three], done))[1:]] == [one.song, three.song]


def test_report_is_written(store):
    record = finish(store, RAIN)
    report.write_report(store, [RAIN, SUN], {RAIN.song: record})
    assert store.read(REPORT_KEY) == report.report_csv([RAIN], {RAIN.song: record})


def test_report_that_is_right_already_is_not_written_again(store):
    record = finish(store, RAIN)
    report.write_report(store, [RAIN], {RAIN.song: record})
    watched = Recording(store)
    report.write_report(watched, [RAIN], {RAIN.song: record})
    assert watched.changes == []


class Overtaken(Recording):
    """A store in which another worker finishes SUN, and reports it, just before our first report."""

    overtaken = False

    def _overtake(self):
        if not self.overtaken:
            self.overtaken = True
            finish(self._inner, SUN)
            report.write_report(self._inner, [RAIN, SUN], records.survey(self._inner, [RAIN, SUN]).records)

    def create(self, key, content):
        self._overtake()
        return super().create(key, content)

    def replace(self, key, content, etag):
        self._overtake()
        return super().replace(key, content, etag)


@pytest.mark.parametrize("report_exists", [False, True], ids=["first report", "later report"])
def test_report_is_derived_again_when_another_worker_was_first(store, report_exists):
    if report_exists:
        report.write_report(store, [RAIN, SUN], {})
    finish(store, RAIN)
    report.write_report(Overtaken(store), [RAIN, SUN], {RAIN.song: record_of(RAIN)})
    assert [row[0] for row in rows(store.read(REPORT_KEY))[1:]] == [RAIN.song, SUN.song]


def test_rows_of_another_list_in_the_same_output_stay(store):
    sun, rain = finish(store, SUN), finish(store, RAIN)
    report.write_report(store, [SUN], {SUN.song: sun})
    report.write_report(store, [RAIN], {RAIN.song: rain})
    assert [row[0] for row in rows(store.read(REPORT_KEY))[1:]] == [RAIN.song, SUN.song]


def test_row_of_a_song_that_was_removed_goes(store):
    sun, rain = finish(store, SUN), finish(store, RAIN)
    report.write_report(store, [SUN], {SUN.song: sun})
    store.delete(SUN.song)
    report.write_report(store, [RAIN], {RAIN.song: rain})
    assert [row[0] for row in rows(store.read(REPORT_KEY))[1:]] == [RAIN.song]
