"""Packed linear layers multiply as torch's own do."""

import pytest
import torch

from worker.musicgen.linear import PackedLinear, PlainLinear, pack

pytestmark = pytest.mark.xdist_group("engine")

N_IN, N_OUT = 96, 160
packs_bf16 = pytest.mark.skipif(
    not torch.ops.mkldnn._is_mkldnn_bf16_supported(), reason="oneDNN packs no bf16 on this CPU"
)
ROWS = [1, 2, 3, 8, 16, 31, 32, 33, 64, 130]


def weight_and_rows(n_rows, dtype):
    generator = torch.Generator().manual_seed(n_rows)
    weight = torch.randn(N_OUT, N_IN, generator=generator) / N_IN**0.5
    return weight.to(dtype), torch.randn(n_rows, N_IN, generator=generator).to(dtype)


@pytest.mark.parametrize("gelu", [False, True])
@pytest.mark.parametrize("n_rows", ROWS)
def test_packed_equals_plain(n_rows, gelu):
    weight, x = weight_and_rows(n_rows, torch.float32)
    assert torch.allclose(PackedLinear(weight, gelu)(x), PlainLinear(weight, gelu)(x), atol=1e-5)


@packs_bf16
@pytest.mark.parametrize("gelu", [False, True])
@pytest.mark.parametrize("n_rows", ROWS)
def test_packed_equals_plain_in_bf16_but_for_rounding(n_rows, gelu):
    """Against float32 sums of the same numbers: the result is rounded, with gelu up to twice."""
    weight, x = weight_and_rows(n_rows, torch.bfloat16)
    exact = PlainLinear(weight.float(), gelu)(x.float())
    packed = PackedLinear(weight, gelu)(x)
    assert packed.dtype == torch.bfloat16
    assert torch.allclose(packed.float(), exact, rtol=2**-8, atol=2**-8)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_row_does_not_depend_on_the_others(dtype):
    weight, x = weight_and_rows(32, dtype)
    layer = pack(weight)
    before = layer(x)[7].clone()
    x[:7], x[8:] = 0, 100
    assert torch.equal(layer(x)[7], before)


def test_weights_are_not_shared_with_the_checkpoint():
    weight, x = weight_and_rows(4, torch.float32)
    layer = pack(weight)
    before = layer(x)
    weight.zero_()
    assert torch.equal(layer(x), before)


def test_bf16_works_on_a_cpu_that_has_no_packed_bf16(monkeypatch):
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: False)
    weight, x = weight_and_rows(4, torch.bfloat16)
    assert torch.equal(pack(weight)(x), PlainLinear(weight)(x))


def test_float16_is_left_to_torch():
    assert isinstance(pack(torch.zeros(8, 8, dtype=torch.float16)), PlainLinear)


def test_without_onednn_it_is_torchs_own(monkeypatch):
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    assert isinstance(pack(torch.zeros(8, 8)), PlainLinear)
