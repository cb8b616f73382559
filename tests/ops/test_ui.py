"""ops/ui.py: rows on stdout, notes on stderr, errors as one line, on any console."""

import io
import json
import logging
import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
from invoke import Exit

from ops import ui
from worker.errors import Refused

ROOT = Path(__file__).parents[2]

TASKS = '''
"""Tasks that go wrong in each way."""
from dataclasses import dataclass
from invoke import task
from ops import ui
from worker.errors import BadInput, Refused

@task(help={"times": "How often"})
@ui.one_line_errors
def rows(c, times=1, json=False):
    """Print rows."""
    ui.say("looking …")
    ui.show([{"song": "r\u0101ga \u2192 \U0001f3b5", "length_s": 200}] * times, json=json)

@task
@ui.one_line_errors
def bad(c):
    """Fail with two errors."""
    raise BadInput("p.txt:1: \u2192 wrong; fix it\\np.txt:2: wrong too; fix it")

@task
@ui.one_line_errors
def refuse(c):
    """Refuse."""
    raise Refused("no")

@task
@ui.one_line_errors
def stop(c):
    """Behave as if Ctrl-C was pressed."""
    raise KeyboardInterrupt
'''


@pytest.fixture
def inv(tmp_path, commands):
    """Run a task of TASKS with the real Invoke, without a terminal."""
    (tmp_path / "tasks.py").write_text(TASKS, "utf-8")

    def run(*args, **env):
        return commands("inv", *args, cwd=tmp_path, env=os.environ | env)

    return run


# --- errors


def test_each_line_of_a_user_error_is_one_error_line(inv):
    done = inv("bad", PYTHONIOENCODING="utf-8")
    assert done.stderr.decode().splitlines() == [
        "error: p.txt:1: → wrong; fix it",
        "error: p.txt:2: wrong too; fix it",
    ]
    assert (done.returncode, done.stdout) == (2, b"")


def test_error_keeps_its_own_exit_code(inv):
    assert inv("refuse").returncode == 3


def test_ctrl_c_is_one_line_and_75(inv):
    done = inv("stop")
    assert (done.returncode, done.stdout) == (75, b"")
    assert done.stderr.decode().splitlines() == ["interrupted; run the same command again to resume"]


@pytest.mark.skipif(os.name == "nt", reason="a closed pipe is another error on Windows")
@pytest.mark.parametrize("n_rows", ["1", "500"])  # met when flushing, and in the middle of a table
def test_reader_that_goes_away_is_no_traceback(tmp_path, inv, n_rows):
    inv("--list")  # writes tasks.py
    read_end, write_end = os.pipe()
    os.close(read_end)
    command = [sys.executable, "-m", "invoke", "rows", "--times", n_rows]
    env = os.environ | {"PYTHONPATH": str(ROOT), "PYTHONIOENCODING": "utf-8"}
    done = subprocess.run(command, cwd=tmp_path, env=env, stdout=write_end, stderr=subprocess.PIPE)
    os.close(write_end)
    assert done.stderr.decode().splitlines() == ["looking …"]
    assert done.returncode == 1


def test_other_exceptions_are_bugs_and_keep_their_traceback():
    @ui.one_line_errors
    def task():
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        task()


def test_invoke_sees_the_flags_of_a_wrapped_task(inv):
    assert "How often" in inv("rows", "--help").stdout.decode()


# --- consoles


@pytest.mark.parametrize("encoding", ["cp1252", "ascii", "utf-8"])
@pytest.mark.parametrize("args", [["rows"], ["rows", "--json"], ["bad"]])
def test_no_console_encoding_is_a_traceback(inv, encoding, args):
    done = inv(*args, PYTHONIOENCODING=encoding)
    assert done.returncode == (2 if args == ["bad"] else 0)
    assert b"Traceback" not in done.stderr
    assert b"Error" not in done.stderr


def test_json_is_exact_even_on_cp1252(inv):
    done = inv("rows", "--json", PYTHONIOENCODING="cp1252")
    assert json.loads(done.stdout) == [{"song": "rāga → 🎵", "length_s": 200}]


# --- rows


@dataclass
class Song:
    song: str
    length_s: float
    cost_usd: float | None
    done: bool


SONGS = [Song("rain", 200.4, 0.0123, True), Song("[bold]sun[/bold]", 5, None, False)]


def test_table_shows_units_and_takes_text_literally(capsys):
    ui.show(SONGS)
    out, err = capsys.readouterr()
    for shown in ("length", "3 min 20 s", "$0.0123", "yes", "[bold]sun[/bold]", "5 s", "no"):
        assert shown in out
    assert "length_s" not in out
    assert err == ""


def test_json_has_plain_numbers_and_names(capsys):
    ui.show(SONGS, json=True)
    out, err = capsys.readouterr()
    assert json.loads(out)[0] == {"song": "rain", "length_s": 200.4, "cost_usd": 0.0123, "done": True}
    assert err == ""


def test_no_rows_is_a_note_and_an_empty_json_list(capsys):
    ui.show([])
    assert capsys.readouterr() == ("", "nothing to show\n")
    ui.show([], json=True)
    assert capsys.readouterr() == ("[]\n", "")


def test_rows_of_unequal_keys_share_one_table(capsys):
    ui.show([{"a": 1}, {"b": "x"}])
    out = capsys.readouterr().out
    assert [line for line in out.splitlines() if "a" in line and "b" in line]


