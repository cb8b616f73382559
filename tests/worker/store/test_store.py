"""Stores: one contract for a folder and S3; no half objects; one winner; plain errors."""

import errno
import itertools
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import boto3
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tests.fakes import s3
from tests.parts import need
from worker.errors import Unreachable, UserError
from worker.store.base import Missing, Stored
from worker.store.open import open_store

posix_only = pytest.mark.skipif(os.name == "nt", reason="needs POSIX signals, pipes or users")


def child(script: str, *args: object, **options) -> subprocess.Popen:
    """A Python process that runs `script` with our modules at hand."""
    root = Path(__file__).parents[3]
    return subprocess.Popen(
        [sys.executable, "-c", script, *map(str, args)],
        env={**os.environ, "PYTHONPATH": str(root)},
        stdout=subprocess.PIPE,
        text=True,
        **options,
    )


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def error_of(act, *args) -> UserError:
    """The UserError that this raises: one line, what happened and what to do, no traceback below it."""
    with pytest.raises(UserError) as caught:
        act(*args)
    text = str(caught.value)
    assert "; " in text and "\n" not in text
    assert caught.value.__suppress_context__ or caught.value.__context__ is None
    assert "planted-secret" not in text
    return caught.value


# --- the contract, on a folder and on S3


def test_written_content_is_read_back(store):
    store.write("records/rain_5c0ffee0.json", b"\x00content\xff")
    assert store.read("records/rain_5c0ffee0.json") == b"\x00content\xff"


def test_empty_content_is_an_object(store):
    store.write("empty", b"")
    assert store.read("empty") == b""
    assert store.list()["empty"].size == 0


def test_write_overwrites(store):
    store.write("key", b"long first content")
    store.write("key", b"second")
    assert store.read("key") == b"second"


@pytest.mark.parametrize("key", ["gone", "folder", "file/below"])
def test_reading_what_is_not_there_is_missing(store, key, tmp_path):
    store.write("folder/other", b"")
    store.write("file", b"")
    with pytest.raises(Missing):
        store.read(key)
    with pytest.raises(Missing):
        store.download(key, tmp_path / "download")
    assert not (tmp_path / "download").exists()


def test_empty_store_lists_nothing(store):
    assert store.list() == {}


def test_list_gives_every_key_under_a_string_prefix_with_its_size(store):
    for key in ("song.wav", "records/a.json", "records/b.json", "records.txt", "runs/1/deep/log"):
        store.write(key, key.encode())
    assert {key: stored.size for key, stored in store.list().items()} == {
        key: len(key)
        for key in ("song.wav", "records/a.json", "records/b.json", "records.txt", "runs/1/deep/log")
    }
    assert set(store.list("rec")) == {"records/a.json", "records/b.json", "records.txt"}
    assert set(store.list("records/")) == {"records/a.json", "records/b.json"}
    assert store.list("absent/") == {}


def test_create_refuses_a_taken_key(store):
    assert store.create("claims/rain.json", b"first")
    assert store.create("claims/rain.json", b"second") is None
    assert store.read("claims/rain.json") == b"first"


def test_create_again_after_delete(store):
    store.create("key", b"first")
    store.delete("key")
    assert store.create("key", b"second")


def test_replace_needs_the_current_etag(store):
    first = store.create("key", b"first")
    second = store.replace("key", b"second", first)
    assert second and second != first
    assert store.replace("key", b"third", first) is None
    assert store.read_tagged("key") == (b"second", second)


def test_replace_of_what_is_gone_makes_nothing(store):
    etag = store.create("key", b"first")
    store.delete("key")
    assert store.replace("key", b"second", etag) is None
    assert store.list() == {}


def test_every_way_to_write_gives_the_etag_that_reading_gives(store, tmp_path):
    (tmp_path / "file").write_bytes(b"file")
    etags = {
        "written": store.write("written", b"written"),
        "created": store.create("created", b"created"),
        "file": store.create_file("file", tmp_path / "file"),
        "replaced": store.replace("replaced", b"new", store.write("replaced", b"old")),
    }
    assert {key: store.read_tagged(key)[1] for key in etags} == etags
    assert all(stored.etag in (None, etags[key]) for key, stored in store.list().items())


