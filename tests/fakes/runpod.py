"""A stand-in for RunPod's REST API v2 over HTTP, on loopback: RUNPOD_API_URL leads client and stop hook here.

    with serving() as runpod:
        runpod.fault("POST", "/v2/pods", 502, acts=True)      # made, and the answer is lost
        runpod.life = ["PROVISIONING", "STARTING"]             # and never further
        ...
        runpod.sent("POST", "/v2/pods")                        # the bodies of every such request
        runpod.billed()                                        # the pods that cost money now

Pods live: each look at one, alone or in a list, takes it one step on along `life`; RUNNING has an address.
What runs in a pod is `containers`: a context manager, entered at each start of the container and left at its
end, so that a restart begins with an empty disk. `obeys` is for an image that does its own thing.
Requests and our own answers are judged by
runpod_openapi.json with runpod_overlay.json; whatever is not in them is in `violations`, and refused.
Not here: clusters, templates, CPU pods, and what no page of the documentation promises.
"""

import functools
import json
import re
import threading
import urllib.parse
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from ops.runpod.container import ARMED
from ops.runpod.pods import END
from tests.fakes.contract import Contract, Operation

HERE = Path(__file__).parent
KEY = "rpa_PLANTED0SECRET0KEY0OF0THE0ACCOUNT"
MAX_BODY = 102_400
FULL = "There are no longer any instances available with the requested specifications."
LOST = "something went wrong"
ACTIONS = {
    "PROVISIONING": ["stop", "terminate"],
    "STARTING": ["stop", "terminate"],
    "RUNNING": ["stop", "restart", "terminate"],
    "EXITED": ["start", "terminate"],
    "ERROR": ["start", "terminate"],
    "TERMINATED": [],
}
# Schemas of answers that nothing else is composed of.
CLOSED = """
    DataCenter DataCenterAvailability ErrorResponse GpuType ListDataCentersResponse ListGpuTypesResponse
    ListNetworkVolumesResponse ListPodBillingResponse ListPodsResponse NetworkVolume Pod PodBillingRecord
    PodGlobalNetworking PodRuntime PodRuntimePort PodSsh PodSshEndpoint
""".split()

Address = tuple[str, int]


def gpu_type(
    gpu_id: str, memory: int, secure: float, community: float = 0.0, **availability: str
) -> dict[str, Any]:
    """One GPU type of the catalogue, with its stock in each data centre (`EU_RO_1="HIGH"`)."""
    centers = {name.replace("_", "-"): level for name, level in availability.items()}
    return {
        "id": gpu_id,
        "name": gpu_id.removeprefix("NVIDIA ").removeprefix("GeForce "),
        "pool": None,
        "manufacturer": "AMD" if gpu_id.startswith("AMD") else "NVIDIA",
        "memory": memory,
        "secure": secure > 0,
        "community": community > 0,
        "price": {"secure": secure, "community": community},
        "maxCount": {"secure": 8, "community": 4 if community else 0},
        "stock": centers,
        "cuda": ["12.8", "12.9", "13.0"],
    }


def catalogue() -> dict[str, dict[str, Any]]:
    """Made-up prices and stock of real GPU types."""
    listed = [
        gpu_type("NVIDIA A40", 48, 0.40, 0.35, EU_RO_1="LOW", US_KS_2="HIGH"),
        gpu_type("NVIDIA L40S", 48, 0.86, 0.79, EU_RO_1="HIGH", US_TX_3="MEDIUM"),
        gpu_type("NVIDIA RTX A6000", 48, 0.49, 0.33, EU_RO_1="NONE", US_KS_2="LOW"),
        gpu_type("NVIDIA GeForce RTX 4090", 24, 0.44, 0.31, EU_RO_1="HIGH", US_KS_2="HIGH"),
        gpu_type("NVIDIA H100 80GB HBM3", 80, 2.69, 0.0, US_TX_3="HIGH"),
        gpu_type("AMD Instinct MI300X OAM", 192, 2.39, 0.0, EU_RO_1="HIGH"),
    ]
    return {each["id"]: each for each in listed}


