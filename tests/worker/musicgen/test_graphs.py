"""CUDA graphs, with a recorder that runs on a CPU: what is captured, when, and what follows a failure.

What a GPU does is not seen here.
"""

import pytest
import torch

from tests.worker.decoding.recorder import Recorder, not_permitted
from tests.worker.musicgen import flash
from worker.decoding import device
from worker.engine import Failed, Finished, Sampling, Song
from worker.musicgen import Engine, attention
from worker.musicgen.attention import Sdpa, Varlen
from worker.musicgen.stepper import Stepper

pytestmark = pytest.mark.xdist_group("engine")

SHORT = {"window_s": 0.6, "stride_s": 0.4}
SAMPLING = Sampling(greedy=True)
LONG_PROMPT = "piano " * 90  # more tokens than the room for text
SONGS = [Song("long", "calm piano", 1.0, 1), Song("a", "drums", 0.5, 2), Song("b", "rain", 0.4, 3)]


@pytest.fixture
def recorder(monkeypatch):
    """Graphs as on CUDA."""
    return Recorder(monkeypatch, Stepper)


def run(engine, songs=SONGS):
    """Each song's tokens, or why it failed."""
    ends = [event for event in engine.stream(songs, SAMPLING) if isinstance(event, Finished | Failed)]
    return {
        event.key: event.tokens.tolist() if isinstance(event, Finished) else event.reason for event in ends
    }


def engine_of(loaded, slots=2):
    return Engine(loaded, slots=slots, **SHORT)


@pytest.fixture(scope="module")
def expected(loaded):
    """The songs, and one with a long prompt between them, without graphs."""
    return run(engine_of(loaded), [*SONGS, Song("wordy", LONG_PROMPT, 0.3, 4), Song("last", "rain", 0.6, 5)])


def test_all_graphs_are_captured_before_the_first_step_and_none_later(loaded, recorder):
    run(engine_of(loaded))
    n_captured = len(recorder.captured)
    assert n_captured == len(set(recorder.captured)) > 1
    assert set(recorder.log[:n_captured]) == {"capture"} and set(recorder.log[n_captured:]) == {"replay"}


def test_songs_are_the_same_through_graphs_even_if_they_are_captured_again_beside_them(
    loaded, recorder, expected
):
    songs = [*SONGS, Song("wordy", LONG_PROMPT, 0.3, 4), Song("last", "rain", 0.6, 5)]
    assert run(engine_of(loaded), songs) == expected
    n_sizes = len(set(recorder.captured))
    # At the start, and when a song with a long prompt begins and ends; always all of them.
    assert len(recorder.captured) == 3 * n_sizes
    runs = "".join(kind[0] for kind in recorder.log).split("r")
    assert {len(captures) for captures in runs if captures} == {n_sizes}


def test_next_list_with_the_same_sampling_captures_nothing(loaded, recorder):
    engine = engine_of(loaded)
    run(engine)
    n_captured = len(recorder.captured)
    run(engine)
    assert len(recorder.captured) == n_captured


def test_other_sampling_captures_all_anew(loaded, recorder):
    engine = engine_of(loaded)
    run(engine)
    n_captured = len(recorder.captured)
    list(engine.stream(SONGS[:1], Sampling(guidance_scale=2.0)))
    assert len(recorder.captured) == 2 * n_captured


@pytest.mark.parametrize(
    ("slots", "widths"), [(1, [1]), (2, [1, 2]), (11, [1, 2, 4, 8, 11]), (16, [1, 2, 4, 8, 16])]
)
def test_varlen_has_one_graph_for_each_power_of_two_of_slots(loaded, recorder, monkeypatch, slots, widths):
    monkeypatch.setattr(attention, "varlen_attn_out", flash.varlen_attn_out)
    monkeypatch.setattr("worker.musicgen.engine.best", lambda *_: Varlen())
    engine = engine_of(loaded, slots)
    engine._empty_stepper(SAMPLING)
    assert recorder.captured == [
        (engine._n_columns, width) for width in reversed(widths)
    ]  # the largest first


