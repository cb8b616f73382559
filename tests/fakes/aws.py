"""AWS over real HTTP on a free port of this machine: moto, and on top what moto lacks.

    with serving() as aws:                       # aws.url; every region, a fresh account
        aws.set_price("g4dn.xlarge", "us-east-1a", 0.21)
        aws.fail("RunInstances", "InsufficientInstanceCapacity", times=2, status=500)
        aws.capacity["us-east-1b"] = 0
        ...
        aws.sent("RunInstances")                 # the parameters of every such request

Filled in as AWS documents it: spot prices with zones, pages and history; on-demand prices; quotas;
Deep Learning image names; ClientToken (idempotent in the named zone only); capacity and price per
zone; spot requests, which relaunch if persistent; console output; answers that lag behind.
moto keeps its state in this process: one account, emptied when `serving` begins.
"""

import base64
import functools
import io
import json
import re
import socket
import threading
import time
import urllib.parse
import urllib.request
import xml.etree.ElementTree as ET
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

from moto.budgets.models import budgets_backends
from moto.core import DEFAULT_ACCOUNT_ID
from moto.ec2.models import ec2_backends
from moto.ec2.models.amis import AMIS, Ami, AmiBackend
from moto.iam.models import iam_backends
from moto.moto_api._internal.models import moto_api_backend
from moto.s3.models import s3_backends
from moto.server import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import WSGIRequestHandler, make_server

IMAGE = "ami-12c6146b"  # the one machine image of every region
SPOT_QUOTA = "L-3819A6DF"  # All G and VT Spot Instance Requests, in vCPUs
ON_DEMAND_QUOTA = "L-DB2E81BA"  # Running On-Demand G and VT instances
VCPUS = {"g4dn.xlarge": 4, "g4dn.2xlarge": 8, "g5.xlarge": 4, "g6.xlarge": 4}
LIVE = {"pending", "running", "stopping", "stopped"}
WHERE = ("SubnetId", "Placement.AvailabilityZone", "NetworkInterface.1.SubnetId")

MESSAGES = {
    "InsufficientInstanceCapacity": "There is no Spot capacity available that matches your request.",
    "SpotMaxPriceTooLow": "Your Spot request price of {bid} is lower than the minimum required Spot request "
    "fulfillment price of {price}.",
    "MaxSpotInstanceCountExceeded": "Max spot instance count exceeded",
    "VcpuLimitExceeded": "You have requested more vCPU capacity than your current vCPU limit of 0 allows for "
    "the instance bucket that the specified instance type belongs to.",
    "InvalidParameterValue": "Value (musicgen-worker-role) for parameter iamInstanceProfile.name is invalid. "
    "Invalid IAM Instance Profile name",
    "RequestLimitExceeded": "Request limit exceeded.",
    "UnauthorizedOperation": "You are not authorized to perform this operation.",
    "IdempotentParameterMismatch": "Arguments on this idempotent request are inconsistent with arguments "
    "used in previous request(s).",
    "NoSuchResourceException": "The request failed because the specified service quota does not exist.",
}


def _tagging_snapshots(create_image: Callable[..., Any]) -> Callable[..., Any]:
    """moto refuses the tags that a CreateImage request has for its snapshots."""

    @functools.wraps(create_image)
    def create(self: Any, *arguments: Any, tag_specifications: Sequence[dict[str, Any]], **more: Any) -> Any:
        of_kind = {each["ResourceType"]: each for each in tag_specifications}
        images = [each for kind, each in of_kind.items() if kind == "image"]
        image = create_image(self, *arguments, tag_specifications=images, **more)
        tags = of_kind.get("snapshot", {}).get("Tags", [])
        self.create_tags([image.ebs_snapshot.id], {tag["Key"]: tag["Value"] for tag in tags})
        return image

    return create


AmiBackend.create_image = _tagging_snapshots(AmiBackend.create_image)  # type: ignore[method-assign]


