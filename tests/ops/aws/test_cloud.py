"""EC2 as one of the clouds: whether it is set up here, and a machine by its id, whichever region has it."""

import pytest

from ops.aws.cloud import Ec2
from ops.settings import Settings
from worker.errors import UserError


def test_without_credentials_it_is_not_set_up_and_says_what_to_set(tmp_path, monkeypatch):
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    for name in ("AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE"):
        monkeypatch.setenv(name, str(tmp_path / "none"))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    assert "set AWS_ACCESS_KEY_ID" in Ec2().not_set_up(Settings.load(file=tmp_path / "none"))


def test_with_credentials_it_is_set_up_and_so_it_is_where_they_are_wrong(account):
    assert Ec2().not_set_up(Settings.load()) == ""
    assert Ec2().not_set_up(Settings.load(env={"AWS_ACCESS_KEY_ID": "half"})) == ""


@pytest.mark.parametrize("known", [None, "eu-west-1"])
def test_machine_of_another_region_is_found_by_its_id(account, machine, known):
    rented = machine("eu-west-1")
    found = Ec2().locate(Settings.load(), rented, known)
    assert (found.state, found.box.region) == ("running", "eu-west-1")


def test_machine_that_no_region_has_is_none(account):
    assert Ec2().locate(Settings.load(), "i-0123456789abcdef0") is None


def test_region_that_does_not_answer_may_have_it(account):
    def refuse(call):
        if call.region == "eu-west-1":
            account.refuse("UnauthorizedOperation")

    account.before["DescribeInstances"] = refuse
    with pytest.raises(UserError, match="was not found, but could not look in eu-west-1"):
        Ec2().locate(Settings.load(), "i-0123456789abcdef0")


@pytest.mark.parametrize(
    ("text", "owned"),
    [("i-0123456789abcdef0", True), ("i-01234567", True), ("i-0123", False), ("abc123xyz", False)],
)
def test_id_is_known_by_its_form(text, owned):
    assert Ec2().owns(text) is owned
