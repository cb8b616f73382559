"""Where a box is now, as its cloud says: its address changes when it is stopped and started.

Whether what answers there is the box is decided by its host key, and not here.
"""

from dataclasses import replace

from ops import boxes, clouds
from ops.boxes import Known
from ops.settings import Settings
from ops.ssh.link import NoAnswer
from worker.errors import UserError


def current_address(box: Known, settings: Settings) -> tuple[str, int] | None:
    """Host and port of a box of a cloud, saved in `.boxes`; None if no cloud tells.

    Raises NoAnswer if it has none: its machine is stopped or has ended.
    """
    cloud = clouds.of_kind(box.kind)
    if cloud is None:
        return None
    try:
        found = cloud.locate(settings, box.id, box.region)
    except UserError:  # the user sees the error of the box that did not answer
        return None
    if found is None:
        raise NoAnswer(f"{cloud.name} has no machine {box.id} any more; see which there are: inv status")
    if found.box is None:
        raise NoAnswer(f"{box.id} has no address, as it is {found.state}; see: inv status")
    now = replace(
        box, host=found.box.host, port=found.box.port, hourly_usd=found.box.hourly_usd or box.hourly_usd
    )
    if now != box:
        boxes.update(now)
    return now.host, now.port
