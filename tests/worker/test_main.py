"""python -m worker: exit codes, one line for each error, and a whole run with the real engine."""

import csv
import io
import json
import os
import re
import signal
import subprocess
import sys
import wave
from pathlib import Path

import pytest

from tests.fakes.s3 import fresh_bucket
from tests.songs import finish, listed, tree
from tests.worker.observe.metered import Clock
from worker import __main__ as worker
from worker.host.load import busy
from worker.observe import console
from worker.observe.heartbeat import Heartbeat
from worker.observe.run_log import RunLog
from worker.observe.waiting import Waiting
from worker.run.progress import ProgressMeter
from worker.run.request import RunRequest
from worker.songs.summary import Price
from worker.store.open import open_store

ROOT = Path(__file__).parents[2]

# Tests that load the model share one process: importing torch takes seconds.
engine = pytest.mark.xdist_group("engine")
NO_EC2 = {"AWS_EC2_METADATA_DISABLED": "true"}
SHORT = ["quiet piano ; 1 ; piano", "drums; and bass ; 1.25 ; drums", "нежно, café ; 2 ; soft ; seed=7"]


@pytest.fixture
def prompts(tmp_path):
    """Writes prompts.txt with these lines."""

    def write(*lines):
        (tmp_path / "prompts.txt").write_text("\n".join(lines), "utf-8")
        return str(tmp_path / "prompts.txt")

    return write


@pytest.fixture
def run(capfd, monkeypatch):
    """The worker in this process: exit code, and what it said on stderr."""
    monkeypatch.setattr(signal, "signal", lambda *_: None)  # pytest keeps its own handlers

    def call(*arguments, **env):
        code = worker.main([str(argument) for argument in arguments], NO_EC2 | env)
        return code, capfd.readouterr().err

    return call


def one_error(stderr, says):
    """stderr ends with one error line that says this and what to do; there is no traceback."""
    assert "Traceback" not in stderr
    errors = [line for line in stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1 and stderr.splitlines()[-1] == errors[0]
    assert says in errors[0] and "; " in errors[0]


# --- bad input: exit code 2, one line, and nothing is written


def test_every_wrong_line_is_an_error_line_with_its_number(prompts, tmp_path, capfd):
    wrong = prompts("fine ; 30 ; fine", "no seconds", "", "too short ; 0 ; zero", "up ; 3 ; ../up")
    out = str(tmp_path / "out")
    assert worker.main(["--prompts", wrong, "--output", out, "--model", "rehearsal"], NO_EC2) == 2
    said = capfd.readouterr()
    lines = said.err.splitlines()
    assert [line.startswith(f"error: {wrong}:{n}: ") for line, n in zip(lines, (2, 4, 5), strict=True)]
    assert said.out == "" and not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("arguments", "env", "says"),
    [
        (["--prompts", "absent.txt"], {}, "no prompts file at absent.txt"),
        (["--only", "nobody"], {}, "no song named nobody in the prompts file; it has piano"),
        (["--output", "s3://no_bucket"], {}, "is not a bucket name"),
        (["--output", "ftp://host/x"], {}, "cannot store songs at ftp://host/x"),
        (["--output", "prompts.txt"], {}, "prompts.txt is a file"),
        (["--hourly-cost", "much"], {}, "hourly cost 'much' is not a number"),
        (["--hourly-cost", "-1"], {}, "hourly cost '-1' is not a number of 0 or more"),
        (["--fade-ms", "1e9"], {}, "a fade of 1e+09 ms is too long; use at most 10,000 ms, like 20"),
        ([], {"HOURLY_COST_USD": "nan"}, "hourly cost 'nan'"),
        (["--temperature", "0"], {}, "temperature must be over 0"),
        (["--temperature", "nan"], {}, "temperature must be over 0"),
        (["--guidance-scale", "inf"], {}, "guidance scale must be 0 or more"),
        (["--top-k", "-1"], {}, "top k must be 0 or more"),
        (["--stride", "30"], {}, "--stride must be from 1 to under 30"),
        (["--stride", "nan"], {}, "--stride must be from 1 to under 30"),
        (["--codec-steps", "20"], {}, "--codec-steps and --codec-guidance are for HeartMuLa; leave them out"),
        (["--model", "facebook/musicgen-small", "--commercial"], {}, "forbids commercial use"),
        (["--model", "someone/tune"], {"MUSICGEN_COMMERCIAL": "1"}, "not known to allow commercial use"),
        ([], {"MUSICGEN_COMMERCIAL": "yes"}, "MUSICGEN_COMMERCIAL=yes is neither 0 nor 1; correct it"),
        (["--top-k", "2049"], {}, "top k 2,049 is over MusicGen's 2,048 tokens; write 0 to take all"),
        (["--run-id", "../up"], {}, "run id '../up' names no folder"),
        (["--run-id", ""], {}, "run id '' names no folder"),
    ],
)
def test_bad_input_is_one_line_and_2(run, prompts, tmp_path, monkeypatch, arguments, env, says):
    prompts(*SHORT)
    monkeypatch.chdir(tmp_path)
    code, stderr = run("--output", "out", "--model", "rehearsal", *arguments, **env)
    assert code == 2
    one_error(stderr, says)
    assert list(tree(tmp_path)) == ["prompts.txt"]


