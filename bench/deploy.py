"""Time a deploy of many small files over a slow connection. Prints one JSON line.

    python -m bench.deploy [--files 500] [--delay-ms 40]

Runs a real OpenSSH server on loopback, behind a proxy that delays every byte by `delay-ms` in each
direction. The time includes connecting, key exchange and login. Needs sshd and tmux, no GPU.
"""

import argparse
import json
import random
import sys
import tempfile
import time
from pathlib import Path

import fabric

from ops.release import bundle
from ops.ssh import ship
from ops.ssh.box import Box
from tests.fakes import box as boxes
from tests.fakes.proxy import proxying


def main() -> int:
    """Deploy a tree twice, the second time unchanged, each over a new connection."""
    parser = argparse.ArgumentParser(description="Time a deploy over a slow connection.")
    parser.add_argument("--files", type=int, default=500)
    parser.add_argument("--delay-ms", type=float, default=40.0)
    arguments = parser.parse_args()

    rng = random.Random(1)
    contents = {
        f"worker/part_{n}.py": rng.randbytes(rng.randrange(200, 6000)) for n in range(arguments.files)
    }
    contents["requirements/worker.txt"] = b""
    shipped = bundle(contents)
    seconds = []
    with (
        tempfile.TemporaryDirectory() as folder,
        boxes.serving(Path(folder) / "box") as served,
        proxying(served.port) as link,
    ):
        link.delay_s = arguments.delay_ms / 1000
        for _ in range(2):
            keys = {"key_filename": [str(served.key_file)]}
            user = served.address.rpartition("@")[0] or None
            connection = fabric.Connection(served.host, user, link.port, connect_kwargs=keys)
            box = Box(connection, Path(folder) / "known_hosts", lambda text: None)
            began = time.monotonic()
            ship.send(box, shipped)
            seconds.append(round(time.monotonic() - began, 2))
            box.close()
    result = {
        "files": arguments.files,
        "megabytes": round(shipped.n_bytes / 1e6, 2),
        "round_trip_ms": 2 * arguments.delay_ms,
        "first_s": seconds[0],
        "again_s": seconds[1],
    }
    print(json.dumps(result))
    return 0


if __name__ == "__main__":
    sys.exit(main())
