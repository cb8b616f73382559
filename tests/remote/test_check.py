"""remote/check.py: what a box lacks is said before a run, with the remedy, and never with a secret."""

import ast
import json
import re
import shutil
import subprocess
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path

import pytest

from tests.fakes import s3
from tests.parts import need
from tests.remote.boxes import REPOSITORY
from worker.models import manifest, tiny_heartmula
from worker.models.heartmula_config import CodecConfig, MulaConfig
from worker.models.manifest import File, Manifest, Pinned
from worker.store.open import open_store

SECRET = "swordfish-swordfish"
NAMES = (
    "tools variables credentials bucket_list bucket_write bucket_read bucket_conditional_write bucket_delete "
    "clock gpu_driver gpu_torch matrix_product precision gpu_memory memory disk_system disk_root floors "
    "tmpdir hf_home models_dir heartmula_dir packages model watchdog"
).split()


@pytest.fixture
def checked(box):
    """Check the box with these settings; -> checks by name, and the process."""
    real = box.home / "venv" / "bin" / "python"
    real.unlink()
    # A venv's link to an interpreter is none outside it: this one leads to the packages of our own.
    real.write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
    real.chmod(0o755)
    fake_module(box, "torch", "raise ImportError('the real one takes seconds')")

    def run(timeout_s=60, **settings):
        box.settings(**settings)
        command = [
            sys.executable,
            str(box.root / "current" / "remote" / "check.py"),
            "--timeout",
            str(timeout_s),
        ]
        done = subprocess.run(command, env=box.env, capture_output=True, text=True, timeout=120)
        assert done.stdout, done.stderr
        return {check["name"]: check for check in json.loads(done.stdout)}, done

    return run


@pytest.fixture
def asked(box):
    """One group of checks of the box under these settings, without the others; -> checks by name."""

    def run(group, python=sys.executable, **settings):
        command = [python, "-B", str(box.release / "remote" / "check.py"), "--group", group]
        env = box.env | {"HF_HOME": f"{box.root}/cache/huggingface"} | settings
        done = subprocess.run(command, env=env, capture_output=True, text=True, check=True)
        return {
            name: (ok, detail, remedy)
            for name, ok, detail, remedy in map(json.loads, done.stdout.splitlines())
        }

    return run


def in_bucket(url, **more):
    return {
        "MUSICGEN_S3_BUCKET": s3.fresh_bucket(url),
        "MUSICGEN_S3_PREFIX": "some/prefix",
        "AWS_ENDPOINT_URL": url,
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_ACCESS_KEY_ID": "AKIATESTING",
        "AWS_SECRET_ACCESS_KEY": SECRET,
        "AWS_EC2_METADATA_DISABLED": "true",
        "HOURLY_COST_USD": "0.40",
        "MUSICGEN_MODEL": "rehearsal",
    } | more


def fake_program(box, name, body):
    folder = box.home / "bin"
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(f"#!/bin/sh\n{body}\n")
    (folder / name).chmod(0o755)
    box.env["PATH"] = f"{folder}:{box.env['PATH']}"


def fake_module(box, name, source):
    """A module that a check's process finds first, beside check.py."""
    (box.release / "remote" / f"{name}.py").write_text(source)


def test_box_with_a_good_bucket_passes_and_nothing_is_left_in_it(checked, s3_url):
    settings = in_bucket(s3_url)
    checks, _ = checked(**settings)
    without = ("packages", "gpu_torch", "matrix_product", "precision", "gpu_memory")  # no torch here
    assert [name for name, each in checks.items() if each["ok"] is False and name not in without] == []
    assert list(checks) == NAMES
    for name in ("credentials", "bucket_conditional_write", "bucket_delete", "clock"):
        assert checks[name]["ok"] is True
    assert "arn:aws:" in checks["credentials"]["detail"]
    assert open_store(f"s3://{settings['MUSICGEN_S3_BUCKET']}").list() == {}


