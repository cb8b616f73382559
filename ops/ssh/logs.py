"""The log of a run, from the box while it is there, from the bucket when it is gone."""

from datetime import UTC, datetime

from ops import ui
from ops.settings import Settings
from ops.ssh import follow
from ops.ssh.afterwards import last_run
from ops.ssh.box import Box, NoAnswer
from ops.ssh.follow import BoxGone
from worker.errors import UserError

_LINES = 20


def show(box: Box, settings: Settings, *, run: str, lines: str, since: str, once: bool) -> int:
    """Print a run's log until it ends (`once`: what there is); -> the worker's exit code.

    Ctrl-C ends only the following, with 0. Raises UserError if neither box nor bucket has the run.
    """
    stamp = follow.since_when(since, datetime.now(UTC))
    folder = ""
    try:
        folder, at = follow.beginning(box, run, lines or str(_LINES), stamp)
        if once:
            follow.read_to_end(box, folder, ui.pour, at)
            return 0
        code = follow.follow(box, folder, ui.pour, ui.say, offset=at)
    except (NoAnswer, BoxGone) as error:
        # Boxes may share a bucket: the run that was followed is told, not the newest of them all.
        return _from_bucket(settings, error, folder.rpartition("/")[2] or run, int(lines or _LINES))
    except KeyboardInterrupt:
        ui.say("\nstopped following; the worker goes on (fab stop ends it)")
        return 0
    ui.say(f"run {folder.rpartition('/')[2]} ended with exit code {code}")
    return code


def _from_bucket(settings: Settings, gone: UserError, run: str, n_lines: int) -> int:
    settings.export_aws()
    place = settings.output_place
    ended = last_run(place, run, n_lines) if place.startswith("s3://") else None
    if ended is None:
        raise gone
    ui.say(f"{gone}")
    ui.say(f"the box is gone; this is what {place} has of run {ended.run_id}:")
    ui.pour("".join(f"{line}\n" for line in ended.tail).encode())
    code = "no exit code" if ended.exit_code is None else f"exit code {ended.exit_code}"
    ui.say(f"run {ended.run_id}: {ended.state}, {code}")
    return 1 if ended.exit_code is None else ended.exit_code