@dataclass(frozen=True)
class Call:
    """One request as it came; `headers` without the key."""

    method: str
    path: str
    query: dict[str, str]
    body: Any
    headers: Mapping[str, str]


@dataclass
class Fault:
    """An answer that is given instead of, or with `acts` after, what was asked for."""

    method: str
    path: str
    status: int
    detail: str
    kind: str
    headers: Mapping[str, str]
    acts: bool
    times: int


@dataclass
class Pod:
    """One pod, and what its container is. `logs` grow; `n_starts` counts containers."""

    id: str
    request: dict[str, Any]
    data_center: str
    usd_per_hour: float
    created_at: datetime
    life: list[str]
    lists_hidden: int = 0
    gets_hidden: int = 0
    started_at: datetime | None = None
    address: Address | None = None
    n_starts: int = 0
    has_gpu: bool = True
    locked: bool = False
    ghost: dict[str, Any] = field(default_factory=dict)  # of a deleted pod: what is still listed
    lists_left: int = 0  # and how often
    logs: dict[str, list[tuple[str, str]]] = field(default_factory=lambda: {"container": [], "system": []})
    container: ExitStack = field(default_factory=ExitStack)

    @property
    def name(self) -> str:
        return str(self.request["name"])

    @property
    def status(self) -> str:
        return self.life[0]

    @property
    def key(self) -> str:
        """The key that is good for this pod only."""
        return f"rpa_POD_{self.id}"

    @property
    def volume(self) -> str | None:
        mounted = self.request.get("mounts", {}).get("network", [])
        return mounted[0]["volumeId"] if mounted else None

    def log(self, source: str, *lines: str) -> None:
        """Append lines, each with a moment of its own."""
        for line in lines:
            n = sum(map(len, self.logs.values()))
            at = self.created_at + timedelta(milliseconds=n)
            self.logs[source].append((at.strftime("%Y-%m-%dT%H:%M:%S.%fZ"), line))

    def environ(self) -> dict[str, str]:
        """The environment of the container's first process: the request's and the platform's."""
        host, port = self.address or ("", 0)
        return self.request.get("env", {}) | {
            "RUNPOD_POD_ID": self.id,
            "RUNPOD_API_KEY": self.key,
            "RUNPOD_DC_ID": self.data_center,
            "RUNPOD_PUBLIC_IP": host,
            "RUNPOD_TCP_PORT_22": str(port),
            "RUNPOD_VOLUME_ID": self.volume or "",
            "RUNPOD_GPU_COUNT": "1",
        }


class Refusal(Exception):
    """An error answer."""

    def __init__(self, status: int, detail: str, errors: list[str] | None = None):
        super().__init__(detail)
        self.status, self.detail, self.errors = status, detail, errors or []