@dataclass(frozen=True)
class Call:
    """One request as it came. `action` is S3's method and path where there is no name."""

    service: str
    region: str
    action: str
    params: dict[str, Any]


@dataclass
class _Fault:
    code: str
    status: int
    when: Callable[[dict[str, Any]], bool] | None
    message: str | None


@dataclass
class SpotRequest:
    """A spot request: one-time ones close with their instance, persistent ones launch another."""

    id: str
    region: str
    kind: str
    instance: str | None
    body: dict[str, str]
    tags: dict[str, str]
    state: str = "active"


class Refusal(Exception):
    """An error answer of AWS's."""

    def __init__(self, code: str, status: int = 400, message: str | None = None):
        super().__init__(code)
        self.code, self.status = code, status
        self.message = message or MESSAGES.get(code, code)


@dataclass
class Aws:
    """The knobs of a running fake and what it was asked. Safe to use while requests come in."""

    url: str = ""
    regions: tuple[str, ...] = ("us-east-1", "us-west-2", "eu-west-1")
    prices: dict[tuple[str, str], list[tuple[datetime, float]]] = field(default_factory=dict)
    price_page: int = 2
    on_demand: dict[str, float] = field(default_factory=lambda: {"g4dn.xlarge": 0.526})
    quotas: dict[tuple[str, str], float] = field(
        default_factory=lambda: {("ec2", SPOT_QUOTA): 64.0, ("ec2", ON_DEMAND_QUOTA): 64.0}
    )
    parameters: dict[str, str] = field(default_factory=dict)  # of SSM, by name
    capacity: dict[str, int] = field(default_factory=dict)  # zone -> instances it still has
    unsupported: set[tuple[str, str]] = field(default_factory=set)  # (type, zone)
    console: dict[str, str] = field(default_factory=dict)  # instance -> text
    lag_s: float = 0.0  # how long a new instance is not yet seen by DescribeInstances
    pending_s: float = 0.0  # how long a new instance is pending
    undying: set[str] = field(default_factory=set)  # instances that survive TerminateInstances
    ignored: set[str] = field(default_factory=set)  # parameters of RunInstances that EC2 does not heed
    lose_answers: dict[str, int] = field(default_factory=dict)  # action -> answers that never arrive
    garbled: set[str] = field(default_factory=set)  # actions whose answers are a page of some proxy
    before: dict[str, Callable[[Call], None]] = field(default_factory=dict)
    after: dict[str, Callable[[Call], None]] = field(default_factory=dict)
    calls: list[Call] = field(default_factory=list)
    spot_requests: dict[str, SpotRequest] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._faults: dict[str, list[_Fault]] = defaultdict(list)
        self._tokens: dict[tuple[str, ...], tuple[Any, bytes]] = {}
        self._born: dict[str, float] = {}
        self._lock = threading.RLock()
        self._moto = DomainDispatcherApplication(create_backend_app)

    # --- what a test says

    def furnish(self, bucket: str) -> None:
        """What a launch in us-east-1 needs of an account: without requests, as it is made for every test."""
        s3_backends[DEFAULT_ACCOUNT_ID]["aws"].create_bucket(bucket, "us-east-1")
        iam, role = iam_backends[DEFAULT_ACCOUNT_ID]["aws"], "musicgen-worker-role"
        iam.create_role(role, "{}", "/", None, "", [], "3600")
        iam.create_instance_profile(role, "/", [])
        iam.add_role_to_instance_profile(role, role)
        ec2 = self._ec2("us-east-1")
        ec2.create_key_pair("musicgen-worker", "ed25519", {})
        ec2.create_security_group("musicgen-worker", "SSH", ec2.default_vpc.id)

    def set_price(
        self, instance_type: str, zone: str, usd: float, ago: timedelta = timedelta(hours=1)
    ) -> None:
        """From `ago` on, a spot hour costs this there."""
        changes = self.prices.setdefault((instance_type, zone), [])
        changes.append((datetime.now(UTC) - ago, usd))
        changes.sort()

    def fail(
        self,
        action: str,
        code: str,
        times: int = 1,
        status: int = 400,
        when: Callable[[dict[str, Any]], bool] | None = None,
        message: str | None = None,
    ) -> None:
        """The next `times` calls of this action (those that `when` picks) end with this error."""
        self._faults[action] += [_Fault(code, status, when, message)] * times

    def refuse_always(self, action: str, code: str, status: int = 400) -> None:
        """Every call of this action ends with this error."""
        self.before[action] = lambda call: self.refuse(code, status)

    def refuse(self, code: str, status: int = 400) -> None:
        """Inside a `before`: this very call ends with this error."""
        raise Refusal(code, status)

    def sent(self, action: str) -> list[dict[str, Any]]:
        """The parameters of every request for this action so far, dry runs included."""
        return [call.params for call in list(self.calls) if call.action == action]

    def alive(self, project: str | None = None) -> list[str]:
        """Ids of the instances of every region that are not terminated, of this Project tag if given."""
        return [
            instance.id
            for region in self.regions
            for instance in self._ec2(region).all_instances()
            if instance._state.name in LIVE
            and (
                project is None
                or ("Project", project) in [(t["key"], t["value"]) for t in instance.get_tags()]
            )
        ]

    def open_request(self, region: str, request: str, project: str) -> None:
        """A spot request that waits for a machine, as the old RequestSpotInstances leaves them."""
        waiting = SpotRequest(request, region, "one-time", None, {}, {"Project": project}, state="open")
        self.spot_requests[request] = waiting

    def image(self, region: str = "us-east-1") -> str:
        """The machine image that there is."""
        return str(next(iter(self._ec2(region).amis)))

    # --- what the server does

    def _ec2(self, region: str) -> Any:
        return ec2_backends[DEFAULT_ACCOUNT_ID][region]

    def __call__(self, env: dict[str, Any], start: Callable[..., Any]) -> list[bytes]:
        call, as_json = self._read(env)
        with self._lock:
            self.calls.append(call)
        try:
            if hook := self.before.get(call.action):
                hook(call)
            self._fault(call)
            answer = self._answer(call, env)
        except Refusal as refusal:
            return _refuse(refusal, call, as_json, start)
        if hook := self.after.get(call.action):
            hook(call)
        if self.lose_answers.get(call.action, 0) > 0 and call.params.get("DryRun") != "true":
            self.lose_answers[call.action] -= 1
            env["werkzeug.socket"].shutdown(socket.SHUT_RDWR)
            raise ConnectionResetError("the answer is lost")
        status, headers, body = answer
        if call.action in self.garbled:
            status, headers, body = "200 OK", [("Content-Type", "text/html")], b"log in first"
        start(status, headers)
        return [body]

    def _read(self, env: dict[str, Any]) -> tuple[Call, bool]:
        scope = re.search(r"Credential=[^/]+/\d+/([^/]+)/([^/]+)/", env.get("HTTP_AUTHORIZATION", ""))
        region, service = scope.groups() if scope else ("us-east-1", "s3")
        method, path = env["REQUEST_METHOD"], env["PATH_INFO"]
        if service == "s3":
            return Call(service, region, f"{method} {path}", {}), False
        body = env["wsgi.input"].read(int(env.get("CONTENT_LENGTH") or 0))
        env["wsgi.input"] = io.BytesIO(body)
        if target := env.get("HTTP_X_AMZ_TARGET"):
            return Call(service, region, target.rpartition(".")[2], json.loads(body or b"{}")), True
        if service == "scheduler":
            verb = {"POST": "Create", "PUT": "Update", "DELETE": "Delete", "GET": "Get"}[method]
            name = urllib.parse.unquote(path.removeprefix("/schedules").strip("/"))
            action = f"{verb}Schedule" if name else "ListSchedules"
            return Call(service, region, action, {"Name": name, **json.loads(body or b"{}")}), True
        params = dict(urllib.parse.parse_qsl(body.decode(), keep_blank_values=True))
        return Call(service, region, params.get("Action", f"{method} {path}"), params), False

    def _fault(self, call: Call) -> None:
        with self._lock:
            for fault in self._faults[call.action]:
                if fault.when is None or fault.when(call.params):
                    self._faults[call.action].remove(fault)
                    raise Refusal(fault.code, fault.status, fault.message)

    def _answer(self, call: Call, env: dict[str, Any]) -> tuple[str, list[tuple[str, str]], bytes]:
        own = getattr(self, f"_on_{call.action}", None) if " " not in call.action else None
        dry = call.params.get("DryRun") == "true"
        body = own(call, env) if own and not dry else None
        if body is None:
            return self._pass_on(env)
        kind = "application/x-amz-json-1.1" if body.startswith(b"{") else "text/xml"
        return "200 OK", [("Content-Type", kind), ("Content-Length", str(len(body)))], body

    def _pass_on(self, env: dict[str, Any]) -> tuple[str, list[tuple[str, str]], bytes]:
        got: list[Any] = []
        body = b"".join(self._moto(env, lambda status, headers, exc_info=None: got.extend((status, headers))))
        return got[0], got[1], body

    # --- EC2: renting

    def _on_RunInstances(self, call: Call, env: dict[str, Any]) -> bytes | None:
        with self._lock:  # one at a time: a second launcher sees what the first one did
            params = call.params
            key = (call.region, params.get("ClientToken", ""), *(params.get(k, "") for k in WHERE))
            same = tuple(sorted(item for item in params.items() if item[0] not in WHERE))
            if params.get("ClientToken") and key in self._tokens:
                asked, answer = self._tokens[key]
                if asked != same:
                    raise Refusal("IdempotentParameterMismatch")
                return answer
            zone = self._zone(call)
            self._refuse_spot(call, zone)
            if self.ignored:
                heeded = {name: value for name, value in params.items() if name not in self.ignored}
                body = urllib.parse.urlencode(heeded).encode()
                env["wsgi.input"], env["CONTENT_LENGTH"] = io.BytesIO(body), str(len(body))
            status, _, answer = self._pass_on(env)
            if not status.startswith("200"):
                code, message = (re.search(rb"<%s>(.*?)</" % n, answer, re.S) for n in (b"Code", b"Message"))
                raise Refusal(code[1].decode(), int(status[:3]), message[1].decode() if message else None)
            if zone in self.capacity:
                self.capacity[zone] -= 1
            self._tokens[key] = (same, answer)
            for found in re.findall(rb"<instanceId>(i-[0-9a-f]+)</instanceId>", answer):
                instance = found.decode()
                self._born[instance] = time.monotonic()
                if params.get("InstanceMarketOptions.MarketType") == "spot":
                    self._open_spot_request(call, instance)
            return answer

    def _zone(self, call: Call) -> str:
        subnet = call.params.get("SubnetId") or call.params.get("NetworkInterface.1.SubnetId")
        if subnet:
            with _not_found():
                return str(self._ec2(call.region).get_subnet(subnet).availability_zone)
        return str(call.params.get("Placement.AvailabilityZone", f"{call.region}a"))

    def _refuse_spot(self, call: Call, zone: str) -> None:
        """As EC2 does: no such type there, no capacity, the price over the bid, or over the quota."""
        kind = call.params.get("InstanceType", "")
        if (kind, zone) in self.unsupported:
            raise Refusal(
                "Unsupported", 400, f"Your requested instance type ({kind}) is not supported in {zone}."
            )
        if self.capacity.get(zone, 1) < 1:
            raise Refusal("InsufficientInstanceCapacity", 500)
        if call.params.get("InstanceMarketOptions.MarketType") != "spot":
            return
        bid = call.params.get("InstanceMarketOptions.SpotOptions.MaxPrice")
        price = self.price_now(kind, zone)
        if bid and price and float(bid) < price:
            message = MESSAGES["SpotMaxPriceTooLow"].format(bid=bid, price=price)
            raise Refusal("SpotMaxPriceTooLow", 400, message)
        in_use = sum(
            VCPUS.get(instance.instance_type, 0)
            for instance in self._ec2(call.region).all_instances()
            if instance._state.name in LIVE and instance.lifecycle == "spot"
        )
        if in_use + VCPUS.get(kind, 0) > self.quotas.get(("ec2", SPOT_QUOTA), 0):
            raise Refusal("MaxSpotInstanceCountExceeded")

    def price_now(self, instance_type: str, zone: str) -> float | None:
        """The spot price of this moment; None if the type is not sold there."""
        changes = self.prices.get((instance_type, zone))
        return changes[-1][1] if changes else None

    def _open_spot_request(self, call: Call, instance: str) -> None:
        market = "InstanceMarketOptions.SpotOptions."
        request = SpotRequest(
            id=f"sir-{len(self.spot_requests):08x}",
            region=call.region,
            kind=call.params.get(market + "SpotInstanceType", "one-time"),
            instance=instance,
            body={name: value for name, value in call.params.items() if name != "ClientToken"},
            tags=_tags_for(call.params, "spot-instances-request"),
        )
        self.spot_requests[request.id] = request

    def _on_TerminateInstances(self, call: Call, env: dict[str, Any]) -> bytes | None:
        ids = [value for name, value in call.params.items() if name.startswith("InstanceId.")]
        if self.undying.intersection(ids):
            items = "".join(
                f"<item><instanceId>{i}</instanceId><currentState><code>32</code><name>shutting-down</name>"
                "</currentState><previousState><code>16</code><name>running</name></previousState></item>"
                for i in ids
            )
            return _xml("TerminateInstances", f"<instancesSet>{items}</instancesSet>")
        ec2 = self._ec2(call.region)
        for instance in (i for i in ec2.all_instances() if i.id in ids and i.state == "terminated"):
            instance.nics.clear()  # moto would delete them twice, and fail; EC2 does not
        status, _, answer = self._pass_on(env)
        if status.startswith("200"):
            for request in list(self.spot_requests.values()):
                if request.instance in ids and request.state == "active":
                    request.instance = None
                    if request.kind == "one-time":
                        request.state = "closed"
                    else:
                        self._relaunch(request, env["HTTP_AUTHORIZATION"])
        else:
            code = re.search(rb"<Code>(.*?)</Code>", answer)
            raise Refusal(code[1].decode() if code else "Unknown", int(status[:3]))
        return answer

    def _relaunch(self, request: SpotRequest, authorization: str) -> None:
        request.state = "closed"  # the request that follows takes its place
        again = urllib.request.Request(
            self.url,
            urllib.parse.urlencode(request.body).encode(),
            {"Authorization": authorization, "Content-Type": "application/x-www-form-urlencoded"},
        )
        urllib.request.urlopen(again).close()

    def _on_StopInstances(self, call: Call, env: dict[str, Any]) -> bytes | None:
        ids = {value for name, value in call.params.items() if name.startswith("InstanceId.")}
        for request in self.spot_requests.values():
            if request.instance in ids and request.kind == "one-time":
                message = f"You can't stop the Spot Instance '{request.instance}' because it is a one-time"
                raise Refusal("UnsupportedOperation", 400, f"{message} request.")
        return None

    def _on_DescribeInstances(self, call: Call, env: dict[str, Any]) -> bytes | None:
        """New instances are not seen at first, then pending."""
        now = time.monotonic()
        born = dict(self._born)
        hidden = {instance for instance, at in born.items() if now - at < self.lag_s}
        pending = {instance for instance, at in born.items() if now - at < self.pending_s}
        if not hidden | pending:
            return None
        asked = {value for name, value in call.params.items() if name.startswith("InstanceId.")}
        if unseen := asked & hidden:
            raise Refusal(
                "InvalidInstanceID.NotFound", 400, f"The instance ID '{unseen.pop()}' does not exist"
            )
        tree = ET.fromstring(self._pass_on(env)[2])
        space = tree.tag.partition("}")[0] + "}"
        ET.register_namespace("", space.strip("{}"))
        for items in tree.iter(f"{space}instancesSet"):
            for item in list(items):
                state = item.find(f"{space}instanceState/{space}name")
                if item.findtext(f"{space}instanceId") in hidden:
                    items.remove(item)
                elif (
                    state is not None
                    and state.text == "running"
                    and item.findtext(f"{space}instanceId") in pending
                ):
                    state.text = "pending"
        return ET.tostring(tree)

    def _on_ModifyInstanceAttribute(self, call: Call, env: dict[str, Any]) -> bytes | None:
        """moto would take a shutdown behaviour and forget it."""
        if behaviour := call.params.get("InstanceInitiatedShutdownBehavior.Value"):
            instance = self._ec2(call.region).get_instance(call.params["InstanceId"])
            instance.instance_initiated_shutdown_behavior = behaviour
        return None

    def _on_DeregisterImage(self, call: Call, env: dict[str, Any]) -> bytes | None:
        ec2 = self._ec2(call.region)
        image = ec2.amis.get(call.params["ImageId"])
        if image and call.params.get("DeleteAssociatedSnapshots") == "true":
            ec2.snapshots.pop(image.ebs_snapshot.id, None)
        return None

    def _on_GetConsoleOutput(self, call: Call, env: dict[str, Any]) -> bytes | None:
        instance = call.params["InstanceId"]
        text = base64.b64encode(self.console.get(instance, "").encode()).decode()
        return _xml("GetConsoleOutput", f"<instanceId>{instance}</instanceId><output>{text}</output>")

    # --- EC2: spot requests and regions

    def _on_DescribeSpotInstanceRequests(self, call: Call, env: dict[str, Any]) -> bytes | None:
        filters = _filters(call.params)
        items = ""
        for request in list(self.spot_requests.values()):
            if request.region != call.region or not _matches(request, filters):
                continue
            tags = "".join(
                f"<item><key>{key}</key><value>{value}</value></item>" for key, value in request.tags.items()
            )
            held = f"<instanceId>{request.instance}</instanceId>" if request.instance else ""
            items += (
                f"<item><spotInstanceRequestId>{request.id}</spotInstanceRequestId>{held}"
                f"<state>{request.state}</state><type>{request.kind}</type><tagSet>{tags}</tagSet></item>"
            )
        return _xml(
            "DescribeSpotInstanceRequests", f"<spotInstanceRequestSet>{items}</spotInstanceRequestSet>"
        )

    def _on_CancelSpotInstanceRequests(self, call: Call, env: dict[str, Any]) -> bytes | None:
        items = ""
        for name, value in call.params.items():
            if name.startswith("SpotInstanceRequestId."):
                self.spot_requests[value].state = "cancelled"
                item = f"<spotInstanceRequestId>{value}</spotInstanceRequestId><state>cancelled</state>"
                items += f"<item>{item}</item>"
        return _xml("CancelSpotInstanceRequests", f"<spotInstanceRequestSet>{items}</spotInstanceRequestSet>")

    def _on_DescribeRegions(self, call: Call, env: dict[str, Any]) -> bytes | None:
        items = "".join(
            f"<item><regionName>{name}</regionName><regionEndpoint>ec2.{name}.amazonaws.com</regionEndpoint>"
            "<optInStatus>opt-in-not-required</optInStatus></item>"
            for name in self.regions
        )
        return _xml("DescribeRegions", f"<regionInfo>{items}</regionInfo>")

    # --- prices

    def _on_DescribeSpotPriceHistory(self, call: Call, env: dict[str, Any]) -> bytes | None:
        """Pages in no order; the price at StartTime is its last change before, which belongs to it."""
        params = call.params
        types = {value for name, value in params.items() if name.startswith("InstanceType.")}
        zones = set(_filters(params).get("availability-zone", ())) | {params.get("AvailabilityZone")} - {None}
        since = _time(params.get("StartTime")) or datetime.now(UTC) - timedelta(days=90)
        until = _time(params.get("EndTime")) or datetime.now(UTC)
        rows = []
        for (kind, zone), changes in sorted(self.prices.items(), reverse=True):
            if (
                not zone.startswith(call.region)
                or (types and kind not in types)
                or (zones and zone not in zones)
            ):
                continue
            before = [change for change in changes if change[0] <= since][-1:]
            within = [change for change in changes if since < change[0] <= until]
            rows += [(kind, zone, *change) for change in before + within]
        at = int(params.get("NextToken") or 0)
        size = min(self.price_page, int(params.get("MaxResults") or 1000))
        further = str(at + size) if at + size < len(rows) else ""
        items = "".join(
            f"<item><instanceType>{kind}</instanceType><productDescription>Linux/UNIX</productDescription>"
            f"<spotPrice>{usd:.6f}</spotPrice><timestamp>{at:%Y-%m-%dT%H:%M:%S.000Z}</timestamp>"
            f"<availabilityZone>{zone}</availabilityZone></item>"
            for kind, zone, at, usd in rows[at : at + size]
        )
        body = f"<spotPriceHistorySet>{items}</spotPriceHistorySet><nextToken>{further}</nextToken>"
        return _xml("DescribeSpotPriceHistory", body)

    def _on_GetProducts(self, call: Call, env: dict[str, Any]) -> bytes | None:
        wanted = {each["Field"]: each["Value"] for each in call.params.get("Filters", [])}
        usd = self.on_demand.get(wanted.get("instanceType", ""))
        dimension = {"unit": "Hrs", "pricePerUnit": {"USD": f"{usd or 0:.10f}"}}
        product = {
            "product": {"attributes": wanted},
            "terms": {"OnDemand": {"X": {"priceDimensions": {"X.Y": dimension}}}},
        }
        return _json({"FormatVersion": "aws_v1", "PriceList": [] if usd is None else [json.dumps(product)]})

    # --- quotas and image names

    def _on_GetServiceQuota(self, call: Call, env: dict[str, Any]) -> bytes | None:
        service, code = call.params["ServiceCode"], call.params["QuotaCode"]
        if (service, code) not in self.quotas:
            raise Refusal("NoSuchResourceException")
        value = self.quotas[service, code]
        return _json({"Quota": {"ServiceCode": service, "QuotaCode": code, "Value": value, "Unit": "None"}})

    def _on_GetParameter(self, call: Call, env: dict[str, Any]) -> bytes | None:
        name = call.params["Name"]
        return (
            _json({"Parameter": _parameter(name, self.parameters[name])}) if name in self.parameters else None
        )

    def _on_GetParametersByPath(self, call: Call, env: dict[str, Any]) -> bytes | None:
        path = call.params["Path"].rstrip("/") + "/"
        found = [_parameter(name, value) for name, value in self.parameters.items() if name.startswith(path)]
        return _json({"Parameters": found}) if found else None

    # --- budgets

    def _budget(self, name: str) -> Any:
        return budgets_backends[DEFAULT_ACCOUNT_ID]["aws"].budgets[DEFAULT_ACCOUNT_ID][name]

    def _on_UpdateBudget(self, call: Call, env: dict[str, Any]) -> bytes | None:
        self._budget(call.params["NewBudget"]["BudgetName"]).budget.update(call.params["NewBudget"])
        return _json({})

    def _on_DescribeSubscribersForNotification(self, call: Call, env: dict[str, Any]) -> bytes | None:
        asked = call.params["Notification"]
        for alert in self._budget(call.params["BudgetName"]).notifications:
            if all(str(alert.details[name]) == str(value) for name, value in asked.items()):
                return _json({"Subscribers": alert.subscribers})
        raise Refusal("NotFoundException")


