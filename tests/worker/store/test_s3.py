"""A store in S3: lost answers, refusals in one line, look-alikes."""

import json
import os
import socket
from concurrent.futures import ThreadPoolExecutor

import boto3
import pytest

from tests.fakes import s3
from tests.worker.store.parts import error_of
from worker.errors import Denied, Unreachable, UserError
from worker.store import retry
from worker.store.base import Missing
from worker.store.open import open_store
from worker.store.retry import Retry


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


def test_list_leaves_out_names_that_are_not_valid_keys(bucket):
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


def test_lost_answer_is_known_to_be_ours_from_one_call_to_the_next(bucket, s3_url, monkeypatch, tmp_path):
    (tmp_path / "song").write_bytes(b"song")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    with s3.gated(s3_url) as gate:
        monkeypatch.setenv("AWS_ENDPOINT_URL", gate.url)
        store = open_store(f"s3://{bucket}")
        etag = store.write("claim", b"old")
        for act in (
            lambda: store.create("new", b"mine"),
            lambda: store.create_file("song", tmp_path / "song"),
            lambda: store.replace("claim", b"renewed", etag),
        ):
            gate.loses_answers = True
            with pytest.raises(Unreachable):
                act()
            gate.loses_answers = False
            assert act()
            assert act() is None  # it is known to have won, so this is another one


def test_equal_content_of_another_writer_is_not_ours(bucket, s3_url, monkeypatch):
    assert open_store(f"s3://{bucket}").create("song", b"the same bytes")
    with s3.failing_once(s3_url, "PUT") as url:
        monkeypatch.setenv("AWS_ENDPOINT_URL", url)
        assert open_store(f"s3://{bucket}").create("song", b"the same bytes") is None


def test_song_whose_answer_was_lost_is_not_read_back(bucket, s3_url, monkeypatch, tmp_path):
    (tmp_path / "song").write_bytes(b"song" * 100_000)
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    with s3.gated(s3_url) as gate:
        monkeypatch.setenv("AWS_ENDPOINT_URL", gate.url)
        store = open_store(f"s3://{bucket}")
        gate.loses_answers = True
        with pytest.raises(Unreachable):
            store.create_file("song", tmp_path / "song")
        gate.loses_answers = False
        assert store.create_file("song", tmp_path / "song")
    assert "GET" not in [method for method, _ in gate.seen]


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


@pytest.mark.parametrize("program", ["/no/such/s3cret", "echo s3cret", "false s3cret"])
def test_a_credential_program_that_does_not_work_is_named_on_opening(s3_url, monkeypatch, tmp_path, program):
    (tmp_path / "config").write_text(f"[profile songs]\ncredential_process = {program}\n")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    monkeypatch.setenv("AWS_PROFILE", "songs")
    said = str(error_of(open_store, "s3://some-bucket"))
    assert "credential_process" in said
    assert "s3cret" not in said and "expired" not in said


def test_the_region_of_other_tools_counts_where_boto3_s_is_not_set(s3_url, monkeypatch):
    monkeypatch.setenv("AWS_REGION", "eu-west-1")
    regions = []
    for name in ("AWS_DEFAULT_REGION", "AWS_REGION"):
        regions.append(open_store("s3://some-bucket")._client.meta.region_name)
        monkeypatch.delenv(name)
    assert regions == ["us-east-1", "eu-west-1"]


