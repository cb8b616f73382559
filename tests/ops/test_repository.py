"""ops/repository.py: the commit of a checkout, and no failure where there is none."""

import subprocess

import pytest

from ops import repository


@pytest.fixture
def checkout(tmp_path):
    """A git checkout of one committed file; -> its folder."""
    (tmp_path / "a.txt").write_text("one\n")
    git = ["git", "-c", "user.name=t", "-c", "user.email=t@example.com", "-C", str(tmp_path)]
    subprocess.run(["git", "init", "-q", str(tmp_path)], check=True)
    subprocess.run([*git, "add", "."], check=True)
    subprocess.run([*git, "commit", "-qm", "one"], check=True)
    return tmp_path


def test_root_holds_tasks_py():
    assert (repository.ROOT / "tasks.py").exists()


def test_commit_is_12_digits_of_head(checkout):
    whole = repository.git("rev-parse", "HEAD", root=checkout).strip()
    assert repository.commit(checkout) == repository.head(checkout) == whole[:12]


def test_commit_of_a_changed_tree_ends_with_a_plus(checkout):
    (checkout / "a.txt").write_text("two\n")
    assert repository.commit(checkout) == repository.head(checkout) + "+"


def test_files_have_their_exact_names(checkout):
    names = [" leading", "trailing ", "two words", "käse"]
    for name in names:
        (checkout / name).touch()
    assert repository.files("--others", root=checkout) == sorted(names)


def test_outside_a_checkout_there_is_no_commit(tmp_path):
    assert (repository.commit(tmp_path), repository.head(tmp_path)) == ("", "")
    assert repository.git("status", root=tmp_path) is None


def test_without_git_there_is_no_commit(checkout, monkeypatch):
    monkeypatch.setenv("PATH", "")
    assert repository.commit(checkout) == ""
