"""The engine's public API: songs, their order and length, resuming them, and faults.

test_parity.py tests that the tokens are the right ones.
"""

import dataclasses
import re
import time
import weakref
from concurrent.futures import ThreadPoolExecutor
from itertools import count
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.parts import need
from worker.decoding import device, linear
from worker.decoding.offload import Offload
from worker.engine import TO_GENERATE, Failed, Finished, Progress, Sampling, Song, Unfinished
from worker.errors import BadInput, UserError
from worker.musicgen import Engine, text
from worker.musicgen.stepper import Stepper
from worker.songs.checkpoint_file import OtherSettings, Unusable, from_bytes, to_bytes

pytestmark = pytest.mark.xdist_group("engine")

# Windows of 60 frames, 36 apart, in place of 1500 and 900: as many windows in a short song.
SHORT = {"window_s": 1.2, "stride_s": 0.72}
LONG = Song("long", "slow piano", 3.0, 1)  # windows end at frames 60, 96, 132 and 150
OTHERS = [Song("a", "calm", 1.0, 2), Song("b", "epic drums", 2.3, 3), Song("c", "rain", 0.5, 4)]
SAMPLING = Sampling()


def of(kind, events):
    return [event for event in events if isinstance(event, kind)]


def finished(events):
    assert not of(Failed, events)
    return {event.key: event for event in of(Finished, events)}


def run(engine, songs, sampling=SAMPLING):
    """Tokens of each song by key."""
    return {key: event.tokens for key, event in finished(list(engine.stream(songs, sampling))).items()}


def same(left, right):
    return left.keys() == right.keys() and all(np.array_equal(left[key], right[key]) for key in left)


@pytest.fixture
def engine(loaded):
    return Engine(loaded, slots=3, **SHORT)


@pytest.fixture(scope="module")
def events(loaded):
    """All events of a run without faults."""
    return list(Engine(loaded, slots=3, **SHORT).stream([LONG, *OTHERS], SAMPLING))


@pytest.fixture(scope="module")
def undisturbed(events):
    return {key: event.tokens for key, event in finished(events).items()}


# --- tokens and decode


def test_tokens_come_in_the_order_of_the_prompts(engine):
    tokens = engine.tokens(["a", "b", "c", "d"], [0.2, 1.0, 0.1, 0.5])
    assert [song.shape for song in tokens] == [(4, 10), (4, 50), (4, 5), (4, 25)]


def test_tokens_are_int16_of_the_vocabulary(engine):
    (tokens,) = engine.tokens(["a"], 2.0)
    assert tokens.dtype == np.int16
    assert tokens.min() >= 0 and tokens.max() < 256


def test_seeds_are_0_1_2_unless_given(engine):
    by_default = engine.tokens(["a", "b", "c"], 0.3)
    given = engine.tokens(["a", "b", "c"], 0.3, seeds=[0, 1, 2])
    assert all(np.array_equal(*pair) for pair in zip(by_default, given, strict=True))


def test_another_seed_is_another_song(engine):
    first, second = engine.tokens(["a", "a"], 0.5, seeds=[1, 2])
    assert not np.array_equal(first, second)


def test_same_seed_is_the_same_song(engine):
    first, second = engine.tokens(["a", "a"], 0.5, seeds=[1, 1])
    assert np.array_equal(first, second)


@pytest.mark.parametrize(
    "how", [{"top_k": 5}, {"temperature": 0.5}, {"guidance_scale": 1.0}, {"greedy": True}]
)
def test_each_sampling_setting_changes_the_song(engine, how):
    assert not np.array_equal(engine.tokens(["a"], 0.5)[0], engine.tokens(["a"], 0.5, **how)[0])


def test_no_prompts_are_no_songs(engine):
    assert engine.tokens([], 1.0) == []


@pytest.mark.parametrize("wrong", [{"seconds": [1.0]}, {"seconds": 1.0, "seeds": [1]}])
def test_lists_of_other_lengths_are_an_error(engine, wrong):
    with pytest.raises(ValueError, match="zip"):
        engine.tokens(["a", "b"], **wrong)


