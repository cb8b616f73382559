"""The plan: what a list and a place amount to, before anything is started."""

import json
import subprocess
import sys
from dataclasses import replace
from types import SimpleNamespace

import pytest

from ops import plan
from ops.plan import TO_MAKE, PlannedSong, closing_line, plan_songs, what_it_takes
from ops.settings import Settings
from tests.songs import finish, listed
from worker.amounts import duration
from worker.errors import BadInput
from worker.songs import families, jobs
from worker.songs.jobs import BadPrompts

LINES = ["rain; on a window ; 12.5 ; rain", "sun ; 240 ; sun ; seed=7", "fog ; 2.5 ; fog"]
RAIN, SUN, FOG = listed(*LINES)


@pytest.fixture
def prompts(tmp_path):
    (tmp_path / "prompts.txt").write_text("\n".join(LINES), "utf-8")
    return tmp_path / "prompts.txt"


def test_every_song_has_a_row_in_file_order(prompts, store):
    songs = plan_songs(prompts, store.location, "rehearsal")
    assert [(s.song, s.duration_s, s.seed, s.prompt) for s in songs] == [
        (job.song, job.seconds, job.seed, job.prompt) for job in (RAIN, SUN, FOG)
    ]


def test_states_are_done_kept_and_to_make(prompts, store):
    finish(store, RAIN)
    store.write(SUN.song, b"made by something else")
    states = [song.state for song in plan_songs(prompts, store.location, "rehearsal")]
    assert states[0::2] == ["done", "to make"]
    assert states[1].startswith("kept: it has no record")


def test_only_the_chosen_songs_are_planned(prompts, store):
    assert [song.song for song in plan_songs(prompts, store.location, "rehearsal", ["fog"])] == [FOG.song]


def test_planning_writes_nothing(prompts, tmp_path):
    plan_songs(prompts, str(tmp_path / "out"), "rehearsal")
    assert not (tmp_path / "out").exists()


def test_place_of_another_model_is_refused(prompts, store):
    finish(store, RAIN)
    with pytest.raises(BadInput, match="songs made by rehearsal, not facebook/musicgen-small"):
        plan_songs(prompts, store.location, "facebook/musicgen-small")


def test_wrong_lines_are_all_told(prompts, tmp_path):
    prompts.write_text("one\ntwo ; 0 ; two\n")
    with pytest.raises(BadPrompts) as caught:
        plan_songs(prompts, str(tmp_path / "out"), "rehearsal")
    assert [problem.startswith(f"{prompts}:{n}: ") for n, problem in enumerate(caught.value.problems, 1)]


def test_closing_line_sums_what_is_to_be_made(prompts, store):
    finish(store, RAIN)
    songs = plan_songs(prompts, store.location, "rehearsal")
    assert closing_line(songs, "out") == (
        "2 of 3 songs to make, 4 min 2 s of audio, into out; 1 done already"
    )


def test_misspelt_name_of_a_model_that_sings_is_not_taken_for_one_that_cannot(tmp_path):
    (tmp_path / "words.txt").write_text("[verse]\nla\n")
    (tmp_path / "list.txt").write_text("pop, piano ; 5 ; vows ; lyrics=words.txt\n")
    with pytest.raises(BadInput, match="no model folder at hartmula"):
        plan_songs(tmp_path / "list.txt", str(tmp_path / "out"), "hartmula")


# --- what it takes

SONGS = [PlannedSong("a.wav", 1800.0, 1, "to make", "a"), PlannedSong("b.wav", 60.0, 2, "done", "b")]


def summarized(store, run, device, rate):
    summary = {"run_id": run, "real_time_factor": rate, "engine": {"device": device}}
    store.write(f"runs/{run}/summary.json", json.dumps(summary).encode())


