"""remote/image.sh, run for real but for the system's own commands: it tests itself, reports, shuts down."""

import hashlib
import io
import json
import os
import subprocess
import sys
import tarfile
from dataclasses import dataclass
from pathlib import Path

import boto3
import pytest

from ops.aws.user_data import with_values
from tests.fakes import imds, s3

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.xdist_group("image")  # one good build for all
# Each writes down how it was called. dpkg-query names two packages, of which one is the driver's.
STUBS = {
    "shutdown": "",
    "apt-get": "",
    "apt-mark": "",
    "xargs": 'cat >> "$CALLS"',
    "logger": "cat > /dev/null",
    "dpkg-query": "printf 'bash\\nnvidia-driver-570\\n'",
    "nvidia-smi": "echo 570.1",
}
GOOD_INSTALL = f"""#!/usr/bin/env bash
mkdir -p "$MUSICGEN_BOX_HOME/venv/bin"
printf '#!/bin/sh\\nexec {sys.executable} "$@"\\n' > "$MUSICGEN_BOX_HOME/venv/bin/python"
chmod +x "$MUSICGEN_BOX_HOME/venv/bin/python"
"""

# The worker's own tests show that it ends with 2 on a device that is not there.
NO_GPU_INSTALL = GOOD_INSTALL.replace("exec ", 'case "$*" in *"--device cuda:9"*) exit 2 ;; esac; exec ')


def release(install):
    """The real worker, with another way to install it."""
    files = {
        f"worker/{p.relative_to(ROOT / 'worker')}": p.read_bytes()
        for p in (ROOT / "worker").rglob("*")
        if p.is_file()
    }
    files["remote/env.sh"] = (ROOT / "remote" / "env.sh").read_bytes()
    files["remote/install.sh"] = install.encode()
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:gz") as tar:
        for name, content in files.items():
            entry = tarfile.TarInfo(name)
            entry.size, entry.mode = len(content), 0o755
            tar.addfile(entry, io.BytesIO(content))
    return out.getvalue()


@dataclass
class Built:
    """What came of one run of the script: exit code, calls of the system's commands, answer and log."""

    code: int
    calls: list[str]
    answer: dict
    log: str
    root: Path
    home: Path


def build(s3_server, folder, install=GOOD_INSTALL, **changed):
    """Run the script on a stand-in machine, whose role opens a new bucket."""
    bucket = s3.fresh_bucket(s3_server)
    client = boto3.client(
        "s3", "us-east-1", endpoint_url=s3_server, aws_access_key_id="a", aws_secret_access_key="b"
    )
    stubs, calls = folder / "bin", folder / "calls"
    stubs.mkdir()
    for name, body in STUBS.items():
        (stubs / name).write_text(f'#!/usr/bin/env bash\necho "{name} $*" >> "$CALLS"\n{body}\n')
        (stubs / name).chmod(0o755)
    archive = release(install)
    client.put_object(Bucket=bucket, Key="code/x.tar.gz", Body=archive)
    values = {
        "BUILD_LIMIT_MIN": "90",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_ENDPOINT_URL": s3_server,
        "CODE_ID": "x",
        "CODE_BUCKET": bucket,
        "CODE_KEY": "code/x.tar.gz",
        "CODE_SHA256": hashlib.sha256(archive).hexdigest(),
        "RESULT_KEY": "images/x.json",
        "LOG_KEY": "images/x.log",
        "MODEL": "rehearsal",
        "DEVICE": "cpu",
        "S3_OBJECT_PY": (ROOT / "remote" / "s3_object.py").read_text("utf-8"),
    }
    script = folder / "user-data"
    script.write_text(with_values((ROOT / "remote" / "image.sh").read_text("utf-8"), values | changed))
    with imds.serving() as metadata:
        env = {
            "PATH": f"{stubs}:{os.environ['PATH']}",
            "CALLS": str(calls),
            "CONSOLE": os.devnull,
            "MUSICGEN_BOX_ROOT": str(folder / "opt"),
            "MUSICGEN_BOX_HOME": str(folder / "etc"),
            "MUSICGEN_WORKSPACE": str(folder / "workspace"),
            "MUSICGEN_PLATFORM": "ec2",
            "AWS_EC2_METADATA_SERVICE_ENDPOINT": metadata.url,
        }
        done = subprocess.run(["bash", str(script)], env=env, capture_output=True, text=True)

    def stored(key):
        return client.get_object(Bucket=bucket, Key=key)["Body"].read().decode()

    answer = json.loads(stored("images/x.json"))
    log = stored("images/x.log")
    return Built(done.returncode, calls.read_text().splitlines(), answer, log, folder / "opt", folder / "etc")


@pytest.fixture(scope="module")
def good(s3_server, tmp_path_factory):
    """A build in which nothing goes wrong."""
    return build(s3_server, tmp_path_factory.mktemp("box"))


def test_good_build_makes_music_reports_and_shuts_down(good):
    assert (good.code, good.answer["ok"], good.answer["driver"]) == (0, True, "570.1"), good.log
    assert good.answer["torch"]
    assert good.calls[0].startswith("shutdown -P +90 ") and good.calls[-1] == "shutdown -P now"


def test_driver_is_held_before_the_system_is_updated(good):
    update = next(i for i, call in enumerate(good.calls) if call.endswith(" update"))
    assert good.calls.index("nvidia-driver-570") < update and "bash" not in good.calls


def test_image_keeps_packages_and_no_code_or_settings(good):
    assert (good.home / "venv" / "bin" / "python").exists()
    assert not (good.root / "releases").exists() and not (good.root / "current").is_symlink()
    assert not (good.home / "worker.env").exists() and not (good.home / "tmp").exists()


def test_heartmula_is_fetched_before_its_test_as_the_worker_fetches_none(s3_server, tmp_path):
    """The weights of a stand-in's environment come at once, and its worker has no engine."""
    noted = 'case "$*" in *models.py*) echo "$*" >> "$CALLS"; exit ;; *worker*) exit 2 ;; esac; exec '
    built = build(s3_server, tmp_path, GOOD_INSTALL.replace("exec ", noted), MODEL="heartmula")
    assert built.answer["step"] == "model" and "-B remote/models.py get heartmula" in built.calls


@pytest.mark.parametrize(
    ("changed", "step"),
    [
        ({"CODE_SHA256": "0" * 64}, "code"),
        ({"install": "#!/usr/bin/env bash\necho no space left; exit 3\n"}, "install"),
        ({"DEVICE": "cuda:9", "install": NO_GPU_INSTALL}, "model"),
    ],
    ids=["checksum", "install", "gpu"],
)
def test_failure_is_named_reported_and_shuts_down(s3_server, tmp_path, changed, step):
    built = build(s3_server, tmp_path, **changed)
    assert built.code != 0 and (built.answer["ok"], built.answer["step"]) == (False, step)
    assert f"--- {step}" in built.log and built.calls[-1] == "shutdown -P now"
