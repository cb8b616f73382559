"""The worker with HeartMuLa's rehearsal model, as real processes: from a list to songs, and killed."""

import io
import json
import signal
import sys
import wave

import pytest
from safetensors.numpy import load_file, save_file

from tests.worker.run.processes import entries, wavs
from worker.models import heartmula_tree, tiny_heartmula
from worker.songs import families, records
from worker.songs.checkpoint_file import from_bytes, tokens_key
from worker.songs.jobs import load
from worker.songs.report import REPORT_KEY
from worker.store.open import open_store

pytestmark = [
    pytest.mark.skipif(sys.platform == "win32", reason="forks"),
    pytest.mark.xdist_group("heartmula-worker"),
]

MODEL = "heartmula-rehearsal"
# The first is long enough for a point from which it is resumed: 256 positions.
THREE = "piano,happy ; 20 ; long\ncalm ; 2 ; calm\nrain ; 1.3 ; sung ; lyrics=words.txt\n"


@pytest.fixture(scope="module")
def prompts(tmp_path_factory):
    folder = tmp_path_factory.mktemp("list")
    (folder / "words.txt").write_text("[verse]\nLa la, the SUN\n", "utf-8")
    (folder / "prompts.txt").write_text(THREE, "utf-8")
    return folder / "prompts.txt"


def start(workers, prompts, place, *more, model=MODEL, **env):
    return workers.start(f"--prompts={prompts}", f"--model={model}", f"--output={place}", *more, **env)


@pytest.fixture(scope="module")
def undisturbed(workers, prompts, tmp_path_factory):
    """The output of a run without faults."""
    place = tmp_path_factory.mktemp("undisturbed")
    worker = start(workers, prompts, place, "--slots=3")
    assert worker.wait(120) == 0, worker.said
    return place


def test_list_becomes_stereo_songs_with_records_and_a_report(undisturbed, prompts):
    store, jobs = open_store(str(undisturbed)), load(prompts)
    rows = store.read(REPORT_KEY).decode().splitlines()[1:]
    assert [row.split(",")[0] for row in rows] == [job.song for job in jobs]
    for job in jobs:
        record = records.Record.from_json(store.read(records.record_key(job)))
        with wave.open(io.BytesIO(store.read(job.song))) as song:
            form = song.getnchannels(), song.getframerate(), song.getsampwidth(), song.getnframes()
        assert form == (2, 48_000, 2, round(job.seconds * 48_000))
        assert record.is_consistent and (record.model, record.seed) == (MODEL, job.seed)
        assert (record.window_s, record.quality["seams_s"]) == (0, [])


def test_killed_the_worker_resumes_the_song_and_makes_the_same_bytes(workers, prompts, undisturbed, tmp_path):
    killed = start(workers, prompts, tmp_path, "--slots=1", MUSICGEN_TEST_KILL_AT="after:checkpoints/")
    assert killed.wait(120) == -signal.SIGKILL
    (job, *_) = load(prompts)
    resumed = start(workers, prompts, tmp_path, "--slots=8", MUSICGEN_CLAIM_TTL_S="0")
    assert resumed.wait(120) == 0, resumed.said
    assert wavs(tmp_path) == wavs(undisturbed)
    store = open_store(str(tmp_path))
    assert json.loads(store.read(records.record_key(job)))["interruptions"] == 1
    assert not store.list("claims/") and not store.list("checkpoints/")


def test_lost_song_is_decoded_from_its_tokens_to_the_same_bytes(workers, prompts, undisturbed, tmp_path):
    """The codec's noise is that of the song's seed."""
    (_, calm, _), store = load(prompts), open_store(str(undisturbed))
    content = store.read(calm.song)
    store.delete(calm.song)
    worker = start(workers, prompts, undisturbed, "--from-tokens")
    assert worker.wait(120) == 0, worker.said
    assert store.read(calm.song) == content


