"""status.json as a format: what is written is read back, and no damage gets through or crashes."""

import json
import subprocess
import sys
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.songs.status import (
    STATES,
    Frames,
    GpuMemory,
    InProgress,
    Songs,
    Status,
    Steps,
    Unreadable,
    is_stale,
    read,
)
from worker.timestamps import stamp

# As agreed with everyone who reads it: remote/watchdog.sh, fab status, inv status.
AGREED = b"""{
 "schema": 1,
 "run_id": "20261122T195000Z-ab12",
 "state": "generating",
 "updated_at": "2026-11-22T19:50:59Z",
 "started_at": "2026-11-22T19:50:00Z",
 "pid": 4321,
 "host": "ip-10-0-0-7",
 "model": "facebook/musicgen-medium",
 "device": "Tesla T4",
 "precision": "fp16",
 "slots": 24,
 "progress": 777,
 "songs": {
  "asked": 5,
  "done": 3,
  "made": 2,
  "failed": 1,
  "left": 1
 },
 "frames": {
  "done": 700,
  "total": 1500
 },
 "current": [
  {
   "song": "rain_5c0ffee0.wav",
   "frames_done": 200,
   "frames_total": 1000
  }
 ],
 "rate": 6.5,
 "eta_s": 12.5,
 "hourly_cost_usd": 0.4,
 "cost_usd": 0.0066,
 "gpu_memory": {
  "used": 9000000000,
  "total": 16000000000
 },
 "notice": null,
 "exit_code": null
}
"""
STATUS = Status(
    schema=1,
    run_id="20261122T195000Z-ab12",
    state="generating",
    updated_at="2026-11-22T19:50:59Z",
    started_at="2026-11-22T19:50:00Z",
    pid=4321,
    host="ip-10-0-0-7",
    model="facebook/musicgen-medium",
    device="Tesla T4",
    precision="fp16",
    slots=24,
    progress=777,
    songs=Songs(asked=5, done=3, made=2, failed=1, left=1),
    frames=Frames(done=700, total=1500),
    current=[InProgress("rain_5c0ffee0.wav", 200, 1000)],
    rate=6.5,
    eta_s=12.5,
    hourly_cost_usd=0.4,
    cost_usd=0.0066,
    gpu_memory=GpuMemory(9_000_000_000, 16_000_000_000),
    notice=None,
    exit_code=None,
)
# As remote/train.py writes it.
AGREED_OF_A_TRAINING = b"""{
 "schema": 1,
 "run_id": "20261122T195000Z-ab12",
 "state": "training",
 "updated_at": "2026-11-22T19:50:59Z",
 "started_at": "2026-11-22T19:50:00Z",
 "pid": 4321,
 "host": "k2u8d5v3q9xj1a",
 "model": "configs/whisper_small.yaml",
 "device": null,
 "precision": null,
 "slots": null,
 "progress": 25,
 "songs": null,
 "frames": null,
 "current": [],
 "rate": 1.25,
 "eta_s": 12.0,
 "hourly_cost_usd": 0.4,
 "cost_usd": 0.0066,
 "gpu_memory": null,
 "notice": null,
 "exit_code": null,
 "steps": {
  "done": 25,
  "total": 40,
  "epoch": 0.625,
  "loss": "nan"
 }
}
"""
NOW = datetime(2026, 11, 22, 19, 50, 59, tzinfo=UTC)

counts = st.integers(0, 2**63 - 1)
amounts = st.floats(0, 1e12, allow_nan=False)
texts = st.text(st.characters(exclude_categories=["Cs"]))
stamps = st.datetimes(datetime(2000, 1, 1), datetime(2100, 1, 1), timezones=st.just(UTC)).map(stamp)

works = st.tuples(
    st.builds(Songs, counts, counts, counts, counts, counts), st.builds(Frames, counts, counts), st.none()
) | st.tuples(
    st.none(),
    st.none(),
    st.builds(Steps, counts, st.none() | counts, st.none() | amounts, st.none() | texts),
)
statuses = st.builds(
    lambda work, **its: Status(songs=work[0], frames=work[1], steps=work[2], **its),
    work=works,
    schema=st.just(1),
    run_id=texts,
    state=st.sampled_from(STATES),
    updated_at=stamps,
    started_at=stamps,
    pid=counts,
    host=texts,
    model=texts,
    device=st.none() | texts,
    precision=st.none() | texts,
    slots=st.none() | counts,
    progress=counts,
    current=st.lists(st.builds(InProgress, texts, counts, counts), max_size=3),
    rate=st.none() | amounts,
    eta_s=st.none() | amounts,
    hourly_cost_usd=amounts,
    cost_usd=amounts,
    gpu_memory=st.none() | st.builds(GpuMemory, counts, counts),
    notice=st.none() | texts,
    exit_code=st.none() | counts,
)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