def test_bucket_that_is_not_there_is_named_and_no_secret_is(checked, s3_url):
    checks, done = checked(**in_bucket(s3_url, MUSICGEN_S3_BUCKET="no-such-bucket"))
    assert checks["bucket_list"]["ok"] is False and "NoSuchBucket" in checks["bucket_list"]["detail"]
    assert checks["bucket_list"]["remedy"]
    assert done.returncode == 1 and SECRET not in done.stdout + done.stderr


def test_denied_bucket_says_what_to_allow(asked, s3_url):
    with s3.refusing(403, "AccessDenied") as url:
        _, detail, remedy = asked("bucket", **in_bucket(s3_url, AWS_ENDPOINT_URL=url))["bucket_write"]
    assert detail == "PutObject: AccessDenied"
    assert "s3:PutObject" in remedy


def test_secret_that_an_error_repeats_is_hidden(checked, box):
    fake_module(box, "torch", f"raise RuntimeError('cannot use {SECRET}')")
    checks, done = checked(MY_TOKEN=SECRET, MUSICGEN_MODEL="rehearsal")
    assert checks["gpu_torch"]["detail"].endswith("cannot use ***") and SECRET not in done.stdout


def test_no_bucket_is_a_warning(asked, box):
    box.settings()
    assert asked("variables")["variables"][0] == "warn" == asked("bucket")["bucket_list"][0]


def test_half_a_key_is_named(asked, box):
    box.settings()
    _, detail, _ = asked("variables", AWS_ACCESS_KEY_ID="AKIA")["variables"]
    assert detail == "AWS_ACCESS_KEY_ID is set without its other half"


def test_settings_that_others_can_read_are_refused(asked, box):
    box.settings()
    (box.home / "worker.env").chmod(0o644)
    assert asked("variables")["variables"][0] is False


def test_box_without_settings_and_environment_still_answers(box):
    (box.home / "venv" / "bin" / "python").unlink()
    command = [
        shutil.which("python3", path="/usr/local/bin:/usr/bin"),
        str(box.root / "current" / "remote" / "check.py"),
    ]
    done = subprocess.run(command, env=box.env, capture_output=True, text=True, timeout=60)
    checks = {check["name"]: check for check in json.loads(done.stdout)}
    assert list(checks) == NAMES and done.returncode == 1
    assert checks["variables"]["remedy"] and checks["gpu_torch"]["remedy"] == "run the install phase"


def test_check_that_hangs_has_failed(checked, box):
    fake_program(box, "nvidia-smi", "sleep 600")
    fake_module(box, "torch", "import time; time.sleep(600)")
    checks, _ = checked(timeout_s=5, MUSICGEN_MODEL="rehearsal")
    assert checks["gpu_driver"]["detail"] == "no result within 5 s"
    assert checks["matrix_product"]["ok"] is False and checks["tools"]["ok"] is True


def test_check_that_crashes_has_failed(checked, box):
    fake_module(box, "torch", "import os; os._exit(9)")
    checks, _ = checked(MUSICGEN_MODEL="rehearsal")
    assert checks["gpu_torch"]["detail"] == "the check ended without a result (exit code 9)"


