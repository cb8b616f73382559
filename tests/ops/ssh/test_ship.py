"""On the box a release is there whole or not at all, and the newest ones stay."""

import hashlib
import os
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from ops.release import Release, bundle
from ops.ssh import ship
from tests.ops.ssh.connect import connected
from worker.errors import UserError

FILES = {
    "worker/__init__.py": b"print(1)\n",
    "requirements/worker.txt": b"torch==2.13.0\n",
    "prompts.txt": b"rain ; 1 ; rain\n",
}


@pytest.fixture
def conn(box, tmp_path):
    with connected(box, tmp_path) as conn:
        yield conn


def packed(**files):
    """A small release; `more=text` adds worker/more.py."""
    return bundle(FILES | {f"worker/{name}.py": text.encode() for name, text in files.items()})


def send(conn, **files):
    return ship.send(conn, packed(**files))


def test_release_becomes_the_current_one(conn, box):
    first = send(conn)
    assert str((box.root / "current").readlink()) == f"releases/{first.release.id}"
    second = send(conn, more="x = 1\n")
    assert (box.root / "current" / "worker" / "more.py").read_text() == "x = 1\n"
    assert sorted(releases(box)) == sorted([first.release.id, second.release.id])


def test_same_release_again_is_not_sent(conn, box):
    first = send(conn)
    # As of a run of Python by hand.
    compiled = box.root / "current" / "worker" / "__pycache__" / "more.pyc"
    compiled.parent.mkdir()
    compiled.touch()
    again = ship.send(conn, replace(first.release, archive=b"not sent"))
    assert (first.unchanged, again.unchanged) == (False, True)


def test_earlier_release_becomes_the_current_one_again_without_being_sent(conn, box):
    first = send(conn)
    send(conn, more="x = 1\n")
    assert ship.send(conn, replace(first.release, archive=b"not sent")).unchanged
    assert (box.root / "current").readlink().name == first.release.id


@pytest.mark.parametrize(
    "change",
    [
        lambda release: (release / "prompts.txt").write_text("changed by hand\n"),
        lambda release: (release / "prompts.txt").unlink(),
        lambda release: (release / "worker" / "added.py").touch(),
        shutil.rmtree,
    ],
)
def test_release_that_was_changed_on_the_box_is_sent_again(conn, box, change):
    release = box.root / "releases" / send(conn).release.id
    change(release)
    assert not send(conn).unchanged
    files = {str(path.relative_to(release)) for path in release.rglob("*") if path.is_file()}
    assert files == set(FILES)
    assert (release / "prompts.txt").read_bytes() == FILES["prompts.txt"]


def test_changed_release_stays_for_the_run_that_works_in_it(conn, box):
    release = box.root / "releases" / send(conn).release.id
    (release / "prompts.txt").write_text("changed by hand\n")
    os.utime(release, (0, 0))
    with subprocess.Popen(["cat"], cwd=release, stdin=subprocess.PIPE) as working:
        send(conn)
        folder = Path(f"/proc/{working.pid}/cwd").readlink()
    assert folder.parent == release.parent and folder.name.startswith(f".{release.name}.changed.")


def test_three_releases_are_kept(conn, box):
    names = []
    for n in range(5):
        names.append(send(conn, more=f"x = {n}\n").release.id)
        _age(box)
    assert sorted(releases(box)) == sorted(names[-3:])


def test_release_of_a_run_that_has_not_ended_is_never_deleted(conn, box):
    used = send(conn, more="used = 1\n").release.id
    run = box.root / "state" / "20261122T195059Z-ab12"
    run.mkdir(parents=True)
    (run / "release").write_text(f"{box.root}/releases/{used}\n")
    for n in range(4):
        _age(box)
        send(conn, more=f"x = {n}\n")
    assert used in releases(box)
    (run / "exit_code").write_text("0\n")
    _age(box)
    send(conn, more="x = 9\n")
    assert used not in releases(box)


def test_environment_that_is_not_made_from_the_requirements_is_noticed_each_time(conn, box):
    box.box_home.mkdir()
    made_from = hashlib.sha256(FILES["requirements/worker.txt"]).hexdigest()
    (box.box_home / "venv.stamp").write_text(f"{made_from}  - /usr/bin/python3\n")
    assert not send(conn).needs_install
    assert not send(conn, more="x = 1\n").needs_install
    newer = bundle(FILES | {"requirements/worker.txt": b"torch==2.14.0\n"})
    assert ship.send(conn, newer).needs_install
    assert ship.send(conn, newer).needs_install


def test_broken_stream_leaves_the_current_release_and_the_next_try_works(conn, box):
    good = send(conn).release
    broken = Release("feedfacebeef", packed().archive[:-40])
    with pytest.raises(UserError, match="could not write the release"):
        ship.send(conn, broken)
    assert releases(box) == [good.id]
    assert send(conn, more="x = 1\n").release.id in releases(box)


def test_program_that_the_box_lacks_is_named(conn, box):
    box.lack("tar")
    with pytest.raises(UserError, match=r"there is no tar on .*; install it there \(fab shell\)"):
        send(conn)


def test_full_disk_is_one_line(conn, box):
    # As tar meets it: its own words and a failure.
    (box.bin / "tar").write_text(
        "#!/bin/bash\necho 'tar: x: Cannot write: No space left on device' >&2; exit 2\n"
    )
    (box.bin / "tar").chmod(0o755)
    with pytest.raises(UserError, match=r"the disk of .* is full; free space"):
        send(conn)
    (box.bin / "tar").unlink()
    send(conn)


def test_folder_that_may_not_be_written_is_one_line_with_the_user(conn, box):
    # As mkdir meets it, unless it runs as root.
    (box.bin / "mkdir").write_text(
        "#!/bin/bash\necho \"mkdir: cannot create directory '/x': Permission denied\" >&2; exit 1\n"
    )
    (box.bin / "mkdir").chmod(0o755)
    with pytest.raises(
        UserError, match=r"may not write the release on .* Permission denied\); make the folder"
    ):
        send(conn)


def releases(box):
    return [entry.name for entry in (box.root / "releases").iterdir()]


def _age(box):
    """Make every release look a minute older: they are told apart by the second."""
    for release in (box.root / "releases").iterdir():
        seen = release.stat().st_mtime
        os.utime(release, (seen - 60, seen - 60))
