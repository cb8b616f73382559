"""Greedy tokens with guidance equal transformers', in one window and beyond, and wrong ones are noticed."""

import numpy as np
import pytest
import torch

from bench import theirs
from tests.worker.musicgen import reference
from tests.worker.musicgen.plain import PlainEngine
from worker.decoding.linear import PlainLinear
from worker.engine import Failed, Finished, Sampling, Song, Unfinished, longest_first
from worker.musicgen import Engine, attention, model, windows

pytestmark = pytest.mark.xdist_group("engine")

PROMPTS = ["upbeat electronic music", "calm", "slow; piano, rain on a window", "épic drums"]
GREEDY = Sampling(greedy=True)
# Windows of 60 frames, 36 apart, in place of 1500 and 900: as many windows in a short song.
SHORT = {"window_s": 1.2, "stride_s": 0.72}


def songs(*seconds):
    return [Song(str(i), PROMPTS[i % len(PROMPTS)], s, seed=i) for i, s in enumerate(seconds)]


def made(engine, listed, sampling=GREEDY):
    events = list(engine.stream(listed, sampling))
    assert not [event for event in events if isinstance(event, Failed)]
    return {event.key: event.tokens for event in events if isinstance(event, Finished)}


def same(left, right):
    return left.keys() == right.keys() and all(np.array_equal(left[key], right[key]) for key in left)


@pytest.fixture(scope="module")
def one_window(loaded):
    """transformers' tokens for every prompt, each alone: 60 frames."""
    return np.concatenate([reference.generated(loaded, [prompt], 60) for prompt in PROMPTS])


@pytest.fixture(scope="module")
def long_songs(loaded):
    """Plain tokens of songs of very different lengths, in short windows."""
    listed = songs(4.0, 1.0, 2.3, 3.1, 1.22, 1.0)
    return (
        listed,
        made(PlainEngine(loaded, **SHORT), listed),
        made(PlainEngine(loaded, **SHORT), listed, Sampling()),
    )


def test_transformers_itself_is_independent_of_padding(loaded, one_window):
    assert np.array_equal(reference.generated(loaded, PROMPTS, 60), one_window)


@pytest.mark.parametrize("slots", [1, 3, 8])
def test_one_window_equals_generate(loaded, one_window, slots):
    tokens = Engine(loaded, slots=slots).tokens(PROMPTS, 1.2, greedy=True)
    assert np.array_equal(tokens, one_window)


@pytest.mark.parametrize("seconds", [0.02, 0.1, 2.98])
def test_other_lengths_equal_generate(loaded, seconds):
    tokens = Engine(loaded, slots=1).tokens(PROMPTS[:1], seconds, greedy=True)
    n_frames = round(seconds * 50)
    expected = reference.generated(loaded, PROMPTS[:1], max(n_frames, 4))[0, :, :n_frames]
    assert np.array_equal(tokens[0], expected)


@pytest.mark.parametrize("channels", ["loaded", "stereo"])
def test_beyond_a_window_equals_the_slow_loop(request, channels):
    pretrained = request.getfixturevalue(channels)
    tokens = Engine(pretrained, slots=2, **SHORT).tokens(PROMPTS[:2], [2.6, 1.5], greedy=True)
    for prompt, song in zip(PROMPTS, tokens, strict=False):
        assert np.array_equal(song, reference.slow(pretrained, prompt, song.shape[1], 60, 36))


def test_song_that_continues_another_equals_generate_continued(loaded):
    engine = Engine(loaded, slots=2)
    first = Song("first", PROMPTS[0], 0.6, 0)
    *_, whole = [event for event in engine.stream([first], GREEDY) if isinstance(event, Unfinished)]
    songs = [engine.continued(Song(prompt, prompt, 1.2, 1), whole) for prompt in PROMPTS]
    tokens, carried = made(engine, songs), torch.from_numpy(whole.tokens.astype(np.int64))[None]
    for prompt in PROMPTS:
        assert np.array_equal(tokens[prompt], reference.generated(loaded, [prompt], 60, carried)[0])


def test_plain_engine_equals_the_slow_loop(loaded):
    tokens = made(PlainEngine(loaded, **SHORT), [Song("a", PROMPTS[0], 2.6, 0)])["a"]
    assert np.array_equal(tokens, reference.slow(loaded, PROMPTS[0], 130, 60, 36))


def test_real_windows_equal_generate_continued_as_audiocraft_does(loaded):
    (tokens,) = Engine(loaded, slots=1).tokens(PROMPTS[:1], 31.0, greedy=True)
    assert np.array_equal(tokens, reference.generated_long(loaded, PROMPTS[0], 1550, 1500, 900))


