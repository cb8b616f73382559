"""Checks of what was deployed: settings, the bucket, packages, weights."""

import email.utils
import importlib.metadata
import json
import os
import platform
import re
import shutil
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from check_result import GB, Check, existing, line, model_name, needed, tried

from worker.errors import BadInput
from worker.models import heartmula_tree

BUCKET = [
    "credentials",
    "bucket_list",
    "bucket_write",
    "bucket_read",
    "bucket_conditional_write",
    "bucket_delete",
    "clock",
]


def check_variables() -> Iterator[Check]:
    """The settings that the worker gets. Prints names only: values may be secrets."""
    file = Path(os.environ["MUSICGEN_BOX_HOME"]) / "worker.env"
    redeploy = "set it in .env on your machine and run the install phase again"
    if not file.exists():
        yield Check(
            "variables", False, f"there is no {file}", "run the install phase, which sends the settings"
        )
        return
    if file.stat().st_mode & 0o077:
        yield Check("variables", False, f"others can read {file}", f"chmod 600 {file}")
        return
    keys = [name for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY") if os.environ.get(name)]
    if len(keys) == 1:
        yield Check("variables", False, f"{keys[0]} is set without its other half", redeploy)
    elif not _bucket() and not os.environ.get("MUSICGEN_OUTPUT"):
        yield Check("variables", "warn", "no MUSICGEN_S3_BUCKET: the songs stay on this box", redeploy)
    elif _bucket() and not (os.environ.get("AWS_DEFAULT_REGION") or os.environ.get("AWS_REGION")):
        yield Check("variables", "warn", "AWS_DEFAULT_REGION is not set", redeploy)
    elif not os.environ.get("HOURLY_COST_USD"):
        yield Check(
            "variables", "warn", "HOURLY_COST_USD is not set: the report counts this box as free", redeploy
        )
    else:
        yield Check("variables", True, "bucket, region and price are set")


def check_bucket() -> Iterator[Check]:
    """Whose credentials these are, and whether they allow what the worker does in the bucket."""
    names = BUCKET
    if not _bucket():
        yield from (Check(name, "warn", "MUSICGEN_S3_BUCKET is not set") for name in names)
        return
    try:
        import boto3
        from botocore.config import Config
    except ImportError:
        for name in names:
            yield Check(name, False, "boto3 is missing in the worker's environment", "run the install phase")
        return

    config = Config(connect_timeout=5, read_timeout=10, retries={"total_max_attempts": 2})
    session = boto3.session.Session()
    if session.get_credentials() is None:
        yield Check(
            "credentials",
            False,
            "there are no credentials",
            "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY in .env",
        )
        yield from (Check(name, False, "no credentials") for name in names[1:])
        return
    s3 = session.client("s3", config=config)
    # Below claims/, where the worker's policy allows a delete; of this box, so that the next check
    # overwrites what a killed one left.
    place = {"Bucket": _bucket(), "Key": f"{_prefix()}claims/.check-{platform.node()}"}
    yield tried(
        "credentials", lambda: _who(session, config), "correct the AWS keys in .env, or renew temporary ones"
    )
    yield tried(
        "bucket_list",
        lambda: _listed(s3),
        "allow s3:ListBucket; are name and region of the bucket right?",
    )
    yield tried("bucket_write", lambda: _written(s3, place), "allow s3:PutObject on the prefix")
    yield tried("bucket_read", lambda: _read(s3, place), "allow s3:GetObject on the prefix")
    yield tried(
        "bucket_conditional_write",
        lambda: _refused(s3, place),
        "use a store with conditional writes (S3 has them)",
    )
    yield tried(
        "bucket_delete", lambda: s3.delete_object(**place) and "works", "allow s3:DeleteObject on the prefix"
    )
    yield _clock(s3)


def check_packages() -> Iterator[Check]:
    """The installed packages against requirements/worker.txt."""
    file = Path(
        os.environ.get("MUSICGEN_REQUIREMENTS") or Path(__file__).parents[1] / "requirements" / "worker.txt"
    )
    if not file.exists():
        yield Check("packages", False, f"there is no {file}", "run the deploy phase")
        return
    if not _in_environment():
        yield Check("packages", False, "the worker's environment is missing", "run the install phase")
        return
    wrong, n_pins = [], 0
    for name, pin, marker in re.findall(r"(?m)^([\w.-]+)==([^\s;]+)[ ]*(;.*)?$", file.read_text("utf-8")):
        try:
            found = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            # A line with a marker may be for another system, or a part of the image's torch.
            if not marker:
                wrong.append(f"{name} {pin} is missing")
            continue
        n_pins += 1
        # Of several lines for one package, markers choose one; this accepts any.
        if found.split("+")[0] != pin and not marker:
            wrong.append(f"{name} is {found}, not {pin}")
    torch_only = len(wrong) == 1 and wrong[0].startswith("torch is ")
    if torch_only and os.environ.get("MUSICGEN_TORCH") == "image":
        yield Check("packages", "warn", f"{wrong[0]}: the image's own, because of MUSICGEN_TORCH=image")
    elif wrong:
        more = f" and {len(wrong) - 3} more" if len(wrong) > 3 else ""
        yield Check("packages", False, "; ".join(wrong[:3]) + more, "run the install phase again")
    else:
        yield Check("packages", True, f"Python {sys.version.split()[0]}, {n_pins} packages as pinned")


def check_model() -> Iterator[Check]:
    """The weights, or room for them."""
    model = model_name()
    if model in ("rehearsal", "heartmula-rehearsal"):
        yield Check("model", True, f"{model} is built in")
        return
    if model in ("heartmula", "heartmula-3b"):
        yield _heartmula(model, Path(os.environ["MUSICGEN_HEARTMULA_DIR"]))
        return
    if model.startswith((".", "/", "~")):
        yield _folder(model, Path(model).expanduser())
        return
    models = Path(os.environ.get("MUSICGEN_MODELS_DIR") or f"{os.environ['MUSICGEN_BOX_ROOT']}/models")
    folder = models / model.replace("/", "--")
    if (folder / ".complete.json").is_file():
        wrong = damage(folder)
        remedy = f"get it again: fab models --get {model}" if wrong else ""
        detail = f"{model} is damaged: {wrong}" if wrong else f"{model} is complete in {models}"
        yield Check("model", not wrong, detail, remedy)
        return
    hub = Path(os.environ["HF_HOME"]) / "hub"
    weights = list(hub.glob(f"models--{model.replace('/', '--')}/snapshots/*/*.safetensors"))
    if weights and all(path.exists() for path in weights):
        size = sum(path.stat().st_size for path in weights)
        yield Check("model", True, f"{model} is in {hub} ({size / GB:.1f} GB)")
        return
    need = needed().files_gb
    if no_room := _no_room(model, models):
        yield no_room
    else:
        detail = f"{model} will be downloaded at the first run, {need:.1f} GB; there is room for it"
        yield Check("model", "warn", detail)


def _heartmula(model: str, folder: Path) -> Check:
    """The tree that its name means, which the worker does not fetch; or room for it."""
    if (folder / "gen_config.json").is_file():
        return _tree(folder, f"{model} is whole in {folder}", "fab models --get heartmula-3b")
    lacking = Check("model", False, f"{model} is not in {folder}", "fab models --get heartmula-3b")
    begun = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) / GB
    return _no_room(model, folder, begun) or lacking


