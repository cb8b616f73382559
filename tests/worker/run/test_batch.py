"""The run, with an engine that needs no model: what is made, in which order, and what survives."""

import io
import json
import tempfile
import threading
import time
import wave

import pytest

from tests.fakes.s3 import fresh_bucket
from tests.songs import Recording, finish, listed, tree, wav_bytes
from tests.worker.run.scripted import (
    FOUR,
    HOP,
    JOBS,
    ONE,
    THREE,
    TWO,
    Listener,
    Scripted,
    Telling,
    report,
    reported,
    run,
    wavs,
)
from worker.engine import Abandoned, Failed, Finished
from worker.errors import BadInput, DiskFull, Interrupted, Unreachable, UserError
from worker.host.notice import Interruption, Notice
from worker.run import finisher
from worker.run import queue as queue
from worker.run import runner as runner
from worker.run.claims import Claims
from worker.songs import families, jobs, maker, records
from worker.songs.records import Record
from worker.songs.report import REPORT_KEY
from worker.store import retry
from worker.store.open import open_store


def must_not_load(dtype):
    pytest.fail("the engine was loaded")


@pytest.fixture(autouse=True)
def scratch(tmp_path, monkeypatch):
    """The folder in which this test's temporary files lie."""
    folder = tmp_path / "scratch"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


@pytest.fixture
def folder(tmp_path):
    return open_store(str(tmp_path / "out"))


# --- the plain case


def test_every_song_of_the_list_is_made_with_record_and_row(store):
    summary = run(store)
    assert set(store.list()) == {
        REPORT_KEY,
        maker.KEY,
        "runs/run-1/summary.json",
        *(job.song for job in JOBS),
        *(records.record_key(job) for job in JOBS),
    }
    assert reported(store) == [job.song for job in JOBS]
    assert (summary.state, summary.failed) == ("done", {})


def test_records_describe_song_engine_and_file(folder):
    run(folder)
    record = Record.from_json(folder.read(records.record_key(TWO)))
    wav = folder.read(TWO.song)
    assert (record.song, record.prompt, record.seconds) == (TWO.song, "two", 1.5)
    assert (record.seed, record.model, record.run_id) == (TWO.seed, "rehearsal", "run-1")
    assert (record.n_samples, record.n_bytes) == (48_000, len(wav)) == (48_000, 44 + 2 * 48_000)


def test_same_list_gives_the_same_bytes_in_any_place(tmp_path, s3_url):
    places = [open_store(str(tmp_path / "a")), open_store(f"s3://{fresh_bucket(s3_url)}")]
    for place in places:
        run(place)
    first, second = ({key: place.read(key) for key in wavs(place)} for place in places)
    assert first == second


def test_record_then_wav_then_report(store):
    watched = Recording(store)
    run(watched, selected=[ONE])
    changes = [key for _, key in watched.changes if not key.startswith("claims/")]
    assert changes[:5] == [
        maker.KEY,
        records.record_key(ONE),
        ONE.song,
        REPORT_KEY,
        "runs/run-1/summary.json",
    ]


def test_report_grows_with_every_song(folder):
    rows = {}

    class Watching(Listener):
        def made(self, record):
            rows[record.song] = reported(folder)

    run(folder, watch=Watching())
    assert list(rows) == [job.song for job in JOBS]
    assert all(song in reported_then for song, reported_then in rows.items())


def test_temporary_files_are_gone(folder, scratch):
    during = []
    run(folder, Scripted(at=lambda _: during.extend(scratch.iterdir()), bad={TWO.song: "NaN"}))
    assert during and list(scratch.iterdir()) == []


# --- what is there already


def test_second_run_makes_nothing_and_loads_no_engine(store):
    run(store)
    before = {key: store.read(key) for key in store.list()}
    summary = run(store, load=must_not_load, run_id="run-2")
    after = {key: store.read(key) for key in store.list()}
    assert after.pop("runs/run-2/summary.json")
    assert after == before
    assert (summary.state, summary.made, summary.done_before) == ("done", [], [job.song for job in JOBS])


def test_only_what_is_left_is_made(folder):
    finish(folder, TWO)
    engine = Scripted()
    run(folder, engine)
    assert engine.taken == [ONE.song, THREE.song, FOUR.song]
    assert reported(folder) == [job.song for job in JOBS]


