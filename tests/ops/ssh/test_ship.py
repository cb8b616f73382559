"""A release: what is in it, what never is, and that a box has it whole or not at all."""

import hashlib
import io
import os
import shutil
import subprocess
import tarfile

import pytest

from ops.ssh import ship
from tests.ops.ssh.connect import connected
from worker.errors import BadInput, UserError


@pytest.fixture
def tree(tmp_path):
    """A small project under git, with a job list."""
    root = tmp_path / "project"
    files = {
        "worker/__init__.py": "print(1)\n",
        "remote/go.sh": "#!/bin/bash\necho go\n",
        "requirements/worker.txt": "torch==2.13.0\n",
        "prompts.txt": "rain ; 1 ; rain\n",
        ".gitignore": ".env\nout/\n",
        ".env": "AWS_SECRET_ACCESS_KEY=hush\n",
        "out/song.wav": "RIFF",
    }
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text, newline="\n")
    subprocess.run(["git", "init", "-q", str(root)], check=True)
    return root


def pack(root):
    return ship.pack(root / "prompts.txt", root)


def contents(release):
    with tarfile.open(fileobj=io.BytesIO(release.archive)) as tar:
        return {entry.name: tar.extractfile(entry).read() for entry in tar}


# --- what is in it


def test_ignored_files_stay_at_home(tree):
    assert sorted(contents(pack(tree))) == [
        ".gitignore",
        "prompts.txt",
        "remote/go.sh",
        "requirements/worker.txt",
        "worker/__init__.py",
    ]


@pytest.mark.parametrize(
    "name", [".env", ".env.production", "keys/box.pem", ".runpod.env", ".boxes/x/box.json"]
)
def test_what_may_hold_a_secret_stays_even_where_git_tracks_it(tree, name):
    (tree / ".gitignore").write_text("")
    (tree / name).parent.mkdir(parents=True, exist_ok=True)
    (tree / name).write_text("hush")
    subprocess.run(["git", "-C", str(tree), "add", "-f", name], check=True)
    assert name not in contents(pack(tree))


@pytest.mark.parametrize("line", ["-----BEGIN OPENSSH PRIVATE KEY-----", "PuTTY-User-Key-File-3: x"])
def test_private_key_stays_whatever_its_name(tree, line):
    (tree / "worker" / "pod_key").write_text(f"{line}\nhush\n")
    assert "worker/pod_key" not in contents(pack(tree))


def test_new_file_goes_along(tree):
    (tree / "worker" / "new.py").write_text("")
    assert "worker/new.py" in contents(pack(tree))


def test_copy_without_git_ships_code_but_no_secrets(tree):
    shutil.rmtree(tree / ".git")
    assert {"worker/__init__.py", "remote/go.sh", "prompts.txt"} <= set(contents(pack(tree)))
    assert not {".env", "out/song.wav"} & set(contents(pack(tree)))


def test_windows_checkout_gives_the_same_release(tree):
    before = pack(tree)
    for path in (tree / "remote" / "go.sh", tree / "prompts.txt"):
        path.write_bytes(path.read_bytes().replace(b"\n", b"\r\n"))
        path.chmod(0o600)
    after = pack(tree)
    assert after.name == before.name and after.archive == before.archive
    assert contents(after)["remote/go.sh"] == b"#!/bin/bash\necho go\n"


def test_binary_file_is_not_touched(tree):
    (tree / "worker" / "table.bin").write_bytes(b"\0\r\n\xff")
    assert contents(pack(tree))["worker/table.bin"] == b"\0\r\n\xff"


def test_other_content_is_another_release(tree):
    before = pack(tree)
    (tree / "prompts.txt").write_text("sun ; 1 ; sun\n")
    assert pack(tree).name != before.name


def test_script_can_be_executed_and_nothing_else(tree):
    with tarfile.open(fileobj=io.BytesIO(pack(tree).archive)) as tar:
        assert [entry.name for entry in tar if entry.mode & 0o111] == ["remote/go.sh"]


def test_list_from_elsewhere_becomes_prompts_txt_with_its_lyrics(tree, tmp_path):
    (tmp_path / "album" / "lyrics").mkdir(parents=True)
    (tmp_path / "album" / "lyrics" / "song.txt").write_text("la la")
    list_file = tmp_path / "album" / "list.txt"
    list_file.write_text("sun ; 1 ; sun ; lyrics=lyrics/song.txt\n")
    found = contents(ship.pack(list_file, tree))
    assert found["prompts.txt"] == list_file.read_bytes()
    assert found["lyrics/song.txt"] == b"la la"


