"""A release: what is in it, what never is, and that it is pinned by a checksum or by a commit."""

import hashlib
import io
import os
import shutil
import subprocess
import sys
import tarfile

import pytest

from ops import release
from tests.songs import wav_bytes
from worker.errors import BadInput
from worker.songs import audio_file, jobs


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
    return release.from_tree(root, root / "prompts.txt")


def contents(made):
    with tarfile.open(fileobj=io.BytesIO(made.archive)) as tar:
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


def test_table_goes_as_the_job_list_and_is_read_as_one_on_the_box(tree):
    table = 'prompt,seconds,name\r\n"rain; slow",3:00,rain\r\n'
    (tree / "songs.csv").write_text(table, newline="")
    made = release.from_tree(tree, tree / "songs.csv")
    assert jobs.parse(contents(made)["prompts.txt"]) == jobs.load(tree / "songs.csv")


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
    assert after.id == before.id and after.archive == before.archive
    assert contents(after)["remote/go.sh"] == b"#!/bin/bash\necho go\n"


def test_binary_file_is_not_touched(tree):
    (tree / "worker" / "table.bin").write_bytes(b"\0\r\n\xff")
    assert contents(pack(tree))["worker/table.bin"] == b"\0\r\n\xff"


def test_other_content_is_another_release(tree):
    before = pack(tree)
    (tree / "prompts.txt").write_text("sun ; 1 ; sun\n")
    assert pack(tree).id != before.id


def test_script_can_be_executed_and_nothing_else(tree):
    with tarfile.open(fileobj=io.BytesIO(pack(tree).archive)) as tar:
        assert [entry.name for entry in tar if entry.mode & 0o111] == ["remote/go.sh"]


def test_list_from_elsewhere_becomes_prompts_txt_with_its_lyrics(tree, tmp_path):
    (tmp_path / "album" / "lyrics").mkdir(parents=True)
    (tmp_path / "album" / "lyrics" / "song.txt").write_text("la la")
    list_file = tmp_path / "album" / "list.txt"
    list_file.write_text("sun ; 1 ; sun ; lyrics=lyrics/song.txt\n")
    found = contents(release.from_tree(tree, list_file))
    assert found["prompts.txt"] == list_file.read_bytes()
    assert found["lyrics/song.txt"] == b"la la"


def test_lyrics_beside_the_list_go_along_byte_for_byte_for_a_model_that_sings(tree, tmp_path):
    (tmp_path / "lyrics").mkdir()
    (tmp_path / "lyrics" / "sun.txt").write_bytes(b"[verse]\r\nla la\r\n")
    (tmp_path / "list.txt").write_text("pop ; 60 ; sun\n")
    found = contents(release.from_tree(tree, tmp_path / "list.txt", "heartmula"))
    assert found["lyrics/sun.txt"] == b"[verse]\r\nla la\r\n"
    assert "lyrics/sun.txt" not in contents(release.from_tree(tree, tmp_path / "list.txt", "rehearsal"))


def test_audio_that_is_continued_goes_along_byte_for_byte(tree, tmp_path):
    album = tmp_path / "album"
    (album / "takes").mkdir(parents=True)
    content = b"ID3" + b"\r\n" * 100  # an MP3 may have no NUL
    (album / "takes" / "my take.mp3").write_bytes(content)
    (album / "list.txt").write_text("sun ; 60 ; sun ; continue=takes\\my take.mp3\n")
    shipped = tmp_path / "shipped"
    shipped.mkdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(audio_file, "_seconds", lambda path: None)  # it is no music
        made = release.from_tree(tree, album / "list.txt")
        found = contents(made)
        assert found["takes/my take.mp3"] == content
        with tarfile.open(fileobj=io.BytesIO(made.archive)) as tar:
            tar.extractall(shipped, filter="data")
        there, here = jobs.load(shipped / "prompts.txt"), jobs.load(album / "list.txt")
    assert [job.song for job in there] == [job.song for job in here]


def test_audio_beside_the_code_is_not_counted_as_code(tree, monkeypatch):
    (tree / "take.wav").write_bytes(wav_bytes(2))
    (tree / "prompts.txt").write_text("sun ; 60 ; sun ; continue=take.wav\n")
    monkeypatch.setattr(release, "MAX_BYTES", 1000)
    assert contents(pack(tree))["take.wav"] == wav_bytes(2)


def test_audio_that_is_too_large_is_refused_with_what_to_do(tree, monkeypatch):
    (tree / "take.wav").write_bytes(wav_bytes(2))
    (tree / "prompts.txt").write_text("sun ; 60 ; sun ; continue=take.wav\n")
    monkeypatch.setattr(release, "MAX_AUDIO_BYTES", 100_000)
    with pytest.raises(BadInput, match=r"have 0\.1 MB, over 0\.1 MB; convert .* \(largest: take\.wav\)"):
        pack(tree)


