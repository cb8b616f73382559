"""A codec leaves a GPU that has no memory for its work; the GPU is one in name only."""

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from worker.decoding.offload import Offload

FULL = torch.OutOfMemoryError("CUDA out of memory")


class Codec:
    """On a device, with a copy on every other."""

    def __init__(self, device="cuda"):
        self.device = torch.device(device)

    def to(self, device):
        return Codec(device)


def works_on_cpu(codec):
    if codec.device.type != "cpu":
        raise FULL
    return "audio"


def test_work_that_the_gpu_has_no_memory_for_is_done_on_the_cpu_and_so_is_all_later_work(caplog):
    codec = Offload(Codec())
    assert codec.run(lambda it: it.device.type) == "cuda"
    assert [codec.run(works_on_cpu) for _ in range(3)] == ["audio"] * 3
    assert codec.run(lambda it: it.device.type) == "cpu"
    assert [record.message for record in caplog.records] == [
        "the GPU has no memory left for decoding: songs are decoded on the CPU from now on"
    ]


def test_work_whose_codec_another_thread_has_moved_is_done_again_without_a_word(caplog):
    codec = Offload(Codec())

    def work(it):
        if it.device.type == "cuda":
            codec.codec = it.to("cpu")
            raise RuntimeError("Expected all tensors to be on the same device")
        return "audio"

    assert codec.run(work) == "audio"
    assert not caplog.records


@pytest.mark.parametrize(("device", "error"), [("cuda", RuntimeError("device-side assert")), ("cpu", FULL)])
def test_other_errors_and_those_of_the_cpu_are_raised(device, error):
    codec = Offload(Codec(device))

    def work(_):
        raise error

    with pytest.raises(type(error), match=str(error)):
        codec.run(work)
    assert codec.codec.device.type == device


@pytest.mark.parametrize(("device", "n_threads"), [("cuda", 3), ("cpu", 1)])
def test_cores_are_left_to_generation_unless_that_is_on_a_gpu(device, n_threads):
    codec = Offload(Codec(device))
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        codec.run(works_on_cpu)
        with ThreadPoolExecutor(1, initializer=torch.set_num_threads, initargs=(3,)) as helper:
            assert helper.submit(codec.run, lambda _: torch.get_num_threads()).result() == n_threads
    finally:
        torch.set_num_threads(before)