def test_wrong_list_is_refused_with_its_line(tree):
    (tree / "prompts.txt").write_text("rain ; 1e9 ; rain\n")
    with pytest.raises(BadInput, match=r"prompts\.txt:1: "):
        pack(tree)


def test_tree_that_is_too_large_is_refused_and_names_the_largest(tree, monkeypatch):
    monkeypatch.setattr(ship, "MAX_BYTES", 1000)
    (tree / "worker" / "weights.bin").write_bytes(b"\0" * 2000)
    with pytest.raises(BadInput, match=r"\.gitignore \(largest: worker/weights\.bin"):
        pack(tree)


# --- on the box


@pytest.fixture
def conn(box, tmp_path):
    with connected(box, tmp_path) as conn:
        yield conn


def send(conn, tree, **files):
    for name, text in files.items():
        (tree / "worker" / f"{name}.py").write_text(text)
    return ship.send(conn, pack(tree))


def test_release_becomes_the_current_one(conn, box, tree):
    first = send(conn, tree)
    assert str((box.root / "current").readlink()) == f"releases/{first.release.name}"
    second = send(conn, tree, more="x = 1\n")
    assert (box.root / "current" / "worker" / "more.py").read_text() == "x = 1\n"
    assert sorted(releases(box)) == sorted([first.release.name, second.release.name])


def test_same_release_again_changes_nothing(conn, box, tree):
    name = send(conn, tree).release.name
    inode = (box.root / "releases" / name / "prompts.txt").stat().st_ino
    send(conn, tree)
    assert (box.root / "releases" / name / "prompts.txt").stat().st_ino == inode


def test_three_releases_are_kept(conn, box, tree):
    names = []
    for n in range(5):
        names.append(send(conn, tree, more=f"x = {n}\n").release.name)
        _age(box)
    assert sorted(releases(box)) == sorted(names[-3:])


def test_release_of_a_run_that_has_not_ended_is_never_deleted(conn, box, tree):
    used = send(conn, tree, more="used = 1\n").release.name
    run = box.root / "state" / "20261122T195059Z-ab12"
    run.mkdir(parents=True)
    (run / "release").write_text(f"{box.root}/releases/{used}\n")
    for n in range(4):
        _age(box)
        send(conn, tree, more=f"x = {n}\n")
    assert used in releases(box)
    (run / "exit_code").write_text("0\n")
    _age(box)
    send(conn, tree, more="x = 9\n")
    assert used not in releases(box)


def test_environment_that_is_not_made_from_the_requirements_is_noticed_each_time(conn, box, tree):
    box.box_home.mkdir()
    made_from = hashlib.sha256((tree / "requirements" / "worker.txt").read_bytes()).hexdigest()
    (box.box_home / "venv.stamp").write_text(f"{made_from}  - /usr/bin/python3\n")
    assert not send(conn, tree).needs_install
    assert not send(conn, tree, more="x = 1\n").needs_install
    (tree / "requirements" / "worker.txt").write_text("torch==2.14.0\n")
    assert send(conn, tree).needs_install
    assert send(conn, tree).needs_install


def test_broken_stream_leaves_the_current_release_and_the_next_try_works(conn, box, tree):
    good = send(conn, tree).release
    broken = ship.Release("feedfacebeef", pack(tree).archive[:-40], 1, 1)
    with pytest.raises(UserError, match="did not take the release"):
        ship.send(conn, broken)
    assert releases(box) == [good.name]
    assert send(conn, tree, more="x = 1\n").release.name in releases(box)


def test_full_disk_is_one_line(conn, box, tree):
    # As tar meets it: its own words and a failure.
    (box.bin / "tar").write_text(
        "#!/bin/bash\necho 'tar: x: Cannot write: No space left on device' >&2; exit 2\n"
    )
    (box.bin / "tar").chmod(0o755)
    with pytest.raises(UserError, match=r"the disk of .* is full; free space"):
        send(conn, tree)
    (box.bin / "tar").unlink()
    send(conn, tree)


def releases(box):
    return [entry.name for entry in (box.root / "releases").iterdir()]


def _age(box):
    """Make every release look a minute older: they are told apart by the second."""
    for release in (box.root / "releases").iterdir():
        seen = release.stat().st_mtime
        os.utime(release, (seen - 60, seen - 60))