def test_wrong_list_is_refused_with_its_line(tree):
    (tree / "prompts.txt").write_text("rain ; 1e9 ; rain\n")
    with pytest.raises(BadInput, match=r"prompts\.txt:1: "):
        pack(tree)


def test_tree_that_is_too_large_is_refused_and_names_the_largest(tree, monkeypatch):
    monkeypatch.setattr(release, "MAX_BYTES", 1000)
    (tree / "worker" / "weights.bin").write_bytes(b"\0" * 2000)
    with pytest.raises(BadInput, match=r"\.gitignore \(largest: worker/weights\.bin"):
        pack(tree)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux takes any bytes as a name")
@pytest.mark.parametrize("name", [b" leading.txt", b"trailing ", b"latin-\xe4.txt"])
def test_file_is_shipped_whatever_its_name(tree, name):
    (tree / os.fsdecode(name)).write_text("here\n")
    with tarfile.open(fileobj=io.BytesIO(pack(tree).archive)) as tar:
        assert os.fsencode("\n".join(tar.getnames())).split(b"\n").count(name) == 1


# --- how it is pinned


@pytest.fixture
def checkout(tmp_path):
    """A git checkout with a job list, everything committed; -> its folder."""
    root = tmp_path / "checkout"
    (root / "worker").mkdir(parents=True)
    (root / "worker" / "__init__.py").write_text("")
    (root / "prompts.txt").write_text("calm ; 30 ; calm\n")
    git = ["git", "-c", "user.name=t", "-c", "user.email=t@example.com", "-C", str(root)]
    subprocess.run(["git", "init", "-q", str(root)], check=True)
    subprocess.run([*git, "add", "."], check=True)
    subprocess.run([*git, "commit", "-qm", "one"], check=True)
    return root


def test_a_folder_is_pinned_by_the_sha256_of_what_is_uploaded(checkout):
    made = release.from_tree(checkout, checkout / "prompts.txt")
    assert made.sha256 == hashlib.sha256(made.archive).hexdigest()
    assert made.key == f"code/{made.sha256}.tar.gz"
    assert release.from_tree(checkout, checkout / "prompts.txt") == made


def test_the_user_s_own_list_goes_along_as_prompts_txt(checkout, tmp_path):
    (tmp_path / "mine.txt").write_text("loud ; 5 ; loud\n")
    made = release.from_tree(checkout, tmp_path / "mine.txt")
    with tarfile.open(fileobj=io.BytesIO(made.archive)) as tar:
        assert tar.extractfile("prompts.txt").read() == b"loud ; 5 ; loud\n"


def test_a_commit_is_pinned_by_its_whole_hash(checkout):
    made = release.from_git(checkout, checkout / "prompts.txt", "https://example.com/x.git")
    assert (len(made.commit), made.archive, made.key) == (40, b"", "")


def test_changes_that_no_commit_has_are_refused(checkout):
    (checkout / "worker" / "new.py").write_text("")
    with pytest.raises(BadInput, match="uncommitted changes"):
        release.from_git(checkout, checkout / "prompts.txt", "https://example.com/x.git")


@pytest.mark.parametrize("who", ["me:ghp_planted", "ghp_planted", "x-access-token:ghp_planted"])
def test_an_address_with_credentials_is_refused_and_not_repeated(checkout, who):
    with pytest.raises(BadInput, match="contains credentials") as caught:
        release.from_git(checkout, checkout / "prompts.txt", f"https://{who}@example.com/x.git")
    assert "ghp_planted" not in str(caught.value)


def test_with_git_the_list_must_be_the_repository_s(checkout, tmp_path):
    (tmp_path / "mine.txt").write_text("loud ; 5 ; loud\n")
    with pytest.raises(BadInput, match=r"the job list is the repository's prompts\.txt"):
        release.from_git(checkout, tmp_path / "mine.txt", "https://example.com/x.git")


def test_audio_that_the_commit_lacks_is_refused(checkout):
    git = ["git", "-c", "user.name=t", "-c", "user.email=t@example.com", "-C", str(checkout)]
    (checkout / ".gitignore").write_text("*.wav\n")
    (checkout / "take.wav").write_bytes(wav_bytes(2))
    (checkout / "prompts.txt").write_text("sun ; 60 ; sun ; continue=take.wav\n")
    subprocess.run([*git, "add", "."], check=True)
    subprocess.run([*git, "commit", "-qm", "two"], check=True)
    with pytest.raises(BadInput, match=r"take\.wav is not in the commit; commit and push it"):
        release.from_git(checkout, checkout / "prompts.txt", "https://example.com/x.git")


def test_a_folder_without_git_has_no_commit(tmp_path):
    with pytest.raises(BadInput, match="not a git checkout"):
        release.from_git(tmp_path, tmp_path / "prompts.txt", "https://example.com/x.git")
