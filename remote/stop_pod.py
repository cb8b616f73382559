#!/usr/bin/env python3
"""Stop this pod, so that its GPU is not paid for any more: MUSICGEN_STOP_HOOK of a pod of RunPod.

    remote/stop_pod.py [--limit-s 280] [--settle-s 45] [--pause-s 15]

Asks RunPod's API, then runpodctl, again and again: it has worked only when this process is gone with its
container, and `accepted` is not that. After the limit it says STILL BILLING, in the run's log and on the
container's console, which RunPod keeps. The pod's id and its own API key come from the environment of the
container's first process (MUSICGEN_POD_ENVIRON, default /proc/1/environ): no worker has them. The key goes to
RunPod in a header and to runpodctl in its environment, never into an argument or a line.
Exit code: 1 still on, 2 not a pod. Needs Python 3.8 and its standard library only.
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import shutil
import subprocess
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
from typing import NamedTuple

API = "https://api.runpod.io"
# stop_hook.sh ends a hook after 300 s.
LIMIT_S, SETTLE_S, PAUSE_S = 280.0, 45.0, 15.0
_ANSWER_S = 30.0
# The API's own, then that of binaries from before its second version.
_RUNPODCTL = (("pod", "stop"), ("stop", "pod"))


class Pod(NamedTuple):
    """This pod, and where and as whom it asks for its end."""

    id: str
    key: str
    api: str


class Tried(NamedTuple):
    """How one way ended. `pause_s`: so long RunPod wants to be left alone."""

    accepted: bool
    how: str
    pause_s: float = 0.0


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """urllib would send the key along."""

    def redirect_request(self, *_: object) -> None:
        return None


def environment_of_container() -> dict[str, str]:
    """The variables that RunPod gave the container, over those of this process."""
    values = dict(os.environ)
    try:
        with open(os.environ.get("MUSICGEN_POD_ENVIRON", "/proc/1/environ"), "rb") as file:  # noqa: PTH123
            content = file.read().decode(errors="replace")
    except OSError:
        return values
    for line in content.split("\0"):
        name, equals, value = line.partition("=")
        if equals and name.startswith("RUNPOD_"):
            values[name] = value
    return values


def this_pod(values: dict[str, str]) -> Pod | None:
    """The pod that these variables describe; None if they describe none."""
    pod_id, key = values.get("RUNPOD_POD_ID", ""), values.get("RUNPOD_API_KEY", "")
    api = values.get("RUNPOD_API_URL") or API
    return Pod(pod_id, key, api.rstrip("/")) if pod_id and key else None


def by_api(pod: Pod, limit_s: float) -> Tried:
    """Ask RunPod's API to stop the pod."""
    parts = urllib.parse.urlsplit(pod.api)
    if parts.scheme != "https" and parts.hostname not in ("127.0.0.1", "localhost", "::1"):
        return Tried(False, "RunPod's API: RUNPOD_API_URL would send the key unencrypted")
    headers = {
        "Authorization": "Bearer " + pod.key,
        "Content-Type": "application/json",
        "User-Agent": "musicgen-batch-worker",  # without one of its own, a program is answered 403
    }
    url = "{}/v2/pods/{}/action".format(pod.api, urllib.parse.quote(pod.id, safe=""))
    try:
        request = urllib.request.Request(url, b'{"action": "stop"}', headers, method="POST")  # noqa: S310
        opener = urllib.request.build_opener(_NoRedirect)
        with opener.open(request, timeout=max(1.0, min(_ANSWER_S, limit_s))) as answer:
            json.loads(answer.read())  # a proxy's page would be a success, too
        return Tried(True, "RunPod's API: accepted")
    except urllib.error.HTTPError as error:
        try:
            pause_s = float(error.headers.get("Retry-After", ""))
        except ValueError:
            pause_s = 0.0
        return Tried(False, f"RunPod's API: {error.code}", pause_s)
    except ValueError:
        return Tried(False, "RunPod's API: an answer that is none")
    except (OSError, http.client.HTTPException) as error:
        return Tried(False, f"RunPod's API: {type(error).__name__}")


def by_runpodctl(pod: Pod, limit_s: float) -> Tried:
    """Ask RunPod's own program, in each form that it has had; all of them within the limit."""
    end = time.monotonic() + limit_s
    program = shutil.which("runpodctl")
    if program is None:
        return Tried(False, "runpodctl: not installed")
    env = dict(os.environ, RUNPOD_API_KEY=pod.key)
    ends = []
    for words in _RUNPODCTL:
        try:
            ran = subprocess.run(
                [program, *words, pod.id],
                env=env,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,  # it might print the key
                stderr=subprocess.DEVNULL,
                timeout=max(1.0, min(_ANSWER_S, end - time.monotonic())),
            )
        except (OSError, subprocess.SubprocessError) as error:
            ends.append(type(error).__name__)
            continue
        if ran.returncode == 0:
            return Tried(True, "runpodctl {}: accepted".format(" ".join(words)))
        ends.append(f"exit code {ran.returncode}")
    return Tried(False, "runpodctl: {}".format(", ".join(ends)))


def stop(pod: Pod, limit_s: float, settle_s: float, pause_s: float) -> str:
    """Try until the limit; -> how the last try ended. Does not return when it works."""
    end = time.monotonic() + limit_s
    how = ""
    while True:
        rest_s, how = pause_s, ""
        for way in (by_api, by_runpodctl):
            tried = way(pod, end - time.monotonic())
            how = "; ".join(filter(None, [how, tried.how]))
            print(f"{now()} {tried.how}", flush=True)
            if tried.accepted:
                wait(settle_s, end)
            rest_s = max(rest_s, tried.pause_s)
        if end - time.monotonic() <= 0:
            return how
        wait(rest_s, end)


def wait(seconds: float, end: float) -> None:
    """Sleep, at most until the end."""
    time.sleep(max(0.0, min(seconds, end - time.monotonic())))


def now() -> str:
    """The time of day, UTC."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())


def cry(text: str) -> None:
    """Say it where somebody looks when a bill comes: here, in the run's log, on the container's console."""
    line = f"--- {now()} STILL BILLING: {text}\n"
    sys.stderr.write(line)
    sys.stderr.flush()
    root = os.environ.get("MUSICGEN_BOX_ROOT", "/workspace/musicgen")
    console = os.environ.get("MUSICGEN_POD_CONSOLE", "/proc/1/fd/1")
    for path in (root + "/state/current/log", console):
        try:
            target = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_NONBLOCK)
        except OSError:
            continue  # no run yet, or no such console
        try:
            os.write(target, line.encode())
        except OSError:
            pass
        finally:
            os.close(target)


def main() -> int:
    """Stop the pod, or say that it is still on."""
    parser = argparse.ArgumentParser(description="Stop this pod of RunPod.")
    parser.add_argument("--limit-s", type=float, default=LIMIT_S, help="try for so long")
    parser.add_argument("--settle-s", type=float, default=SETTLE_S, help="wait so long for an accepted stop")
    parser.add_argument("--pause-s", type=float, default=PAUSE_S, help="wait so long between two tries")
    given = parser.parse_args()
    pod = this_pod(environment_of_container())
    if pod is None:
        cry("this is no pod of RunPod's, or its key was not found (RUNPOD_POD_ID, RUNPOD_API_KEY); stop it")
        return 2
    how = stop(pod, given.limit_s, given.settle_s, given.pause_s)
    cry(f"pod {pod.id} was not stopped within {given.limit_s:g} s ({how}); stop it in RunPod's console")
    return 1


if __name__ == "__main__":
    sys.exit(main())