def test_misspelt_setting_is_a_warning_before_the_run(run, prompts, tmp_path):
    code, err = run("--prompts", prompts(), "--output", tmp_path / "out", MUSICGEN_SLOT="2")
    assert code == 2
    assert err.startswith("warning: environment: there is no setting MUSICGEN_SLOT; write MUSICGEN_SLOTS, ")


def test_text_where_a_number_belongs_is_a_usage_error(run, prompts, capfd):
    with pytest.raises(SystemExit) as caught:
        run("--prompts", prompts(*SHORT), "--top-k", "many")
    assert caught.value.code == 2
    assert "--top-k" in capfd.readouterr().err


def test_missing_bucket_is_named(run, prompts, s3_url):
    code, stderr = run("--prompts", prompts(*SHORT), MUSICGEN_S3_BUCKET="no-such-bucket-here")
    assert code == 2
    one_error(stderr, "there is no bucket no-such-bucket-here")


def test_missing_credentials_are_named(run, prompts, s3_url, monkeypatch):
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    code, stderr = run("--prompts", prompts(*SHORT), "--output", "s3://some-bucket/songs")
    assert code == 2
    one_error(stderr, "no AWS credentials for bucket some-bucket")


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda wav, record: wav.write_bytes(b""), "it has 0 bytes and its record says"),
        (lambda wav, record: record.write_bytes(record.read_bytes()[:99]), "its record is damaged"),
        (lambda wav, record: record.unlink(), "it has no record"),
    ],
    ids=["zero-byte WAV", "truncated record", "no record"],
)
def test_song_that_cannot_be_vouched_for_is_named_and_1(run, all_done, capfd, change, says):
    wav = next(iter(sorted(Path(all_done[3]).glob("*.wav"))))
    change(wav, wav.parent / "records" / f"{wav.stem}.json")
    before = wav.read_bytes()
    assert worker.main([str(argument) for argument in all_done], NO_EC2) == 1
    said = capfd.readouterr().out
    assert f"MISSING {wav.name}: {says}" in said and "rename or move the file, then run again" in said
    assert wav.read_bytes() == before


def test_wrong_content_is_found_with_verify(run, all_done, capfd):
    wav = next(iter(sorted(Path(all_done[3]).glob("*.wav"))))
    wav.write_bytes(bytes(wav.stat().st_size))
    assert worker.main([str(argument) for argument in all_done] + ["--verify"], NO_EC2) == 1
    assert f"MISSING {wav.name}: its content is not what its record says" in capfd.readouterr().out


def test_other_model_is_refused(run, all_done):
    code, stderr = run(*all_done[:-1], "facebook/musicgen-small")
    assert code == 2
    one_error(stderr, "holds songs made by rehearsal, not facebook/musicgen-small; give")


# --- nothing to make


@pytest.fixture
def all_done(tmp_path, prompts):
    """Arguments of a run whose songs are all there."""
    for job in listed(*SHORT):
        finish(open_store(str(tmp_path / "out")), job)
    return ["--prompts", prompts(*SHORT), "--output", str(tmp_path / "out"), "--model", "rehearsal"]


