"""`fab sync-data`: the box has what the folder has, whatever happens on the way, and loses nothing."""

import hashlib
import os
import random
import shutil
import signal
import subprocess
import threading
import time
from contextlib import contextmanager

import pytest

from ops import release
from ops.repository import ROOT
from ops.ssh import link as links
from ops.ssh import reconnect, rsync, ship, sync_data, upload
from ops.ssh.attended import Attended
from ops.ssh.sync_data import PARTIAL, SyncFlags
from tests.fakes.proxy import proxying
from tests.ops.ssh.connect import connected
from tests.parts import need
from tests.remote.boxes import until
from worker.errors import BadInput, UserError

SCRIPTS = {f"remote/{path.name}": path.read_bytes() for path in (ROOT / "remote").iterdir() if path.is_file()}
BYTES = random.Random(4).randbytes(9 << 20)
RSYNC = """#!/bin/bash
# Slow, so that something can happen in the middle of it.
exec {rsync} --bwlimit={kb_per_s} "$@"
"""


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    need("rsync", shutil.which("rsync") is not None)
    monkeypatch.setattr(links, "KEEPALIVE_S", 0.1)
    monkeypatch.setattr(reconnect, "RETRY_AFTER_S", (0.1, 0.2))


@pytest.fixture
def source(tmp_path):
    """Some training's data: small files, one that SFTP sends by itself, names as they come."""
    made = tmp_path / "user" / "data"
    (made / "audio 0").mkdir(parents=True)
    for n in range(5):
        (made / "audio 0" / f'{n} it\'s "кот" $x.wav').write_bytes(BYTES[: 1000 * n])
    (made / "large.bin").write_bytes(BYTES)
    (made / "words.jsonl").write_text("{}\n")
    for n, path in enumerate(made.rglob("*")):
        os.utime(path, (1_700_000_000 + n, 1_700_000_000 + n))
    return made


@pytest.fixture
def deployed(box, tmp_path):
    with connected(box, tmp_path) as conn:
        ship.send(conn, release.bundle(SCRIPTS | {"prompts.txt": b"rain ; 1 ; rain\n"}))
        yield conn


@pytest.fixture
def there(box):
    """The data folder of the box."""
    return box.root.parent / "data"


@pytest.fixture(params=["rsync", "sftp"])
def way(request, box, monkeypatch):
    """How files are sent; over SFTP, as the box has no rsync."""
    if request.param == "sftp":
        box.lack("rsync")
        monkeypatch.setattr(upload, "_SMALL", 2000)
    return request.param


def contents(folder):
    """Everything in a folder, with the times in whole seconds."""
    return {
        path.relative_to(folder).as_posix(): (
            hashlib.md5(path.read_bytes()).hexdigest(),
            int(path.stat().st_mtime),
        )
        for path in folder.rglob("*")
        if path.is_file()
    }


def test_box_has_every_file_with_its_time_and_a_second_sync_sends_nothing(fab, deployed, source, there, way):
    done = fab("sync-data", str(source))
    assert done.returncode == 0, done.stderr
    assert contents(there) == contents(source)
    assert "7 files (9.4 MB) sent, 0 there before" in done.stderr
    assert ("over SFTP" in done.stderr) == (way == "sftp")
    again = fab("sync-data", str(source))
    assert "0 files (0 kB) sent, 7 there before" in again.stderr, again.stderr
    assert not list(there.rglob(PARTIAL))