def test_record_without_a_song_is_made_again(folder):
    finish(folder, ONE, run_id="killed")
    folder.delete(ONE.song)
    run(folder, selected=[ONE])
    assert Record.from_json(folder.read(records.record_key(ONE))).run_id == "run-1"


def test_foreign_wav_is_kept_and_said(store):
    store.write(ONE.song, b"made by something else")
    summary = run(store)
    assert store.read(ONE.song) == b"made by something else"
    assert "no record" in summary.kept[ONE.song]
    assert reported(store) == [TWO.song, THREE.song, FOUR.song]
    assert records.record_key(ONE) not in store.list()


def test_song_that_another_run_made_meanwhile_stays_with_its_account(store):
    def other(key):
        if key == TWO.song:
            finish(store, TWO, run_id="run-2")

    summary = run(store, Scripted(at=other))
    assert (summary.made_elsewhere, summary.state) == ([TWO.song], "done")
    assert Record.from_json(store.read(records.record_key(TWO))).run_id == "run-2"


def test_songs_of_another_run_are_in_the_report_of_this_one(store):
    def other(key):
        if key == TWO.song:
            finish(store, TWO, run_id="run-2")

    run(store, Scripted(at=other))
    assert reported(store) == [job.song for job in JOBS]


def test_selection_makes_only_itself_and_keeps_the_rows_of_the_others(folder):
    run(folder, selected=[FOUR, TWO][::-1])
    engine = Scripted()
    summary = run(folder, engine, selected=[ONE], run_id="run-2")
    assert (engine.taken, summary.asked) == ([ONE.song], [ONE.song])
    assert reported(folder) == [ONE.song, TWO.song, FOUR.song]


def test_place_of_another_model_is_left_as_it_is(folder, tmp_path):
    run(folder, selected=[ONE])
    before = tree(tmp_path / "out")
    with pytest.raises(BadInput, match="give another output folder or prefix"):
        run(folder, load=must_not_load, model="facebook/musicgen-small")
    assert tree(tmp_path / "out") == before


def test_another_revision_is_refused_before_anything_is_generated(folder, tmp_path):
    finish(folder, ONE, revision="ffffffffffff")
    before = tree(tmp_path / "out")
    engine = Scripted()
    with pytest.raises(BadInput, match="another revision"):
        run(folder, engine)
    assert engine.taken == []
    assert tree(tmp_path / "out") == before


def test_record_and_summary_have_the_licence_of_the_weights(folder):
    assert run(folder, selected=[TWO], licence="Apache-2.0").licence == "Apache-2.0"
    assert Record.from_json(folder.read(records.record_key(TWO))).licence == "Apache-2.0"


def test_song_that_ended_early_is_as_long_as_it_is_and_the_record_says_both_lengths(folder):
    engine = Scripted(bad={TWO.song: "early"})
    engine.family = families.HEARTMULA
    summary = run(folder, engine, selected=[TWO])
    record = Record.from_json(folder.read(records.record_key(TWO)))
    assert (record.seconds, record.made_s, record.n_samples) == (1.5, 0.74, 37 * HOP)
    assert record.is_consistent and not summary.failed
    assert summary.seconds_made == summary.generated_s == pytest.approx(0.74, abs=0.02)
    with wave.open(io.BytesIO(folder.read(TWO.song))) as wav:
        assert wav.getnframes() == 37 * HOP
    assert not records.survey(folder, [TWO]).todo


def test_song_that_lacks_audio_fails_in_a_family_whose_songs_do_not_end_early(folder):
    summary = run(folder, Scripted(bad={TWO.song: "early"}), selected=[TWO])
    assert "samples were made where" in summary.failed[TWO.song]


def test_lyrics_are_refused_before_anything_is_written(folder, tmp_path):
    (tmp_path / "words.txt").write_text("la la")
    (sung,) = jobs.parse(b"song ; 1 ; sung ; lyrics=words.txt", folder=tmp_path)
    with pytest.raises(BadInput, match="cannot sing; remove lyrics= from sung"):
        run(folder, load=must_not_load, selected=[sung], jobs=[sung])
    assert not (tmp_path / "out").exists()


