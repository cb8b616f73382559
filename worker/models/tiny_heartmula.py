"""A tiny HeartMuLa with random weights, to rehearse everything except the music.

It has the files of a real checkpoint, in the real format: heartlib itself loads it, once it knows the two
flavours. It takes 2 MB, is built in a second, and is always the same. Its songs are noise, but noise
that depends on every token.
"""

import json
import math
import zlib
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save_file

from worker.models.heartmula_config import CodecConfig, GenerationConfig, MulaConfig
from worker.models.heartmula_shapes import FLAG, Shape, Shapes, codec_shapes, mula_shapes
from worker.models.heartmula_tree import CODEC, INDEX, MULA, SINGLE

_CODES = 64
_SPECIAL = ["<|begin_of_text|>", "<|end_of_text|>", "<tag>", "</tag>"]
_BYTES = 256

MULA_CONFIG = MulaConfig(
    backbone_flavor="rehearsal-backbone",
    decoder_flavor="rehearsal-depth",
    text_vocab_size=_BYTES + len(_SPECIAL),
    audio_vocab_size=_CODES,
)
CODEC_CONFIG = CodecConfig(
    dim=16,
    codebook_size=_CODES,
    codebook_dim=8,
    attention_head_dim=8,
    in_channels=2 * 256 + 16,
    num_attention_heads=2,
    num_layers=1,
    num_layers_2=1,
    init_channel=1,
)
# The codec's last layer, by how its tensors' names begin.
LAST = f"scalar_model.decoder.{len(CODEC_CONFIG.upsample_factors) + 2}."
# Embeddings, and the heads: peaked distributions, so that what is drawn depends on what came before.
_UNIT = (
    *("embeddings.weight", "embedding.weight", "embedding1", "_codebook.embed", "_codebook.embed_avg"),
    *("codebook0_head.weight", "audio_head"),
)
# No token ends a song, as none reaches the vocabulary's size: a song is as long as it was asked to be.
GENERATION = GenerationConfig(text_bos_id=_BYTES, text_eos_id=_BYTES + 1, audio_eos_id=_CODES)


def build(
    folder: Path,
    *,
    seed: int = 0,
    shards: int = 1,
    flag: Shape = (1,),
    mula: MulaConfig = MULA_CONFIG,
    codec: CodecConfig = CODEC_CONFIG,
) -> None:
    """Write the whole tree into `folder`, each model in so many `shards`; one is in memory at a time.

    `mula`, `codec`: other sizes than the rehearsal's.
    `flag`: how the codec's quantiser is stored, (1,) as in the release of 2026-01-23, () as before it.
    The same arguments give the same bytes.
    """
    folder.mkdir(parents=True, exist_ok=True)
    _write_json(folder / "gen_config.json", asdict(replace(GENERATION, audio_eos_id=codec.codebook_size)))
    _write_tokenizer(folder / "tokenizer.json")
    config = {"architectures": ["HeartMuLa"], "model_type": "heartmula", **asdict(mula)}
    _write_model(folder / MULA, config, mula_shapes(mula), seed, shards)
    config = {"architectures": ["HeartCodec"], "model_type": "heartcodec", **asdict(codec)}
    _write_model(folder / CODEC, config, codec_shapes(codec, flag), seed, shards)


def _write_model(folder: Path, config: dict[str, Any], shapes: Shapes, seed: int, shards: int) -> None:
    folder.mkdir(exist_ok=True)
    _write_json(folder / "config.json", config | {"dtype": "float32"})
    names = sorted(shapes)
    weight_map: dict[str, str] = {}
    total = 0
    for shard in range(shards):
        file = SINGLE if shards == 1 else f"model-{shard + 1:05}-of-{shards:05}.safetensors"
        part = names[len(names) * shard // shards : len(names) * (shard + 1) // shards]
        weights = {name: _weight(name, shapes[name], seed) for name in part}
        save_file(weights, folder / file, {"format": "pt"})  # transformers refuses a file without it
        weight_map |= dict.fromkeys(part, file)
        total += sum(each.nbytes for each in weights.values())
    if shards > 1:
        index = {"metadata": {"total_size": total}, "weight_map": weight_map}
        _write_json(folder / INDEX, index)


def _weight(name: str, shape: Shape, seed: int) -> NDArray[Any]:
    """Random, by name: of a size that hands on what comes in, neither fading nor exploding.

    heartlib's own first values, mostly of 0.02, vanish where the codec rounds its latents to ninths: every
    song would sound the same.
    """
    if name.endswith(FLAG):
        return np.ones(shape, bool if shape == () else np.float32)  # as the two versions have it
    if name.endswith("cluster_size"):
        return np.ones(shape, np.float32)
    of_name = zlib.crc32(name.removesuffix("_avg").encode())  # embed_avg is embed's own history: the same
    values = np.random.default_rng([seed, of_name]).standard_normal(shape, np.float32)
    if name.endswith(("norm.scale", "norm.weight")):
        return 1 + values / 10
    if name.endswith("original0"):  # weight norm: the length of each row of original1
        # A unit adds to what it is given; the last layer brings the audio to a loudness of songs.
        length = 0.5 if ".convs." in name else 0.02 if name.startswith(LAST) else 1.5
        return np.float32(length) * (1 + np.abs(values) / 10)
    if "activation" in name:
        return np.full(shape, 0.25, np.float32)
    if name.endswith("bias"):
        return values / (100 if "scalar_model" in name else 20)
    if name.endswith(_UNIT):
        return values
    return values / np.float32(math.prod(shape[1:]) ** 0.5)


def _write_tokenizer(path: Path) -> None:
    """A byte-level BPE without merges: every text is encoded, one token a byte."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers  # here: only the builder needs it

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={byte: n for n, byte in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(_SPECIAL)
    tokenizer.save(str(path))


def _write_json(path: Path, content: object) -> None:
    path.write_text(json.dumps(content, indent=2), "utf-8")
