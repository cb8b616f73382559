"""The compiled step of a CPU computes what the operations compute, and a slot's bytes are its own."""

import pytest
import torch

from tests.parts import need
from worker.musicgen.attention import best
from worker.musicgen.cache import Cache, CacheSize
from worker.musicgen.layers import Placement
from worker.musicgen.model import Model

pytestmark = pytest.mark.xdist_group("engine")

CPU = torch.device("cpu")
SLOTS, N_COLUMNS = 5, 48
POSITIONS = torch.tensor([0, 47, 7, 20, 7])


@pytest.fixture(scope="module", params=[False, True], ids=["fp32", "kv16"])
def model(loaded, request):
    placement = Placement(CPU, torch.float32, half_cache=request.param)
    made = Model(loaded.model.decoder, placement, best(16, torch.float32, CPU), N_COLUMNS)
    if not made.is_row_exact:
        need("a C compiler, or a CPU with AVX2", False)
    return made


def random(seed, *shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def inputs(model):
    """Tokens of every slot, and a cache that is full but for what a step writes."""
    cache = Cache(model.shape, CacheSize(SLOTS, N_COLUMNS, 8), model.placement, model.attention)
    for slot in range(SLOTS):
        model.set_text(random(slot, 3 + slot, model.shape.hidden), slot, cache)
    for i, kept in enumerate(cache.own):
        kept.copy_(random(i, *kept.shape))
    tokens = torch.randint(0, 257, (SLOTS, 4), generator=torch.Generator().manual_seed(0))
    return tokens, cache


def stepped(model, slots=SLOTS, change=lambda cache: None):
    """(conditional, unconditional, keys and values of each layer) of a step of the first slots."""
    tokens, cache = inputs(model)
    change(cache)
    conditional, unconditional = model.step(tokens[:slots], POSITIONS[:slots], N_COLUMNS, cache)
    return [conditional, unconditional, *cache.own]


def test_it_computes_what_the_operations_compute(model, loaded, monkeypatch):
    ours = stepped(model)
    placement = Placement(CPU, torch.float32)
    plain = Model(loaded.model.decoder, placement, best(16, torch.float32, CPU), N_COLUMNS)
    monkeypatch.setattr(plain, "_cpu_step", None)
    theirs = stepped(plain, change=lambda cache: None)
    tolerance = 2e-2 if model.placement.half_cache else 2e-5
    for one, other in zip(ours, theirs, strict=True):
        assert torch.allclose(one.float(), other, rtol=tolerance, atol=tolerance * other.abs().max())


@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize("slots", [1, 2, SLOTS])
def test_a_slots_bytes_depend_neither_on_the_other_slots_nor_on_the_threads(model, slots, threads):
    whole, before = stepped(model), torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        some = stepped(model, slots)
    finally:
        torch.set_num_threads(before)
    for one, other in zip(some[:2], whole[:2], strict=True):
        assert torch.equal(one, other[:slots])


def test_slots_beyond_those_that_step_keep_their_keys_and_values(model):
    _, before = inputs(model)
    for now, then in zip(stepped(model, 2)[2:], before.own, strict=True):
        rows = 2 if now.shape[1] == SLOTS else 4
        assert torch.equal(now[:, rows:], then[:, rows:])
        assert not torch.equal(now[:, :rows], then[:, :rows])


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_not_finite_shows_in_its_slot_alone(model, value):
    clean = stepped(model)

    def damage(cache):
        cache.own[1][1, 2 * 1, :, 0] = value  # slot 1, which has 48 columns

    damaged = stepped(model, change=damage)
    assert not damaged[0][1].isfinite().any()
    others = [0, 2, 3, 4]
    assert torch.equal(damaged[0][others], clean[0][others])
