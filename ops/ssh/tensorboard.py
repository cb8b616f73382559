"""A training's curves in the browser: TensorBoard on the box's loopback, led to a port of this machine.

It goes on across lost connections, and ends on the box when it ends here. Once the box is gone, the logs that
were fetched are shown by a TensorBoard on this machine. Neither can be reached from another machine.
"""

import importlib.util
import os
import socket
import subprocess
import sys
import time
import webbrowser
from contextlib import suppress
from pathlib import Path

from ops import ui
from ops.interrupts import remembered
from ops.ssh.attended import Attended
from ops.ssh.box import Box
from ops.ssh.link import LinkLost, NoAnswer
from ops.ssh.reconnect import BoxGone, Reconnection
from ops.ssh.tunnel import LOOPBACK, Tunnel
from worker.errors import BadInput, UserError

# Where everything that is fetched goes.
FETCHED = Path("out")
_EVENTS = "events.out.tfevents.*"
# What TensorBoard prints when it answers, and remote/tensorboard.sh before that.
_ADDRESS = r"TensorBoard [\w.]+ at http://[^/\s]*:(\d+)/"
_NOTE = "note: "
_READY_S = 120
# Without one of them, a browser on Linux would be one in this terminal.
_GRAPHICAL = {"BROWSER", "DISPLAY", "WAYLAND_DISPLAY"}
_POLL_S = 0.2


def show(box: Box, logs: str, port: int, *, browse: bool) -> None:
    """Show the newest training's curves, or those in the folder `logs` of the box, until Ctrl-C.

    Raises BadInput for a port that is taken, UserError where there is nothing to show.
    """
    if not 0 < port < 65536:
        raise BadInput(f"--port {port} is not a port; write a number from 1 to 65535")
    try:
        with remembered(), Tunnel(box, port) as tunnel:
            _show_from_box(box, logs, tunnel, browse)
    except (NoAnswer, BoxGone) as gone:
        _show_fetched(gone, port, browse)
    except KeyboardInterrupt:
        ui.say("\nTensorBoard has ended; a training keeps running")


def _show_from_box(box: Box, logs: str, tunnel: Tunnel, browse: bool) -> None:
    reconnection, shown = Reconnection(box, ui.say, "showing"), False
    while True:
        try:
            with Attended(box, "tensorboard.sh", *[logs] * bool(logs)) as served:
                tunnel.target = int(served.wait_for(_ADDRESS, _READY_S)[1])
                reconnection.tries = 0
                if not shown:
                    for line in served.printed.splitlines():
                        if line.startswith(_NOTE):
                            ui.say(line.removeprefix(_NOTE).strip())
                    _open(tunnel.port, browse)
                    shown = True
                while not served.ended:
                    time.sleep(_POLL_S)
                raise served.problem()
        except (LinkLost, NoAnswer) as error:
            if isinstance(error, NoAnswer) and not shown:
                raise
            tunnel.target = None
            reconnection.wait(error, "to TensorBoard")


def _show_fetched(gone: UserError, port: int, browse: bool) -> None:
    """Serve the event files that are here, until Ctrl-C."""
    if not any(FETCHED.rglob(_EVENTS)):
        raise gone
    if importlib.util.find_spec("tensorboard") is None:
        raise UserError(
            f"{gone}; its fetched logs are in {FETCHED}, and there is no TensorBoard here to show them: "
            f"uv run --with tensorboard tensorboard --logdir {FETCHED}"
        )
    ui.say(f"{gone}; showing the logs that were fetched into {FETCHED}")
    words = ["-m", "tensorboard.main", "--logdir", str(FETCHED), "--host", LOOPBACK, "--port", str(port)]
    with subprocess.Popen([sys.executable, *words], stderr=subprocess.DEVNULL) as process:
        try:
            until_s = time.monotonic() + _READY_S
            while not _answers(port):
                if process.poll() is not None or time.monotonic() > until_s:
                    raise UserError(
                        "TensorBoard does not start here; see why: " + " ".join(["python", *words])
                    )
                time.sleep(_POLL_S)
            _open(port, browse)
            process.wait()
        except KeyboardInterrupt:
            ui.say("\nTensorBoard has ended")
        finally:
            process.terminate()


def _answers(port: int) -> bool:
    with suppress(OSError), socket.create_connection((LOOPBACK, port), 1):
        return True
    return False


def _open(port: int, browse: bool) -> None:
    address = f"http://{LOOPBACK}:{port}/"
    ui.say(f"TensorBoard: {address} (Ctrl-C ends it)")
    if browse and (sys.platform != "linux" or os.environ.keys() & _GRAPHICAL):
        with suppress(webbrowser.Error):
            webbrowser.open(address)
