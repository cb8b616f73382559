"""`inv` as a user meets it: data on stdout, one-line errors."""

import json
import os
import re
import struct
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture
def inv(tmp_path, commands):
    """The real `inv` with our tasks, in a folder of the user's without settings, without a terminal."""
    ours = re.compile("AWS_|MUSICGEN_|RUNPOD_|HOURLY_COST_USD|RUN_ID")

    def run(*arguments):
        env = {name: value for name, value in os.environ.items() if not ours.match(name)}
        done = commands("inv", "--search-root", str(ROOT), *arguments, cwd=tmp_path, env=env)
        out, err = done.stdout.decode(), done.stderr.decode()
        return subprocess.CompletedProcess(arguments, done.returncode, out, err)

    return run


# --- inv demo


def test_demo_with_a_model_that_is_no_rehearsal_is_one_line_and_2(inv):
    done = inv("demo", "--model", "facebook/musicgen-small")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == (
        "error: the demo is for tiny models, not 'facebook/musicgen-small'; write --model rehearsal or "
        "--model heartmula-rehearsal, or for music: inv generate --model MODEL\n"
    )


# --- inv check


def test_check_json_is_json_on_stdout_and_nothing_else(inv, tmp_path):
    (tmp_path / "prompts.txt").write_text("тихо; calm ; 30 ; calm\n", "utf-8")
    done = inv("check", "--json")
    (row,) = json.loads(done.stdout)
    assert (row["prompt"], row["duration_s"], row["state"]) == ("тихо; calm", 30.0, "to make")
    assert done.returncode == 0
    first, *takes = done.stderr.splitlines()
    assert first == "1 of 1 song to make, 30 s of audio, into out/songs; 0 done already"
    assert [line.split(" ", 1)[0] for line in takes] == ["model", "it", "1.9", "about"]


def test_check_of_a_wrong_list_is_2_with_every_line_and_its_number(inv, tmp_path):
    (tmp_path / "prompts.txt").write_text("calm ; 30 ; calm\nnothing else\n\nlong ; 1e9 ; long\n")
    done = inv("check")
    assert (done.returncode, done.stdout) == (2, "")
    first, second = done.stderr.splitlines()
    assert first.startswith("error: prompts.txt:2: ") and second.startswith("error: prompts.txt:4: ")


@pytest.mark.parametrize("command", [["check"], ["generate"]])
def test_weights_that_forbid_commercial_use_are_one_line_and_2(inv, tmp_path, command):
    (tmp_path / "prompts.txt").write_text("calm ; 30 ; calm\n")
    done = inv(*command, "--commercial", "--model", "facebook/musicgen-small")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(
        "error: the weights of facebook/musicgen-small have the licence CC-BY-NC 4.0"
    )
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize("model", ["rehearsal", "heartmula", "heartmula-rehearsal"])
def test_weights_that_allow_commercial_use_are_checked_like_any(inv, tmp_path, model):
    (tmp_path / "prompts.txt").write_text("calm ; 30 ; calm\n")
    (tmp_path / ".env").write_text("MUSICGEN_COMMERCIAL=1\n")
    assert inv("check", "--model", model).returncode == 0


# --- songs with words


WORDS = "lyrics=words.txt"


@pytest.mark.parametrize(
    ("words", "model", "says"),
    [
        (b"la la", "rehearsal", "MusicGen cannot sing; remove lyrics= from sung, or use a model that sings"),
        (None, "heartmula", "prompts.txt:1: no lyrics file at words.txt; check the path"),
        (b"", "heartmula", "prompts.txt:1: the lyrics file words.txt is empty; write the words, or at least"),
        (b"caf\xe9", "heartmula", "prompts.txt:1: the lyrics in words.txt are not UTF-8; save the file with"),
        (
            b"la " * 30_000,
            "heartmula",
            "prompts.txt:1: tags and lyrics of 90,014 bytes do not fit: 60 s leave 7,443 of HeartMuLa's "
            "8,192 positions, at least 3,814 too few; shorten them or SECONDS",
        ),
    ],
)
def test_words_that_cannot_be_sung_are_one_line_and_2(inv, tmp_path, words, model, says):
    if words is not None:
        (tmp_path / "words.txt").write_bytes(words)
    (tmp_path / "prompts.txt").write_text(f"pop ; 60 ; sung ; {WORDS}\n")
    done = inv("check", "--model", model)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(f"error: {says}") and done.stderr.count("\n") == 1


def test_sentence_for_a_model_that_wants_tags_is_a_warning(inv, tmp_path):
    (tmp_path / "words.txt").write_text("[verse]\nla la\n")
    (tmp_path / "prompts.txt").write_text(f"a sad song about rain on a monday ; 60 ; rain ; {WORDS}\n")
    done = inv("check", "--model", "heartmula")
    assert done.returncode == 0
    assert done.stderr.splitlines()[-1] == (
        "warning: 1 song (rain) with a sentence as PROMPT: HeartMuLa wants tags separated by commas, "
        "like: piano, happy, female vocal"
    )


# --- what check shows


def test_check_takes_a_spreadsheet_s_list(inv, tmp_path):
    (tmp_path / "songs.csv").write_text("prompt,seconds,name\ncalm,0:30,calm\n", "utf-8-sig")
    (tmp_path / "prompts.txt").write_text("calm ; 30 ; calm\n")
    table, plain = inv("check", "--json", "--prompts", "songs.csv"), inv("check", "--json")
    assert (table.returncode, table.stdout) == (0, plain.stdout)