def test_words_are_those_that_the_run_has_read_though_their_file_is_gone_since(folder, tmp_path):
    words = tmp_path / "words.txt"
    words.write_text("la la")
    lines = b"pop ; 1.5 ; first ; lyrics=words.txt\npop ; 1 ; second ; lyrics=words.txt"
    listed = jobs.parse(lines, folder=tmp_path, family=families.HEARTMULA)
    engine = Scripted(at=lambda _: words.unlink(missing_ok=True))
    summary = run(folder, engine, jobs=listed, selected=listed, family=families.HEARTMULA)
    assert (summary.state, len(summary.made)) == ("done", 2)
    assert engine.sung == {job.song: "la la" for job in listed}


# --- songs that fail


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("generation", "ValueError: no tune"),
        ("decode", "RuntimeError: codec broke"),
        ("NaN", "the audio holds NaN or infinite samples"),
        ("short", "47360 samples were made where 48000 are needed"),
    ],
)
def test_failing_song_does_not_stop_the_others(folder, kind, reason):
    watch = Listener()
    summary = run(folder, Scripted(bad={TWO.song: kind}), watch)
    assert (summary.state, summary.failed) == ("failed", {TWO.song: reason})
    assert f"{TWO.song}: {reason}" in watch.told
    assert reported(folder) == [ONE.song, THREE.song, FOUR.song]
    assert TWO.song not in folder.list()
    assert records.record_key(TWO) not in folder.list()


def test_song_that_the_model_has_no_room_for_fails_before_any_is_begun(folder):
    watch, engine = Listener(), Scripted(bad={FOUR.song: "oversized"})
    summary = run(folder, engine, watch)
    reason = "its words are 3 positions over the model's 8; shorten it"
    assert (summary.state, summary.failed) == ("failed", {FOUR.song: reason})
    assert engine.taken == [ONE.song, TWO.song, THREE.song]
    assert watch.told[:2] == ["planned", f"{FOUR.song}: {reason}"]
    assert not folder.list("claims/")


def test_failed_song_is_made_by_the_next_run(folder):
    run(folder, Scripted(bad={TWO.song: "NaN"}))
    engine = Scripted()
    assert run(folder, engine, run_id="run-2").state == "done"
    assert engine.taken == [TWO.song]


def test_run_whose_engine_cannot_be_loaded_leaves_an_account(folder):
    finish(folder, ONE)

    def load_engine(dtype):
        raise UserError("not enough memory for one song; use a smaller model")

    with pytest.raises(UserError, match="not enough memory"):
        run(folder, load=load_engine)
    summary = json.loads(folder.read("runs/run-1/summary.json"))
    assert (summary["state"], summary["reason"][:17]) == ("failed", "not enough memory")
    assert reported(folder) == [ONE.song]
    assert folder.list("claims/") == {}


# --- interruption and a store that fails


def interrupted_at(song):
    """An interruption, and the engine during whose work on this song it comes."""
    interruption = Interruption()

    def at(key):
        if key == song:
            interruption.end(Notice("Ctrl-C", "signal"))

    return interruption, Scripted(at=at)


def test_interrupted_run_keeps_what_is_finished(store):
    interruption, engine = interrupted_at(THREE.song)
    with pytest.raises(Interrupted, match=r"Ctrl-C.*; \d songs to make; run it again to resume") as caught:
        run(store, engine, context={"interruption": interruption})
    assert caught.value.code == 75
    assert {ONE.song, TWO.song} <= wavs(store)
    assert FOUR.song not in wavs(store)
    assert set(reported(store)) == wavs(store)
    assert json.loads(store.read("runs/run-1/summary.json"))["state"] == "interrupted"


def test_run_after_an_interruption_makes_exactly_the_rest(folder):
    interruption, engine = interrupted_at(THREE.song)
    with pytest.raises(Interrupted):
        run(folder, engine, context={"interruption": interruption})
    before = {key: folder.read(key) for key in wavs(folder)}
    engine = Scripted()
    run(folder, engine, run_id="run-2")
    assert set(engine.taken) == {job.song for job in JOBS} - before.keys()
    assert before.items() <= {key: folder.read(key) for key in wavs(folder)}.items()
    assert reported(folder) == [job.song for job in JOBS]


