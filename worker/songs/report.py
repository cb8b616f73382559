"""cost_report.csv: what each finished song of an output took and cost, derived from the records."""

import csv
import io
from collections.abc import Iterable, Mapping, Sequence

from worker.songs.job import Job
from worker.songs.records import Record, survey
from worker.store.base import Missing, Store

REPORT_KEY = "cost_report.csv"
REPORT_COLUMNS = ("s3_filename", "prompt", "requested_duration_s", "generation_time_s", "estimated_cost_usd")


def report_csv(jobs: Iterable[Job], records: Mapping[str, Record]) -> bytes:
    """cost_report.csv: a row per finished song (RFC 4180, UTF-8).

    Those of the list come first, in its order, then those that other lists have left in this output.
    """
    text = io.StringIO(newline="")
    rows = csv.writer(text)
    rows.writerow(REPORT_COLUMNS)
    listed = {job.song: records[job.song] for job in jobs if job.song in records}
    others = [record for song, record in records.items() if song not in listed]
    for record in [*listed.values(), *sorted(others, key=lambda record: (record.finished_at, record.song))]:
        rows.writerow(
            [
                record.song,
                record.prompt,
                f"{record.seconds:g}",
                f"{record.generation_s:.3f}",
                f"{record.estimated_cost_usd:.6f}",
            ]
        )
    return text.getvalue().encode()


def write_report(store: Store, jobs: Sequence[Job], records: Mapping[str, Record]) -> Mapping[str, Record]:
    """Write cost_report.csv unless it is already so; -> the records that it is made from.

    When it has songs that `records` lacks, or another worker writes it first, the records are read
    anew: no row of another worker or another list is lost.
    """
    surveyed = False
    while True:
        content = report_csv(jobs, records)
        try:
            there, etag = store.read_tagged(REPORT_KEY)
        except Missing:
            if store.create(REPORT_KEY, content):
                return records
        else:
            if there == content:
                return records
            if (surveyed or not _songs_of(there) - records.keys()) and store.replace(
                REPORT_KEY, content, etag
            ):
                return records
        records, surveyed = survey(store, jobs).records, True


def _songs_of(report: bytes) -> set[str]:
    """The songs of a report, whoever wrote it."""
    rows = csv.reader(io.StringIO(report.decode("utf-8", "replace"), newline=""))
    return {row[0] for row in rows if row} - {REPORT_COLUMNS[0]}