@pytest.mark.parametrize(("seconds", "n_frames"), [(0.01, 1), (0.02, 1), (0.03, 2), (1.0, 50), (1.001, 51)])
def test_frames_cover_the_seconds(engine, seconds, n_frames):
    assert engine.n_frames(seconds) == n_frames


LONG_PROMPT = "slow piano, " * 200  # 601 tokens


def test_room_for_a_long_prompt_is_given_back_when_its_song_has_ended(engine):
    rooms = []
    for event in engine.stream([LONG, Song("long prompt", LONG_PROMPT, 0.5, 2)], SAMPLING):
        rooms.append((type(event), engine._stepper._cache.n_text))
    assert max(room for _, room in rooms) > 512
    assert rooms[-1] == (Finished, 64)
    assert rooms.index((Finished, 64)) < len(rooms) - 1  # while the other song was still in progress


def test_song_in_progress_is_the_same_beside_a_long_prompt(engine, undisturbed):
    assert np.array_equal(
        run(engine, [LONG, Song("long prompt", LONG_PROMPT, 0.5, 2)])["long"], undisturbed["long"]
    )


def test_prompt_for_which_memory_has_no_room_fails_its_song_alone(engine, undisturbed, monkeypatch):
    monkeypatch.setattr(device, "free_bytes", lambda _: 100_000)
    songs = [LONG, Song("long prompt", LONG_PROMPT, 0.5, 2)]
    events = list(engine.stream(songs, SAMPLING))
    (failed,) = of(Failed, events)
    assert re.match(
        r"its prompt has 601 tokens: with 3 slots that takes .* shorten it, or use", failed.reason
    )
    assert np.array_equal(of(Finished, events)[0].tokens, undisturbed["long"])


def test_prompt_over_512_tokens_has_no_warning(engine, caplog, capfd):
    run(engine, [Song("long prompt", LONG_PROMPT, 0.2, 2)])
    assert "512" not in caplog.text + "".join(capfd.readouterr())


def test_prompt_beyond_what_memory_allows_fails_alone(engine):
    events = list(engine.stream([Song("a", LONG_PROMPT * 5, 0.2, 1), OTHERS[2]], SAMPLING))
    (failed,) = of(Failed, events)
    assert re.fullmatch(r"its prompt has \d+ tokens where 3000 are possible; shorten it", failed.reason)
    assert [event.key for event in of(Finished, events)] == ["c"]


def test_audio_is_640_samples_for_each_frame(engine, undisturbed):
    audio = engine.decode(undisturbed["c"])
    assert (audio.dtype, audio.shape) == (np.float32, (25 * 640,))


class OnFullGpu:
    """A codec on a GPU that has no memory left for it."""

    device = torch.device("cuda")

    def __init__(self, encodec):
        self._encodec = encodec

    @property
    def config(self):
        raise torch.OutOfMemoryError("CUDA out of memory")

    def to(self, device):
        return self._encodec.to(device)


def test_song_that_the_gpu_has_no_memory_to_decode_is_decoded_on_the_cpu(engine, undisturbed, caplog):
    tokens = undisturbed["long"]
    expected = engine.decode(tokens)
    engine._codec = Offload(OnFullGpu(engine._codec.codec))
    assert np.array_equal(engine.decode(tokens), expected)
    assert np.array_equal(engine.decode(tokens), expected)
    assert [record.message for record in caplog.records] == [
        "the GPU has no memory left for decoding: songs are decoded on the CPU from now on"
    ]


def test_audio_decoded_beside_generation_is_the_audio_decoded_alone(engine, undisturbed):
    alone = engine.decode(undisturbed["a"])
    stream = engine.stream([LONG], SAMPLING)
    next(stream)
    with ThreadPoolExecutor(1) as pool:
        beside = pool.submit(engine.decode, undisturbed["a"])
        list(stream)
        assert np.array_equal(beside.result(), alone)


def test_bf16_makes_songs_on_any_cpu(loaded):
    engine = Engine(loaded, slots=2, dtype="bf16", **SHORT)
    assert [song.shape for song in engine.tokens(["a", "b"], [2.0, 0.5])] == [(4, 100), (4, 25)]