def _one_image(backend: Any) -> None:
    known = next(ami for ami in AMIS if ami["ami_id"] == IMAGE)
    backend.amis[IMAGE] = Ami(backend, **{**known, "owner_alias": "amazon"})


# moto would load 1,300 of them for each region of each fresh account: a third of every test.
AmiBackend._load_amis = _one_image


@contextmanager
def serving() -> Iterator[Aws]:
    """A fresh AWS account whose services answer at `.url`. It ends with the block."""
    moto_api_backend.reset()
    aws = Aws()

    class Quiet(WSGIRequestHandler):
        def log(self, type: str, message: str, *args: Any) -> None:
            pass

    server = make_server("127.0.0.1", 0, aws, threaded=True, request_handler=Quiet)
    aws.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield aws
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def user_data(params: dict[str, Any]) -> str:
    """The user data of a RunInstances request, as the machine will see it."""
    return base64.b64decode(params["UserData"]).decode()


def tags(params: dict[str, Any], resource: str = "instance") -> dict[str, str]:
    """The tags that a request puts on one kind of resource."""
    return _tags_for(params, resource)


def _xml(action: str, body: str) -> bytes:
    return f"<{action}Response><requestId>fake</requestId>{body}</{action}Response>".encode()


def _json(content: dict[str, Any]) -> bytes:
    return json.dumps(content).encode()


