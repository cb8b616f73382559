"""User data, really run: the script that `inv launch` sends, as root in a copy of this system.

A mount namespace with an overlay over `/`: what it writes stays in the test. `shutdown`, `systemctl` and
`logger` are recorded, S3 and the instance metadata are real servers on this machine.
"""

import hashlib
import json
import os
import shutil
import stat
import subprocess
from datetime import UTC, datetime, timedelta
from pathlib import Path

import boto3
import pytest
from botocore.auth import S3SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials

from ops.aws import user_data as userdata
from ops.release import Release, bundle
from tests.fakes import imds
from tests.fakes.s3 import fresh_bucket
from tests.parts import need

ROOT = Path(__file__).parents[2]
REMOTE = ROOT / "remote"
RUN = "20261122T195059Z-ab12"
pytestmark = pytest.mark.xdist_group("first boot")  # one good boot for all

# $1 a folder for the overlay, $2 the user data, $3 where the results go, $4 what to run after it
ELSEWHERE = r"""
set -eu
mount -t tmpfs none "$1" && cd "$1" && mkdir u w m
mount -t overlay overlay -o "lowerdir=/,upperdir=$1/u,workdir=$1/w" m
mount --rbind /dev m/dev && mount -t proc proc m/proc
mkdir m/stub
for name in shutdown systemctl logger; do
  printf '#!/bin/sh\necho "%s $*" >> /stub/calls\n[ %s = logger ] && cat >> /stub/console\nexit 0\n' \
    "$name" "$name" > "m/stub/$name"
  chmod +x "m/stub/$name"
done
cp "$2" m/stub/user-data
code=0
export PATH=/stub:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
chroot m bash /stub/user-data || code=$?
echo "$code" > "$3/code"
if [ -n "$4" ]; then
  echo then >> m/stub/calls
  chroot m bash -c "$4" > "$3/after" 2>&1 || true
fi
cp -a m/stub/calls "$3/calls"
cp -a m/stub/console "$3/console" 2> /dev/null || true
for place in etc/musicgen opt/musicgen etc/systemd/system var/log/musicgen-bootstrap.log; do
  [ ! -e "u/$place" ] || { mkdir -p "$3/$(dirname "$place")" && cp -a "u/$place" "$3/$place"; }
done
"""


def _can_namespace():
    if not shutil.which("unshare") or os.geteuid() != 0:
        return False
    return subprocess.run(["unshare", "-m", "true"], capture_output=True).returncode == 0


class Result:
    """What a first boot left behind."""

    def __init__(self, folder, sent_log):
        self.folder, self.sent_log = folder, sent_log
        self.code = int((folder / "code").read_text())
        calls, _, after = (folder / "calls").read_text().partition("then\n")
        self.calls, self.calls_after = calls.splitlines(), after.splitlines()

    def text(self, path):
        return (self.folder / path).read_text("utf-8")

    @property
    def log(self):
        return self.text("var/log/musicgen-bootstrap.log")


@pytest.fixture(scope="module")
def bucket(s3_server):
    """The bucket of the songs, and a client for it."""
    keys = {"aws_access_key_id": "a", "aws_secret_access_key": "b"}
    client = boto3.client("s3", "us-east-1", endpoint_url=s3_server, **keys)
    return fresh_bucket(s3_server), client


