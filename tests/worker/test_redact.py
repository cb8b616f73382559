"""No secret is written down, and no other text is spoilt."""

import pytest

from tests.songs import listed
from worker.observe.run_log import RunLog
from worker.redact import redactor
from worker.store.open import open_store

(RAIN,) = listed("rain ; 30 ; rain")
SESSION = "FwoGZXIvYXdzEBYaD+planted/token=="


@pytest.mark.parametrize(
    ("said", "hidden"),
    [
        ("key AKIAIOSFODNN7EXAMPLE was denied", "AKIAIOSFODNN7EXAMPLE"),
        ("key ASIAIOSFODNN7EXAMPLE was denied", "ASIAIOSFODNN7EXAMPLE"),
        ("hf_abcdefghijklmnopqrstuvwxyz012345", "hf_abcdefghijklmnopqrstuvwxyz012345"),
        ("rpa_ABCDEFGHIJKLMNOPQRSTUVWXYZ0123", "rpa_ABCDEFGHIJKLMNOPQRSTUVWXYZ0123"),
        ("it was planted-secret-1 here", "planted-secret-1"),
        (f"token {SESSION} expired", SESSION),
        ("X-Amz-Security-Token=FwoGZXIvYXdzEBYaD%2Bplanted%2Ftoken%3D%3D&X-Amz-Date=1", "planted"),
        ("aws_secret_access_key = wJalrXUtnFEMI/K7MDENG", "wJalrXUtnFEMI/K7MDENG"),
        ('{"SecretAccessKey": "wJalrXUtnFEMI/K7MDENG"}', "wJalrXUtnFEMI/K7MDENG"),
        ("Authorization: Bearer planted.token", "planted.token"),
        ("https://b.s3.amazonaws.com/k?X-Amz-Signature=0123abcd", "0123abcd"),
    ],
)
def test_secret_is_in_neither_file_of_the_log(tmp_path, said, hidden):
    env = {"AWS_SECRET_ACCESS_KEY": "planted-secret-1", "AWS_SESSION_TOKEN": SESSION}
    run_log = RunLog(tmp_path / "state", open_store(str(tmp_path / "out")), "run-1", env=env)
    run_log.note("any", said, fact=said, deep={"in": [said]}, error=ValueError(said), **{said: 1})
    run_log.failed(RAIN.song, said)
    for file in (tmp_path / "state").iterdir():
        assert hidden not in file.read_text("utf-8")
        assert "***" in file.read_text("utf-8")


def test_further_secrets_are_hidden_too():
    assert redactor({}, ["planted-secret-1", ""])("it was planted-secret-1 here") == "it was *** here"


@pytest.mark.parametrize(
    "text",
    [
        f"made {RAIN.song}: 30 s",
        "revision 0123456789abcdef0123456789abcdef01234567",
        "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY in .env",
        "testing",
    ],
)
def test_plain_text_is_left_alone(text):
    assert redactor({"AWS_SECRET_ACCESS_KEY": "testing", "HF_TOKEN": ""})(text) == text
