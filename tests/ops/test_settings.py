"""ops/settings.py: the environment over .env, typed when read, secrets never shown."""

import logging
import os
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ops import settings
from ops.settings import Settings
from worker.errors import BadInput

PLANTED = "wJalrXUtnFEMI-planted-secret"
SECRETS = [row.name for row in settings.rows() if row.secret]


@pytest.fixture
def env_file(tmp_path):
    return tmp_path / ".env"


def load(env_file, text="", **env):
    env_file.write_bytes(text.encode())
    return Settings.load(env, env_file)


# --- where values come from


def test_without_env_and_file_every_setting_has_its_default(env_file):
    assert Settings.load({}, env_file) == Settings()


def test_defaults_are_the_documented_ones():
    s = Settings()
    assert (s.model, s.prompts, s.output_place) == ("facebook/musicgen-medium", "prompts.txt", "out/songs")


def test_env_example_is_made_from_the_rows():
    made = (Path(__file__).parents[2] / ".env.example").read_text("utf-8")
    assert made == settings.env_example(), "write ops.settings.env_example() to .env.example"


def test_env_example_as_env_file_changes_nothing(env_file):
    assert load(env_file, settings.env_example()) == Settings()


def test_environment_wins_over_file(env_file):
    assert load(env_file, "MUSICGEN_S3_BUCKET=file\n", MUSICGEN_S3_BUCKET="shell").bucket == "shell"


def test_empty_environment_variable_takes_a_setting_of_the_file_away(env_file):
    assert load(env_file, "MUSICGEN_S3_BUCKET=file\n", MUSICGEN_S3_BUCKET="").bucket is None


def test_windows_file_with_bom_and_crlf_is_read(env_file):
    s = load(env_file, "\ufeffMUSICGEN_MODEL=rehearsal\r\nMUSICGEN_S3_BUCKET = songs \r\n")
    assert (s.model, s.bucket) == ("rehearsal", "songs")


def test_values_are_not_interpolated(env_file):
    assert load(env_file, "AWS_SECRET_ACCESS_KEY=a${HOME}b\n").aws_secret_access_key == "a${HOME}b"


values = st.text(st.characters(exclude_categories=["Cc", "Cs"]))


@given(values, values)
def test_quoted_values_come_back_from_the_file(tmp_path_factory, one, two):
    def quoted(value):
        return "'" + value.replace("\\", "\\\\").replace("'", "\\'") + "'"

    file = tmp_path_factory.mktemp("env") / ".env"
    file.write_text(
        f"HF_TOKEN={quoted(one)}\nMUSICGEN_S3_BUCKET={quoted(two)} # why\n", "utf-8", newline="\n"
    )
    s = Settings.load({}, file)
    assert (s.hf_token, s.bucket) == (one.strip() or None, two.strip() or None)


# --- types, and who is hurt by a malformed value


def test_hourly_cost_is_a_number(env_file):
    assert load(env_file, HOURLY_COST_USD=" 0.40 ").hourly_cost_usd == 0.40


@pytest.mark.parametrize("text", ["cheap", "-1", "nan", "inf", "1e999", "0,40", "$0.40"])
def test_bad_hourly_cost_is_named_with_its_fix(env_file, text):
    s = load(env_file, HOURLY_COST_USD=text)
    with pytest.raises(BadInput, match=r"HOURLY_COST_USD=.* is not .*; write it like HOURLY_COST_USD=0.40"):
        _ = s.hourly_cost_usd


def test_example_in_the_refusal_is_the_setting_s_own_default(env_file):
    with pytest.raises(BadInput, match=r"write it like MUSICGEN_LIFETIME_H=8\.0 in"):
        load(env_file, MUSICGEN_LIFETIME_H="8h").lifetime_h  # noqa: B018


def test_malformed_setting_hurts_only_who_reads_it(env_file):
    s = load(env_file, HOURLY_COST_USD="cheap", MUSICGEN_S3_BUCKET="songs")
    assert s.output_place == "s3://songs"
    assert "hourly_cost_usd='cheap'" in repr(s)


def test_zero_is_a_limit_only_where_it_means_none(env_file):
    s = load(env_file, MUSICGEN_IDLE_LIMIT_S="0", MUSICGEN_SLOTS="0")
    assert s.idle_limit_s == 0
    with pytest.raises(BadInput, match="MUSICGEN_SLOTS=0 is not a whole number over 0"):
        _ = s.slots


def test_missing_setting_is_named_when_needed(env_file):
    with pytest.raises(BadInput, match=r"^MUSICGEN_S3_BUCKET is not set \(.*\); set it in \.env"):
        load(env_file, "MUSICGEN_S3_BUCKET=\n").need("bucket")


