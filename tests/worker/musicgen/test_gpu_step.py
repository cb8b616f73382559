"""The step as a GPU runs it, on tensors that only have a shape: no read that waits, and few kernels."""

import pytest
import torch
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode
from transformers import MusicgenDecoderConfig, MusicgenForCausalLM

from tests.worker.decoding.launched import Kernels
from worker.musicgen.attention import Sdpa, Varlen
from worker.musicgen.layers import Placement
from worker.musicgen.model import Model
from worker.musicgen.stepper import Stepper

pytestmark = pytest.mark.xdist_group("engine")

N_COLUMNS = 1504
SIZES = {"small": (1024, 24, 16, 4096), "medium": (1536, 48, 24, 6144)}
# As of today: a change that launches more is seen here.
KERNELS = {
    ("small", "sdpa"): 362,
    ("small", "varlen"): 356,
    ("medium", "sdpa"): 674,
    ("medium", "varlen"): 668,
}


@pytest.fixture(scope="module", params=SIZES)
def sized(request):
    """(size, mode, model) with fp16 weights and plain layers."""
    hidden, n_layers, n_heads, ffn = SIZES[request.param]
    size = {"hidden_size": hidden, "num_hidden_layers": n_layers}
    config = MusicgenDecoderConfig(**size, num_attention_heads=n_heads, ffn_dim=ffn)
    mode = FakeTensorMode()
    with mode, torch.inference_mode():
        # A build of torch without CUDA cannot index fake CUDA tensors; on a CPU fp16 takes the same path.
        placement = Placement(torch.device("cpu"), torch.float16)
        return (
            request.param,
            mode,
            Model(MusicgenForCausalLM(config), placement, Sdpa(torch.float16), N_COLUMNS),
        )


@pytest.fixture(scope="module", params=["sdpa", "varlen"])
def launched(sized, request):
    """(size and attention, kernels of a step with 16 of 64 slots), as on a T4 and on newer GPUs."""
    size, mode, model = sized
    with mode, torch.inference_mode():
        model.attention = Varlen() if request.param == "varlen" else Sdpa(torch.float16)
        stepper = Stepper(model, 64, N_COLUMNS)
        stepper._advance(1024, 16)  # makes what is made once
        with Kernels() as kernels:
            stepper._advance(1024, 16)  # a tensor without values raises where one is asked for
        with pytest.raises(DataDependentOutputException):
            stepper.is_broken(0)
    print(kernels.by_name.most_common())
    return (size, request.param), kernels.by_name


def test_step_reads_nothing_back_from_the_device_and_launches_few_kernels(launched):
    kind, kernels = launched
    assert kernels.total() <= KERNELS[kind]


def test_step_copies_nothing_but_a_row_to_its_second_half(launched):
    _, kernels = launched
    assert kernels["stack"] == 3  # x, columns and reach
    assert not {"clone", "copy_", "contiguous", "repeat_interleave"} & set(kernels)


def test_varlen_takes_cuda_tensors_as_the_step_has_them():
    """Fake ones: shapes, types and strides, and the operator that is registered; no kernel runs."""
    cuda, varlen, n_rows = torch.device("cuda"), Varlen(), 8
    with FakeTensorMode(), torch.inference_mode():
        cached = varlen.blank((2, n_rows, 16, N_COLUMNS, 64), torch.bfloat16, cuda)
        of_qkv = (3 * 1024, 64, 1)
        query = torch.empty_strided((n_rows, 16, 64), of_qkv, dtype=torch.bfloat16, device=cuda)
        lengths = torch.empty(n_rows, dtype=torch.int64, device=cuda)
        attended = varlen(query, cached, varlen.reach(lengths, N_COLUMNS))
    assert (attended.shape, attended.dtype, attended.device.type) == (query.shape, torch.bfloat16, "cuda")
    assert attended.is_contiguous()
