"""EnCodec in chunks gives what EnCodec at once gives."""

from itertools import accumulate

import numpy as np
import pytest
import torch
from transformers import EncodecConfig, EncodecModel

from worker.engine import Abandoned
from worker.musicgen import codec

pytestmark = pytest.mark.xdist_group("engine")


@pytest.fixture(scope="module")
def tokens():
    return np.random.default_rng(0).integers(0, 256, (4, 600), np.int16)


@pytest.fixture(scope="module")
def at_once(loaded):
    """transformers' own decoding of tokens in one go."""

    def decode(tokens):
        codes = torch.from_numpy(tokens.astype(np.int64))[None, None]
        with torch.inference_mode():
            return loaded.model.audio_encoder.decode(codes, [None]).audio_values[0, 0].numpy()

    return decode


@pytest.mark.parametrize("n_frames", [1, 2, 5, 24, 25, 26, 51, 90])
@pytest.mark.parametrize("chunk", [1, 7, 25, 1000])
def test_chunked_audio_is_the_audio_decoded_at_once(loaded, tokens, at_once, n_frames, chunk):
    audio = codec.decode(loaded.model.audio_encoder, tokens[:, :n_frames], chunk)
    expected = at_once(tokens[:, :n_frames])
    assert np.abs(expected).max() > 1e-3
    assert audio.shape == expected.shape
    assert np.abs(audio - expected).max() < 1e-6


@pytest.mark.parametrize("n_frames", [249, 250, 251, 501])
def test_audio_around_the_edges_of_the_usual_chunk_is_that_decoded_at_once(loaded, tokens, at_once, n_frames):
    audio = codec.decode(loaded.model.audio_encoder, tokens[:, :n_frames])
    assert np.abs(audio - at_once(tokens[:, :n_frames])).max() < 1e-6


@pytest.mark.parametrize("codebook", range(4))
def test_audio_depends_on_every_codebook(loaded, tokens, codebook):
    changed = tokens[:, :60].copy()
    changed[codebook, 30] = (changed[codebook, 30] + 1) % 256
    audio, other = (codec.decode(loaded.model.audio_encoder, t) for t in (tokens[:, :60], changed))
    assert np.abs(audio - other).max() > 1e-4


def test_audio_is_float32_of_640_samples_a_frame(loaded, tokens):
    audio = codec.decode(loaded.model.audio_encoder, tokens[:, :33])
    assert (audio.dtype, audio.shape) == (np.float32, (33 * 640,))


@pytest.mark.parametrize("layer", [0, 1, 2], ids=["convolution", "lstm", "upsampling"])
def test_no_layer_has_more_than_a_chunk_and_its_context_at_a_time(loaded, tokens, layer):
    seen = []
    decoder = loaded.model.audio_encoder.decoder.layers
    hooked = decoder[layer].lstm if layer == 1 else decoder[layer]
    axis = 0 if layer == 1 else -1
    handle = hooked.register_forward_hook(lambda _, inputs, __: seen.append(inputs[0].shape[axis]))
    try:
        codec.decode(loaded.model.audio_encoder, tokens, 50)
    finally:
        handle.remove()
    assert len(seen) == 12 and max(seen) <= 50 + 2 * 7


def peak_bytes(act):
    """The most that torch had allocated at a time within."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as run:
        act()
    events = [e for e in run.profiler.kineto_results.events() if e.name() == "[memory]"]
    return max(accumulate(e.nbytes() for e in sorted(events, key=lambda e: e.start_ns())))


def test_memory_does_not_grow_with_the_song(loaded, tokens):
    short, long = (np.tile(tokens, n) for n in (1, 5))
    peaks = [peak_bytes(lambda t=t: codec.decode(loaded.model.audio_encoder, t)) for t in (short, long)]
    assert peaks[0] > 1e6
    assert peaks[1] <= 1.001 * peaks[0]


def test_codec_whose_norms_see_the_whole_song_is_decoded_at_once(tokens):
    torch.manual_seed(0)
    size = {"num_filters": 2, "codebook_size": 256, "hidden_size": 8, "codebook_dim": 8}
    encodec = EncodecModel(EncodecConfig(norm_type="time_group_norm", **size)).eval()
    codes = torch.from_numpy(tokens[:2].astype(np.int64))[None, None]
    with torch.inference_mode():
        expected = encodec.decode(codes, [None]).audio_values[0, 0].numpy()
    assert np.abs(codec.decode(encodec, tokens[:2], 50) - expected).max() < 1e-6


# --- audio to tokens


@pytest.fixture(scope="module")
def samples():
    """12.3 s of a tone that rises through noise, so that no two frames are alike; [n, 2]."""
    n = round(12.3 * 32_000)
    noise = np.random.default_rng(0).normal(0, 0.05, (n, 2))
    tone = 0.3 * np.sin(np.arange(n)[:, None] ** 1.3 / 100 * (1, 0.7))
    return (noise + tone).astype(np.float32)


@pytest.fixture(scope="module")
def encoded_at_once(loaded):
    """transformers' own encoding of mono audio in one go."""

    def encode(audio):
        with torch.inference_mode():
            codes = loaded.model.audio_encoder.encode(torch.from_numpy(audio)[None, None]).audio_codes
        return codes[0, 0].numpy()

    return encode


@pytest.mark.parametrize("n_samples", [640, 641, 1280, 5 * 640 - 1, 25 * 640, 51 * 640 + 320, 90 * 640])
@pytest.mark.parametrize("chunk", [1, 7, 25, 1000])
def test_audio_has_the_tokens_that_transformers_gives_it(loaded, samples, encoded_at_once, n_samples, chunk):
    audio = samples[:n_samples, 0]
    tokens = codec.encode(loaded.model.audio_encoder, [audio], chunk)
    assert np.array_equal(tokens, encoded_at_once(audio))
    assert tokens.dtype == np.int16


def test_pieces_in_which_audio_comes_do_not_matter(loaded, samples, encoded_at_once):
    pieces = np.split(samples[:, 0], [1, 700, 701, 60_000, 200_123])
    tokens = codec.encode(loaded.model.audio_encoder, pieces)
    assert np.array_equal(tokens, encoded_at_once(samples[:, 0]))
    assert tokens.shape == (4, 615)


def test_channels_are_encoded_as_mono_and_their_codebooks_alternate(loaded, samples, encoded_at_once):
    tokens = codec.encode(loaded.model.audio_encoder, [samples], channels=2)
    for channel in (0, 1):
        assert np.array_equal(tokens[channel::2], encoded_at_once(samples[:, channel].copy()))


def test_encoder_has_no_more_than_a_chunk_and_its_context_in_a_layer(loaded, samples):
    seen = []
    layers = loaded.model.audio_encoder.encoder.layers
    hooks = [
        layer.register_forward_hook(lambda _, inputs, __, hop=hop: seen.append(inputs[0].shape[-1] / hop))
        for layer, hop in ((layers[0], 640), (layers[-1], 1))
    ]
    try:
        codec.encode(loaded.model.audio_encoder, np.split(samples[:, 0], 123), 50)
    finally:
        for hook in hooks:
            hook.remove()
    assert max(seen) <= 50 + 2 * 7 + 5 and len(seen) == 2 * 13


def test_encoding_that_is_not_wanted_any_more_ends(loaded, samples):
    asked = iter([True, True, False])
    with pytest.raises(Abandoned):
        codec.encode(loaded.model.audio_encoder, [samples[:, 0]], go_on=lambda: next(asked))