def test_nothing_to_make_is_0_and_says_so(all_done, capfd):
    assert worker.main(all_done, NO_EC2) == 0
    out = capfd.readouterr().out
    assert out.startswith("nothing to make\n")
    assert "3 done already" in out


@pytest.mark.skipif(os.name == "nt", reason="needs POSIX signals")
def test_ctrl_c_while_python_is_still_importing_is_no_traceback(tmp_path):
    (tmp_path / "rich.py").write_text("import time; print('importing', flush=True); time.sleep(600)")
    env = {**os.environ, "PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}"}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen([sys.executable, "-m", "worker"], cwd=tmp_path, env=env, **pipes) as process:
        assert process.stdout.readline() == "importing\n"
        process.send_signal(signal.SIGINT)
        assert process.communicate(timeout=120)[1] == ""
    assert process.returncode == -signal.SIGINT


NO_TORCH = """
import sys
from worker.__main__ import main
prompts, out = sys.argv[1:]
ask = ["--prompts", prompts, "--output"]
refused = main([*ask, out, "--model", "facebook/musicgen-small"])
not_writable = main([*ask, prompts + "/out", "--model", "rehearsal"])
done = main([*ask, out, "--model", "rehearsal"])
print(refused, not_writable, done, "torch" in sys.modules)
"""


def test_torch_is_not_loaded_where_no_song_can_be_made(all_done):
    command = [sys.executable, "-c", NO_TORCH, all_done[1], all_done[3]]
    env = {**os.environ, "PYTHONPATH": str(ROOT)} | NO_EC2
    done = subprocess.run(command, env=env, capture_output=True, text=True, encoding="utf-8")
    assert done.stdout.splitlines()[-1] == "2 1 0 False", done.stderr


@pytest.mark.skipif(os.name == "nt", reason="needs /dev/full")
def test_streams_that_take_nothing_change_neither_run_nor_exit_code(all_done, tmp_path):
    reader, closed = os.pipe()
    os.close(reader)
    with Path("/dev/full").open("wb") as full:
        command = [sys.executable, "-m", "worker", *all_done, "--run-id", "unheard"]
        env = {**os.environ, "PYTHONPATH": str(ROOT)} | NO_EC2
        assert subprocess.run(command, cwd=tmp_path, env=env, stdout=closed, stderr=full).returncode == 0
    os.close(closed)
    summary = json.loads((tmp_path / "out/runs/unheard/summary.json").read_text())
    assert summary["state"] == "done"


def test_settings_of_the_environment_are_the_defaults(run, all_done, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    settings = {"MUSICGEN_MODEL": "rehearsal", "MUSICGEN_OUTPUT": "out", "HOURLY_COST_USD": "1.5"}
    code, _ = run(RUN_ID="20260102T030405Z-abcd", **settings)
    assert code == 0
    summary = json.loads((tmp_path / "out/runs/20260102T030405Z-abcd/summary.json").read_text())
    assert summary["price"]["hourly_usd"] == 1.5


def test_machine_without_a_price_counts_0_and_says_so(run, all_done, tmp_path):
    assert worker.main([*all_done, "--run-id", "free"], NO_EC2) == 0
    price = json.loads((tmp_path / "out/runs/free/summary.json").read_text())["price"]
    assert price["hourly_usd"] == 0 and price["basis"].startswith("your own machine, counted as 0")


@pytest.mark.skipif(os.name == "nt", reason="Windows says it otherwise")
def test_output_that_is_not_writable_is_one_line(run, prompts, tmp_path):
    (tmp_path / "file").write_bytes(b"")
    out = tmp_path / "file/out"
    code, stderr = run("--prompts", prompts(*SHORT), "--output", out, "--model", "rehearsal")
    assert code == 1
    one_error(stderr, "a file stands where")


def test_ctrl_c_during_the_last_words_leaves_no_status_that_looks_alive(tmp_path, monkeypatch):
    def stopped(within_s):
        raise KeyboardInterrupt

    store = open_store(str(tmp_path / "out"))
    request = RunRequest([], [], "m", Price(0.4, "as set"), "run-1")
    run_log, heartbeat = (
        RunLog(tmp_path, store, "run-1"),
        Heartbeat(tmp_path, store, request, ProgressMeter()),
    )
    monkeypatch.setattr(run_log, "close", stopped)
    with pytest.raises(KeyboardInterrupt), worker.ending_reported(run_log, heartbeat, 5.0):
        pass
    assert json.loads((tmp_path / "status.json").read_text())["exit_code"] == 0


# --- models that cannot be loaded


def songs_and_records(folder):
    """All but the log and the status: these tell why a run failed, wherever it was."""
    return {key: content for key, content in tree(folder).items() if not key.startswith("runs/")}


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory):
    """The rehearsal model as a folder on disk."""
    from worker.musicgen import rehearsal

    folder = tmp_path_factory.mktemp("models") / "tiny"
    rehearsal.build(folder)
    return folder


