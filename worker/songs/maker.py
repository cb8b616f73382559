"""What makes the songs of one output: `place.json`, written before the first song is begun.

A song's name does not hold its model, so all songs of an output are made by one model, in one
revision, with one sampling: two lists or two workers with different settings would mix them.
"""

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from worker.engine import Sampling
from worker.errors import BadInput
from worker.store.base import Missing, Store, json_bytes

REHEARSAL = "rehearsal"  # the built-in tiny model
KEY = "place.json"
SCHEMA = 1
START_OVER = "--start-over"

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


@dataclass(frozen=True)
class Maker:
    """Everything that a song's sound depends on besides its own line, its seed and rounding."""

    model: str
    revision: str
    sampling: Sampling
    window_s: float
    stride_s: float

    @classmethod
    def of(cls, described: Mapping[str, Any], sampling: Sampling) -> "Maker":
        """That of a loaded engine (`Engine.describe`)."""
        return cls(
            model=str(described["model"]),
            revision=str(described["revision"]),
            sampling=sampling,
            window_s=float(described["window_s"]),
            stride_s=float(described["stride_s"]),
        )

    def to_json(self) -> bytes:
        return json_bytes({"schema": SCHEMA} | asdict(self))

    @classmethod
    def from_json(cls, content: bytes) -> "Maker | None":
        """None if it is damaged. Raises BadInput if a later version wrote it."""
        try:
            found = json.loads(content)
            if found["schema"] > SCHEMA:
                raise BadInput(f"{KEY} has schema {found['schema']}; update this program, it reads {SCHEMA}")
            return cls(
                model=str(found["model"]),
                revision=str(found["revision"]),
                sampling=Sampling(**found["sampling"]),
                window_s=float(found["window_s"]),
                stride_s=float(found["stride_s"]),
            )
        except (ValueError, KeyError, TypeError, RecursionError):
            return None

    def differences(self, other: "Maker") -> list[str]:
        """What differs, ours last: `stride 18 s, not 12 s`."""
        pairs = [
            ("model", self.model, other.model),
            ("revision", self.revision, other.revision),
            *(
                (name.replace("_", " "), value, getattr(other.sampling, name))
                for name, value in asdict(self.sampling).items()
            ),
            ("window", f"{self.window_s:g} s", f"{other.window_s:g} s"),
            ("stride", f"{self.stride_s:g} s", f"{other.stride_s:g} s"),
        ]
        return [f"{name} {theirs}, not {ours}" for name, theirs, ours in pairs if theirs != ours]


def model_name(model: str) -> str:
    """The name that records hold: the hub id, or a folder's own name, the same on every machine.

    Raises BadInput if it can be neither; whether the model can be loaded is another matter.
    """
    folder = Path(model).expanduser()
    if folder.is_dir():
        return folder.resolve().name
    if model != REHEARSAL and not _HUB_ID.fullmatch(model):
        raise BadInput(f"no model folder at {model}; give a folder, a Hugging Face id or `rehearsal`")
    return model


def refuse_other_model(makers: Iterable[str], model: str, location: str) -> None:
    """Before a model is loaded: the records of this output name `makers`. Raises BadInput."""
    for maker in makers:
        if maker != model:
            raise BadInput(
                f"{location} holds songs made by {maker}, not {model}; give another output folder or prefix"
            )


def settle(store: Store, maker: Maker, makers: Mapping[str, str], *, start_over: bool) -> None:
    """Make this output `maker`'s, or check that it is. Of two workers with different makers one wins.

    `makers`: model -> revision of the records there. Raises BadInput that names each difference.
    `start_over` allows another maker where no song is finished yet.
    """
    for model, revision in makers.items():
        if (model, revision) != (maker.model, maker.revision):
            what = model if model != maker.model else f"another revision of {model}"
            found = "" if model != maker.model else f" ({revision}, not {maker.revision})"
            raise BadInput(
                f"{store.location} holds songs made by {what}{found}; give another output folder or prefix"
            )
    content = maker.to_json()
    while True:
        try:
            there, etag = store.read_tagged(KEY)
        except Missing:
            if store.create(KEY, content):
                return
            continue
        found_maker = Maker.from_json(there)
        if found_maker == maker:
            return
        if found_maker is not None and not (start_over and not makers):
            differences = "; ".join(found_maker.differences(maker))
            way_out = "" if makers else f", or {START_OVER} to begin its unfinished songs again"
            raise BadInput(
                f"{store.location} is for songs made with {differences}; "
                f"use those settings, give another output folder or prefix{way_out}"
            )
        if store.replace(KEY, content, etag):
            return