def _parameter(name: str, value: str) -> dict[str, Any]:
    return {"Name": name, "Type": "String", "Value": value, "Version": 1}


def _time(text: str | None) -> datetime | None:
    return datetime.fromisoformat(text.replace("Z", "+00:00")) if text else None


def _filters(params: dict[str, str]) -> dict[str, list[str]]:
    found = {}
    for name, value in params.items():
        if match := re.fullmatch(r"Filter\.(\d+)\.Name", name):
            start = f"Filter.{match[1]}.Value."
            found[value] = [each for key, each in params.items() if key.startswith(start)]
    return found


def _matches(request: SpotRequest, filters: dict[str, list[str]]) -> bool:
    for name, values in filters.items():
        if name.startswith("tag:"):
            if request.tags.get(name[4:]) not in values:
                return False
        elif name == "state":
            if request.state not in values:
                return False
        elif name == "instance-id":
            if request.instance not in values:
                return False
        else:
            raise Refusal("InvalidParameterValue", 400, f"The filter '{name}' is invalid")
    return True


def _tags_for(params: dict[str, Any], resource: str) -> dict[str, str]:
    found = {}
    for name, value in params.items():
        match = re.fullmatch(r"TagSpecification\.(\d+)\.ResourceType", name)
        if match and value == resource:
            start = f"TagSpecification.{match[1]}.Tag."
            for key, tag in params.items():
                if key.startswith(start) and key.endswith(".Key"):
                    found[tag] = params.get(key[: -len("Key")] + "Value", "")
    return found


@contextmanager
def _not_found() -> Iterator[None]:
    try:
        yield
    except Exception as error:
        raise Refusal("InvalidSubnetID.NotFound", 400, str(error)) from None


def _refuse(refusal: Refusal, call: Call, as_json: bool, start: Callable[..., Any]) -> list[bytes]:
    code, message = refusal.code, refusal.message
    kind = "text/xml"
    if as_json:
        kind, body = "application/x-amz-json-1.1", json.dumps({"__type": code, "message": message})
    elif call.service == "ec2":
        error = f"<Error><Code>{code}</Code><Message>{message}</Message></Error>"
        body = f"<Response><Errors>{error}</Errors></Response>"
    elif call.service == "s3":
        body = f"<Error><Code>{code}</Code><Message>{message}</Message></Error>"
    else:
        error = f"<Error><Code>{code}</Code><Message>{message}</Message></Error>"
        body = f"<ErrorResponse>{error}</ErrorResponse>"
    headers = [("Content-Type", kind), ("Content-Length", str(len(body))), ("x-amzn-errortype", code)]
    start(f"{refusal.status} Refused", headers)
    return [body.encode()]
