"""A run with an engine that needs no model, for the tests of this folder."""

import csv
import io
import time

import numpy as np

from tests.songs import listed
from worker.engine import Failed, Finished, Progress
from worker.errors import BadInput
from worker.run import batch
from worker.run.context import RunContext
from worker.run.observer import Observers
from worker.run.progress import ProgressMeter
from worker.run.request import RunRequest
from worker.songs import families
from worker.songs.report import REPORT_KEY
from worker.songs.summary import Price, Summary

JOBS = listed("one ; 1.75 ; one", "two ; 1.5 ; two", "three ; 1.25 ; three", "four ; 1 ; four")
ONE, TWO, THREE, FOUR = JOBS
RATE, HOP = 32_000, 640


class Scripted:
    """An engine whose songs are quiet sines of a pitch that their seed decides.

    `bad`: song -> what goes wrong with it. `at(key)` is called before each song.
    """

    sample_rate = RATE
    family = families.MUSICGEN

    def __init__(self, bad=None, at=None, frame_s=0.0):
        self.bad, self.at, self.frame_s = bad or {}, at, frame_s
        self.taken = []
        self.sung = {}  # song -> lyrics

    def describe(self):
        return {
            "model": "rehearsal",
            "revision": "0123456789ab",
            "device": "cpu",
            "precision": "float32",
            "same_bytes": "",
            "slots": 1,
            "attention": "none",
            "window_s": 30.0,
            "stride_s": 18.0,
        }

    def stream(self, songs, sampling):
        for song in songs:
            self.taken.append(song.key)
            self.sung[song.key] = song.lyrics
            if self.at:
                self.at(song.key)
            n_frames = -(-round(song.seconds * RATE) // HOP)
            tokens = np.random.default_rng(song.seed).integers(0, 256, (4, n_frames), np.int16)
            started = time.monotonic()
            time.sleep(n_frames * self.frame_s)
            spent_s = time.monotonic() - started
            if self.bad.get(song.key) == "early":
                tokens = tokens[:, : n_frames // 2]
            yield Progress({song.key: (tokens.shape[1], n_frames)})
            if self.bad.get(song.key) == "generation":
                yield Failed(song.key, "ValueError: no tune", spent_s)
            else:
                yield Finished(song.key, self._mark(tokens, song.key), spent_s)

    def _mark(self, tokens, key):
        if kind := self.bad.get(key):
            tokens[0, 0] = {"NaN": -1, "short": -2, "decode": -3, "early": 0}[kind]
        return tokens

    def unfinished(self):
        return []

    def begin_no_more(self):
        pass

    def close(self):
        pass

    def check(self, song, sampling):
        pass

    def refuse_oversized(self, song):
        if self.bad.get(song.key) == "oversized":
            raise BadInput("its words are 3 positions over the model's 8; shorten it")

    def joins(self, seconds):
        return []

    def decode(self, tokens, go_on=lambda: True, seed=0):
        if tokens[0, 0] == -3:
            raise RuntimeError("codec broke\nand more")
        n_frames = tokens.shape[1] - (tokens[0, 0] == -2)
        audio = 0.1 * np.sin(np.arange(n_frames * HOP) * (1 + abs(int(tokens[1, 1]))) / 1000)
        if tokens[0, 0] == -1:
            audio[7] = np.nan
        return audio.astype(np.float32)


class Listener:
    """An observer that remembers what was reported to it."""

    def __init__(self, wait_s=0.0):
        self.told, self.wait_s = [], wait_s

    def planned(self, found, request):
        self.told.append("planned")

    def progress(self, event):
        time.sleep(self.wait_s)

    def made(self, record):
        self.told.append(record.song)

    def failed(self, song, reason):
        self.told.append(f"{song}: {reason}")

    def note(self, event, text, **facts):
        self.told.append(event)

    def made_elsewhere(self, song):
        self.told.append(f"{song}: elsewhere")

    def begun(self, song):
        pass

    def saved(self, songs):
        self.told += [f"{song}: saved" for song in songs]


def request(selected=JOBS, jobs=JOBS, run_id="run-1", model="rehearsal", hourly=3.6, **more):
    return RunRequest(jobs, selected, model, Price(hourly, "as set"), run_id, **more)


def run(store, engine=None, watch=None, *, load=None, context=None, **asked) -> Summary:
    """A whole run of the list; `load` instead of an engine, `context` for what a RunContext may have."""
    meter = ProgressMeter()
    parts = RunContext(
        request(**asked), store, Observers(meter, watch or Listener()), meter, **(context or {})
    )
    return batch.run(parts, load or (lambda dtype: engine or Scripted()))


def report(store):
    return list(csv.reader(io.StringIO(store.read(REPORT_KEY).decode(), newline="")))[1:]


def reported(store):
    return [row[0] for row in report(store)]


def wavs(store):
    return {key for key in store.list() if key.endswith(".wav")}


class Telling(Listener):
    """An observer that passes on the names of what is noted."""

    def __init__(self, tell):
        super().__init__()
        self.tell = tell

    def note(self, event, text, **facts):
        self.tell(event)
