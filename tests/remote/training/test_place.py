"""remote/training/place.py: the training's repository at its fixed place, and nothing of its outputs lost."""

import subprocess
import tarfile

import pytest

from remote.training import place
from remote.training.refusal import Failure, Refusal


def git(folder, *words):
    command = ["git", "-c", "user.name=A", "-c", "user.email=a@b.c", *words]
    return subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True).stdout.strip()


class Origin:
    """A bare repository on disk, and the working tree that pushes to it."""

    def __init__(self, folder):
        self.folder, self.url = folder / "work", str(folder / "whisper.git")
        self.folder.mkdir(parents=True)
        git(folder, "init", "--quiet", "--bare", self.url)
        git(self.folder, "init", "--quiet", "--initial-branch", "main")
        git(self.folder, "remote", "add", "origin", self.url)

    def commit(self, **files):
        for name, content in files.items():
            (self.folder / name).write_text(content)
        git(self.folder, "add", "--all")
        git(self.folder, "commit", "--quiet", "--message", "a")
        git(self.folder, "push", "--quiet", "origin", "main")
        return git(self.folder, "rev-parse", "HEAD")


@pytest.fixture
def origin(tmp_path):
    return Origin(tmp_path / "origin")


@pytest.fixture
def workspace(tmp_path, monkeypatch):
    folder = tmp_path / "workspace"
    folder.mkdir()
    monkeypatch.setenv("MUSICGEN_WORKSPACE", str(folder))
    return folder


def test_clone_has_the_files_of_its_commit_and_not_of_a_later_one(origin, workspace):
    first = origin.commit(a="1")
    origin.commit(a="2")
    folder = place.folder("", origin.url)
    place.clone(origin.url, first, folder)
    assert folder == workspace / "whisper"
    assert (folder / "a").read_text() == "1"
    assert git(folder, "rev-parse", "HEAD") == first


def test_clone_moves_to_another_commit_and_leaves_outputs_alone(origin, workspace):
    folder = workspace / "whisper"
    place.clone(origin.url, origin.commit(a="1"), folder)
    (folder / "checkpoints").mkdir()
    (folder / "checkpoints" / "b").write_text("of the training")
    place.clone(origin.url, origin.commit(a="2"), folder)
    assert (folder / "a").read_text() == "2"
    assert (folder / "checkpoints" / "b").read_text() == "of the training"


def test_clone_that_is_there_needs_no_network(origin, workspace):
    commit = origin.commit(a="1")
    folder = workspace / "whisper"
    place.clone(origin.url, commit, folder)
    (workspace.parent / "origin" / "whisper.git").rename(workspace.parent / "gone")
    place.clone(origin.url, commit, folder)
    assert (folder / "a").read_text() == "1"


def test_clone_that_was_changed_on_the_box_is_refused(origin, workspace):
    folder = workspace / "whisper"
    place.clone(origin.url, origin.commit(a="1"), folder)
    (folder / "a").write_text("changed here")
    with pytest.raises(Refusal, match=r"was changed on this box \(a\); commit that"):
        place.clone(origin.url, origin.commit(a="2"), folder)
    assert (folder / "a").read_text() == "changed here"


def test_checkout_that_was_killed_is_finished(origin, workspace):
    folder = workspace / "whisper"
    place.clone(origin.url, origin.commit(a="1", b="1"), folder)
    commit = origin.commit(a="2", b="2")
    # as git leaves it when it is killed between two files
    (folder / ".git" / "musicgen-checkout").touch()
    (folder / ".git" / "index.lock").touch()
    (folder / "a").write_text("2")
    place.clone(origin.url, commit, folder)
    assert [(folder / name).read_text() for name in "ab"] == ["2", "2"]
    assert git(folder, "status", "--porcelain", "--untracked-files=no") == ""


def test_clone_of_another_repository_is_refused(origin, workspace):
    place.clone(origin.url, origin.commit(a="1"), workspace / "whisper")
    with pytest.raises(Refusal, match="is a clone of another repository; choose another folder with --name"):
        place.clone(origin.url + "2", "0" * 40, workspace / "whisper")


def test_commit_that_was_not_pushed_is_refused(origin, workspace):
    origin.commit(a="1")
    with pytest.raises(Refusal, match="has no commit 0000000000000000000000000000000000000000; push it"):
        place.clone(origin.url, "0" * 40, workspace / "whisper")