@pytest.fixture(scope="module")
def first_boot(bucket, s3_server, tmp_path_factory):
    """Run user data as a machine would; -> a Result. `damage` may change the bucket before."""
    need("a mount namespace (root and util-linux)", _can_namespace())
    name, s3 = bucket

    def run(release, after="", damage=None, lifetime_s=7200, ends_in_s=7200, env=None, options=()):
        boot = userdata.Boot(
            run_id=RUN,
            expires_at=datetime.now(UTC) + timedelta(seconds=ends_in_s),
            lifetime_s=lifetime_s,
            region="us-east-1",
            bucket=name,
            prefix="album",
            release=release,
            worker_env=env or {"MUSICGEN_MODEL": "rehearsal"},
            worker_options=options,
            endpoint_url=s3_server,
        )
        if release.archive:
            s3.put_object(Bucket=name, Key=f"album/{release.key}", Body=release.archive)
        if damage:
            damage(s3, {"Bucket": name, "Key": f"album/{release.key}"})
        place = tmp_path_factory.mktemp("boot")
        for folder in ("overlay", "result"):
            (place / folder).mkdir()
        script = userdata.render(
            boot, (REMOTE / "bootstrap.sh").read_text("utf-8"), (REMOTE / "s3_object.py").read_text("utf-8")
        )
        (place / "user-data").write_text(script, "utf-8")
        with imds.serving() as metadata:
            # Like cloud-init: no HOME, hardly any environment.
            subprocess.run(
                ["unshare", "-m", "--propagation", "private", "bash", "-c", ELSEWHERE, "bash"]
                + [str(place / part) for part in ("overlay", "user-data", "result")]
                + [after],
                env={"PATH": os.environ["PATH"], "AWS_EC2_METADATA_SERVICE_ENDPOINT": metadata.url},
                stdin=subprocess.DEVNULL,
                check=True,
                timeout=120,
            )
        sent = s3.get_object(Bucket=name, Key=f"album/launches/{RUN}/bootstrap.log")["Body"].read()
        return Result(place / "result", sent.decode())

    return run


@pytest.fixture(scope="module")
def release():
    """The real scripts of a box; only the installation is left out."""
    contents = {f"remote/{path.name}": path.read_bytes() for path in REMOTE.glob("*.sh")}
    contents["remote/install.sh"] = b"#!/usr/bin/env bash\necho installed >> /stub/calls\n"
    contents["prompts.txt"] = b"calm piano ; 30 ; calm\n"
    return bundle(contents)


# What is looked at after the one good boot, in the chroot: the units, the worker's run, a failed unit.
AFTER = r"""
cd /etc/systemd/system
systemd-analyze verify "$PWD"/musicgen-*.service "$PWD"/musicgen-*.timer && echo verified
mkdir -p /etc/musicgen/venv/bin
python=/etc/musicgen/venv/bin/python
printf '#!/bin/sh\necho "$RUN_ID $MUSICGEN_PRICE_PAID_USD $*" >> /stub/calls\n' > $python
echo 'env > /opt/musicgen/seen' >> $python
chmod +x $python
export HOME=/root MUSICGEN_STOP_GRACE_S=0 MUSICGEN_BOX_ROOT=/opt/musicgen MUSICGEN_BOX_HOME=/etc/musicgen
bash /opt/musicgen/current/remote/env.sh > /opt/musicgen/asked.json
bash /etc/musicgen/start_worker
bash /etc/musicgen/start_worker
failed=$(sed -n 's/^ExecStart=//p' musicgen-failed.service)
for fate in 'skipped: keep-alive' 'skipped: it was asked to stay on' pending 'ran 1'; do
  echo "$fate" > /opt/musicgen/state/current/stop_hook
  echo "fate $fate" >> /stub/calls
  eval "$failed"
done
"""
ENV = {
    "MUSICGEN_MODEL": 'a/b $HOME `id` "x" \\',
    "HOURLY_COST_USD": "0.4",
    "MUSICGEN_PRICE_PAID_USD": "0.19",
    "MUSICGEN_STOP_HOOK": "/etc/musicgen/power_off",
}


@pytest.fixture(scope="module")
def good(first_boot, release):
    """A first boot in which nothing goes wrong, and what the machine then does."""
    options = ["--", "--price-basis=the highest spot price"]
    result = first_boot(release, after=AFTER, ends_in_s=3600, env=ENV, options=options)
    assert result.code == 0, result.log
    return result


# --- the way it should go


def test_the_deadline_comes_before_everything_else(good):
    assert good.calls[0].startswith("shutdown -P +60 ")


def test_it_installs_then_starts_watchdog_and_worker(good):
    timer = good.calls.index("systemctl enable --now musicgen-deadline.timer")
    watchdog = good.calls.index("systemctl enable --now musicgen-watchdog.service")
    installed = good.calls.index("installed")
    worker = good.calls.index("systemctl enable --now musicgen-worker.service")
    assert timer < watchdog < installed < worker
    assert sum(call.startswith("shutdown") for call in good.calls) == 1