def test_format_is_the_agreed_one():
    assert STATUS.to_json() == AGREED
    assert read(AGREED) == STATUS


def test_training_has_steps_in_place_of_songs():
    found = read(AGREED_OF_A_TRAINING)
    assert (found.steps, found.songs) == (Steps(done=25, total=40, epoch=0.625, loss="nan"), None)
    assert found.to_json() == AGREED_OF_A_TRAINING


@pytest.mark.parametrize(
    "change",
    [
        {"songs": None},
        {"frames": None},
        {"songs": None, "frames": None},
        {"steps": json.loads(AGREED_OF_A_TRAINING)["steps"]},
    ],
)
def test_status_of_both_kinds_of_work_or_of_neither_is_unreadable(change):
    with pytest.raises(Unreadable):
        read(json.dumps(json.loads(AGREED) | change).encode())


@given(statuses)
def test_what_is_written_is_read_back(status):
    assert read(status.to_json()) == status


@given(st.binary() | json_values.map(lambda value: json.dumps(value).encode()))
def test_other_content_is_unreadable_and_nothing_else(content):
    with pytest.raises(Unreadable):
        read(content)


@given(st.integers(0, len(AGREED) - 3))
def test_half_a_status_is_unreadable(length):
    with pytest.raises(Unreadable):
        read(AGREED[:length])


@given(st.integers(0, len(AGREED) - 1), st.integers(0, 255))
def test_one_wrong_byte_crashes_no_reader(position, byte):
    content = AGREED[:position] + bytes([byte]) + AGREED[position + 1 :]
    try:
        status = read(content)
    except Unreadable as error:
        assert "\n" not in str(error)
    else:
        assert read(status.to_json()) == status


@given(st.sampled_from(sorted(json.loads(AGREED))), json_values)
def test_wrong_value_is_unreadable_unless_it_could_be_meant(name, value):
    content = json.dumps(json.loads(AGREED) | {name: value}).encode()
    try:
        status = read(content)
    except Unreadable:
        return
    assert getattr(status, name) == value or name in ("songs", "frames", "gpu_memory", "current")
    assert read(status.to_json()) == status


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("progress", -1),
        ("progress", True),
        ("progress", 1.0),
        ("progress", 2**63),
        ("rate", float("nan")),
        ("eta_s", float("inf")),
        ("cost_usd", 10**400),
        ("cost_usd", None),
        ("state", "asleep"),
        ("host", "\ud800"),
        ("updated_at", "yesterday"),
        ("started_at", "2026-11-22 19:50:59"),
        ("songs", {"asked": 1}),
        ("current", [{"song": "rain_5c0ffee0.wav"}]),
        ("current", {}),
        ("schema", "1"),
    ],
)
def test_value_that_cannot_be_is_unreadable(name, value):
    with pytest.raises(Unreadable):
        read(json.dumps(json.loads(AGREED) | {name: value}).encode())


def test_every_field_must_be_there():
    for name in json.loads(AGREED):
        fields = json.loads(AGREED)
        del fields[name]
        with pytest.raises(Unreadable):
            read(json.dumps(fields).encode())


def test_nesting_without_end_is_unreadable():
    with pytest.raises(Unreadable):
        read(b"[" * 200_000)


def test_status_of_a_later_version_is_named_as_such():
    with pytest.raises(Unreadable, match=r"schema 2, not 1: another version wrote it"):
        read(AGREED.replace(b'"schema": 1', b'"schema": 2'))


def test_key_that_is_not_known_is_ignored():
    assert read(AGREED.replace(b"{", b'{"later": [1],', 1)) == STATUS


# --- staleness


@pytest.mark.parametrize(("age_s", "stale"), [(-30, False), (0, False), (60, False), (61, True)])
def test_status_is_stale_when_it_is_older_than_the_limit(age_s, stale):
    assert is_stale(STATUS, NOW + timedelta(seconds=age_s)) == stale


def test_limit_can_be_set():
    assert is_stale(STATUS, NOW + timedelta(seconds=11), after_s=10)


def test_run_that_has_ended_is_never_stale():
    ended = replace(STATUS, state="done", exit_code=0)
    assert not is_stale(ended, NOW + timedelta(days=365))


def test_reader_needs_nothing_that_only_a_box_has():
    script = (
        "import sys, worker.songs.status; "
        "print(*{'torch', 'numpy', 'transformers', 'boto3', 'rich'} & sys.modules.keys())"
    )
    root = Path(__file__).parents[3]
    loaded = subprocess.run(
        [sys.executable, "-c", script], cwd=root, capture_output=True, text=True, check=True
    )
    assert loaded.stdout.split() == []