def test_stop_while_audio_is_encoded_leaves_that_song_and_does_not_wait(folder, tmp_path):
    (tmp_path / "take.wav").write_bytes(wav_bytes(1))
    both = jobs.parse(b"one ; 5 ; one ; continue=take.wav\ntwo ; 1 ; two", folder=tmp_path)
    interruption, engine = Interruption(), Scripted()
    engine.hop, engine.channels = HOP, 1

    def encode(audio, go_on):
        interruption.end(Notice("Ctrl-C", "signal"))
        if not go_on():
            raise Abandoned

    engine.encode = encode
    watch = Listener()
    with pytest.raises(Interrupted):
        run(folder, engine, watch, jobs=both, selected=both, context={"interruption": interruption})
    assert not [told for told in watch.told if told.startswith("one")]
    assert folder.list("claims/") == {} and wavs(folder) == set()


def test_interruption_leaves_no_temporary_files_and_no_claims(folder, scratch):
    interruption, engine = interrupted_at(TWO.song)
    with pytest.raises(Interrupted):
        run(folder, engine, context={"interruption": interruption})
    assert list(scratch.iterdir()) == []
    assert folder.list("claims/") == {}


def test_ctrl_c_inside_a_step_still_accounts_for_what_is_finished(store):
    def at(key):
        if key == THREE.song:
            raise KeyboardInterrupt

    with pytest.raises(Interrupted, match="stopped at once"):
        run(store, Scripted(at=at))
    assert set(reported(store)) == wavs(store)
    assert store.list("claims/") == {}


def test_drained_run_begins_no_song_and_can_be_resumed(folder):
    interruption = Interruption()
    engine = Scripted(at=lambda key: key == TWO.song and interruption.drain("EC2 advises it"))
    with pytest.raises(Interrupted, match="EC2 advises it"):
        run(folder, engine, context={"interruption": interruption})
    assert engine.taken == [ONE.song, TWO.song]
    assert reported(folder) == [ONE.song, TWO.song]


def test_interruption_after_the_last_song_is_none(folder):
    interruption, engine = interrupted_at(FOUR.song)
    interruption.end = lambda notice: None
    assert run(folder, engine, context={"interruption": interruption}).state == "done"


# --- other workers


def test_song_that_another_worker_has_is_waited_for_and_not_made(folder, monkeypatch):
    monkeypatch.setattr(queue, "_LOOK_EVERY_S", 0.1)
    with Claims(folder, "run-2", ttl_s=60) as other:
        assert other.take(TWO.stem)

        def finish_it(event):
            if event == "waiting":
                finish(folder, TWO, run_id="run-2")

        engine = Scripted()
        summary = run(folder, engine, Telling(finish_it))
    assert engine.taken == [ONE.song, THREE.song, FOUR.song]
    assert (summary.state, summary.made_elsewhere) == ("done", [TWO.song])
    assert reported(folder) == [job.song for job in JOBS]


def test_how_long_a_silent_worker_is_waited_for_is_said(folder, monkeypatch):
    monkeypatch.setattr(queue, "_LOOK_EVERY_S", 0.1)
    with Claims(folder, "run-2", ttl_s=60) as other:
        assert other.take(TWO.stem)
        observer, said = Telling(lambda event: event == "waiting" and other.release(TWO.stem)), []
        note = observer.note
        monkeypatch.setattr(observer, "note", lambda *words, **facts: (said.append(words), note(*words)))
        run(folder, Scripted(), observer)
    (text,) = [text for event, text in said if event == "waiting"]
    assert text.endswith("; one that gives no sign of life for 2 min 0 s is replaced")


def test_song_that_another_worker_gives_back_is_made(folder, monkeypatch):
    monkeypatch.setattr(queue, "_LOOK_EVERY_S", 0.1)
    with Claims(folder, "run-2", ttl_s=60) as other:
        assert other.take(TWO.stem)
        engine = Scripted()
        run(folder, engine, Telling(lambda event: event == "waiting" and other.release(TWO.stem)))
    assert engine.taken == [ONE.song, THREE.song, FOUR.song, TWO.song]


# --- precision


