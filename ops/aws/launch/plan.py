"""One launch as plain values: what is asked of EC2, what it may cost, what it should make. Pure."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

from ops.aws import user_data
from ops.aws.launch.prerequisites import Prerequisites
from ops.aws.prices import Quote
from ops.aws.rent import MachineRequest
from ops.aws.user_data import Boot
from ops.speed import Speed
from worker.amounts import count, duration, usd

# Boot, model load, the last upload and the stop hook's grace.
OVERHEAD_S = 600.0
# Packages and weights, on an image that lacks them.
INSTALL_S = 1800.0
STOP_HOOK = "/etc/musicgen/power_off"
# States of offers that may not be rented.
NO_SUBNET, OVER_CAP = "no subnet there", "over the maximum price"


@dataclass(frozen=True)
class Candidate:
    """A type in a zone that may be rented, at its current price."""

    zone: str
    instance_type: str
    usd_per_hour: float
    subnet: str


@dataclass(frozen=True)
class Workload:
    """What is left to make, and how fast it is made."""

    n_songs: int
    audio_s: float
    speed: Speed

    @property
    def busy_s(self) -> float:
        """How long a machine is on for it."""
        return self.audio_s / self.speed.rate + OVERHEAD_S


@dataclass(frozen=True)
class BootFiles:
    """The texts of the two files that user data is made of: remote/bootstrap.sh, remote/s3_object.py."""

    bootstrap: str
    s3_object: str


@dataclass(frozen=True)
class LaunchPlan:
    """A launch, decided. `candidates` are tried in this order."""

    boot: Boot
    files: BootFiles
    prerequisites: Prerequisites
    candidates: Sequence[Candidate]
    spot: bool
    cap_usd: float
    workload: Workload
    launched_by: str

    @property
    def output(self) -> str:
        """The address of the songs."""
        return f"s3://{self.boot.bucket}/{self.boot.prefix}".rstrip("/")

    def ending_at(self, moment: datetime) -> "LaunchPlan":
        """The same plan with another deadline."""
        return replace(self, boot=replace(self.boot, expires_at=moment))

    def worst_case_usd(self) -> float:
        """The whole lifetime at the maximum price."""
        return self.cap_usd * self.boot.lifetime_s / 3600

    def rows(self) -> list[dict[str, Any]]:
        """The plan as it is shown."""
        best, needs, work, release = (
            self.candidates[0],
            self.prerequisites,
            self.workload,
            self.boot.release,
        )
        install_s = INSTALL_S if needs.image_note else 0.0
        expected_s = min(work.busy_s + install_s, self.boot.lifetime_s)
        expected = f"{usd(best.usd_per_hour * expected_s / 3600)} in {duration(expected_s)}"
        rate = f"{work.speed.rate:.2g} s of audio a second ({work.speed.basis})"
        kind = "one-time spot" if self.spot else "on-demand"
        offers = count(len(self.candidates), "offer")
        shown = {
            "machine": f"{best.instance_type}, {kind}, {best.zone} first of {offers}",
            "price now": f"{usd(best.usd_per_hour)} per hour",
            "maximum price": f"{usd(self.cap_usd)} per hour",
            "lifetime": f"{duration(self.boot.lifetime_s)}, then the machine ends itself",
            "worst case": f"{usd(self.worst_case_usd())} (whole lifetime at the maximum price)",
            "songs": f"{count(work.n_songs, 'song')}, {duration(work.audio_s)} of audio, to {self.output}",
            "expected": f"{expected}, at {rate}",
            "disk": f"{needs.disk_gib} GiB and a public address on top, about $0.02 per hour",
            "image": needs.image_note or needs.image,
            "security group": needs.group or "created first: SSH only from your IP address",
            "code": release.commit or f"this folder, sha256 {release.sha256[:16]}",
        }
        return [{"what": what, "plan": plan} for what, plan in shown.items()]

    def machine(self, candidate: Candidate) -> MachineRequest:
        """What is asked of EC2 for one candidate."""
        return MachineRequest(
            name=f"musicgen-{self.boot.run_id}",
            run_id=self.boot.run_id,
            expires_at=self.boot.expires_at,
            launched_by=self.launched_by,
            hourly_usd=candidate.usd_per_hour,
            image=self.prerequisites.image,
            root_device=self.prerequisites.root_device,
            disk_gib=self.prerequisites.disk_gib,
            instance_type=candidate.instance_type,
            profile=self.prerequisites.profile,
            user_data=self.user_data(candidate),
            output=self.output,
            key_name=self.prerequisites.key_name,
            subnet=candidate.subnet,
            public_address=self.prerequisites.public_address,
            group=self.prerequisites.group or "",
            max_price_usd=self.cap_usd if self.spot else None,
        )

    def user_data(self, candidate: Candidate) -> str:
        """The first-boot script for one candidate."""
        env = {**self.boot.worker_env, "MUSICGEN_PRICE_PAID_USD": f"{candidate.usd_per_hour:.6f}"}
        boot = replace(self.boot, worker_env=env)
        return user_data.render(boot, self.files.bootstrap, self.files.s3_object)


def candidates(
    quotes: Sequence[Quote], subnets: Mapping[str, str], cap_usd: float, spot: bool
) -> tuple[list[Candidate], list[dict[str, Any]]]:
    """What may be rented, cheapest first, and every offer with whether it may and why not."""
    found, rows = [], []
    for quote in quotes:
        price = quote.spot_per_hour_usd if spot else quote.on_demand_per_hour_usd
        if price is None:
            state = "price not known"
        elif quote.zone not in subnets:
            state = NO_SUBNET
        elif price > cap_usd:
            state = OVER_CAP
        else:
            state = "will do"
            found.append(Candidate(quote.zone, quote.instance_type, price, subnets[quote.zone]))
        rows.append(
            {
                "zone": quote.zone,
                "instance_type": quote.instance_type,
                "per_hour_usd": price,
                "saving_percent": quote.saving_percent if spot else None,
                "state": state,
            }
        )
    return sorted(found, key=lambda offer: (offer.usd_per_hour, offer.zone)), rows
