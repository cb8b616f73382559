"""What a run shows while it works: bars on a terminal, plain lines anywhere else. Writes to stderr.

On a terminal a bar for each song in work and one for the list; else a line when a song starts
and ends, and one for each song every ten seconds.
"""

import time
from collections.abc import Callable

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn
from rich.table import Table
from rich.text import Text

from worker.engine import Progress as SongProgress
from worker.run.request import Order, Summary
from worker.songs.records import Record, Survey

_LINE_EVERY_S = 10.0
# Every few seconds when all goes well: nothing for a person to read.
_FOR_THE_LOG = {"checkpoint"}
# More bars than this do not fit a terminal; the list's own bar stays.
_MAX_BARS = 12


def span(seconds: float) -> str:
    """`0:07`, `3:20`, `2:05:00`."""
    hours, rest = divmod(round(seconds), 3600)
    minutes, seconds = divmod(rest, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"


def usd(amount: float) -> str:
    """`$0`, `<$0.0001`, `$0.0123`, `$4.56`."""
    if not amount:
        return "$0"
    if amount < 0.0001:
        return "<$0.0001"
    return f"${amount:.2f}" if amount >= 1 else f"${amount:.4f}"


class ProgressDisplay:
    """A `worker.run.request.Watch` for a person.

    Use as a context manager: it owns the terminal's last lines.
    """

    def __init__(self, console: Console, clock: Callable[[], float] = time.monotonic):
        self._console, self._clock = console, clock
        self._seconds: dict[str, float] = {}  # song -> seconds asked, of the songs to make
        self._made_s = 0.0
        self._in_work: dict[str, tuple[float, float]] = {}  # song -> (when first seen, seconds made)
        self._last_lines = 0.0
        self._started: float | None = None
        self._bars: Progress | None = None
        self._bar_of: dict[str, TaskID] = {}
        if console.is_terminal:
            self._bars = Progress(
                TextColumn("{task.description}"),
                BarColumn(),
                TextColumn("{task.fields[what]}"),
                console=console,
            )
            self._total = self._bars.add_task("all songs", total=None, what="", visible=False)

    def __enter__(self) -> "ProgressDisplay":
        if self._bars:
            self._bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._bars:
            self._bars.stop()

    # --- Watch

    def planned(self, found: Survey, order: Order) -> None:
        self._price = order.price
        chosen = {job.song for job in order.selected}
        self._seconds = {job.song: job.seconds for job in found.todo if job.song in chosen}
        for song, why in found.kept.items():
            self._say(f"kept {song}: {why}; rename or move it to have the song made")
        done = sum(job.song in chosen for job in found.done)
        self._say(
            f"{len(self._seconds)} songs to make, {span(sum(self._seconds.values()))} of audio"
            + (f"; {done} done already" if done else "")
        )

    def progress(self, event: SongProgress) -> None:
        now = self._clock()
        if self._started is None:
            self._started = self._last_lines = now
        for song, (n_done, n_frames) in event.frames.items():
            seconds = self._seconds[song] * n_done / n_frames
            if song not in self._in_work:
                self._in_work[song] = (now, seconds)
                self._open(song)
            since, _ = self._in_work[song]
            self._in_work[song] = (since, seconds)
        if self._bars:
            self._draw(now)
        elif now - self._last_lines >= _LINE_EVERY_S:
            self._last_lines = now
            for song in event.frames:
                self._say(f"{song}: {self._song_line(song, now)}")
            self._say(f"all songs: {self._list_line(now)}")

    def made(self, record: Record) -> None:
        self._close(record.song)
        self._made_s += record.seconds
        speed = record.seconds / record.generation_s if record.generation_s else 0.0
        self._say(
            f"made {record.song}: {span(record.seconds)} in {span(record.generation_s)}"
            f" ({speed:.1f}x), {usd(record.estimated_cost_usd)}"
        )

    def failed(self, song: str, reason: str) -> None:
        self._close(song)
        self._say(f"failed {song}: {reason}")

    def made_elsewhere(self, song: str) -> None:
        self._close(song)
        self._say(f"skipped {song}: another run has made it meanwhile; its song stays")

    def note(self, event: str, text: str, *, level: str = "info", **facts: object) -> None:
        if event not in _FOR_THE_LOG:
            self._say(text)

    # --- how it looks

    def _song_line(self, song: str, now: float) -> str:
        since, seconds = self._in_work[song]
        speed = seconds / (now - since) if now > since else 0.0
        left = (self._seconds[song] - seconds) / speed if speed else None
        eta = span(left) if left is not None else "?"
        return f"{seconds:.0f}/{self._seconds[song]:.0f} s  {speed:.1f}x  eta {eta}"

    def _list_line(self, now: float) -> str:
        made = self._made_s + sum(seconds for _, seconds in self._in_work.values())
        total = sum(self._seconds.values())
        spent = now - self._started if self._started else 0.0
        speed = made / spent if spent else 0.0
        eta = span((total - made) / speed) if speed else "?"
        return f"{made:.0f}/{total:.0f} s  {speed:.1f}x  eta {eta}  {usd(self._price.of(spent))} so far"

    def _open(self, song: str) -> None:
        if not self._bars:
            self._say(f"start {song}: {self._seconds[song]:g} s")

    def _draw(self, now: float) -> None:
        assert self._bars  # noqa: S101 - only called on a terminal
        for song, (_, made) in self._in_work.items():
            if song not in self._bar_of and len(self._bar_of) < _MAX_BARS:
                self._bar_of[song] = self._bars.add_task(song, total=self._seconds[song], what="")
            if song in self._bar_of:
                self._bars.update(self._bar_of[song], completed=made, what=self._song_line(song, now))
        made = self._made_s + sum(seconds for _, seconds in self._in_work.values())
        total = sum(self._seconds.values())
        self._bars.update(self._total, completed=made, total=total, what=self._list_line(now), visible=True)

    def _close(self, song: str) -> None:
        self._in_work.pop(song, None)
        if self._bars and song in self._bar_of:
            self._bars.remove_task(self._bar_of.pop(song))

    def _say(self, text: str) -> None:
        self._console.print(text, markup=False, highlight=False, soft_wrap=True)


def show_summary(console: Console, summary: Summary, location: str) -> None:
    """The closing table of a run."""
    # Texts: a reason or a run id may hold [brackets], which are not rich's markup.
    table = Table(title=Text(f"run {summary.run_id}: {summary.state}"), title_justify="left")
    table.add_column("song", overflow="fold")
    for column in ("seconds", "generated in", "speed", "cost"):
        table.add_column(column, justify="right")
    for song in summary.made:
        speed = song["seconds"] / song["generation_s"] if song["generation_s"] else 0.0
        table.add_row(
            song["song"],
            f"{song['seconds']:g}",
            f"{song['generation_s']:.1f} s",
            f"{speed:.1f}x",
            usd(song["estimated_cost_usd"]),
        )
    table.add_section()
    table.add_row(
        f"{len(summary.made)} songs",
        f"{summary.seconds_made:g} of {summary.seconds_asked:g}",
        f"{summary.generation_s:.1f} s",
        f"{summary.real_time_factor:.1f}x",
        usd(summary.estimated_cost_usd),
    )
    if summary.made or summary.failed:
        console.print(table)
    else:
        console.print("nothing to make", highlight=False)
    console.print(
        f"overhead {span(summary.wall_s - summary.generation_s)} (loading, audio, saving); "
        f"price {usd(summary.price.hourly_usd)} an hour: {summary.price.basis}",
        *(f"FAILED {song}: {reason}" for song, reason in summary.failed.items()),
        f"{len(summary.done_before)} done already, {len(summary.kept)} kept, {len(summary.failed)} failed",
        f"songs, records and cost_report.csv are in {location}",
        sep="\n",
        markup=False,
        highlight=False,
        soft_wrap=True,
    )