def test_the_region_of_other_tools_counts_where_boto3_s_is_not_set(env_file):
    assert load(env_file, AWS_REGION="eu-west-1").aws_region == "eu-west-1"
    assert load(env_file, "AWS_DEFAULT_REGION=us-east-1\n", AWS_REGION="eu-west-1").aws_region == "us-east-1"


def test_needed_setting_is_given_when_there(env_file):
    assert load(env_file, MUSICGEN_S3_BUCKET="songs").need("bucket") == "songs"


def test_settings_cannot_be_changed():
    with pytest.raises(AttributeError):
        Settings().model = "other"


@pytest.mark.parametrize(
    ("env", "place"),
    [
        ({"MUSICGEN_S3_BUCKET": "b"}, "s3://b"),
        ({"MUSICGEN_S3_BUCKET": "b", "MUSICGEN_S3_PREFIX": "/night/1/"}, "s3://b/night/1"),
        ({"MUSICGEN_S3_PREFIX": "p"}, "out/songs"),
        ({"MUSICGEN_OUTPUT": "here", "MUSICGEN_S3_BUCKET": "b"}, "here"),
    ],
)
def test_output_place(env_file, env, place):
    assert load(env_file, **env).output_place == place


# --- a broken file


@pytest.mark.parametrize("broken", ["HF_TOKEN='{}", "HF_TOKEN {}", "just words {}", '"{}"', "HF_TOKEN"])
def test_broken_line_is_a_warning_with_its_number_and_not_its_content(env_file, capsys, caplog, broken):
    with caplog.at_level(logging.DEBUG):
        s = load(env_file, f"# one\n\n\n{broken.format(PLANTED)}\nMUSICGEN_S3_BUCKET=songs\n")
    out, err = capsys.readouterr()
    assert err == f"warning: {env_file}:4: not NAME=value, so it is skipped; correct it or put # before it\n"
    assert PLANTED not in out + err + caplog.text
    assert s.bucket == "songs"


def test_comments_and_blank_lines_are_no_warning(env_file, capsys):
    load(env_file, "# a comment = 1\n\n   \n  # more\nexport MUSICGEN_MODEL=rehearsal # why\n\n")
    assert capsys.readouterr() == ("", "")


def test_utf16_file_is_refused_with_its_fix(env_file):
    env_file.write_text("MUSICGEN_MODEL=rehearsal\n", "utf-16")
    with pytest.raises(BadInput, match=r"\.env is not UTF-8; save it with UTF-8"):
        Settings.load({}, env_file)


def test_unreadable_file_is_refused(tmp_path):
    with pytest.raises(BadInput, match="cannot read"):
        Settings.load({}, tmp_path)


# --- misspelt names


MISSPELT = "# mine\n\nMUSICGEN_MAX_PRCE=0.30\njunk {}\nexport musicgen_lifetime_h={}\nFOO=1\n"


def test_misspelt_names_and_junk_are_warnings_in_the_file_s_order_without_values(env_file, capsys):
    load(env_file, MISSPELT.format(PLANTED, PLANTED), MUSICGEN_SLOT="2", BAR="3", RUNPOD_DISC="4")
    out, err = capsys.readouterr()
    assert (out, err.splitlines()) == (
        "",
        [
            f"warning: {env_file}:3: there is no setting MUSICGEN_MAX_PRCE; "
            "write MUSICGEN_MAX_PRICE, or remove it",
            f"warning: {env_file}:4: not NAME=value, so it is skipped; correct it or put # before it",
            f"warning: {env_file}:5: there is no setting musicgen_lifetime_h; "
            "write MUSICGEN_LIFETIME_H, or remove it",
            "warning: environment: there is no setting MUSICGEN_SLOT; write MUSICGEN_SLOTS, or remove it",
            "warning: environment: there is no setting RUNPOD_DISC; "
            "remove it (.env.example lists all settings)",
        ],
    )


def test_warning_is_given_once_though_a_command_reads_its_settings_often(env_file, capsys):
    for _ in range(3):
        load(env_file, "MUSICGEN_MAX_PRCE=0.30\n")
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_setting_with_two_values_is_named_at_the_second(env_file, capsys):
    load(
        env_file,
        "MUSICGEN_MAX_PRICE=0.30\nA=1\nA=2\nRUNPOD_USER=a\nRUNPOD_USER=a\nMUSICGEN_MAX_PRICE=3",
    )
    assert capsys.readouterr().err == (
        f"warning: {env_file}:6: MUSICGEN_MAX_PRICE has another value above; remove one of the two lines\n"
    )


def test_where_money_is_spent_all_of_it_is_an_error(env_file, capsys):
    env_file.write_text(MISSPELT.format(PLANTED, PLANTED))
    with pytest.raises(BadInput) as caught:
        Settings.load({"MUSICGEN_SLOT": "2"}, env_file, spends=True)
    assert len(str(caught.value).splitlines()) == 4
    assert PLANTED not in str(caught.value) and capsys.readouterr().err == ""