class Narrow(Scripted):
    """An engine in which one song overflows in fp16."""

    def __init__(self, precision):
        super().__init__()
        self.precision = precision

    def describe(self):
        return super().describe() | {"precision": self.precision}

    def stream(self, songs, sampling):
        for event in super().stream(songs, sampling):
            if isinstance(event, Finished) and event.key == TWO.song and self.precision != "fp32":
                yield Failed(event.key, "its logits became NaN", 0.0, overflowed=True)
            else:
                yield event


def made_in(folder, first):
    """Which precision each song was made in, by an engine that is loaded in `first`."""

    def load_engine(dtype):
        return Narrow(dtype or first)

    summary = run(folder, load=load_engine)
    songs = [song["song"] for song in summary.made]
    read = [Record.from_json(folder.read(f"records/{song[:-4]}.json")) for song in songs]
    return {record.song: record.precision for record in read}, summary


def test_song_that_overflows_in_fp16_is_made_in_fp32(folder):
    precisions, summary = made_in(folder, "fp16")
    assert precisions == {job.song: "fp32" if job is TWO else "fp16" for job in JOBS}
    assert summary.state == "done"


def test_overflowing_engine_is_closed_before_the_wider_one_is_loaded(folder):
    open_engines, most = set(), []

    class Counted(Narrow):
        def close(self):
            assert len(wavs(folder)) == 3, "a song still needed it"
            open_engines.remove(self)

    def load_engine(dtype):
        open_engines.add(Counted(dtype or "fp16"))
        most.append(len(open_engines))
        return max(open_engines, key=lambda engine: engine.precision == dtype)

    assert run(folder, load=load_engine).state == "done"
    assert most == [1, 1]


def test_song_that_overflows_in_another_precision_fails_with_the_reason(folder):
    precisions, summary = made_in(folder, "bf16")
    assert TWO.song not in precisions
    assert summary.failed == {TWO.song: "its logits became NaN"}


# --- a store that does not answer for a while


class Away(Recording):
    """A store that does not take the first song at the first two attempts."""

    def __init__(self, inner):
        super().__init__(inner)
        self.attempts = 0

    def create_file(self, key, path):
        if key == ONE.song:
            self.attempts += 1
            if self.attempts < 3:
                raise Unreachable("no answer from S3; check the network")
        return super().create_file(key, path)


def test_songs_wait_for_a_store_that_does_not_answer(folder, monkeypatch):
    monkeypatch.setattr(retry, "_PAUSES_S", (0.01,))
    watch = Listener()
    assert run(Away(folder), watch=watch).state == "done"
    assert reported(folder) == [job.song for job in JOBS]
    assert watch.told.count("unreachable") == watch.told.count("reachable") == 1


class Failing(Recording):
    """A store in which one song cannot be written."""

    def create_file(self, key, path):
        if key == TWO.song:
            raise UserError("disk full at out; free space and run the same command again")
        return super().create_file(key, path)


def test_store_that_fails_midway_ends_the_run_with_its_one_line(store):
    with pytest.raises(UserError, match="disk full at out; free space") as caught:
        run(Failing(store))
    assert caught.value.code == 1


def test_what_was_finished_before_the_store_failed_stays_and_is_accounted_for(store):
    with pytest.raises(UserError):
        run(Failing(store))
    assert ONE.song in wavs(store) and TWO.song not in wavs(store)
    assert reported(store)[0] == ONE.song
    assert json.loads(store.read("runs/run-1/summary.json"))["state"] == "failed"


def test_run_after_a_failed_store_accounts_for_everything(folder):
    with pytest.raises(UserError):
        run(Failing(folder))
    run(folder, run_id="run-2")
    assert reported(folder) == [job.song for job in JOBS]


