"""The run when a store hangs or goes away, when it is asked to end meanwhile, and what is left behind."""

import os
import threading
import time
from dataclasses import replace
from itertools import chain
from urllib.parse import urlsplit

import numpy as np
import pytest

from tests.fakes.proxy import proxying
from tests.fakes.s3 import fresh_bucket
from tests.songs import Recording, finish
from tests.worker.run.scripted import FOUR, JOBS, ONE, THREE, TWO, Listener, Scripted, Telling, reported, wavs
from tests.worker.run.scripted import run as run_list
from worker.engine import TO_GENERATE, Failed, Finished, Progress, Sampling, Song, Unfinished
from worker.errors import BadInput, Interrupted, Unreachable
from worker.host.notice import Interruption, Notice
from worker.host.spot_notice import MARGIN_S
from worker.run import queue
from worker.run.budget import StopBudget
from worker.run.claims import Claims, claim_key
from worker.songs.checkpoint_file import OtherSettings, checkpoint_key, from_bytes, to_bytes
from worker.songs.records import Record, record_key
from worker.store import retry
from worker.store.open import open_store

STOP = Notice("Ctrl-C", "signal")


@pytest.fixture
def folder(tmp_path):
    return open_store(str(tmp_path / "out"))


@pytest.fixture
def spare(tmp_path):
    return open_store(str(tmp_path / "spare"))


