"""RunPod as one of the clouds (ops/cloud.py). What it is asked needs urllib3, which is loaded only then."""

import re
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from ops.cloud import Doomed, Ended, Inventory, Located, Tell
from ops.settings import Settings

if TYPE_CHECKING:
    from ops.runpod.api import RunPod

_LOG_LINES = 5000


class Pods:
    """This project's pods on RunPod, and any other that is named by its id."""

    name = "RunPod"
    kind = "runpod"
    has_regions = False

    def owns(self, text: str) -> bool:
        """True for 14 small letters and digits, which every pod's id is."""
        return re.fullmatch(r"[a-z0-9]{14}", text) is not None

    def may_be_host(self, text: str) -> bool:
        """True where no digit is before a letter, as in `workstation001` and 1.7 % of the ids."""
        return re.search(r"[0-9][a-z]", text) is None

    def locate(self, settings: Settings, machine: str, region: str | None = None) -> Located | None:
        """The pod of this id."""
        from ops.runpod import pods

        pod = _account(settings, "locate").pod(machine)
        if pod is None or pod.status == "TERMINATED":
            return None
        return Located(pod.status.lower(), pods.known(pod, settings.ssh_key))

    def not_set_up(self, settings: Settings) -> str:
        """Whether there is a key; what is wrong with it, an answer says."""
        return "" if settings.runpod_api_key else "RUNPOD_API_KEY is not set"

    def inventory(self, settings: Settings, region: str, tell: Tell) -> Inventory:
        """Pods and the network volumes that they have, or that are set, or named as this project's."""
        from ops.runpod import fleet

        return fleet.inventory(_account(settings, "status"), settings, datetime.now(UTC))

    def doomed(self, settings: Settings, region: str, tell: Tell) -> Doomed:
        """Pods, stopped ones, too. Network volumes stay: songs and weights are on them."""
        from ops.runpod import fleet

        return fleet.doomed(_account(settings, "kill-all"), settings.runpod_volume_id)

    def end_all(self, settings: Settings, region: str, tell: Tell) -> Ended:
        """Terminate every pod, until three lists in a row have none."""
        from ops.runpod import ending, fleet

        runpod = _account(settings, "kill-all")
        done = ending.terminate(runpod, None, tell)
        left = fleet.nothing_left(runpod, settings.runpod_volume_id)
        return Ended(len(done.ended), left, done.failures())

    def runs(self, settings: Settings, output: str, tell: Tell) -> dict[str, str]:
        """Of the pods whose run has sent its status: RunPod does not know what a pod was sent over SSH."""
        from ops import heartbeats
        from ops.runpod import pods
        from worker.store.open import open_store

        if not (there := {pod.id for pod in pods.ours(_account(settings, "logs"))}):
            return {}
        beats = heartbeats.by_host(open_store(output))
        return {beat.run_id: beat.host for beat in beats.values() if beat.host in there}

    def console(self, settings: Settings, machine: str) -> str:
        """The log of its container; before there is one, that of the machine which starts it."""
        runpod = _account(settings, "logs")
        for source in ("container", "system"):
            if lines := runpod.log(machine, source, _LOG_LINES):
                return "\n".join(line.text for line in lines)
        return ""


def _account(settings: Settings, task: str) -> "RunPod":
    from ops import ui
    from ops.runpod.api import RunPod

    return RunPod.of(settings, task, ui.say)
