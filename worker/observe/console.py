"""What a run shows while it works: bars on a terminal, plain lines anywhere else.

On a terminal a bar for each song in progress and one for the list; else a line when a song starts
and ends, and one for each song in progress every ten seconds. While nothing comes, a line that says
what is waited for. At the end a table.
"""

import threading
import time
from collections.abc import Callable, Sequence

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn
from rich.table import Column, Table

from worker.amounts import count, duration, usd
from worker.engine import Progress as SongProgress
from worker.host.load import busy
from worker.observe.waiting import Waiting
from worker.run.observer import Begun
from worker.run.progress import ProgressMeter
from worker.run.request import RunRequest
from worker.songs.records import Record, Survey
from worker.songs.status import InProgress
from worker.songs.summary import Summary

_LINE_EVERY_S = 10.0
# Every few seconds when all goes well; and what the listener for signals has said already.
_FOR_THE_LOG = {"checkpoint", "stopping"}
# What a run does after these notes, until the next one or the next frames.
_STAGES = {
    "loaded": "waiting for the first frames, for which the prompts are encoded",
    "waiting": "waiting for the songs of other workers",
    "stopping": "saving what is begun",
    "finishing": "finishing the audio",
}
_NO_FRAMES_S = 30.0
# More bars than this do not fit a terminal; the list's own bar stays.
_MAX_BARS = 12
_MAX_NAME = 24  # columns of a bar's name: its numbers and a short bar fit beside it into 80
_WIDTH = 80  # on a narrower terminal names are shorter and the cost is left out


