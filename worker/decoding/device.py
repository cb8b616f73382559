"""Choose device, precision, threads and number of slots for this machine."""

from collections.abc import Callable
from pathlib import Path

import torch

from worker.amounts import count
from worker.errors import BadInput, UserError

# Below this width a CPU gains nothing from bf16, and threads wait for each other more than they compute.
_SMALL = 256
# Beyond this many slots the matrix products are the limit, and more slots gain little: docs/benchmarks.md.
MAX_SLOTS = {"cpu": 8, "cuda": 64}
# Left free on the GPU for activations and for decoding finished songs.
SPARE_BYTES = 1_500_000_000
_NO_MEMORY = ("can't allocate memory", "CUDA error: out of memory", "CUBLAS_STATUS_ALLOC_FAILED")
_BROKEN_CAPTURE = ("previous error during capture", "cudaErrorStreamCaptureInvalidated")
_GPU_FILE = Path("/dev/nvidia0")
_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
# What a record says of repeating its song on this machine: docs/engine.md, "What is promised".
_FREELY = "in any order, with any slots and threads"
_LIKEWISE = "in the same order, with the same slots and threads"
# fp32 with keys and values in bf16: half the cache, and half of what a late column reads. For CPUs.
HALF_CACHE = "fp32-kv16"


def choose_device(name: str | None) -> torch.device:
    """`cuda`, `cuda:1` or `cpu`; by default the GPU if there is one.

    Raises BadInput for a wrong name, and UserError if there is a GPU that torch cannot use.
    """
    has_cuda = torch.cuda.is_available()
    if name is None and not has_cuda and _GPU_FILE.exists():
        # On a rented machine the CPU would take all night, at the GPU's price.
        raise UserError(
            "this machine has an NVIDIA GPU that torch cannot use; check `nvidia-smi` and that torch is "
            "a CUDA build, or choose --device cpu"
        )
    if name is None:
        return torch.device("cuda" if has_cuda else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise BadInput(f"unknown device {name!r}; use cpu, cuda or cuda:N") from None
    if device.type not in MAX_SLOTS:
        raise BadInput(f"device {name} is not supported; use cpu, cuda or cuda:N")
    if device.type == "cuda" and not has_cuda:
        raise BadInput("no CUDA device is visible to torch; use --device cpu, or check the driver")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        n_gpus = torch.cuda.device_count()
        raise BadInput(
            f"there is no {name}: this machine has {count(n_gpus, 'CUDA device')}; "
            f"use cuda:N with N under {n_gpus}"
        )
    return device


def choose_dtype(name: str | None, device: torch.device, hidden: int) -> torch.dtype:
    """The weights' precision: of `fp32`, `fp32-kv16`, `bf16`, `fp16`, or the default.

    By default bf16 where the device is fast in it, fp16 on a T4, else fp32.
    """
    if name in (None, "auto"):
        return _fast_dtype(device, hidden)
    if name == HALF_CACHE:
        if device.type != "cpu":
            raise BadInput(f"{HALF_CACHE} is for CPUs; on a GPU use bf16 or fp16")
        return torch.float32
    if name not in _DTYPES:
        raise BadInput(f"unknown dtype {name!r}; use auto, fp32, {HALF_CACHE}, bf16 or fp16")
    if name == "fp16" and device.type == "cpu":
        raise BadInput("fp16 is for GPUs; on a CPU use fp32, or bf16 where it is native")
    return _DTYPES[name]


def _fast_dtype(device: torch.device, hidden: int) -> torch.dtype:
    if device.type == "cuda":
        major, minor = torch.cuda.get_device_capability(device)
        if major >= 8:
            return torch.bfloat16
        return torch.float16 if (major, minor) >= (7, 0) else torch.float32
    native = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return torch.bfloat16 if native and hidden >= _SMALL else torch.float32


def dtype_name(dtype: torch.dtype, cache_dtype: torch.dtype | None = None) -> str:
    """`fp32`, `fp32-kv16`, `bf16` or `fp16`; the cache has the weights' precision unless another is given."""
    if cache_dtype not in (None, dtype):
        return HALF_CACHE
    return next(name for name, known in _DTYPES.items() if known == dtype)


def same_bytes(is_row_exact: bool) -> str:
    """Under which conditions a song is the same again. Row-exact: no sum depends on slots or threads."""
    return _FREELY if is_row_exact else _LIKEWISE


def choose_slots(slots: int | None, bytes_each: int, device: torch.device) -> int:
    """`slots` if given, else as many as fit into free memory. Raises UserError if not one fits."""
    if slots is not None:
        if slots < 1:
            raise BadInput(f"{slots} slots are too few; use 1 or more")
        return slots
    most, free = MAX_SLOTS[device.type], free_bytes(device)
    if free is None:
        return most // 2
    if free < bytes_each:
        raise no_room(bytes_each - free)
    return slots_in(free, bytes_each, device.type)


def slots_in(free: int, bytes_each: int, device_type: str) -> int:
    """How many slots are chosen for this much free memory."""
    return min(MAX_SLOTS[device_type], free // bytes_each)


def fewer_slots(slots: int, needed_bytes: int, device: torch.device) -> int:
    """Half the slots, after memory ran out. Raises UserError when there is one, which needs so many bytes."""
    if slots == 1:
        raise no_room(max(needed_bytes - (free_bytes(device) or 0), 0))
    return slots // 2


def no_room(missing_bytes: int) -> UserError:
    """The error for a machine on which not one song fits."""
    return UserError(
        f"not enough memory for one song: {missing_bytes / 1e9:.1f} GB more are needed; "
        "use a smaller model, half precision or a larger machine"
    )


def is_out_of_memory(error: BaseException) -> bool:
    """True if memory ran out: torch's own error, CUDA's, the system's, or what a capture makes of them.

    A graph's capture in which memory runs out ends with an error of its own, raised while the first is
    handled. One that ends so without any error before it has run out of memory in CUDA itself.
    """
    errors = chain(error)
    if any(isinstance(e, torch.OutOfMemoryError) or _says(e, _NO_MEMORY) for e in errors):
        return True
    return len(errors) == 1 and _says(error, _BROKEN_CAPTURE)


def chain(error: BaseException) -> list[BaseException]:
    """The error, the one that was being handled when it was raised, and so on: the first of all is last."""
    errors = [error]
    while before := errors[-1].__context__:
        errors.append(before)
    return errors


def _says(error: BaseException, texts: tuple[str, ...]) -> bool:
    return isinstance(error, RuntimeError) and any(text in str(error) for text in texts)


def mark(device: torch.device) -> Callable[[], None]:
    """A function that waits until the device has done all that was asked of it so far."""
    if device.type != "cuda":
        return lambda: None
    event = torch.cuda.Event()  # type: ignore[no-untyped-call]
    event.record()
    return event.synchronize


def threads_for(device: torch.device, hidden: int) -> int | None:
    """CPU threads for a model of this width; None leaves torch's setting."""
    return 1 if device.type == "cpu" and hidden < _SMALL else None


def free_bytes(device: torch.device) -> int | None:
    """Bytes that a cache may take; None where the system does not report free memory."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0]) - SPARE_BYTES
    try:
        for line in Path("/proc/meminfo").read_text("ascii").splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024 // 2
    except OSError:
        pass
    return None
