"""The compiled attention kernel equals torch's attention, over each row's own length."""

import pytest
import torch

from tests.parts import need
from worker.musicgen import attention, kernels
from worker.musicgen.attention import Compiled, New, Sdpa
from worker.musicgen.kernels import NoCompiler

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


def made(head, dtype, n_heads=3):
    """Query, keys and values of ordinary size."""
    generator = torch.Generator().manual_seed(head)
    n_rows = len(LENGTHS)
    shapes = [(n_rows, n_heads, head), *[(n_rows, n_heads, CAPACITY, head)] * 2]
    return [torch.randn(shape, generator=generator).to(dtype) for shape in shapes]


def attended(variant, lengths, query, keys, values, bucket=BUCKET):
    return variant(query, keys, values, variant.reach(lengths, bucket))


@pytest.mark.parametrize("head", [16, 32, 64])
def test_compiled_equals_sdpa(compiled, head):
    inputs = made(head, torch.float32)
    theirs = attended(Sdpa(), LENGTHS, *inputs)
    assert (attended(compiled(head, torch.float32), LENGTHS, *inputs) - theirs).abs().max() < 1e-5


@pytest.mark.parametrize("head", [16, 32, 64])
def test_compiled_equals_sdpa_at_full_capacity(compiled, head):
    inputs, lengths = made(head, torch.float32), torch.full((5,), CAPACITY)
    theirs = attended(Sdpa(), lengths, *inputs, bucket=CAPACITY)
    ours = attended(compiled(head, torch.float32), lengths, *inputs, bucket=CAPACITY)
    assert (ours - theirs).abs().max() < 1e-5


@pytest.mark.parametrize("head", [16, 32, 64])
def test_compiled_in_bf16_is_exact_but_for_the_rounding_of_its_result(compiled, head):
    """It adds in float32, so only the result is rounded: by up to half a step of bfloat16, 2^-8 of it."""
    inputs = made(head, torch.bfloat16)
    exact = attended(Sdpa(), LENGTHS, *(x.float() for x in inputs))
    ours = attended(compiled(head, torch.bfloat16), LENGTHS, *inputs)
    assert ours.dtype == torch.bfloat16
    assert ((ours.float() - exact).abs() <= 2**-8 * exact.abs() + 1e-5).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("variant", ["sdpa", "compiled"])
def test_new_keys_and_values_are_cached_and_attended_to(compiled, variant, dtype):
    chosen = Sdpa() if variant == "sdpa" else compiled(16, dtype)
    _, keys, values = made(16, dtype)
    qkv = torch.randn(len(LENGTHS), 3, 3, 16, generator=torch.Generator().manual_seed(1)).to(dtype)
    query, key, value = qkv.unbind(1)  # as the model has them: rows of one product
    rows = torch.arange(len(LENGTHS))
    there = [keys.clone(), values.clone()]
    there[0][rows, :, LENGTHS - 1], there[1][rows, :, LENGTHS - 1] = key, value
    expected = attended(chosen, LENGTHS, query, *there)
    new = New(key, value, rows, LENGTHS - 1)
    ours = chosen(query, keys, values, chosen.reach(LENGTHS, BUCKET), new)
    assert torch.equal(ours, expected)
    assert torch.equal(keys, there[0])
    assert torch.equal(values, there[1])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_compiled_never_reads_beyond_a_rows_length(compiled, dtype):
    query, keys, values = made(16, dtype)
    clean = attended(compiled(16, dtype), LENGTHS, query, keys, values)
    for row, length in enumerate(LENGTHS):
        keys[row, :, length:], values[row, :, length:] = float("nan"), float("nan")
    assert torch.equal(attended(compiled(16, dtype), LENGTHS, query, keys, values), clean)


def test_sdpa_reads_nothing_beyond_the_bucket():
    query, keys, values = made(16, torch.float32)
    clean = attended(Sdpa(), LENGTHS, query, keys, values)
    keys[:, :, BUCKET:], values[:, :, BUCKET:] = float("nan"), float("nan")
    assert torch.equal(attended(Sdpa(), LENGTHS, query, keys, values), clean)


def test_sdpa_gives_what_lies_beyond_a_rows_length_no_weight():
    query, keys, values = made(16, torch.float32)
    clean = attended(Sdpa(), LENGTHS, query, keys, values)
    for row, length in enumerate(LENGTHS):
        keys[row, :, length:], values[row, :, length:] = 1e3, 1e3
    assert torch.equal(attended(Sdpa(), LENGTHS, query, keys, values), clean)


def test_length_of_1_gives_the_first_value(compiled):
    query, keys, values = made(16, torch.float32)
    ours = attended(compiled(16, torch.float32), torch.ones(5, dtype=torch.int64), query, keys, values)
    assert torch.allclose(ours, values[:, :, 0], atol=1e-6)


def test_large_scores_do_not_overflow(compiled):
    query, keys, values = made(16, torch.float32)
    ours = attended(compiled(16, torch.float32), LENGTHS, query * 300, keys, values)
    theirs = attended(Sdpa(), LENGTHS, query * 300, keys, values)
    assert (ours - theirs).abs().max() < 1e-3


@pytest.mark.parametrize("variant", ["sdpa", "compiled"])
def test_a_row_does_not_depend_on_the_others(compiled, variant):
    chosen = Sdpa() if variant == "sdpa" else compiled(16, torch.float32)
    query, keys, values = made(16, torch.float32)
    before = attended(chosen, LENGTHS, query, keys, values)[1]
    query[2:], keys[2:], values[2:] = 0, 0, 0
    lengths = torch.tensor([1, 2, 3, 4, 5])
    assert torch.equal(attended(chosen, lengths, query, keys, values)[1], before)


@pytest.mark.parametrize("variant", ["sdpa", "compiled"])
def test_a_row_does_not_depend_on_the_bucket_that_the_longest_needs(compiled, variant):
    chosen = Sdpa() if variant == "sdpa" else compiled(64, torch.float32)
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


def test_on_a_gpu_it_is_sdpa():
    assert attention.best(64, torch.float16, torch.device("cuda")).name == "sdpa"
