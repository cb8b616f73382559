"""What RunPod's API answers, as values: pods, GPU types, data centres, volumes, bills, lines of a log.

Each is made by `of` from one object of an answer and raises KeyError, TypeError or ValueError where it lacks
what this program needs; what it does not need may be missing or new. Source: the OpenAPI document of v2.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any

Json = Mapping[str, Any]

# Of a pod that RunPod will start, or whose container runs: they cost the GPU's price.
ALIVE = ("PROVISIONING", "STARTING", "RUNNING")
ENDED = ("EXITED", "TERMINATED")
UNREAD = "UNREAD"
LEVELS = ("NONE", "LOW", "MEDIUM", "HIGH")

_UNREADABLE = (KeyError, TypeError, ValueError, AttributeError)


@dataclass(frozen=True)
class Address:
    """Where a pod's own SSH server answers."""

    host: str
    port: int
    user: str = "root"


@dataclass(frozen=True)
class Pod:
    """One pod. `usd_per_hour` is 0 while it is stopped; `address` is there only while it runs.

    `env` is what the container was given: a change must give all of it again. It is in no repr.
    """

    id: str
    name: str
    status: str
    actions: tuple[str, ...]
    cloud: str
    data_center: str | None
    gpu: str | None
    n_gpus: int
    cuda: str | None
    usd_per_hour: float
    image: str
    disk_gb: int
    volume_id: str | None
    volume_path: str | None
    host_disk_gb: int  # pinned to the host; its price doubles while the pod is stopped
    address: Address | None
    has_running_gpu: bool
    locked: bool
    created_at: datetime
    started_at: datetime | None
    env: Mapping[str, str] = field(repr=False, default_factory=dict)
    unread: tuple[str, ...] = ()  # parts of RunPod's answer that `readable` left out

    @property
    def alive(self) -> bool:
        """True if its GPU is paid for."""
        return self.status in ALIVE

    @property
    def may_bill(self) -> bool:
        """True unless its GPU is surely not paid for: a failed pod, or a state that is new, may be."""
        return self.status not in ENDED

    @classmethod
    def of(cls, found: Json) -> "Pod":
        gpu = found.get("gpu") or {}
        mounts = found.get("mounts") or {}
        network = (mounts.get("network") or [{}])[0]
        runtime = found.get("runtime") or {}
        started = found.get("startedAt")
        return cls(
            id=_text(found["id"]),
            name=str(found["name"]),
            status=_text(found["status"]),
            actions=tuple(found.get("actions") or ()),
            cloud=str(found.get("cloud", "")),
            data_center=found.get("dataCenterId"),
            gpu=gpu.get("id"),
            n_gpus=int(gpu.get("count", 1)) if gpu else 0,
            cuda=found.get("cudaVersion"),
            usd_per_hour=float(found["cost"]),
            image=str(found.get("image", "")),
            disk_gb=int(found.get("disk") or 0),
            volume_id=network.get("volumeId"),
            volume_path=network.get("path"),
            host_disk_gb=int((mounts.get("persistent") or {}).get("size", 0)),
            address=_address(found, runtime),
            has_running_gpu=bool(runtime.get("gpus")),
            locked=bool(found.get("locked")),
            created_at=_moment(found["createdAt"]),
            started_at=_moment(started) if started else None,
            env=dict(found.get("env") or {}),
        )

    @classmethod
    def readable(cls, found: Json) -> "Pod":
        """As `of`, without what cannot be read: a pod that costs money has to be seen, and can be ended.

        Instead of its state there is UNREAD, of its price 0, of its creation now. Raises as `of` where it is
        not known which pod it is.
        """
        try:
            return cls.of(found)
        except _UNREADABLE:
            now = datetime.now(UTC).isoformat()
            read = {"id": found["id"], "name": found["name"], "status": UNREAD, "cost": 0, "createdAt": now}
            unread = [name for name in read if name not in found]
        for name, value in found.items():
            try:
                cls.of(read | {name: value})
                read[name] = value
            except _UNREADABLE:
                unread.append(name)
        return replace(cls.of(read), unread=tuple(unread))


def _address(found: Json, runtime: Json) -> Address | None:
    direct = (found.get("ssh") or {}).get("direct")
    if direct:
        return Address(str(direct["host"]), int(direct["port"]), str(direct.get("username") or "root"))
    for port in runtime.get("ports") or []:
        if port.get("private") == 22 and port.get("type") == "tcp" and port.get("ip") and port.get("public"):
            return Address(str(port["ip"]), int(port["public"]))
    return None


@dataclass(frozen=True)
class GpuType:
    """One type of GPU in the catalogue. `usd_per_hour`: list price of one, by cloud, where it is offered.

    `stock`: NONE to HIGH by data centre, in the cloud and for the CUDA version that were asked for.
    """

    id: str
    name: str
    memory_gb: int
    nvidia: bool
    usd_per_hour: Mapping[str, float]
    availability: str
    stock: Mapping[str, str]

    @classmethod
    def of(cls, found: Json) -> "GpuType":
        offered = {"SECURE": found["secure"], "COMMUNITY": found["community"]}
        listed = {
            cloud: float(found["price"][cloud.lower()] or 0) for cloud, there in offered.items() if there
        }
        centers = found.get("dataCenters") or []
        return cls(
            id=_text(found["id"]),
            name=str(found.get("name") or found["id"]),
            memory_gb=int(found["memory"]),
            nvidia=found.get("manufacturer", "NVIDIA") == "NVIDIA",
            usd_per_hour={cloud: usd for cloud, usd in listed.items() if usd > 0},
            availability=_level(found.get("availability")),
            stock={str(each["id"]): _level(each.get("availability")) for each in centers},
        )


@dataclass(frozen=True)
class DataCenter:
    """One data centre. `volume_types`: the kinds of network volumes there; none: it has none."""

    id: str
    name: str
    region: str
    volume_types: tuple[str, ...]

    @classmethod
    def of(cls, found: Json) -> "DataCenter":
        types = tuple(found.get("networkVolumeTypes") or ())
        return cls(_text(found["id"]), str(found.get("name", "")), str(found.get("region", "")), types)


@dataclass(frozen=True)
class Volume:
    """One network volume. It costs money as long as it is there."""

    id: str
    name: str
    size_gb: int
    data_center: str
    type: str

    @classmethod
    def of(cls, found: Json) -> "Volume":
        size, center = int(found["size"]), _text(found["dataCenter"])
        return cls(_text(found["id"]), str(found.get("name", "")), size, center, str(found.get("type", "")))


@dataclass(frozen=True)
class PodBill:
    """What a pod was billed with for one span of time."""

    pod_id: str
    start: datetime
    end: datetime
    total_usd: float
    gpu_usd: float
    disk_usd: float

    @classmethod
    def of(cls, found: Json) -> "PodBill":
        amounts = (float(found[name]) for name in ("totalAmount", "gpuAmount", "diskAmount"))
        return cls(_text(found["podId"]), _moment(found["startTime"]), _moment(found["endTime"]), *amounts)


@dataclass(frozen=True)
class LogLine:
    """One line of a pod's log. `id` names its place in the log; `source`: container or system."""

    id: str
    source: str
    text: str


def _text(value: Any) -> str:
    if not isinstance(value, str) or not value:
        raise ValueError(f"{value!r} is not a text")
    return value


def _level(value: Any) -> str:
    return str(value) if value in LEVELS else "NONE"


def _moment(text: str) -> datetime:
    moment = datetime.fromisoformat(text)
    if moment.tzinfo is None:
        raise ValueError(f"{text} has no time zone")
    return moment