def test_cache_of_the_kernel_is_free_memory_of_a_container(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(REPOSITORY / "remote")
    import check_machine

    for name, text in {
        "memory.max": "100\n",
        "memory.current": "90\n",
        "memory.stat": "anon 30\ninactive_file 60\n",
    }.items():
        (tmp_path / name).write_text(text)
    assert check_machine.free_in_cgroup(tmp_path) == 70
    (tmp_path / "memory.max").write_text("max\n")
    assert check_machine.free_in_cgroup(tmp_path) == float("inf")


def test_gpu_is_named_by_its_driver(asked, box):
    fake_program(box, "nvidia-smi", "echo 'NVIDIA L40S, 580.10, 46068 MiB'")
    ok, detail, _ = asked("gpu_driver")["gpu_driver"]
    assert ok is True and "L40S" in detail


def test_missing_gpu_fails_for_a_real_model_only(asked, box):
    fake_program(box, "nvidia-smi", "echo 'NVIDIA-SMI has failed' >&2; exit 9")
    assert asked("gpu_driver", MUSICGEN_MODEL="rehearsal")["gpu_driver"][0] == "warn"
    ok, detail, _ = asked("gpu_driver", MUSICGEN_MODEL="facebook/musicgen-small")["gpu_driver"]
    assert ok is False and detail == "NVIDIA-SMI has failed"


def test_package_that_is_not_as_pinned_is_named(asked, box):
    """In a real environment of its own, as the check looks for one."""
    venv = box.home / "venv"
    (venv / "bin" / "python").unlink()
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(venv)], check=True)
    (place,) = venv.glob("lib/python3*/site-packages")
    for name, version in (("right", "1.0"), ("wrong", "2.0"), ("marked", "3.0+cu1")):
        (place / f"{name}-{version}.dist-info").mkdir()
        metadata = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
        (place / f"{name}-{version}.dist-info" / "METADATA").write_text(metadata)
    (box.release / "requirements" / "worker.txt").write_text(
        "right==1.0\nwrong==1.9\nabsent==1\n"
        "marked==3.0 ; sys_platform == 'linux'\nother==1 ; sys_platform == 'win32'\n"
    )
    ok, detail, _ = asked("packages", venv / "bin" / "python")["packages"]
    assert ok is False
    assert detail == "wrong is 2.0, not 1.9; absent 1 is missing"


def test_weights_that_are_there_are_found(asked, box):
    snapshot = box.root / "cache/huggingface/hub/models--facebook--musicgen-small/snapshots/abc"
    snapshot.mkdir(parents=True)
    (snapshot / "model.safetensors").write_bytes(b"x")
    assert asked("model", MUSICGEN_MODEL="facebook/musicgen-small")["model"][0] is True


@pytest.fixture
def complete(box):
    """The folder of a complete model of one file."""
    file = File(5, "sha256", "00")
    pinned = Pinned("facebook/musicgen-small", "", 40 * "a", {"model.safetensors": file})
    folder = box.root / "models" / "facebook--musicgen-small"
    folder.mkdir(parents=True)
    (folder / "model.safetensors").write_bytes(bytes(5))
    manifest.complete(Manifest("facebook/musicgen-small", (pinned,)), folder)
    return folder


def test_complete_model_is_found(asked, complete):
    ok, detail, _ = asked("model", MUSICGEN_MODEL="facebook/musicgen-small")["model"]
    assert (ok, detail) == (True, f"facebook/musicgen-small is complete in {complete.parent}")


@pytest.mark.parametrize(
    ("file", "content", "why"),
    [
        ("model.safetensors", b"x", "model.safetensors has 1 bytes instead of 5"),
        ("model.safetensors", None, "model.safetensors is missing"),
        (".complete.json", b"{}", "its marker cannot be read"),
    ],
)
def test_damaged_model_is_not_called_complete(asked, complete, file, content, why):
    if content is None:
        (complete / file).unlink()
    else:
        (complete / file).write_bytes(content)
    ok, detail, remedy = asked("model", MUSICGEN_MODEL="facebook/musicgen-small")["model"]
    assert (ok, detail) == (False, f"facebook/musicgen-small is damaged: {why}")
    assert remedy == "get it again: fab models --get facebook/musicgen-small"


def with_free_disk(box, gb):
    """Disks that have so much room, to the checks' own eyes."""
    fake_module(
        box,
        "sitecustomize",
        "import shutil\nfrom types import SimpleNamespace\n"
        f"shutil.disk_usage = lambda path: SimpleNamespace(free={gb}e9, total={gb}e9)\n",
    )
    box.env["PYTHONPATH"] = str(box.release / "remote")


def test_heartmula_is_looked_for_in_its_own_folder(asked, box):
    with_free_disk(box, 100)
    ckpt = box.root / "ckpt"
    given = {"MUSICGEN_MODEL": "heartmula", "MUSICGEN_HEARTMULA_DIR": str(ckpt)}
    assert asked("model", **given)["model"] == (
        False,
        f"heartmula is not in {ckpt}",
        "fab models --get heartmula-3b",
    )
    tiny_heartmula.build(ckpt)
    assert asked("model", **given)["model"] == (True, f"heartmula is whole in {ckpt}", "")