def test_what_the_songs_to_make_take_is_told_with_its_basis(tmp_path, monkeypatch):
    monkeypatch.setattr(plan.shutil, "disk_usage", lambda path: SimpleNamespace(free=100e6))
    out = str(tmp_path / "out")
    model, disk, time = what_it_takes(SONGS, "rehearsal", out, Settings())
    assert model == "model rehearsal, which is on this machine"
    assert disk == "115.2 MB of WAV files; 100.0 MB are free there; free some space first"
    assert time == (
        "about 1 min 30 s, $0.01 at $0.40 an hour (MUSICGEN_MAX_PRICE); without loading; "
        "at 20 s of music per second (assumed for two CPU cores)"
    )
    *_, time = what_it_takes(SONGS, "facebook/musicgen-small", out, Settings())
    assert "at 1.5 s of music per second (an estimate for one T4, never measured" in time
    assert not (tmp_path / "out").exists()


def test_cost_is_at_the_hourly_cost_that_is_set_and_the_measured_speed(store):
    summarized(store, "2026", "cpu", 0.5)
    *_, time = what_it_takes(SONGS, "rehearsal", store.location, Settings(hourly_cost_usd=0.2))
    assert time == (
        "about 1 h 0 min, $0.20 at $0.20 an hour (HOURLY_COST_USD); without loading; "
        "at 0.5 s of music per second (as in run 2026 on cpu)"
    )


def test_model_that_cannot_run_is_refused_before_anything_is_planned(tmp_path):
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("calm ; 30 ; calm")
    with pytest.raises(BadInput, match="model facebook/musicgen-melody is not supported"):
        plan_songs(prompts, str(tmp_path / "out"), "facebook/musicgen-melody")


def test_prompt_that_musicgen_was_not_trained_on_is_named(tmp_path):
    long = PlannedSong("long_01234567.wav", 30, 1, TO_MAKE, "slow piano, " * 200)
    *_, warning = what_it_takes([*SONGS, long], "rehearsal", str(tmp_path), Settings())
    assert warning == (
        "warning: 1 prompt of more than some 512 tokens (long_01234567.wav), "
        "on which MusicGen was not trained; shorten them"
    )


def test_user_s_machine_needs_neither_numpy_nor_safetensors():
    """The light install, requirements/local.txt, has none."""
    without = "import sys; sys.modules.update(numpy=None, safetensors=None, torch=None);"
    done = subprocess.run([sys.executable, "-c", f"{without} import ops.plan, ops.generate, ops.release"])
    assert done.returncode == 0


def test_plan_for_a_model_that_sings_has_the_names_with_lyrics_and_advice(tmp_path, store, monkeypatch):
    monkeypatch.setattr(families, "HEARTMULA", replace(families.HEARTMULA, engine="worker.musicgen"))
    (tmp_path / "lyrics").mkdir()
    (tmp_path / "lyrics" / "sun.txt").write_text("[verse]\nla la\n")
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("pop, happy ; 60 ; sun\npop ; 60 ; fog\n")
    sun, fog = jobs.load(prompts, families.HEARTMULA)
    assert [song.song for song in plan_songs(prompts, store.location, "heartmula")] == [sun.song, fog.song]
    (advice,) = plan.advice(prompts, "heartmula")
    assert advice.startswith("1 song (fog) without lyrics")
    assert plan.advice(prompts, "heartmula", ["sun"]) == []


def test_songs_of_heartmula_take_its_own_memory_channels_and_rate(tmp_path, monkeypatch):
    monkeypatch.setenv("MUSICGEN_HEARTMULA_DIR", str(tmp_path / "none"))
    model, needed, disk, time = what_it_takes(SONGS, "heartmula", str(tmp_path), Settings())
    seconds = sum(song.duration_s for song in SONGS if song.state == TO_MAKE)
    assert model.startswith("model heartmula, 22.4 GB to download first: ")
    assert needed.startswith("it needs 16.3 GB of GPU memory (7.9 language model, 6.0 codec, ")
    assert disk.startswith(f"{seconds * 48_000 * 2 * 2 / 1e6:.1f} MB of WAV files")
    assert time.startswith(f"about {duration(seconds)}, ")
    assert "at 1 s of music per second (an estimate: its authors' figure for one song at a time" in time


def test_nothing_to_make_takes_nothing(tmp_path):
    assert what_it_takes(SONGS[1:], "rehearsal", str(tmp_path), Settings()) == []