def test_a_file_of_tens_of_megabytes_goes_up_and_down_unchanged(store, tmp_path, rng):
    song = rng.randbytes(20_000_000)
    (tmp_path / "song.wav").write_bytes(song)
    assert store.create_file("song.wav", tmp_path / "song.wav")
    assert store.create_file("song.wav", tmp_path / "song.wav") is None
    store.download("song.wav", tmp_path / "fetched/song.wav")
    assert (tmp_path / "fetched/song.wav").read_bytes() == song
    assert [path.name for path in (tmp_path / "fetched").iterdir()] == ["song.wav"]


def test_download_overwrites_the_file(store, tmp_path):
    store.write("key", b"new")
    (tmp_path / "file").write_bytes(b"old and longer")
    store.download("key", tmp_path / "file")
    assert (tmp_path / "file").read_bytes() == b"new"


def test_delete_removes_one_object_and_absent_is_fine(store):
    store.write("folder/a", b"")
    store.write("folder/b", b"")
    store.delete("folder/a")
    store.delete("folder/a")
    store.delete("never/there")
    store.delete("folder")
    assert set(store.list()) == {"folder/b"}


def test_check_writable_leaves_nothing(store):
    store.check_writable()
    assert store.list() == {}


BAD_KEYS = [
    *("", "/a", "a/", "a//b", ".", "..", "../a", "a/../b", "a/./b", "a\\b", "C:/a", "c:a", "a\0b", "a\nb"),
    *("a\x7f", "a\x85", "\ud800", "a/.. /b", "nul./a", "x" * 256, "x/" * 500 + "x"),
    *(".scratch/a", ".scratch", ".SCRATCH/lock"),
]


def test_bad_key_is_a_bug_of_ours_everywhere(store, tmp_path):
    acts = (
        store.read,
        store.read_tagged,
        lambda key: store.write(key, b""),
        lambda key: store.create(key, b""),
        lambda key: store.create_file(key, Path(__file__)),
        lambda key: store.replace(key, b"", "etag"),
        lambda key: store.download(key, tmp_path / "file"),
        store.delete,
    )
    for act, key in itertools.product(acts, BAD_KEYS):
        with pytest.raises(ValueError, match="not a key"):
            act(key)
    assert names_in(tmp_path) == []


def test_one_of_eight_threads_creates(store):
    def attempt(number):
        barrier.wait()
        return store.create(f"claims/{turn}", str(number).encode())

    barrier = threading.Barrier(8)
    with ThreadPoolExecutor(8) as threads:
        for turn in range(5):
            won = [number for number, etag in enumerate(threads.map(attempt, range(8))) if etag]
            assert [store.read(f"claims/{turn}").decode()] == [str(number) for number in won]


def test_one_of_eight_threads_replaces(store):
    def attempt(content):
        barrier.wait()
        return store.replace("claim", content.encode(), etag)

    barrier = threading.Barrier(8)
    etag = store.write("claim", b"start")
    with ThreadPoolExecutor(8) as threads:
        for turn in range(5):
            won = [new for new in threads.map(attempt, (f"{turn} {number}" for number in range(8))) if new]
            assert len(won) == 1
            etag = won[0]


def test_readers_never_see_half_an_object(store):
    def write():
        for turn in range(20):
            store.write("key", b"AB"[turn % 2 :][:1] * 300_000)

    store.write("key", b"A" * 300_000)
    writer = threading.Thread(target=write)
    writer.start()
    while writer.is_alive():
        content = store.read("key")
        assert content in (b"A" * 300_000, b"B" * 300_000)
    writer.join()


# --- where


