"""A list of songs with words, made by workers that are killed, and by two at once: always the same songs."""

import signal
import sys
from dataclasses import fields

import pytest

from tests.worker.run.processes import assert_whole, kill_until_done, wavs
from worker.audio.quality import Quality
from worker.songs import families, jobs, records
from worker.store.open import open_store

pytestmark = [
    pytest.mark.skipif(sys.platform == "win32", reason="forks"),
    pytest.mark.xdist_group("heartmula-worker"),
]

MODEL = "heartmula-rehearsal"
# A quarter of the real distance between the points from which a song is resumed.
EVERY = 64
SHORT = {"MUSICGEN_TEST_POSITIONS": str(EVERY)}
QUICK = ("--codec-steps=1", "--codec-guidance=1")
SECONDS = [9, 1, 7.04, 1.5, 1.3, 6, 1, 2, 1, 5.5, 1.12, 1]


@pytest.fixture(scope="module")
def prompts(tmp_path_factory):
    """Twelve songs; the words of every other one are found by its name."""
    folder = tmp_path_factory.mktemp("list")
    lines = []
    for n, seconds in enumerate(SECONDS):
        words = folder / (f"lyrics/n{n}.txt" if n % 2 else f"words/{n}.txt")
        words.parent.mkdir(exist_ok=True)
        words.write_text(f"[verse]\nOh {n} suns\n" + "la " * n, "utf-8")
        given = "" if n % 2 else f" ; lyrics=words/{n}.txt"
        lines.append(f"pop,mood {n} ; {seconds} ; n{n}{given}{' ; seed=7' * (n == 4)}")
    (folder / "prompts.txt").write_text("\n".join(lines), "utf-8")
    return folder / "prompts.txt"


def start(workers, prompts, place, slots=2, **env):
    arguments = (f"--prompts={prompts}", f"--model={MODEL}", f"--output={place}", f"--slots={slots}")
    return workers.start(*arguments, *QUICK, **SHORT, **env)


@pytest.fixture(scope="module")
def undisturbed(workers, prompts, tmp_path_factory):
    """The songs of the list as one run makes them."""
    place = tmp_path_factory.mktemp("undisturbed")
    worker = start(workers, prompts, place)
    assert worker.wait(120) == 0, worker.said
    return wavs(place)


def test_killed_at_random_moments_the_songs_are_the_same_and_no_more_than_a_piece_is_lost(
    workers, prompts, undisturbed, tmp_path, rng
):
    place = tmp_path / "out"
    first = start(workers, prompts, place, MUSICGEN_TEST_KILL_AT="after:checkpoints/")
    assert first.wait(120) == -signal.SIGKILL, first.said  # so that at least one song is resumed

    def start_again(**env):
        return start(workers, prompts, place, **env)

    killed = kill_until_done(start_again, tmp_path, rng, lambda n_saved: EVERY, n_early=6)
    print(killed)
    assert killed.kills >= 3 and killed.n_resumed  # or it did not see what it says
    assert wavs(place) == undisturbed
    listed = jobs.load(prompts, families.HEARTMULA)
    assert_whole(place, listed)
    store, columns = open_store(str(place)), {field.name for field in fields(Quality)}
    for job in listed:
        record = records.Record.from_json(store.read(records.record_key(job)))
        assert (record.song, record.options, record.seed) == (job.song, job.options, job.seed)
        assert (record.licence, record.seconds, record.made_s) == ("Apache-2.0", job.seconds, job.seconds)
        assert record.quality.keys() == columns and record.quality["duration_s"] == job.seconds
    assert sorted(job.options["lyrics"].split("/")[0] for job in listed) == ["lyrics"] * 6 + ["words"] * 6


def test_two_workers_at_once_make_what_one_makes(workers, prompts, undisturbed, tmp_path):
    place, ttl = tmp_path / "out", {"MUSICGEN_CLAIM_TTL_S": "3"}
    both = [start(workers, prompts, place, slots=1, RUN_ID=f"run-{n}", **ttl) for n in range(2)]
    for worker in both:
        assert worker.wait(120) == 0, worker.said
    assert wavs(place) == undisturbed
    assert_whole(place, jobs.load(prompts, families.HEARTMULA))
