"""Which files are a folder's data, and which of them a box lacks."""

import os
import sys

import pytest

from ops.data_files import DataFile, batches, compare, files_in
from worker.errors import BadInput

POSIX = pytest.mark.skipif(os.name == "nt", reason="links need a right there")


@pytest.fixture
def folder(tmp_path):
    made = tmp_path / "data"
    (made / "audio").mkdir(parents=True)
    (made / "audio" / "кот 1.wav").write_bytes(b"meow")
    os.utime(made / "audio" / "кот 1.wav", (7.9, 7.9))
    return made


def test_files_have_paths_with_slashes_and_whole_seconds(folder):
    assert files_in(folder) == {"audio/кот 1.wav": DataFile("audio/кот 1.wav", 4, 7)}


@POSIX
def test_link_counts_as_what_it_leads_to(folder, tmp_path):
    (tmp_path / "more").mkdir()
    (tmp_path / "more" / "a.wav").write_bytes(b"12")
    (folder / "more").symlink_to(tmp_path / "more")
    (folder / "b.wav").symlink_to(tmp_path / "more" / "a.wav")
    assert {path: file.n_bytes for path, file in files_in(folder).items()} == {
        "audio/кот 1.wav": 4,
        "b.wav": 2,
        "more/a.wav": 2,
    }


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda folder: folder / "no", "there is no folder .*no; give"),
        (lambda folder: folder / "audio" / "кот 1.wav", "is a file; give the folder that it is in"),
        (
            lambda folder: (folder / "empty" / "er").mkdir(parents=True) or folder / "empty",
            "there is no file",
        ),
    ],
    ids=["missing", "a file", "empty"],
)
def test_source_that_is_no_folder_of_files_is_refused(folder, make, said):
    with pytest.raises(BadInput, match=said):
        files_in(make(folder))


@POSIX
@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda folder: (folder / "x").symlink_to(folder / "gone"), "cannot read .*x .No such file"),
        (lambda folder: (folder / "audio" / "x").symlink_to(folder), "x is a link to a folder that it is in"),
        (lambda folder: os.mkfifo(folder / "x"), "x is neither a file nor a folder"),
    ],
    ids=["broken link", "loop", "pipe"],
)
def test_what_cannot_be_sent_is_named(folder, make, said):
    make(folder)
    with pytest.raises(BadInput, match=said):
        files_in(folder)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux takes any bytes as a name")
def test_name_that_is_not_utf_8_is_refused(folder):
    os.close(os.open(os.fsencode(folder) + b"/\xff.wav", os.O_CREAT))
    with pytest.raises(BadInput, match=r"'\\udcff.wav' in .* is not UTF-8; rename it"):
        files_in(folder)


def test_size_decides_and_another_time_or_an_unverified_file_is_compared():
    here = {name: DataFile(name, 1, 1) for name in ("new", "longer", "touched", "sent", "same")}
    there = {
        "longer": DataFile("longer", 2, 1),
        "touched": DataFile("touched", 1, 2),
        "sent": DataFile("sent", 1, 1),
        "same": DataFile("same", 1, 1),
        "old": DataFile("old", 9, 9),
    }
    found = compare(here, there, unverified={"sent"})
    assert [file.path for file in found.to_send] == ["new", "longer"]
    assert [file.path for file in found.to_compare] == ["touched", "sent"]
    assert [file.path for file in found.unchanged] == ["same"]
    assert found.extra == [there["old"]]


def test_batches_keep_the_order_and_both_limits_but_never_split_a_file():
    files = [DataFile(str(n), size, 0) for n, size in enumerate([3, 3, 9, 1, 1, 1])]
    found = [[file.n_bytes for file in batch] for batch in batches(files, 6, 2)]
    assert found == [[3, 3], [9], [1, 1], [1]]