def test_describe_names_what_made_the_songs(engine, loaded):
    assert engine.describe() | {"attention": "", "same_bytes": ""} == {
        "model": "rehearsal",
        "revision": loaded.revision,
        "device": "cpu",
        "precision": "fp32",
        "attention": "",
        "slots": 3,
        "same_bytes": "",
        "window_s": 1.2,
        "stride_s": 0.72,
    }


# --- the stream


def test_song_is_the_same_beside_other_songs(loaded, undisturbed):
    tokens = run(Engine(loaded, slots=3, **SHORT), [OTHERS[2], LONG])
    assert np.array_equal(tokens["long"], undisturbed["long"])


def test_stream_that_was_closed_early_leaves_nothing_behind(engine, undisturbed):
    stream = engine.stream([Song("x", "drums", 5.0, 9), OTHERS[1]], SAMPLING)
    for _ in range(5):
        next(stream)
    stream.close()
    assert same(run(engine, [LONG, *OTHERS]), undisturbed)


def test_songs_are_taken_only_a_little_ahead(loaded):
    engine, taken, n_done = Engine(loaded, slots=4, **SHORT), [], 0

    def listed():
        for i in range(60):
            taken.append(i)
            yield Song(str(i), "a", 0.1, i)

    for event in engine.stream(listed(), SAMPLING):
        n_done += isinstance(event, Finished)
        assert len(taken) <= n_done + 4 + 2
    assert n_done == 60


def test_songs_are_charged_no_more_than_the_clock_shows(engine):
    started = time.monotonic()
    shares = [event.generation_s for event in of(Finished, engine.stream(OTHERS, SAMPLING))]
    assert 0 < sum(shares) <= time.monotonic() - started


def test_prompt_that_cannot_be_encoded_fails_alone(loaded):
    def tokenizer(prompt, **options):
        if prompt == "bad":
            raise ValueError("no such word")
        return loaded.tokenizer(prompt, **options)

    engine = Engine(dataclasses.replace(loaded, tokenizer=tokenizer), slots=2, **SHORT)
    prompts = ["bad", "a", "a", "bad", "a", "bad"]
    events = list(engine.stream([Song(str(i), p, 0.2, i) for i, p in enumerate(prompts)], SAMPLING))
    assert {event.key: event.reason for event in of(Failed, events)} == dict.fromkeys(
        "035", "ValueError: no such word"
    )
    assert {event.key for event in of(Finished, events)} == set("124")


def test_song_that_fails_is_an_error_of_tokens(loaded, monkeypatch):
    monkeypatch.setattr(Stepper, "is_broken", lambda *_: True)
    with pytest.raises(UserError, match="song 0 failed: its logits became infinite or NaN"):
        Engine(loaded, slots=1, **SHORT).tokens(["a"], 0.2)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_weights_that_are_not_numbers_fail_the_song_and_no_wider_precision_is_named(loaded, bad):
    engine = Engine(loaded, slots=1, **SHORT)
    engine._model._norm.bias[3] = bad
    (event,) = of((Failed, Finished), list(engine.stream([OTHERS[2]], SAMPLING)))
    assert "the checkpoint's weights are damaged" in event.reason and not event.overflowed


# --- the same bytes


@pytest.mark.parametrize(("slots", "threads"), [(1, 1), (4, 2), (16, 2), (16, 3)])
def test_songs_are_the_same_bytes_at_any_number_of_slots_and_threads(
    loaded, undisturbed, monkeypatch, slots, threads
):
    monkeypatch.setattr(device, "threads_for", lambda *_: threads)
    before = torch.get_num_threads()
    try:
        engine = Engine(loaded, slots=slots, **SHORT)
        if engine.describe()["same_bytes"] != "in any order, with any slots and threads":
            need("a C compiler, or a CPU with AVX2", False)
        assert same(run(engine, [*OTHERS, LONG]), undisturbed)
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("slots", [1, 64])
def test_known_columns_are_computed_in_the_same_chunks_at_any_number_of_slots(loaded, slots):
    assert Engine(loaded, slots=slots, **SHORT)._chunk == 32