@pytest.fixture
def broken(model_folder, tmp_path):
    """A copy of the model folder in which files can be spoilt."""
    folder = tmp_path / "broken"
    folder.mkdir()
    for path in model_folder.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    return folder


@engine
def test_unknown_model_is_one_line_and_nothing_is_written(run, prompts, tmp_path):
    code, stderr = run("--prompts", prompts(*SHORT), "--output", tmp_path / "out", "--model", "./nowhere")
    assert code == 2
    one_error(
        stderr, "no model folder at ./nowhere; give a folder, a Hugging Face id, heartmula or rehearsal"
    )
    assert songs_and_records(tmp_path / "out") == {}


def test_heartmula_that_is_not_there_is_one_line_before_torch_is_loaded(run, prompts, tmp_path):
    given = ["--prompts", prompts(*SHORT), "--output", tmp_path / "out", "--model", "heartmula"]
    code, stderr = run(*given, MUSICGEN_HEARTMULA_DIR=str(tmp_path / "none"))
    assert code == 2
    one_error(stderr, "there is no folder")
    assert "loading PyTorch" not in stderr
    assert songs_and_records(tmp_path / "out") == {}


@engine
def test_model_that_cannot_be_fetched_is_one_line(run, prompts, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    code, stderr = run("--prompts", prompts(*SHORT), "--output", tmp_path / "out", "--model", "nobody/none")
    assert code == 2
    one_error(stderr, "model nobody/none is not on this machine and the hub cannot be reached")
    assert songs_and_records(tmp_path / "out") == {}


@engine
def test_truncated_weights_are_one_line(run, prompts, broken, tmp_path):
    weights = broken / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    code, stderr = run("--prompts", prompts(*SHORT), "--output", tmp_path / "out", "--model", broken)
    assert code == 2
    assert "loading PyTorch and the model " in stderr  # before half a minute of silence
    one_error(stderr, "model.safetensors is truncated or damaged; fetch the model again")
    assert songs_and_records(tmp_path / "out") == {}


@engine
@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "tokenizer.json"])
def test_missing_model_file_is_named(run, prompts, broken, tmp_path, name, monkeypatch):
    # Without a tokenizer that of the text encoder is looked for.
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    (broken / name).unlink()
    code, stderr = run("--prompts", prompts(*SHORT), "--output", tmp_path / "out", "--model", broken)
    assert code == 2
    one_error(stderr, name)
    assert songs_and_records(tmp_path / "out") == {}


# --- the whole main job


@pytest.fixture(scope="module")
def loaded_once():
    """The rehearsal model is loaded for the first run, and at hand for the others."""
    import torch

    from worker.musicgen import pretrained

    n_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    loaded, load = pretrained.load("rehearsal"), pretrained.load
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pretrained, "load", lambda model: loaded if model == "rehearsal" else load(model))
        yield
    torch.set_num_threads(n_threads)


