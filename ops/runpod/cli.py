"""The RunPod tasks of `inv`: in which order they ask RunPod, show, ask the user, act, and when they stop."""

from dataclasses import asdict

from ops import measured, ui
from ops.runpod import needs, refusals
from ops.runpod.api import RunPod
from ops.runpod.offers import CLOUDS, Wanted, offers
from ops.runpod.types import Volume
from ops.settings import Settings
from worker.amounts import count, usd
from worker.errors import BadInput, UserError


def show_offers(
    settings: Settings, purpose: str, cloud: str, max_price_usd: float | None, *, json: bool
) -> None:
    """Show what RunPod has for a purpose now. Raises UserError if nothing will do."""
    settings.check()
    needed = needs.purpose_of(purpose)
    chosen = cloud_of(settings, cloud)
    refusals.refuse_volume_outside_secure(settings.runpod_volume_id, chosen)
    runpod = RunPod.of(settings, "pod.offers", ui.say)
    wanted = Wanted(
        purpose=needed,
        clouds=CLOUDS[chosen],
        cap_usd=max_price_usd or cap_usd(settings, needed),
        min_cuda=needs.min_cuda(settings.runpod_image),
        volume=volume_of(runpod, settings.runpod_volume_id),
    )
    found = offers(runpod, wanted, measured.rates(settings.model) if purpose == "musicgen" else {})
    rows = [asdict(each) for each in found]
    joined = [row | {"data_centers": ", ".join(row["data_centers"])} for row in rows]
    ui.show(rows if json else joined, json=json)
    usable = [each for each in found if each.will_do]
    if not usable:
        raise UserError(
            f"no offer will do for {purpose} at {usd(wanted.cap_usd)} an hour or less; give --max-price "
            "or --cloud any, or try later"
        )
    ui.say(f"{count(len(usable), 'offer')} of {len(found)} will do; cheapest: {usable[0].gpu}")


def cloud_of(settings: Settings, cloud: str) -> str:
    """`--cloud`, else RUNPOD_CLOUD. Raises BadInput."""
    if cloud and cloud not in CLOUDS:
        raise BadInput(f"--cloud {cloud} is none of {', '.join(CLOUDS)}; write one of them")
    return cloud or settings.runpod_cloud


def cap_usd(settings: Settings, purpose: needs.Purpose) -> float:
    """The maximum price per hour: MUSICGEN_MAX_PRICE, else the purpose's own, else the setting's default."""
    if purpose.cap_usd is not None and not settings.is_set("max_price_usd"):
        return purpose.cap_usd
    return settings.max_price_usd


def volume_of(runpod: RunPod, volume_id: str | None) -> Volume | None:
    """The account's volume of that id; None without an id. Raises BadInput if there is none."""
    if volume_id is None:
        return None
    for volume in runpod.volumes():
        if volume.id == volume_id:
            return volume
    raise BadInput(f"the RunPod account has no network volume {volume_id}; correct RUNPOD_NETWORK_VOLUME_ID")
