"""CUDA graphs, with a recorder that runs on a CPU: what is captured, when, and what follows a failure."""

from itertools import pairwise

import numpy as np
import pytest
import torch

from tests.worker.decoding.recorder import Recorder, not_permitted
from tests.worker.heartmula import songs
from worker.engine import Failed, Finished, Sampling, Song
from worker.heartmula import Engine
from worker.heartmula.model import SAMPLING
from worker.heartmula.pretrained import Pretrained
from worker.heartmula.stepper import Stepper, buckets

pytestmark = pytest.mark.xdist_group("heartmula-engine")

SONGS = [Song("a", "calm", 1.0, 1, "la " * 20), Song("b", "epic", 0.7, 2), Song("c", "rain", 0.5, 3)]
WIDE = Song("wide", "rain", 25.0, 4)  # more than a bucket of columns


@pytest.fixture
def recorder(monkeypatch):
    return Recorder(monkeypatch, Stepper)


@pytest.fixture(scope="module")
def loaded(trees):
    return Pretrained(trees["rehearsal"], "heartmula-rehearsal", "0")


def run(engine, to_make=SONGS, sampling=SAMPLING):
    events = list(engine.stream(to_make, sampling))
    assert not [event for event in events if isinstance(event, Failed)]
    return {event.key: event.tokens for event in events if isinstance(event, Finished)}


def same(made, expected):
    return len(made) > 0 and all(np.array_equal(tokens, expected[key]) for key, tokens in made.items())


@pytest.fixture(scope="module")
def expected(loaded):
    """The songs without graphs."""
    engine = Engine(loaded, slots=4)
    if not engine._model.is_row_exact:
        pytest.skip("no C compiler, or a CPU without AVX2")
    return run(engine, [*SONGS, WIDE])


def test_all_graphs_are_captured_before_the_first_step_and_none_later(loaded, recorder, expected):
    assert same(run(Engine(loaded, slots=3)), expected)
    n_captured = len(recorder.captured)
    assert n_captured == len(set(recorder.captured)) == 3  # of 1, 2 and 3 slots
    assert set(recorder.log[:n_captured]) == {"capture"} and set(recorder.log[n_captured:]) == {"replay"}


def test_they_are_captured_again_when_a_longer_song_moves_the_cache_and_no_song_changes(
    loaded, recorder, expected
):
    made = run(Engine(loaded, slots=2), [*SONGS, WIDE])
    assert same(made, expected) and len(made) == 4
    # Of 1 and 2 slots, before the first step and at once between two others.
    runs = "".join(kind[0] for kind in recorder.log).split("r")
    assert runs[0] == "cc" and [captures for captures in runs if captures] == ["cc", "cc"]


def test_next_list_with_the_same_sampling_captures_nothing(loaded, recorder, expected):
    engine = Engine(loaded, slots=2)
    run(engine)
    n_captured = len(recorder.captured)
    assert same(run(engine), expected)
    assert len(recorder.captured) == n_captured


def test_other_sampling_captures_all_anew(loaded, recorder):
    """Without guidance the cache is another one, too."""
    engine = Engine(loaded, slots=2)
    run(engine)
    n_captured = len(recorder.captured)
    run(engine, sampling=Sampling(1.0, 50))
    assert len(recorder.captured) == 2 * n_captured


@pytest.mark.parametrize("n_columns", [256, 1024, 1500, 8192])
def test_masked_attention_has_a_graph_for_each_bucket_the_largest_first(plain_models, recorder, n_columns):
    stepper = Stepper(plain_models["rehearsal"], 2, n_columns, 63)
    stepper.reset(SAMPLING)
    assert sorted(recorder.captured) == [(n, width) for n in buckets(n_columns) for width in (1, 2)]
    assert recorder.captured[0] == (n_columns, 2)


@pytest.mark.parametrize("n_columns", [256, 300, 2816, 8192])
def test_a_bucket_is_at_most_256_columns_or_a_quarter_over_the_one_before(n_columns):
    found = buckets(n_columns)
    assert found == sorted(set(found)) and found[-1] == n_columns and found[0] <= 256
    assert all(b - a <= max(256, a / 4) for a, b in pairwise(found))
    assert len(found) <= 16


def test_step_reads_the_smallest_bucket_that_holds_its_position(plain_models, trees, recorder):
    case = next(songs.varied(1))
    on = songs.stepper(plain_models["rehearsal"], case, 1, 1500)
    songs.begin(on, 0, songs.prompt_of(trees["rehearsal"], case), case)
    read = []
    for n_reached in (1, 256, 257, 1280, 1281):
        on.step(n_reached, 1)
        read.append(recorder.size[0])
    assert read == [256, 256, 512, 1280, 1500]


# --- failures


def runs_out():
    raise torch.OutOfMemoryError("CUDA out of memory")


def test_capture_that_runs_out_of_memory_halves_the_slots(loaded, recorder, expected):
    recorder.fault = runs_out
    engine = Engine(loaded, slots=4)
    made = run(engine)
    assert same(made, expected) and len(made) == len(SONGS)
    assert engine.slots == 1


def test_capture_beside_songs_in_progress_that_runs_out_of_memory_loses_no_song(loaded, recorder, expected):
    def once_the_cache_has_moved():
        if "replay" in recorder.log:
            runs_out()

    recorder.fault = once_the_cache_has_moved
    engine = Engine(loaded, slots=2)
    made = run(engine, [*SONGS, WIDE])
    assert same(made, expected) and len(made) == 4
    assert engine.slots == 1


def test_songs_are_made_without_graphs_where_they_cannot_be_captured(loaded, recorder, expected, caplog):
    recorder.fault = not_permitted
    engine = Engine(loaded, slots=2)
    made = run(engine, [*SONGS, WIDE])
    assert same(made, expected) and len(made) == 4
    assert engine.slots == 2 and "replay" not in recorder.log
    assert [record.message for record in caplog.records] == [
        "CUDA graphs cannot be captured (CUDA error: operation not permitted when stream is capturing): "
        "steps are slower from now on"
    ]