def _folder(model: str, folder: Path) -> Check:
    if not folder.is_dir():
        return Check("model", False, f"{model} does not exist", "correct MUSICGEN_MODEL")
    if (folder / "gen_config.json").is_file():
        remedy = "complete it, or: fab models --get heartmula-3b, and set MUSICGEN_MODEL=heartmula"
        return _tree(folder, f"{model} is a whole HeartMuLa", remedy)
    return Check("model", True, f"{model} is a folder")


def _tree(folder: Path, whole: str, remedy: str) -> Check:
    """The files, names and shapes of a HeartMuLa; not its values, which are 22 GB."""
    try:
        heartmula_tree.check(folder)
    except heartmula_tree.Unfit as error:
        return Check("model", False, error.what, remedy)
    except BadInput as error:
        what, _, remedy = str(error).partition("; ")
        return Check("model", False, what, remedy)
    return Check("model", True, whole)


def _no_room(model: str, folder: Path, begun_gb: float = 0.0) -> Check | None:
    """The check that has failed if the disk has no room for what of the model is still to come."""
    need, free = needed().files_gb, shutil.disk_usage(existing(folder)).free / GB
    if free + begun_gb >= need:
        return None
    detail = f"{model} needs {need:.1f} GB, {free:.1f} GB are free in {folder}"
    return Check("model", False, detail, "take a larger disk or volume")


