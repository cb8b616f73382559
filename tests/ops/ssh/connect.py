"""A `Box` connected to the stand-in, or to a bad link to it."""

from contextlib import contextmanager

import fabric

from ops.ssh.box import Box


def opened(box, folder, port=None, report=lambda text: None, host=None, new_host=lambda: None):
    """A Box that connects at its first command; its pin lies in `folder`."""
    user = box.address.rpartition("@")[0] or None
    keys = {"key_filename": [str(box.key_file)], "allow_agent": False, "look_for_keys": False}
    link = fabric.Connection(host or box.host, user, port or box.port, connect_kwargs=keys)
    return Box(link, folder / "pins" / "known_hosts", report, new_host)


@contextmanager
def connected(box, folder, port=None, report=lambda text: None):
    """`opened`, and closed at the end."""
    conn = opened(box, folder, port, report)
    try:
        yield conn
    finally:
        conn.close()
