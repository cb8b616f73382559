"""A song is the same whatever else is in the slots, can be resumed, and ends by itself."""

import numpy as np
import pytest
import torch

from tests.worker.heartmula import songs
from tests.worker.heartmula.cases import CASES, LAST, Case, draws_of
from worker.engine import Sampling
from worker.heartmula.cache import CacheSize

CASE = CASES["rehearsal-drawn"]


@pytest.fixture(scope="module")
def model(models):
    if not models["rehearsal"].is_row_exact:
        pytest.skip("no C compiler, or a CPU without AVX2")
    return models["rehearsal"]


@pytest.fixture(scope="module")
def say(trees):
    """The prompt of a case."""
    return lambda case: songs.prompt_of(trees["rehearsal"], case)


@pytest.fixture(scope="module")
def solos(model, say):
    """Eight songs, each made alone."""
    return [(case, songs.alone(model, say(case), case)) for case in songs.varied(8)]


@pytest.mark.parametrize("slots", [1, 3, 8])
@pytest.mark.parametrize("last_first", [False, True])
def test_song_is_the_same_whatever_the_slots_the_order_and_the_refills(model, say, solos, slots, last_first):
    """Songs of all lengths, each slot filled again as soon as its song has ended."""
    waiting = solos[::-1] if last_first else list(solos)
    on, held, n_done = songs.stepper(model, CASE, slots), {}, 0
    while waiting or held:
        for slot in set(range(slots)) - set(held):
            if waiting:
                held[slot] = waiting.pop(0)
                songs.begin(on, slot, say(held[slot][0]), held[slot][0])
        songs.advance(on, 1)
        for slot, (_, alone) in list(held.items()):
            if not on.progress(slots)[slot].is_running:
                assert np.array_equal(songs.finished(on, slot), alone)
                on.stop(slot)
                on.leave(slot)
                del held[slot]
                n_done += 1
    assert n_done == 8


def test_song_is_the_same_when_only_some_slots_are_computed(model, say, solos):
    on = songs.stepper(model, CASE, 8)
    for slot, (case, _) in enumerate(solos[:3]):
        songs.begin(on, slot, say(case), case)
    songs.advance(on, 12, n_slots=3)
    for slot, (_, alone) in enumerate(solos[:3]):
        assert np.array_equal(songs.finished(on, slot), alone)


def test_song_is_the_same_with_more_threads(model, say, solos):
    case, alone = solos[7]
    torch.set_num_threads(3)
    try:
        assert np.array_equal(songs.alone(model, say(case), case), alone)
    finally:
        torch.set_num_threads(1)


@pytest.mark.parametrize("chunk", [1, 7, 1000])
def test_song_is_the_same_whatever_the_chunks_of_its_prompt(model, say, solos, chunk):
    case, alone = solos[7]
    assert np.array_equal(songs.alone(model, say(case), case, chunk=chunk), alone)


def test_filling_a_slot_between_steps_changes_neither_song(model, say, solos):
    (first, first_alone), (second, second_alone) = solos[0], solos[7]
    on = songs.stepper(model, CASE, 2)
    songs.begin(on, 0, say(first), first)
    on.set_text(1, say(second))
    n = on.open(1, songs.NOTHING, draws_of(second))
    for start in range(0, n, 8):  # more chunks than the first song has frames
        on.fill(1, start, min(start + 8, n))
        songs.advance(on, 1)
    on.start(1)
    songs.advance(on, second.n_frames)
    assert np.array_equal(songs.finished(on, 0), first_alone)
    assert np.array_equal(songs.finished(on, 1), second_alone)


@pytest.mark.parametrize("n_known", [1, 2, 9])
def test_song_resumed_at_any_frame_becomes_the_song_it_would_have_been(model, say, solos, n_known):
    case, alone = solos[4]  # of ten frames
    assert np.array_equal(
        songs.alone(model, say(case), case, alone[:, :n_known])[:, n_known:], alone[:, n_known:]
    )


def test_resumed_song_begins_with_what_was_known(model, say, solos):
    case, alone = solos[4]
    assert np.array_equal(songs.alone(model, say(case), case, alone[:, :3])[:, :3], alone[:, :3])


def test_another_known_frame_changes_what_follows(model, say, solos):
    """Else the tests of resumed songs would prove little."""
    case, alone = solos[4]
    other = (alone[:, :3] + 1) % 60
    assert not np.array_equal(songs.alone(model, say(case), case, other)[:, 3:], alone[:, 3:])


def test_song_that_is_moved_goes_on_as_before(model, say, solos):
    case, alone = solos[4]
    on = songs.stepper(model, CASE, 4)
    songs.begin(on, 3, say(case), case)
    songs.advance(on, 4)
    on.move(3, 1, say(case).n_positions + 4)
    songs.advance(on, case.n_frames - 4, n_slots=2)
    assert np.array_equal(songs.finished(on, 1), alone)


def test_song_that_has_ended_changes_no_more(model, say):
    case = CASES["rehearsal-ends"]
    alone = songs.alone(model, say(case), case)
    on = songs.stepper(model, case)
    songs.begin(on, 0, say(case), case)
    songs.advance(on, case.n_frames + 5)
    assert 1 < alone.shape[1] < case.n_frames
    assert np.array_equal(songs.finished(on, 0), alone)


