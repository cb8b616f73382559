"""The key pair for SSH: AWS has the public key, one file on this machine the private key.

The file is written once, readable for its owner only, and never sent or changed.
"""

import base64
import os
import struct
from pathlib import Path
from typing import Any

from ops.aws.account.step import ABSENT, KEEP, Step, step
from ops.aws.session import Aws, tag_dict, tag_list
from ops.settings import Settings
from worker.errors import BadInput, UserError

_OPENSSH_MAGIC = b"openssh-key-v1\x00"


def key_file(settings: Settings) -> Path:
    """The file of the private key on this machine."""
    return Path(settings.key_file).expanduser()


def key_step(aws: Aws, settings: Settings) -> Step:
    """What the key pair lacks. Raises BadInput when the one in AWS is not the one in the file."""
    name, file = settings.key_name, key_file(settings)
    thing, wanted = f"key pair {name}", f"private key in {file}"
    there = _key_pair(aws, name)
    if there is None:
        return step(thing, ABSENT, wanted, lambda: ensure_key(aws, settings))
    if not file.exists():
        return Step(thing, f"there, but {file} is not", f"{wanted}; put it there, or delete the key pair")
    mine = public_key(file)
    theirs = str(there.get("PublicKey", "")).split()
    if mine and len(theirs) > 1 and mine.split()[1] != theirs[1]:
        raise BadInput(
            f"key pair {name} in {aws.region} is not the one of {file}; "
            "set MUSICGEN_KEY_FILE to its private key or MUSICGEN_KEY_NAME to another name"
        )
    return step(thing, None, wanted, lambda: None)


def ensure_key(aws: Aws, settings: Settings) -> None:
    """Import the file's public key into this region, or have AWS create a pair and keep its private key.

    Running it again changes nothing. An existing file is never written to.
    """
    name, file = settings.key_name, key_file(settings)
    if _key_pair(aws, name) is not None:
        return
    tags = [{"ResourceType": "key-pair", "Tags": tag_list()}]
    if file.exists():
        mine = public_key(file)
        if not mine:
            raise BadInput(
                f"cannot find the public key of {file}; write it to {file}.pub: ssh-keygen -y -f {file}"
            )
        aws.act(
            "ec2", "import_key_pair", KeyName=name, PublicKeyMaterial=mine.encode(), TagSpecifications=tags
        )
        return
    try:
        file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        # Before the call: a key that cannot be kept is not created.
        handle = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except OSError as error:
        raise BadInput(f"cannot write {file} ({error.strerror}); correct MUSICGEN_KEY_FILE") from None
    kept = False
    try:
        with os.fdopen(handle, "w", encoding="ascii", newline="\n") as out:
            made = aws.act("ec2", "create_key_pair", KeyName=name, KeyType="ed25519", TagSpecifications=tags)
            try:
                out.write(made["KeyMaterial"])
                out.flush()
                os.fsync(out.fileno())
                kept = True
            finally:
                if not kept:  # AWS sends it once: without its private key the pair is useless
                    aws.act("ec2", "delete_key_pair", KeyName=name)
    except OSError as error:
        raise UserError(f"cannot write {file} ({error.strerror}); free the disk and run it again") from None
    finally:
        if not kept:
            file.unlink(missing_ok=True)


def key_removal(aws: Aws, settings: Settings) -> Step | None:
    """The removal of the key pair from AWS; the file of the private key stays for the next setup."""
    name = settings.key_name
    there = _key_pair(aws, name)
    if there is None:
        return None
    if "Project" not in tag_dict(there.get("Tags")):
        return Step(f"key pair {name}", "there, not created by setup (no tag)", "kept", KEEP)
    return Step(
        f"key pair {name}",
        "there",
        f"{ABSENT}; {key_file(settings)} stays",
        "delete",
        lambda: aws.act("ec2", "delete_key_pair", KeyName=name),
    )


def public_key(file: Path) -> str | None:
    """`ssh-ed25519 AAAA…` of a private key's file: from FILE.pub, else from OpenSSH's own format.

    None if neither has it. Raises BadInput if the file is not a private key.
    """
    try:
        beside = file.with_name(file.name + ".pub")
        if beside.exists():
            return " ".join(beside.read_text("ascii").split()[:2])
        text = file.read_text("ascii")
    except (OSError, UnicodeDecodeError):
        raise BadInput(f"cannot read the private key {file}; correct MUSICGEN_KEY_FILE") from None
    lines = text.strip().splitlines()
    if len(lines) < 3 or not lines[0].startswith("-----BEGIN") or "PRIVATE KEY" not in lines[0]:
        raise BadInput(f"{file} is not a private key; correct MUSICGEN_KEY_FILE")
    try:
        body = base64.b64decode("".join(lines[1:-1]), validate=True)
        if not body.startswith(_OPENSSH_MAGIC):
            return None
        rest = body[len(_OPENSSH_MAGIC) :]
        for _ in range(3):  # cipher, key derivation, its options
            _, rest = _string(rest)
        public, _ = _string(rest[4:])  # after the number of keys
        kind, _ = _string(public)
        return f"{kind.decode('ascii')} {base64.b64encode(public).decode()}"
    except (ValueError, struct.error):
        return None


def _string(packed: bytes) -> tuple[bytes, bytes]:
    """A string of the SSH protocol (RFC 4251, 5), and what follows it."""
    (length,) = struct.unpack_from(">I", packed)
    if len(packed) < 4 + length:
        raise ValueError("cut short")
    return packed[4 : 4 + length], packed[4 + length :]


def _key_pair(aws: Aws, name: str) -> dict[str, Any] | None:
    found = aws.ask(
        "ec2",
        "describe_key_pairs",
        Filters=[{"Name": "key-name", "Values": [name]}],
        IncludePublicKey=True,
    )["KeyPairs"]
    return dict(found[0]) if found else None
