"""`fab sync-data`: the box has what the folder has, whatever happens on the way, and loses nothing."""

import os
import random
import re
import shlex
import shutil
import signal
import subprocess
import threading
from contextlib import suppress

import pytest

from ops.ssh import attended, reconnect, rsync, sync_data, upload
from ops.ssh import link as links
from ops.ssh.reconnect import Reconnection
from ops.ssh.sync_data import PARTIAL, SyncFlags
from tests.fakes.proxy import proxying
from tests.ops.ssh import connect
from tests.ops.ssh.connect import connected
from tests.parts import need
from tests.remote.boxes import until
from worker.errors import BadInput, UserError

BYTES = random.Random(4).randbytes(5 << 20)


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
    with connect.deployed(box, tmp_path) as conn:
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
    assert "7 files (5.3 MB) sent and compared by checksum, 0 there before" in done.stderr
    assert ("over SFTP" in done.stderr) == (way == "sftp")
    again = fab("sync-data", str(source))
    assert "0 files (0 kB) sent and compared by checksum, 7 there before" in again.stderr, again.stderr
    assert not list(there.rglob(PARTIAL))


def test_dry_run_says_what_there_is_to_send_and_changes_nothing(fab, deployed, source, there):
    done = fab("sync-data", str(source), "--dry-run")
    assert done.returncode == 0, done.stderr
    assert re.search(r"to send +│ +7 │ 5.3 MB", done.stdout), done.stdout
    assert "dry run: nothing was changed" in done.stderr
    assert not there.exists()


def test_file_of_the_same_size_is_sent_only_if_its_content_differs(deployed, source, there, capfd):
    shutil.copytree(source / "audio 0", there / "audio 0")
    (changed,) = there.glob("*/4*")
    changed.write_bytes(b"-" * 4000)
    (touched,) = there.glob("*/3*")
    for path in (changed, touched):
        os.utime(path, (1, 1))
    sync(deployed, source)
    assert contents(there) == contents(source)
    assert "3 files (5.2 MB) sent and compared by checksum, 4 there before" in capfd.readouterr().err


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
    """A link that is lost once, in the middle of the large file, in a way of `how`.

    `kept`: what was there of the file as each try began. `n_read`: what each sent of it over SFTP.
    """

    def __init__(self, way, link, there, monkeypatch, how):
        self.n_read, self.kept = [], []
        sender = rsync if way == "rsync" else upload
        read, send = upload._read, sender.send

        def counted(*arguments):
            block = read(*arguments)
            self.n_read[-1] += len(block) * (arguments[1].path == "large.bin")
            if self.n_read[-1] > 3 << 20 and len(self.kept) == 1:
                how(link)
            return block

        def noted(*arguments):
            self.kept.append(sum(path.stat().st_size for path in there.rglob(f"{PARTIAL}/large.bin")))
            self.n_read.append(0)
            send(*arguments)

        def watch():
            until(lambda: in_flight(there) > 1 << 20)
            how(link)

        monkeypatch.setattr(sender, "send", noted)
        monkeypatch.setattr(upload, "_read", counted)
        if way == "rsync":
            threading.Thread(target=watch, daemon=True).start()

    def assert_resumed(self):
        assert len(self.kept) == 2 and self.kept[0] == 0 < self.kept[1], self.kept
        assert self.n_read[1] in (0, len(BYTES) - self.kept[1])  # 0: it was rsync


def in_flight(there):
    """How much rsync has written of the large file, under its temporary name."""
    total = 0
    for path in there.glob(f"{PARTIAL}/new/*large.bin.*"):
        with suppress(OSError):
            total += path.stat().st_size
    return total


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
    cut.assert_resumed()
    assert "the connection was lost in the middle; going on again when it is back" in capfd.readouterr().err


def test_silently_dead_link_is_noticed_and_resumed_where_it_was(
    box, deployed, source, there, tmp_path, monkeypatch, slow_rsync
):
    monkeypatch.setattr(rsync, "_SSH_OPTIONS", ("ServerAliveInterval=1", "ServerAliveCountMax=1"))
    monkeypatch.setattr(attended, "SILENCE_S", 1)
    monkeypatch.setattr(attended, "BEAT_S", 0.1)

    def stall(link):
        link.stall()
        monkeypatch.setattr(links, "DEAD_AFTER_S", 0.7)

    def wait(*arguments):
        monkeypatch.setattr(links, "DEAD_AFTER_S", 30)
        waited(*arguments)

    waited = Reconnection.wait
    monkeypatch.setattr(Reconnection, "wait", wait)
    with proxying(box.port) as link, connected(box, tmp_path, link.port) as conn:
        cut = Cut("rsync", link, there, monkeypatch, stall)
        sync(conn, source)
    assert contents(there) == contents(source)
    cut.assert_resumed()