@pytest.mark.parametrize("slots", [1, 3, 8])
@pytest.mark.parametrize("order", ["longest first", "as listed", "reversed"])
def test_songs_beyond_a_window_do_not_depend_on_slots_order_or_refills(loaded, long_songs, slots, order):
    listed, greedy, _ = long_songs
    ordered = {"longest first": longest_first, "as listed": list, "reversed": lambda s: s[::-1]}[order]
    assert same(made(Engine(loaded, slots=slots, **SHORT), ordered(listed)), greedy)


@pytest.mark.parametrize("slots", [1, 3, 8])
def test_sampled_songs_equal_the_plain_engine(loaded, long_songs, slots):
    listed, _, sampled = long_songs
    assert same(made(Engine(loaded, slots=slots, **SHORT), listed, Sampling()), sampled)


def test_sampled_song_does_not_depend_on_its_company(loaded, long_songs):
    listed, _, sampled = long_songs
    engine = Engine(loaded, slots=3, **SHORT)
    assert same(made(engine, listed[:1], Sampling()), {"0": sampled["0"]})


def test_prompt_of_any_length_equals_generate(loaded):
    long_prompt = "slow piano, " * 40
    tokens = Engine(loaded, slots=2).tokens([long_prompt, "calm"], 0.6, greedy=True)
    for prompt, song in zip([long_prompt, "calm"], tokens, strict=True):
        assert np.array_equal(song, reference.generated(loaded, [prompt], 30)[0])


@pytest.mark.parametrize("slots", [1, 3])
def test_stereo_equals_generate(stereo, slots):
    expected = [reference.generated(stereo, [prompt], 60)[0] for prompt in PROMPTS]
    tokens = Engine(stereo, slots=slots).tokens(PROMPTS, 1.2, greedy=True)
    assert tokens[0].shape == (8, 60)
    assert np.array_equal(tokens, expected)


def test_stereo_audio_is_what_generate_returns(stereo):
    engine = Engine(stereo, slots=1)
    (tokens,) = engine.tokens(PROMPTS[:1], 1.2, greedy=True)
    expected = theirs.audio(stereo, PROMPTS[0], 60)
    audio = engine.decode(tokens)
    assert audio.shape == expected.shape == (60 * 640, 2)
    assert np.abs(audio - expected).max() < 1e-6
    assert np.abs(audio[:, 0] - audio[:, 1]).max() > 1e-3


@pytest.mark.parametrize("variant", ["sdpa", "compiled"])
def test_each_attention_equals_generate(loaded, one_window, variant, monkeypatch):
    chosen = attention.Sdpa(torch.float32) if variant == "sdpa" else None
    if chosen:
        monkeypatch.setattr("worker.musicgen.engine.best", lambda *_: chosen)
    engine = Engine(loaded, slots=3)
    assert engine.describe()["attention"] == variant
    assert np.array_equal(engine.tokens(PROMPTS, 1.2, greedy=True), one_window)


# --- mutations: each of these mistakes must make the comparison fail


def mutated(loaded, monkeypatch, mutate):
    mutate(monkeypatch)
    return Engine(loaded, slots=3, **SHORT).tokens(PROMPTS, 1.2, greedy=True)


def without_cross_attention(patch):
    original = model.Layer.__init__

    def init(self, layer, placement):
        original(self, layer, placement)
        self.text_out = PlainLinear(torch.zeros_like(layer.encoder_attn.out_proj.weight))

    patch.setattr(model.Layer, "__init__", init)


def delay_shifted_by_one(patch):
    original = windows.undelayed

    def undelayed(columns, window, channels):
        return np.concatenate([original(columns, window, channels)[:, 1:], columns[:, :1]], axis=1).astype(
            np.int16
        )

    patch.setattr(windows, "undelayed", undelayed)


def wrong_unconditional_half(patch):
    original = model.Model.step

    def step(self, *args):
        conditional, unconditional = original(self, *args)
        return conditional, unconditional * 0

    patch.setattr(model.Model, "step", step)


def positions_off_by_one(patch):
    original = model.Model.__init__

    def init(self, *args):
        original(self, *args)
        self._positions = self._positions.roll(1, 0)

    patch.setattr(model.Model, "__init__", init)


@pytest.mark.parametrize(
    "mutate",
    [without_cross_attention, delay_shifted_by_one, wrong_unconditional_half, positions_off_by_one],
)
def test_a_wrong_engine_is_noticed(loaded, one_window, monkeypatch, mutate):
    assert not np.array_equal(mutated(loaded, monkeypatch, mutate), one_window)
