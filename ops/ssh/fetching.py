"""Fetch songs from a box that has no bucket."""

from pathlib import Path

from ops import fetch as fetches
from ops import ui
from ops.fetch import Fetched
from ops.settings import Settings
from ops.ssh import configure
from ops.ssh.box import Box
from ops.ssh.box_store import BoxStore
from worker.errors import BadInput


def fetch(box: Box, settings: Settings, to: str) -> Fetched:
    """Songs, records and reports from the box's own folder. Raises BadInput if they are in a bucket."""
    bucket, _ = configure.bucket_and_prefix(settings)
    if bucket:
        raise BadInput(f"the songs are in {settings.output_place}; fetch them there: inv fetch --to {to}")
    with BoxStore(box, f"{box.place.root}/output") as store:
        return fetches.fetch(store, Path(to), ui.say)
