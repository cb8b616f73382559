"""Device, precision and slots chosen for machines that are simulated."""

from pathlib import Path

import pytest
import torch

from worker.decoding import device
from worker.errors import BadInput, UserError

pytestmark = pytest.mark.xdist_group("engine")

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
WIDE, NARROW = 1024, 64


@pytest.fixture
def gpus(monkeypatch):
    """A machine with this many GPUs, of this compute capability and free memory."""

    def have(n, capability=(8, 0), free_gb=24):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: n > 0)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: n)
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (round(free_gb * 1e9), 80_000_000_000))

    return have


@pytest.fixture
def cpu(monkeypatch):
    """A CPU with or without native bf16."""

    def have(avx512_bf16, amx):
        monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: avx512_bf16)
        monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx)

    return have


# --- device


@pytest.mark.parametrize(("n_gpus", "chosen"), [(0, "cpu"), (1, "cuda"), (4, "cuda")])
def test_the_gpu_is_used_if_there_is_one(gpus, n_gpus, chosen):
    gpus(n_gpus)
    assert device.choose_device(None).type == chosen


def test_a_gpu_that_torch_cannot_use_is_an_error(gpus, tmp_path, monkeypatch):
    gpus(0)
    monkeypatch.setattr(device, "_GPU_FILE", tmp_path)
    with pytest.raises(UserError, match="GPU that torch cannot use"):
        device.choose_device(None)
    assert device.choose_device("cpu").type == "cpu"


@pytest.mark.parametrize("name", ["cpu", "cuda", "cuda:0", "cuda:1"])
def test_a_device_can_be_named(gpus, name):
    gpus(2)
    assert str(device.choose_device(name)) == name


@pytest.mark.parametrize(
    ("n_gpus", "name", "message"),
    [
        (0, "cuda", "no CUDA device is visible to torch; use --device cpu, or check the driver"),
        (2, "cuda:2", "there is no cuda:2: this machine has 2 CUDA devices; use cuda:N with N under 2"),
        (1, "cuda:1", "there is no cuda:1: this machine has 1 CUDA device; use cuda:N with N under 1"),
        (1, "gpu", "unknown device 'gpu'; use cpu, cuda or cuda:N"),
        (1, "mps", "device mps is not supported; use cpu, cuda or cuda:N"),
        (1, "", "unknown device ''; use cpu, cuda or cuda:N"),
    ],
)
def test_device_that_is_not_there_is_refused(gpus, n_gpus, name, message):
    gpus(n_gpus)
    with pytest.raises(BadInput) as caught:
        device.choose_device(name)
    assert str(caught.value) == message


# --- precision


@pytest.mark.parametrize(
    ("gpu", "capability", "dtype"),
    [
        ("P100", (6, 0), torch.float32),
        ("V100", (7, 0), torch.float16),
        ("T4", (7, 5), torch.float16),
        ("A100", (8, 0), torch.bfloat16),
        ("A10G", (8, 6), torch.bfloat16),
        ("L40S", (8, 9), torch.bfloat16),
        ("H100", (9, 0), torch.bfloat16),
    ],
)
@pytest.mark.parametrize("name", [None, "auto"])
def test_precision_of_a_gpu_is_what_it_is_fast_in(gpus, gpu, capability, dtype, name):
    gpus(1, capability)
    assert device.choose_dtype(name, CUDA, WIDE) == dtype


@pytest.mark.parametrize(
    ("avx512_bf16", "amx", "hidden", "dtype"),
    [
        (False, False, WIDE, torch.float32),
        (True, False, WIDE, torch.bfloat16),
        (False, True, WIDE, torch.bfloat16),
        (True, True, NARROW, torch.float32),
    ],
)
def test_precision_of_a_cpu_is_bf16_only_where_it_is_native_and_pays(cpu, avx512_bf16, amx, hidden, dtype):
    cpu(avx512_bf16, amx)
    assert device.choose_dtype(None, CPU, hidden) == dtype


@pytest.mark.parametrize("name", ["fp32", "bf16", "fp16"])
def test_a_precision_can_be_named(gpus, name):
    gpus(1, (7, 5))
    dtype = device.choose_dtype(name, CUDA, WIDE)
    assert device.dtype_name(dtype, dtype) == name


def test_half_a_cache_is_fp32_on_a_cpu_and_refused_on_a_gpu(gpus):
    gpus(1, (7, 5))
    assert device.choose_dtype("fp32-kv16", CPU, WIDE) == torch.float32
    with pytest.raises(BadInput, match="fp32-kv16 is for CPUs; on a GPU use bf16 or fp16"):
        device.choose_dtype("fp32-kv16", CUDA, WIDE)


# --- slots


@pytest.mark.parametrize(("free_gb", "slots"), [(2.5, 1), (16, 14), (24, 22), (80, 64)])
def test_slots_are_what_the_free_memory_of_a_gpu_holds(gpus, free_gb, slots):
    gpus(1, free_gb=free_gb)
    assert device.choose_slots(None, 1_000_000_000, CUDA) == slots


def test_slots_are_what_half_the_free_memory_of_a_machine_holds(monkeypatch):
    monkeypatch.setattr(Path, "read_text", lambda *_: "MemTotal: 9 kB\nMemAvailable:   8000000 kB\n")
    assert device.choose_slots(None, 1_000_000_000, CPU) == 4


def test_slots_are_4_where_the_system_does_not_report_memory(monkeypatch):
    def absent(*_):
        raise FileNotFoundError

    monkeypatch.setattr(Path, "read_text", absent)
    assert device.choose_slots(None, 1_000_000_000, CPU) == 4


def test_asked_for_slots_are_taken(gpus):
    gpus(1, free_gb=2.5)
    assert device.choose_slots(40, 1_000_000_000, CUDA) == 40


def test_when_no_slot_fits_the_error_reports_how_much_is_missing(gpus):
    gpus(1, free_gb=2.0)
    with pytest.raises(UserError, match=r"1\.5 GB more are needed; use a smaller model, half precision or"):
        device.choose_slots(None, 2_000_000_000, CUDA)
