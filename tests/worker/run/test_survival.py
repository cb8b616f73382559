"""Workers that are killed, stopped and started together, as real processes on the rehearsal model."""

import signal
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import soundfile

from tests.fakes import imds
from tests.fakes.s3 import fresh_bucket
from tests.fakes.worker import nursery
from tests.worker.run.processes import assert_whole, entries, kill_until_done, last_frames, wavs
from worker.songs import records
from worker.songs.checkpoint_file import from_bytes, tokens_key
from worker.songs.jobs import load
from worker.songs.records import Record
from worker.songs.report import REPORT_KEY
from worker.store.open import open_store

pytestmark = [
    pytest.mark.skipif(sys.platform == "win32", reason="forks"),
    pytest.mark.xdist_group("survival"),
]

# Windows of 3 s, each 1.8 s after the one before: a tenth of the real ones, for a tenth of the time.
WINDOWS = {"MUSICGEN_TEST_WINDOW_S": "3"}
STRIDE = "--stride=1.8"
FIRST_WINDOW, LATER_WINDOW = 150, 90  # frames that each adds
SEVERAL = """
short one ; 1.25 ; short
a song of two windows ; 4.25 ; two
another ; 1 ; another
a song of three windows ; 6 ; three
the last ; 1 ; last
"""


@pytest.fixture(scope="module")
def workers(tmp_path_factory):
    with nursery(tmp_path_factory.mktemp("workers")) as parent:
        yield parent


@pytest.fixture
def place(request, tmp_path):
    if request.param == "folder":
        return str(tmp_path / "out")
    return f"s3://{fresh_bucket(request.getfixturevalue('s3_url'))}/prefix"