@pytest.mark.parametrize(
    "location",
    [
        *(
            "",
            "  ",
            "s3://",
            "s3:///prefix",
            "s3://UPPER/x",
            "s3://ab",
            "s3://a..b",
            "s3://1.2.3.4",
            "s3://-abc",
        ),
        *("s3://bucket//x", "s3://bucket/../x", "s3://bucket/a\\b", "s3:/bucket", "s3:bucket", "gs://bucket"),
        *("https://bucket.s3.amazonaws.com", "file:///tmp", "out\0", "out\nput", "~nobody-of-that-name/x"),
    ],
)
def test_nonsense_location_is_bad_input(location):
    assert error_of(open_store, location).code == 2


@pytest.mark.parametrize("typed", ["s3://bucket", "s3://bucket/", "S3://bucket/", " s3://bucket "])
def test_bucket_without_prefix_is_normalised(s3_url, typed):
    assert open_store(typed).location == "s3://bucket"


def test_prefix_is_normalised(s3_url):
    assert open_store("s3://my.bucket-1/a/b/").location == "s3://my.bucket-1/a/b"


def test_home_is_expanded(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    store = open_store("~/songs/")
    store.write("key", b"")
    assert store.location == str(tmp_path / "songs")
    assert (tmp_path / "songs/key").exists()


def test_folder_store_stays_where_it_was_opened(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    store = open_store("out")
    monkeypatch.chdir("/")
    store.write("key", b"")
    assert store.location == "out"
    assert (tmp_path / "out/key").exists()


def test_folder_needs_no_boto3():
    script = "import sys, worker.store.open as s; s.open_store('out').list(); print('boto3' in sys.modules)"
    assert child(script).communicate()[0] == "False\n"


# --- a folder


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
    assert folder.list() == {"song.wav": Stored(0, None)}


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
    assert folder.list("song") == {"song.wav": Stored(4, None)}


CREATE_ALL = """
import sys
from worker.store.open import open_store
store = open_store(sys.argv[1])
print(*(number for number in range(25) if store.create(f"claims/{number}", sys.argv[2].encode())))
"""


def test_one_of_four_processes_creates(folder, tmp_path):
    processes = [child(CREATE_ALL, tmp_path / "out", number) for number in range(4)]
    won = [process.communicate()[0].split() for process in processes]
    assert sorted(map(int, itertools.chain(*won))) == list(range(25))
    for number, claims in enumerate(won):
        assert all(folder.read(f"claims/{claim}") == str(number).encode() for claim in claims)
    assert names_in(tmp_path / "out") == ["claims"]


COUNT = """
import sys
from worker.store.open import open_store
store = open_store(sys.argv[1])
for _ in range(25):
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
    assert folder.read("count") == b"100"


WRITE_FOR_EVER = """
import itertools, sys
from worker.store.open import open_store
store = open_store(sys.argv[1])
for turn in itertools.count():
    store.write("same", b"AB"[turn % 2:][:1] * 4_000_000)
    store.create(f"new/{turn}", b"C" * 4_000_000)
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
            assert content == content[:1] * 4_000_000
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
        subprocess.run(["umount", str(disk)], check=True)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_full_disk_and_spent_quota_are_said_alike(folder, monkeypatch, number):
    def fail(_file):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", fail)
    assert str(error_of(folder.write, "key", b"")).startswith("disk full at ")
    assert folder.list() == {}


def test_failed_download_leaves_no_file(store, tmp_path, monkeypatch):
    def fail(_file):
        raise OSError(errno.ENOSPC, "full")

    store.write("key", b"content")
    (tmp_path / "fetched").mkdir()
    monkeypatch.setattr(os, "fsync", fail)
    assert str(error_of(store.download, "key", tmp_path / "fetched/song")).startswith("disk full at ")
    assert names_in(tmp_path / "fetched") == []


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
def test_scratch_that_is_no_folder_is_said(folder, tmp_path, in_the_way):
    (tmp_path / "out").mkdir()
    if in_the_way == "file":
        (tmp_path / "out/.scratch").write_bytes(b"")
    else:
        (tmp_path / "out/.scratch").symlink_to("nowhere")
    assert "a file stands where" in str(error_of(folder.write, "key", b""))


def test_parent_that_is_a_file_is_said(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    assert "a file stands where" in str(error_of(open_store(f"{tmp_path}/file/out").write, "key", b""))
    folder = open_store(str(tmp_path))
    assert "a file stands where" in str(error_of(folder.write, "file/key", b""))


def test_folder_where_an_object_should_be_is_said(folder):
    folder.write("a/b", b"")
    for act in (folder.write, folder.create):
        assert "a folder stands where" in str(error_of(act, "a", b""))
    assert set(folder.list()) == {"a/b"}


# --- S3


@pytest.fixture
def bucket(s3_url):
    return s3.fresh_bucket(s3_url)


def test_prefixes_of_one_bucket_do_not_see_each_other(bucket):
    whole, a, ab = (open_store(f"s3://{bucket}{prefix}") for prefix in ("", "/a", "/ab"))
    a.write("key", b"a")
    ab.write("key", b"ab")
    assert set(a.list()) == set(ab.list()) == {"key"}
    assert set(whole.list()) == {"a/key", "ab/key"}
    a.delete("key")
    assert ab.read("key") == b"ab"


def test_more_keys_than_one_page_are_all_listed(bucket):
    keys = {f"{number:04}" for number in range(1001)}
    s3.fill(bucket, (f"p/{key}" for key in keys))
    assert set(open_store(f"s3://{bucket}/p").list()) == keys


def test_list_leaves_out_names_that_are_no_keys(bucket):
    s3.fill(bucket, ("p/", "p/folder/", "p//x", "p/song.wav"))
    assert set(open_store(f"s3://{bucket}/p").list()) == {"song.wav"}


def test_object_has_a_sha256_that_s3_can_check(bucket):
    open_store(f"s3://{bucket}").write("key", b"content")
    head = boto3.client("s3").head_object(Bucket=bucket, Key="key", ChecksumMode="ENABLED")
    assert head["ChecksumSHA256"] == "7XACtDnprIRfIjV9giusFERzD722AW0+yUMil7nsn3M="


def test_lost_answer_does_not_make_a_writer_lose_to_itself(bucket, s3_url, monkeypatch, tmp_path):
    (tmp_path / "song").write_bytes(b"song")
    acts = (
        lambda store: store.create("claim", b"mine"),
        lambda store: store.replace("claim", b"renewed", store.read_tagged("claim")[1]),
        lambda store: store.create_file("song", tmp_path / "song"),
    )
    for act in acts:
        with s3.failing_once(s3_url, "PUT") as url:
            monkeypatch.setenv("AWS_ENDPOINT_URL", url)
            assert act(open_store(f"s3://{bucket}"))


def test_lost_answer_does_not_make_a_loser_win(bucket, s3_url, monkeypatch):
    open_store(f"s3://{bucket}").write("claim", b"theirs")
    with s3.failing_once(s3_url, "PUT") as url:
        monkeypatch.setenv("AWS_ENDPOINT_URL", url)
        assert open_store(f"s3://{bucket}").create("claim", b"mine") is None


def test_conflict_of_two_conditional_writes_is_tried_again(bucket, s3_url, monkeypatch):
    with s3.failing_once(s3_url, "PUT", (409, "ConditionalRequestConflict")) as url:
        monkeypatch.setenv("AWS_ENDPOINT_URL", url)
        assert open_store(f"s3://{bucket}").create("claim", b"mine")


def test_answer_that_breaks_off_is_asked_again(bucket, s3_url, monkeypatch, tmp_path):
    open_store(f"s3://{bucket}").write("song", b"song" * 100_000)
    with s3.failing_once(s3_url, "GET") as url:
        monkeypatch.setenv("AWS_ENDPOINT_URL", url)
        open_store(f"s3://{bucket}").download("song", tmp_path / "song")
    assert (tmp_path / "song").read_bytes() == b"song" * 100_000


@pytest.mark.parametrize(
    ("status", "code", "exit_code", "says"),
    [
        (403, "AccessDenied", 1, "s3:PutObject on bucket some-bucket was denied"),
        (403, "InvalidAccessKeyId", 2, "does not know these credentials"),
        (403, "SignatureDoesNotMatch", 2, "does not know these credentials"),
        (400, "ExpiredToken", 1, "have expired; renew them"),
        (403, "RequestTimeTooSkewed", 1, "clock is wrong"),
        (400, "IllegalLocationConstraintException", 2, "another region; correct AWS_DEFAULT_REGION"),
        (404, "NoSuchBucket", 2, "there is no bucket some-bucket"),
        (503, "SlowDown", 1, "overloaded (SlowDown)"),
        (404, "", 1, "an answer of S3 for bucket some-bucket broke off"),
        (418, "Teapot", 1, "refused s3:PutObject on bucket some-bucket (Teapot)"),
    ],
)
def test_refusal_is_one_plain_line(s3_url, monkeypatch, status, code, exit_code, says):
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "planted-secret")
    with s3.refusing(status, code) as url:
        monkeypatch.setenv("AWS_ENDPOINT_URL", url)
        error = error_of(open_store("s3://some-bucket/x").check_writable)
    assert (error.code, says in str(error)) == (exit_code, True), str(error)


@pytest.mark.parametrize("act", ["list", "check_writable"])
def test_credentials_that_have_expired_where_they_are_read_anew_are_one_line(
    tmp_path, s3_url, monkeypatch, act
):
    keys = {"Version": 1, "AccessKeyId": "A", "SecretAccessKey": "s", "SessionToken": "t"}
    (tmp_path / "keys").write_text(json.dumps(keys | {"Expiration": "2026-01-01T00:00:00Z"}))
    (tmp_path / "config").write_text(f'[default]\ncredential_process = cat "{tmp_path}/keys"\n')
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    with pytest.raises(Unreachable, match="the AWS credentials have expired; renew them"):
        getattr(open_store("s3://some-bucket"), act)()


def test_refused_list_names_the_iam_action(s3_url, monkeypatch):
    with s3.refusing(403, "AccessDenied") as url:
        monkeypatch.setenv("AWS_ENDPOINT_URL", url)
        assert "s3:ListBucket on bucket some-bucket" in str(error_of(open_store("s3://some-bucket").list))


def test_missing_bucket_is_not_a_missing_key(s3_url):
    store = open_store("s3://not-made-yet")
    for act in (store.list, lambda: store.read("key"), lambda: store.write("key", b"")):
        assert "there is no bucket not-made-yet" in str(error_of(act))
    assert "there is no bucket" in str(error_of(store.replace, "key", b"", '"etag"'))


def test_missing_credentials_are_named(bucket, monkeypatch):
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    error = error_of(open_store(f"s3://{bucket}").list)
    assert error.code == 2
    assert f"no AWS credentials for bucket {bucket}; set AWS_ACCESS_KEY_ID" in str(error)


def test_unreachable_endpoint_is_one_plain_line(s3_url, monkeypatch, tmp_path):
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))  # bound, not listening: connections are refused
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{unused.getsockname()[1]}")
        monkeypatch.setenv("AWS_MAX_ATTEMPTS", "2")
        store = open_store("s3://some-bucket")
        for act in (store.list, lambda: store.download("key", tmp_path / "file")):
            error = error_of(act)
            assert error.code == 1
            assert "no answer from S3 for bucket some-bucket; check the network" in str(error)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("AWS_ENDPOINT_URL", "not-a-url:s3cret"),
        ("AWS_DEFAULT_REGION", "s3cret region!"),
        ("AWS_PROFILE", "s3cret"),
        ("AWS_MAX_ATTEMPTS", "s3cret"),
    ],
)
def test_malformed_aws_setting_is_named_on_opening_without_its_value(s3_url, monkeypatch, name, value):
    monkeypatch.setenv(name, value)
    said = str(error_of(open_store, "s3://some-bucket"))
    assert name in said
    assert "s3cret" not in said
