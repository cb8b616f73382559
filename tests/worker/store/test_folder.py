"""A store in a folder: no half objects, nothing left behind, one line for what the disk refuses."""

import errno
import gc
import itertools
import os
import shutil
import signal
import subprocess
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tests.parts import need
from tests.worker.store.parts import child, error_of, names_in, posix_only
from worker.store.base import Missing
from worker.store.files import downloaded
from worker.store.open import open_store


@pytest.fixture
def folder(tmp_path):
    return open_store(str(tmp_path / "out"))


def test_folder_is_made_by_the_first_write_not_by_reading(folder, tmp_path):
    assert folder.list() == {}
    folder.delete("key")
    with pytest.raises(Missing):
        folder.read("key")
    assert not (tmp_path / "out").exists()
    folder.write("key", b"")
    assert (tmp_path / "out").exists()


def test_user_sees_only_the_objects(folder, tmp_path):
    folder.write("song.wav", b"")
    folder.create("song.wav", b"")
    folder.write("checkpoints/song", b"")
    folder.delete("checkpoints/song")
    assert names_in(tmp_path / "out") == ["song.wav"]


def test_list_leaves_out_the_scratch_of_a_running_write(folder, tmp_path):
    folder.write("song.wav", b"")
    (tmp_path / "out/.scratch").mkdir()
    (tmp_path / "out/.scratch/unfinished").write_bytes(b"half")
    assert {key: stored.size for key, stored in folder.list().items()} == {"song.wav": 0}


def test_folder_etag_is_the_sha256(folder):
    assert folder.write("key", b"") == "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"


SEGMENT = st.one_of(
    st.sampled_from(["..", ".", "", "a", "C:", "~", "..\\..", ".scratch", "..."]), st.text(max_size=8)
)
KEYS = st.lists(SEGMENT, min_size=1, max_size=5).map("/".join)


@given(key=KEYS, absolute=st.booleans())
@example(key="../outside", absolute=False)
@example(key="outside", absolute=True)
def test_no_key_leads_out_of_the_folder(key, absolute):
    with tempfile.TemporaryDirectory() as sandbox:
        folder = open_store(f"{sandbox}/root")
        key = f"{sandbox}/{key}" if absolute else key
        try:
            folder.write(key, b"content")
        except ValueError:
            made = set()
        else:
            made = {key}
        assert set(folder.list()) == made
        assert names_in(Path(sandbox)) in ([], ["root"])


@posix_only
@pytest.mark.parametrize("link", ["song.wav", "records", ".scratch"])
def test_link_out_of_the_folder_is_not_followed(folder, tmp_path, link):
    folder.write("other", b"")
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "lock").write_bytes(b"precious")
    (outside / "unfinished").write_bytes(b"precious")
    (tmp_path / "out" / link).symlink_to(outside / "lock" if link == "song.wav" else outside)
    key = "song.wav" if link == "song.wav" else "records/unfinished"
    for act in (
        folder.write,
        folder.create,
        lambda key, _: folder.read(key),
        lambda key, _: folder.delete(key),
    ):
        assert "leads out" in str(error_of(act, key, b"mine"))
    assert {path.name: path.read_bytes() for path in outside.iterdir()} == {
        "lock": b"precious",
        "unfinished": b"precious",
    }


def test_linked_file_is_listed_so_that_it_is_not_made_again(folder, tmp_path):
    folder.write("other", b"")
    (tmp_path / "moved.wav").write_bytes(b"song")
    (tmp_path / "out/song.wav").symlink_to(tmp_path / "moved.wav")
    assert {key: stored.size for key, stored in folder.list("song").items()} == {"song.wav": 4}


CREATE_ALL = """
import sys
from worker.store.open import open_store
store = open_store(sys.argv[1])
print(*(number for number in range(12) if store.create(f"claims/{number}", sys.argv[2].encode())))
"""


def test_one_of_four_processes_creates(folder, tmp_path):
    processes = [child(CREATE_ALL, tmp_path / "out", number) for number in range(4)]
    won = [process.communicate()[0].split() for process in processes]
    assert sorted(map(int, itertools.chain(*won))) == list(range(12))
    for number, claims in enumerate(won):
        assert all(folder.read(f"claims/{claim}") == str(number).encode() for claim in claims)
    assert names_in(tmp_path / "out") == ["claims"]