def test_run_says_which_songs_do_not_fit_before_it_makes_the_others_and_what_suits_the_model_less(
    workers, tmp_path
):
    (tmp_path / "words.txt").write_text("[verse]\n" + "la " * 300, "utf-8")
    lines = "calm ; 600 ; over ; lyrics=words.txt\nrain on the sea in the dark ; 1 ; told ; seed=7\n"
    (tmp_path / "prompts.txt").write_text(lines, "utf-8")
    chosen = ("--guidance-scale=1.0", "--top-k=8197", "--commercial")
    worker = start(workers, tmp_path / "prompts.txt", tmp_path / "out", *chosen)
    assert worker.wait(120) == 1, worker.said
    over, told = load(tmp_path / "prompts.txt", families.HEARTMULA)
    said = worker.said.splitlines()
    n_prompt = len("calm" + over.lyrics_text) + 7  # <bos> <tag> </tag> <eos>, a reference, <bos> <eos>
    reason = (
        f"its words and its 600 s are {n_prompt + 7500 - 1 - 8192} positions over the model's 8,192: "
        "a word takes one or two, a second 12.5; shorten it"
    )
    assert said.index(f"failed {over.song}: {reason}") < said.index(f"start {told.song}: 1 s")
    assert f"FAILED {over.song}: {reason}" in said
    assert said[0].startswith("warning: 1 song (told) without lyrics: HeartMuLa is weak at instrumentals")
    assert said[1].startswith("warning: 1 song (told) with a sentence as PROMPT: HeartMuLa wants tags")
    assert said[2].startswith("warning: 1 song (over) with long lyrics: by their bytes they may not fit")
    store = open_store(str(tmp_path / "out"))
    record = records.Record.from_json(store.read(records.record_key(told)))
    assert (record.seed, record.sampling["guidance_scale"], record.sampling["top_k"]) == (7, 1.0, 8197)
    assert [json.loads(store.read(key))["state"] for key in store.list("runs/") if "summary" in key] == [
        "failed"
    ]


@pytest.fixture(scope="module")
def silent(tmp_path_factory):
    """A model whose audio is silence, whatever its tokens."""
    folder = tmp_path_factory.mktemp("models") / "silent"
    tiny_heartmula.build(folder)
    file = folder / heartmula_tree.CODEC / heartmula_tree.SINGLE
    weights = load_file(file)
    for name in weights:
        if name.startswith(tiny_heartmula.LAST) and not name.endswith("original1"):
            weights[name][:] = 0
    save_file(weights, file, {"format": "pt"})
    return folder


def test_silence_is_kept_and_flagged_in_the_record_and_whatever_a_run_says(
    workers, prompts, silent, tmp_path
):
    place, state = tmp_path / "out", tmp_path / "state"
    worker = start(workers, prompts, place, "--only=calm", model=silent, MUSICGEN_STATE_DIR=str(state))
    assert worker.wait(120) == 0, worker.said
    (_, calm, _), store = load(prompts), open_store(str(place))
    record = records.Record.from_json(store.read(records.record_key(calm)))
    assert (record.quality["flags"], record.quality["silence_s"], record.quality["lufs"]) == (
        ["silent"],
        2,
        None,
    )
    (key,) = (key for key in store.list("runs/") if key.endswith("summary.json"))
    assert json.loads(store.read(key))["flagged"] == {calm.song: ["silent"]}
    assert f"made {calm.song}: " in worker.said and "; flagged: silent\n" in worker.said
    assert f"FLAGGED {calm.song}: silent; listen to it\n" in worker.said
    assert entries(state, "made")[0]["flags"] == ["silent"]


def test_codec_settings_change_the_sound_are_in_the_record_and_are_one_outputs(
    workers, prompts, undisturbed, tmp_path
):
    one = ("--only=calm", "--codec-steps=2", "--codec-guidance=1")
    worker = start(workers, prompts, tmp_path, *one)
    assert worker.wait(120) == 0, worker.said
    store, (_, calm, _) = open_store(str(tmp_path)), load(prompts)
    assert store.read(calm.song) != open_store(str(undisturbed)).read(calm.song)
    tokens = [open_store(str(place)).read(tokens_key(calm.stem)) for place in (tmp_path, undisturbed)]
    assert from_bytes(tokens[0]).tokens.tolist() == from_bytes(tokens[1]).tokens.tolist()
    record = json.loads(store.read(records.record_key(calm)))
    assert record["solver"] == json.loads(store.read("place.json"))["solver"] == {"steps": 2, "guidance": 1.0}
    again = start(workers, prompts, tmp_path)
    assert again.wait(120) == 2
    assert (
        "is for songs made with codec steps 2, not 10; codec guidance 1.0, not 1.25; use those" in again.said
    )


@pytest.fixture(scope="module")
def ending(tmp_path_factory):
    """A model whose songs end at a token that is soon drawn."""
    folder = tmp_path_factory.mktemp("models") / "ending"
    tiny_heartmula.build(folder)
    config = folder / "gen_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"audio_eos_id": 63}))
    return folder


def test_songs_that_end_early_are_done_and_stay_done(workers, prompts, ending, tmp_path):
    worker = start(workers, prompts, tmp_path, model=ending)
    assert worker.wait(120) == 0, worker.said
    store, (long, *_) = open_store(str(tmp_path)), load(prompts)
    record = records.Record.from_json(store.read(records.record_key(long)))
    assert record.seconds == 20 and record.is_consistent
    assert 0 < record.n_samples < 20 * 48_000 and record.n_samples % 3840 == 0
    again = start(workers, prompts, tmp_path, "--verify", model=ending)
    assert again.wait(120) == 0
    assert "3 done already" in again.said
