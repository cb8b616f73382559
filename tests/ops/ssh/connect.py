"""A `Box` connected to the stand-in, or to a bad link to it."""

from contextlib import contextmanager

import fabric

from ops import release
from ops.repository import ROOT
from ops.ssh import ship
from ops.ssh.box import Box

SCRIPTS = {f"remote/{path.name}": path.read_bytes() for path in (ROOT / "remote").iterdir() if path.is_file()}


def opened(box, folder, port=None, report=lambda text: None, host=None, look_up=lambda: None, named=None):
    """A Box that connects at its first command; its pin lies in `folder`. `named`: the key files."""
    user = box.address.rpartition("@")[0] or None
    files = [box.key_file] if named is None else named
    keys = {"key_filename": [str(file) for file in files]}
    link = fabric.Connection(host or box.host, user, port or box.port, connect_kwargs=keys)
    return Box(link, folder / "pins" / "known_hosts", report, look_up)


@contextmanager
def connected(box, folder, port=None, report=lambda text: None):
    """`opened`, and closed at the end."""
    conn = opened(box, folder, port, report)
    try:
        yield conn
    finally:
        conn.close()


def configured(text):
    """Fabric's configuration with this ~/.ssh/config."""
    made = fabric.Config(lazy=True)
    made.base_ssh_config.parse(text.splitlines())
    return made


@contextmanager
def deployed(box, folder, more=()):
    """`connected`, to a box with our scripts and these files of the release."""
    with connected(box, folder) as conn:
        ship.send(conn, release.bundle(SCRIPTS | {"prompts.txt": b"rain ; 1 ; rain\n"} | dict(more)))
        yield conn