def test_heartmula_that_lacks_a_file_is_named_with_what_gets_it(asked, box):
    tiny_heartmula.build(box.root / "ckpt")
    (box.root / "ckpt" / "HeartCodec-oss" / "model.safetensors").unlink()
    given = {"MUSICGEN_MODEL": "heartmula", "MUSICGEN_HEARTMULA_DIR": str(box.root / "ckpt")}
    assert asked("model", **given)["model"] == (
        False,
        f"{box.root}/ckpt/HeartCodec-oss lacks model.safetensors",
        "fab models --get heartmula-3b",
    )
    ok, detail, remedy = asked("model", MUSICGEN_MODEL=f"{box.root}/ckpt")["model"]
    assert (ok, "lacks model.safetensors" in detail) == (False, True)
    assert "set MUSICGEN_MODEL=heartmula" in remedy


def test_heartmula_that_is_to_come_needs_room(asked, box):
    with_free_disk(box, 20)
    given = {"MUSICGEN_MODEL": "heartmula", "MUSICGEN_HEARTMULA_DIR": str(box.root / "ckpt")}
    assert asked("model", **given)["model"] == (
        False,
        f"heartmula needs 22.4 GB, 20.0 GB are free in {box.root}/ckpt",
        "take a larger disk or volume",
    )


# --- what the model that will run needs of the machine

CARDS = {"T4": 15.8, "A10G": 23.8, "A40": 47.6}


@pytest.fixture
def on_gpu(asked, box):
    """gpu_memory of a box whose torch reports a GPU with so many GB free."""

    def check(free_gb, **settings):
        fake_module(
            box,
            "torch",
            "from types import SimpleNamespace\n"
            "__version__, version = '0', SimpleNamespace(cuda='0')\n"
            "class cuda:\n"
            "    is_available = staticmethod(lambda: True)\n"
            "    get_device_capability = staticmethod(lambda: (8, 6))\n"
            "    get_device_name = staticmethod(lambda: 'a GPU')\n"
            f"    mem_get_info = staticmethod(lambda: ({free_gb}e9, {free_gb}e9))\n"
            "float16 = float32 = 'float16'\n"
            "class arange:  # no GPU, in truth\n"
            "    def __init__(self, *args, **kwargs): pass\n"
            "    def remainder(self, n): return self\n"
            "    def to(self, dtype): raise RuntimeError\n",
        )
        return asked("torch", **settings)["gpu_memory"]

    return check


@pytest.mark.parametrize(
    ("model", "runs_on"),
    [
        ("facebook/musicgen-large", ["T4", "A10G", "A40"]),
        ("heartmula", ["A10G", "A40"]),
        ("heartmula-7b", ["A40"]),
    ],
)
def test_gpu_must_hold_the_model_that_will_run(on_gpu, box, model, runs_on):
    if model == "heartmula-7b":  # of which there is only a folder
        model = box.root / "seven"
        tiny_heartmula.build(model)
        sizes = {"HeartMuLa-oss-3B": MulaConfig("llama-7B", "llama-400M"), "HeartCodec-oss": CodecConfig()}
        for part, config in sizes.items():
            (model / part / "config.json").write_text(json.dumps(asdict(config)))
    found = {
        card: on_gpu(gb, MUSICGEN_MODEL=str(model), MUSICGEN_HEARTMULA_DIR="/none")
        for card, gb in CARDS.items()
    }
    assert [card for card, (ok, _, _) in found.items() if ok] == runs_on


def test_what_the_memory_of_a_gpu_is_for_is_said(on_gpu):
    _, detail, remedy = on_gpu(15.8, MUSICGEN_MODEL="heartmula", MUSICGEN_HEARTMULA_DIR="/none")
    assert detail == (
        "15.8 of 15.8 GB free; heartmula needs 16.3 GB of GPU memory "
        "(7.9 language model, 6.0 codec, 0.9 a song's cache, 1.5 to spare)"
    )
    assert remedy == "stop what uses the GPU, or rent a larger one"