class Windowed(Scripted):
    """An engine of one slot whose songs take 20 frames, each `frame_s`, in windows of 5."""

    def __init__(self, frame_s=0.01, at=None):
        super().__init__(at=at, frame_s=frame_s)
        self.work = None

    def stream(self, songs, sampling):
        for song in songs:
            self.taken.append(song.key)
            tokens = np.full((4, 20), TO_GENERATE, np.int16)
            for n in range(20):
                self.work = Unfinished(song, tokens, 0.1 * n, Sampling(), "rehearsal", "0123456789ab", 5, 3)
                if self.at:
                    self.at((song.key, n))
                time.sleep(self.frame_s)
                tokens[:, n] = n
                yield Progress({song.key: (n + 1, 20)})
                if n % 5 == 4:
                    yield self.work
            self.work = None
            yield Finished(song.key, np.ones((4, -(-round(song.seconds * 32_000) // 640)), np.int16), 2.0)

    def unfinished(self):
        return [self.work] if self.work else []


class Troubled(Recording):
    """A store that stops answering: it hangs until `back` is set, or says that it is unreachable."""

    def __init__(self, inner):
        super().__init__(inner)
        self.hangs, self.away, self.back = False, False, threading.Event()

    def _trouble(self):
        if self.hangs:
            self.back.wait(120)
        if self.away or self.hangs:
            raise Unreachable("no answer from S3; check the network")

    def list(self, prefix=""):
        self._trouble()
        return super().list(prefix)

    def read_tagged(self, key):
        self._trouble()
        return super().read_tagged(key)

    def write(self, key, content):
        self._trouble()
        return super().write(key, content)

    def create(self, key, content):
        self._trouble()
        return super().create(key, content)

    def create_file(self, key, path):
        self._trouble()
        return super().create_file(key, path)

    def replace(self, key, content, etag):
        self._trouble()
        return super().replace(key, content, etag)

    def delete(self, key):
        self._trouble()
        super().delete(key)


@pytest.fixture
def troubled(folder):
    store = Troubled(folder)
    yield store
    store.back.set()


@pytest.fixture
def quick(monkeypatch):
    """Waits that are a bucket's in earnest."""
    monkeypatch.setattr(retry, "_PAUSES_S", (0.02,))


BRIEF = StopBudget(0.3, 0.3, 0.3, 0.3, 0.3, 0.3)


def run(store, engine, interruption=None, watch=None, **more):
    parts = {"interruption": interruption or Interruption(), "budget": BRIEF, **more}
    return run_list(store, engine, watch, context=parts)


# --- a store that goes away


def test_windows_are_kept_on_this_machine_however_long_the_store_is_away(troubled, spare, quick):
    def away(at):
        troubled.away = troubled.away or at == (ONE.song, 2)
        if at[1] == 14:
            assert spare.list(), "the window before was not kept"
            raise RuntimeError("enough")

    # The claims have run out when the first window is complete.
    with pytest.raises(RuntimeError, match="enough"):
        run(troubled, Windowed(0.05, away), spare=spare, claim_ttl_s=0.1)


def test_song_in_work_goes_on_while_the_next_one_cannot_be_claimed(troubled, quick, monkeypatch):
    monkeypatch.setattr(queue, "_ASK_S", 0.1)
    ahead = {}

    class TakesAhead(Windowed):
        def stream(self, songs, sampling):
            songs = iter(songs)
            first = next(songs)
            for event in super().stream([first], sampling):
                yield event
                if "next" not in ahead:
                    troubled.hangs = True
                    ahead["next"] = next(songs, None)
            troubled.hangs = False
            troubled.back.set()
            yield from super().stream(songs, sampling)

    engine = TakesAhead()
    began = time.monotonic()
    assert run(troubled, engine).state == "done"
    assert time.monotonic() - began < 60
    assert sorted(engine.taken) == sorted(job.song for job in JOBS)


def test_short_error_while_the_next_song_is_asked_for_leaves_no_slot_idle(troubled, quick):
    streams = []

    class TakesAhead(Windowed):
        def stream(self, songs, sampling):
            streams.append(songs)
            first = next(songs)
            troubled.away = True
            threading.Timer(0.2, setattr, [troubled, "away", False]).start()
            second = next(songs)  # while the first is in progress
            yield from super().stream(chain([first, second], songs), sampling)

    assert run(troubled, TakesAhead()).state == "done"
    assert len(streams) == 1


@pytest.mark.parametrize("trouble", ["hangs", "away"])
@pytest.mark.parametrize("moment", [(ONE.song, 7), (TWO.song, 0), (TWO.song, 12)])
def test_run_that_is_stopped_while_the_store_is_gone_ends_soon_with_75_and_keeps_all(
    troubled, spare, quick, trouble, moment
):
    interruption = Interruption()

    def at(where):
        if where == moment:
            setattr(troubled, trouble, True)
            threading.Timer(0.1, interruption.end, [STOP]).start()

    began = time.monotonic()
    with pytest.raises(Interrupted, match="Ctrl-C") as caught:
        run(troubled, Windowed(0.03, at), interruption, spare=spare)
    assert caught.value.code == 75
    assert time.monotonic() - began < 40
    assert checkpoint_key(JOBS[[ONE.song, TWO.song].index(moment[0])].stem) in spare.list()


@pytest.mark.parametrize("trouble", ["hangs", "away"])
def test_run_that_is_stopped_while_it_waits_for_a_claim_ends_soon_with_75(troubled, quick, trouble):
    interruption = Interruption()

    class Gone(Windowed):
        def stream(self, songs, sampling):
            setattr(troubled, trouble, True)
            threading.Timer(0.1, interruption.end, [STOP]).start()
            yield from super().stream(songs, sampling)

    began = time.monotonic()
    with pytest.raises(Interrupted, match="4 songs to make"):
        run(troubled, Gone(), interruption)
    assert time.monotonic() - began < 40


def test_last_account_waits_for_a_store_that_is_away_for_a_moment(folder, quick):
    class Away(Recording):
        n = 0

        def write(self, key, content):
            if b'"state": "done"' in content:
                self.n += 1
                if self.n < 3:
                    raise Unreachable("no answer from S3; check the network")
            return super().write(key, content)

    assert run_list(Away(folder)).state == "done"


def test_song_whose_answer_was_lost_in_an_outage_is_ours(folder, quick):
    class Lossy(Recording):
        lost = False

        def create_file(self, key, path):
            etag = super().create_file(key, path)
            if key == TWO.song and not self.lost:
                self.lost = True
                raise Unreachable("no answer from S3; check the network")
            return etag

    folder.write(record_key(TWO), b"of a run that was killed before its song was there")
    summary = run_list(Lossy(folder))
    assert (len(summary.made), summary.made_elsewhere) == (4, [])
    assert Record.from_json(folder.read(record_key(TWO))).run_id == "run-1"


def test_every_song_is_there_once_over_a_link_that_is_cut_again_and_again(
    s3_url, spare, quick, monkeypatch, rng
):
    bucket, over = fresh_bucket(s3_url), threading.Event()
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")  # what boto3 would try again is left to the run
    with proxying(urlsplit(s3_url).port) as link:
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{link.port}")

        def cut():
            while not over.wait(rng.uniform(0.03, 0.2)):
                link.reset()

        cutter = threading.Thread(target=cut)
        engine, watch = Windowed(0.01, lambda _: cutter.ident or cutter.start()), Listener()
        try:
            summary = run(open_store(f"s3://{bucket}"), engine, watch=watch, spare=spare)
        finally:
            over.set()
            if cutter.ident:
                cutter.join()
    monkeypatch.setenv("AWS_ENDPOINT_URL", s3_url)
    store = open_store(f"s3://{bucket}")
    print(f"{watch.told.count('unreachable')} waits, {link.n_connections} connections")
    assert (summary.state, len(summary.made), summary.made_elsewhere) == ("done", 4, [])
    assert sorted(engine.taken) == sorted(job.song for job in JOBS)
    assert wavs(store) == {job.song for job in JOBS}
    assert reported(store) == [job.song for job in JOBS]
    assert all(Record.from_json(store.read(record_key(job))).run_id == "run-1" for job in JOBS)


@pytest.mark.parametrize("method", ["planned", "begun", "progress", "made", "note"])
def test_fault_of_an_observer_costs_no_song(folder, method, caplog):
    class Faulty(Listener):
        pass

    def fail(self, *_, **__):
        raise ValueError("no room for a bar")

    setattr(Faulty, method, fail)
    summary = run_list(folder, Windowed(), watch=Faulty())
    assert (summary.state, len(summary.made), summary.failed) == ("done", 4, {})
    assert reported(folder) == [job.song for job in JOBS]
    assert "Faulty failed" in caplog.text


# --- asked to end


def test_spot_notice_leaves_time_for_the_song_that_will_be_done_and_saves_none_needlessly(folder):
    interruption = Interruption()

    def at(where):
        if where == (ONE.song, 14):  # its pace is known after a second
            interruption.end(Notice("EC2 takes this", "spot", time.monotonic() + 10))

    engine = Windowed(0.1, at)
    with pytest.raises(Interrupted, match="3 songs to make"):
        run(folder, engine, interruption)
    assert wavs(folder) == {ONE.song}
    assert folder.list("checkpoints/") == {}


def test_spot_notice_while_only_others_have_songs_says_that_it_stops(folder):
    interruption = Interruption()
    with Claims(folder, "run-2", ttl_s=60) as other:
        assert other.take(TWO.stem)

        def stop(event):
            if event == "waiting":
                interruption.end(Notice("EC2 takes this spot machine back", "spot", time.monotonic() + 60))

        told = []
        watch = Telling(lambda event: (told.append(event), stop(event)))
        with pytest.raises(Interrupted, match="EC2 takes this spot machine back"):
            run_list(folder, watch=watch, context={"interruption": interruption})
    assert "stopping" in told


def test_engine_is_told_to_begin_nothing_more(folder):
    interruption = Interruption()
    told = []

    class Told(Scripted):
        def begin_no_more(self):
            told.append(len(self.taken))

    engine = Told(at=lambda key: key == TWO.song and interruption.drain("EC2 advises it"))
    with pytest.raises(Interrupted):
        run_list(folder, engine, context={"interruption": interruption})
    assert told and told[0] == 2


# --- what a killed run leaves


def leave(store, job):
    store.write(checkpoint_key(job.stem), b"a checkpoint")
    store.write(claim_key(job.stem), b"{}")


def test_what_was_left_of_a_song_that_is_done_goes_with_the_next_run(store):
    for job in JOBS:
        finish(store, job)
    leave(store, TWO)
    run_list(store)
    assert not store.list("claims/") and not store.list("checkpoints/")


def test_what_is_left_of_a_song_that_is_not_done_stays(folder):
    for job in JOBS[:3]:
        finish(folder, job)
    leave(folder, FOUR)
    run_list(folder, selected=[ONE])
    assert set(folder.list("claims/")) | set(folder.list("checkpoints/")) == {
        claim_key(FOUR.stem),
        checkpoint_key(FOUR.stem),
    }


def test_checkpoint_of_a_song_on_no_list_goes_after_a_month(folder, tmp_path):
    for stem, age_d in (("off_12345678", 31), ("young_12345678", 29), (FOUR.stem, 31)):
        key = checkpoint_key(stem)
        folder.write(key, b"a checkpoint")
        then = time.time() - age_d * 86400
        os.utime(tmp_path / "out" / key, (then, then))
    run_list(folder, selected=[ONE])
    assert set(folder.list("checkpoints/")) == {checkpoint_key("young_12345678"), checkpoint_key(FOUR.stem)}


def test_what_was_left_on_this_machine_of_a_song_that_is_done_goes_too(folder, spare):
    for job in JOBS:
        finish(folder, job)
    spare.write(checkpoint_key(TWO.stem), b"a checkpoint")
    run(folder, Scripted(), spare=spare)
    assert spare.list() == {}


def test_file_whose_name_only_begins_like_a_song_is_not_taken_for_it(store):
    store.write(f"{THREE.song}.txt", b"lyrics")
    assert run_list(store).made_elsewhere == []
    assert THREE.song in wavs(store)


# --- settings that would mix or replace songs


class Choosy(Windowed):
    """An engine that resumes what was begun with its own stride only."""

    def __init__(self, stride_s=18.0, model="rehearsal", **more):
        super().__init__(**more)
        self.stride_s, self.model = stride_s, model

    def describe(self):
        return super().describe() | {"stride_s": self.stride_s, "model": self.model}

    def check(self, song, sampling):
        if song.stride != 3:
            raise OtherSettings(f"stride {song.stride}, not 3")


def test_checkpoint_of_another_stride_is_refused_with_2_and_stays(folder):
    interruption = Interruption()
    with pytest.raises(Interrupted):
        run(folder, Choosy(at=lambda at: at == (ONE.song, 7) and interruption.end(STOP)), interruption)
    key = checkpoint_key(ONE.stem)
    content = to_bytes(replace(from_bytes(folder.read(key)), stride=9))
    folder.write(key, content)
    engine = Choosy()
    with pytest.raises(BadInput, match=rf"{ONE.stem} was begun with stride 9, not 3; .*--start-over"):
        run(folder, engine)
    assert engine.taken == []
    assert folder.read(key) == content


def test_checkpoint_of_another_stride_is_replaced_when_asked_to_start_over(folder):
    left = Unfinished(
        Song(ONE.song, ONE.prompt, ONE.seconds, ONE.seed),
        np.ones((4, 20), np.int16),
        1.0,
        Sampling(),
        "rehearsal",
        "0123456789ab",
        5,
        9,
    )
    folder.write(checkpoint_key(ONE.stem), to_bytes(left))
    assert run_list(folder, Choosy(), start_over=True).resumed == []
    assert wavs(folder) == {job.song for job in JOBS}


def test_output_that_is_started_over_beside_a_live_worker_is_not_mixed(folder):
    other = {}

    def start_over(at):
        if at == (ONE.song, 3) and not other:
            other["run"] = True
            run_list(folder, Choosy(stride_s=12.0), start_over=True, selected=[TWO], run_id="other")

    with pytest.raises(BadInput, match="was started over with stride 12 s, not 18 s while this run"):
        run(folder, Choosy(at=start_over))
    assert wavs(folder) == {TWO.song}


def test_of_two_models_in_one_empty_output_one_is_refused_and_the_other_makes_all(folder):
    gate, ended = threading.Barrier(2), {}

    def start(model):
        def load(dtype):
            gate.wait()
            return Choosy(model=model, frame_s=0.001)

        try:
            ended[model] = run_list(folder, load=load, model=model, run_id=model).state
        except BadInput as error:
            ended[model] = str(error)

    threads = [threading.Thread(target=start, args=[model]) for model in ("one", "two")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    (won,) = [model for model, state in ended.items() if state == "done"]
    (lost,) = {"one", "two"} - {won}
    assert f"is for songs made with model {won}, not {lost}" in ended[lost]
    assert run_list(folder, load=pytest.fail, model=won, run_id="again").state == "done"


def test_song_that_is_removed_while_the_run_goes_on_is_missing_at_its_end(folder):
    def remove(key):
        if key == FOUR.song:
            while ONE.song not in folder.list():
                time.sleep(0.01)
            folder.delete(ONE.song)

    summary = run_list(folder, Scripted(at=remove))
    assert summary.state == "failed"
    assert "has been removed; run it again to make it" in summary.failed[ONE.song]
    assert reported(folder) == [TWO.song, THREE.song, FOUR.song]


def test_song_that_the_engine_says_nothing_about_is_missing_at_the_end(folder):
    class Silent(Scripted):
        def stream(self, songs, sampling):
            yield from (event for event in super().stream(songs, sampling) if not is_two(event))

    def is_two(event):
        return isinstance(event, Finished) and event.key == TWO.song

    summary = run_list(folder, Silent())
    assert (summary.state, len(summary.made)) == ("failed", 3)
    assert summary.failed == {TWO.song: "it was not made; run it again to make it"}


def test_wav_without_a_record_that_comes_meanwhile_is_kept_and_missing(folder):
    def put(key):
        if key == ONE.song:
            folder.write(FOUR.song, b"of an older tool")

    summary = run_list(folder, Scripted(at=put))
    assert (summary.state, len(summary.made)) == ("failed", 3)
    assert "it has no record" in summary.kept[FOUR.song]
    assert folder.read(FOUR.song) == b"of an older tool"


# --- a model that takes long to load


def test_stop_does_not_wait_for_the_model(folder):
    interruption, back = Interruption(), threading.Event()

    def load(dtype):
        interruption.end(STOP)
        back.wait(120)

    began = time.monotonic()
    with pytest.raises(Interrupted, match=r"Ctrl-C.* while the model was loading") as caught:
        run_list(folder, load=load, context={"interruption": interruption, "budget": BRIEF})
    assert caught.value.code == 75
    assert time.monotonic() - began < 60
    back.set()


def test_stop_while_the_model_loads_is_in_the_status_by_which_the_box_stays_on(folder):
    interruption, back, watch = Interruption(), threading.Event(), Listener()

    def load(dtype):
        interruption.end(Notice("EC2 takes this spot machine back", "spot", time.monotonic() + 60))
        back.wait(20)

    with pytest.raises(Interrupted):
        run_list(folder, load=load, watch=watch, context={"interruption": interruption, "budget": BRIEF})
    back.set()
    assert "stopping" in watch.told


def test_stop_does_not_wait_for_the_wider_model(folder):
    interruption, back = Interruption(), threading.Event()

    class Overflowing(Scripted):
        def describe(self):
            return super().describe() | {"precision": "fp16"}

        def stream(self, songs, sampling):
            for song in songs:
                yield Failed(song.key, "its logits became NaN", 0.0, overflowed=True)

    def load(dtype):
        if dtype:
            interruption.end(STOP)
            back.wait(20)
        return Overflowing()

    began = time.monotonic()
    with pytest.raises(Interrupted, match="while the model was loading"):
        run_list(folder, load=load, context={"interruption": interruption, "budget": BRIEF})
    assert time.monotonic() - began < 15
    back.set()


@pytest.mark.parametrize("key", ["records/", "place.json", "claims/"])
def test_stop_does_not_wait_for_a_store_that_hangs(folder, key):
    """At the first look, before the first song, and at the tidying in the end."""
    interruption, back = Interruption(), threading.Event()

    class HangsAt(Recording):
        def hang(self, asked):
            if asked.startswith(key):
                interruption.end(STOP)
                back.wait(20)

        def list(self, prefix=""):
            self.hang(prefix)
            return super().list(prefix)

        def read_tagged(self, asked):
            if key != "claims/":  # those are listed at the end alone
                self.hang(asked)
            return super().read_tagged(asked)

    for job in JOBS[:3]:
        finish(folder, job)
    began = time.monotonic()
    context = {"interruption": interruption, "budget": BRIEF}
    if key == "claims/":
        assert run_list(HangsAt(folder), context=context).state == "done"
    else:
        with pytest.raises(Interrupted, match="Ctrl-C"):
            run_list(HangsAt(folder), context=context)
    assert time.monotonic() - began < 15
    back.set()


def test_stop_before_the_last_report_is_written_is_an_interruption(folder):
    interruption, back = Interruption(), threading.Event()

    class Hanging(Recording):
        def write(self, key, content):
            if b'"state": "done"' in content:
                interruption.end(STOP)
                back.wait(20)
            return super().write(key, content)

    with pytest.raises(Interrupted, match="did not take the last report"):
        run_list(Hanging(folder), context={"interruption": interruption, "budget": BRIEF})
    back.set()


# --- how long stopping takes


def test_stopping_fits_into_the_least_notice():
    assert StopBudget().total_s <= MARGIN_S


def test_local_copies_fit_between_a_pods_sigterm_and_its_sigkill():
    assert StopBudget().save_locally_s <= 1
