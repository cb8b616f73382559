"""The C kernels compute what torch does, and a row alone as beside others."""

import pytest
import torch

from worker.decoding.kernels import NoCompiler
from worker.heartmula import gate
from worker.heartmula.attention import Compiled, Place, Sdpa, rotations
from worker.models.heartmula_config import Flavour

SIZES = Flavour(1, 6, 2, 96, 8, 64)
CAPACITY = 40


def both(dtype=torch.float32):
    rotation = rotations(16, CAPACITY)
    try:
        return Compiled(SIZES, rotation, dtype), Sdpa(SIZES, rotation, dtype)
    except NoCompiler as error:
        pytest.skip(str(error))


def attended(attention, place, qkv, cached):
    """-> the output and the cache after it."""
    cached = cached.clone()
    return attention(qkv, cached, attention.plan(place)), cached


def place_of(rows, n, seed=0):
    """Random positions: n in each of some rows, from row 1 on."""
    start = torch.randint(CAPACITY - n, (rows, 1), generator=torch.Generator().manual_seed(seed))
    return Place(1, start + torch.arange(n), CAPACITY)


def random(*shape, dtype=torch.float32, seed=1):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


@pytest.mark.parametrize(("rows", "n"), [(1, 1), (5, 1), (2, 11), (5, 2)])
@pytest.mark.parametrize(("dtype", "close"), [(torch.float32, 1e-5), (torch.bfloat16, 0.03)])
def test_kernel_attends_as_torch_does(rows, n, dtype, close):
    compiled, sdpa = both(dtype)
    place, cached = place_of(rows, n), random(2, 7, 2, CAPACITY, 16, dtype=dtype)
    qkv = random(rows * n, 10 * 16, dtype=dtype, seed=2)
    (ours, our_cache), (theirs, their_cache) = (
        attended(attention, place, qkv, cached) for attention in (compiled, sdpa)
    )
    assert torch.allclose(ours.float(), theirs.float(), atol=close)
    assert torch.allclose(our_cache.float(), their_cache.float(), atol=close)


def test_position_is_the_same_beside_others():
    compiled, _ = both()
    cached, qkv = random(2, 9, 2, CAPACITY, 16), random(8, 10 * 16, seed=2)
    place = place_of(8, 1)
    together, _ = attended(compiled, place, qkv, cached)
    for row in range(8):
        alone = Place(1 + row, place.position[row : row + 1], CAPACITY)
        assert torch.equal(attended(compiled, alone, qkv[row : row + 1], cached)[0], together[row : row + 1])


def test_positions_of_a_chunk_are_those_of_single_steps():
    compiled, _ = both()
    cached, qkv = random(2, 2, 2, CAPACITY, 16), random(9, 10 * 16, seed=2)
    chunk = Place(1, torch.arange(20, 29)[None], CAPACITY)
    together, filled = attended(compiled, chunk, qkv, cached)
    for n in range(9):
        step = Place(1, chunk.position[:, n : n + 1], CAPACITY)
        alone, cached = attended(compiled, step, qkv[n : n + 1], cached)
        assert torch.equal(alone, together[n : n + 1])
    assert torch.equal(cached, filled)


def test_columns_after_a_position_do_not_matter():
    compiled, _ = both()
    place, qkv = Place(0, torch.tensor([[5]]), CAPACITY), random(1, 10 * 16)
    cached = random(2, 1, 2, CAPACITY, 16, seed=2)
    spoiled = cached.clone()
    spoiled[..., 6:, :] = torch.nan
    assert torch.equal(attended(compiled, place, qkv, cached)[0], attended(compiled, place, qkv, spoiled)[0])


@pytest.mark.parametrize("n", [1, 15, 16, 80, 1030, 8192])
def test_gate_is_torchs_and_a_row_is_the_same_beside_others(n):
    try:
        compiled = gate.compiled()
    except NoCompiler as error:
        pytest.skip(str(error))
    x = 4 * random(5, 2 * n)
    together = compiled(x)
    assert torch.allclose(together, gate.plain(x), rtol=1e-5, atol=1e-6)
    for row in range(5):
        assert torch.equal(compiled(x[row : row + 1]), together[row : row + 1])
