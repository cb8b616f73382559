"""The code a machine runs is pinned: by its archive's checksum, or by a commit that holds all of it."""

import hashlib
import io
import subprocess
import tarfile

import pytest

from ops import release
from worker.errors import BadInput


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
    with pytest.raises(BadInput, match="changes that no commit has"):
        release.from_git(checkout, checkout / "prompts.txt", "https://example.com/x.git")


@pytest.mark.parametrize("who", ["me:ghp_planted", "ghp_planted", "x-access-token:ghp_planted"])
def test_an_address_with_credentials_is_refused_and_not_repeated(checkout, who):
    with pytest.raises(BadInput, match="holds credentials") as caught:
        release.from_git(checkout, checkout / "prompts.txt", f"https://{who}@example.com/x.git")
    assert "ghp_planted" not in str(caught.value)


def test_with_git_the_list_must_be_the_repository_s(checkout, tmp_path):
    (tmp_path / "mine.txt").write_text("loud ; 5 ; loud\n")
    with pytest.raises(BadInput, match=r"the list is the repository's prompts\.txt"):
        release.from_git(checkout, tmp_path / "mine.txt", "https://example.com/x.git")


def test_a_folder_without_git_has_no_commit(tmp_path):
    with pytest.raises(BadInput, match="no git checkout"):
        release.from_git(tmp_path, tmp_path / "prompts.txt", "https://example.com/x.git")
