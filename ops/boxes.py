"""The known boxes: `.boxes/ID/{box.json,known_hosts}`, and `.boxes/current` with the ID of the newest.

Convenience only: it saves typing an address. Finding machines that cost money never depends on it.
Touches no network.
"""

import json
import re
import shutil
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from worker.errors import BadInput

SCHEMA = 1
_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,99}")


@dataclass(frozen=True)
class Known:
    """One box. `kind`: ec2, runpod or ssh; its address may change when it is stopped and started.

    `hourly_usd`, `volume` (the id of its network volume) and `created_at` (UTC): None if not known.
    """

    id: str
    kind: str
    host: str
    port: int = 22
    user: str = "root"
    key_file: str | None = None
    region: str | None = None
    hourly_usd: float | None = None
    volume: str | None = None
    created_at: str | None = None
    schema: int = SCHEMA


def boxes_folder() -> Path:
    """`.boxes` beside the tasks.py in or above the current folder; without one, here."""
    here = Path.cwd()
    project = next((folder for folder in [here, *here.parents] if (folder / "tasks.py").exists()), here)
    return project / ".boxes"


def is_id(text: str) -> bool:
    """True for what can be the ID of a box."""
    return _ID.fullmatch(text) is not None


def folder_of(box_id: str) -> Path:
    """The folder of a box, whether it exists or not. Raises BadInput for what is not a valid ID."""
    if not is_id(box_id):
        raise BadInput(f"{box_id!r} is not the ID of a box; see the folders in {boxes_folder()}")
    return boxes_folder() / box_id


def save(box: Known) -> None:
    """Remember the box and make it the current one."""
    update(box)
    write(boxes_folder() / "current", f"{box.id}\n")


def update(box: Known) -> None:
    """Remember the box, or what has changed of it."""
    write(folder_of(box.id) / "box.json", json.dumps(asdict(box), indent=2) + "\n")


def load(box_id: str) -> Known | None:
    """The box, or None. Raises BadInput if its file is damaged."""
    path = folder_of(box_id) / "box.json"
    if not path.exists():
        return None
    try:
        found: dict[str, Any] = json.loads(path.read_text("utf-8"))
        names = {field.name for field in fields(Known)}
        return Known(**{name: value for name, value in found.items() if name in names})
    except (OSError, ValueError, TypeError, AttributeError):
        raise BadInput(f"{path} is damaged; delete it and give the box with -H") from None


def current() -> Known | None:
    """The box that was saved last and not forgotten, or None."""
    pointer = boxes_folder() / "current"
    if not pointer.exists():
        return None
    return load(pointer.read_text("utf-8").strip())


def find(host: str, port: int) -> Known | None:
    """The box at this address, or None."""
    for path in sorted(boxes_folder().glob("*/box.json")):
        box = load(path.parent.name)
        if box and (box.host, box.port) == (host, port):
            return box
    return None


def forget(box_id: str) -> None:
    """Drop the box and its host key; does nothing if it is not known."""
    pointer = boxes_folder() / "current"
    if pointer.exists() and pointer.read_text("utf-8").strip() == box_id:
        pointer.unlink()
    shutil.rmtree(folder_of(box_id), ignore_errors=True)


def write(path: Path, text: str) -> None:
    """A whole file of `.boxes`, or the one of before."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.tmp")
    partial.write_text(text, "utf-8", newline="\n")
    partial.replace(path)
