"""Look again and again until Ctrl-C, also across a lost connection."""

import time
from collections.abc import Callable

from ops import ui
from ops.interrupts import remembered
from ops.ssh.box import LinkLost, NoAnswer

PAUSE_S = 2.0


def again(show: Callable[[], None], watch: bool) -> None:
    """Show once; with `watch`, every PAUSE_S until Ctrl-C."""
    if not watch:
        show()
        return
    try:
        with remembered() as check:
            while True:
                try:
                    show()
                except (LinkLost, NoAnswer) as error:
                    ui.say(f"{error}; trying again")
                check()
                time.sleep(PAUSE_S)
    except KeyboardInterrupt:
        return


def lines(new: Callable[[], list[str]]) -> None:
    """Print the lines that `new` gives, again and again, until Ctrl-C."""
    again(lambda: ui.pour("".join(f"{line}\n" for line in new()).encode()), watch=True)