def listed(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "prompts.txt"
    path.write_text(text, "utf-8")
    return path


def arguments(prompts, place, slots=2):
    return (f"--prompts={prompts}", "--model=rehearsal", f"--output={place}", f"--slots={slots}", STRIDE)


@pytest.fixture(scope="module")
def undisturbed(workers, tmp_path_factory):
    """The songs of the list as one run makes them."""
    folder = tmp_path_factory.mktemp("undisturbed")
    worker = workers.start(*arguments(listed(folder, SEVERAL), folder / "out"), **WINDOWS)
    assert worker.wait(120) == 0, worker.said
    return wavs(str(folder / "out"))


@pytest.mark.parametrize("place", ["folder", "s3"], indirect=True)
def test_killed_at_random_moments_the_songs_are_the_same_and_no_more_than_a_window_is_lost(
    workers, place, tmp_path, undisturbed, rng
):
    prompts = listed(tmp_path, SEVERAL)

    def start(**env):
        return workers.start(*arguments(prompts, place), **WINDOWS, **env)

    def most_lost(n_saved):
        return LATER_WINDOW if n_saved else FIRST_WINDOW

    killed = kill_until_done(start, tmp_path, rng, most_lost)
    print(killed)
    assert killed.kills >= 5  # or it did not see what it says
    assert wavs(place) == undisturbed
    assert_whole(place, load(prompts))


CHANGES = [
    "place.json",
    "claims/",
    "checkpoints/",
    "records/",
    "*.wav",
    "cost_report.csv",
    "tokens/",
    "runs/",
]


@pytest.mark.parametrize("place", ["folder", "s3"], indirect=True)
def test_killed_before_during_and_after_each_write_the_songs_are_the_same(workers, place, tmp_path):
    prompts = listed(tmp_path, "\n".join(f"song {n} ; {1 + n / 20} ; n{n}" for n in range(9)))
    own = {"TMPDIR": str(tmp_path), "MUSICGEN_BOX_HOME": str(tmp_path / "home"), **WINDOWS}
    for keys in CHANGES:
        for moment in ("before", "during", "after"):
            if keys == "place.json":
                open_store(place).delete(keys)  # so that it is written again
            killed_at = {"MUSICGEN_TEST_KILL_AT": f"{moment}:{keys}"}
            worker = workers.start(*arguments(prompts, place, slots=1), **own, **killed_at)
            assert worker.wait(60) == -signal.SIGKILL, f"{killed_at}: {worker.said}"
    worker = workers.start(*arguments(prompts, place, slots=1), **own)
    assert worker.wait(60) == 0, worker.said
    again = tmp_path / "undisturbed"
    worker = workers.start(*arguments(prompts, again, slots=1), **own)
    assert worker.wait(60) == 0, worker.said
    assert wavs(place) == wavs(str(again))
    assert_whole(place, load(prompts))


@pytest.mark.parametrize("place", ["folder", "s3"], indirect=True)
def test_six_workers_with_two_killed_and_one_stopped_make_what_one_makes(workers, place, tmp_path):
    lines = [f"song {n} ; {6 if n < 6 else 1 + n / 20} ; n{n}" for n in range(14)]
    prompts = listed(tmp_path, "\n".join(lines))
    own = {"TMPDIR": str(tmp_path), "MUSICGEN_BOX_HOME": str(tmp_path / "home"), **WINDOWS}
    worker = workers.start(*arguments(prompts, tmp_path / "undisturbed", slots=1), **own)
    assert worker.wait(120) == 0, worker.said
    states = [tmp_path / f"state-{i}" for i in range(6)]
    started = [
        workers.start(
            *arguments(prompts, place, slots=1),
            MUSICGEN_STATE_DIR=str(state),
            MUSICGEN_CLAIM_TTL_S="3",
            **own,
        )
        for state in states
    ]
    victims = []
    for number in (signal.SIGKILL, signal.SIGKILL, signal.SIGSTOP):

        def at_work():
            return next((i for i in range(6) if i not in victims and entries(states[i], "checkpoint")), None)

        victims.append(wait_until(at_work))
        started[victims[-1]].send(number)
    stopped = started[victims[-1]]
    time.sleep(6)  # twice its claim's time; in a folder it may hold the lock that the others need
    stopped.send(signal.SIGCONT)
    for index, worker in enumerate(started):
        if index not in victims[:2]:
            assert worker.wait(240) == 0, worker.said
    assert wavs(place) == wavs(str(tmp_path / "undisturbed"))
    assert_whole(place, load(prompts))


def made_by(state):
    return [entry["song"] for entry in entries(state, "made")]


def wait_until(condition, timeout_s=60.0):
    last = time.monotonic() + timeout_s
    while (found := condition()) is None:
        assert time.monotonic() < last, "waited in vain"
        time.sleep(0.02)
    return found


def test_spot_notice_with_only_long_songs_ends_the_worker_soon_and_the_next_run_finishes(workers, tmp_path):
    prompts, place = listed(tmp_path, "long ; 25 ; long\nlonger ; 26 ; longer"), str(tmp_path / "out")
    with imds.serving() as metadata:
        env = {
            "AWS_EC2_METADATA_SERVICE_ENDPOINT": metadata.url,
            "AWS_EC2_METADATA_DISABLED": "false",
            "MUSICGEN_TEST_POLL_S": "0.1",
            "MUSICGEN_STATE_DIR": str(tmp_path / "state"),
        }
        worker = workers.start(*arguments(prompts, place), **env, **WINDOWS)
        wait_until(lambda: entries(tmp_path / "state", "progress") or None)
        metadata.interrupt(seconds=21)
        noticed = wait_until(lambda: "stopping" in worker.said or None) and time.monotonic()
        assert worker.wait(60) == 75, worker.said
        assert time.monotonic() - noticed < 5
    assert sum("checkpoints/" in key for key in open_store(place).list()) == 2
    worker = workers.start(*arguments(prompts, place), **WINDOWS)
    assert worker.wait(60) == 0, worker.said
    assert worker.said.count("resuming") == 2
    assert len(wavs(place)) == 2


def test_stopped_by_a_signal_every_token_is_kept(workers, tmp_path):
    prompts, place = listed(tmp_path, "long ; 300 ; long"), str(tmp_path / "out")
    frames = tmp_path / "frames"
    worker = workers.start(*arguments(prompts, place, slots=1), MUSICGEN_TEST_FRAMES=str(frames))
    (song,) = wait_until(lambda: {s for s, n in last_frames(frames).items() if n > 200} or None)
    worker.send(signal.SIGTERM)
    assert worker.wait(120) == 75, worker.said
    made = last_frames(frames)[song]
    state = tmp_path / "state"
    worker = workers.start(*arguments(prompts, place, slots=1), MUSICGEN_STATE_DIR=str(state))
    (entry,) = wait_until(lambda: entries(state, "resumed") or None)
    worker.send(signal.SIGKILL)
    worker.wait(120)
    assert entry["frame"] >= made - 3  # the last columns hold some codebooks of the next frames
    assert entry["charged_s"] > 0


def test_run_stopped_by_ctrl_c_is_75_and_the_next_makes_the_rest(workers, tmp_path):
    prompts, place = listed(tmp_path, "first ; 1 ; first\nlong ; 600 ; long"), tmp_path / "out"
    worker = workers.start(*arguments(prompts, place))
    wait_until(lambda: (place / REPORT_KEY).exists() or None)
    worker.send(signal.SIGINT)
    assert worker.wait(120) == 75, worker.said
    assert [line for line in worker.said.splitlines() if "stop" in line] == [
        "stopping: Ctrl-C; again to stop at once",
        "error: stopped (Ctrl-C); 1 song to make; run it again to resume",
    ]
    assert "Traceback" not in worker.said
    made, store = wavs(str(place)), open_store(str(place))
    assert [song[:6] for song in made] == ["first_"]
    (record,) = (store.read(key) for key in store.list("records/"))

    prompts = listed(tmp_path, "first ; 1 ; first\nlong ; 600 ; long\nlast ; 1 ; last")
    worker = workers.start(*arguments(prompts, place), "--only", "first", "last")
    assert worker.wait(120) == 0, worker.said
    assert "1 song to make, 1 s of audio; 1 done already" in worker.said
    assert wavs(str(place)).items() > made.items()
    assert record in [store.read(key) for key in store.list("records/")]


@pytest.mark.parametrize("place", ["folder"], indirect=True)
def test_lost_wav_is_decoded_again_from_its_tokens_and_nothing_is_generated(workers, place, tmp_path):
    prompts = listed(tmp_path, "long ; 12 ; long\nother ; 1 ; other")
    assert workers.start(*arguments(prompts, place, slots=1), "--only=long", **WINDOWS).wait(60) == 0
    before = wavs(place)
    (lost,) = (Path(place) / song for song in before)
    lost.unlink()
    frames = tmp_path / "frames"
    worker = workers.start(
        *arguments(prompts, place), "--from-tokens", MUSICGEN_TEST_FRAMES=str(frames), **WINDOWS
    )
    assert worker.wait(60) == 0, worker.said
    assert wavs(place) == before
    assert not last_frames(frames)


@pytest.mark.parametrize("place", ["folder", "s3"], indirect=True)
def test_songs_that_continue_others_begin_with_their_tokens(workers, place, tmp_path):
    prompts = listed(
        tmp_path, "calm ; 4 ; first\nepic ; 9.5 ; third ; continue=second\nloud ; 7 ; second ; continue=first"
    )
    worker = workers.start(*arguments(prompts, place), **WINDOWS)
    assert worker.wait(120) == 0, worker.said
    first, third, second = (open_store(place).read(tokens_key(job.stem)) for job in load(prompts))
    tokens = [from_bytes(content).tokens for content in (first, second, third)]
    assert [song.shape[1] for song in tokens] == [200, 350, 475]
    assert np.array_equal(tokens[1][:, :200], tokens[0])
    assert np.array_equal(tokens[2][:, :350], tokens[1])
    assert "begins with 7 s of second" in worker.said


@pytest.mark.parametrize("place", ["folder"], indirect=True)
def test_song_whose_source_is_nowhere_fails_alone(workers, place, tmp_path):
    prompts = listed(tmp_path, "calm ; 1 ; other\nepic ; 9 ; more ; continue=gone_0123abcd")
    worker = workers.start(*arguments(prompts, place), **WINDOWS)
    assert worker.wait(60) == 1, worker.said
    assert "gone_0123abcd cannot be continued: it is not there" in worker.said
    assert len(wavs(place)) == 1


@pytest.mark.parametrize("place", ["folder"], indirect=True)
def test_without_tokens_nothing_is_decoded(workers, place, tmp_path):
    prompts = listed(tmp_path, "long ; 12 ; long")
    worker = workers.start(*arguments(prompts, place), "--from-tokens", **WINDOWS)
    assert worker.wait(60) == 2
    assert "keeps no tokens of these songs; make them with `inv generate`" in worker.said


@pytest.mark.parametrize("place", ["folder"], indirect=True)
def test_interrupted_song_says_so_in_its_record_and_is_charged_for_all_its_time(workers, place, tmp_path):
    prompts = listed(tmp_path, "some windows ; 10 ; some")
    state = tmp_path / "state"
    worker = workers.start(*arguments(prompts, place, slots=1), MUSICGEN_STATE_DIR=str(state), **WINDOWS)
    wait_until(lambda: entries(state, "checkpoint") or None)
    worker.send(signal.SIGINT)
    assert worker.wait(120) == 75, worker.said
    next_state = tmp_path / "next"
    worker = workers.start(*arguments(prompts, place, slots=1), MUSICGEN_STATE_DIR=str(next_state), **WINDOWS)
    assert worker.wait(60) == 0, worker.said
    (job,) = load(prompts)
    record = Record.from_json(open_store(place).read(records.record_key(job)))
    (resumed,) = entries(next_state, "resumed")
    assert record.interruptions == 1
    assert record.generation_s > resumed["charged_s"] > 0


def tune(path: Path, seconds: float, rate: int = 44_100, **how: str) -> Path:
    """A rising tone in stereo."""
    times = np.arange(round(seconds * rate))[:, None] / rate
    soundfile.write(path, 0.3 * np.sin(2 * np.pi * (200 + 50 * times) * times * (1, 1.5)), rate, **how)
    return path


def tokens_by_name(place, prompts):
    store = open_store(place)
    return {job.name: from_bytes(store.read(tokens_key(job.stem))).tokens for job in load(prompts)}


@pytest.mark.parametrize("place", ["folder"], indirect=True)
def test_songs_that_continue_audio_begin_with_it_however_they_are_killed(workers, place, tmp_path):
    tune(tmp_path / "short.mp3", 2.5)
    tune(tmp_path / "long.flac", 20)
    prompts = listed(
        tmp_path,
        "calm ; 6 ; short ; continue=short.mp3\n"
        "loud ; 14 ; end ; continue=long.flac\n"
        "calm ; 6 ; again ; continue=short.mp3\n"
        "epic ; 7 ; chain ; continue=short",
    )
    other = tmp_path / "undisturbed"
    worker = workers.start(*arguments(prompts, other), **WINDOWS)
    assert worker.wait(120) == 0, worker.said
    assert "begins with 12 s of long.flac" in worker.said
    for point in ("before:checkpoints/end", "after:checkpoints/end"):
        killed = workers.start(*arguments(prompts, place), **WINDOWS, MUSICGEN_TEST_KILL_AT=point)
        assert killed.wait(120) == -signal.SIGKILL, killed.said
    worker = workers.start(*arguments(prompts, place), **WINDOWS)
    assert worker.wait(120) == 0, worker.said
    assert wavs(place) == wavs(str(other))
    made = tokens_by_name(place, prompts)
    assert {name: tokens.shape[1] for name, tokens in made.items()} == {
        "short": 300, "end": 700, "again": 300, "chain": 350
    }  # fmt: skip
    assert np.array_equal(made["short"][:, :125], made["again"][:, :125])
    assert not np.array_equal(made["short"], made["again"])
    assert np.array_equal(made["chain"][:, :300], made["short"])


@pytest.mark.parametrize("place", ["folder"], indirect=True)
def test_audio_that_cannot_be_continued_costs_that_song_alone(workers, place, tmp_path):
    noise = np.random.default_rng(0)
    damaged = bytearray(tune(tmp_path / "damaged.flac", 20).read_bytes())
    damaged[-30_000:-25_000] = noise.bytes(5000)
    (tmp_path / "damaged.flac").write_bytes(damaged)
    soundfile.write(tmp_path / "silent.wav", np.zeros(96_000), 32_000)
    prompts = listed(
        tmp_path,
        "calm ; 13 ; one ; continue=damaged.flac\ncalm ; 4 ; two ; continue=silent.wav\ncalm ; 1 ; good",
    )
    worker = workers.start(*arguments(prompts, place), **WINDOWS)
    assert worker.wait(60) == 1, worker.said
    assert "it cannot be continued: damaged.flac is damaged; copy or convert it again" in worker.said
    assert "it cannot be continued: the end of silent.wav is silent; cut the silence off" in worker.said
    assert [song.split("_")[0] for song in wavs(place)] == ["good"]
