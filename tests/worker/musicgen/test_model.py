"""The fused decoder: filling columns equals stepping through them, and caches have the stated size."""

import pytest
import torch

from tests.worker.musicgen import flash
from worker.musicgen import attention
from worker.musicgen.attention import Sdpa, Varlen
from worker.musicgen.cache import Cache, CacheSize
from worker.musicgen.layers import Placement, Shape
from worker.musicgen.model import Model

pytestmark = pytest.mark.xdist_group("engine")

SLOTS, N_COLUMNS, N_TEXT = 3, 48, 8
N_KNOWN = 37
SIZE = CacheSize(SLOTS, N_COLUMNS, N_TEXT)
PLACEMENT = Placement(torch.device("cpu"), torch.float32)


@pytest.fixture(scope="module", params=["sdpa", "varlen"])
def model(loaded, request):
    """With each layout of the cache; varlen with a CPU stand-in for its kernel."""
    chosen = Varlen() if request.param == "varlen" else Sdpa(torch.float32)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(attention, "varlen_attn_out", flash.varlen_attn_out)
        yield Model(loaded.model.decoder, PLACEMENT, chosen, N_COLUMNS)


def random(seed, *shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def tokens_of(seed, n=N_COLUMNS):
    return torch.randint(0, 257, (n, 4), generator=torch.Generator().manual_seed(seed))


def blank(model):
    """A cache whose slots all have a text."""
    cache = Cache(model.shape, SIZE, PLACEMENT, model.attention)
    for slot in range(SLOTS):
        model.set_text(random(slot, 3 + slot, model.shape.hidden), slot, cache)
    return cache


def stepped(model, columns, upto):
    """(cache, last logits of each half) after stepping all slots through their first columns."""
    cache, logits = blank(model), None
    for column in range(upto):
        at = torch.full((SLOTS,), column)
        logits = model.step(torch.stack([slot[column] for slot in columns]), at, N_COLUMNS, cache)
    return cache, logits


def rows_of(cache, slot, n):
    """A slot's keys and values in every layer and half."""
    for kv in cache.own:
        for row in [slot] if kv.shape[1] == cache.slots else [2 * slot, 2 * slot + 1]:
            yield kv[:, row, :, :n]


@pytest.fixture(scope="module")
def columns():
    return [tokens_of(slot) for slot in range(SLOTS)]


@pytest.mark.parametrize("chunk", [1, 5, 32, 37])
def test_filled_columns_are_cached_as_stepped_ones(model, columns, chunk):
    by_steps, _ = stepped(model, columns, N_KNOWN)
    filled = blank(model)
    for start in range(0, N_KNOWN, chunk):
        end = min(start + chunk, N_KNOWN)
        model.fill(columns[1][start:end], start, 1, filled)
    for ours, expected in zip(rows_of(filled, 1, N_KNOWN), rows_of(by_steps, 1, N_KNOWN), strict=True):
        assert (ours - expected).abs().max() < 1e-5


def test_step_after_filling_gives_the_logits_of_stepping(model, columns):
    _, expected = stepped(model, columns, N_KNOWN + 1)
    filled = blank(model)
    for slot in range(SLOTS):
        model.fill(columns[slot][:N_KNOWN], 0, slot, filled)
    last = torch.stack([slot[N_KNOWN] for slot in columns])
    logits = model.step(last, torch.full((SLOTS,), N_KNOWN), N_COLUMNS, filled)
    for ours, theirs in zip(logits, expected, strict=True):
        assert (ours - theirs).abs().max() < 1e-4


def same_bytes(a, b):
    """Also of memory that nothing has been written to, which may hold NaN."""
    return a.shape == b.shape and torch.equal(
        a.contiguous().view(torch.uint8), b.contiguous().view(torch.uint8)
    )


def test_filling_a_slot_leaves_the_others_alone(model, columns):
    cache, _ = stepped(model, columns, 10)
    before = [row.clone() for slot in (0, 2) for row in rows_of(cache, slot, N_COLUMNS)]
    model.fill(columns[1][:20], 0, 1, cache)
    after = [row for slot in (0, 2) for row in rows_of(cache, slot, N_COLUMNS)]
    assert all(same_bytes(*pair) for pair in zip(before, after, strict=True))


def test_step_of_the_first_slots_gives_their_logits_and_leaves_the_others_alone(model, columns):
    cache, expected = stepped(model, columns, 5)
    before = [row.clone() for row in rows_of(cache, 2, N_COLUMNS)]
    again = model.step(torch.stack([c[4] for c in columns[:2]]), torch.full((2,), 4), N_COLUMNS, cache)
    for few, all_slots in zip(again, expected, strict=True):
        assert (few - all_slots[:2]).abs().max() < 1e-5
    assert all(same_bytes(*pair) for pair in zip(before, rows_of(cache, 2, N_COLUMNS), strict=True))


def test_song_that_was_moved_to_another_slot_continues_as_in_its_own(model, columns):
    cache, (expected, _) = stepped(model, columns, 6)
    cache, _ = stepped(model, columns, 5)
    cache.move(2, 0, 5)
    again, _ = model.step(columns[2][5][None], torch.full((1,), 5), N_COLUMNS, cache)
    assert (again[0] - expected[2]).abs().max() < 1e-5


def test_text_changes_the_conditional_half_only(model, columns):
    cache, (conditional, unconditional) = stepped(model, columns, 5)
    for slot in range(SLOTS):
        model.set_text(random(9, 4, model.shape.hidden), slot, cache)
    again = model.step(torch.stack([c[4] for c in columns]), torch.full((SLOTS,), 4), N_COLUMNS, cache)
    assert not torch.allclose(again[0], conditional, atol=1e-3)
    assert torch.equal(again[1], unconditional)


def test_text_that_is_longer_than_any_before_grows_the_cache_and_changes_no_other_slot(model, columns):
    cache, (expected, _) = stepped(model, columns, 5)
    model.set_text(random(7, 3 * N_TEXT, model.shape.hidden), 2, cache)
    again, _ = model.step(torch.stack([c[4] for c in columns]), torch.full((SLOTS,), 4), N_COLUMNS, cache)
    assert cache.n_text >= 3 * N_TEXT
    assert (again[:2] - expected[:2]).abs().max() < 1e-5


def test_cache_stays_in_memory_as_the_attention_reads_it(model, columns):
    cache = blank(model)
    before = [kv.stride() for kv in cache.own]
    fresh = model.attention.blank((*cache.text.shape[:4], 4 * N_TEXT, 16), torch.float32, PLACEMENT.device)
    model.fill(columns[0][:9], 0, 0, cache)
    cache.move(0, 2, 9)
    cache.resize_text(4 * N_TEXT)
    assert [kv.stride() for kv in cache.own] == before
    assert cache.text.stride() == fresh.stride()


def test_shorter_text_after_a_longer_one_is_as_if_it_were_the_first(model, columns):
    cache, short = blank(model), random(5, 2, model.shape.hidden)
    fresh = blank(model)
    model.set_text(short, 0, fresh)
    model.set_text(random(6, N_TEXT, model.shape.hidden), 0, cache)
    model.set_text(short, 0, cache)
    at, first = torch.zeros(SLOTS, dtype=torch.int64), torch.stack([c[0] for c in columns])
    assert torch.equal(
        model.step(first, at, N_COLUMNS, cache)[0][0], model.step(first, at, N_COLUMNS, fresh)[0][0]
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_slot_takes_the_bytes_that_n_bytes_returns(model, dtype):
    cache = Cache(model.shape, SIZE, Placement(torch.device("cpu"), dtype), Sdpa(dtype))
    tensors = [*cache.own, cache.text]
    n_bytes = Cache.n_bytes(model.shape, N_COLUMNS, N_TEXT, dtype)
    assert sum(tensor.nbytes for tensor in tensors) == SLOTS * n_bytes


def test_shape_is_read_from_the_checkpoint(loaded):
    assert Shape.of(loaded.model.decoder) == Shape(3, 4, 16, 4, 256)
