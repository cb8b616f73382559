"""The compiled attention kernel equals torch's attention, over each row's own length."""

import pytest
import torch

from tests.parts import need
from tests.worker.musicgen import flash
from worker.decoding import kernels
from worker.decoding.kernels import NoCompiler
from worker.musicgen import attention
from worker.musicgen.attention import Compiled, New, Sdpa, Varlen

pytestmark = pytest.mark.xdist_group("engine")

CPU = torch.device("cpu")
CAPACITY, BUCKET = 200, 128
LENGTHS = torch.tensor([1, 2, BUCKET - 1, BUCKET, 77])


@pytest.fixture
def compiled():
    """`Compiled`, where this machine can build it."""

    def build(head, dtype):
        try:
            return Compiled(head, dtype)
        except NoCompiler:
            need("a C compiler", False)

    return build


@pytest.fixture
def varlen(monkeypatch):
    """`Varlen` on a CPU."""
    monkeypatch.setattr(attention, "varlen_attn_out", flash.varlen_attn_out)
    return Varlen()


def made(head, dtype, n_heads=3):
    """Query, and keys and values in one tensor, of ordinary size."""
    generator = torch.Generator().manual_seed(head)
    n_rows = len(LENGTHS)
    shapes = [(n_rows, n_heads, head), (2, n_rows, n_heads, CAPACITY, head)]
    return [torch.randn(shape, generator=generator).to(dtype) for shape in shapes]


def laid_out(variant, cached):
    """The same keys and values, in memory as the variant reads them."""
    return variant.blank(tuple(cached.shape), cached.dtype, cached.device).copy_(cached)


def attended(variant, lengths, query, cached, bucket=BUCKET):
    return variant(query, laid_out(variant, cached), variant.reach(lengths, bucket))


@pytest.mark.parametrize("head", [16, 32, 64])
def test_compiled_equals_sdpa(compiled, head):
    inputs = made(head, torch.float32)
    theirs = attended(Sdpa(torch.float32), LENGTHS, *inputs)
    assert (attended(compiled(head, torch.float32), LENGTHS, *inputs) - theirs).abs().max() < 1e-5


@pytest.mark.parametrize("head", [16, 32, 64])
def test_compiled_equals_sdpa_at_full_capacity(compiled, head):
    inputs, lengths = made(head, torch.float32), torch.full((5,), CAPACITY)
    theirs = attended(Sdpa(torch.float32), lengths, *inputs, bucket=CAPACITY)
    ours = attended(compiled(head, torch.float32), lengths, *inputs, bucket=CAPACITY)
    assert (ours - theirs).abs().max() < 1e-5


@pytest.mark.parametrize("head", [16, 32, 64])
def test_compiled_in_bf16_is_exact_but_for_the_rounding_of_its_result(compiled, head):
    """It adds in float32, so only the result is rounded: by up to half a step of bfloat16, 2^-8 of it."""
    inputs = made(head, torch.bfloat16)
    exact = attended(Sdpa(torch.float32), LENGTHS, *(x.float() for x in inputs))
    ours = attended(compiled(head, torch.bfloat16), LENGTHS, *inputs)
    assert ours.dtype == torch.bfloat16
    assert ((ours.float() - exact).abs() <= 2**-8 * exact.abs() + 1e-5).all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("head", [16, 64])
def test_varlen_equals_sdpa(varlen, head, dtype):
    """Both round once: by up to half a step, 2^-8 of it in bfloat16."""
    inputs = made(head, dtype)
    exact = attended(Sdpa(torch.float32), LENGTHS, *(x.float() for x in inputs))
    ours = attended(varlen, LENGTHS, *inputs)
    assert ((ours.float() - exact).abs() <= 2**-8 * exact.abs() + 1e-5).all()


def test_varlen_of_the_first_rows_reads_those_rows(varlen):
    query, cached = made(16, torch.bfloat16)
    cached = laid_out(varlen, cached)
    few = varlen(query[:2], cached[:, :2], varlen.reach(LENGTHS[:2], BUCKET))
    assert torch.equal(few, varlen(query, cached, varlen.reach(LENGTHS, BUCKET))[:2])


@pytest.mark.parametrize(
    ("variant", "dtype"),
    [
        ("sdpa", torch.float32),
        ("sdpa", torch.bfloat16),
        ("compiled", torch.float32),
        ("compiled", torch.bfloat16),
        ("varlen", torch.bfloat16),
    ],
)
def test_new_keys_and_values_are_cached_and_attended_to(compiled, varlen, variant, dtype):
    chosen = {"sdpa": Sdpa, "varlen": lambda _: varlen, "compiled": lambda _: compiled(16, dtype)}[variant](
        dtype
    )
    _, cached = made(16, dtype)
    qkv = torch.randn(len(LENGTHS), 3, 3, 16, generator=torch.Generator().manual_seed(1)).to(dtype)
    rows = torch.arange(len(LENGTHS))
    there = cached.clone()
    there[0][rows, :, LENGTHS - 1], there[1][rows, :, LENGTHS - 1] = qkv[:, 1], qkv[:, 2]
    expected = attended(chosen, LENGTHS, qkv[:, 0], there)
    cached = laid_out(chosen, cached)
    new = New(qkv[:, 1:], rows, LENGTHS - 1)  # as the model has them: rows of one product
    assert torch.equal(chosen(qkv[:, 0], cached, chosen.reach(LENGTHS, BUCKET), new), expected)
    assert torch.equal(cached, there)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_compiled_never_reads_beyond_a_rows_length(compiled, dtype):
    query, cached = made(16, dtype)
    clean = attended(compiled(16, dtype), LENGTHS, query, cached)
    for row, length in enumerate(LENGTHS):
        cached[:, row, :, length:] = float("nan")
    assert torch.equal(attended(compiled(16, dtype), LENGTHS, query, cached), clean)


