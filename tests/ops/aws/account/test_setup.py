"""inv setup: what is missing is made, what is right is left, what differs is shown and mended."""

import json
from types import SimpleNamespace

import boto3
import pytest

from ops.aws.account import bucket, budget, iam, keys, network, policies, quota, setup
from ops.aws.account.step import ABSENT, AS_WANTED, KEEP
from ops.aws.session import Aws
from ops.settings import Settings
from tests.ops.aws.accounts import BUCKET, as_user, new_account
from worker.errors import BadInput, UserError


def do(aws, name=BUCKET, **options):
    return setup.carry_out(setup.plan(aws, name, **options), lambda line: None)


def audited(tmp_path):
    file = tmp_path / "audit.jsonl"
    return [json.loads(line) for line in file.read_text("utf-8").splitlines()] if file.exists() else []


def differing(aws, name=BUCKET, **options):
    return {step.thing: step.now for step in setup.plan(aws, name, **options) if step.action != KEEP}


def make_roles(aws):
    for role in iam.wanted_roles(aws, BUCKET):
        iam.ensure_role(aws, role)


# --- the whole


def test_dry_plan_of_a_new_account_changes_nothing(bare, tmp_path):
    steps = setup.plan(bare(), BUCKET)
    assert {step.action for step in steps[:-2]} == {"create"}
    assert audited(tmp_path) == []
    writes = [
        c.action
        for c in bare.fake.calls
        if not c.action.startswith(("Describe", "Get", "List", "GET", "HEAD"))
    ]
    assert writes == []


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A whole setup and a second one: what differed after the first, and what is in the audit log."""
    folder = tmp_path_factory.mktemp("made")
    with pytest.MonkeyPatch.context() as patch, new_account(folder, patch):
        as_user(folder, patch)
        us = Aws(Settings.load(), task="setup")
        do(us)
        first = audited(folder)
        differs = differing(us)
        n_changes = do(us)
        pod = boto3.client("iam").get_role(RoleName=iam.POD_ROLE)["Role"]
        yield SimpleNamespace(
            differs=differs, n_changes=n_changes, first=first, both=audited(folder), pod=pod, me=us.caller.arn
        )


def test_setup_makes_everything_that_it_showed(made):
    assert made.differs == {}


def test_second_setup_changes_nothing(made):
    assert (made.n_changes, made.both) == (0, made.first)


def test_every_change_is_in_the_audit_log_before_and_after(made):
    intents = {line["id"]: line["action"] for line in made.first if line["phase"] == "intent"}
    results = {line["id"]: line["outcome"] for line in made.first if line["phase"] == "result"}
    assert set(intents) == set(results) and set(results.values()) == {"done"}
    assert "s3.create_bucket" in intents.values() and "iam.create_role" in intents.values()


def test_pod_role_trusts_the_caller_alone_for_twelve_hours(made):
    (statement,) = made.pod["AssumeRolePolicyDocument"]["Statement"]
    assert statement["Principal"] == {"AWS": made.me}
    assert made.pod["MaxSessionDuration"] == 12 * 3600


def test_setup_goes_on_where_a_failure_stopped_it(bare, told):
    bare.fake.fail("CreateInstanceProfile", "ServiceUnavailable", status=503)
    us = bare(AWS_MAX_ATTEMPTS="1")
    with pytest.raises(UserError, match="wait a minute"):
        setup.carry_out(setup.plan(us, BUCKET), told)
    assert told[-1].startswith("stopped after 4 of 8 steps, which stay; run it again")
    left = setup.plan(bare(), BUCKET)
    assert next(step.thing for step in left if step.action != KEEP).startswith("instance profile")
    do(bare())
    assert differing(bare()) == {}


def test_bucket_that_was_only_begun_is_gone_on_with(bare):
    name = setup.bucket_name(bare())
    puts = []

    def refuse_the_third(call):
        puts.append(call)
        if len(puts) == 3:
            bare.fake.refuse("AccessDenied", 403)

    bare.fake.before[f"PUT /{name}"] = refuse_the_third
    with pytest.raises(UserError, match="s3:PutBucketPublicAccessBlock"):
        bucket.ensure_bucket(bare(), name)
    assert setup.bucket_name(bare()) == name


def test_setup_works_in_another_region(bare):
    us = bare(AWS_DEFAULT_REGION="eu-west-1")
    do(us)
    assert differing(us) == {}
    assert bucket.region_of(us, BUCKET) == "eu-west-1"


def test_settings_for_env_name_what_was_made(bare):
    assert setup.env_values(bare(), BUCKET)["MUSICGEN_S3_BUCKET"] == BUCKET


# --- remove


def test_remove_takes_away_everything_that_setup_made(bare):
    do(bare())
    us = bare()
    setup.carry_out(setup.removal(us), lambda line: None)
    assert setup.removal(us) == []
    kept = [step.thing for step in setup.plan(us, BUCKET) if step.now != ABSENT]
    assert [thing.split()[0] for thing in kept] == ["spot", "on-demand"]


def test_remove_keeps_a_bucket_with_content(bare):
    bucket.ensure_bucket(bare(), BUCKET)
    boto3.client("s3").put_object(Bucket=BUCKET, Key="song.wav", Body=b"music")
    us = bare()
    setup.carry_out(setup.removal(us), lambda line: None)
    (left,) = setup.removal(us)
    assert (left.thing, left.action) == (f"bucket {BUCKET}", KEEP)
    assert boto3.client("s3").get_object(Bucket=BUCKET, Key="song.wav")["Body"].read() == b"music"


def test_remove_keeps_a_bucket_that_holds_only_old_versions(bare):
    bucket.ensure_bucket(bare(), BUCKET)
    s3 = boto3.client("s3")
    s3.put_bucket_versioning(Bucket=BUCKET, VersioningConfiguration={"Status": "Enabled"})
    s3.put_object(Bucket=BUCKET, Key="song.wav", Body=b"music")
    s3.delete_object(Bucket=BUCKET, Key="song.wav")
    us = bare()
    assert bucket.removal_step(us, BUCKET).action == KEEP


def test_remove_leaves_what_others_made_under_our_names(bare):
    boto3.client("iam").create_role(RoleName=iam.WORKER_ROLE, AssumeRolePolicyDocument="{}")
    boto3.client("ec2").create_key_pair(KeyName="musicgen-worker")
    boto3.client("s3").create_bucket(Bucket="songs-of-mine")
    us = bare(MUSICGEN_S3_BUCKET="songs-of-mine")
    steps = setup.removal(us)
    assert len(steps) == 3 and {step.action for step in steps} == {KEEP}


def test_remove_leaves_a_role_with_a_policy_of_others(bare):
    us = bare()
    make_roles(us)
    boto3.client("iam").put_role_policy(
        RoleName=iam.POD_ROLE,
        PolicyName="more",
        PolicyDocument=json.dumps(policies.scheduler("123456789012")),
    )
    (kept,) = [step for step in iam.removal_steps(us) if step.action == KEEP]
    assert kept.thing == f"role {iam.POD_ROLE}" and "more" in kept.now


def test_security_group_in_use_is_kept(bare):
    us = bare()
    network.ensure_group(us, network.ssh_source(us.settings))
    ec2 = boto3.client("ec2")
    ec2.run_instances(ImageId="ami-12c6146b", MinCount=1, MaxCount=1, SecurityGroupIds=[network.group_id(us)])
    assert network.group_removal(us).action == KEEP


# --- the bucket


def test_bucket_is_private_encrypted_and_tidy(bare):
    us = bare()
    bucket.ensure_bucket(us, BUCKET)
    s3 = boto3.client("s3")
    assert s3.get_public_access_block(Bucket=BUCKET)["PublicAccessBlockConfiguration"] == bucket.PRIVATE
    assert s3.get_bucket_ownership_controls(Bucket=BUCKET)["OwnershipControls"] == bucket.OWNED
    (rule,) = s3.get_bucket_lifecycle_configuration(Bucket=BUCKET)["Rules"]
    assert rule["AbortIncompleteMultipartUpload"]["DaysAfterInitiation"] == bucket.ABORT_UPLOADS_DAYS


def test_tls_is_demanded_last_and_only_where_there_is_tls(bare, monkeypatch):
    us = bare()
    bucket.ensure_bucket(us, BUCKET)
    assert us.ask("s3", "get_bucket_policy", Bucket=BUCKET, absent=("NoSuchBucketPolicy",)) is None
    monkeypatch.setattr(bucket, "_has_tls", lambda aws: True)
    *_, (last, mend) = bucket._differences(us, BUCKET)
    assert last == "TLS not demanded"
    mend()
    (statement,) = json.loads(boto3.client("s3").get_bucket_policy(Bucket=BUCKET)["Policy"])["Statement"]
    assert statement["Effect"] == "Deny"
    assert statement["Condition"] == {"Bool": {"aws:SecureTransport": "false"}}
    assert list(bucket._differences(us, BUCKET)) == []


def test_drift_of_the_bucket_is_named_and_only_it_is_mended(bare, tmp_path):
    us = bare()
    bucket.ensure_bucket(us, BUCKET)
    boto3.client("s3").delete_public_access_block(Bucket=BUCKET)
    assert differing(us)[f"bucket {BUCKET}"] == "public access possible"
    done = len(audited(tmp_path))
    bucket.ensure_bucket(us, BUCKET)
    assert {line["action"] for line in audited(tmp_path)[done:]} == {"s3.put_public_access_block"}


def test_lifecycle_rules_tags_and_keys_of_the_user_stay(bare):
    s3 = boto3.client("s3")
    s3.create_bucket(Bucket=BUCKET)
    mine = {"ID": "mine", "Status": "Enabled", "Filter": {"Prefix": "old/"}, "Expiration": {"Days": 9}}
    s3.put_bucket_lifecycle_configuration(Bucket=BUCKET, LifecycleConfiguration={"Rules": [mine]})
    s3.put_bucket_tagging(Bucket=BUCKET, Tagging={"TagSet": [{"Key": "team", "Value": "music"}]})
    kms = {"ApplyServerSideEncryptionByDefault": {"SSEAlgorithm": "aws:kms"}}
    s3.put_bucket_encryption(Bucket=BUCKET, ServerSideEncryptionConfiguration={"Rules": [kms]})
    bucket.ensure_bucket(bare(), BUCKET)
    rules = s3.get_bucket_lifecycle_configuration(Bucket=BUCKET)["Rules"]
    assert [rule["ID"] for rule in rules] == ["mine", bucket.TIDY["ID"]]
    assert {"Key": "team", "Value": "music"} in s3.get_bucket_tagging(Bucket=BUCKET)["TagSet"]
    (encryption,) = s3.get_bucket_encryption(Bucket=BUCKET)["ServerSideEncryptionConfiguration"]["Rules"]
    assert encryption["ApplyServerSideEncryptionByDefault"]["SSEAlgorithm"] == "aws:kms"


def test_bucket_of_somebody_else_is_refused_before_anything_is_made(bare, tmp_path):
    us = bare(MUSICGEN_S3_BUCKET=BUCKET)
    bare.fake.fail(f"HEAD /{BUCKET}", "403", status=403)
    with pytest.raises(BadInput, match="belongs to somebody else"):
        setup.plan(us, BUCKET)
    assert audited(tmp_path) == []


def test_bucket_in_another_region_is_refused(bare):
    bucket.ensure_bucket(bare(AWS_DEFAULT_REGION="eu-west-1"), BUCKET)
    with pytest.raises(BadInput, match="is in eu-west-1"):
        setup.plan(bare(AWS_DEFAULT_REGION="us-east-1"), BUCKET)


def test_bucket_of_an_earlier_setup_is_found_again(bare):
    name = setup.bucket_name(bare())
    assert name.startswith(bucket.NAME_START)
    assert setup.bucket_name(bare()) != name
    bucket.ensure_bucket(bare(), name)
    assert setup.bucket_name(bare()) == name


def test_of_several_buckets_the_user_must_choose(bare):
    for end in "ab":
        bucket.ensure_bucket(bare(), bucket.NAME_START + end)
    with pytest.raises(BadInput, match="MUSICGEN_S3_BUCKET"):
        setup.bucket_name(bare())


@pytest.mark.parametrize("name", ["UPPER", "a", "under_score", "two..dots", "-dash", "x" * 64])
def test_impossible_bucket_name_is_refused(bare, name):
    with pytest.raises(BadInput, match="not a valid bucket name"):
        setup.bucket_name(bare(MUSICGEN_S3_BUCKET=name))


# --- roles


def test_role_of_a_session_is_trusted_as_the_role(bare):
    client = boto3.client("iam")
    client.create_role(RoleName="admin", Path="/people/", AssumeRolePolicyDocument="{}")
    us = bare()
    us.__dict__["caller"] = type(us.caller)("arn:aws:sts::123456789012:assumed-role/admin/me", "123456789012")
    assert iam.principal(us) == "arn:aws:iam::123456789012:role/people/admin"


def test_wider_policy_is_shown_as_drift_and_narrowed_again(bare):
    us = bare()
    make_roles(us)
    (wanted,) = [role for role in iam.wanted_roles(us, BUCKET) if role.name == iam.WORKER_ROLE]
    wide = {"Version": "2012-10-17", "Statement": [{"Effect": "Allow", "Action": "s3:*", "Resource": "*"}]}
    boto3.client("iam").put_role_policy(
        RoleName=iam.WORKER_ROLE, PolicyName=iam.INLINE, PolicyDocument=json.dumps(wide)
    )
    step = iam.role_step(us, wanted)
    assert "also s3:*" in step.now
    step.act()
    found = boto3.client("iam").get_role_policy(RoleName=iam.WORKER_ROLE, PolicyName=iam.INLINE)
    assert found["PolicyDocument"] == wanted.policy


def test_drift_of_trust_and_session_is_mended(bare):
    us = bare()
    make_roles(us)
    (wanted,) = [role for role in iam.wanted_roles(us, BUCKET) if role.name == iam.POD_ROLE]
    client = boto3.client("iam")
    client.update_assume_role_policy(
        RoleName=iam.POD_ROLE, PolicyDocument=json.dumps(policies.service_trust("ecs.amazonaws.com"))
    )
    client.update_role(RoleName=iam.POD_ROLE, MaxSessionDuration=3600)
    step = iam.role_step(us, wanted)
    assert step.now == "other trust; sessions of 1 h"
    step.act()
    assert iam.role_step(us, wanted).now == AS_WANTED


def test_instance_profile_with_another_role_is_refused(bare):
    client = boto3.client("iam")
    client.create_role(RoleName="other", AssumeRolePolicyDocument="{}")
    client.create_instance_profile(InstanceProfileName=iam.WORKER_ROLE)
    client.add_role_to_instance_profile(InstanceProfileName=iam.WORKER_ROLE, RoleName="other")
    with pytest.raises(UserError, match="holds role other"):
        iam.ensure_profile(bare())


# --- budget and quota


def test_budget_tells_one_address_at_two_thresholds(bare):
    us = bare(MUSICGEN_BUDGET_USD="35")
    budget.ensure_budget(us)
    place = {"AccountId": us.caller.account, "BudgetName": budget.NAME}
    assert float(us.ask("budgets", "describe_budget", **place)["Budget"]["BudgetLimit"]["Amount"]) == 35
    alerts = us.ask("budgets", "describe_notifications_for_budget", **place)["Notifications"]
    assert {(a["NotificationType"], a["Threshold"]) for a in alerts} == set(budget.ALERTS)


def test_changed_budget_and_address_are_mended(bare):
    budget.ensure_budget(bare())
    us = bare(MUSICGEN_BUDGET_USD="50", MUSICGEN_BUDGET_EMAIL="you@example.com")
    assert budget.budget_step(us).now == "$20 a month; 2 of 2 alerts not to you@example.com"
    budget.ensure_budget(us)
    assert budget.budget_step(us).now == AS_WANTED


def test_without_an_address_there_is_no_budget_and_the_plan_says_how(bare):
    step = budget.budget_step(bare(MUSICGEN_BUDGET_EMAIL=""))
    assert step.action == KEEP and "MUSICGEN_BUDGET_EMAIL" in step.wanted


@pytest.mark.parametrize("address", ["me", "me@host", "@example.com", "a b@example.com"])
def test_address_that_is_none_is_refused(bare, address):
    with pytest.raises(BadInput, match="not an e-mail address"):
        budget.budget_step(bare(MUSICGEN_BUDGET_EMAIL=address))


@pytest.mark.parametrize(("limit", "short"), [(0.0, True), (3.0, True), (4.0, False), (None, False)])
def test_quota_below_the_machine_is_named_with_the_link(bare, limit, short):
    bare.fake.quotas = {} if limit is None else {("ec2", quota.SPOT.code): limit}
    us = bare()
    assert ("ask AWS: https://" in quota.quota_steps(us)[0].wanted) == short
    if short:
        with pytest.raises(UserError, match="https://"):
            quota.refuse_if_short(us, quota.SPOT, 4)
    else:
        quota.refuse_if_short(us, quota.SPOT, 4)


# --- the key pair


def test_private_key_is_written_once_and_for_its_owner_only(bare):
    us = bare()
    keys.ensure_key(us, us.settings)
    file = keys.key_file(us.settings)
    assert (file.stat().st_mode & 0o777, file.parent.stat().st_mode & 0o777) == (0o600, 0o700)
    there = boto3.client("ec2").describe_key_pairs(IncludePublicKey=True)["KeyPairs"][0]
    assert keys.public_key(file) == " ".join(there["PublicKey"].split()[:2])


def test_private_key_is_not_in_the_audit_log(bare, tmp_path):
    us = bare()
    keys.ensure_key(us, us.settings)
    body = keys.key_file(us.settings).read_text().splitlines()[1]
    assert body not in (tmp_path / "audit.jsonl").read_text()


def test_key_goes_to_another_region_without_a_new_one(bare):
    us = bare()
    keys.ensure_key(us, us.settings)
    before = keys.key_file(us.settings).read_bytes()
    them = bare(AWS_DEFAULT_REGION="us-west-2")
    keys.ensure_key(them, them.settings)
    assert keys.key_file(us.settings).read_bytes() == before
    assert keys.key_step(them, them.settings).now == AS_WANTED


def test_key_pair_of_another_private_key_is_refused(bare, tmp_path):
    us = bare()
    keys.ensure_key(us, us.settings)
    boto3.client("ec2").delete_key_pair(KeyName="musicgen-worker")
    boto3.client("ec2").create_key_pair(KeyName="musicgen-worker", KeyType="ed25519")
    with pytest.raises(BadInput, match="is not the one of"):
        keys.key_step(us, us.settings)


def test_key_that_cannot_be_kept_is_not_made(bare, tmp_path):
    (tmp_path / "keys").write_text("a file where a folder must be")
    us = bare()
    with pytest.raises(BadInput, match="MUSICGEN_KEY_FILE"):
        keys.ensure_key(us, us.settings)
    assert boto3.client("ec2").describe_key_pairs()["KeyPairs"] == []


def test_refused_key_pair_leaves_no_file(bare):
    us = bare()
    bare.fake.fail("CreateKeyPair", "UnauthorizedOperation", status=403)
    with pytest.raises(UserError, match="ec2:CreateKeyPair"):
        keys.ensure_key(us, us.settings)
    assert not keys.key_file(us.settings).exists()


def test_key_pair_without_its_file_is_shown_and_left(bare):
    boto3.client("ec2").create_key_pair(KeyName="musicgen-worker", KeyType="ed25519")
    us = bare()
    step = keys.key_step(us, us.settings)
    assert step.action == KEEP and "is not" in step.now


@pytest.mark.parametrize("text", ["", "hello", "ssh-ed25519 AAAA me", "-----BEGIN CERTIFICATE-----\nx\ny\n"])
def test_file_that_is_no_private_key_is_refused(tmp_path, text):
    file = tmp_path / "key"
    file.write_text(text)
    with pytest.raises(BadInput, match="private key"):
        keys.public_key(file)


# --- the firewall


def test_ssh_is_open_to_the_asked_address_alone(bare):
    us = bare()
    network.ensure_group(us, network.ssh_source(us.settings))
    (group,) = boto3.client("ec2").describe_security_groups(GroupNames=[network.GROUP])["SecurityGroups"]
    (rule,) = group["IpPermissions"]
    assert (rule["FromPort"], rule["ToPort"], rule["IpProtocol"]) == (22, 22, "tcp")
    assert [entry["CidrIp"] for entry in rule["IpRanges"]] == ["203.0.113.7/32"]


def test_new_address_takes_the_place_of_the_old_one(bare):
    us = bare()
    network.ensure_group(us, network.ssh_source(us.settings))
    new = network.ssh_source(us.settings, "198.51.100.0/24")
    assert network.group_step(us, new).now == "SSH from 203.0.113.7/32"
    network.ensure_group(us, new)
    assert network.group_step(us, new).now == AS_WANTED
    assert differing(us, ssh_from="198.51.100.0/24").get(f"security group {network.GROUP}") is None


def test_ipv6_address_is_let_in(bare):
    us = bare()
    source = network.ssh_source(us.settings, "2001:db8::7")
    network.ensure_group(us, source)
    assert network.group_step(us, source).now == AS_WANTED


def test_rules_of_others_are_shown_and_left(bare):
    us = bare()
    source = network.ssh_source(us.settings)
    group = network.ensure_group(us, source)
    boto3.client("ec2").authorize_security_group_ingress(
        GroupId=group, IpProtocol="tcp", FromPort=80, ToPort=80, CidrIp="0.0.0.0/0"
    )
    step = network.group_step(us, source)
    assert step.action == KEEP and "80-80/tcp from 0.0.0.0/0" in step.now


@pytest.mark.parametrize("text", ["0.0.0.0/0", "::/0", "everywhere", "10.0.0.0/40"])
def test_wrong_or_open_network_is_refused(bare, text):
    with pytest.raises(BadInput, match=r"write it like|to everybody"):
        network.ssh_source(bare().settings, text)


def test_own_address_comes_from_the_page(bare, page):
    us = bare(MUSICGEN_SSH_FROM="", MUSICGEN_ADDRESS_URL=page(b"203.0.113.99\n"))
    assert network.ssh_source(us.settings).cidr == "203.0.113.99/32"


@pytest.mark.parametrize("answer", [b"", b"<html>login", b"\xff\xfe", None])
def test_unknown_address_closes_ssh_and_says_how_to_open_it(bare, page, answer):
    us = bare(MUSICGEN_SSH_FROM="", MUSICGEN_ADDRESS_URL=page(answer))
    source = network.ssh_source(us.settings)
    assert source.cidr is None
    assert "--ssh-from" in network.group_step(us, source).wanted


def test_unknown_address_does_not_shut_out_the_known_one(bare, page):
    us = bare()
    network.ensure_group(us, network.ssh_source(us.settings))
    us = bare(MUSICGEN_SSH_FROM="", MUSICGEN_ADDRESS_URL=page(None))
    assert network.group_step(us, network.ssh_source(us.settings)).action == KEEP


def test_none_closes_ssh(bare):
    us = bare()
    network.ensure_group(us, network.ssh_source(us.settings))
    closed = network.ssh_source(us.settings, "none")
    assert network.group_step(us, closed).action == "change"
    network.ensure_group(us, closed)
    assert network.group_step(us, closed).now == AS_WANTED


def test_each_zone_has_one_subnet(bare):
    found = network.subnets(bare())
    assert len(found) == len(set(found.values())) > 1
    assert all(zone.startswith("us-east-1") for zone in found)


def test_region_without_a_default_network_says_what_to_do(bare):
    ec2 = boto3.client("ec2")
    for subnet in ec2.describe_subnets()["Subnets"]:
        ec2.delete_subnet(SubnetId=subnet["SubnetId"])
    for vpc in ec2.describe_vpcs()["Vpcs"]:
        ec2.delete_vpc(VpcId=vpc["VpcId"])
    with pytest.raises(UserError, match="create-default-vpc"):
        network.subnets(bare())
    assert network.group_removal(bare()) is None  # and nothing keeps `--remove` from the rest


# --- inv setup, inv image


def test_inv_setup_dry_run_as_json_is_the_plan_and_changes_nothing(bare, inv, tmp_path):
    done = inv("setup", "--dry-run", "--json")
    assert done.code == 0, done.err
    rows = json.loads(done.out)
    assert {row["to_do"] for row in rows} == {"create", "nothing"} and len(rows) == 10
    assert "dry run: nothing was changed" in done.err
    assert audited(tmp_path) == []


def test_inv_setup_without_terminal_and_yes_is_3_and_changes_nothing(bare, inv, tmp_path):
    done = inv("setup")
    assert (done.code, done.err.count("--yes")) == (3, 1)
    assert audited(tmp_path) == []


def test_inv_setup_twice_then_remove(bare, inv, tmp_path):
    first = inv("setup", "--yes")
    assert first.code == 0, first.err
    written = (tmp_path / ".env").read_text()
    assert f"MUSICGEN_S3_BUCKET={bucket.NAME_START}" in written and written in first.err
    second = inv("setup")  # nothing to do, so nothing to ask
    assert second.code == 0 and "nothing to do" in second.err and "nothing to write to .env" in second.err
    gone = inv("setup", "--remove", "--yes")
    assert gone.code == 0, gone.err
    assert boto3.client("s3").list_buckets()["Buckets"] == []


@pytest.mark.parametrize(("typed", "written"), [("y\n", True), ("n\n", False), (None, False)])
def test_inv_setup_writes_env_only_after_a_yes(bare, inv, tmp_path, typed, written):
    do(bare())
    done = inv("setup", typed=typed)
    assert (done.code, f"\nMUSICGEN_S3_BUCKET={BUCKET}\n" in done.err) == (0, True)
    assert (tmp_path / ".env").exists() == written


def test_inv_setup_leaves_another_value_of_env_and_names_it(bare, inv, tmp_path):
    do(bare())
    (tmp_path / ".env").write_text("MUSICGEN_INSTANCE_PROFILE=mine\n")
    done = inv("setup", "--yes")
    assert ".env:1: MUSICGEN_INSTANCE_PROFILE is not musicgen-worker-role and is left as it is" in done.err
    assert (tmp_path / ".env").read_text().startswith("MUSICGEN_INSTANCE_PROFILE=mine\nAWS_DEFAULT_REGION=")


def test_inv_setup_with_wrong_keys_is_2_in_one_line(bare, inv):
    bare.fake.fail("GetCallerIdentity", "InvalidClientTokenId", status=403)
    done = inv("setup", "--dry-run")
    assert (done.code, done.out) == (2, "")
    assert done.err == (
        "error: AWS does not know these credentials; correct AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY\n"
    )


def test_inv_image_without_a_bucket_is_2(bare, inv):
    done = inv("image", "--dry-run")
    assert (done.code, done.err.startswith("error: MUSICGEN_S3_BUCKET is not set")) == (2, True)


# --- optional services


@pytest.mark.parametrize("action", ["DescribeBudget", "GetServiceQuota"])
@pytest.mark.parametrize("email", ["me@example.com", ""])
def test_optional_service_without_an_answer_stops_no_setup(bare, action, email):
    bare.fake.refuse_always(action, "AccessDeniedException")
    us = bare(MUSICGEN_BUDGET_EMAIL=email)
    setup.carry_out(setup.plan(us, "musicgen-batch-output-x"), lambda line: None)
    assert any("not known" in step.now for step in setup.plan(us, "musicgen-batch-output-x")) or not email
    setup.carry_out(setup.removal(us), lambda line: None)
