"""Which store a location names."""

import pytest

from tests.worker.store.parts import child, error_of
from worker.store.open import open_store, s3_address


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


def test_address_is_split_into_bucket_and_prefix():
    assert s3_address("s3://bucket") == s3_address("s3://bucket/") == ("bucket", "")
    assert s3_address(" S3://my.bucket-1/a/b/ ") == ("my.bucket-1", "a/b")
    assert s3_address("out/songs") is None


@pytest.mark.parametrize("address", ["s3://", "s3://UPPER/x", "s3://bucket//x", "s3://bucket/../x"])
def test_wrong_address_is_bad_input_and_not_a_folder(address):
    assert error_of(s3_address, address).code == 2


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
