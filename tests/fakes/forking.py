"""What parents that fork a child for each request share: the loop that forks, and how a child ends."""

import os
import select
import signal
import socket
import sys
import traceback
from collections.abc import Callable
from typing import NoReturn


def fork_for_each(listener: socket.socket, mind: Callable[[socket.socket], object]) -> None:
    """A child that `mind`s each connection, until stdin ends, as it does however the tests end."""
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for the forks
    while 0 not in select.select([0, listener.fileno()], [], [])[0]:
        line, _ = listener.accept()
        if os.fork() == 0:
            mind(line)
        line.close()


def end_with(run: Callable[[], object]) -> NoReturn:
    """Run it, and end this process with the exit code that Python would give, and nothing of the parent's."""
    code = 1
    try:
        run()
        code = 0
    except SystemExit as ended:
        code = ended.code if isinstance(ended.code, int) else int(ended.code is not None)
    except BaseException:
        traceback.print_exc()
    finally:
        try:
            sys.stdout.flush()
        finally:
            os._exit(code)