@pytest.fixture(scope="module")
def album_run(tmp_path_factory, loaded_once):
    """A run of SHORT on the rehearsal model into a folder: that folder, and what was printed."""
    folder, printed = tmp_path_factory.mktemp("album"), io.StringIO()
    (folder / "prompts.txt").write_text("\n".join(SHORT), "utf-8")
    arguments = ["--prompts", folder / "prompts.txt", "--output", folder / "out", "--model", "rehearsal"]
    arguments += ["--hourly-cost", "0.40", "--price-basis", "an example, no machine was rented"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(signal, "signal", lambda *_: None)
        patch.setattr(console, "_LINE_EVERY_S", 0)
        patch.setattr(sys, "stdout", printed)
        patch.setattr(sys, "stderr", printed)
        assert worker.main([*map(str, arguments), "--run-id", "album"], NO_EC2) == 0
    return folder / "out", printed.getvalue()


@pytest.fixture(scope="module")
def album(album_run):
    return album_run[0]


def shape(line):
    """A line without its names and amounts."""
    line = re.sub(r"\w+_[0-9a-f]{8}\.wav", "SONG", line)
    line = re.sub(r"(?<=are in ).*", "FOLDER", re.sub(r"<?\$[\d.]+", "USD", line))
    line = re.sub(r"\d[\d.,/]*( h| min)?( s)?( \d+ (s|min))?( of \d[\d.]*)?|\?", "N", line)
    return " ".join(line.replace("songs", "song").split())


@engine
def test_transcript_of_the_readme_has_the_lines_of_a_run(album_run):
    readme = (ROOT / "README.md").read_text("utf-8")
    (transcript,) = re.findall(r"```text\n(rehearsing .*?)```", readme, re.S)
    first, *lines = [line for line in transcript.splitlines() if line != "..."]
    assert first in (ROOT / "ops" / "demo.py").read_text("utf-8")
    clock, said = Clock(), album_run[1].splitlines()
    waiting = Waiting(said.append, clock, lambda: busy(7.0, 2))  # of a slow start, which this was not
    waiting.begin(next(line for line in said if line.startswith("loading ")))
    clock.now_s = 10
    waiting.look()
    printed = {shape(line) for line in said}
    assert [line for line in lines if shape(line) not in printed] == []


@engine
def test_every_song_has_its_name_and_exactly_its_length(album):
    for job in listed(*SHORT):
        with wave.open(str(album / job.song), "rb") as song:
            assert (song.getframerate(), song.getnchannels(), song.getsampwidth()) == (32_000, 1, 2)
            assert song.getnframes() == round(job.seconds * 32_000)


@engine
def test_songs_are_not_silence_and_differ(album):
    songs = [(album / job.song).read_bytes()[44:32_000] for job in listed(*SHORT)]
    assert len(set(songs)) == 3
    assert all(len(set(song)) > 50 for song in songs)


@engine
def test_report_has_a_row_for_each_song_that_add_up_to_the_run(album):
    with (album / "cost_report.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["s3_filename"] for row in rows] == [job.song for job in listed(*SHORT)]
    assert [row["prompt"] for row in rows] == ["quiet piano", "drums; and bass", "нежно, café"]
    summary = json.loads((album / "runs/album/summary.json").read_text("utf-8"))
    assert sum(float(row["generation_time_s"]) for row in rows) == pytest.approx(
        summary["generation_s"], abs=0.1
    )
    for row in rows:
        cost = float(row["generation_time_s"]) / 3600 * 0.40
        assert float(row["estimated_cost_usd"]) == pytest.approx(cost, abs=1e-6)


@engine
def test_songs_in_a_bucket_are_the_bytes_of_those_in_a_folder(album, run, prompts, s3_url):
    place = f"s3://{fresh_bucket(s3_url)}/album"
    code, _ = run("--prompts", prompts(*SHORT), "--output", place, "--model", "rehearsal")
    assert code == 0
    store = open_store(place)
    for job in listed(*SHORT):
        assert store.read(job.song) == (album / job.song).read_bytes()


@engine
def test_songs_do_not_depend_on_what_else_is_in_the_list(album, run, prompts, tmp_path):
    code, _ = run(
        "--prompts", prompts(*SHORT), "--output", tmp_path / "out", "--model", "rehearsal", "--only", "soft"
    )
    soft = listed(*SHORT)[2].song
    assert code == 0
    assert (tmp_path / "out" / soft).read_bytes() == (album / soft).read_bytes()


@engine
def test_model_folder_makes_what_the_built_in_model_makes(album, run, prompts, model_folder, tmp_path):
    lines = prompts(SHORT[0])
    code, _ = run("--prompts", lines, "--output", tmp_path / "out", "--model", model_folder)
    piano = listed(SHORT[0])[0].song
    assert code == 0
    assert (tmp_path / "out" / piano).read_bytes() == (album / piano).read_bytes()
    record = json.loads((tmp_path / "out/records" / piano.replace(".wav", ".json")).read_text())
    assert record["model"] == "tiny"
