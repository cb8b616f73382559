"""The steps of a training as they happen, read from the event files that it writes for TensorBoard.

An event file is a row of records: length (8 bytes), its checksum (4), a protobuf `Event`, its checksum (4).
Of an Event only the step and the scalars are read. A record that is not whole yet is read the next time.
Format: tensorflow/core/lib/io/record_writer.h, tensorflow/core/util/event.proto, framework/summary.proto.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

_HEAD, _TAIL = 12, 4
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5


@dataclass(frozen=True)
class Point:
    """One scalar at one step: `train/loss`, `train/epoch`, `eval/loss`, ..."""

    step: int
    tag: str
    value: float


class Curves:
    """What is added to the event files in these folders from now on.

    curves = Curves([logging_dir, output_dir / "runs"])
    curves.poll()  # again and again
    """

    def __init__(self, folders: list[Path]):
        self._folders = folders
        self._read = {file: file.stat().st_size for file in self._files()}

    def poll(self) -> list[Point]:
        """The points since the last call, in the files' order."""
        found: list[Point] = []
        for file in self._files():
            try:
                with file.open("rb") as opened:
                    opened.seek(self._read.get(file, 0))
                    content = opened.read()
            except OSError:
                continue  # deleted, or a volume that hangs: the next poll sees it
            used = 0
            for event, end in _records(content):
                found += _points(event)
                used = end
            self._read[file] = self._read.get(file, 0) + used
        return found

    def _files(self) -> list[Path]:
        return sorted({file for folder in self._folders for file in folder.rglob("events.out.tfevents.*")})


def _records(content: bytes) -> Iterator[tuple[bytes, int]]:
    """Each whole record, and where it ends."""
    at = 0
    while at + _HEAD <= len(content):
        (length,) = struct.unpack_from("<Q", content, at)
        end = at + _HEAD + length + _TAIL
        if end > len(content):
            return
        yield content[at + _HEAD : end - _TAIL], end
        at = end


def _points(event: bytes) -> list[Point]:
    step, found = 0, []
    try:
        for number, value in _fields(event):
            if number == 2 and isinstance(value, int):
                step = value
            elif number == 5 and isinstance(value, bytes):
                found += [scalar for one, part in _fields(value) if one == 1 and (scalar := _scalar(part))]
    except (IndexError, struct.error):
        return []  # not an Event
    return [Point(step, tag, value) for tag, value in found]


def _scalar(part: int | bytes) -> tuple[str, float] | None:
    """Tag and value of a Summary.Value that is a plain number."""
    if not isinstance(part, bytes):
        return None
    fields = dict(_fields(part))
    tag, number = fields.get(1), fields.get(2)
    if not isinstance(tag, bytes) or not isinstance(number, bytes) or len(number) != 4:
        return None
    return tag.decode("utf-8", "replace"), struct.unpack("<f", number)[0]


def _fields(message: bytes) -> Iterator[tuple[int, int | bytes]]:
    """Number and value of each field of a protobuf message; numbers of fixed size as their bytes."""
    at = 0
    while at < len(message):
        key, at = _varint(message, at)
        kind = key & 7
        if kind == _VARINT:
            value, at = _varint(message, at)
            yield key >> 3, value
            continue
        if kind == _BYTES:
            length, at = _varint(message, at)
        elif kind in (_FIXED64, _FIXED32):
            length = 8 if kind == _FIXED64 else 4
        else:
            raise IndexError
        yield key >> 3, message[at : at + length]
        at += length


def _varint(message: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = message[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7