COUNT = """
import sys
from worker.store.open import open_store
store = open_store(sys.argv[1])
for _ in range(10):
    while True:
        content, etag = store.read_tagged("count")
        if store.replace("count", str(int(content) + 1).encode(), etag):
            break
"""


def test_no_replacement_by_four_processes_is_lost(folder, tmp_path):
    folder.write("count", b"0")
    processes = [child(COUNT, tmp_path / "out") for _ in range(4)]
    assert [process.wait() for process in processes] == [0] * 4
    for process in processes:
        process.stdout.close()
    assert folder.read("count") == b"40"


WRITE_FOR_EVER = """
import itertools, sys
from worker.store.open import open_store
store = open_store(sys.argv[1])
for turn in itertools.count():
    store.write("same", b"AB"[turn % 2:][:1] * 1_000_000)
    store.create(f"new/{turn}", b"C" * 1_000_000)
    print(turn, flush=True)
"""


@posix_only
def test_killed_writer_leaves_no_half_object(folder, tmp_path, rng):
    for _ in range(4):
        with child(WRITE_FOR_EVER, tmp_path / "out") as writer:
            writer.stdout.readline()
            time.sleep(rng.uniform(0, 0.1))
            writer.kill()
        for key in folder.list():
            content = folder.read(key)
            assert content == content[:1] * 1_000_000
        folder.check_writable()
        assert names_in(tmp_path / "out") == ["new", "same"]


DIE_BEFORE_RENAME = """
import os, signal, sys
from worker.store.open import open_store
os.fsync = lambda file: os.kill(os.getpid(), signal.SIGKILL)
open_store(sys.argv[1]).write("key", b"half")
"""


@posix_only
def test_next_writer_clears_what_a_dead_one_left(folder, tmp_path):
    with child(DIE_BEFORE_RENAME, tmp_path / "out") as writer:
        assert writer.wait() == -signal.SIGKILL
    assert names_in(tmp_path / "out") == [".scratch"]
    assert folder.list() == {}
    folder.check_writable()
    assert names_in(tmp_path / "out") == []


# --- a folder that is removed or replaced while it is in use


EVERY_WAY = {
    "list": lambda folder, _: folder.list(),
    "read": lambda folder, _: folder.read("song.wav"),
    "read what never was": lambda folder, _: folder.read("other"),
    "download": lambda folder, path: folder.download("song.wav", path / "fetched"),
    "write": lambda folder, _: folder.write("other", b""),
    "create": lambda folder, _: folder.create("other", b""),
    "create a file": lambda folder, _: folder.create_file("other", Path(__file__)),
    "replace": lambda folder, _: folder.replace("song.wav", b"", "etag"),
    "delete": lambda folder, _: folder.delete("song.wav"),
}


@pytest.mark.parametrize("way", EVERY_WAY)
@pytest.mark.parametrize("what", ["removed", "replaced"])
def test_folder_that_vanishes_is_an_error_and_not_made_again(folder, tmp_path, way, what):
    out = tmp_path / "out"
    folder.write("song.wav", b"song")
    out.rename(tmp_path / "elsewhere")
    if what == "replaced":
        out.mkdir()
    error = error_of(EVERY_WAY[way], folder, tmp_path)
    assert str(error).startswith(f"the folder {out} was {what} while it was in use; ")
    assert not (tmp_path / "fetched").exists()
    assert names_in(out) == [] if what == "replaced" else not out.exists()


def test_new_folder_with_the_number_of_the_old_one_is_noticed(folder, tmp_path):
    folder.write("song.wav", b"song")
    for _ in range(3):  # some disks give a number again at once
        shutil.rmtree(tmp_path / "out")
        (tmp_path / "out").mkdir()
        assert "was replaced while it was in use" in str(error_of(folder.list))


