"""The container of a fake pod that runs what the request for the pod says: its end and its watchdog.

    started = Containers(runpod, tmp_path, MUSICGEN_END_MARGIN_S="0")
    runpod.containers = started

Each start has a folder of its own as its disk. The image's own start, /start.sh, is a stand-in that waits;
the request's environment is the first process's, and `variables` win over it. The end of a container is the
end of everything in it.
"""

import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from ops.runpod.container import IMAGE_START
from tests.fakes.runpod import Address, Pod, RunPod
from tests.remote.boxes import until

# So that a test does not wait for minutes.
QUICK = {
    "MUSICGEN_END_POLL_S": "0.1",
    "MUSICGEN_WATCHDOG_POLL_S": "0.1",
    "MUSICGEN_WATCHDOG_GRACE_S": "0",
}
_IMAGE = '#!/bin/sh\necho "start.sh of the image" \nexec sleep 600\n'


@dataclass
class Container:
    """One start. `console`: what its first process and those after it have printed."""

    folder: Path
    process: "subprocess.Popen[bytes] | None" = None

    @property
    def home(self) -> Path:
        """MUSICGEN_BOX_HOME."""
        return self.folder / "user" / ".musicgen"

    @property
    def console(self) -> str:
        return (self.folder / "console").read_text("utf-8")

    def read(self, name: str) -> str:
        """A file of MUSICGEN_BOX_HOME; empty if it is not there."""
        file = self.home / name
        return file.read_text("utf-8").strip() if file.exists() else ""

    def reach_deadline(self) -> None:
        """Once the watchdog knows its deadline, move that to now."""
        until(lambda: "watching; the deadline is" in self.console)
        (self.home / "deadline").write_text(f"{int(time.time()) - 1}\n", "utf-8")

    def end(self) -> None:
        """End whatever was started in it: all of one session."""
        if self.process is None:
            return
        for stat in Path("/proc").glob("[0-9]*/stat"):
            with suppress(OSError):
                if int(stat.read_text().rpartition(")")[2].split()[3]) == self.process.pid:
                    os.kill(int(stat.parent.name), signal.SIGKILL)
        self.process.wait()


@dataclass
class Containers:
    """For `RunPod.containers`: calls are starts. `path`: the programs of the image."""

    runpod: RunPod
    folder: Path
    variables: dict[str, str] = field(default_factory=dict)
    image: str = _IMAGE
    path: str = f"{Path(sys.executable).parent}:/usr/local/bin:/usr/bin:/bin"
    starts: list[Container] = field(default_factory=list)

    @contextmanager
    def __call__(self, pod: Pod) -> Iterator[Address]:
        own = Container(self.folder / f"{pod.id}-{pod.n_starts}")
        self.starts.append(own)
        (own.folder / "user").mkdir(parents=True)
        image_start = own.folder / "start.sh"
        if self.image:
            image_start.write_text(self.image, "utf-8")
            image_start.chmod(0o755)
        given = pod.environ() | {"RUNPOD_API_URL": self.runpod.url} | QUICK | self.variables
        environ, console = own.folder / "environ", own.folder / "console"
        environ.write_bytes(b"".join(f"{name}={value}\0".encode() for name, value in given.items()))
        places = {
            "PATH": self.path,
            "HOME": str(own.folder / "user"),
            "MUSICGEN_BOX_ROOT": str(own.folder / "workspace"),
            "MUSICGEN_WORKSPACE": str(own.folder / "workspace"),
            "MUSICGEN_PLATFORM_ENV": str(environ),
            "MUSICGEN_POD_ENVIRON": str(environ),
            "MUSICGEN_POD_CONSOLE": str(console),
        }
        with console.open("ab") as printed:
            own.process = subprocess.Popen(
                [str(image_start) if word == IMAGE_START else word for word in self.command(pod)],
                env=given | places,
                start_new_session=True,
                stdin=subprocess.DEVNULL,
                stdout=printed,
                stderr=printed,
            )
        try:
            yield "203.0.113.7", 40000 + pod.n_starts
        finally:
            own.end()

    def command(self, pod: Pod) -> list[str]:
        """What the container runs: what the request says, in either form, or only the image's own start."""
        if not self.runpod.runs_request(pod):
            return [IMAGE_START]
        if "args" in pod.request:
            return shlex.split(pod.request["args"])
        return [*pod.request["entrypoint"], *pod.request["cmd"]]
