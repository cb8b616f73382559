"""ops/aws/session.py: whose credentials count, in which region, and what is asked with them."""

import boto3
import pytest

from ops.aws.session import Aws
from ops.settings import Settings
from worker.errors import BadInput, UserError

KEYS = {"AWS_ACCESS_KEY_ID": "testing", "AWS_SECRET_ACCESS_KEY": "planted-secret"}


def test_without_keys_it_says_where_they_go(bare, monkeypatch):
    for name in KEYS:
        monkeypatch.delenv(name)
    with pytest.raises(BadInput, match="no AWS credentials; set AWS_ACCESS_KEY_ID"):
        _ = bare().caller


@pytest.mark.parametrize("name", KEYS)
def test_half_a_key_is_bad_input(bare, monkeypatch, name):
    monkeypatch.delenv(name)
    with pytest.raises(BadInput, match="only one of"):
        bare()


def test_without_a_region_it_says_which_setting(monkeypatch, tmp_path):
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    monkeypatch.delenv("AWS_DEFAULT_REGION", raising=False)
    with pytest.raises(BadInput, match="AWS_DEFAULT_REGION is not set"):
        Aws(Settings.load(KEYS))


def test_unknown_profile_is_bad_input(monkeypatch, tmp_path):
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    with pytest.raises(BadInput, match="AWS_PROFILE"):
        Aws(Settings.load({"AWS_PROFILE": "nobody", "AWS_DEFAULT_REGION": "us-east-1"}))


def test_profile_gives_region_and_keys(bare, monkeypatch, tmp_path):
    config = tmp_path / "config"
    config.write_text(
        "[profile songs]\nregion = eu-west-1\naws_access_key_id = a\naws_secret_access_key = b\n"
    )
    monkeypatch.setenv("AWS_CONFIG_FILE", str(config))
    for name in (*KEYS, "AWS_DEFAULT_REGION"):
        monkeypatch.delenv(name)
    us = bare(AWS_PROFILE="songs")
    assert (us.region, us.caller.account) == ("eu-west-1", "123456789012")


def test_keys_of_env_file_reach_aws_and_no_environment(bare, monkeypatch, tmp_path):
    for name in KEYS:
        monkeypatch.delenv(name)
    (tmp_path / ".env").write_text("".join(f"{name}={value}\n" for name, value in KEYS.items()))
    assert bare().caller.account == "123456789012"
    assert boto3.session.Session().get_credentials() is None


@pytest.mark.parametrize("url", ["nonsense", "http://[", "ftp:/x"])
def test_malformed_endpoint_is_bad_input_without_its_value(bare, url):
    with pytest.raises(UserError) as caught:
        _ = bare(AWS_ENDPOINT_URL=url).caller
    assert "AWS_ENDPOINT_URL" in str(caught.value)


@pytest.mark.parametrize(
    "program", ["/no/such/planted-secret", "echo planted-secret", "false planted-secret"]
)
def test_a_credential_program_that_does_not_work_is_named_and_nothing_of_it(
    bare, monkeypatch, tmp_path, program
):
    (tmp_path / "config").write_text(f"[profile songs]\ncredential_process = {program}\n")
    for name in KEYS:
        monkeypatch.delenv(name)
    us = bare(AWS_CONFIG_FILE=str(tmp_path / "config"), AWS_PROFILE="songs")
    for ask in (lambda: us.caller, us.own_keys):
        with pytest.raises(BadInput, match="credential_process") as caught:
            ask()
        assert "planted-secret" not in str(caught.value)


def test_dead_endpoint_says_network(bare, page):
    with pytest.raises(UserError, match="no answer from AWS in us-east-1; check the network"):
        _ = bare(AWS_ENDPOINT_URL=page(None), AWS_MAX_ATTEMPTS="1").caller


def test_absent_code_is_none_and_another_one_is_raised(bare):
    us = bare()
    assert us.ask("iam", "get_role", RoleName="none", absent=("NoSuchEntity",)) is None
    with pytest.raises(UserError):
        us.ask("iam", "get_role", RoleName="none")


def test_repr_and_errors_show_no_secret(bare):
    us = bare(**KEYS)
    assert "planted-secret" not in repr(us.settings) + repr(us.audit) + repr(us)


def test_known_regions_are_those_of_every_partition(bare):
    assert {"us-east-1", "eu-west-1", "us-gov-west-1", "cn-north-1"} < set(bare().known_regions())


def test_the_region_of_other_tools_counts(bare, monkeypatch):
    monkeypatch.delenv("AWS_DEFAULT_REGION")
    assert bare(AWS_REGION="eu-west-1").region == "eu-west-1"