class ConsoleDisplay:
    """Shows a run to a person. An `Observer`.

    Use as a context manager: it owns the terminal's last lines. Speed and ETA are the meter's, which
    is informed first.
    """

    def __init__(
        self,
        console: Console,
        meter: ProgressMeter,
        clock: Callable[[], float] = time.monotonic,
        busy: Callable[[], str] = busy,
    ):
        self._console, self._meter, self._clock = console, meter, clock
        self.waiting = Waiting(self._say, clock, busy)
        self._lock = threading.RLock()  # songs are made in a thread of their own
        self._seconds: dict[str, float] = {}  # song -> seconds asked, of the songs to make
        self._started: set[str] = set()
        self._created_s = clock()
        self._last_lines_s: float | None = None
        self._bars: Progress | None = None
        self._bar_of: dict[str, TaskID] = {}
        if console.is_terminal:
            whole = Column(no_wrap=True)
            lacking = max(0, _WIDTH - console.width)
            name = Column(no_wrap=True, overflow="ellipsis", max_width=max(9, _MAX_NAME - lacking // 2))
            columns = [
                TextColumn("{task.description}", table_column=name),
                BarColumn(bar_width=None, table_column=Column(ratio=1)),  # what the texts leave
                TextColumn("{task.fields[line]}", table_column=whole),
                TextColumn("{task.fields[cost]}", table_column=whole),
            ]
            self._bars = Progress(*columns[: 3 if lacking else 4], console=console, expand=True)
            self._total = self._bars.add_task("all songs", total=None, line="", cost="", visible=False)

    def __enter__(self) -> "ConsoleDisplay":
        if self._bars:
            self._bars.start()
        self.waiting.begin("reading the output")
        self.waiting.__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        self.waiting.__exit__()
        if self._bars:
            self._bars.stop()

    # --- Observer

    def planned(self, found: Survey, request: RunRequest) -> None:
        self._price = request.price
        chosen = {job.song for job in request.selected}
        self._seconds = {job.song: job.seconds for job in found.todo if job.song in chosen}
        for song, why in found.kept.items():
            if song in chosen:
                self._say(f"kept {song}: {why}; rename or move it to have the song made")
        done = sum(job.song in chosen for job in found.done)
        self._say(
            f"{count(len(self._seconds), 'song')} to make, {duration(sum(self._seconds.values()))} of audio"
            + (f"; {done} done already" if done else "")
        )

    def begun(self, song: Begun) -> None:
        if song.n_resumed:
            self._started.add(song.song)  # one line for a song that begins
            seconds = self._seconds[song.song]
            self._say(
                f"resuming {song.song}: {seconds * song.n_made / song.n_frames:.0f} of {seconds:g} s made"
            )
        elif song.n_made:
            made_s = self._seconds[song.song] * song.n_made / song.n_frames
            self._say(f"{song.song} begins with {made_s:.0f} s of {song.continues}")

    def progress(self, event: SongProgress) -> None:
        self.waiting.begin("waiting for the next frames", _NO_FRAMES_S)
        with self._lock:
            if self._bars:
                self._draw(self._bars)
                return
            for song in event.frames:
                if song not in self._started:
                    self._started.add(song)
                    self._say(f"start {song}: {self._seconds[song]:g} s")
            now_s = self._clock()
            if self._last_lines_s is None:
                self._last_lines_s = now_s
            elif now_s - self._last_lines_s >= _LINE_EVERY_S:
                self._last_lines_s = now_s
                for current in self._meter.current():
                    self._say(f"{current.song}: {self._song_line(current)}")
                self._say(f"all songs: {self._list_line()}  {self._cost()} so far")

    def made(self, record: Record) -> None:
        self._close(record.song)
        line = _made_line(record.length_s, record.generation_s, record.estimated_cost_usd)
        flagged = f"; flagged: {', '.join(record.flags)}" if record.flags else ""
        self._say(f"made {record.song}: {line}{flagged}")

    def failed(self, song: str, reason: str) -> None:
        self._close(song)
        self._say(f"failed {song}: {reason}")

    def made_elsewhere(self, song: str) -> None:
        self._close(song)
        self._say(f"skipped {song}: another run has made it meanwhile")

    def saved(self, songs: Sequence[str]) -> None: ...

    def note(self, event: str, text: str, *, level: str = "info", **facts: object) -> None:
        if event not in _FOR_THE_LOG:
            self._say(f"warning: {text}" if level == "warning" else text)
        if event == "loading":
            self.waiting.begin(text)
        elif event in _STAGES:
            self.waiting.begin(_STAGES[event])

    # --- how it looks

    def _song_line(self, current: InProgress) -> str:
        song = current.song
        rate, left_s = self._meter.song_rate(song), self._meter.song_left_s(song)
        return _line(self._made_s(current), self._seconds[song], rate, left_s)

    def _list_line(self) -> str:
        return _line(*self._meter.seconds(), self._meter.rate(), self._meter.eta_s())

    def _cost(self) -> str:
        """Of the whole time so far, as in the run's status."""
        return usd(self._price.of(self._clock() - self._created_s))

    def _made_s(self, current: InProgress) -> float:
        return self._seconds[current.song] * current.frames_done / max(1, current.frames_total)

    def _draw(self, bars: Progress) -> None:
        in_progress = {current.song: current for current in self._meter.current()}
        for song in self._bar_of.keys() - in_progress.keys():
            bars.remove_task(self._bar_of.pop(song))
        for song, current in in_progress.items():
            if song not in self._bar_of and len(self._bar_of) < _MAX_BARS:
                self._bar_of[song] = bars.add_task(song, total=self._seconds[song], line="", cost="")
            if song in self._bar_of:
                line = self._song_line(current)
                bars.update(self._bar_of[song], completed=self._made_s(current), line=line)
        made_s, total_s = self._meter.seconds()
        bars.update(
            self._total,
            completed=made_s,
            total=total_s,
            line=self._list_line(),
            cost=self._cost(),
            visible=True,
        )

    def _close(self, song: str) -> None:
        with self._lock:
            if self._bars and song in self._bar_of:
                self._bars.remove_task(self._bar_of.pop(song))

    def _say(self, text: str) -> None:
        say(self._console, text)


def _line(made_s: float, total_s: float, rate: float | None, eta_s: float | None) -> str:
    eta = "?" if eta_s is None else duration(round(eta_s))
    return f"{made_s:.0f}/{total_s:.0f} s  {rate or 0.0:.1f}x  eta {eta}"


def _made_line(seconds: float, generation_s: float, cost_usd: float) -> str:
    speed = seconds / generation_s if generation_s else 0.0
    return f"{duration(seconds)} in {duration(generation_s)} ({speed:.1f}x), {usd(cost_usd)}"


def say(console: Console, *lines: str) -> None:
    """Lines, folded between words on a terminal; elsewhere each stays one."""
    console.print(*lines, sep="\n", markup=False, highlight=False, soft_wrap=not console.is_terminal)


def _width(table: Table, console: Console) -> int:
    """In characters, with every cell whole."""
    return console.measure(table, options=console.options.update_width(1000)).maximum


def show_summary(console: Console, summary: Summary, location: str) -> None:
    """The closing table of a run."""
    table = Table()
    table.add_column("song", no_wrap=True)
    for column in ("seconds", "made in", "speed", "cost"):
        table.add_column(column, justify="right", no_wrap=True)
    for song in summary.made:
        speed = song["seconds"] / song["generation_s"] if song["generation_s"] else 0.0
        table.add_row(
            song["song"],
            f"{song['seconds']:,.10g}",
            f"{song['generation_s']:,.1f} s",
            f"{speed:.1f}x",
            usd(song["estimated_cost_usd"]),
        )
    table.add_section()
    table.add_row(
        count(len(summary.made), "song"),
        f"{summary.seconds_made:,.10g} of {summary.seconds_asked:,.10g}",
        f"{summary.generation_s:,.1f} s",
        f"{summary.real_time_factor:.1f}x",
        usd(summary.estimated_cost_usd),
    )
    if summary.made or summary.failed or summary.made_elsewhere or summary.kept:
        say(console, f"run {summary.run_id}: {summary.state}")
        costs = [
            f"overhead {duration(summary.wall_s - summary.generation_s)} (loading, waiting, audio, saving); "
            f"price {usd(summary.price.hourly_usd)} an hour: {summary.price.basis}"
        ]
    else:
        say(console, "nothing to make")
        costs = []
    if summary.made and _width(table, console) <= console.width:
        console.print(table)
    elif summary.made:  # too narrow, or a long name
        for song in summary.made:
            line = _made_line(song["seconds"], song["generation_s"], song["estimated_cost_usd"])
            say(console, f"{song['song']}: {line}")
        say(
            console,
            f"{count(len(summary.made), 'song')}, {summary.seconds_made:,.10g} of "
            f"{summary.seconds_asked:,.10g} s: {duration(summary.generation_s)} "
            f"({summary.real_time_factor:.1f}x), {usd(summary.estimated_cost_usd)}",
        )
    n_elsewhere = len(summary.made_elsewhere)
    say(
        console,
        *costs,
        *(f"FLAGGED {song}: {', '.join(flags)}; listen to it" for song, flags in summary.flagged.items()),
        *(f"FAILED {song}: {reason}" for song, reason in summary.failed.items()),
        *(
            f"MISSING {song}: {why}; rename or move the file, then run again to have the song made"
            for song, why in summary.kept.items()
        ),
        f"{len(summary.done_before)} done already, {len(summary.kept)} kept, {len(summary.failed)} failed"
        + (f", {n_elsewhere} made by other runs meanwhile" if n_elsewhere else ""),
        f"songs, records and cost_report.csv are in {location}",
    )
