"""A GPU box on loopback: a real OpenSSH server whose sessions live in a throw-away HOME, and nowhere else.

tmux, bash and Python are this machine's; `nvidia-smi` is a stand-in that knows one GPU.
Root or not, it listens on a free port with its own host key and ends with everything started on it.
"""

import os
import re
import shutil
import signal
import socket
import stat
import subprocess
import sys
import sysconfig
import time
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path

from tests.fakes.commands import Commands
from tests.parts import need

ROOT = Path(__file__).parents[2]
SSHD = shutil.which("sshd", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")
SFTP_SERVER = "/usr/lib/openssh/sftp-server"

_CONFIG = """
ListenAddress 127.0.0.1:{port}
HostKey {folder}/host_key
PidFile none
AuthorizedKeysFile {folder}/authorized_keys
PubkeyAuthentication yes
PasswordAuthentication no
KbdInteractiveAuthentication no
PermitRootLogin prohibit-password
StrictModes no
UsePAM no
AllowTcpForwarding yes
Subsystem sftp {sftp_server}
ForceCommand {folder}/shell
SetEnv HOME={home}
MaxSessions {most_sessions}
LogLevel ERROR
"""

# Every session starts here, whatever passwd says. Whatever the test's own environment held is gone: sshd
# starts each session with a clean one, and without the .bashrc of whoever runs the tests.
_SHELL = """#!/bin/bash
{exports}
cd "$HOME"
echo "${{SSH_ORIGINAL_COMMAND:-}}" >> {folder}/commands.log
case "${{SSH_ORIGINAL_COMMAND:-}}" in
  "") exec /bin/bash -l ;;
  internal-sftp|{sftp_server}*) exec {sftp_server} -d "$HOME" ;;
  *) exec /bin/bash -c "$SSH_ORIGINAL_COMMAND" ;;
esac
"""

_NVIDIA_SMI = """#!/bin/bash
# One L40S, half busy.
case "$*" in
  *query-compute-apps*) echo "4242, python, 9000" ;;
  *query-gpu*)
    fields=$(printf '%s\\n' "$@" | sed -n 's/^--query-gpu=//p')
    row=()
    for field in ${{fields//,/ }}; do
      case "$field" in
        index) row+=(0) ;; name) row+=("NVIDIA L40S") ;; uuid) row+=(GPU-1) ;;
        driver_version) row+=("570.86.15") ;; compute_cap) row+=("8.9") ;;
        utilization.gpu) row+=(51) ;; utilization.memory) row+=(20) ;;
        memory.used) row+=(9216) ;; memory.total) row+=(46068) ;; memory.free) row+=(36852) ;;
        temperature.gpu) row+=(61) ;; power.draw) row+=(210.50) ;; power.limit) row+=(350.00) ;;
        *) row+=("[N/A]") ;;
      esac
    done
    (IFS=,; echo "${{row[*]}}" | sed 's/,/, /g') ;;
  *) echo "NVIDIA-SMI 570.86.15" ;;
esac
"""


@dataclass
class FakeBox:
    """A running stand-in. `host:port` is its address; `key_file` opens it."""

    folder: Path
    port: int
    variables: dict[str, str] = field(default_factory=dict)
    host: str = "127.0.0.1"
    most_sessions: int = 30
    _server: "subprocess.Popen[bytes] | None" = None

    @property
    def key_file(self) -> Path:
        return self.folder / "client_key"

    @property
    def home(self) -> Path:
        """What `~` is on the box."""
        return self.folder / "home"

    @property
    def root(self) -> Path:
        """MUSICGEN_BOX_ROOT."""
        return self.folder / "workspace" / "musicgen"

    @property
    def box_home(self) -> Path:
        """MUSICGEN_BOX_HOME."""
        return self.home / ".musicgen"

    @property
    def bin(self) -> Path:
        """First on the box's PATH."""
        return self.folder / "bin"

    @property
    def commands(self) -> str:
        """Every command line that was ever sent to it."""
        return (self.folder / "commands.log").read_text()

    @property
    def address(self) -> str:
        return f"root@{self.host}:{self.port}" if os.getuid() == 0 else f"{self.host}:{self.port}"

    def write_shell(self) -> None:
        """Write the wrapper anew, after `variables` changed."""
        path = f"{self.bin}:{Path(sys.executable).parent}:/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin"
        exported = {
            "HOME": str(self.home),
            "TMUX_TMPDIR": str(self.folder / "tmux"),
            "PATH": path,
            "LANG": "C.UTF-8",
            "MUSICGEN_BOX_ROOT": str(self.root),
            "MUSICGEN_BOX_HOME": str(self.box_home),
            "MUSICGEN_WORKSPACE": str(self.root.parent),
        }
        exports = "".join(f"export {k}='{v}'\n" for k, v in (exported | self.variables).items())
        _executable(
            self.folder / "shell", _SHELL.format(exports=exports, folder=self.folder, sftp_server=SFTP_SERVER)
        )

    def start(self) -> None:
        """Begin to listen; returns when it does."""
        config = _CONFIG.format(
            folder=self.folder,
            home=self.home,
            port=self.port,
            sftp_server=SFTP_SERVER,
            most_sessions=self.most_sessions,
        )
        (self.folder / "sshd_config").write_text(config)
        assert SSHD
        command = [SSHD, "-D", "-e", "-f", str(self.folder / "sshd_config")]
        with (self.folder / "sshd.log").open("ab") as log:
            self._server = subprocess.Popen(command, stderr=log)
        for _ in range(200):
            with suppress(OSError), socket.create_connection((self.host, self.port), 1):
                return
            if self._server.poll() is not None:
                break
            time.sleep(0.02)
        raise RuntimeError(f"sshd did not start: {(self.folder / 'sshd.log').read_text()}")

    def stop(self) -> None:
        """Stop listening and end every session, as a machine does that is switched off."""
        if self._server:
            for pid in _children(self._server.pid):  # a session each
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            self._server.terminate()
            self._server.wait()
            self._server = None
        self.end_processes()

    def rekey(self) -> None:
        """Become another machine under the same address."""
        self.stop()
        for name in ("host_key", "host_key.pub"):
            (self.folder / name).unlink()
        _keygen(self.folder / "host_key")
        self.start()

    def move(self) -> None:
        """Start again as a pod does: on another port, with a new host key."""
        self.stop()
        self.port = _free_port()
        self.rekey()

    @property
    def log(self) -> str:
        """What RunPod's start.sh prints of the host key."""
        public = self.folder / "host_key.pub"
        listed = subprocess.run(
            ["ssh-keygen", "-l", "-f", str(public)], capture_output=True, text=True, check=True
        )
        return f"Pod Started\nSSH host keys:\nKey: {public}\n{listed.stdout}Start script(s) finished\n"

    def lack(self, program: str) -> None:
        """From now on the box has no such program: every PATH is a folder of links without it."""
        links = self.folder / "bin-without"
        links.mkdir(exist_ok=True)
        for folder in (self.bin, Path(sys.executable).parent, Path("/usr/bin"), Path("/usr/sbin")):
            for tool in folder.iterdir():
                link = links / tool.name
                if tool.name != program and not link.is_symlink():
                    link.symlink_to(tool)
        self.variables["PATH"] = str(links)
        self.write_shell()

    def bring_torch(self) -> None:
        """The image has torch and the rest, ours; `fab install` then needs a small wheel and no network."""
        need("uv", shutil.which("uv") is not None)
        wheels = self.folder / "wheels"
        wheels.mkdir(exist_ok=True)
        write_wheel(wheels, "tinypin", "1.0")
        # A shim of pyenv's looks for its versions in HOME, which is another on the box.
        _executable(self.bin / "uv", f'#!/bin/bash\nHOME={Path.home()} exec {shutil.which("uv")} "$@"\n')
        pins = self.folder / "requirements.txt"
        pins.write_text(f"torch=={version('torch').partition('+')[0]}\ntinypin==1.0\n")
        self.variables |= {
            "PYTHONPATH": sysconfig.get_path("purelib"),
            "MUSICGEN_REQUIREMENTS": str(pins),
            "UV_FIND_LINKS": str(wheels),
            "UV_OFFLINE": "1",
        }
        self.write_shell()

    def processes(self) -> dict[int, list[str]]:
        """The command line of everything that runs on the box."""
        # A shell that hangs in ~/.bashrc has only what sshd sets.
        marks = {f"MUSICGEN_BOX_ROOT={self.root}".encode(), f"HOME={self.home}".encode()}
        found = {}
        for entry in Path("/proc").glob("[0-9]*"):
            with suppress(OSError):
                if marks & set((entry / "environ").read_bytes().split(b"\0")):
                    words = (entry / "cmdline").read_bytes().decode(errors="replace").split("\0")
                    found[int(entry.name)] = words
        return found

    def end_processes(self) -> None:
        for _ in range(50):
            running = self.processes()
            if not running:
                return
            for pid in running:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            time.sleep(0.05)


@dataclass
class Fab:
    """A user who types `fab ...` in the folder `here`. `env` is what their shell adds."""

    here: Path
    box: FakeBox
    commands: Commands
    env: dict[str, str] = field(default_factory=dict)

    def environment(self) -> dict[str, str]:
        ours = re.compile("AWS_|MUSICGEN_|RUNPOD_|HF_|HOURLY_COST_USD|RUN_ID|SSH_AUTH_SOCK|UV_|PIP_")
        clean = {name: value for name, value in os.environ.items() if not ours.match(name)}
        settings = {
            "HOME": str(self.here),  # no key, no configuration of the developer's own
            "RUNPOD_HOST": self.box.address,
            "RUNPOD_SSH_KEY": str(self.box.key_file),
            "MUSICGEN_MODEL": "rehearsal",
            "MUSICGEN_AUDIT_LOG": str(self.here / "audit.jsonl"),
        }
        return clean | settings | self.env

    def start(self, *arguments: str) -> "subprocess.Popen[bytes]":
        """Begin `fab ARGUMENTS` with an interpreter of its own; whoever begins it ends it."""
        return subprocess.Popen(
            [sys.executable, "-m", "fabric", "--search-root", str(ROOT), *arguments],
            cwd=self.here,
            env=self.environment(),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )

    def __call__(self, *arguments: str) -> "subprocess.CompletedProcess[str]":
        """Run `fab ARGUMENTS` to its end."""
        argv = ("fab", "--search-root", str(ROOT), *arguments)
        done = self.commands(*argv, cwd=self.here, env=self.environment())
        return subprocess.CompletedProcess(
            arguments, done.returncode, done.stdout.decode(), done.stderr.decode()
        )


@contextmanager
def serving(folder: Path, variables: Mapping[str, str] = {}) -> Iterator[FakeBox]:
    """A box in `folder`, with more variables in its sessions. Skips where its parts are missing."""
    need("OpenSSH's server", SSHD is not None and Path(SFTP_SERVER).exists())
    need("tmux", shutil.which("tmux") is not None)
    if os.getuid() == 0:
        Path("/run/sshd").mkdir(exist_ok=True)  # where sshd drops its privileges
    box = FakeBox(folder, _free_port(), dict(variables))
    for part in (folder, box.home, box.bin, folder / "tmux", box.root.parent):
        part.mkdir(parents=True, exist_ok=True)
        part.chmod(0o700)
    _keygen(folder / "host_key")
    _keygen(box.key_file)
    shutil.copy(f"{box.key_file}.pub", folder / "authorized_keys")
    _executable(box.bin / "nvidia-smi", _NVIDIA_SMI.replace("{{", "{").replace("}}", "}"))
    box.write_shell()
    box.start()
    try:
        yield box
    finally:
        box.stop()


def _children(parent: int) -> list[int]:
    found = []
    for entry in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError, ValueError):
            if int(entry.read_text().rpartition(")")[2].split()[1]) == parent:
                found.append(int(entry.parent.name))
    return found


def write_wheel(folder: Path, name: str, number: str) -> None:
    """A package of one empty module, as pip and uv take it from a folder."""
    info = f"{name}-{number}.dist-info"
    with zipfile.ZipFile(folder / f"{name}-{number}-py3-none-any.whl", "w") as wheel:
        wheel.writestr(f"{name}.py", "")
        wheel.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: {number}\n")
        wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr(f"{info}/RECORD", "")


def _keygen(path: Path) -> None:
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(path)], check=True)


def _executable(path: Path, text: str) -> None:
    path.write_text(text)
    path.chmod(path.stat().st_mode | stat.S_IXUSR | stat.S_IXGRP | stat.S_IXOTH)


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port