def test_without_a_compiler_the_promise_is_smaller(loaded, monkeypatch):
    monkeypatch.setattr(linear, "has_kernel", lambda: False)
    monkeypatch.setattr(text, "has_kernel", lambda: False)
    described = Engine(loaded, slots=3, **SHORT).describe()
    assert described["same_bytes"] == "in the same order, with the same slots and threads"


# --- a cache in half precision


def test_cache_in_half_precision_takes_half_the_memory_and_the_record_says_so(loaded):
    engine, whole = (Engine(loaded, slots=2, dtype=dtype, **SHORT) for dtype in ("fp32-kv16", "fp32"))
    assert finished(list(engine.stream([LONG], SAMPLING))).keys() == {"long"}
    assert engine.describe()["precision"] == "fp32-kv16"
    assert 2 * engine._bytes_each == whole._bytes_each
    assert {kept.dtype for kept in engine._stepper._cache.own} == {torch.bfloat16}


def test_cache_in_half_precision_without_its_kernel_is_refused(loaded, monkeypatch):
    monkeypatch.setattr(linear, "has_kernel", lambda: False)
    with pytest.raises(BadInput, match="needs a C compiler and a CPU with AVX2; use fp32"):
        Engine(loaded, dtype="fp32-kv16")


# --- going on from a song


def test_song_with_another_prompt_begins_with_the_tokens_it_continues(engine, undisturbed):
    *_, whole = of(Unfinished, list(engine.stream(OTHERS[:1], SAMPLING)))
    song = Song("more", "epic drums", 3.0, 9)
    tokens = run(engine, [engine.continued(song, whole)])["more"]
    assert np.array_equal(tokens[:, :50], undisturbed["a"])
    assert not (tokens == TO_GENERATE).any()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model": "other"}, "was made with other, which has other tokens"),
        ({}, "it is not longer than the 3 s that it continues"),
    ],
)
def test_song_that_cannot_be_continued_is_refused(engine, events, change, message):
    *_, whole = [song for song in of(Unfinished, events) if song.song == LONG]
    with pytest.raises(Unusable, match=message):
        engine.continued(LONG, dataclasses.replace(whole, **change))


@pytest.mark.parametrize("channels", [1, 2])
def test_song_begins_with_the_tokens_of_audio(loaded, stereo, channels):
    model = stereo if channels == 2 else loaded
    engine = Engine(model, slots=1, **SHORT)
    audio = np.random.default_rng(0).normal(0, 0.2, (25 * engine.hop, channels)).astype(np.float32)
    tokens = engine.encode([audio[:, 0] if channels == 1 else audio])
    with torch.inference_mode():
        codes = [
            model.model.audio_encoder.encode(torch.from_numpy(side)[None, None]) for side in audio.T.copy()
        ]
    for channel, found in enumerate(codes):
        assert np.array_equal(tokens[channel::channels], found.audio_codes[0, 0])
    made = run(engine, [engine.beginning_with(Song("more", "epic drums", 1.0, 9), tokens)])["more"]
    assert np.array_equal(made[:, :25], tokens) and made.shape[1] == 50
    assert not (made == TO_GENERATE).any()


def test_tokens_of_another_codec_begin_no_song(engine):
    with pytest.raises(Unusable, match="its codec has 2 codebooks where 4 are needed"):
        engine.beginning_with(LONG, np.zeros((2, 10), np.int16))


# --- resuming unfinished songs


def test_end_of_every_window_gives_an_unfinished_song(events):
    made = [event.n_made for event in of(Unfinished, events) if event.song == LONG]
    assert made == [60, 96, 132, 150]


def test_unfinished_song_holds_the_settings_it_began_with(events, loaded):
    one = of(Unfinished, events)[0]
    assert (one.model, one.revision, one.window, one.stride) == ("rehearsal", loaded.revision, 60, 36)
    assert (one.sampling, one.generation_s > 0) == (SAMPLING, True)


