"""Look again and again until Ctrl-C, also across a lost connection."""

import time
from collections.abc import Callable

from ops import ui
from ops.ssh.box import LinkLost, NoAnswer

PAUSE_S = 2.0


def again(show: Callable[[], None], watch: bool) -> None:
    """Show once; with `watch`, every PAUSE_S until Ctrl-C."""
    if not watch:
        show()
        return
    try:
        while True:
            try:
                show()
            except (LinkLost, NoAnswer) as error:
                ui.say(f"{error}; trying again")
            time.sleep(PAUSE_S)
    except KeyboardInterrupt:
        return


def lines(new: Callable[[int], list[str]]) -> None:
    """Print every line that `new` gives after those it gave before, until Ctrl-C."""
    n_seen = 0

    def show() -> None:
        nonlocal n_seen
        found = new(n_seen)
        n_seen += len(found)
        ui.pour("".join(f"{line}\n" for line in found).encode())

    again(show, watch=True)