@posix_only
def test_store_that_is_not_used_any_more_keeps_nothing_open(tmp_path):
    def n_open():
        return sum(1 for _ in Path("/proc/self/fd").iterdir())

    need("/proc", Path("/proc/self/fd").exists())
    before = n_open()
    for number in range(20):
        open_store(str(tmp_path / f"out{number}")).write("key", b"")
    gc.collect()
    assert n_open() < before + 20


def test_folder_that_is_brought_back_is_used_again(folder, tmp_path):
    folder.write("song.wav", b"song")
    (tmp_path / "out").rename(tmp_path / "elsewhere")
    error_of(folder.list)
    (tmp_path / "elsewhere").rename(tmp_path / "out")
    assert set(folder.list()) == {"song.wav"}
    folder.write("other", b"")


def test_folder_that_was_copied_back_is_used_again(folder, tmp_path):
    folder.write("song.wav", b"song")
    (tmp_path / "out").rename(tmp_path / "elsewhere")
    shutil.copytree(tmp_path / "elsewhere", tmp_path / "out")
    folder.write("other", b"")
    assert set(folder.list()) == {"song.wav", "other"}


def test_folder_that_vanishes_while_it_is_listed_is_not_half_empty(folder, tmp_path, monkeypatch):
    def walk(*given, **options):
        yield from list(os_walk(*given, **options))[:1]
        (tmp_path / "out").rename(tmp_path / "elsewhere")

    folder.write("song.wav", b"song")
    folder.write("records/song.json", b"")
    os_walk = os.walk
    monkeypatch.setattr(os, "walk", walk)
    assert "was removed while it was in use" in str(error_of(folder.list))


def test_own_deletes_do_not_make_a_folder_look_replaced(folder, tmp_path):
    folder.write("claim", b"")
    folder.delete("claim")
    assert folder.list() == {}
    folder.write("other", b"")
    assert set(folder.list()) == {"other"}


# --- what a killed process leaves


DIE_IN_CHECK = """
import os, signal, sys
from worker.store.folder import FolderStore
store = FolderStore(sys.argv[1])
store.read = lambda key: os.kill(os.getpid(), signal.SIGKILL)
store.check_writable()
"""


@posix_only
def test_next_check_removes_the_probe_of_a_killed_one(folder, tmp_path):
    with child(DIE_IN_CHECK, tmp_path / "out") as checker:
        assert checker.wait() == -signal.SIGKILL
    assert len(folder.list()) == 1
    folder.check_writable()
    assert names_in(tmp_path / "out") == []


DIE_IN_DOWNLOAD = """
import os, signal, sys
from pathlib import Path
from worker.store.folder import FolderStore
os.fsync = lambda file: os.kill(os.getpid(), signal.SIGKILL)
FolderStore(sys.argv[1]).download("song.wav", Path(sys.argv[2]))
"""


@posix_only
def test_next_download_removes_the_part_of_a_killed_one(folder, tmp_path):
    folder.write("song.wav", b"song" * 1000)
    (tmp_path / "fetched").mkdir()
    for _ in range(2):
        with child(DIE_IN_DOWNLOAD, tmp_path / "out", tmp_path / "fetched/song.wav") as reader:
            assert reader.wait() == -signal.SIGKILL
    assert len(names_in(tmp_path / "fetched")) == 1
    folder.download("song.wav", tmp_path / "fetched/song.wav")
    assert names_in(tmp_path / "fetched") == ["song.wav"]


@posix_only
@pytest.mark.parametrize("written", [b"", b"half"])
def test_part_of_a_living_download_is_not_touched(folder, tmp_path, written):
    folder.write("song.wav", b"song")
    with downloaded(tmp_path / "song.wav") as file:
        file.write(written)
        file.flush()
        with ThreadPoolExecutor(1) as other:
            other.submit(folder.download, "song.wav", tmp_path / "song.wav").result()
        assert (tmp_path / "song.wav").read_bytes() == b"song"
        file.write(b"whole")
    assert (tmp_path / "song.wav").read_bytes() == written + b"whole"


CREATE_FROM = """
import sys
from pathlib import Path
from worker.store.open import open_store
print(open_store(sys.argv[1]).create_file("slow", Path(sys.argv[2])))
"""


