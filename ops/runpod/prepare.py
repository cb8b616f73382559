"""Everything that is decided before a pod is created: what cannot work, what there is, what it may cost.

Reads and computes; creates nothing.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta

from ops import measured, models
from ops.runpod import container, needs, refusals
from ops.runpod.api import PREFIX, RunPod
from ops.runpod.needs import Purpose
from ops.runpod.offers import CLOUDS, Offer, Wanted, offers
from ops.runpod.plan import PodPlan
from ops.runpod.types import Pod, Volume
from ops.settings import Settings, child_env, rows
from worker.amounts import usd
from worker.errors import BadInput, UserError
from worker.models import needs as model_needs
from worker.songs import families

_LIFETIMES = (timedelta(minutes=10), timedelta(days=7))
# The user's settings that hold from the first minute, and not only when `fab install` has sent them.
_SENT = ("hourly_cost_usd", "stop_hook", "idle_limit_s", "no_progress_limit_s")


@dataclass(frozen=True)
class PodOptions:
    """What the user asked for, beyond the settings. `volume_id`: None for that of the settings.

    `purpose`: empty for that of the model.
    """

    purpose: str = ""
    cloud: str = ""
    max_price_usd: float | None = None
    lifetime: timedelta | None = None
    disk_gb: int | None = None
    volume_id: str | None = None
    spot: bool = False
    bid: str = ""
    another: bool = False  # create one although there is one already
    commercial: bool = False


@dataclass(frozen=True)
class PodRequest:
    """The options with all settings: what can be decided without any network."""

    purpose: Purpose
    cloud: str
    cap_usd: float
    lifetime: timedelta
    disk_gb: int
    volume_id: str | None
    public_key: str
    key_file: str | None


def checked(settings: Settings, options: PodOptions) -> PodRequest:
    """What is asked for. Raises BadInput for what cannot work; uses no network."""
    settings.check()
    refusals.refuse_spot(options.spot, options.bid)
    refusals.refuse_proxied(settings.runpod_host)
    purpose, cloud = purpose_for(settings, options.purpose), cloud_of(settings, options.cloud)
    if purpose.makes_songs:  # with the model that is set, whatever the pod is called
        models.refuse_other_use(settings.model, options.commercial or settings.is_commercial)
        models.refuse_unsupported(settings.model, child_env())
    volume_id = options.volume_id or settings.runpod_volume_id
    refusals.refuse_volume_outside_secure(volume_id, cloud)
    disk_gb = purpose.disk_gb if options.disk_gb is None else options.disk_gb
    refusals.refuse_small_disk(purpose.name, disk_gb, purpose.least_disk_gb)
    return PodRequest(
        purpose=purpose,
        cloud=cloud,
        cap_usd=options.max_price_usd or cap_usd(settings, purpose),
        lifetime=lifetime_of(settings, options.lifetime),
        disk_gb=disk_gb,
        volume_id=volume_id,
        public_key=refusals.public_key(settings.ssh_key),
        key_file=settings.ssh_key and str(refusals.private_key(settings.ssh_key)),
    )


def prepare(runpod: RunPod, settings: Settings, asked: PodRequest) -> tuple[PodPlan, Sequence[Offer]]:
    """The plan, and every offer with whether it will do and why not. Raises UserError if none does."""
    min_cuda = needs.min_cuda(settings.runpod_image)
    volume = volume_of(runpod, asked.volume_id)
    if asked.purpose.makes_songs:
        refusals.refuse_small_volume(volume, settings.model, model_needs.of(settings.model, {}).files_gb)
    wanted = Wanted(asked.purpose, CLOUDS[asked.cloud], asked.cap_usd, min_cuda, volume)
    found = offers(runpod, wanted, rates(settings, asked.purpose))
    refusals.refuse_wrong_clock(runpod.http.clock_ahead_s)
    plan = PodPlan(
        purpose=asked.purpose,
        candidates=usable(found, wanted),
        cap_usd=asked.cap_usd,
        lifetime=asked.lifetime,
        image=settings.runpod_image,
        min_cuda=min_cuda,
        disk_gb=asked.disk_gb,
        volume=volume,
        public_key=asked.public_key,
        key_file=asked.key_file,
        env=_settings_sent(settings),
        start_script=container.start_script(),
    )
    return plan, found


def purpose_for(settings: Settings, name: str) -> Purpose:
    """`--for`, else the purpose of the model that is set. Raises BadInput."""
    return needs.purpose_of(name or families.of(settings.model).name.lower())


def other_model(settings: Settings, purpose: Purpose) -> str:
    """A line where the pod would be for one family, and the model that is set is of the other; else empty."""
    if not purpose.makes_songs or purpose == purpose_for(settings, ""):
        return ""
    return (
        f"the pod is for {purpose.name}, and MUSICGEN_MODEL={settings.model} is what runs there; "
        f"set it to a {purpose.name} model, or leave --for out"
    )


def lifetime_of(settings: Settings, given: timedelta | None) -> timedelta:
    """`--lifetime`, else MUSICGEN_LIFETIME_H. Raises BadInput."""
    lifetime = given or timedelta(hours=settings.lifetime_h)
    if not _LIFETIMES[0] <= lifetime <= _LIFETIMES[1]:
        raise BadInput("a pod's lifetime is from 10 minutes to 7 days; correct MUSICGEN_LIFETIME_H")
    return lifetime


def purpose_of_pod(pod: Pod) -> str:
    """The purpose that this project's pod was created for, as its name says."""
    name = pod.name.removeprefix(PREFIX).partition("-")[0]
    return name if name in needs.PURPOSES else "musicgen"


def _settings_sent(settings: Settings) -> dict[str, str]:
    values = {row.name: getattr(settings, row.attribute) for row in rows() if row.attribute in _SENT}
    return {name: str(value) for name, value in values.items() if value is not None}


def usable(found: Sequence[Offer], wanted: Wanted) -> list[Offer]:
    """The offers that will do. Raises UserError if there is none."""
    if will_do := [each for each in found if each.will_do]:
        return will_do
    raise UserError(
        f"no offer will do for {wanted.purpose.name} at {usd(wanted.cap_usd)} an hour or less; "
        "give --max-price or --cloud any, or try later"
    )


def rates(settings: Settings, purpose: Purpose) -> dict[str, float]:
    """Seconds of music per second by GPU, where they are known for the purpose."""
    return dict(measured.rates(settings.model)) if purpose.name == "musicgen" else {}


def cloud_of(settings: Settings, cloud: str) -> str:
    """`--cloud`, else RUNPOD_CLOUD. Raises BadInput."""
    if cloud and cloud not in CLOUDS:
        raise BadInput(f"--cloud {cloud} is none of {', '.join(CLOUDS)}; write one of them")
    return cloud or settings.runpod_cloud


def cap_usd(settings: Settings, purpose: Purpose) -> float:
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
