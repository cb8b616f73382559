"""Workers as real processes: killed until their list is done, and what they leave in their output.

What each had made and saved is recorded frame by frame, so what a kill has cost is known on any machine,
however slow. `workers` are those of tests/fakes/worker.py.
"""

import json
import random
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tests.fakes.worker import Worker
from worker.songs import records
from worker.songs.checkpoint_file import tokens_key
from worker.songs.report import REPORT_KEY
from worker.store.open import open_store


@dataclass
class Killed:
    """What it took to have a list done. `n_redone`: of `n_frames`, those that were made more than once."""

    kills: int
    n_resumed: int
    n_frames: int
    n_redone: int


def kill_until_done(
    start: Callable[..., Worker],
    folder: Path,
    rng: random.Random,
    most_lost: Callable[[int], int],
    n_early: int = 10,
) -> Killed:
    """Start a list's worker and kill it at a random moment, again and again until it is done.

    `start` takes environment. `most_lost`: the frames of a song that a kill may cost at most, by those that
    were saved of it. Checks that no kill costs more, and that what was saved is resumed.
    The first `n_early` kills come soon; then they come at any moment, so that the list is done in the end.
    """
    scratch = folder / "tmp"
    scratch.mkdir()
    kept, kills, n_redone, n_resumed = {}, 0, 0, 0  # kept: song -> (frames made, saved) as of its last run
    for run in range(300):
        state, frames = folder / f"state-{run}", folder / f"frames-{run}"
        worker = start(TMPDIR=str(scratch), MUSICGEN_STATE_DIR=str(state), MUSICGEN_TEST_FRAMES=str(frames))
        # While it starts (0), or after so many frames.
        often = rng.choice([0, rng.randrange(1, 10 * (run + 2))])
        moment = often if kills < n_early else rng.randrange(1, 700)
        give_up = time.monotonic() + (rng.uniform(0, 0.3) if moment == 0 else 60)
        while worker.code is None and time.monotonic() < give_up:
            if moment and _made_since(last_frames(frames), kept) >= moment:
                time.sleep(rng.uniform(0, 0.05))
                break
            time.sleep(0.01)
        worker.send(signal.SIGKILL)
        code = worker.wait(120)
        resumed = {entry["song"]: entry["frame"] for entry in entries(state, "resumed")}
        n_resumed += len(resumed)
        for song, n_made in last_frames(frames).items():
            before, saved = kept.get(song, (0, 0))
            frame = resumed.get(song, 0)
            assert frame >= saved, f"{song} lost what was saved"
            n_redone += max(before - frame, 0)
            boundaries = [e["frame"] for e in entries(state, "checkpoint") if e["song"] == song]
            kept[song] = n_made, max([frame, *boundaries])
            # Saved at each boundary before what follows it tells of itself: what is not is its own.
            assert n_made - kept[song][1] <= most_lost(kept[song][1])
        if code == 0:
            break
        assert code == -signal.SIGKILL, worker.said
        kills += 1
    assert not list(scratch.iterdir())
    return Killed(kills, n_resumed, sum(n_made for n_made, _ in kept.values()), n_redone)


def _made_since(frames, kept):
    """Frames that a run has made beyond what it went on from, as far as that is known."""
    return sum(max(n - kept.get(song, (0, 0))[1], 0) for song, n in frames.items())


def entries(state, event):
    """A run's log entries of one event, in order."""
    try:
        lines = (state / "worker.jsonl").read_bytes().split(b"\n")
    except FileNotFoundError:
        return []
    return [entry for line in lines[:-1] if (entry := json.loads(line))["event"] == event]


def last_frames(path):
    """The most frames of each song that a run has told of."""
    most = {}
    if path.exists():
        for line in path.read_text("utf-8").split("\n")[:-1]:
            most.update({song: n_done for song, (n_done, _) in json.loads(line).items()})
    return most


def wavs(place):
    """Every song of an output by its key."""
    store = open_store(str(place))
    return {key: store.read(key) for key in store.list() if key.endswith(".wav")}


def assert_whole(place, jobs):
    """Every song has a record that fits it and a row; nothing of a killed worker is left."""
    store = open_store(str(place))
    found = records.survey(store, jobs, verify=True)
    assert [job.song for job in found.done] == [job.song for job in jobs]
    rows = store.read(REPORT_KEY).decode().splitlines()[1:]
    assert [row.split(",")[0] for row in rows] == [job.song for job in jobs]
    assert not store.list("claims/") and not store.list("checkpoints/")
    assert store.list("tokens/").keys() == {tokens_key(job.stem) for job in jobs}
    assert {key.split("/")[0] for key in store.list() if not key.endswith(".wav")} == {
        "cost_report.csv",
        "place.json",
        "records",
        "runs",
        "tokens",
    }
