"""Packed and compiled linear layers multiply as torch's own do."""

import pytest
import torch

from tests.parts import need
from worker.decoding import kernels
from worker.decoding.linear import CompiledLinear, PackedLinear, PlainLinear, pack

pytestmark = pytest.mark.xdist_group("engine")

N_IN, N_OUT = 96, 160
packs_bf16 = pytest.mark.skipif(
    not torch.ops.mkldnn._is_mkldnn_bf16_supported(), reason="oneDNN packs no bf16 on this CPU"
)
# What this CPU has of the kernel's layouts.
HAVE = ["AVX2", "AVX512"][: 2 if torch.backends.cpu.get_cpu_capability() == "AVX512" else 1]
ROWS = [1, 2, 3, 8, 16, 31, 32, 33, 64, 130]


def weight_and_rows(n_rows, dtype, n_out=N_OUT, n_in=N_IN):
    generator = torch.Generator().manual_seed(n_rows)
    weight = torch.randn(n_out, n_in, generator=generator) / n_in**0.5
    return weight.to(dtype), torch.randn(n_rows, n_in, generator=generator).to(dtype)


@pytest.fixture
def compiled():
    """`CompiledLinear`, where this machine can build it."""

    def build(weight, gelu=False):
        try:
            return CompiledLinear(weight, gelu)
        except kernels.NoCompiler:
            need("a C compiler, or a CPU with AVX2", False)

    return build


@pytest.fixture
def vectors(monkeypatch):
    """Pretend that torch found these vector instructions."""
    return lambda name: monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: name)


@pytest.mark.parametrize("gelu", [False, True])
@pytest.mark.parametrize("n_rows", ROWS)
def test_packed_equals_plain(n_rows, gelu):
    weight, x = weight_and_rows(n_rows, torch.float32)
    assert torch.allclose(PackedLinear(weight, gelu)(x), PlainLinear(weight, gelu)(x), atol=1e-5)


@pytest.mark.parametrize("gelu", [False, True])
@pytest.mark.parametrize("n_rows", ROWS)
def test_compiled_equals_plain(compiled, n_rows, gelu):
    weight, x = weight_and_rows(n_rows, torch.float32)
    assert torch.allclose(compiled(weight, gelu)(x), PlainLinear(weight, gelu)(x), atol=1e-5)


@pytest.mark.parametrize("layout", HAVE)
@pytest.mark.parametrize("n_in", [1, 95, 96, 97, 255, 256, 257, 1024])
@pytest.mark.parametrize("n_out", [1, 23, 24, 25, 63, 64, 65, 1024])
def test_compiled_equals_plain_where_blocks_and_panels_are_not_full(compiled, vectors, n_out, n_in, layout):
    vectors(layout)
    weight, x = weight_and_rows(7, torch.float32, n_out, n_in)
    assert torch.allclose(compiled(weight)(x), PlainLinear(weight)(x), atol=1e-5)


def test_compiled_rows_are_the_same_bytes_whatever_their_number_and_the_threads(compiled):
    weight, x = weight_and_rows(130, torch.float32, n_in=600)
    layer = compiled(weight)
    whole = layer(x)
    n_threads = torch.get_num_threads()
    try:
        torch.set_num_threads(3 - min(n_threads, 2))
        assert torch.equal(torch.cat([layer(part) for part in x.split([1, 2, 63, 64])]), whole)
    finally:
        torch.set_num_threads(n_threads)


def test_compiled_takes_rows_that_are_a_view(compiled):
    weight, x = weight_and_rows(32, torch.float32)
    layer = compiled(weight)
    wide = torch.cat([x, x], dim=1)
    assert torch.equal(layer(wide[:, :N_IN]), layer(x))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_compiled_does_not_hide_what_is_not_finite(compiled, value):
    weight, x = weight_and_rows(5, torch.float32)
    x[3, 40] = value
    assert (~compiled(weight)(x).isfinite()).all(1).tolist() == [False, False, False, True, False]


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


# --- which one is chosen


@pytest.fixture
def unbuilt():
    """No kernel is built yet, nor afterwards."""
    kernels._built.cache_clear()
    yield
    kernels._built.cache_clear()


@pytest.mark.parametrize("name", HAVE)
def test_with_vectors_it_is_compiled(compiled, vectors, name):
    vectors(name)
    compiled(torch.zeros(8, 8))
    assert isinstance(pack(torch.zeros(8, 8)), CompiledLinear)


def test_without_a_compiler_it_is_onednns(unbuilt, vectors, monkeypatch):
    vectors("AVX2")
    monkeypatch.setenv("CC", "/no/such/compiler")
    assert isinstance(pack(torch.zeros(8, 8)), PackedLinear)


def test_lack_of_a_compiler_is_said_once_for_all_layers(unbuilt, vectors, monkeypatch, caplog):
    vectors("AVX2")
    monkeypatch.setenv("CC", "/no/such/compiler")
    for _ in range(3):
        pack(torch.zeros(8, 8))
    (said,) = caplog.messages
    assert said.startswith("linear.c is not compiled (/no/such/compiler")


def test_compiler_that_fails_is_asked_once(unbuilt, vectors, monkeypatch, tmp_path):
    vectors("AVX2")
    compiler = tmp_path / "cc"
    compiler.write_text(f"#!/bin/sh\necho run >> {tmp_path}/runs\nexit 1\n")
    compiler.chmod(0o755)
    monkeypatch.setenv("CC", str(compiler))
    for _ in range(3):
        pack(torch.zeros(8, 8))
    assert (tmp_path / "runs").read_text() == "run\n"


@pytest.mark.parametrize("x", [torch.zeros(2, 7), torch.zeros(2, 8, dtype=torch.float64), torch.zeros(8)])
def test_compiled_refuses_what_it_would_misread(compiled, x):
    with pytest.raises(ValueError, match="float32"):
        compiled(torch.zeros(8, 8))(x)


def test_float16_is_left_to_torch():
    assert isinstance(pack(torch.zeros(8, 8, dtype=torch.float16)), PlainLinear)


def test_without_onednn_it_is_torchs_own(vectors, monkeypatch):
    vectors("DEFAULT")
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    assert isinstance(pack(torch.zeros(8, 8)), PlainLinear)