@dataclass
class RunPod:
    """The knobs of a running fake and what it was asked. Safe to use while requests come in."""

    url: str = ""
    key: str = KEY
    read_only: bool = False  # the key may only look
    balance_usd: float = 25.0
    ids: str = "pod{:07d}"  # of pods, by their number
    gpus: dict[str, dict[str, Any]] = field(default_factory=catalogue)
    data_centers: dict[str, list[str]] = field(  # -> kinds of volumes there
        default_factory=lambda: {"EU-RO-1": ["STANDARD"], "US-KS-2": ["STANDARD"], "US-TX-3": []}
    )
    ram_gb: dict[str, int] = field(default_factory=dict)  # GPU type -> memory of its hosts; 128 if not named
    forbidden: set[str] = field(default_factory=set)  # GPU types that the account may not rent
    full: set[str] = field(default_factory=set)  # GPU types that are gone although the catalogue has them
    price_factor: float = 1.0  # what a pod costs in terms of the catalogue's price
    life: list[str] = field(default_factory=lambda: ["PROVISIONING", "STARTING", "RUNNING"])
    has_address: bool = True
    user: str = "root"  # whose login a pod takes
    list_lag: int = 0  # lists without a new pod
    get_lag: int = 0  # 404s for a new pod
    delete_lag: int = 0  # lists with a deleted pod
    start_lag: int = 0  # looks at a pod that was started and is still shown as stopped
    deaf: bool = False  # actions and deletions are accepted, and nothing happens
    host_is_full: bool = False  # a stopped pod finds no GPU at its start
    exec_form: bool = True  # `entrypoint` and `cmd` are known fields
    obeys: set[str] = field(default_factory=lambda: {"entrypoint", "args"})  # what an image's container runs
    page: int | None = None  # pods on a page of a list; None: the API does not know pages
    stream_open: bool = False  # logs do not end
    clock_ahead: timedelta = timedelta()
    containers: Callable[[Pod], AbstractContextManager[Address]] | None = None
    pods: dict[str, Pod] = field(default_factory=dict)  # deleted ones, too
    volumes: dict[str, dict[str, Any]] = field(default_factory=dict)
    bills: list[dict[str, Any]] = field(default_factory=list)
    calls: list[Call] = field(default_factory=list)
    violations: list[str] = field(default_factory=list)
    faults: list[Fault] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._contract = _contract()
        self._lock = threading.RLock()
        self._n_volumes = 0
        self.closing = threading.Event()

    # --- for tests

    def fault(
        self,
        method: str,
        path: str,
        status: int = 500,
        detail: str = LOST,
        *,
        kind: str = "problem",
        acts: bool = False,
        times: int = 1,
        **headers: str,
    ) -> None:
        """Answer the next requests to a path (a pattern) so.

        `kind`: problem, html, cut (half a body), drop (no answer at all).
        """
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        self.faults.append(Fault(method, path, status, detail, kind, named, acts, times))

    def sent(self, method: str, path: str) -> list[Any]:
        """The bodies of the requests to a path, in order."""
        return [call.body for call in self.calls if (call.method, call.path) == (method, path)]

    def billed(self) -> list[Pod]:
        """The pods whose GPU is paid for now."""
        return [pod for pod in self.pods.values() if pod.status in ("PROVISIONING", "STARTING", "RUNNING")]

    def add_volume(self, name: str = "weights", size: int = 100, data_center: str = "EU-RO-1") -> str:
        """A network volume; -> its id."""
        self._n_volumes += 1
        volume_id = f"vol{self._n_volumes:07d}"
        described = {"id": volume_id, "name": name, "size": size, "dataCenter": data_center}
        self.volumes[volume_id] = described | {"type": "STANDARD"}
        return volume_id

    def add_bill(self, pod_id: str, start: datetime, gpu_usd: float, disk_usd: float = 0.0) -> None:
        """What one hour of a pod was billed with."""
        record = {"startTime": _stamp(start), "endTime": _stamp(start + timedelta(hours=1)), "podId": pod_id}
        amounts = {"totalAmount": gpu_usd + disk_usd, "gpuAmount": gpu_usd, "cpuAmount": 0.0}
        self.bills.append(record | amounts | {"diskAmount": disk_usd})

    def runs_request(self, pod: Pod) -> bool:
        """True if the pod's container runs what the request says, and not only what is in its image."""
        return any(pod.request.get(form) for form in self.obeys)

    def restart_container(self, pod_id: str) -> None:
        """What RunPod does when a container's command ends: the same pod, another container."""
        with self._lock:
            self._leave(self.pods[pod_id])
            self._enter(self.pods[pod_id])

    # --- requests

    def respond(self, call: Call, authorization: str, raw: bytes) -> tuple[int, Any]:
        """Status and body of an answer. Judges both directions."""
        operation = self._contract.operation(call.method, call.path)
        try:
            if len(raw) > MAX_BODY:
                raise Refusal(413, "request body too large")
            if operation is None:
                self.violations.append(f"{call.method} {call.path}: not in the document")
                raise Refusal(404, "no such path")
            key = authorization.removeprefix("Bearer ")
            self._authorize(key, operation)
            self._judge(call, operation, raw)
            with self._lock:
                status, answer = self._act(call, operation)
        except Refusal as refused:
            status = refused.status
            answer = {"title": "Refused", "status": status, "detail": refused.detail}
            if refused.errors:
                answer["errors"] = refused.errors
        if operation and not isinstance(answer, str):  # logs are a text
            wrong = self._contract.of_answer(operation, status, answer)
            self.violations += [f"answer {status} to {call.method} {call.path}: {line}" for line in wrong]
        return status, answer

    def _authorize(self, key: str, operation: Operation) -> None:
        own = {pod.key: pod.id for pod in self.pods.values()}
        if key in own:
            if operation.path == "/v2/pods/{id}/action" and operation.ids == (own[key],):
                return
            raise Refusal(403, "access denied")
        if key != self.key:
            raise Refusal(401, "invalid bearer token" if key else "missing bearer token")
        if self.read_only and operation.method != "get":
            raise Refusal(403, "access denied")

    def _judge(self, call: Call, operation: Operation, raw: bytes) -> None:
        query = urllib.parse.urlencode(call.query)
        wrong = self._contract.of_request(operation, query, call.headers.get("content-type", ""), raw)
        if not self.exec_form and isinstance(call.body, dict):
            wrong += [
                f"$: additional properties '{n}' not allowed" for n in ("entrypoint", "cmd") if n in call.body
            ]
        elif wrong:
            self.violations += [f"{call.method} {call.path}: {line}" for line in wrong]
        if wrong:
            raise Refusal(422, "Request validation failed.", wrong)

    def _act(self, call: Call, operation: Operation) -> tuple[int, Any]:
        handlers: dict[tuple[str, str], Callable[..., tuple[int, Any]]] = {
            ("get", "/v2/pods"): self._list,
            ("post", "/v2/pods"): self._create,
            ("get", "/v2/pods/{id}"): self._get,
            ("patch", "/v2/pods/{id}"): self._patch,
            ("delete", "/v2/pods/{id}"): self._delete,
            ("post", "/v2/pods/{id}/action"): self._action,
            ("get", "/v2/pods/{id}/logs"): self._logs,
            ("get", "/v2/network-volumes"): self._volumes,
            ("post", "/v2/network-volumes"): self._create_volume,
            ("get", "/v2/network-volumes/{id}"): self._volume,
            ("delete", "/v2/network-volumes/{id}"): self._delete_volume,
            ("get", "/v2/catalog/gpus"): self._gpus,
            ("get", "/v2/catalog/datacenters"): self._centers,
            ("get", "/v2/billing/pods"): self._billing,
        }
        return handlers[operation.method, operation.path](call, *operation.ids)

    # --- pods

    def _list(self, call: Call) -> tuple[int, Any]:
        described: list[dict[str, Any]] = []
        for pod in self.pods.values():
            if pod.lists_left:
                pod.lists_left -= 1
                described.append(pod.ghost)
            elif pod.lists_hidden:
                pod.lists_hidden -= 1
            elif pod.status != "TERMINATED":
                self._step(pod)
                described.append(self._described(pod))
        if self.page is None:
            return 200, {"pods": described}
        start = int(call.query.get("cursor", "c0")[1:])
        more = start + self.page < len(described)
        pagination = {"nextCursor": f"c{start + self.page}" if more else None, "hasNextPage": more}
        return 200, {"pods": described[start : start + self.page], "pagination": pagination}

    def _create(self, call: Call) -> tuple[int, Any]:
        body = call.body
        if self.balance_usd <= 0:
            raise Refusal(402, "insufficient balance")
        if ("gpu" in body) == ("cpu" in body):
            raise Refusal(400, "exactly one of gpu or cpu must be set")
        pod = Pod(
            id=self.ids.format(len(self.pods)),
            request=body,
            data_center=self._placed(body),
            usd_per_hour=self._price(body) * self.price_factor,
            created_at=datetime.now(UTC) + self.clock_ahead,
            life=list(self.life),
            lists_hidden=self.list_lag,
            gets_hidden=self.get_lag,
        )
        self.pods[pod.id] = pod
        pod.log("system", f"create container {body['image']}", "create pod network")
        if pod.status == "RUNNING":
            self._enter(pod)
        return 201, self._described(pod)

    def _price(self, body: dict[str, Any]) -> float:
        rate: float = self.gpus[body["gpu"]["id"]]["price"][body.get("cloud", "SECURE").lower()]
        return rate * int(body["gpu"].get("count", 1))

    def _placed(self, body: dict[str, Any]) -> str:
        """The data centre with room for it. Raises Refusal."""
        wanted, cloud = body["gpu"], body.get("cloud", "SECURE").lower()
        kind = self.gpus.get(wanted["id"])
        if kind is None:
            raise Refusal(400, f"gpu type {wanted['id']} not found")
        if wanted["id"] in self.forbidden:
            raise Refusal(403, "your account cannot access this pool")
        centers = set(body.get("dataCenterIds") or self.data_centers)
        mounts = body.get("mounts", {})
        if mounts.get("network"):
            volume = self.volumes.get(mounts["network"][0]["volumeId"])
            if volume is None or cloud != "secure" or "persistent" in mounts:
                raise Refusal(400, "network volume cannot be attached")
            centers &= {volume["dataCenter"]}  # not named as the reason: it reads like a lack of machines
        least = wanted.get("minCudaVersion", "0.0")
        stocked = {name for name, level in kind["stock"].items() if level != "NONE"}
        room = [name for name in self.data_centers if name in centers & stocked]
        if (
            not room
            or not kind[cloud]
            or wanted["id"] in self.full
            or wanted.get("minRamPerGpu", 1) > self.ram_gb.get(wanted["id"], 128)
            or not any(_version(each) >= _version(least) for each in kind["cuda"])
        ):
            raise Refusal(400, FULL)
        return room[0]

    def _known(self, pod_id: str) -> Pod:
        pod = self.pods.get(pod_id)
        if pod is None or pod.status == "TERMINATED":
            raise Refusal(404, "pod not found")
        return pod

    def _get(self, call: Call, pod_id: str) -> tuple[int, Any]:
        pod = self._known(pod_id)
        if pod.gets_hidden:
            pod.gets_hidden -= 1
            raise Refusal(404, "pod not found")
        self._step(pod)
        return 200, self._described(pod)

    def _patch(self, call: Call, pod_id: str) -> tuple[int, Any]:
        pod = self._known(pod_id)
        mounts = call.body.get("mounts")
        if mounts and mounts.keys() != pod.request.get("mounts", {}).keys():
            raise Refusal(400, "a mount cannot be added")
        pod.locked = call.body.get("locked", pod.locked)
        pod.request = pod.request | {name: value for name, value in call.body.items() if name != "locked"}
        if pod.status == "RUNNING" and call.body.keys() - {"name", "locked"}:
            self._leave(pod)
            self._enter(pod)
        return 200, self._described(pod)

    def _delete(self, call: Call, pod_id: str) -> tuple[int, Any]:
        pod = self._known(pod_id)
        if not self.deaf:
            pod.ghost, pod.lists_left = self._described(pod), self.delete_lag
            pod.life = ["TERMINATED"]
            self._leave(pod)
        return 204, None

    def _action(self, call: Call, pod_id: str) -> tuple[int, Any]:
        pod, action = self._known(pod_id), call.body["action"]
        if action not in ACTIONS[pod.status] or (pod.locked and action == "stop"):
            raise Refusal(409, f"pod is {pod.status}{' and locked' if pod.locked else ''}")
        if action == "terminate":
            return self._delete(call, pod_id)
        if action == "start" and self.host_is_full:
            raise Refusal(400, "There are not enough free GPUs on the host machine to start this pod.")
        if not self.deaf:
            if action == "stop":
                pod.life = ["EXITED"]  # first: what runs in it may watch
                self._leave(pod)
            elif action == "start":
                first = {"PROVISIONING", "STARTING"}
                pod.life = [*["EXITED"] * self.start_lag, "STARTING"]
                pod.life += [step for step in self.life if step not in first]
            else:
                self._leave(pod)
                self._enter(pod)
        return 200, self._described(pod)

    def _step(self, pod: Pod) -> None:
        if len(pod.life) > 1:
            before = pod.life.pop(0)
            if pod.status == "RUNNING" != before:
                self._enter(pod)
            elif pod.status != "RUNNING":
                self._leave(pod)

    def _enter(self, pod: Pod) -> None:
        pod.n_starts += 1
        pod.started_at = datetime.now(UTC) + self.clock_ahead
        pod.log("system", "start container")
        if self.runs_request(pod):
            end_s = int(pod.request.get("env", {}).get(END, 0))
            pod.log("container", f"{ARMED}{_stamp(datetime.fromtimestamp(end_s, UTC))}")
        nowhere = ("203.0.113.7", 40000 + pod.n_starts)  # another port at each start
        container = self.containers(pod) if self.containers else nullcontext(nowhere)
        pod.address = pod.container.enter_context(container)

    def _leave(self, pod: Pod) -> None:
        pod.address = None
        pod.container.close()

    def _described(self, pod: Pod) -> dict[str, Any]:
        asked, running = pod.request, pod.status == "RUNNING"
        proxy = {"host": "ssh.runpod.io", "port": 22, "username": f"{pod.id}-64411eb2"}
        direct, ports = None, []
        if running and pod.address and self.has_address and "22/tcp" in asked.get("ports", []):
            host, port = pod.address
            direct = {"host": host, "port": port, "username": self.user}
            direct["command"] = f"ssh {self.user}@{host} -p {port}"
            ports = [{"private": 22, "public": port, "type": "tcp", "ip": host}]
        shown = _named(asked, "entrypoint", "cmd")
        exec_form = json.dumps(shown) if shown else ""
        gpus = [{"util": 0, "memoryUtil": 0}] if pod.has_gpu else []
        return shown | {
            "id": pod.id,
            "name": pod.name,
            "status": pod.status,
            "actions": ACTIONS[pod.status],
            "image": asked["image"],
            "args": asked.get("args", exec_form),
            "disk": asked.get("disk", 50),
            "mounts": asked.get("mounts", {}),
            "ports": asked.get("ports", []),
            "env": asked.get("env", {}),
            "registry": None,
            "gpu": {"count": 1, "vcpuCount": 16, "memory": 128} | _named(asked["gpu"], "id", "count"),
            "cloud": asked.get("cloud", "SECURE"),
            "dataCenterId": pod.data_center,
            "cudaVersion": self.gpus[asked["gpu"]["id"]]["cuda"][-1],
            "ssh": {"proxy": proxy | {"command": f"ssh {pod.id}-64411eb2@ssh.runpod.io"}, "direct": direct},
            "template": None,
            "cost": pod.usd_per_hour if pod.status in ("PROVISIONING", "STARTING", "RUNNING") else 0.0,
            "locked": pod.locked,
            "runtime": {"uptime": 7, "gpus": gpus, "ports": ports} if running else None,
            "createdAt": _stamp(pod.created_at),
            "startedAt": _stamp(pod.started_at) if pod.started_at else None,
            "globalNetworking": {"enabled": False},
        }

    def _logs(self, call: Call, pod_id: str) -> tuple[int, Any]:
        pod, after = self._known(pod_id), call.headers.get("last-event-id", "")
        sources = [call.query["source"]] if "source" in call.query else list(pod.logs)
        lines = sorted((at, source, line) for source in sources for at, line in pod.logs[source])
        tail = lines[-int(call.query.get("tail", 100)) :]
        chosen = [each for each in lines if each[0] > after] if after else tail
        events = (
            f"id: {at}\ndata: {json.dumps({'ts': at, 'source': source, 'line': line})}\n\n"
            for at, source, line in chosen
        )
        return 200, "".join(events)

    # --- volumes, catalogue, billing

    def _volumes(self, call: Call) -> tuple[int, Any]:
        return 200, {"networkVolumes": list(self.volumes.values())}

    def _create_volume(self, call: Call) -> tuple[int, Any]:
        wanted = call.body
        if not self.data_centers.get(wanted["dataCenter"]):
            raise Refusal(400, f"data center {wanted['dataCenter']} has no network volumes")
        made = self.add_volume(wanted["name"], wanted["size"], wanted["dataCenter"])
        return 201, self.volumes[made]

    def _volume(self, call: Call, volume_id: str) -> tuple[int, Any]:
        if volume_id not in self.volumes:
            raise Refusal(404, "network volume not found")
        return 200, self.volumes[volume_id]

    def _delete_volume(self, call: Call, volume_id: str) -> tuple[int, Any]:
        self._volume(call, volume_id)
        if any(pod.volume == volume_id and pod.status != "TERMINATED" for pod in self.pods.values()):
            raise Refusal(400, "network volume is in use")
        del self.volumes[volume_id]
        return 204, None

    def _gpus(self, call: Call) -> tuple[int, Any]:
        with_stock = call.query.get("include") == "AVAILABILITY"
        filters = call.query.keys() - {"include", "product"}
        if with_stock != ("product" in call.query) or (filters and not with_stock):
            raise Refusal(400, "include=AVAILABILITY and product go together")
        least, cloud = call.query.get("minCudaVersion", "0.0"), call.query.get("cloud", "SECURE").lower()
        listed = []
        for kind in self.gpus.values():
            shown = {name: value for name, value in kind.items() if name not in ("stock", "cuda")}
            if with_stock:
                fits = kind[cloud] and any(_version(each) >= _version(least) for each in kind["cuda"])
                stock = {name: level for name, level in kind["stock"].items() if fits and level != "NONE"}
                shown["availability"] = max(stock.values(), key=_LEVELS.index, default="NONE")
                shown["cudaVersions"] = [{"version": each, "available": bool(stock)} for each in kind["cuda"]]
                if stock:
                    shown["dataCenters"] = [{"id": n, "name": n, "availability": s} for n, s in stock.items()]
            listed.append(shown)
        return 200, {"gpus": listed}

    def _centers(self, call: Call) -> tuple[int, Any]:
        shared = {"region": "UNKNOWN", "compliance": [], "globalNetwork": False}
        listed = [
            {"id": n, "name": n, "networkVolumeTypes": t} | shared for n, t in self.data_centers.items()
        ]
        return 200, {"dataCenters": listed}

    def _billing(self, call: Call) -> tuple[int, Any]:
        pod_id = call.query.get("podId")
        records = [each for each in self.bills if pod_id in (None, each["podId"])]
        now = datetime.now(UTC) + self.clock_ahead
        names = ("totalAmount", "gpuAmount", "cpuAmount", "diskAmount")
        metadata = {
            "query": {
                "startTime": call.query.get("startTime", _stamp(now - timedelta(days=30))),
                "endTime": call.query.get("endTime", _stamp(now)),
                "bucketSize": call.query.get("bucketSize", "day"),
                "podId": pod_id,
            },
            "recordCount": len(records),
            "uniquePodCount": len({each["podId"] for each in records}),
            "totals": {name: sum(each[name] for each in records) for name in names},
        }
        return 200, {"records": records, "metadata": metadata}