def test_second_sync_is_refused_while_one_is_on_and_the_box_counts_it_as_work(
    box, deployed, source, there, monkeypatch, tmp_path
):
    seen = []

    def look(*arguments):
        ask = (
            f". {box.root}/current/remote/env.sh; . {box.root}/current/remote/state.sh; is_busy && echo busy"
        )
        seen.append(deployed.run(f"bash -c {shlex.quote(ask)}").out)
        refused = pytest.raises(UserError, match=r"^another fab sync-data to .* is on")
        with connected(box, tmp_path) as other, refused:
            sync(other, source)
        seen.append(sorted(contents(there)))
        upload.send(*arguments)

    monkeypatch.setattr(rsync, "send", look)
    sync(deployed, source)
    assert seen == ["busy\n", []]
    assert contents(there) == contents(source)
    sync(deployed, source)  # what held the first back is gone with it


@pytest.fixture
def full(there):
    """The data folder is a disk of 4 MB; -> makes it larger."""
    there.mkdir(parents=True)
    mount = ["mount", "-t", "tmpfs", "-o", "size=4m", "none", str(there)]
    if subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("mounting a small disk is not allowed on this machine")
    yield lambda: subprocess.run(["mount", "-o", "remount,size=7m", str(there)], check=True)
    subprocess.run(["umount", "-l", str(there)], check=True)


@pytest.mark.parametrize("reserves", [True, False])
def test_disk_without_room_is_found_before_anything_is_sent(box, deployed, source, there, full, reserves):
    if not reserves:  # as many network volumes
        cannot = box.bin / "fallocate"
        cannot.write_text("#!/bin/sh\necho 'fallocate failed: Operation not supported' >&2; exit 1\n")
        cannot.chmod(0o755)
    message = "^5.3 MB are to be sent, and the disk of .* is full; free space"
    with pytest.raises(UserError, match=message):
        sync(deployed, source)
    assert contents(there) == {}


def test_disk_that_fills_in_the_middle_is_one_line_and_the_same_sync_resumes(
    deployed, source, there, way, full, monkeypatch
):
    probe = sync_data._Sync._probe
    monkeypatch.setattr(sync_data._Sync, "_probe", lambda *_: None)
    with pytest.raises(
        UserError, match=r"^the disk of \S+ is full; free space \(fab shell\), then run it again$"
    ):
        sync(deployed, source)
    whole = contents(source)
    placed = {path: found for path, found in contents(there).items() if PARTIAL not in path}
    assert all(content == whole[path][0] for path, (content, _) in placed.items())
    monkeypatch.setattr(sync_data._Sync, "_probe", probe)
    full()
    sync(deployed, source)
    assert contents(there) == contents(source)


def test_volume_that_refuses_chown_takes_everything(box, deployed, source, there, tmp_path):
    refuses = [shutil.which("rsync")]
    if os.getuid() == 0:  # others may not chown anyway
        refuses = ["setpriv", "--inh-caps=-chown", "--bounding-set=-chown", *refuses]
        for path in source.rglob("*"):
            os.chown(path, 1234, 1234)
        copied = subprocess.run(
            [*refuses, "-a", f"{source}/", tmp_path / "copy"], capture_output=True, text=True
        )
        assert copied.returncode == 23 and "chown" in copied.stderr
    wrapper = box.bin / "rsync"
    wrapper.write_text(f'#!/bin/bash\nexec {shlex.join(refuses)} "$@"\n')
    wrapper.chmod(0o755)
    sync(deployed, source)
    assert contents(there) == contents(source)


@pytest.mark.parametrize("times", [1, 9])
def test_file_that_arrives_damaged_is_sent_again_but_not_for_ever(
    deployed, source, there, monkeypatch, times
):
    sent, send = [], rsync.send

    def damaging(*arguments):
        send(*arguments)
        sent.append(sorted(file.path for file in arguments[4]))
        if len(sent) <= times:
            (there / "large.bin").write_bytes(bytes(len(BYTES)))

    monkeypatch.setattr(rsync, "send", damaging)
    if times == 1:
        sync(deployed, source)
        assert contents(there) == contents(source)
        assert sent[1:] == [["large.bin"]]
    else:
        with pytest.raises(UserError, match=r"^large.bin differs on the box each time it was sent"):
            sync(deployed, source)
        assert len(sent) == 3


def test_login_shell_that_prints_leaves_sftp(box, deployed, source, there, capfd):
    (box.home / ".bashrc").write_text("echo welcome; echo to the box\n")
    sync(deployed, source)
    assert contents(there) == contents(source)
    assert "sending over SFTP, as rsync cannot be used" in capfd.readouterr().err


def test_ctrl_c_is_one_line_and_the_same_command_resumes(fab, deployed, source, there, slow_rsync, box):
    process = fab.start("sync-data", str(source))
    until(lambda: in_flight(there) > 1 << 20)
    process.send_signal(signal.SIGINT)
    said = process.communicate(timeout=60)[1].decode()
    assert process.returncode == 75, said
    assert said.splitlines()[-1] == "interrupted; run the same command again to resume"
    until(lambda: not [words for words in box.processes().values() if "rsync" in words[0]])
    assert list(there.rglob(f"{PARTIAL}/large.bin"))
    assert fab("sync-data", str(source)).returncode == 0
    assert contents(there) == contents(source)
