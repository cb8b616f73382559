"""Temporary folders, and the ones that killed processes leave behind."""

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from filelock import FileLock

from worker.host.scratch import scratch_folder, temporary_in_scratch

ROOT = Path(__file__).resolve().parents[3]
HOLD = """
import sys, tempfile
from worker.host.scratch import scratch_folder, temporary_in_scratch
with temporary_in_scratch(), scratch_folder() as folder:
    (folder / "song.wav").write_bytes(b"x")
    tempfile.mkdtemp()
    print(folder, flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def temporary(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


@pytest.fixture
def holder(temporary):
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD],
        cwd=ROOT,
        env={"TMPDIR": str(temporary), "TEMP": str(temporary), "PATH": ""},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    yield process, Path(process.stdout.readline().strip())
    process.kill()
    process.communicate()


@pytest.mark.parametrize("when", ["before", "after"])
def test_folder_that_another_process_takes_for_dead_is_replaced(temporary, monkeypatch, when):
    acquire, robbed = FileLock.acquire, []

    def robbed_once(lock):
        if when == "after" or robbed:
            acquire(lock)
        if not robbed:
            robbed.append(lock)
            shutil.rmtree(Path(lock.lock_file).parent)
            if when == "before":
                acquire(lock)

    monkeypatch.setattr(FileLock, "acquire", robbed_once)
    with scratch_folder() as folder:
        assert robbed and (folder / "lock").is_file()
    assert list(temporary.iterdir()) == []


def test_folder_is_deleted_with_its_content(temporary):
    with scratch_folder() as folder:
        (folder / "song.wav").write_bytes(b"x")
    assert list(temporary.iterdir()) == []


def test_folder_of_a_killed_process_is_deleted_by_the_next(temporary, holder):
    process, left = holder
    process.kill()
    process.wait()
    assert (left / "song.wav").exists()
    with scratch_folder() as folder:
        assert list(temporary.iterdir()) == [folder]


def test_folder_of_a_live_process_stays(holder):
    _, used = holder
    with scratch_folder():
        pass
    assert (used / "song.wav").exists()


def test_temporary_folder_is_as_before_when_the_block_ends(temporary):
    with pytest.raises(ValueError), temporary_in_scratch():
        assert Path(tempfile.gettempdir()).parent == temporary
        raise ValueError
    assert Path(tempfile.gettempdir()) == temporary
    assert list(temporary.iterdir()) == []


def test_folder_of_something_else_stays(temporary):
    (temporary / "songs-of-mine").mkdir()
    with scratch_folder():
        pass
    assert (temporary / "songs-of-mine").is_dir()
