"""What runs in a fake pod: a box of tests/fakes/box.py, whose disk is empty at each start of the container.

    runpod.containers = containers(runpod, tmp_path)
    runpod.containers = containers(runpod, tmp_path, FakeBox.bring_torch, MUSICGEN_FLOORS_GB="")

It accepts the pod's PUBLIC_KEY, has a host key of its own at each start, which the container's log names as
RunPod's start.sh does, and keeps MUSICGEN_BOX_ROOT only on a network volume. The platform's variables are in
the file that MUSICGEN_PLATFORM_ENV and MUSICGEN_POD_ENVIRON name; `more` win over them. The pod's entrypoint
is not run (tests/fakes/pod_start.py does); where an image obeys the request, this process is its timer.
"""

import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

from tests.fakes import box
from tests.fakes.box import FakeBox
from tests.fakes.runpod import Address, Pod, RunPod


def containers(
    runpod: RunPod, folder: Path, image: Callable[[FakeBox], None] = lambda box: None, **more: str
) -> Callable[[Pod], AbstractContextManager[Address]]:
    """For `RunPod.containers`: boxes in this folder, with what `image` brings. Skips where one cannot be."""

    @contextmanager
    def container(pod: Pod) -> Iterator[Address]:
        own = folder / f"{pod.id}-{pod.n_starts}"
        disk = folder / pod.volume if pod.volume else own / "workspace"
        environ = own / "environ"
        variables = {
            "MUSICGEN_BOX_ROOT": str(disk / "musicgen"),
            "MUSICGEN_WORKSPACE": str(disk),
            "MUSICGEN_PLATFORM_ENV": str(environ),
            "MUSICGEN_POD_ENVIRON": str(environ),
            "MUSICGEN_POD_CONSOLE": str(own / "console"),
            **more,
        }
        with box.serving(own, variables) as served:
            image(served)
            pod.address = (served.host, served.port)
            given = pod.environ() | {"RUNPOD_API_URL": runpod.url}
            environ.write_bytes(b"".join(f"{name}={value}\0".encode() for name, value in given.items()))
            (own / "console").touch()
            if runpod.runs_request(pod):
                (served.box_home / "boot").mkdir(parents=True)
                (served.box_home / "boot" / "timer").write_text(f"{os.getpid()}\n")
            with (own / "authorized_keys").open("a", encoding="utf-8") as keys:
                keys.write(f"{given.get('PUBLIC_KEY', '')}\n")
            pod.log("container", "Pod Started", "SSH host keys:", *_host_key(own), "Start script(s) finished")
            yield pod.address
        shutil.rmtree(own)

    return container


def _host_key(folder: Path) -> list[str]:
    public = str(folder / "host_key.pub")
    listed = subprocess.run(["ssh-keygen", "-lf", public], capture_output=True, text=True, check=True)
    return [f"Key: {public}", listed.stdout.strip()]
