"""A link that dies silently in any phase ends it with one line, and the same phase then works."""

import hashlib

import pytest

from ops import release
from ops.repository import ROOT
from ops.settings import Settings
from ops.ssh import link as links
from ops.ssh import phases, session, ship
from ops.ssh.link import LinkLost
from tests.fakes.proxy import proxying
from tests.ops.ssh.connect import connected

SETTINGS = Settings.load(env={"MUSICGEN_MODEL": "rehearsal"})
SCRIPTS = {f"remote/{path.name}": path.read_bytes() for path in (ROOT / "remote").iterdir() if path.is_file()}
# What install and check do is tested elsewhere; here they have only to be asked.
RELEASE = release.bundle(
    SCRIPTS
    | {
        "remote/install.sh": b'echo \'{"changed":false,"seconds":0,"torch":"none"}\'\n',
        "remote/check.py": b"print('[]')\n",
        "requirements/worker.txt": b"",
        "prompts.txt": b"rain ; 1 ; rain\n",
    }
)
# Each phase, and a word of the command in whose middle the link dies.
PHASES = {
    "deploy": ("tar -xzf", lambda box: phases.deploy(box, RELEASE, print)),
    "settings": ("mktemp", lambda box: phases.send_settings(box, SETTINGS, print)),
    "install": ("install.sh", lambda box: phases.install(box, SETTINGS, print)),
    "validate": ("check.py", phases.validate),
    "run": ("session.sh start", lambda box: phases.run(box, SETTINGS, print)),
}


@pytest.mark.parametrize("phase", PHASES)
def test_dead_link_is_one_line_and_the_phase_then_works(box, tmp_path, monkeypatch, phase):
    monkeypatch.setattr(links, "KEEPALIVE_S", 0.1)
    monkeypatch.setattr(session, "_SETTLE_S", 0)
    word, do = PHASES[phase]
    python = box.box_home / "venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text("#!/bin/bash\nsleep 5\n")
    python.chmod(0o755)
    (box.box_home / "venv.stamp").write_text(f"{hashlib.sha256(b'').hexdigest()}  - python3\n")

    with proxying(box.port) as link, connected(box, tmp_path, link.port) as conn:
        if phase != "deploy":
            ship.send(conn, RELEASE)
        dead, asked = [], conn.run

        def run(command, **options):
            if word in command and not dead:
                dead.append(link.stall())
                monkeypatch.setattr(links, "DEAD_AFTER_S", 0.7)
            return asked(command, **options)

        monkeypatch.setattr(conn, "run", run)
        with pytest.raises(
            LinkLost, match=r"^the connection to \S+ was lost; check the network, then run it"
        ):
            do(conn)
        assert dead
        monkeypatch.setattr(links, "DEAD_AFTER_S", 30)
        do(conn)
