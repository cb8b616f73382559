"""What a pod must have for each purpose: GPU, memory, disk and CUDA version.

They are what the specifications ask for; what a model cannot do without is less (worker/models/needs.py).

A table, and the questions that are asked of it. Knows no prices and no network.
"""

import re
from dataclasses import dataclass

from worker.errors import BadInput

# `-cu1290-` of RunPod's newer images is CUDA 12.9.0; `-cuda11.8.0-` of the older ones says it itself.
_CUDA = (re.compile(r"-cu(\d\d)(\d)\d?(?![\d.])"), re.compile(r"-cuda(\d+)\.(\d+)"))


@dataclass(frozen=True)
class Purpose:
    """Floors, in GB; RunPod's prices and stock decide between the types that are above them.

    `ram_gb`: of the host, for each GPU; 0: any. `disk_gb`: the container's disk as it is asked for, and
    `least_disk_gb`: as it may be set. `preferred`: the GPU type of first choice (ops/runpod/offers.py).
    `cap_usd`: the maximum price per hour, where MUSICGEN_MAX_PRICE is not set.
    """

    name: str
    gpu_memory_gb: int
    ram_gb: int
    disk_gb: int
    least_disk_gb: int
    preferred: str
    cap_usd: float | None = None

    @property
    def makes_songs(self) -> bool:
        """True if the model that is set will run there."""
        return self.name != "train"

    @property
    def floors_gb(self) -> str:
        """MUSICGEN_FLOORS_GB in a pod's environment, by which `fab validate` judges what was rented."""
        return f"{self.gpu_memory_gb},{self.ram_gb},{self.least_disk_gb}"


PURPOSES = {
    purpose.name: purpose
    for purpose in (
        Purpose("musicgen", 48, 32, 100, 100, "NVIDIA L40S"),
        Purpose("heartmula", 48, 32, 80, 60, "NVIDIA A40"),
        Purpose("train", 24, 0, 50, 50, "NVIDIA GeForce RTX 4090", cap_usd=0.50),
    )
}


def purpose_of(name: str) -> Purpose:
    """The purpose of that name. Raises BadInput."""
    if name not in PURPOSES:
        raise BadInput(f"--for {name} is none of {', '.join(PURPOSES)}; write one of them")
    return PURPOSES[name]


def min_cuda(image: str) -> str:
    """The CUDA version that a host must have for an image, like 12.9; empty if its tag does not say."""
    for pattern in _CUDA:
        if found := pattern.search(image):
            return f"{found[1]}.{found[2]}"
    return ""
