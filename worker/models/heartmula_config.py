"""HeartMuLa's sizes: the flavours of its two Llamas, and what the JSON files of a checkpoint set.

The names and defaults are those of heartlib's `HeartMuLaConfig`, `HeartCodecConfig` and `HeartMuLaGenConfig`,
so that `asdict` of one of these is what such a file holds.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, TypeVar

Config = TypeVar("Config")


@dataclass(frozen=True)
class Flavour:
    """The sizes of a Llama 3.2. `mlp` is the width inside its MLPs, `positions` the longest input."""

    layers: int
    heads: int
    kv_heads: int
    width: int
    mlp: int
    positions: int


# A config.json holds a flavour's name only.
FLAVOURS = {
    "llama-3B": Flavour(28, 24, 8, 3072, 8192, 8192),
    "llama-7B": Flavour(32, 32, 8, 4096, 14336, 8192),
    "llama-300M": Flavour(3, 8, 4, 3072, 8192, 2048),
    "llama-400M": Flavour(4, 8, 4, 3072, 8192, 2048),
    # This project's own, to rehearse with. Heads and widths all differ, so that a mix-up shows.
    "rehearsal-backbone": Flavour(2, 4, 2, 32, 64, 8192),
    "rehearsal-depth": Flavour(1, 3, 1, 24, 48, 2048),
}


@dataclass(frozen=True)
class MulaConfig:
    """The language model's config.json: a Llama over frames, a second one over a frame's codebooks."""

    backbone_flavor: str = "llama-3B"
    decoder_flavor: str = "llama-300M"
    text_vocab_size: int = 128_256
    audio_vocab_size: int = 8197
    audio_num_codebooks: int = 8
    muq_dim: int = 512

    def __post_init__(self) -> None:
        for key in ("backbone_flavor", "decoder_flavor"):
            if (name := getattr(self, key)) not in FLAVOURS:
                raise ValueError(f"{key} is {name!r}, known are {', '.join(FLAVOURS)}")

    @property
    def backbone(self) -> Flavour:
        return FLAVOURS[self.backbone_flavor]

    @property
    def decoder(self) -> Flavour:
        return FLAVOURS[self.decoder_flavor]


@dataclass(frozen=True)
class CodecConfig:
    """The codec's config.json: a residual vector quantiser, a flow-matching estimator, a convolutional codec.

    Raises ValueError for a codec that is not HeartCodec: 12.5 frames of codes a second, 25 latents of two
    channels, 48 kHz stereo.
    """

    dim: int = 512
    codebook_size: int = 8192
    decay: float = 0.9
    commitment_weight: float = 1.0
    threshold_ema_dead_code: int = 2
    use_cosine_sim: bool = False
    codebook_dim: int = 32
    num_quantizers: int = 8
    attention_head_dim: int = 64
    in_channels: int = 1024
    norm_type: str = "ada_norm_single"
    num_attention_heads: int = 24
    num_layers: int = 24
    num_layers_2: int = 6
    out_channels: int = 256
    num_bands: int = 1
    sample_rate: int = 48_000
    causal: bool = True
    num_samples: int = 2
    downsample_factors: tuple[int, ...] = (3, 4, 4, 4, 5)
    downsample_kernel_sizes: tuple[int, ...] = (6, 8, 8, 8, 10)
    upsample_factors: tuple[int, ...] = (5, 4, 4, 4, 3)
    upsample_kernel_sizes: tuple[int, ...] = (10, 8, 8, 8, 6)
    latent_hidden_dim: int = 128
    default_kernel_size: int = 7
    delay_kernel_size: int = 5
    init_channel: int = 64
    res_kernel_size: int = 7

    def __post_init__(self) -> None:
        # What heartlib's code assumes of every config, or what decides which weights there are.
        assumed = {
            "use_cosine_sim": (self.use_cosine_sim, False),
            "norm_type": (self.norm_type, "ada_norm_single"),
            "causal": (self.causal, True),
            "num_bands": (self.num_bands, 1),
            "sample_rate": (self.sample_rate, 48_000),
            "num_samples": (self.num_samples, 2),
            "out_channels": (self.out_channels, 256),
            "latent_hidden_dim": (self.latent_hidden_dim, 128),
            "in_channels": (self.in_channels, 2 * self.out_channels + self.dim),
            "samples of a latent": (self.num_samples * math.prod(self.upsample_factors), 1920),
            "upsample_kernel_sizes": (
                self.upsample_kernel_sizes,
                tuple(2 * n for n in self.upsample_factors),
            ),
            "number of downsample_kernel_sizes": (
                len(self.downsample_kernel_sizes),
                len(self.downsample_factors),
            ),
        }
        for what, (found, wanted) in assumed.items():
            if found != wanted:
                raise ValueError(f"{what} is {found!r}, supported is {wanted!r}")


@dataclass(frozen=True)
class GenerationConfig:
    """gen_config.json: the tokens that begin and end a text, end a song, and fill an empty position."""

    text_bos_id: int = 128_000
    text_eos_id: int = 128_001
    audio_eos_id: int = 8193
    empty_id: int = 0


def parse(kind: type[Config], settings: Mapping[str, Any]) -> Config:
    """The config that a JSON file describes: defaults for what it leaves out, other keys are ignored.

    Raises ValueError: `audio_vocab_size is 'many', not a value like 8197`.
    """
    found = {}
    for field in fields(kind):  # type: ignore[arg-type]  # TypeVar cannot say: a dataclass
        value = settings.get(field.name, field.default)
        if isinstance(field.default, tuple) and isinstance(value, list):
            value = tuple(value)
        if not _alike(value, field.default):
            raise ValueError(f"{field.name} is {value!r}, not a value like {field.default!r}")
        found[field.name] = value
    return kind(**found)


def _alike(value: object, default: object) -> bool:
    """True if the value is of the default's kind; whole numbers must not be negative."""
    if isinstance(default, tuple):
        return isinstance(value, tuple) and all(_alike(each, default[0]) for each in value)
    if isinstance(default, float):
        return type(value) in (int, float)
    if type(default) is int:
        return type(value) is int and value >= 0
    return type(value) is type(default)