def test_child_does_not_get_what_this_process_has_warned_of(env_file):
    env_file.write_text("MUSICGEN_MAX_PRCE=1\nFOO=1\n")
    assert settings.child_env({"musicgen_slots": "2", "BAR": "3"}, env_file) == {"FOO": "1", "BAR": "3"}


# --- secrets


def test_secrets_never_show(env_file):
    s = load(env_file, HOURLY_COST_USD="x", **dict.fromkeys(SECRETS, PLANTED))
    assert s.aws_secret_access_key == PLANTED
    with pytest.raises(BadInput) as cost:
        _ = s.hourly_cost_usd
    with pytest.raises(BadInput) as bucket:
        s.need("bucket")
    with pytest.raises(AttributeError) as typo:
        s.need("buckets")
    shown = [repr(s), str(s), f"{s}", repr([s]), *(repr(e.value) for e in (cost, bucket, typo))]
    assert not any(PLANTED in text for text in shown)
    assert repr(s).count("=***") == len(SECRETS)


def test_every_key_and_token_is_a_secret():
    named = [row.name for row in settings.rows() if row.name.endswith(("KEY", "TOKEN", "KEY_ID"))]
    named.remove("RUNPOD_SSH_KEY")  # the name of a file
    assert named == SECRETS


def test_secrets_survive_a_pickle(env_file):
    s = load(env_file, HF_TOKEN=PLANTED)
    assert pickle.loads(pickle.dumps(s)) == s


# --- for boto3, here and in a child


def test_child_sees_the_file_below_the_environment(env_file):
    env_file.write_text("AWS_SECRET_ACCESS_KEY=from-file\nHF_ENDPOINT=http://hub\nPATH=/nowhere\n", "utf-8")
    child = settings.child_env(os.environ, env_file)
    names = "AWS_SECRET_ACCESS_KEY", "HF_ENDPOINT", "PATH"
    script = f"import os; print(*(os.environ[n] for n in {names}), sep='|')"
    out = subprocess.run(
        [sys.executable, "-c", script], env=child, capture_output=True, text=True, check=True
    )
    assert out.stdout.strip() == f"from-file|http://hub|{os.environ['PATH']}"


def test_empty_line_of_the_file_sets_nothing_in_the_child(env_file):
    env_file.write_text("AWS_DEFAULT_REGION=\n", "utf-8")
    assert settings.child_env({}, env_file) == {}


def test_keys_of_two_places_are_not_mixed(env_file):
    env_file.write_text(
        "AWS_ACCESS_KEY_ID=f\nAWS_SECRET_ACCESS_KEY=f\nAWS_SESSION_TOKEN=f\nAWS_DEFAULT_REGION=r\n", "utf-8"
    )
    shell = {"AWS_ACCESS_KEY_ID": "e", "AWS_SECRET_ACCESS_KEY": "e"}
    assert settings.child_env(shell, env_file) == {**shell, "AWS_DEFAULT_REGION": "r"}


def test_export_gives_boto3_the_aws_settings_and_no_others(env_file):
    environ = {"AWS_DEFAULT_REGION": "eu-west-1"}
    s = load(env_file, "AWS_ACCESS_KEY_ID=k\nAWS_SECRET_ACCESS_KEY=s\nHF_TOKEN=t\n", **environ)
    s.export_aws(environ)
    assert environ == {
        "AWS_DEFAULT_REGION": "eu-west-1",
        "AWS_ACCESS_KEY_ID": "k",
        "AWS_SECRET_ACCESS_KEY": "s",
    }


def test_env_file_of_the_project_counts_in_its_folders(tmp_path, monkeypatch):
    (tmp_path / "tasks.py").touch()
    (tmp_path / ".env").write_text("MUSICGEN_MODEL=rehearsal\n")
    (tmp_path / "deep" / "er").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "deep" / "er")
    assert Settings.load({}).model == "rehearsal"


def test_env_file_above_the_project_does_not_count(tmp_path, monkeypatch):
    (tmp_path / ".env").write_text("MUSICGEN_MODEL=rehearsal\n")
    (tmp_path / "project").mkdir()
    (tmp_path / "project" / "tasks.py").touch()
    monkeypatch.chdir(tmp_path / "project")
    assert Settings.load({}).model != "rehearsal"


@pytest.mark.parametrize(
    "wrong",
    [{"MUSICGEN_SLOTS": "0"}, {"MUSICGEN_SLOTS": "x"}, {"MUSICGEN_DTYPE": "fp8"}, {"HOURLY_COST_USD": "x"}],
)
def test_check_finds_every_malformed_setting(wrong, tmp_path):
    with pytest.raises(BadInput, match=next(iter(wrong))):
        Settings.load(wrong, tmp_path / ".env").check()