def test_heartmula_is_mapped_and_needs_less_ram_than_it_has_gigabytes(asked):
    _, detail, _ = asked("memory", MUSICGEN_MODEL="heartmula", MUSICGEN_HEARTMULA_DIR="/none")["memory"]
    assert detail.endswith(" GB free, 5.6 GB needed")


def test_a_rehearsal_of_heartmula_needs_no_gpu(asked, box):
    fake_program(box, "nvidia-smi", "exit 9")
    assert asked("gpu_driver", MUSICGEN_MODEL="heartmula-rehearsal")["gpu_driver"][0] == "warn"


def test_weights_that_are_to_come_need_room(asked):
    ok, detail, _ = asked("model", MUSICGEN_MODEL="facebook/musicgen-small")["model"]
    assert ok in ("warn", False)
    assert "2.4 GB" in detail


def test_watchdog_and_its_deadline_are_shown(asked, box):
    ok, detail, _ = asked("watchdog")["watchdog"]
    assert (ok, detail) == ("warn", "nothing turns this box off; it bills until you stop it")
    box.settings(MUSICGEN_STOP_HOOK=str(box.hook()))
    assert asked("watchdog")["watchdog"][0] == "warn"
    box.json("watchdog.sh", "start", MUSICGEN_LIFETIME_S="7200")
    assert asked("watchdog")["watchdog"] == (True, "this box switches off in 2.0 h at the latest", "")


@pytest.mark.parametrize(
    "path", sorted((REPOSITORY / "remote").glob("check*.py")), ids=lambda path: path.name
)
def test_check_runs_on_the_oldest_python_of_a_box(path):
    source = Path(path).read_text("utf-8")
    ast.parse(source, feature_version=(3, 10))
    assert "from datetime import UTC" not in source


def test_check_counts_as_work_until_it_ends(checked, box):
    is_busy = f". {box.release}/remote/env.sh; . {box.release}/remote/state.sh; is_busy"
    seen = box.home / "seen"
    fake_module(
        box,
        "torch",
        f"import subprocess\ncode = subprocess.call(['bash', '-c', {is_busy!r}])\n"
        f"open({str(seen)!r}, 'w').write(str(code))\n"
        "raise ImportError('enough')",
    )
    checked()
    assert seen.read_text() == "0"
    assert subprocess.run(["bash", "-c", is_busy], env=box.env).returncode == 1


# --- where large files go


@pytest.fixture
def placed(asked, tmp_path):
    """The checks of the folders that env.sh names, with these in place of its own."""
    folders = {
        "TMPDIR": f"{tmp_path}/tmp",
        "HF_HOME": f"{tmp_path}/hub",
        "MUSICGEN_MODELS_DIR": f"{tmp_path}/models",
        "MUSICGEN_HEARTMULA_DIR": f"{tmp_path}/ckpt",
    }
    return lambda **given: asked("places", **(folders | given))


@pytest.fixture
def volume():
    """A folder on another disk than the root's."""
    memory = Path("/dev/shm")
    need("a second file system", memory.is_dir() and memory.stat().st_dev != Path("/").stat().st_dev)
    with tempfile.TemporaryDirectory(dir=memory) as folder:
        yield folder


def test_each_folder_is_shown_with_what_is_free_there(placed, tmp_path):
    found = placed()
    assert list(found) == ["tmpdir", "hf_home", "models_dir", "heartmula_dir"]
    for name, folder in zip(found, ("tmp", "hub", "models", "ckpt"), strict=True):
        ok, detail, _ = found[name]
        assert ok is True and re.match(rf"{tmp_path}/{folder}, [\d.]+ GB free", detail)
    assert not (tmp_path / "models").exists()


def test_folder_that_cannot_be_written_fails(placed, tmp_path):
    (tmp_path / "file").touch()
    found = placed(MUSICGEN_MODELS_DIR=f"{tmp_path}/file/models")
    ok, detail, remedy = found["models_dir"]
    assert ok is False and "cannot be written: Not a directory" in detail and remedy
    assert found["hf_home"][0] is True


def test_relative_folder_fails(placed):
    assert placed(MUSICGEN_MODELS_DIR="models")["models_dir"][:2] == (
        False,
        "MUSICGEN_MODELS_DIR=models is relative",
    )