def test_descriptions_of_aws_are_read_once_for_all_stores(monkeypatch):
    monkeypatch.setenv("AWS_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    open_store("s3://some-bucket")
    read = []
    monkeypatch.setattr("botocore.loaders.JSONFileLoader.load_file", lambda self, path: read.append(path))
    open_store("s3://another-bucket")
    assert read == []


# --- refused what was allowed before


@pytest.mark.parametrize("code", ["AccessDenied", "RequestTimeTooSkewed", "SignatureDoesNotMatch"])
def test_refusal_of_what_was_allowed_before_is_denied_for_now(bucket, s3_url, monkeypatch, code):
    with s3.gated(s3_url) as gate:
        monkeypatch.setenv("AWS_ENDPOINT_URL", gate.url)
        store = open_store(f"s3://{bucket}")
        store.write("key", b"")
        gate.refusal = (403, code)
        with pytest.raises(Denied):
            store.write("key", b"")
        gate.refusal = None
        store.write("key", b"")


def test_refusal_of_what_was_never_allowed_is_final(bucket, s3_url, monkeypatch):
    with s3.gated(s3_url) as gate:
        monkeypatch.setenv("AWS_ENDPOINT_URL", gate.url)
        store = open_store(f"s3://{bucket}")
        assert store.list() == {}
        gate.refusal = (403, "AccessDenied")
        with pytest.raises(Denied):
            store.list()
        with pytest.raises(UserError) as caught:
            store.write("key", b"")
    assert not isinstance(caught.value, Unreachable)


@pytest.mark.parametrize(
    "refusal",
    [
        *[(403, "AccessDenied"), (403, "RequestTimeTooSkewed"), (400, "RequestTimeout")],
        *[(409, "OperationAborted"), (400, "BadRequest"), (503, "SlowDown"), (429, "TooManyRequests")],
    ],
)
def test_short_failure_is_waited_out(bucket, s3_url, monkeypatch, tmp_path, refusal):
    (tmp_path / "song").write_bytes(b"song")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    monkeypatch.setattr(retry, "_PAUSES_S", (0.01,))
    heard = []
    with s3.gated(s3_url) as gate:
        monkeypatch.setenv("AWS_ENDPOINT_URL", gate.url)
        store = open_store(f"s3://{bucket}")
        store.check_writable()
        store.list()

        def note(event, _text):
            heard.append(event)
            gate.refusal = None

        for act in (
            lambda: store.create_file("song", tmp_path / "song"),
            lambda: store.create("claim", b"mine"),
            lambda: store.read("claim"),
            lambda: store.list(),
            lambda: store.delete("claim") or True,
        ):
            gate.refusal = refusal
            assert Retry(note)(act)
    assert heard == ["unreachable", "reachable"] * 5


@pytest.mark.parametrize("act", ["list", "check_writable"])
def test_page_of_a_proxy_is_not_an_answer_of_s3(s3_url, monkeypatch, act):
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    with s3.answering(b"<html><body>Please log in</body></html>") as url:
        monkeypatch.setenv("AWS_ENDPOINT_URL", url)
        store = open_store("s3://some-bucket")
        with pytest.raises(Unreachable, match="some-bucket broke off; check the network"):
            getattr(store, act)()


# --- look-alikes


@pytest.fixture(params=["Backblaze B2", "Cloudflare R2", "Cloudflare R2 before 2025"])
def lookalike(request, s3_url, monkeypatch, tmp_path):
    if request.param == "Backblaze B2":
        relay = s3.backblaze(s3_url)
    else:
        monkeypatch.setenv("AWS_CA_BUNDLE", str(tmp_path / "ca.pem"))
        knows = request.param == "Cloudflare R2"
        relay = s3.cloudflare(s3_url, knows_checksums=knows, certificate=tmp_path / "ca.pem")
    with relay as url:
        monkeypatch.setenv("AWS_ENDPOINT_URL", url)
        yield request.param


def test_lookalike_takes_all_that_a_run_does(lookalike, bucket, tmp_path):
    song = b"song" * 1_000_000
    (tmp_path / "song").write_bytes(song)
    assert open_store(f"s3://{bucket}/x").list() == {}
    store = open_store(f"s3://{bucket}/x")
    store.check_writable()
    etag = store.create("claim", b"first")
    assert etag and store.create("claim", b"second") is None
    renewed = store.replace("claim", b"renewed", etag)
    assert renewed and store.replace("claim", b"stale", etag) is None
    assert store.read_tagged("claim") == (b"renewed", renewed)
    assert store.replace("absent", b"", etag) is None
    assert store.create_file("song", tmp_path / "song") and not store.create_file("song", tmp_path / "song")
    store.download("song", tmp_path / "fetched")
    assert (tmp_path / "fetched").read_bytes() == song
    store.delete("claim")
    with pytest.raises(Missing):
        store.read("claim")
    assert set(store.list()) == {"song"}


def test_reading_first_works_on_a_lookalike(lookalike, bucket, s3_url):
    s3.fill(bucket, ["key"])
    assert open_store(f"s3://{bucket}").read("key") == b""


def test_conditions_count_only_where_the_store_knows_them(lookalike, bucket):
    knows = lookalike != "Backblaze B2"
    assert open_store(f"s3://{bucket}").honours_conditions("claims/probe") == knows


def test_missing_checksums_are_reported_once(lookalike, bucket, caplog):
    store = open_store(f"s3://{bucket}")
    with ThreadPoolExecutor(8) as threads:
        for number in range(3):
            list(threads.map(lambda n, turn=number: store.write(f"{turn}/{n}", b"x"), range(8)))
    told = [entry.getMessage() for entry in caplog.records if entry.name.startswith("worker.store")]
    expected = [f"s3://{bucket} does not take SHA-256 checksums; uploads are checked by MD5"]
    assert told == ([] if lookalike == "Cloudflare R2" else expected)
