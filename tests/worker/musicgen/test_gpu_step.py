"""The step as a GPU runs it, on tensors that only have a shape: no read that waits, and few kernels."""

from collections import Counter

import pytest
import torch
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import MusicgenDecoderConfig, MusicgenForCausalLM

from worker.musicgen.attention import Sdpa
from worker.musicgen.model import Model, Placement
from worker.musicgen.stepper import Stepper

pytestmark = pytest.mark.xdist_group("engine")

N_COLUMNS = 1504
SIZES = {"small": (1024, 24, 16, 4096), "medium": (1536, 48, 24, 6144)}
# As of today: a change that launches more is seen here.
KERNELS = {"small": 484, "medium": 916}
# They only describe memory that is there already.
_VIEWS = set(
    "view _unsafe_view transpose permute unsqueeze squeeze slice select expand t unbind detach split"
    " as_strided alias reshape lift_fresh flatten device".split()
)


class Kernels(TorchDispatchMode):
    """Counts what would be launched."""

    def __init__(self):
        super().__init__()
        self.by_name = Counter()

    def __torch_dispatch__(self, operator, types, args=(), kwargs=None):
        name = operator._schema.name.split("::")[1]
        if name not in _VIEWS:
            self.by_name[name] += 1
        return operator(*args, **(kwargs or {}))


@pytest.fixture(scope="module", params=SIZES)
def sized(request):
    """(size, mode, stepper): 64 slots with fp16 weights and plain layers, as on a GPU without varlen."""
    hidden, n_layers, n_heads, ffn = SIZES[request.param]
    size = {"hidden_size": hidden, "num_hidden_layers": n_layers}
    config = MusicgenDecoderConfig(**size, num_attention_heads=n_heads, ffn_dim=ffn)
    mode = FakeTensorMode()
    with mode, torch.inference_mode():
        # Fake CUDA tensors need a build of torch with CUDA; on a CPU fp16 takes the same path.
        placement = Placement(torch.device("cpu"), torch.float16)
        model = Model(MusicgenForCausalLM(config), placement, Sdpa(), N_COLUMNS)
        return request.param, mode, Stepper(model, 64, N_COLUMNS)


def test_step_reads_nothing_back_from_the_device(sized):
    _, mode, stepper = sized
    with mode, torch.inference_mode():
        stepper._advance(1024, 16)  # a tensor without values raises where one is asked for
        with pytest.raises(DataDependentOutputException):
            stepper.is_broken(0)


def test_step_launches_few_kernels(sized):
    size, mode, stepper = sized
    with mode, torch.inference_mode(), Kernels() as kernels:
        stepper._advance(1024, 16)
    print(kernels.by_name.most_common())
    assert kernels.by_name.total() <= KERNELS[size]