@pytest.mark.parametrize("boundary", range(3))
def test_resumed_at_any_boundary_the_song_has_the_same_bytes(loaded, events, undisturbed, boundary):
    saved = [to_bytes(event) for event in of(Unfinished, events) if event.song == LONG][boundary]
    companions = [Song("x", "drums", 2.0, 8), Song("y", "bass", 0.7, 9), Song("z", "upbeat", 0.3, 10)]
    tokens = run(Engine(loaded, slots=3, **SHORT), [companions[0], from_bytes(saved), *companions[1:]])
    assert np.array_equal(tokens["long"], undisturbed["long"])


def test_boundary_is_saved_as_it_was_then(loaded):
    saved = of(Unfinished, list(Engine(loaded, slots=1, **SHORT).stream([LONG], SAMPLING)))
    assert [int((event.tokens[0] != TO_GENERATE).sum()) for event in saved] == [60, 96, 132, 150]


def raising(monkeypatch, error, at_step, after=False):
    """Stepper.step raises once, before or after its work."""
    step, steps = Stepper.step, count()

    def patched(self, *args):
        this = next(steps)
        if after or this != at_step:
            step(self, *args)
        if this == at_step:
            raise error

    monkeypatch.setattr(Stepper, "step", patched)


def test_resumed_at_any_step_every_token_made_so_far_is_kept(loaded, rng, monkeypatch):
    engine = Engine(loaded, slots=3, **SHORT)
    raising(monkeypatch, KeyboardInterrupt(), rng.randrange(150))
    with pytest.raises(KeyboardInterrupt):
        list(engine.stream([LONG, *OTHERS], SAMPLING))
    begun = [from_bytes(to_bytes(one)) for one in engine.unfinished()]
    tokens = run(Engine(loaded, slots=3, **SHORT), begun)
    for one in begun:
        made = one.tokens != TO_GENERATE
        assert np.array_equal(tokens[one.song.key][made], one.tokens[made])
        assert (tokens[one.song.key] != TO_GENERATE).all()


def test_seconds_charged_before_are_kept(engine, events):
    begun = next(event for event in of(Unfinished, events) if event.song == LONG)
    one = dataclasses.replace(begun, generation_s=1000.0)
    assert finished(list(engine.stream([one], SAMPLING)))[one.song.key].generation_s > 1000


def test_song_that_is_whole_is_finished_at_once(engine, events, undisturbed):
    whole = dataclasses.replace(of(Unfinished, events)[0], song=LONG, tokens=undisturbed["long"])
    again, event = engine.stream([whole], SAMPLING)
    assert again.n_made == again.tokens.shape[1]
    assert np.array_equal(event.tokens, undisturbed["long"])


def test_nothing_is_unfinished_before_or_after(engine):
    assert engine.unfinished() == []
    run(engine, OTHERS)
    assert engine.unfinished() == []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model": "other"}, "model other, not rehearsal"),
        ({"revision": "0"}, "revision 0, not "),
        ({"window": 1500}, "window 1500, not 60"),
        ({"stride": 30}, "stride 30, not 36"),
        ({"sampling": Sampling(top_k=9)}, "top k 9, not 250"),
    ],
)
def test_song_that_was_begun_with_other_settings_is_refused_with_the_difference(
    engine, events, change, message
):
    one = next(event for event in of(Unfinished, events) if event.song == LONG)
    with pytest.raises(OtherSettings, match=message):
        list(engine.stream([dataclasses.replace(one, **change)], SAMPLING))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tokens": np.zeros((4, 149), np.int16)}, r"its tokens have the shape \(4, 149\)"),
        ({"tokens": np.zeros((8, 150), np.int16)}, r"its tokens have the shape \(8, 150\)"),
        ({"tokens": np.full((4, 150), 256, np.int16)}, "its tokens are not this model's"),
        ({"tokens": np.full((4, 150), -2, np.int16)}, "its tokens are not this model's"),
    ],
)
def test_song_whose_tokens_cannot_be_its_own_is_refused_with_the_reason(engine, events, change, message):
    one = next(event for event in of(Unfinished, events) if event.song == LONG)
    with pytest.raises(Unusable, match=message):
        list(engine.stream([dataclasses.replace(one, **change)], SAMPLING))