def test_place_that_cannot_be_written_is_said_before_the_engine_is_loaded(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(UserError, match="; "):
        run(open_store(str(tmp_path / "file" / "out")), load=must_not_load)


def test_full_scratch_disk_is_one_line_that_names_it(folder, scratch, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(finisher, "write_wav", full)
    with pytest.raises(DiskFull, match=rf"disk full at {scratch}"):
        run(folder)


def test_songs_are_decoded_with_their_own_seeds(folder):
    seeds = []

    class Drawing(Scripted):
        def decode(self, tokens, go_on=lambda: True, seed=0):
            seeds.append(seed)
            return super().decode(tokens)

    run(folder, Drawing())
    assert sorted(seeds) == sorted(job.seed for job in JOBS)


# --- the engine is fed as it asks, and its time is what is charged


def test_engine_gets_the_whole_list_at_once_and_takes_songs_when_it_likes(folder):
    streams = []

    class TwoAtATime(Scripted):
        def stream(self, songs, sampling):
            songs = list(songs)
            streams.append([song.key for song in songs])
            events = [list(Scripted.stream(self, [song], sampling)) for song in songs]
            for first, second in ((0, 1), (2, 3)):  # each pair ends in the other order
                yield from events[second] + events[first]

    run(folder, TwoAtATime())
    assert streams == [[job.song for job in JOBS]]
    assert reported(folder) == [job.song for job in JOBS]


def test_audio_is_made_beside_generation(folder):
    threads = set()

    class Watched(Scripted):
        def decode(self, tokens, go_on=lambda: True, seed=0):
            threads.add(threading.current_thread())
            return super().decode(tokens)

    run(folder, Watched())
    assert threading.main_thread() not in threads


def test_generation_waits_for_a_slow_store_rather_than_pile_up_songs(folder, monkeypatch):
    monkeypatch.setattr(runner, "_MAX_FINISHING", 4)
    many = listed(*(f"song {n} ; 1 ; n{n}" for n in range(9)))
    behind = []

    class Slow(Recording):
        def create_file(self, key, path):
            time.sleep(0.05)
            return super().create_file(key, path)

    engine = Scripted(at=lambda _: behind.append(len(engine.taken) - len(wavs(folder))))
    run(Slow(folder), engine, jobs=many, selected=many)
    assert max(behind) <= 7  # in work, waiting, in hand, and the one that is being taken


def test_generation_times_of_the_report_add_up_to_the_run(folder):
    summary = run(folder, Scripted(frame_s=0.002))
    assert summary.generation_s == pytest.approx(sum(float(row[3]) for row in report(folder)), abs=0.1)
    assert summary.generation_s > 0.4


def test_waiting_for_others_is_not_charged_as_generation(folder):
    summary = run(folder, Scripted(frame_s=0.001), Listener(wait_s=0.1))
    assert summary.generation_s == pytest.approx(sum(float(row[3]) for row in report(folder)), abs=0.1)
    assert summary.wall_s - summary.generation_s > 0.4


def test_cost_is_generation_time_at_the_hourly_price(folder):
    summary = run(folder, Scripted(frame_s=0.001), hourly=3600.0)
    for row in report(folder):
        assert float(row[4]) == pytest.approx(float(row[3]), abs=0.001)
    assert summary.estimated_cost_usd == summary.generation_s


# --- the summary


def test_summary_is_written_with_everything_the_table_shows(folder):
    folder.write(ONE.song, b"foreign")
    finish(folder, FOUR)
    run(folder, Scripted(bad={TWO.song: "generation"}, frame_s=0.001))
    written = json.loads(folder.read("runs/run-1/summary.json"))
    assert (written["schema"], written["run_id"], written["state"]) == (1, "run-1", "failed")
    assert written["asked"] == [job.song for job in JOBS]
    assert (written["seconds_asked"], written["seconds_made"]) == (5.5, 1.25)
    assert [song["song"] for song in written["made"]] == [THREE.song]
    assert (list(written["kept"]), written["done_before"]) == ([ONE.song], [FOUR.song])
    assert list(written["failed"]) == [TWO.song]
    assert written["engine"]["model"] == "rehearsal"
    assert written["price"] == {"hourly_usd": 3.6, "basis": "as set", "paid_usd": None}
    assert written["overhead_s"] == pytest.approx(written["wall_s"] - written["generation_s"])
    assert written["estimated_cost_usd"] == pytest.approx(written["generation_s"] / 1000)


def test_run_that_has_nothing_to_do_still_mends_a_lost_report(folder):
    run(folder)
    wanted = folder.read(REPORT_KEY)
    folder.delete(REPORT_KEY)
    run(folder, load=must_not_load, run_id="run-2")
    assert folder.read(REPORT_KEY) == wanted
