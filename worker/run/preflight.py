"""What would end a run hours from now, said before it starts, with the remedy.

    for warning in check([job.seconds for job in todo], 32_000, Path(tempfile.gettempdir()), store):

Raises UserError only for what is certain: songs that cannot fit, a clock that was never set. What
may go well is a warning, one line. Checked elsewhere, before the first song: the store's
permissions (worker/run/claims.py), the model's files (worker/musicgen/pretrained.py), the device
and its memory (worker/decoding/device.py).
"""

import shutil
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path

from worker.errors import UserError
from worker.store.base import Store
from worker.store.files import disk_errors

_SAMPLE_BYTES, _WAV_HEADER_BYTES = 2, 44
# Less than this left when all songs are there is worth a warning: others write to the disk too.
_SPARE_BYTES = 200_000_000
# A clock that shows an earlier year was never set.
_FIRST_YEAR = 2026
# S3 itself refuses a machine that is wrong by a quarter of an hour.
_SKEW_S = 60


def check(todo_seconds: Sequence[float], samples_per_s: int, scratch: Path, store: Store) -> list[str]:
    """Warnings for a run of songs this long. Raises UserError if it cannot end well.

    `samples_per_s`: of all channels together. `scratch` is the folder in which a song waits for the
    store, one at a time.
    """
    check_clock_is_set(datetime.now(UTC))
    songs = [wav_bytes(seconds, samples_per_s) for seconds in todo_seconds]
    folder = None if store.location.startswith("s3://") else Path(store.location)
    return [*check_room(songs, scratch, folder), *skew_warnings(store.clock_skew_s())]


def wav_bytes(seconds: float, samples_per_s: int) -> int:
    """Size of a song as worker/audio/wav.py writes it."""
    return _WAV_HEADER_BYTES + _SAMPLE_BYTES * round(seconds * samples_per_s)


def check_clock_is_set(now: datetime) -> None:
    """Raises UserError on a machine that woke up in the past: certificates would fail, dates lie."""
    if now.year < _FIRST_YEAR:
        raise UserError(
            f"this machine's clock says {now:%Y-%m-%d}; set it (timedatectl set-ntp true) and run it again"
        )


def skew_warnings(skew_s: float | None) -> Iterator[str]:
    """A line if this machine's clock is so many seconds ahead of the store's."""
    if skew_s is not None and abs(skew_s) > _SKEW_S:
        side = "ahead of" if skew_s > 0 else "behind"
        yield (
            f"this machine's clock is {abs(skew_s) / 60:.0f} min {side} the store's, and S3 refuses 15; "
            "set it (timedatectl set-ntp true)"
        )


def check_room(songs: Sequence[int], scratch: Path, folder: Path | None) -> list[str]:
    """Warnings if songs of so many bytes leave little room; `folder`: where they stay, unless in S3.

    Raises UserError if they do not fit.
    """
    if not songs:
        return []
    needs = [(scratch, max(songs), "set TMPDIR to a folder on a larger disk")]
    if folder:
        needs.append((folder, sum(songs), "name another folder"))
    disks: dict[int, list[tuple[Path, int, str]]] = {}
    for need in needs:
        with disk_errors(need[0]):
            disks.setdefault(_existing(need[0]).stat().st_dev, []).append(need)
    return [warning for sharing in disks.values() for warning in _check_disk(sharing)]


def _check_disk(needs: Sequence[tuple[Path, int, str]]) -> Iterator[str]:
    """For needs of one disk, (where, bytes, remedy)."""
    where, _, remedy = max(needs, key=lambda need: need[1])
    needed = sum(n_bytes for _, n_bytes, _ in needs)
    with disk_errors(where):
        free = shutil.disk_usage(_existing(where)).free
    if free < needed:
        raise UserError(
            f"not enough room for the songs at {where}: {_size(needed)} are needed, {_size(free)} are "
            f"free, {_size(needed - free)} are missing; free space or {remedy}"
        )
    if free - needed < _SPARE_BYTES:
        yield (
            f"the songs at {where} will leave {_size(free - needed)} of its disk; "
            "free space if others write there too"
        )


def _existing(path: Path) -> Path:
    """The path, or the nearest folder above it that is there: the store makes its own later."""
    path = path.absolute()
    return next((folder for folder in (path, *path.parents) if folder.exists()), path)


def _size(n_bytes: int) -> str:
    return f"{n_bytes / 1e9:.1f} GB" if n_bytes >= 1e9 else f"{n_bytes / 1e6:.1f} MB"
