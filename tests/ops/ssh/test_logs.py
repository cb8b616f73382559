"""`fab logs`: what is shown when the box has gone, and who may share its bucket."""

import threading

import pytest

from ops.settings import Settings
from ops.ssh import afterwards, follow, logs
from tests.fakes import s3
from tests.ops.ssh.connect import connected
from worker.errors import UserError
from worker.songs.status import Frames, GpuMemory, Songs, Status
from worker.store.open import open_store

MINE, OTHER = "20261122T195059Z-ab12", "20261122T205059Z-cd34"


def ended(run_id, code):
    """The last status of a run."""
    return Status(
        schema=1,
        run_id=run_id,
        state="failed" if code else "done",
        updated_at="2026-11-22T19:50:59Z",
        started_at="2026-11-22T19:50:59Z",
        pid=1,
        host="box",
        model="rehearsal",
        device="cpu",
        precision="fp32",
        slots=1,
        progress=7,
        songs=Songs(1, 1, 1, 0, 0),
        frames=Frames(50, 50),
        current=[],
        rate=None,
        eta_s=None,
        hourly_cost_usd=0.86,
        cost_usd=0.1,
        gpu_memory=GpuMemory(1, 2),
        notice=None,
        exit_code=code,
    ).to_json()


@pytest.fixture
def place(s3_url):
    """A bucket in which two boxes had a run each; the other's is newer."""
    place = f"s3://{s3.fresh_bucket(s3_url)}"
    store = open_store(place)
    for run, code in ((MINE, 3), (OTHER, 0)):
        store.write(f"runs/{run}/status.json", ended(run, code))
        store.write(f"runs/{run}/worker.log", f"one\nthe end of {run}\n".encode())
    return place


def test_run_that_was_followed_is_told_when_its_box_goes_and_no_other(
    box, tmp_path, place, monkeypatch, capfdbinary
):
    monkeypatch.setattr(follow, "GONE_AFTER_S", 0.2)
    monkeypatch.setattr(follow, "PAUSES_S", (0.1,))
    run = box.root / "state" / MINE
    run.mkdir(parents=True)
    (run.parent / "current").symlink_to(MINE)
    settings = Settings.load(env={"MUSICGEN_OUTPUT": place})
    with connected(box, tmp_path) as conn:
        conn.run("true")
        threading.Timer(0.3, box.stop).start()
        assert logs.show(conn, settings, run="", lines="1", since="", once=False) == 3
    assert capfdbinary.readouterr().out.decode() == f"the end of {MINE}\n"


def test_newest_run_is_told_where_none_was_followed(place):
    assert afterwards.last_run(place).run_id == OTHER
    assert afterwards.last_run(place, "ab12").exit_code == 3


@pytest.mark.parametrize(("n_lines", "n_shown"), [(0, 0), (1, 1), (20, 2)])
def test_as_many_lines_are_shown_as_were_asked_for(place, n_lines, n_shown):
    assert len(afterwards.last_run(place, "ab12", n_lines).tail) == n_shown


def test_damaged_status_is_one_line_that_names_the_run(place):
    open_store(place).write(f"runs/{OTHER}/status.json", b"{")
    with pytest.raises(UserError, match=rf"status\.json is damaged .*; see runs/{OTHER} in s3://"):
        afterwards.last_run(place)