@pytest.mark.parametrize("commit", ["", "main", "abc123", "0" * 39])
def test_what_is_no_whole_commit_is_refused(origin, workspace, commit):
    with pytest.raises(Refusal, match="is not a commit; give its whole 40 digits"):
        place.clone(origin.url, commit, workspace / "whisper")


@pytest.mark.parametrize("login", ["me:geheim", "geheim"])
def test_url_with_a_login_is_refused_and_not_printed(workspace, login):
    with pytest.raises(Refusal, match="has a login in it; ship the tree") as refused:
        place.clone(f"https://{login}@example.com/a.git", "0" * 40, workspace / "a")
    assert "geheim" not in str(refused.value)


def test_repository_that_cannot_be_reached_is_one_line(workspace, tmp_path):
    with pytest.raises(Failure, match=r"^git fetch failed in .*; put that right, then start it again$"):
        place.clone(str(tmp_path / "none.git"), "0" * 40, workspace / "a")


@pytest.mark.parametrize("name", ["data", "logs", "models", "musicgen", "../up", ".hidden", "a/b", "a b"])
def test_folder_that_is_something_elses_is_refused(workspace, name):
    with pytest.raises(Refusal, match="choose another with --name"):
        place.folder(name)


@pytest.mark.parametrize(
    ("url", "name"),
    [("https://x.org/me/asr.git", "asr"), ("git@x.org:me/asr.git", "asr"), ("https://x.org/asr/", "asr")],
)
def test_folder_is_named_after_the_repository(workspace, url, name):
    assert place.folder("", url) == workspace / name


def test_without_a_volume_it_is_under_the_root(tmp_path, monkeypatch):
    monkeypatch.setenv("MUSICGEN_WORKSPACE", str(tmp_path / "none"))
    monkeypatch.setenv("MUSICGEN_BOX_ROOT", str(tmp_path / "root"))
    assert place.folder("asr") == tmp_path / "root" / "asr"


def tree(tmp_path, **files):
    archive = tmp_path / "tree.tar.gz"
    with tarfile.open(archive, "w:gz") as tar:
        for name, content in files.items():
            (tmp_path / "one").write_text(content)
            tar.add(tmp_path / "one", f"src/{name}")
    return archive


def test_shipped_tree_replaces_the_earlier_one_and_leaves_outputs_alone(tmp_path, workspace):
    folder = workspace / "asr"
    place.unpack(tree(tmp_path, a="1", b="1"), folder)
    (folder / "src" / "out").write_text("of the training")
    place.unpack(tree(tmp_path, a="2", c="2"), folder)
    names = {path.name: path.read_text() for path in (folder / "src").iterdir()}
    assert names == {"a": "2", "c": "2", "out": "of the training"}


def test_shipped_tree_never_replaces_what_it_did_not_bring(tmp_path, workspace):
    folder = workspace / "asr"
    place.unpack(tree(tmp_path, a="1"), folder)
    (folder / "src" / "b").write_text("of the training")
    with pytest.raises(Refusal, match="was not shipped; move it away first"):
        place.unpack(tree(tmp_path, a="2", b="2"), folder)
    assert (folder / "src" / "b").read_text() == "of the training"
    assert (folder / "src" / "a").read_text() == "1"


def test_clone_and_shipped_tree_do_not_share_a_folder(tmp_path, origin, workspace):
    commit = origin.commit(a="1")
    place.clone(origin.url, commit, workspace / "a")
    place.unpack(tree(tmp_path, a="1"), workspace / "b")
    with pytest.raises(Refusal, match="has a clone"):
        place.unpack(tree(tmp_path, a="1"), workspace / "a")
    with pytest.raises(Refusal, match="has a shipped tree"):
        place.clone(origin.url, commit, workspace / "b")


def test_archive_that_is_damaged_is_one_line_and_nothing_is_left(tmp_path, workspace):
    (tmp_path / "a.tar.gz").write_bytes(b"no archive")
    with pytest.raises(Failure, match="cannot be unpacked"):
        place.unpack(tmp_path / "a.tar.gz", workspace / "asr")
    assert list((workspace / "asr").iterdir()) == []


def test_repository_keeps_data_of_its_own(workspace):
    folder = workspace / "asr"
    (workspace / "data").mkdir()
    (folder / "data").mkdir(parents=True)
    place.link_data(folder)
    assert not (folder / "data").is_symlink()
