"""`box_task` makes a function of fabfile.py a Fabric task whose first argument is the box.

A plain Fabric task without -H runs on the user's own machine; a box task never does. The tasks of one
`fab deploy install` share a connection. Connects to nothing by itself.
"""

import functools
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar, cast

import fabric
from fabric.executor import Executor
from fabric.main import program as fab
from fabric.util import get_local_user

from ops import boxes, clouds, mistyped, ui
from ops.boxes import Known
from ops.settings import Settings
from ops.ssh import address
from ops.ssh.address import Address
from ops.ssh.box import Box
from ops.ssh.moved import current_address

# The user that Fabric takes when -H has none, instead of the local login name.
NO_USER = "(RUNPOD_USER)"
CONFIG = {"user": NO_USER, "run": {"in_stream": False, "encoding": "utf-8"}}


class WithoutConnection(Executor):  # type: ignore[misc]
    """Runs tasks without Fabric's own connection: it would split -H in its own way, with a traceback."""

    def normalize_hosts(self, hosts: Any) -> Any:
        return super().normalize_hosts(hosts) if self.core.remainder else []


fab.executor_class = WithoutConnection
mistyped.explain(fab, "fab")
ui.quiet_libraries()  # before Fabric asks for passwords, which its configuration then holds

Body = TypeVar("Body", bound=Callable[..., Any])

_names: set[str] = set()
_boxes: dict[tuple[str, str, int], Box] = {}


def box_task(*, spends: bool = False, **options: Any) -> Callable[[Body], Body]:
    """`fabric.task` for a function whose first argument is a Box; errors become one line.

    `spends`: what the task starts costs money, so a misspelt setting is an error.
    """

    def decorate(body: Body) -> Body:
        @functools.wraps(body)  # Invoke reads name, help text and flags through it
        def task(context: Any, *args: Any, **kwargs: Any) -> Any:
            return ui.one_line_errors(lambda: body(_box(context, spends), *args, **kwargs))()

        # No short flags: Fabric accepts its own -H, -i, -S and -t after a task, too.
        made = fabric.task(auto_shortflags=False, **options)(task)
        _names.add(made.name.replace("_", "-"))
        return cast(Body, made)

    return decorate


def refuse_task_as_box() -> None:
    """End with one line if -H took the only task for a box: an empty variable, as in `-H $EMPTY status`."""
    core = getattr(fab, "core", None)  # absent where fab does not run, as in a test
    if core and not core.unparsed and _dash_h() in _names:
        ui.one_line_errors(lambda: address.given(_dash_h(), _names))()


def _dash_h() -> str:
    """The value of -H."""
    return str(fab.core[0].args.hosts.value or "")


def _box(context: Any, spends: bool) -> Box:
    settings = Settings.load(spends=spends)
    found = address.find(_given(context, settings), settings, ui.warn)
    link = _link(found, settings, context.config)
    key = (link.user, link.host, link.port)
    if key not in _boxes:
        _boxes[key] = _opened(found, link, settings)
    return _boxes[key]


def box_of(known: Known, settings: Settings) -> Box:
    """A rented box, for a task that is not one of fab's. Connects at its first command."""
    found = address.of_box(known)
    found = replace(found, key_file=found.key_file or settings.ssh_key)
    return _opened(found, _link(found, settings, fabric.Config(overrides=CONFIG)), settings)


def _opened(found: Address, link: fabric.Connection, settings: Settings) -> Box:
    known = boxes.load(found.id) if found.id and found.may_move else None
    look_up = functools.partial(current_address, known, settings) if known else lambda: None
    return Box(link, _pin_file(found, link), ui.say, look_up)


def _given(context: Any, settings: Settings) -> Address | None:
    """The box of -H, an id or an address, with what is known of it; None without -H."""
    given = address.given(_dash_h(), _names)
    if given and (known := clouds.by_id(_dash_h().strip(), settings)):
        return address.of_box(known)
    if given is None:
        return None
    # Without a port, that of ~/.ssh/config if the host is in it.
    port = given.port or fabric.Connection(given.host, config=context.config).port
    if known := boxes.find(given.host, port):
        given = replace(given, id=known.id, key_file=known.key_file)
    return given


def _link(found: Address, settings: Settings, config: Any) -> fabric.Connection:
    keys = {"key_filename": [str(Path(found.key_file).expanduser())]} if found.key_file else {}
    link = fabric.Connection(found.host, found.user, found.port, config=config, connect_kwargs=keys)
    if link.user == NO_USER:
        link.user = settings.runpod_user
    link.gateway = gateway(link)
    return link


def gateway(link: fabric.Connection) -> Any:
    """What the connection goes through by ~/.ssh/config: a jump host, a ProxyCommand, or None.

    Fabric takes `ProxyJump none` for a host, and visits several jump hosts in the wrong order.
    """
    jumps = link.ssh_config.get("proxyjump")
    if not jumps or jumps.lower() == "none":
        return None if jumps else link.gateway
    found = None
    for name in jumps.split(","):
        hop = fabric.Connection(name.strip(), config=link.config.clone(), gateway=found)
        if hop.host == link.host:  # the jump host itself, which `Host *` matches
            return None
        if hop.user == NO_USER:
            hop.user = get_local_user()
        if found is None:
            hop.gateway = gateway(hop)
        found = hop
    return found


def _pin_file(found: Address, link: fabric.Connection) -> Path:
    known = boxes.find(link.host, link.port)
    # By box, not by address: RunPod gives the same port to one pod after another.
    name = found.id or (known.id if known else f"{link.host}_{link.port}".replace(":", "_"))
    return boxes.folder_of(name.replace(":", "_").lstrip("_")) / "known_hosts"