@posix_only
def test_scratch_of_a_living_writer_is_not_touched(folder, tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with child(CREATE_FROM, tmp_path / "out", tmp_path / "pipe") as slow:
        with (tmp_path / "pipe").open("wb", buffering=0) as pipe:
            pipe.write(b"first")
            while not (tmp_path / "out/.scratch/unfinished").exists():
                time.sleep(0.01)
            other = threading.Thread(target=folder.write, args=("other", b"whole"))
            other.start()
            other.join(0.2)
            pipe.write(b" second")
        assert slow.wait() == 0
        other.join()
    assert folder.read("slow") == b"first second"
    assert folder.read("other") == b"whole"


@posix_only
def test_full_disk_keeps_what_is_finished(tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(disk)]
    mounted = os.geteuid() == 0 and subprocess.run(mount, capture_output=True).returncode == 0
    need("the right to mount a tmpfs", mounted)
    try:
        folder = open_store(str(disk / "out"))
        folder.write("finished", b"kept")
        (tmp_path / "song").write_bytes(bytes(2_000_000))
        for act in (
            lambda: folder.write("big", bytes(2_000_000)),
            lambda: folder.write("finished", bytes(2_000_000)),
            lambda: folder.create_file("big", tmp_path / "song"),
        ):
            error = error_of(act)
            assert error.code == 1
            assert str(error).startswith(f"disk full at {disk}/out/")
            assert "free space and run the same command again; what is finished is kept" in str(error)
        assert names_in(disk / "out") == ["finished"]
        assert folder.read("finished") == b"kept"
        folder.write("small", bytes(500_000))
    finally:
        subprocess.run(["umount", "--lazy", str(disk)], check=True)  # a store keeps its folder open


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_full_disk_and_spent_quota_are_reported_alike(folder, monkeypatch, number):
    def fail(_file):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", fail)
    assert str(error_of(folder.write, "key", b"")).startswith("disk full at ")
    assert folder.list() == {}


READ_AND_WRITE = """
import os, sys
from worker.errors import Unreachable, UserError
from worker.store.open import open_store
import filelock, worker.store.folder, worker.store.s3
if os.geteuid() == 0:
    os.seteuid(65534)
for act in (lambda: open_store(sys.argv[1]).write("key", b""), lambda: open_store(sys.argv[1]).list()):
    try:
        act()
    except UserError as error:
        print(error)
"""


@posix_only
def test_folder_without_permission_is_named(tmp_path):
    (tmp_path / "closed").mkdir()
    (tmp_path / "closed/out").mkdir()
    (tmp_path / "closed").chmod(0)
    try:
        lines = child(READ_AND_WRITE, tmp_path / "closed/out").communicate()[0].splitlines()
    finally:
        (tmp_path / "closed").chmod(0o700)
    assert len(lines) == 2
    assert all(line.startswith(f"no permission for {tmp_path}/closed/out") for line in lines)


def test_output_that_is_a_file_is_bad_input(tmp_path):
    (tmp_path / "out").write_bytes(b"")
    assert error_of(open_store, str(tmp_path / "out")).code == 2


@posix_only
@pytest.mark.parametrize("in_the_way", ["file", "link to nothing"])
def test_scratch_that_is_not_a_folder_is_reported(folder, tmp_path, in_the_way):
    (tmp_path / "out").mkdir()
    if in_the_way == "file":
        (tmp_path / "out/.scratch").write_bytes(b"")
    else:
        (tmp_path / "out/.scratch").symlink_to("nowhere")
    assert "a file stands where" in str(error_of(folder.write, "key", b""))


def test_parent_that_is_a_file_is_reported(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    assert "a file stands where" in str(error_of(open_store(f"{tmp_path}/file/out").write, "key", b""))
    folder = open_store(str(tmp_path))
    assert "a file stands where" in str(error_of(folder.write, "file/key", b""))


def test_folder_where_an_object_should_be_is_reported(folder):
    folder.write("a/b", b"")
    for act in (folder.write, folder.create):
        assert "a folder stands where" in str(error_of(act, "a", b""))
    assert set(folder.list()) == {"a/b"}