def damage(folder: Path) -> str:
    """What is wrong with a model by the sizes in its marker; "" if nothing is. Checksums take minutes."""
    try:
        parts = json.loads((folder / ".complete.json").read_text("utf-8"))["parts"]
        sizes = {
            folder / part["folder"] / name: its["size"]
            for part in parts
            for name, its in part["files"].items()
        }
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return "its marker cannot be read"
    for path, size in sizes.items():
        if not path.is_file():
            return f"{path.name} is missing"
        if path.stat().st_size != size:
            return f"{path.name} has {path.stat().st_size} bytes instead of {size}"
    return ""


def _bucket() -> str:
    return os.environ.get("MUSICGEN_S3_BUCKET", "")


def _prefix() -> str:
    prefix = os.environ.get("MUSICGEN_S3_PREFIX", "").strip("/")
    return prefix + "/" if prefix else ""


def _in_environment() -> bool:
    return Path(sys.prefix) == Path(os.environ["MUSICGEN_BOX_HOME"]) / "venv"


def _who(session: Any, config: Any) -> str:
    who = session.client("sts", config=config).get_caller_identity()
    method = session.get_credentials().method
    return f"{who['Arn']} (from {'worker.env' if method == 'env' else method})"


def _listed(s3: Any) -> str:
    s3.list_objects_v2(Bucket=_bucket(), Prefix=_prefix(), MaxKeys=1)
    return f"s3://{_bucket()}/{_prefix()}"


def _written(s3: Any, place: dict[str, str]) -> str:
    s3.put_object(**place, Body=b"check", IfNoneMatch="*")
    return "works"


def _read(s3: Any, place: dict[str, str]) -> str:
    if s3.get_object(**place)["Body"].read() != b"check":
        raise ValueError("the object read is not the one written")
    return "works"


def _refused(s3: Any, place: dict[str, str]) -> str:
    """A second conditional write must be refused: two workers share a list by it."""
    try:
        s3.put_object(**place, Body=b"again", IfNoneMatch="*")
    except s3.exceptions.ClientError as error:
        if error.response["Error"]["Code"] == "PreconditionFailed":
            return "a second write was refused, as it should be"
        raise
    raise ValueError("a conditional write overwrote an object")


def _clock(s3: Any) -> Check:
    """This clock against S3's, whose time is in every answer, also in a refusal."""
    try:
        answer = s3.list_objects_v2(Bucket=_bucket(), Prefix=_prefix(), MaxKeys=1)
    except s3.exceptions.ClientError as error:
        answer = error.response
    except Exception as error:
        return Check("clock", "warn", f"no answer from S3: {line(error)}")
    date = answer["ResponseMetadata"]["HTTPHeaders"].get("date", "")
    try:
        skew_s = abs(time.time() - email.utils.parsedate_to_datetime(date).timestamp())
    except (TypeError, ValueError):
        return Check("clock", "warn", "S3's answer had no time")
    ok: bool | str = False if skew_s > 600 else "warn" if skew_s > 10 else True
    return Check(
        "clock",
        ok,
        f"{skew_s:.0f} s from S3's",
        "" if ok is True else "set this machine's clock; S3 refuses requests at 900 s",
    )