def test_the_release_is_current_and_the_deadline_is_where_the_watchdog_looks(good, release):
    assert (good.folder / "opt/musicgen/current").readlink() == Path(f"releases/{release.id}")
    left_s = int(good.text("etc/musicgen/deadline")) - datetime.now(UTC).timestamp()
    assert 3400 < left_s <= 3600
    assert good.text("etc/musicgen/lifetime_end") == good.text("etc/musicgen/deadline")


def test_the_environment_file_is_for_root_only_and_keeps_every_value(good):
    path = good.folder / "etc/musicgen/worker.env"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    shown = subprocess.run(
        ["bash", "-c", 'set -a; . "$1"; printf %s "$MUSICGEN_MODEL"', "bash", path],
        capture_output=True,
        text=True,
    )
    assert shown.stdout == ENV["MUSICGEN_MODEL"]


def test_the_units_are_right_for_systemd_and_the_timer_survives_a_reboot(good):
    need("systemd-analyze", bool(shutil.which("systemd-analyze")))
    assert good.text("after").startswith("verified"), good.text("after")
    timer = good.text("etc/systemd/system/musicgen-deadline.timer")
    assert "Persistent=true" in timer
    calendar = next(line for line in timer.splitlines() if line.startswith("OnCalendar="))
    at = datetime.strptime(calendar, "OnCalendar=%Y-%m-%d %H:%M:%S UTC").replace(tzinfo=UTC)
    assert at.timestamp() == int(good.text("etc/musicgen/deadline"))


def test_the_unit_runs_the_worker_under_its_run_id_and_then_powers_off(good, release):
    first, off, second, _ = good.calls_after[:4]
    worker = f"-m worker --prompts /opt/musicgen/releases/{release.id}/prompts.txt"
    assert first.startswith(f"{RUN} 0.19 {worker}")
    assert first.endswith("--price-basis=the highest spot price")
    assert off == "systemctl poweroff"
    assert not second.startswith(RUN)  # a reboot is another run


def test_the_worker_of_the_unit_has_the_folders_that_the_machine_names(good):
    asked = json.loads(good.text("opt/musicgen/asked.json"))
    seen = dict(line.split("=", 1) for line in good.text("opt/musicgen/seen").splitlines() if "=" in line)
    names = ("HF_HOME", "HF_DATASETS_CACHE", "TMPDIR", "MUSICGEN_MODELS_DIR", "MUSICGEN_HEARTMULA_DIR")
    assert [seen[name] for name in names] == [asked[name] for name in names]


def test_a_failed_unit_turns_the_machine_off_unless_it_is_to_stay_on(good):
    off = [call if call.startswith("fate ") else "off" for call in good.calls_after[4:]]
    assert off == [
        "fate skipped: keep-alive",
        "fate skipped: it was asked to stay on",
        *("fate pending", "off"),
        *("fate ran 1", "off"),
    ]


def test_the_log_goes_to_console_and_bucket(good):
    assert "--- bootstrap done" in good.sent_log
    assert "--- bootstrap done" in good.text("console")


def test_heartmula_s_weights_come_before_the_worker_and_count_as_work(first_boot):
    """The worker fetches a MusicGen by itself, and no HeartMuLa."""
    contents = {f"remote/{path.name}": path.read_bytes() for path in REMOTE.glob("*.sh")}
    contents["remote/install.sh"] = b"""#!/bin/sh
        mkdir -p /etc/musicgen/venv/bin
        printf '#!/bin/sh\necho "models $* $(ls /etc/musicgen/busy)" >> /stub/calls\n' > /tmp/python
        install -m 755 /tmp/python /etc/musicgen/venv/bin/python
        """
    result = first_boot(bundle(contents), env={"MUSICGEN_MODEL": "heartmula"})
    assert result.code == 0, result.log
    fetched = result.calls.index("models remote/models.py get heartmula models")
    assert fetched < result.calls.index("systemctl enable --now musicgen-worker.service")


# --- whatever fails, the machine switches off and the log has the reason


