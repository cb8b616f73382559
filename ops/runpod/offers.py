"""Which GPU types RunPod has for a purpose now: what will do, in which order, and why the others will not.

The cheapest comes first: by the measured price of a song where all that will do have one, else by the hour;
then the purpose's first choice comes before it if it costs at most 1.5 times as much per hour.
The catalogue is live, and no reservation: creating a pod may still fail for want of machines. Rents nothing.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from ops.runpod.api import RunPod
from ops.runpod.needs import Purpose
from ops.runpod.types import LEVELS, GpuType, Volume
from worker.amounts import usd

WILL_DO = "will do"
SONG_S = 180.0  # a song in `song_usd`
# So much more per hour may the purpose's first choice cost than the cheapest, where no song was measured.
FIRST_CHOICE_FACTOR = 1.5
CLOUDS = {"secure": ("SECURE",), "community": ("COMMUNITY",), "any": ("SECURE", "COMMUNITY")}


@dataclass(frozen=True)
class Wanted:
    """What a pod is wanted for, in which clouds, at most at `cap_usd` per hour, and what it mounts."""

    purpose: Purpose
    clouds: Sequence[str]
    cap_usd: float
    min_cuda: str = ""
    volume: Volume | None = None


@dataclass(frozen=True)
class Offer:
    """A GPU type in one cloud. `data_centers`: those that have one. `song_usd`: three minutes, if known.

    `why_first`: of the first one that will do, why it comes before the others.
    """

    gpu: str
    cloud: str
    memory_gb: int
    per_hour_usd: float | None
    availability: str
    data_centers: tuple[str, ...]
    song_usd: float | None
    state: str
    why_first: str = ""

    @property
    def will_do(self) -> bool:
        """True if it may be rented."""
        return self.state == WILL_DO


def offers(runpod: RunPod, wanted: Wanted, rates: Mapping[str, float]) -> list[Offer]:
    """Every GPU type in every cloud that is wanted: what will do, in order, then the others.

    `rates`: seconds of music per second by the name of the GPU.
    """
    found = [
        offer(kind, cloud, wanted, rates.get(kind.id))
        for cloud in wanted.clouds
        for kind in runpod.gpu_types(cloud, wanted.min_cuda)
    ]
    return in_order(found, wanted.purpose)


def in_order(found: Sequence[Offer], purpose: Purpose) -> list[Offer]:
    """The offers in the order in which they are asked for, then those that will not do by price."""
    usable = [each for each in found if each.will_do]
    by_song = bool(usable) and all(each.song_usd is not None for each in usable)
    cheapest_usd = min((_hourly(each) for each in usable), default=0.0)
    most_usd = 0.0 if by_song else FIRST_CHOICE_FACTOR * cheapest_usd

    def is_first_choice(each: Offer) -> bool:
        return each.will_do and each.gpu == purpose.preferred and _hourly(each) <= most_usd + 1e-6

    def order(each: Offer) -> tuple[object, ...]:
        price = each.song_usd if by_song and each.will_do else _hourly(each)
        preferred = each.gpu == purpose.preferred
        same = not preferred, -LEVELS.index(each.availability), each.gpu, each.cloud
        return not each.will_do, not is_first_choice(each), price, *same

    listed = sorted(found, key=order)
    if not usable:
        return listed
    first = listed[0]
    why = "cheapest per song" if by_song else "cheapest per hour"
    if is_first_choice(first) and _hourly(first) > cheapest_usd:
        why = f"first choice for {purpose.name}, at most {FIRST_CHOICE_FACTOR:g} x {usd(cheapest_usd)}"
    return [replace(first, why_first=why), *listed[1:]]


def _hourly(each: Offer) -> float:
    return float("inf") if each.per_hour_usd is None else each.per_hour_usd


def offer(kind: GpuType, cloud: str, wanted: Wanted, rate: float | None) -> Offer:
    """One GPU type in one cloud, judged. `rate`: seconds of music per second on it."""
    price = kind.usd_per_hour.get(cloud)
    stock = {name: level for name, level in kind.stock.items() if level != "NONE"}
    if wanted.volume:
        stock = {name: level for name, level in stock.items() if name == wanted.volume.data_center}
    # The community cloud names no data centres.
    level = max(stock.values(), key=LEVELS.index, default="NONE" if wanted.volume else kind.availability)
    song = price * SONG_S / rate / 3600 if price is not None and rate else None
    state = ", ".join(_against(kind, cloud, price, level, wanted)) or WILL_DO
    return Offer(kind.id, cloud, kind.memory_gb, price, level, tuple(sorted(stock)), song, state)


def _against(kind: GpuType, cloud: str, price: float | None, level: str, wanted: Wanted) -> list[str]:
    """Why it will not do; empty if it will."""
    purpose, volume, why = wanted.purpose, wanted.volume, []
    if not kind.nvidia:
        why.append("not a GPU for CUDA")
    if kind.memory_gb < purpose.gpu_memory_gb:
        why.append(f"{kind.memory_gb} GB of GPU memory, {purpose.gpu_memory_gb} needed")
    if volume and cloud != "SECURE":
        why.append("network volumes are in the secure cloud only")
    if price is None:
        why.append(f"not offered in the {cloud.lower()} cloud")
    elif price > wanted.cap_usd:
        why.append(f"over the maximum price of {usd(wanted.cap_usd)}")
    if price is not None and level == "NONE":
        where = f" in {volume.data_center}, where the volume is" if volume else ""
        cuda = f" with CUDA {wanted.min_cuda}" if wanted.min_cuda else ""
        why.append(f"none free{where}{cuda} now")
    return why
