"""The convolutional decoder gives the same samples in any chunks."""

import pytest
import torch

from tests.worker.heartmula import codecs
from worker.heartmula.codec_weights import CodecWeights
from worker.heartmula.scalar_decoder import ScalarDecoder

pytestmark = pytest.mark.xdist_group("heartcodec")


@pytest.fixture(scope="module", params=codecs.CONFIGS)
def decoder(request, tmp_path_factory):
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("codec")
    codecs.build(folder, request.param)
    weights = CodecWeights.open([folder / "model.safetensors"])
    return ScalarDecoder(
        weights.of("scalar_model.decoder"), codecs.CONFIGS[request.param], torch.device("cpu")
    )


@pytest.fixture(scope="module")
def latents():
    return torch.randn(2, 128, 20, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("chunk", [1, 7, 19])
@torch.inference_mode()
def test_samples_in_chunks_are_those_of_all_latents_at_once(decoder, latents, chunk):
    at_once = torch.cat(list(decoder(latents, chunk=20)), -1)
    pieces = list(decoder(latents, chunk))
    assert at_once.shape == (2, 20 * 1920)
    assert [piece.shape[1] for piece in pieces[:-1]] == [chunk * 1920] * (len(pieces) - 1)
    assert (torch.cat(pieces, -1) - at_once).abs().max() < 1e-6 * at_once.abs().max()


@torch.inference_mode()
def test_samples_depend_on_latents_before_them_and_on_few_after_them(decoder, latents):
    changed = latents.clone()
    changed[:, :, 10] += 1
    song, other = (torch.cat(list(decoder(each)), -1) for each in (latents, changed))
    differs = (song - other).abs().max(0).values > 1e-6
    assert not differs[: 8 * 1920].any()
    assert differs[10 * 1920 :].any()


@torch.inference_mode()
def test_latents_are_rounded_to_ninths(decoder, latents):
    at_levels = torch.round(latents * 9) / 9
    song, other = (torch.cat(list(decoder(each)), -1) for each in (latents, at_levels))
    assert torch.equal(song, other)