def test_changed_code_is_not_run(first_boot, release):
    def tamper(s3, place):
        s3.put_object(**place, Body=release.archive + b"\n")

    result = first_boot(release, damage=tamper)
    assert result.code != 0
    assert any(call.startswith("shutdown -P +10 ") for call in result.calls)
    assert "systemctl enable --now musicgen-worker.service" not in result.calls
    assert "error: bootstrap failed" in result.sent_log


def test_code_that_is_not_there_ends_the_machine(first_boot, release):
    result = first_boot(release, damage=lambda s3, place: s3.delete_object(**place))
    assert any(call.startswith("shutdown -P +10 ") for call in result.calls)
    assert "404" in result.sent_log


def test_a_failed_installation_ends_the_machine(first_boot):
    result = first_boot(bundle({"remote/install.sh": b"echo no room; exit 7\n", "prompts.txt": b""}))
    assert result.code == 7
    assert any(call.startswith("shutdown -P +10 ") for call in result.calls)
    assert "no room" in result.sent_log


def test_a_failure_never_lengthens_a_short_life(first_boot):
    broken = bundle({"remote/install.sh": b"exit 1\n"})
    result = first_boot(broken, lifetime_s=240, ends_in_s=240)
    (shutdown,) = (call for call in result.calls if call.startswith("shutdown"))
    assert shutdown.startswith("shutdown -P +4 ")


@pytest.mark.parametrize("ends_in_s", [-86400, 86400])
def test_a_wrong_clock_does_not_move_the_deadline_past_the_lifetime(first_boot, release, ends_in_s):
    result = first_boot(release, lifetime_s=3600, ends_in_s=ends_in_s)
    assert result.calls[0].startswith("shutdown -P +60 ")


# --- code from git


@pytest.fixture
def repository(tmp_path, release):
    """A git repository with the box's scripts; -> (address, commit)."""
    place = tmp_path / "repository"
    for path in REMOTE.glob("*.sh"):
        (place / "remote").mkdir(parents=True, exist_ok=True)
        shutil.copy(path, place / "remote")
    (place / "remote" / "install.sh").write_text("true\n")
    git = ["git", "-c", "user.name=t", "-c", "user.email=t@example.com", "-C", str(place)]
    subprocess.run(["git", "init", "-q", str(place)], check=True)
    subprocess.run([*git, "add", "."], check=True)
    subprocess.run([*git, "commit", "-qm", "one"], check=True)
    head = subprocess.run([*git, "rev-parse", "HEAD"], check=True, capture_output=True, text=True)
    return f"file://{place}", head.stdout.strip()


def test_code_from_git_is_the_pinned_commit(first_boot, repository):
    url, commit = repository
    result = first_boot(Release(commit[:16], git_url=url, commit=commit))
    assert result.code == 0, result.log
    assert (result.folder / "opt/musicgen/releases" / commit[:16] / "remote" / "job.sh").exists()


def test_a_commit_that_is_not_there_ends_the_machine(first_boot, repository):
    url, _ = repository
    result = first_boot(Release("0" * 16, git_url=url, commit="0" * 40))
    assert result.code != 0
    assert any(call.startswith("shutdown -P +10 ") for call in result.calls)


# --- the signature


def test_the_signature_is_the_one_that_botocore_makes(monkeypatch):
    import importlib.util

    spec = importlib.util.spec_from_file_location("s3_object", REMOTE / "s3_object.py")
    s3_object = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(s3_object)
    url = "https://bucket.s3.us-east-1.amazonaws.com/al%20bum/code/x.tar.gz"
    now, body = datetime.now(UTC), hashlib.sha256(b"").hexdigest()
    call = s3_object.Call("GET", url, "us-east-1", body)
    ours = s3_object.signed(call, ("AKIA", "secret", "token"), now)
    request = AWSRequest("GET", url, headers={"X-Amz-Content-SHA256": body})
    request.context["timestamp"] = ours["x-amz-date"]
    monkeypatch.setattr("botocore.auth.get_current_datetime", lambda: now.replace(tzinfo=None), raising=False)
    S3SigV4Auth(Credentials("AKIA", "secret", "token"), "s3", "us-east-1").add_auth(request)
    assert request.headers["Authorization"] == ours["authorization"]
