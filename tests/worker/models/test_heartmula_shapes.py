"""The tensors of a HeartMuLa are those of heartlib, and its configs are read as heartlib reads them.

The figures and digests are of heartlib's own `state_dict` (commit 3981c52, with torchtune 0.4.0 and
vector_quantize_pytorch 1.27.15), mostly on torch's meta device.
"""

import hashlib
import math
from dataclasses import asdict, replace

import pytest

from worker.models.heartmula_config import (
    FLAVOURS,
    CodecConfig,
    GenerationConfig,
    MulaConfig,
    parse,
)
from worker.models.heartmula_shapes import FLAG, codec_shapes, mula_shapes
from worker.models.tiny_heartmula import CODEC_CONFIG

OSS_3B = mula_shapes(MulaConfig())
OSS_CODEC = codec_shapes(CodecConfig())
THEIRS = {
    "3B": (OSS_3B, 289, 3_938_113_536, "dde863dd0f33f7869b2dbacf3c935db73045f66105a260577717cbbadce478ff"),
    "7B": (
        mula_shapes(MulaConfig("llama-7B", "llama-400M")),
        334,
        8_413_319_168,
        "a3df2942bbd3df7a30cddc7102727d2ff72263343075d9993f16e6c9f87e384d",
    ),
    "codec": (
        OSS_CODEC,
        818,
        1_659_568_725,
        "b1c0d5d7aa58d25b02485954364bc9db93353711261445bdf5678a033f296ddd",
    ),
    "codec without projections": (
        codec_shapes(replace(CODEC_CONFIG, dim=32, codebook_dim=32, in_channels=544)),
        534,
        373_934,
        "7c5af2a77fb6ea60e23cf8c8f8309893369790acc7f1e51dd913b0ad3c7126de",
    ),
    "codec of other sizes": (
        codec_shapes(
            replace(
                CODEC_CONFIG,
                init_channel=2,
                num_layers=2,
                num_layers_2=3,
                codebook_size=32,
                attention_head_dim=12,
                res_kernel_size=5,
                delay_kernel_size=3,
                default_kernel_size=9,
            )
        ),
        568,
        702_835,
        "dacc749f625d3956681faf1d2d254414e0760db6f39e15add098ca273c2df828",
    ),
}


def n_weights(shapes):
    return sum(math.prod(shape) for shape in shapes.values())


@pytest.mark.parametrize(("shapes", "n_tensors", "total", "digest"), THEIRS.values(), ids=THEIRS)
def test_names_and_shapes_are_heartlibs(shapes, n_tensors, total, digest):
    assert (len(shapes), n_weights(shapes)) == (n_tensors, total)
    lines = sorted(f"{name} {list(shape)}" for name, shape in shapes.items())
    assert hashlib.sha256("\n".join(lines).encode()).hexdigest() == digest


def test_released_model_takes_the_published_size():
    assert round(4 * n_weights(OSS_3B) / 1e9, 2) == 15.75


def test_released_codec_takes_the_published_size():
    assert round(4 * n_weights(OSS_CODEC) / 1e9, 2) == 6.64


def test_codec_of_either_form_differs_in_the_flags_alone():
    old, new = codec_shapes(CodecConfig(), ()), codec_shapes(CodecConfig(), (1,))
    assert {name for name in new if new[name] != old[name]} == {name for name in new if name.endswith(FLAG)}


@pytest.mark.parametrize("flavour", FLAVOURS.values(), ids=FLAVOURS)
def test_flavours_heads_divide_its_width(flavour):
    assert flavour.width % flavour.heads == 0
    assert flavour.heads % flavour.kv_heads == 0
    assert flavour.width // flavour.heads % 2 == 0  # rotated in pairs


@pytest.mark.parametrize("kind", [MulaConfig, CodecConfig, GenerationConfig])
def test_what_a_file_leaves_out_has_heartlibs_default(kind):
    assert parse(kind, {"transformers_version": "4.57.0"}) == kind()


@pytest.mark.parametrize("config", [MulaConfig("llama-7B", "llama-400M"), CodecConfig(init_channel=8)])
def test_config_that_was_written_comes_back(config):
    assert parse(type(config), asdict(config)) == config


@pytest.mark.parametrize(
    ("kind", "settings", "why"),
    [
        (MulaConfig, {"backbone_flavor": "llama-13B"}, "backbone_flavor is 'llama-13B', known are llama-3B"),
        (MulaConfig, {"decoder_flavor": "tiny"}, "decoder_flavor is 'tiny'"),
        (MulaConfig, {"audio_vocab_size": "many"}, "audio_vocab_size is 'many', not a value like 8197"),
        (MulaConfig, {"audio_vocab_size": -1}, "audio_vocab_size is -1"),
        (MulaConfig, {"audio_vocab_size": True}, "audio_vocab_size is True"),
        (MulaConfig, {"backbone_flavor": ["llama-3B"]}, "backbone_flavor is"),
        (CodecConfig, {"upsample_factors": [5, 4, 4, 4, "3"]}, "upsample_factors is"),
        (CodecConfig, {"upsample_factors": 5}, "upsample_factors is 5"),
        (CodecConfig, {"num_samples": 1}, "num_samples is 1, supported is 2"),
        (
            CodecConfig,
            {"upsample_factors": [5, 4, 4, 4, 2]},
            "samples of a latent is 1280, supported is 1920",
        ),
        (CodecConfig, {"upsample_kernel_sizes": [10]}, r"upsample_kernel_sizes is \(10,\), supported is"),
        (
            CodecConfig,
            {"upsample_kernel_sizes": [10, 8, 8, 8, 7]},  # heartlib asserts that it is twice the factor
            r"upsample_kernel_sizes is \(10, 8, 8, 8, 7\), supported is \(10, 8, 8, 8, 6\)",
        ),
        (CodecConfig, {"downsample_factors": [10]}, "number of downsample_kernel_sizes is 5"),
        (CodecConfig, {"use_cosine_sim": True}, "use_cosine_sim is True"),
        (CodecConfig, {"norm_type": "layer_norm"}, "norm_type is 'layer_norm'"),
        (CodecConfig, {"out_channels": 128}, "out_channels is 128"),
        (CodecConfig, {"dim": 256}, "in_channels is 1024, supported is 768"),
        (CodecConfig, {"sample_rate": 44_100}, "sample_rate is 44100"),
    ],
)
def test_config_that_is_not_supported_says_why(kind, settings, why):
    with pytest.raises(ValueError, match=why):
        parse(kind, settings)