@pytest.mark.parametrize(
    ("name", "variable"),
    [
        ("hf_home", "HF_HOME"),
        ("models_dir", "MUSICGEN_MODELS_DIR"),
        ("heartmula_dir", "MUSICGEN_HEARTMULA_DIR"),
    ],
)
def test_models_beside_a_mounted_volume_fail(placed, volume, name, variable):
    ok, detail, remedy = placed(MUSICGEN_WORKSPACE=volume, **{variable: "/no-such-folder/here"})[name]
    assert ok is False and f"a volume is at {volume}" in detail
    assert remedy == f"unset {variable}, or name a folder under {volume}"


def test_models_on_a_mounted_volume_and_temporary_files_beside_it_pass(placed, volume):
    on_it = dict.fromkeys(("HF_HOME", "MUSICGEN_MODELS_DIR", "MUSICGEN_HEARTMULA_DIR"), f"{volume}/there")
    found = placed(MUSICGEN_WORKSPACE=volume, **on_it)
    assert [ok for ok, _, _ in found.values()] == [True] * 4


MOUNTS = """\
21 1 0:20 / / rw,relatime - overlay overlay rw
22 21 0:50 / /workspace rw,relatime shared:1 - fuse mfs#eu-ro-1.example:9421 rw
23 21 0:51 / /with\\040space rw - nfs4 10.0.0.1:/a rw
24 22 8:1 / /workspace/disk rw - ext4 /dev/sda1 rw
25 24 0:52 / /workspace/disk rw - fuse.fuse-overlayfs fuse-overlayfs rw
"""


@pytest.mark.parametrize(
    ("path", "kind", "is_network"),
    [
        ("/root/.musicgen/tmp", "overlay", False),
        ("/workspace/ckpt", "fuse", True),
        ("/workspaces", "overlay", False),
        ("/with space/models", "nfs4", True),
        ("/workspace/disk/a", "fuse.fuse-overlayfs", False),
    ],
)
def test_network_volume_whose_free_space_is_its_clusters_is_known(monkeypatch, path, kind, is_network):
    monkeypatch.syspath_prepend(REPOSITORY / "remote")
    import check_places

    assert check_places.file_system(Path(path), MOUNTS) == kind
    assert check_places.is_network(kind) is is_network


# --- what a pod was rented for

GPU_48 = "echo 46068"  # an L40S, in MiB


@pytest.mark.parametrize(
    ("floors", "gpu", "passed", "words"),
    [
        ("48,0.1,0.1", GPU_48, True, "45.0 GB of GPU memory"),
        ("48,0.1,0.1", "echo 24564", False, "24.0 GB of GPU memory, 48 needed"),
        ("48,0.1,0.1", "echo 46068; echo 24564", False, "24.0 GB of GPU memory"),
        ("48,0.1,0.1", "exit 9", False, "0.0 GB of GPU memory"),
        ("48,999999,0.1", GPU_48, False, "GB of RAM, 999999 needed"),
        ("48,0.1,999999", GPU_48, False, "GB of disk, 999999 needed"),
        ("48,0.1", GPU_48, False, "is not three numbers"),
        ("48,0.1,0.1", "echo unknown", False, "cannot be measured"),
        ("", "exit 9", True, "none are set"),
    ],
)
def test_machine_below_its_floors_fails(box, asked, floors, gpu, passed, words):
    fake_program(box, "nvidia-smi", gpu)
    ok, detail, remedy = asked("floors", MUSICGEN_FLOORS_GB=floors)["floors"]
    assert ok is passed and words in detail
    assert bool(remedy) is not passed


def test_limit_of_a_container_counts_as_its_memory(tmp_path):
    (tmp_path / "memory.max").write_text(f"{32 * 2**30}\n")
    script = (
        f"import check_floors; print(check_floors.ram_gib(__import__('pathlib').Path({str(tmp_path)!r})))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=REPOSITORY / "remote", capture_output=True, text=True, check=True
    )
    assert 0 < float(done.stdout) <= 32