def test_sdpa_reads_nothing_beyond_the_bucket():
    query, cached = made(16, torch.float32)
    clean = attended(Sdpa(torch.float32), LENGTHS, query, cached)
    cached[..., BUCKET:, :] = float("nan")
    assert torch.equal(attended(Sdpa(torch.float32), LENGTHS, query, cached), clean)


def test_sdpa_gives_what_lies_beyond_a_rows_length_no_weight():
    query, cached = made(16, torch.float32)
    clean = attended(Sdpa(torch.float32), LENGTHS, query, cached)
    for row, length in enumerate(LENGTHS):
        cached[:, row, :, length:] = 1e3
    assert torch.equal(attended(Sdpa(torch.float32), LENGTHS, query, cached), clean)


def test_length_of_1_gives_the_first_value(compiled):
    query, cached = made(16, torch.float32)
    ours = attended(compiled(16, torch.float32), torch.ones(5, dtype=torch.int64), query, cached)
    assert torch.allclose(ours, cached[1, :, :, 0], atol=1e-6)


def test_large_scores_do_not_overflow(compiled):
    query, cached = made(16, torch.float32)
    ours = attended(compiled(16, torch.float32), LENGTHS, query * 300, cached)
    theirs = attended(Sdpa(torch.float32), LENGTHS, query * 300, cached)
    assert (ours - theirs).abs().max() < 1e-3


@pytest.mark.parametrize("variant", ["sdpa", "compiled"])
def test_a_row_does_not_depend_on_the_others(compiled, variant):
    chosen = Sdpa(torch.float32) if variant == "sdpa" else compiled(16, torch.float32)
    query, cached = made(16, torch.float32)
    before = attended(chosen, LENGTHS, query, cached)[1]
    query[2:], cached[:, 2:] = 0, 0
    lengths = torch.tensor([1, 2, 3, 4, 5])
    assert torch.equal(attended(chosen, lengths, query, cached)[1], before)


@pytest.mark.parametrize("variant", ["sdpa", "compiled"])
def test_a_row_does_not_depend_on_the_bucket_that_the_longest_needs(compiled, variant):
    chosen = Sdpa(torch.float32) if variant == "sdpa" else compiled(64, torch.float32)
    inputs, lengths = made(64, torch.float32), LENGTHS.clamp(max=100)
    small, large = (attended(chosen, lengths, *inputs, bucket=bucket) for bucket in (BUCKET, CAPACITY))
    assert torch.equal(small, large)


# --- which one is chosen


@pytest.fixture
def unbuilt():
    """No kernel is built yet, nor afterwards."""
    kernels._built.cache_clear()
    yield
    kernels._built.cache_clear()


def test_compiled_is_chosen_where_there_is_a_compiler(compiled):
    compiled(16, torch.float32)
    assert attention.best(16, torch.float32, CPU).name == "compiled"


def test_without_a_compiler_it_is_sdpa(unbuilt, monkeypatch):
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setenv("PATH", "")
    assert attention.best(16, torch.float32, CPU).name == "sdpa"


@pytest.mark.parametrize("compiler", ["false", "/no/such/compiler"])
def test_with_a_compiler_that_fails_it_is_sdpa(unbuilt, monkeypatch, compiler):
    monkeypatch.setenv("CC", compiler)
    assert attention.best(16, torch.float32, CPU).name == "sdpa"


@pytest.mark.parametrize(
    ("capability", "dtype", "head", "name"),
    [
        ((9, 0), torch.bfloat16, 64, "varlen"),
        ((8, 0), torch.float16, 64, "varlen"),
        ((8, 6), torch.float32, 64, "sdpa"),
        ((8, 0), torch.bfloat16, 12, "sdpa"),
        ((7, 5), torch.float16, 64, "sdpa"),
    ],
)
def test_on_a_gpu_it_is_varlen_where_its_kernel_runs(monkeypatch, capability, dtype, head, name):
    monkeypatch.setattr(torch.backends.cuda, "is_flash_attention_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)
    assert attention.best(head, dtype, torch.device("cuda")).name == name


def test_on_a_gpu_without_flash_attention_it_is_sdpa(monkeypatch):
    monkeypatch.setattr(torch.backends.cuda, "is_flash_attention_available", lambda: False)
    assert attention.best(64, torch.float16, torch.device("cuda")).name == "sdpa"
