"""RunPod's REST API v2: one method for each call that this program makes, with typed answers.

    runpod = RunPod.of(Settings.load(), "pod.list", ui.say)
    for pod in runpod.pods():
        ...

Whatever changes something is in the audit log, before and after. Every error is a UserError of one line
(ops/runpod/errors.py). Decides nothing: which pod, at which price and what to do next is for others.
Source: RunPod's OpenAPI document of v2; what of it is used is checked by tests/fakes/runpod.py.
"""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any

from ops.audit import AuditLog
from ops.runpod import errors
from ops.runpod.calls import Calls, Tell, at
from ops.runpod.errors import ApiError
from ops.runpod.http import Clock, Http
from ops.runpod.types import DataCenter, GpuType, LogLine, Pod, PodBill, Volume
from ops.settings import Settings
from worker.errors import BadInput
from worker.timestamps import stamp

# This project's pods are known by their names: RunPod cannot tag one as it is made.
PREFIX = "musicgen-"


class RunPod:
    """One account. Not safe to share between threads."""

    def __init__(self, http: Http, audit: AuditLog, tell: Tell) -> None:
        self.http, self._audit, self._tell = http, audit, tell
        self._calls = Calls(http, audit, tell)
        self._warned = set[str]()  # pods that cannot be read

    @classmethod
    def of(cls, settings: Settings, task: str, tell: Tell, clock: Clock | None = None) -> "RunPod":
        """The account of the settings. Raises BadInput without a key; uses no network."""
        if settings.runpod_api_key is None:
            raise BadInput(f"RUNPOD_API_KEY is not set; make one under {errors.KEYS} and set it in .env")
        secrets = settings.secrets()
        audit = AuditLog(path=settings.audit_file, actor="RunPod API key", task=task, secrets=secrets)
        return cls(Http(settings.runpod_api_key, settings.runpod_api_url, clock, secrets), audit, tell)

    # --- what there is to rent

    def gpu_types(self, cloud: str, min_cuda: str = "") -> list[GpuType]:
        """Every GPU type with its list price, and its stock in that cloud (SECURE, COMMUNITY) now."""
        query = {"include": "AVAILABILITY", "product": "POD", "count": "1", "cloud": cloud}
        query |= {"minCudaVersion": min_cuda} if min_cuda else {}
        return self._calls.listed("/v2/catalog/gpus", "gpus", "list GPU types", GpuType.of, query)

    def data_centers(self) -> list[DataCenter]:
        """Every data centre."""
        return self._calls.listed(
            "/v2/catalog/datacenters", "dataCenters", "list data centres", DataCenter.of
        )

    # --- pods

    def pods(self) -> list[Pod]:
        """Every pod of the account, also those of others. A new one may be missing for a while.

        One that cannot be read hides no other; if it is this project's, that is said.
        """
        found = self._calls.listed("/v2/pods", "pods", "list pods", Pod.readable)
        for pod in found:
            if pod.unread and pod.name.startswith(PREFIX) and pod.id not in self._warned:
                self._warned.add(pod.id)
                self._tell(
                    f"warning: what RunPod says of pod {pod.id} ({errors.one_line(pod.name)}) cannot be read "
                    f"({', '.join(pod.unread)}); it may be billed until: inv pod.terminate --pod {pod.id}"
                )
        return found

    def pod(self, pod_id: str, *, whole: bool = True) -> Pod | None:
        """The pod; None if RunPod does not know it, which soon after its creation proves nothing.

        `whole`: raise ApiError where a part of it cannot be read.
        """
        of = Pod.of if whole else Pod.readable
        try:
            return self._calls.one("GET", at("pods", pod_id), f"show pod {pod_id}", of)
        except ApiError as error:
            if error.status == 404:
                return None
            raise

    def create_pod(self, request: Mapping[str, Any]) -> Pod:
        """Make one pod, and return it although the answer was lost.

        After a fault its name is looked for until RunPod's lists must have it, so it must be no other pod's:
        RunPod itself would take it twice. Raises ApiError if there is none, which says so, or if that could
        not be learnt. Ctrl-C must be held back around it (ops/interrupts.py), else a pod may be left that
        nobody knows.
        """
        name = str(request["name"])
        if any(pod.name == name for pod in self.pods()):
            raise BadInput(f"there is a pod {name} already; terminate it, or give the new one another name")
        with self._audit.action("runpod.create_pod", _without_scripts(request)) as done:
            try:
                pod = self._calls.one("POST", "/v2/pods", "create a pod", Pod.of, request, again=False)
            except ApiError as error:
                if not error.may_have_acted:
                    raise
                pod = self._calls.made(name, lambda: [pod for pod in self.pods() if pod.name == name], error)
            done(_brief(pod))
        return pod

    def change_pod(self, pod_id: str, changes: Mapping[str, Any]) -> Pod:
        """Change the named fields; `env` replaces the whole environment. A running container is restarted."""
        what = f"change pod {pod_id}"
        with self._audit.action("runpod.change_pod", {"id": pod_id} | _without_scripts(changes)) as done:
            pod = self._calls.one("PATCH", at("pods", pod_id), what, Pod.of, changes)
            done(_brief(pod))
        return pod

    def start(self, pod_id: str) -> Pod:
        """Start a stopped pod; 400 or 409 if it cannot be, as when its host has no free GPU."""
        return self._act(pod_id, "start", again=False)

    def stop(self, pod_id: str) -> Pod:
        """Ask for the pod to stop: its GPU is released and its container's disk is lost. Does not wait."""
        return self._act(pod_id, "stop", ends=True)

    def _act(self, pod_id: str, action: str, *, again: bool = True, ends: bool = False) -> Pod:
        path = f"{at('pods', pod_id)}/action"
        what, of = f"{action} pod {pod_id}", Pod.readable if ends else Pod.of
        with self._audit.action(f"runpod.{action}_pod", {"id": pod_id}, ends=ends) as done:
            pod = self._calls.one("POST", path, what, of, {"action": action}, again=again)
            done(_brief(pod))
        return pod

    def terminate(self, pod_id: str) -> None:
        """Ask for the pod to be deleted, with all that is not on a network volume. Does not wait.

        Succeeds where RunPod does not know it: that it is gone is for a list to prove.
        """
        self._calls.delete("runpod.terminate_pod", at("pods", pod_id), pod_id, f"terminate pod {pod_id}")

    def log(self, pod_id: str, source: str, tail: int = 100, after: str = "") -> list[LogLine]:
        """The last lines of a log (container, system), or all after the line with that id; at most 5000."""
        query = {"source": source, "tail": str(min(tail, 5000))}
        path, what = f"{at('pods', pod_id)}/logs", f"show the log of pod {pod_id}"
        return list(_log_lines(self.http.events(path, what, query, after), self.http.hide))

    # --- volumes and bills

    def volumes(self) -> list[Volume]:
        """Every network volume of the account."""
        path, what = "/v2/network-volumes", "list network volumes"
        return self._calls.listed(path, "networkVolumes", what, Volume.of)

    def create_volume(self, name: str, size_gb: int, data_center: str) -> Volume:
        """Make a network volume, which costs money until it is deleted; return it as `create_pod` does."""
        request = {"name": name, "size": size_gb, "dataCenter": data_center}
        before = {volume.id for volume in self.volumes()}  # another one may have this name

        def new() -> list[Volume]:
            return [volume for volume in self.volumes() if volume.name == name and volume.id not in before]

        with self._audit.action("runpod.create_volume", request) as done:
            path, what = "/v2/network-volumes", "create a network volume"
            try:
                volume = self._calls.one("POST", path, what, Volume.of, request, again=False)
            except ApiError as error:
                if not error.may_have_acted:
                    raise
                volume = self._calls.made(f"network volume {name}", new, error)
            done({"id": volume.id})
        return volume

    def delete_volume(self, volume_id: str) -> None:
        """Delete a network volume with everything on it."""
        what = f"delete network volume {volume_id}"
        self._calls.delete("runpod.delete_volume", at("network-volumes", volume_id), volume_id, what)

    def pod_bills(self, since: datetime, pod_id: str = "") -> list[PodBill]:
        """What each pod, or one, was billed with since then, by the hour. The last hours come late."""
        query = {"bucketSize": "hour", "startTime": stamp(since)} | ({"podId": pod_id} if pod_id else {})
        return self._calls.listed("/v2/billing/pods", "records", "show the pods' bills", PodBill.of, query)


def _log_lines(events: Iterator[tuple[str, str]], hide: Callable[[str], str]) -> Iterator[LogLine]:
    for event_id, data in events:
        try:
            found = json.loads(data)
            yield LogLine(event_id or str(found["ts"]), str(found["source"]), hide(str(found["line"])))
        except (KeyError, TypeError, ValueError):
            continue  # a comment or half a line is no reason to lose the others


def _without_scripts(request: Mapping[str, Any]) -> dict[str, Any]:
    """For the audit log: of the container's command only the checksum, of its environment only the names."""
    shown = dict(request)
    for name in ("args", "cmd", "entrypoint"):
        if name in shown:
            shown[name] = json.dumps(shown[name]).encode()
    if "env" in shown:
        shown["env"] = sorted(shown["env"])
    return shown


def _brief(pod: Pod) -> dict[str, Any]:
    shown: Sequence[str] = ("id", "name", "status", "gpu", "cloud", "data_center", "usd_per_hour")
    return {name: getattr(pod, name) for name in shown}