def test_sdpa_has_graphs_for_each_bucket_too(loaded, recorder, monkeypatch):
    monkeypatch.setattr("worker.musicgen.engine.best", lambda *_: Sdpa(torch.float32))
    engine = Engine(loaded, slots=2)  # of 1504 columns
    engine._empty_stepper(SAMPLING)
    buckets = [256, 512, 768, 1024, 1280, 1504]
    assert sorted(recorder.captured) == [(bucket, width) for bucket in buckets for width in (1, 2)]


def test_songs_in_varlens_layout_are_the_songs(loaded, recorder, monkeypatch, expected):
    monkeypatch.setattr(attention, "varlen_attn_out", flash.varlen_attn_out)
    monkeypatch.setattr("worker.musicgen.engine.best", lambda *_: Varlen())
    made = run(engine_of(loaded))
    assert made == {key: expected[key] for key in made}


# --- failures


def runs_out():
    raise torch.OutOfMemoryError("CUDA out of memory")


def runs_out_in_a_capture():
    try:
        runs_out()
    finally:  # as torch.cuda.graph does when its block raises
        raise RuntimeError("CUDA error: operation failed due to a previous error during capture")


def runs_out_in_cuda():
    raise RuntimeError("CUDA error: out of memory")


def invalidated():
    raise RuntimeError("CUDA error: cudaErrorStreamCaptureInvalidated")


OUT_OF_MEMORY = [runs_out, runs_out_in_a_capture, runs_out_in_cuda, invalidated]


@pytest.mark.parametrize("fault", OUT_OF_MEMORY)
def test_capture_that_runs_out_of_memory_halves_the_slots(loaded, recorder, expected, fault):
    recorder.fault = fault
    engine = engine_of(loaded, slots=4)
    made = run(engine)
    assert engine.slots == 1
    assert made == {key: expected[key] for key in made} and len(made) == len(SONGS)


def test_capture_for_a_long_prompt_that_runs_out_of_memory_fails_no_song(loaded, recorder, expected):
    engine, songs = engine_of(loaded), [*SONGS, Song("wordy", LONG_PROMPT, 0.3, 4)]
    fits, recorder.fault = len(graphs_of(engine)), runs_out_in_a_capture

    def only_the_first_time(fault=runs_out_in_a_capture):
        if len(recorder.captured) >= fits:
            fault()

    recorder.fault = only_the_first_time
    made = run(engine, songs)
    assert engine.slots == 1
    assert made == {key: expected[key] for key in made} and len(made) == len(songs)


def graphs_of(engine):
    """The sizes that an engine captures."""
    stepper = Stepper(engine._model, engine.slots, engine._n_columns)
    return [(bucket, width) for bucket in stepper._buckets for width in stepper._graphs.widths]


def test_songs_are_made_without_graphs_where_they_cannot_be_captured(loaded, recorder, expected, caplog):
    recorder.fault = not_permitted
    engine = engine_of(loaded)
    made = run(engine)
    assert made == {key: expected[key] for key in made} and len(made) == len(SONGS)
    assert engine.slots == 2
    assert "replay" not in recorder.log
    assert [record.message for record in caplog.records] == [
        "CUDA graphs cannot be captured (CUDA error: operation not permitted when stream is capturing): "
        "steps are slower from now on"
    ]


@pytest.mark.parametrize("fault", OUT_OF_MEMORY)
def test_lack_of_memory_is_recognised(fault):
    with pytest.raises(RuntimeError) as caught:
        fault()
    assert device.is_out_of_memory(caught.value)


@pytest.mark.parametrize("error", [ValueError("CUDA error: out of memory"), RuntimeError("shapes differ")])
def test_other_errors_are_no_lack_of_memory(error):
    assert not device.is_out_of_memory(error)