_LEVELS = ["NONE", "LOW", "MEDIUM", "HIGH"]


@functools.cache
def _contract() -> Contract:
    return Contract(HERE / "runpod_openapi.json", HERE / "runpod_overlay.json", CLOSED)


def _named(body: Mapping[str, Any], *names: str) -> dict[str, Any]:
    return {name: body[name] for name in names if name in body}


def _stamp(moment: datetime) -> str:
    return moment.strftime("%Y-%m-%dT%H:%M:%SZ")


def _version(text: str) -> tuple[int, ...]:
    return tuple(map(int, text.split(".")))


def _handler(runpod: RunPod) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True  # else an answer's body waits 40 ms for what follows its head

        def _serve(self) -> None:
            raw = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            url = urllib.parse.urlsplit(self.path)
            headers = {name.lower(): value for name, value in self.headers.items()}
            authorization = headers.pop("authorization", "")
            try:
                body = json.loads(raw) if raw else None
            except ValueError:
                body = None
            call = Call(self.command, url.path, dict(urllib.parse.parse_qsl(url.query)), body, headers)
            runpod.calls.append(call)
            if headers.get("user-agent", "python").lower().startswith("python"):
                # Cloudflare's, before RunPod sees it.
                self._send(403, b"<html>error code: 1010</html>", "text/html")
                return
            fault = self._fault(call)
            if fault and not fault.acts:
                self._spoil(fault)
                return
            status, answer = runpod.respond(call, authorization, raw)
            if fault:
                self._spoil(fault)
            elif isinstance(answer, str):
                self._stream(answer)
            else:
                kind = "application/json" if status < 400 else "application/problem+json"
                self._send(status, b"" if answer is None else json.dumps(answer).encode(), kind)

        do_GET = do_POST = do_PATCH = do_DELETE = _serve

        def _fault(self, call: Call) -> Fault | None:
            for fault in runpod.faults:
                if fault.times and fault.method == call.method and re.fullmatch(fault.path, call.path):
                    fault.times -= 1
                    return fault
            return None

        def _spoil(self, fault: Fault) -> None:
            if fault.kind == "drop":
                self.close_connection = True
                return
            if fault.kind == "html":
                self._send(fault.status, b"<!doctype html><title>Sign in</title>", "text/html", fault.headers)
                return
            body = json.dumps({"title": "Fault", "status": fault.status, "detail": fault.detail}).encode()
            if fault.kind == "cut":
                body = b'{"pods": [{"id": "pod0000000", "na'
                self._send(200, body, "application/json", {"Content-Length": str(10 * len(body))})
                self.close_connection = True
                return
            self._send(fault.status, body, "application/problem+json", fault.headers)

        def _stream(self, text: str) -> None:
            self._send(200, text.encode(), "text/event-stream", {"Connection": "close"}, length=False)
            self.close_connection = True
            if runpod.stream_open:
                self.wfile.flush()
                runpod.closing.wait()

        def _send(
            self,
            status: int,
            body: bytes,
            kind: str,
            more: Mapping[str, str] | None = None,
            length: bool = True,
        ) -> None:
            sent = {"Content-Type": kind} | ({"Content-Length": str(len(body))} if length else {})
            sent |= {"RateLimit-Policy": '"minute";q=60;w=60', "RateLimit": '"minute";r=59;t=12'}
            self.send_response(status)
            for name, value in (sent | dict(more or {})).items():
                if not (status == 204 and name.startswith("Content-")):
                    self.send_header(name, value)
            with suppress(ConnectionError):  # who asked may have ended by what was asked for
                self.end_headers()
                self.wfile.write(body)

        def date_time_string(self, timestamp: float | None = None) -> str:
            return format_datetime(datetime.now(UTC) + runpod.clock_ahead, usegmt=True)

        def log_message(self, *_: object) -> None:
            pass

    return Handler


@contextmanager
def serving(**knobs: Any) -> Iterator[RunPod]:
    """A RunPod with an account of its own. It and its containers end with the block."""
    runpod = RunPod(**knobs)
    server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(runpod))
    server.daemon_threads = True
    runpod.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield runpod
    finally:
        runpod.closing.set()
        server.shutdown()
        server.server_close()
        thread.join()
        for pod in runpod.pods.values():
            pod.container.close()