# --- Ctrl-C


@pytest.mark.parametrize("after", [False, True], ids=["before the step", "after the step"])
@pytest.mark.parametrize("at_step", [0, 30, 75])
def test_songs_can_be_resumed_after_ctrl_c_inside_a_step(loaded, undisturbed, monkeypatch, at_step, after):
    engine = Engine(loaded, slots=3, **SHORT)
    with monkeypatch.context() as patch:
        raising(patch, KeyboardInterrupt(), at_step, after)
        with pytest.raises(KeyboardInterrupt):
            list(engine.stream([LONG, *OTHERS[:2]], SAMPLING))
    begun = engine.unfinished()
    assert {one.song.key for one in begun} <= {"long", "a", "b"} and LONG in [one.song for one in begun]
    tokens = run(engine, begun)
    assert all(np.array_equal(tokens[key], undisturbed[key]) for key in tokens)


def test_ctrl_c_while_a_prompt_is_encoded_loses_nothing(loaded):
    def tokenizer(prompt, **options):
        if prompt == "stop":
            raise KeyboardInterrupt
        return loaded.tokenizer(prompt, **options)

    engine = Engine(dataclasses.replace(loaded, tokenizer=tokenizer), slots=1, **SHORT)
    with pytest.raises(KeyboardInterrupt):
        list(engine.stream([OTHERS[2], Song("x", "stop", 0.5, 1)], SAMPLING))
    assert [one.song.key for one in engine.unfinished()] == ["x"]
    assert engine.unfinished()[0].n_made == 0


# --- out of memory


@pytest.fixture(scope="module")
def greedy(loaded):
    return run(Engine(loaded, slots=1, **SHORT), [LONG, *OTHERS], Sampling(greedy=True))


def out_of_memory(monkeypatch, *at_steps):
    step, steps = Stepper.step, count()

    def patched(self, *args):
        if next(steps) in at_steps:
            raise torch.OutOfMemoryError("CUDA out of memory")
        step(self, *args)

    monkeypatch.setattr(Stepper, "step", patched)


def test_out_of_memory_it_continues_with_half_the_slots(loaded, greedy, monkeypatch, caplog):
    engine = Engine(loaded, slots=4, **SHORT)
    out_of_memory(monkeypatch, 40)
    assert same(run(engine, [LONG, *OTHERS], Sampling(greedy=True)), greedy)
    assert engine.slots == engine.describe()["slots"] == 2
    assert "out of memory: continuing with 2 songs at once" in caplog.text


def test_out_of_memory_twice_no_song_is_lost(loaded, greedy, monkeypatch, caplog):
    engine = Engine(loaded, slots=4, **SHORT)
    out_of_memory(monkeypatch, 10, 12)
    assert same(run(engine, [LONG, *OTHERS], Sampling(greedy=True)), greedy)
    assert engine.slots == 1
    assert "out of memory: continuing with 1 song at once" in caplog.text