def test_long_cells_are_whole_when_there_is_no_terminal(capsys):
    ui.show([{"prompt": "p" * 500, "song": "s" * 300}])
    assert "p" * 500 in capsys.readouterr().out


def test_escape_sequences_do_not_reach_the_terminal(capsys):
    ui.show([{"song": "a\x1b[2Jb\nc"}])
    out = capsys.readouterr().out
    assert "\x1b" not in out
    assert "a [2Jb c" in out


# --- on a terminal


class Terminal(io.StringIO):
    def isatty(self):
        return True


def shown(monkeypatch, width, show):
    """The lines that `show` prints on a terminal of this width."""
    screen = Terminal()
    monkeypatch.setenv("COLUMNS", str(width))
    monkeypatch.setattr(sys, "stdout", screen)
    monkeypatch.setattr(sys, "stderr", screen)
    show()
    return re.sub(r"\x1b\[[0-9;]*m", "", screen.getvalue()).splitlines()


ROWS = [
    {
        "song": "cinematic_short_0c58e4f5.wav",
        "length_s": 45,
        "prompt": "cinematic orchestral music with drums",
    },
    {"song": "rain_8e6b7959.wav", "length_s": 200, "prompt": "slow piano; rain on a window"},
]


@pytest.mark.parametrize("width", [200, 80, 60, 40])
def test_rows_fit_a_terminal_and_break_no_word(monkeypatch, width):
    lines = shown(monkeypatch, width, lambda: ui.show(ROWS))
    assert max(map(len, lines)) <= width
    words = set(re.split(r"[\s│]+", "\n".join(lines)))
    assert {word for row in ROWS for word in f"{row['song']} {row['prompt']}".split()} <= words


def test_rows_too_wide_for_a_terminal_are_below_each_other(monkeypatch):
    assert shown(monkeypatch, 50, lambda: ui.show(ROWS)) == [
        "song    cinematic_short_0c58e4f5.wav",
        "length  45 s",
        "prompt  cinematic orchestral music with drums",
        "",
        "song    rain_8e6b7959.wav",
        "length  3 min 20 s",
        "prompt  slow piano; rain on a window",
        "",
    ]


def test_note_is_folded_between_words_with_its_indent(monkeypatch):
    lines = shown(monkeypatch, 20, lambda: ui.say("first\n  a note that-is-too long for it"))
    assert lines == ["first", "  a note that-is-too", "  long for it"]


def test_error_is_folded_between_words(monkeypatch):
    def fail():
        with pytest.raises(Exit) as caught:
            ui.one_line_errors(lambda: (_ for _ in ()).throw(Refused("no; answer yes")))()
        ui.write(caught.value.message)

    assert shown(monkeypatch, 12, fail) == ["error: no;", "answer yes"]


def test_command_is_not_folded(monkeypatch):
    command = "  inv generate --model facebook/musicgen-small"
    assert shown(monkeypatch, 20, lambda: ui.say(f"next:\n{command}")) == ["next:", command]


def test_word_longer_than_the_terminal_stays_whole(monkeypatch):
    assert shown(monkeypatch, 10, lambda: ui.say("see s3://bucket/prefix")) == ["see", "s3://bucket/prefix"]


# --- commands in messages


def test_hints_are_pasteable_in_notes_and_rows_and_not_in_a_prompt_or_json(monkeypatch, capsys):
    monkeypatch.delenv("VIRTUAL_ENV")
    row = {"state": "OVERDUE; run: inv kill-all", "prompt": "an inv check"}
    ui.say("see: inv status")
    ui.show([row])
    out, err = capsys.readouterr()
    assert err == "see: uv run inv status\n"
    assert "run: uv run inv kill-all" in out and "│ an inv check" in out
    ui.show([row], json=True)
    assert json.loads(capsys.readouterr().out) == [row]


# --- asking


def asked(monkeypatch, answer, **options):
    monkeypatch.setattr(sys, "stdin", answer)
    return ui.agreed([{"thing": "bucket"}], "Make it?", **options)


@pytest.mark.parametrize("answer", ["y\n", "YES\n"])
def test_yes_at_the_terminal_agrees(monkeypatch, capsys, answer):
    assert asked(monkeypatch, Terminal(answer))
    assert capsys.readouterr().err == "Make it? [y/N] "


@pytest.mark.parametrize("answer", ["\n", "n\n", "", "yes please\n"])
def test_anything_else_refuses(monkeypatch, answer):
    with pytest.raises(Refused):
        asked(monkeypatch, Terminal(answer))


def test_without_a_terminal_only_the_option_agrees(monkeypatch):
    with pytest.raises(Refused, match="--yes"):
        asked(monkeypatch, io.StringIO("y\n"))
    assert asked(monkeypatch, io.StringIO(), yes=True)


def test_dry_run_shows_the_plan_and_never_agrees(monkeypatch, capsys):
    assert not asked(monkeypatch, Terminal("y\n"), dry_run=True, yes=True)
    assert "bucket" in capsys.readouterr().out


@pytest.mark.parametrize(
    "library", ["botocore.parsers", "botocore.auth", "urllib3.connectionpool", "httpcore"]
)
def test_libraries_that_log_secrets_are_quiet_at_debug_level(library):
    root = logging.getLogger()
    before = root.level
    root.setLevel(logging.DEBUG)
    try:
        ui.quiet_libraries()
        assert not logging.getLogger(library).isEnabledFor(logging.DEBUG)
    finally:
        root.setLevel(before)