def test_song_that_fills_all_columns_changes_no_more_after_its_end(model, say, solos):
    case, alone = solos[0]
    n_columns = say(case).n_positions + case.n_frames - 1
    on = songs.stepper(model, case, 2, n_columns)
    songs.begin(on, 1, say(case), case)
    songs.advance(on, case.n_frames + 3)
    assert np.array_equal(songs.finished(on, 1), alone)


def test_song_longer_than_the_columns_is_refused(model, say, solos):
    case, _ = solos[0]
    on = songs.stepper(model, case, 1, say(case).n_positions + case.n_frames - 2)
    on.set_text(0, say(case))
    with pytest.raises(ValueError, match="do not fit"):
        on.open(0, songs.NOTHING, draws_of(case))


def test_progress_counts_the_frames_of_running_songs(model, say, solos):
    (short, _), (long, _) = solos[0], solos[4]
    on = songs.stepper(model, CASE, 3)
    songs.begin(on, 0, say(short), short)
    songs.begin(on, 2, say(long), long)
    songs.advance(on, 6)
    assert on.progress(3) == [(6, False), (0, False), (6, True)]


def test_other_draws_make_another_song(model, say):
    one, other = (Case("rehearsal", 6, 1.5, 20, seed=seed) for seed in (1, 2))
    assert not np.array_equal(songs.alone(model, say(one), one), songs.alone(model, say(other), other))


def test_a_stepper_goes_from_guided_songs_to_unguided_ones(model, say):
    guided, unguided = CASES["rehearsal-greedy"], CASES["rehearsal-greedy-unguided"]
    alone = songs.alone(model, say(unguided), unguided)
    on = songs.stepper(model, guided)
    songs.begin(on, 0, say(guided), guided)
    songs.advance(on, 3)
    on.reset(Sampling(1.0, 1))
    songs.begin(on, 0, say(unguided), unguided)
    songs.advance(on, unguided.n_frames)
    assert np.array_equal(songs.finished(on, 0), alone)


def test_unguided_songs_take_half_the_memory(model):
    both = model.caches(CacheSize(2, 2, 100))[0]
    one = model.caches(CacheSize(2, 1, 100))[0]
    taken = [sum(kv.nbytes for kv in cache.layers) for cache in (both, one)]
    assert taken[0] == 2 * taken[1] == model.n_bytes(CacheSize(2, 2, 100))


@pytest.mark.parametrize("kind", ["models", "plain_models"])
def test_broken_song_is_noticed_and_spoils_no_later_one(request, say, kind):
    model = request.getfixturevalue(kind)["rehearsal"]
    case = CASES["rehearsal-greedy"]
    on = songs.stepper(model, case, 2)
    songs.begin(on, 0, say(case), case)
    for kv in on._cache.layers:
        kv[:, on._cache.rows(0)] = torch.nan
    songs.advance(on, 3)
    assert on.is_broken(0) and not on.is_broken(1)
    on.stop(0)
    on.leave(0)
    songs.begin(on, 0, say(case), case)
    songs.advance(on, case.n_frames)
    assert np.array_equal(songs.finished(on, 0), songs.alone(model, say(case), case))


def test_step_does_not_wait_for_the_device(trees, say):
    """On the meta device, which has no numbers, nothing can be read back."""
    case = Case("rehearsal", 5, 1.5, 20, audio_eos=LAST["rehearsal"])
    on = songs.stepper(songs.model(trees["rehearsal"], device="meta"), case, 2)
    songs.begin(on, 0, say(case), case)
    songs.advance(on, 2)
    with pytest.raises((RuntimeError, NotImplementedError), match="meta"):
        on.progress(2)


@pytest.fixture(scope="module", params=[False, True], ids=["plain", "compiled"])
def narrow(trees, request):
    """In bf16, where a filled position is not byte for byte a step's."""
    return songs.model(trees["rehearsal"], torch.bfloat16, compiled=request.param)


def test_narrow_song_is_resumed_exactly_where_all_songs_fill_anew(narrow, say):
    """At each multiple of the chunk the song fills its newest chunk, as one that is resumed there does."""
    case, chunk = Case("rehearsal", 40, 1.5, 20, seed=9), 16
    prompt = say(case)
    on = songs.stepper(narrow, case)
    songs.begin(on, 0, prompt, case, chunk=chunk)
    cuts = []
    for made in range(1, case.n_frames + 1):
        songs.advance(on, 1)
        newest = prompt.n_positions - 1 + made
        if newest % chunk == 0 and made < case.n_frames:
            on.fill(0, newest - chunk, newest)
            cuts.append(made)
    whole = songs.finished(on, 0)
    assert len(cuts) == 2 or len(cuts) == 3
    for made in cuts:
        assert np.array_equal(songs.alone(narrow, prompt, case, whole[:, :made], chunk), whole)


def test_narrow_song_is_about_the_wide_one(narrow, model, say):
    """Greedy, and for its first frame: later ones follow from it."""
    case = Case("rehearsal", 1, 1.5, 1)
    close = songs.alone(narrow, say(case), case) == songs.alone(model, say(case), case)
    assert close[0].all()
