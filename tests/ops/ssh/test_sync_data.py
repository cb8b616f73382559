"""`fab sync-data`: the box has what the folder has, whatever happens on the way, and loses nothing."""

import os
import random
import re
import shutil
import threading

import pytest

from ops import release
from ops.repository import ROOT
from ops.ssh import link as links
from ops.ssh import reconnect, ship, sync_data, upload
from ops.ssh.reconnect import Reconnection
from ops.ssh.sync_data import PARTIAL, SyncFlags
from tests.fakes.proxy import proxying
from tests.ops.ssh.connect import connected
from tests.parts import need
from tests.remote.boxes import until
from worker.errors import BadInput

SCRIPTS = {f"remote/{path.name}": path.read_bytes() for path in (ROOT / "remote").iterdir() if path.is_file()}
BYTES = random.Random(4).randbytes(9 << 20)


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
        path.relative_to(folder).as_posix(): (path.read_bytes(), int(path.stat().st_mtime))
        for path in folder.rglob("*")
        if path.is_file()
    }


def sync(conn, source, **flags):
    sync_data.sync(conn, source, SyncFlags(**flags))


def test_box_has_every_file_with_its_time_and_a_second_sync_sends_nothing(fab, deployed, source, there, way):
    done = fab("sync-data", str(source))
    assert done.returncode == 0, done.stderr
    assert contents(there) == contents(source)
    assert "7 files (9.4 MB) sent, 0 there before" in done.stderr
    assert ("over SFTP" in done.stderr) == (way == "sftp")
    again = fab("sync-data", str(source))
    assert "0 files (0 kB) sent, 7 there before" in again.stderr, again.stderr
    assert not list(there.rglob(PARTIAL))


def test_dry_run_says_what_there_is_to_send_and_changes_nothing(fab, deployed, source, there):
    done = fab("sync-data", str(source), "--dry-run")
    assert done.returncode == 0, done.stderr
    assert re.search(r"to send +│ +7 │ 9.4 MB", done.stdout), done.stdout
    assert "dry run: nothing was changed" in done.stderr
    assert not there.exists()


def test_file_of_the_same_size_is_sent_only_if_its_content_differs(deployed, source, there, way, capfd):
    shutil.copytree(source / "audio 0", there / "audio 0")
    (changed,) = there.glob("*/4*")
    changed.write_bytes(b"-" * 4000)
    (touched,) = there.glob("*/3*")
    for path in (changed, touched):
        os.utime(path, (1, 1))
    sync(deployed, source)
    assert contents(there) == contents(source)
    assert "3 files (9.4 MB) sent, 4 there before" in capfd.readouterr().err


def test_only_delete_deletes_and_only_after_a_question(fab, deployed, source, there):
    mine = there / "mine" / "notes.txt"
    mine.parent.mkdir(parents=True)
    mine.write_text("x")
    assert fab("sync-data", str(source)).returncode == 0 and mine.exists()
    (source / "words.jsonl").unlink()
    refused = fab("sync-data", str(source), "--delete")
    assert (refused.returncode, "--yes" in refused.stderr) == (3, True), refused.stderr
    assert mine.exists() and (there / "words.jsonl").exists()
    done = fab("sync-data", str(source), "--delete", "--yes")
    assert "to delete: mine/notes.txt" in done.stderr and ", 2 deleted" in done.stderr, done.stderr
    assert contents(there) == contents(source) and not mine.parent.exists()


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["gone"], 2, "there is no folder gone; give"),
        (["file"], 2, "file is a file; give the folder that it is in"),
        (["empty"], 2, "there is no file in empty; give"),
        ([], 1, "sync-data"),
    ],
)
def test_wrong_source_is_one_line(fab, words, code, said):
    (fab.here / "file").touch()
    (fab.here / "empty").mkdir()
    done = fab("sync-data", *words)
    assert (done.returncode, done.stderr.count("\n")) == (code, 1), done.stderr
    assert done.stderr.startswith("error: ") and said in done.stderr


def test_box_without_a_release_is_one_line(box, tmp_path, source):
    with connected(box, tmp_path) as conn, pytest.raises(BadInput, match="run: fab deploy"):
        sync(conn, source)


class Cut:
    """A link that is lost once, in the middle of the large file, in a way of `how`."""

    def __init__(self, way, link, there, monkeypatch, how):
        self.n_read, self.kept = 0, []
        read, wait = upload._read, Reconnection.wait

        def counted(*arguments):
            block = read(*arguments)
            self.n_read += len(block)
            if self.n_read > 4 << 20 and link.n_connections == 1:
                how(link)
            return block

        def waited(*arguments):
            until(lambda: list(there.rglob(f"{PARTIAL}/*")))  # rsync writes it when it has noticed
            self.kept.append(sum(path.stat().st_size for path in there.rglob(f"{PARTIAL}/*")))
            wait(*arguments)

        def watch():
            until(lambda: sum(path.stat().st_size for path in there.glob(".large.bin.*")) > 1 << 20)
            how(link)

        monkeypatch.setattr(Reconnection, "wait", waited)
        if way == "rsync":
            threading.Thread(target=watch, daemon=True).start()
        else:
            monkeypatch.setattr(upload, "_read", counted)


@pytest.fixture
def slow_rsync(tmp_path, monkeypatch):
    """So that something can happen in the middle."""
    wrapper = tmp_path / "slow" / "rsync"
    wrapper.parent.mkdir()
    wrapper.write_text(f'#!/bin/bash\nexec {shutil.which("rsync")} --bwlimit=6000 "$@"\n')
    wrapper.chmod(0o755)
    monkeypatch.setenv("PATH", f"{wrapper.parent}:{os.environ['PATH']}")


def test_cut_link_is_resumed_where_it_was(
    box, deployed, source, there, way, tmp_path, monkeypatch, slow_rsync, capfd
):
    with proxying(box.port) as link, connected(box, tmp_path, link.port) as conn:
        cut = Cut(way, link, there, monkeypatch, lambda link: link.reset())
        sync(conn, source)
    assert contents(there) == contents(source)
    assert len(cut.kept) == 1 and cut.kept[0] > 1 << 20
    assert cut.n_read < len(BYTES) * 1.3
    assert "the connection was lost in the middle; going on again when it is back" in capfd.readouterr().err
