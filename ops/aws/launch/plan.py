"""One launch as plain values: what is asked of EC2, what it may cost, what it should make. Pure."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from ops.aws import machines
from ops.aws import user_data as userdata
from ops.aws.launch.prerequisites import Ready
from ops.aws.prices import Quote
from ops.aws.session import tag_list
from ops.release import Release
from worker.amounts import count, duration, usd
from worker.timestamps import stamp

# Nothing to go by but other people's figures for one T4; the first run in this place replaces it.
ASSUMED_RATE = 1.5
ASSUMED_BASIS = "a guess until a run has ended here"
# Boot, model load, the last upload and the stop hook's grace.
OVERHEAD_S = 600.0
# Packages and weights, on an image that lacks them.
INSTALL_S = 1800.0
STOP_HOOK = "/etc/musicgen/power_off"


@dataclass(frozen=True)
class Candidate:
    """A type in a zone that may be rented, at its price of now."""

    zone: str
    instance_type: str
    usd_per_hour: float
    subnet: str


@dataclass(frozen=True)
class Work:
    """What is left to make, and how fast it went before: seconds of audio in a second."""

    n_songs: int
    audio_s: float
    rate: float = ASSUMED_RATE
    basis: str = ASSUMED_BASIS

    @property
    def busy_s(self) -> float:
        """How long a machine is on for it."""
        return self.audio_s / self.rate + OVERHEAD_S


@dataclass(frozen=True)
class Texts:
    """The two files that user data is made of."""

    bootstrap: str
    s3_object: str


@dataclass(frozen=True)
class Order:
    """A launch, decided. `candidates` are tried in this order."""

    run_id: str
    region: str
    spot: bool
    cap_usd: float
    lifetime: timedelta
    expires_at: datetime
    ready: Ready
    candidates: Sequence[Candidate]
    release: Release
    bucket: str
    prefix: str
    work: Work
    worker_env: Mapping[str, str]
    worker_options: Sequence[str]
    launched_by: str
    endpoint_url: str
    texts: Texts

    @property
    def output(self) -> str:
        """The songs' place."""
        return f"s3://{self.bucket}/{self.prefix}".rstrip("/")

    def hardest_case_usd(self) -> float:
        """The whole lifetime at the highest price."""
        return self.cap_usd * self.lifetime.total_seconds() / 3600

    def rows(self) -> list[dict[str, Any]]:
        """The plan as it is shown."""
        best = self.candidates[0]
        install_s = INSTALL_S if self.ready.image_note else 0.0
        expected_s = min(self.work.busy_s + install_s, self.lifetime.total_seconds())
        work = f"{count(self.work.n_songs, 'song')}, {duration(self.work.audio_s)} of audio"
        pace = f"{self.work.rate:.2g} s of audio a second ({self.work.basis})"
        expected = f"{usd(best.usd_per_hour * expected_s / 3600)} in {duration(expected_s)}"
        kind = "one-time spot" if self.spot else "on-demand"
        shown = {
            "machine": f"{best.instance_type}, {kind}, {best.zone} first of {len(self.candidates)} offers",
            "price now": f"{usd(best.usd_per_hour)} per hour",
            "highest price": f"{usd(self.cap_usd)} per hour",
            "lifetime": f"{duration(self.lifetime.total_seconds())}, then it ends by itself",
            "hardest case": f"{usd(self.hardest_case_usd())} (whole lifetime at the highest price)",
            "songs": f"{work}, into {self.output}",
            "expected": f"{expected}, at {pace}",
            "disk": f"{self.ready.disk_gib} GiB and a public address on top, about $0.02 per hour",
            "image": self.ready.image_note or self.ready.image,
            "firewall": self.ready.group or "made first: SSH from this machine's address",
            "code": self.release.commit or f"this folder, sha256 {self.release.sha256[:16]}",
        }
        return [{"what": what, "plan": plan} for what, plan in shown.items()]

    def request(self, candidate: Candidate) -> dict[str, Any]:
        """The whole RunInstances request for one candidate, with its ClientToken."""
        tags = tag_list(
            Name=f"musicgen-{self.run_id}",
            **{
                machines.EXPIRES: stamp(self.expires_at),
                machines.LAUNCHED_BY: self.launched_by[:256],
                machines.RUN: self.run_id,
                machines.PRICE: f"{candidate.usd_per_hour:.6f}",
                machines.OUTPUT: self.output,
            },
        )
        kinds = ["instance", "volume", "network-interface", *["spot-instances-request"] * self.spot]
        disk = {
            "VolumeSize": self.ready.disk_gib,
            "VolumeType": "gp3",
            "Encrypted": True,
            "DeleteOnTermination": True,
        }
        request: dict[str, Any] = {
            "ImageId": self.ready.image,
            "InstanceType": candidate.instance_type,
            "MinCount": 1,
            "MaxCount": 1,
            "KeyName": self.ready.key_name,
            "SubnetId": candidate.subnet,
            "IamInstanceProfile": dict(self.ready.profile),
            # So that `shutdown -P` inside the machine ends it, and its disk with it.
            "InstanceInitiatedShutdownBehavior": "terminate",
            "BlockDeviceMappings": [{"DeviceName": self.ready.root_device, "Ebs": disk}],
            "MetadataOptions": {
                "HttpTokens": "required",
                "HttpEndpoint": "enabled",
                "HttpPutResponseHopLimit": 1,
                "InstanceMetadataTags": "enabled",
            },
            "TagSpecifications": [{"ResourceType": kind, "Tags": tags} for kind in kinds],
            "UserData": self.user_data(candidate),
        }
        if self.ready.group:
            request["SecurityGroupIds"] = [self.ready.group]
        if self.spot:
            request["InstanceMarketOptions"] = {
                "MarketType": "spot",
                "SpotOptions": {
                    "MaxPrice": f"{self.cap_usd:.4f}",
                    "SpotInstanceType": "one-time",
                    "InstanceInterruptionBehavior": "terminate",
                },
            }
        # An answer can be lost after EC2 has acted. With the same token a repeated request returns the
        # first instance; another request needs another token, or EC2 refuses it.
        request["ClientToken"] = hashlib.sha256(json.dumps(request, sort_keys=True).encode()).hexdigest()[:64]
        return request

    def user_data(self, candidate: Candidate) -> str:
        """The first-boot script for one candidate."""
        env = {**self.worker_env, "MUSICGEN_PRICE_PAID_USD": f"{candidate.usd_per_hour:.6f}"}
        boot = userdata.Boot(
            run_id=self.run_id,
            expires_at=self.expires_at,
            lifetime_s=int(self.lifetime.total_seconds()),
            region=self.region,
            bucket=self.bucket,
            prefix=self.prefix,
            release=self.release,
            worker_env=env,
            worker_options=self.worker_options,
            endpoint_url=self.endpoint_url,
        )
        return userdata.render(boot, self.texts.bootstrap, self.texts.s3_object)


def candidates(
    quotes: Sequence[Quote], subnets: Mapping[str, str], cap_usd: float, spot: bool
) -> tuple[list[Candidate], list[dict[str, Any]]]:
    """What may be rented, cheapest first, and every offer with what becomes of it."""
    found, rows = [], []
    for quote in quotes:
        per_hour = quote.spot_per_hour_usd if spot else quote.on_demand_per_hour_usd
        if per_hour is None:
            state = "price not known"
        elif quote.zone not in subnets:
            state = "no network of ours there"
        elif per_hour > cap_usd:
            state = "over the highest price"
        else:
            state = "will do"
            found.append(Candidate(quote.zone, quote.instance_type, per_hour, subnets[quote.zone]))
        rows.append(
            {
                "zone": quote.zone,
                "instance_type": quote.instance_type,
                "per_hour_usd": per_hour,
                "saving_percent": quote.saving_percent if spot else None,
                "state": state,
            }
        )
    return sorted(found, key=lambda offer: (offer.usd_per_hour, offer.zone)), rows