def test_check_without_a_list_says_what_to_do(inv):
    done = inv("check")
    assert done.returncode == 2
    assert done.stderr == "error: no prompts file at prompts.txt; check the path\n"


def test_check_shows_the_repository_s_own_list(inv):
    done = inv("check", "--prompts", str(ROOT / "prompts.txt"))
    assert done.returncode == 0
    assert "dance_test_79fae998.wav" in done.stdout


# --- misspelt settings


def test_misspelt_price_limit_ends_what_spends_money_before_anything_else(inv, tmp_path):
    (tmp_path / ".env").write_text("MUSICGEN_MAX_PRCE=0.10\nno assignment\n")
    for command in (["launch", "--yes"], ["image", "--yes"], ["setup", "--dry-run"]):
        done = inv(*command)
        assert (done.returncode, done.stdout) == (2, "")
        first, second = done.stderr.splitlines()
        assert first.startswith(
            "error: .env:1: there is no setting MUSICGEN_MAX_PRCE; write MUSICGEN_MAX_PRICE"
        )
        assert second.startswith("error: .env:2: not NAME=value, so it is skipped; ")


def test_misspelt_setting_is_a_warning_elsewhere(inv, tmp_path):
    (tmp_path / "prompts.txt").write_text("calm ; 30 ; calm\n")
    (tmp_path / ".env").write_text("MUSICGEN_MAX_PRCE=0.10\n")
    done = inv("check")
    assert done.returncode == 0
    assert done.stderr.startswith("warning: .env:1: there is no setting MUSICGEN_MAX_PRCE; ")
    assert done.stderr.count("warning") == 1


# --- mistyped commands


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["chekc"], "there is no command 'chekc'; did you mean check?"),
        (["terminate-al"], "there is no command 'terminate-al'; did you mean terminate-all?"),
        (["zzz"], "there is no command 'zzz'; `inv --list` shows all commands"),
        (["check", "--onyl", "x"], "`inv check` has no --onyl; did you mean --only?"),
        (["check", "--prompts"], "`inv check` has --prompts without a value; write --prompts=VALUE"),
        (["check", "--only"], "`inv check` has --only without a value; write --only=VALUE"),
        (["check", "--only", "--json"], "`inv check` has --only without a value; write --only=VALUE"),
        (["--lst"], "`inv` has no --lst; did you mean --list?"),
        (["check", "--model", "a", "--model", "b"], "`inv check` has --model twice; give it once"),
        (["logs", "--lines", "x"], "'x' is not a whole number; correct the flag's value"),
    ],
)
def test_mistyped_command_is_one_line_with_the_nearest(inv, words, says):
    done = inv(*words)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith(f"error: {says}") and done.stderr.count("\n") == 1


def test_inv_alone_shows_the_commands(inv):
    done = inv()
    assert done.returncode == 0 and "\n  generate  " in done.stdout and "--help COMMAND" in done.stdout


@pytest.mark.parametrize("words", [["zzz"], ["check", "--help"]])
def test_command_that_is_shown_can_be_pasted(inv, words, monkeypatch):
    monkeypatch.delenv("VIRTUAL_ENV")
    done = inv(*words)
    shown = re.findall(r"(?:Example: |`)(.*)\binv (?:check|--list)", done.stdout + done.stderr)
    assert shown == ["uv run "]


@pytest.mark.skipif(os.name == "nt", reason="needs a pseudo-terminal")
def test_help_fits_a_narrow_terminal():
    import fcntl
    import pty
    import termios

    ours, screen = pty.openpty()
    fcntl.ioctl(screen, termios.TIOCSWINSZ, struct.pack("HHHH", 50, 60, 0, 0))
    env = {name: value for name, value in os.environ.items() if name != "COLUMNS"}
    command = [sys.executable, "-m", "invoke", "--help", "generate"]
    with subprocess.Popen(command, cwd=ROOT, env=env, stdout=screen) as process:
        os.close(screen)
        shown = b""
        with suppress(OSError):  # EIO: the other end is closed
            while block := os.read(ours, 4096):
                shown += block
    os.close(ours)
    lines = shown.decode().splitlines()
    assert process.returncode == 0 and len(lines) > 20
    assert [line for line in lines if len(line) > 60] == []


def test_help_is_a_short_flag_of_every_task(inv):
    done = inv("generate", "-h")
    assert done.returncode == 0 and "--temperature=STRING" in done.stdout


@pytest.mark.parametrize("task", ["generate", "launch"])
def test_wrong_sampling_is_refused(inv, tmp_path, task):
    (tmp_path / "prompts.txt").write_text("calm ; 30 ; calm\n")
    (tmp_path / ".env").write_text("MUSICGEN_S3_BUCKET=some-bucket\n")
    done = inv(task, "--temperature", "0")
    assert done.returncode == 2
    assert done.stderr == "error: temperature must be over 0; MusicGen's default is 1\n"


# --- inv fetch


def test_fetch_from_an_empty_place_is_2(inv, tmp_path):
    done = inv("fetch", "--source", "nowhere", "--to", "here")
    assert done.returncode == 2
    assert done.stderr.startswith("error: there is nothing in nowhere; ")
    assert list(tmp_path.iterdir()) == []
