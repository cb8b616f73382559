"""Checks of where large files go: the cache, the folders of models, temporary files.

env.sh says where. A folder that is not there yet is checked where it will be made.
"""

import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

from check_result import GB, Check, existing, not_writable

# Each check, and the variable of env.sh that it looks at; first what is not on a volume, which may hang.
_VARIABLES = {
    "tmpdir": "TMPDIR",
    "hf_home": "HF_HOME",
    "models_dir": "MUSICGEN_MODELS_DIR",
    "heartmula_dir": "MUSICGEN_HEARTMULA_DIR",
}
PLACES = list(_VARIABLES)

# RunPod's network volumes are MooseFS, whose type is fuse. What a fuse mount of a local disk is called:
_LOCAL_FUSE = {"fuse.fuse-overlayfs", "fuse.overlayfs", "fuseblk"}
_NETWORK = re.compile(r"fuse|nfs|ceph|lustre|cifs|smb|gluster|beegfs|wekafs|gpfs|9p$")


def check_places() -> Iterator[Check]:
    """Whether each folder can be written, and how much is free there."""
    volume = mounted_volume(Path(os.environ["MUSICGEN_WORKSPACE"]))
    for name, variable in _VARIABLES.items():
        yield _checked(name, variable, Path(os.environ[variable]), volume)


def _checked(name: str, variable: str, place: Path, volume: Path | None) -> Check:
    if not place.is_absolute():
        return Check(name, False, f"{variable}={place} is relative", "write it as an absolute path")
    there = existing(place)
    if name != "tmpdir" and volume and there.stat().st_dev == Path("/").stat().st_dev:
        return Check(
            name,
            False,
            f"{place} is on the container's disk, which is lost when this box stops; a volume is at {volume}",
            f"unset {variable}, or name a folder under {volume}",
        )
    if why := not_writable(there):
        return Check(
            name, False, f"{place} cannot be written: {why}", "free space there, or take a larger disk"
        )
    free = f"{place}, {shutil.disk_usage(there).free / GB:.1f} GB free"
    mounts = Path("/proc/self/mountinfo").read_text()
    if is_network(file_system(there.resolve(), mounts)):
        free += " in the provider's whole cluster; the volume's quota is less"
    return Check(name, True, free)


def mounted_volume(workspace: Path) -> Path | None:
    """The workspace if another disk than the root's is mounted there and can be written."""
    if not (workspace.is_dir() and os.access(workspace, os.W_OK)):
        return None
    return workspace if workspace.stat().st_dev != Path("/").stat().st_dev else None


def file_system(path: Path, mounts: str) -> str:
    """The type of the file system that the path is on, by the text of /proc/self/mountinfo."""
    best, kind = -1, ""
    for line in mounts.splitlines():
        before, _, after = line.partition(" - ")
        at = re.sub(r"\\(\d{3})", lambda code: chr(int(code[1], 8)), before.split()[4])
        # Of two on the same folder the later one is seen.
        if path.is_relative_to(at) and len(at) >= best:
            best, kind = len(at), after.split()[0]
    return kind


def is_network(kind: str) -> bool:
    """True for a type of file system whose free space is that of many users' disks."""
    return bool(_NETWORK.match(kind)) and kind not in _LOCAL_FUSE
