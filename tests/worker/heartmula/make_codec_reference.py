"""What heartlib itself makes of the songs in codecs.py -> codec_reference.npz.

    PYTHONPATH=HEARTLIB/src PYTHON tests/worker/heartmula/make_codec_reference.py [OUT]

PYTHON is an interpreter with heartlib's requirements (HeartMuLa/heartlib, commit
3981c52f2cab175c6cef67e4061e92988db1bdf4, with torchtune 0.4.0, transformers 4.57.0 and
vector_quantize_pytorch 1.27.15; it was run with torch 2.13.0 on a CPU). With HEARTLIB_PYTHON=PYTHON, and
PYTHONPATH if heartlib is not installed, test_codec.py runs this anew and compares.

heartlib draws its noise inside: torch.randn is replaced by one that hands out each segment's given noise.
What else it draws fills places that a mask then covers; here these get a value that would be heard.

Of each song are kept: every 499th sample, and each frame's mean magnitude in each channel; every 499th of
its latents; and those latents that lie so near to the middle of two levels that rounding may decide to which
of them the decoder takes them.
"""

import itertools
import sys
import tempfile
from importlib.machinery import ModuleSpec
from importlib.util import module_from_spec
from pathlib import Path
from unittest import mock

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parents[3]))
# It saves audio as files, which there are none of.
sys.modules["torchaudio"] = module_from_spec(ModuleSpec("torchaudio", None))

from heartlib.heartcodec.modeling_heartcodec import HeartCodec  # noqa: E402

from tests.worker.heartmula import codecs  # noqa: E402

HERE = Path(__file__).parent
STRIDE = 499  # prime: meets both channels and every phase of the upsampling
UNDECIDED = 1e-4


def decode(codec, case):
    """The song's audio [n, 2], and its latents [segments, latents, 256]."""
    segments = itertools.count()
    latents = []

    def randn(*shape, **_):
        if isinstance(shape[0], tuple):
            return torch.from_numpy(codecs.noise(next(segments), case.segment))[None]
        return torch.full(shape, 1000.0)

    def recorded(*arguments, **named):
        latents.append(solve(*arguments, **named))
        return latents[-1]

    solve = codec.flow_matching.inference_codes
    codes = torch.from_numpy(codecs.tokens(case.config, case.n_frames).astype(np.int64))
    with (
        mock.patch("torch.randn", randn),
        mock.patch.object(codec.flow_matching, "inference_codes", recorded),
    ):
        audio = codec.detokenize(
            codes, duration=case.segment / 12.5, num_steps=case.steps, guidance_scale=case.guidance
        )
    return audio.T.numpy(), torch.cat(latents).numpy()


def excerpt(audio, latents):
    """What is kept of a song, by name."""
    scaled = latents.astype(np.float64).ravel() * 9
    undecided = np.flatnonzero(np.abs(scaled - np.floor(scaled) - 0.5) < 9 * UNDECIDED)
    return {
        "n_samples": np.int64(len(audio)),
        "peak": np.abs(audio).max(),
        "samples": audio.ravel()[::STRIDE].astype(np.float32),
        "magnitudes": np.abs(audio).reshape(-1, 3840, 2).mean(1, dtype=np.float64).astype(np.float32),
        "latents": latents.ravel()[::STRIDE],
        "undecided": undecided.astype(np.int32),
        "undecided_latents": latents.ravel()[undecided],
    }


def main(out):
    """Write the file `out`."""
    torch.set_num_threads(1)  # so small a model is slower with more
    kept = {}
    with tempfile.TemporaryDirectory() as folder:
        for name in codecs.CONFIGS:
            codecs.build(Path(folder, name), name)
        for case in codecs.CASES:
            codec = HeartCodec.from_pretrained(Path(folder, case.config), dtype=torch.float32)
            audio, latents = decode(codec.eval(), case)
            assert np.isfinite(audio).all() and np.abs(audio).max() > 0.01
            kept |= {f"{case.name}/{key}": value for key, value in excerpt(audio, latents).items()}
            print(case.name, audio.shape, float(np.abs(audio).max()), float(latents.std()))
    np.savez_compressed(out, **kept)


if __name__ == "__main__":
    main(Path(sys.argv[1]) if sys.argv[1:] else HERE / "codec_reference.npz")
