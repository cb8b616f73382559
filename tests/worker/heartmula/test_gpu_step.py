"""The step as a GPU runs it, on tensors that only have a shape: no read that waits, and few kernels."""

import pytest
import torch
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode

from tests.worker.decoding.launched import Kernels
from worker.heartmula.layers import Placement
from worker.heartmula.model import SAMPLING, Model
from worker.heartmula.stepper import Stepper
from worker.models.heartmula_config import MulaConfig
from worker.models.heartmula_shapes import mula_shapes

pytestmark = pytest.mark.xdist_group("engine")  # as MusicGen's: fake tensors take seconds to import

# As of today, of the 3B model: a change that launches more is seen here.
KERNELS = 966


@pytest.fixture(scope="module")
def launched():
    """Kernels of a step with 16 of 64 slots, guided."""
    config = MulaConfig()
    with FakeTensorMode(), torch.inference_mode():
        weights = {name: torch.empty(shape) for name, shape in mula_shapes(config).items()}
        # A build of torch without CUDA cannot index fake CUDA tensors; on a CPU fp16 takes the same path.
        model = Model(config, 8192, weights, Placement(torch.device("cpu"), torch.float16))
        stepper = Stepper(model, 64, 2048, 8193)
        stepper.reset(SAMPLING)
        stepper._advance(1024, 16)  # makes what is made once
        with Kernels() as kernels:
            stepper._advance(1024, 16)  # a tensor without values raises where one is asked for
        with pytest.raises(DataDependentOutputException):
            stepper.is_broken(0)
    print(kernels.by_name.most_common())
    return kernels.by_name


def test_step_reads_nothing_back_from_the_device_and_launches_few_kernels(launched):
    assert launched.total() <= KERNELS


def test_step_attends_once_a_layer_and_copies_nothing_of_the_cache(launched):
    assert launched["scaled_dot_product_attention"] == 28 + 7 * 3
    assert launched["index_put_"] == 28 + 7 * 3 + 1  # new keys and values; the frame's tokens
    assert launched["clone"] == 1  # of what is fed
    assert not {"contiguous", "copy_", "cat"} & set(launched)