def test_out_of_memory_on_a_cpu_is_recognised(loaded, greedy, monkeypatch):
    engine = Engine(loaded, slots=2, **SHORT)
    raising(monkeypatch, RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried"), 3)
    assert same(run(engine, [LONG, *OTHERS], Sampling(greedy=True)), greedy)


def test_other_faults_of_the_device_are_not_taken_for_out_of_memory(loaded, monkeypatch):
    raising(monkeypatch, RuntimeError("device-side assert"), 3)
    with pytest.raises(RuntimeError, match="device-side assert"):
        run(Engine(loaded, slots=2, **SHORT), [LONG])


@pytest.fixture
def crowded(loaded, monkeypatch):
    """An engine of one slot on a machine where 0.5 GB beyond the cache are missing."""
    engine = Engine(loaded, slots=1, **SHORT)
    monkeypatch.setattr("worker.decoding.device.free_bytes", lambda _: -500_000_000)
    out_of_memory(monkeypatch, 30)
    return engine


def test_out_of_memory_with_one_slot_the_error_reports_how_much_is_missing(crowded):
    with pytest.raises(
        UserError, match=r"not enough memory for one song: 0\.5 GB more are needed; use a"
    ) as caught:
        run(crowded, [LONG])
    assert caught.value.code == 1


def test_out_of_memory_with_one_slot_the_song_can_still_be_saved(crowded):
    with pytest.raises(UserError):
        run(crowded, [LONG])
    (one,) = crowded.unfinished()
    assert int((one.tokens[0] != TO_GENERATE).sum()) == 30


def test_out_of_memory_songs_that_lost_their_slot_can_be_saved_too(loaded, monkeypatch):
    engine = Engine(loaded, slots=4, **SHORT)
    out_of_memory(monkeypatch, 10)
    stream = engine.stream([LONG, *OTHERS], SAMPLING)
    next(event for event in stream if engine.slots == 2)
    stream.close()
    assert sorted(one.song.key for one in engine.unfinished()) == ["a", "b", "c", "long"]
    assert min(one.generation_s for one in engine.unfinished()) > 0


# --- ending


def test_begin_no_more_finishes_songs_in_progress_and_begins_none_that_was_taken_ahead(loaded):
    engine, keys, taken = Engine(loaded, slots=1, **SHORT), [], []

    def songs():
        for song in OTHERS:
            taken.append(song.key)
            yield song

    for event in engine.stream(songs(), SAMPLING):
        if isinstance(event, Progress):
            engine.begin_no_more()
        if isinstance(event, Finished):
            keys.append(event.key)
    assert keys == ["a"] and taken[:2] == ["a", "b"]
    assert set(run(engine, OTHERS)) == {"a", "b", "c"}


def test_closed_engine_holds_neither_cache_nor_weights(loaded):
    engine = Engine(loaded, slots=1, **SHORT)
    run(engine, OTHERS[2:])
    held = [weakref.ref(part) for part in (engine._stepper._cache, engine._model)]
    engine.close()
    assert [part() for part in held] == [None, None]


# --- settings


@pytest.mark.parametrize("slots", [0, -1])
def test_less_than_one_slot_is_refused(loaded, slots):
    with pytest.raises(BadInput, match=f"{slots} slots are too few; use 1 or more"):
        Engine(loaded, slots=slots)


@pytest.mark.parametrize("stride_s", [0.0, -1.0, 30.0, 31.0])
def test_stride_must_be_less_than_the_window(loaded, stride_s):
    with pytest.raises(BadInput, match="must be over 0 and under the window of 30 s"):
        Engine(loaded, slots=1, stride_s=stride_s)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"device": "tpu9"}, "unknown device 'tpu9'; use cpu, cuda or cuda:N"),
        ({"dtype": "int8"}, "unknown dtype 'int8'; use auto, fp32, fp32-kv16, bf16 or fp16"),
        ({"dtype": "fp16", "device": "cpu"}, "fp16 is for GPUs"),
    ],
)
def test_unknown_device_or_precision_is_refused(wrong, message):
    with pytest.raises(BadInput, match=message):
        Engine.load("rehearsal", **wrong)


def test_progress_has_the_frames_of_every_song_in_progress(events):
    first = of(Progress, events)[0]
    assert {key: n_frames for key, (_, n_frames) in first.frames.items()} == {"long": 150, "a": 50, "b": 115}


def test_examples_of_the_docs_run(capsys):
    page = Path(__file__).parents[3] / "docs" / "engine.md"
    examples = "\n".join(re.findall(r"```python\n(.*?)```", page.read_text("utf-8"), re.S))
    small = {'"facebook/musicgen-small"': '"rehearsal", window_s=1, stride_s=0.6', "[30, 180]": "[0.3, 2]"}
    shorter = {'"slow piano", 180': '"slow piano", 2', '"piano,soft", 60': '"piano,soft", 0.4'}
    for large, little in (small | shorter).items():
        assert large in examples
        examples = examples.replace(large, little)
    names = {}
    exec(examples, names)
    assert len(names["audio"]) == 2 * 32_000
    assert of(Finished, names["again"])
    assert names["sung"].shape == (5 * 3840, 2)
    assert capsys.readouterr().out == ""
