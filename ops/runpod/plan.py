"""A pod that is to be created, as plain values: what is asked of RunPod and what it may cost. Pure."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from ops.runpod import bills, container
from ops.runpod.api import PREFIX
from ops.runpod.needs import Purpose
from ops.runpod.offers import Offer
from ops.runpod.pods import END, FLOORS
from ops.runpod.types import Volume
from worker.amounts import count, duration, usd
from worker.timestamps import new_run_id

VOLUME_PATH = "/workspace"


@dataclass(frozen=True)
class PodPlan:
    """A creation, decided. `candidates` are tried in this order; `env` is the same for each.

    `key_file`: the private key of `public_key`; None: one that SSH finds by itself.
    """

    purpose: Purpose
    candidates: Sequence[Offer]
    cap_usd: float
    lifetime: timedelta
    image: str
    min_cuda: str
    disk_gb: int
    volume: Volume | None
    public_key: str
    key_file: str | None
    env: Mapping[str, str]
    start_script: str

    @property
    def worst_case_usd(self) -> float:
        """The whole lifetime at the maximum price, with the container's disk."""
        return (self.cap_usd + bills.disk_hour_usd(self.disk_gb)) * self.lifetime.total_seconds() / 3600

    def rows(self) -> list[dict[str, Any]]:
        """The plan as it is shown."""
        best, volume, life_s = self.candidates[0], self.volume, self.lifetime.total_seconds()
        first = f"first of {count(len(self.candidates), 'offer')}, {best.why_first}"
        disk_usd = bills.disk_hour_usd(self.disk_gb)
        kept = "none: what is not fetched from the pod is lost when it stops"
        if volume:
            kept = f"network volume {volume.name or volume.id} ({volume.size_gb} GB, {volume.data_center})"
        shown = {
            "pod": f"for {self.purpose.name}: {best.gpu}, {best.cloud.lower()} cloud, {first}",
            "price now": f"{usd(best.per_hour_usd or 0)} per hour",
            "maximum price": f"{usd(self.cap_usd)} per hour",
            "lifetime": f"{duration(life_s)}, then the pod stops itself",
            "worst case": f"{usd(self.worst_case_usd)} (whole lifetime at the maximum price)",
            "disk": f"{self.disk_gb} GB, {usd(disk_usd)} per hour on top ({bills.LISTED})",
            "kept at a stop": kept,
            "image": self.image + (f", CUDA {self.min_cuda} or later" if self.min_cuda else ""),
            "SSH key": self.public_key.split()[0] + f" {self.key_file or '(of ~/.ssh)'}",
        }
        return [{"what": what, "plan": plan} for what, plan in shown.items()]

    def new_name(self, now: datetime) -> str:
        """A name that no other pod has, by which this project's pods are known."""
        return f"{PREFIX}{self.purpose.name}-{new_run_id(now)}"

    def request(self, offer: Offer, name: str, now: datetime, *, exec_form: bool = True) -> dict[str, Any]:
        """What is asked of RunPod for one offer; the lifetime begins now."""
        gpu: dict[str, Any] = {"id": offer.gpu, "count": 1}
        if self.min_cuda:
            gpu["minCudaVersion"] = self.min_cuda
        if self.purpose.ram_gb:
            gpu["minRamPerGpu"] = self.purpose.ram_gb
        env = {
            "HOURLY_COST_USD": f"{offer.per_hour_usd or self.cap_usd:g}",
            **self.env,
            "PUBLIC_KEY": self.public_key,
            END: str(int((now + self.lifetime).timestamp())),
            FLOORS: self.purpose.floors_gb,
        }
        start = container.exec_form if exec_form else container.shell_form
        request = {
            "name": name,
            "image": self.image,
            "cloud": offer.cloud,
            "gpu": gpu,
            "disk": self.disk_gb,
            "ports": ["22/tcp"],
            # Without it a pod has no SSH access, whatever its `ssh` says (OpenAPI document of v2: PodSsh). It
            # would bring the account's keys where there is no PUBLIC_KEY; ours holds.
            "startSsh": True,
            "env": env,
            **start(self.start_script),
        }
        # Not the data centres of the offer: a list that is too narrow looks like a lack of machines.
        if self.volume:
            request["dataCenterIds"] = [self.volume.data_center]
            request["mounts"] = {"network": [{"volumeId": self.volume.id, "path": VOLUME_PATH}]}
        return request
