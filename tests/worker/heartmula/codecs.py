"""Tiny HeartCodecs with random weights in the real format, and songs for them: for tests, and for heartlib.

Everything here is drawn by numpy from names and seeds, so that `make_codec_reference.py` gives heartlib the
very codecs, tokens and noise that the tests give to this project's codec, and none of them is stored.
"""

import json
import zlib
from dataclasses import asdict, astuple, dataclass

import numpy as np
from safetensors.numpy import save_file

from worker.models.heartmula_config import CodecConfig
from worker.models.heartmula_shapes import FLAG, codec_shapes

TINY = {"dim": 16, "codebook_size": 64, "codebook_dim": 8, "in_channels": 2 * 256 + 16, "init_channel": 1}
CONFIGS = {
    "small": CodecConfig(**TINY, attention_head_dim=8, num_attention_heads=2, num_layers=1, num_layers_2=1),
    # Everything else that a config can set, unlike the release's.
    "other": CodecConfig(
        **TINY | {"dim": 24, "in_channels": 2 * 256 + 24, "codebook_dim": 24, "codebook_size": 32},
        attention_head_dim=6,
        num_attention_heads=3,
        num_layers=3,
        num_layers_2=2,
        upsample_factors=(4, 5, 3, 4, 4),
        upsample_kernel_sizes=(8, 10, 6, 8, 8),
        default_kernel_size=5,
        delay_kernel_size=3,
        res_kernel_size=3,
    ),
}
# How the quantiser of each is stored.
FLAGS = {"small": (1,), "other": ()}


@dataclass(frozen=True)
class Case:
    """A song that heartlib has decoded, and the frames of its segments: 372, or a quarter for speed."""

    config: str
    n_frames: int
    segment: int = 93
    steps: int = 2
    guidance: float = 1.25

    @property
    def name(self):
        return "-".join(f"{value:g}" for value in astuple(self)[1:]) + f"-{self.config}"


CASES = [
    Case("small", 373, segment=372, steps=10),
    Case("other", 372, segment=372),
    # Of a quarter: a part of one segment, one exactly, a frame more, two exactly, three.
    Case("small", 40, steps=10),
    *(Case("small", n) for n in (93, 94, 180)),
    *(Case("other", n) for n in (1, 93, 173, 200)),
    Case("small", 60, guidance=1.0),
    Case("other", 60, guidance=3.0),
]


def build(folder, config):
    """Write the codec of that name into `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    settings = {"architectures": ["HeartCodec"], "model_type": "heartcodec", "dtype": "float32"}
    (folder / "config.json").write_text(json.dumps(settings | asdict(CONFIGS[config])), "utf-8")
    shapes = codec_shapes(CONFIGS[config], FLAGS[config])
    weights = {name: weight(name, shape) for name, shape in shapes.items()}
    save_file(weights, folder / "model.safetensors", {"format": "pt"})


def weight(name, shape):
    """Of a size that neither fades nor explodes on its way."""
    if name.endswith(FLAG):
        return np.ones(shape, np.float32 if shape else bool)
    values = np.random.default_rng(zlib.crc32(name.encode())).standard_normal(shape, np.float32)
    if name.endswith("norm.weight"):
        return 1 + values / 10
    if name.endswith("original0"):
        return (0.5 if ".convs." in name else 1.5) * (1 + np.abs(values) / 10)
    if "activation" in name:
        return 0.25 + np.abs(values) / 10
    if name.endswith("bias"):
        return values / 20
    if name.endswith(("_codebook.embed", "scale_shift_table", "scale_shift_table_2")):
        return values
    return values / np.float32(np.prod(shape[1:]) ** 0.5)


def tokens(config, n_frames, seed=0):
    """int16 [codebooks, n_frames]."""
    settings = CONFIGS[config]
    draw = np.random.default_rng([seed, n_frames])
    return draw.integers(0, settings.codebook_size, (settings.num_quantizers, n_frames), np.int16)


def noise(segment, n_frames=372):
    """That of a segment of so many frames: [latents, width]."""
    return np.random.default_rng([segment, n_frames]).standard_normal((2 * n_frames, 256), np.float32)
