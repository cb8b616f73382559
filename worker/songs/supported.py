"""Which MusicGen checkpoints the engine runs, judged by name and config.json.

That is before gigabytes are fetched and before a machine is rented. Does not import torch.
"""

import json
import re
from pathlib import Path

from worker.errors import BadInput

# What the engine assumes; it is true of every MusicGen, mono or stereo.
_ASSUMED = [
    ("decoder", "activation_function", "gelu"),
    ("decoder", "scale_embedding", False),
    ("audio_encoder", "model_type", "encodec"),
    ("audio_encoder", "audio_channels", 1),  # of a stereo MusicGen too: it decodes each channel as mono
]
_SUPPORTED = "supported are MusicGen checkpoints without melody, such as facebook/musicgen-medium"
# One of several repositories that a HeartMuLa is made of.
_PARTS = re.compile(r"heartmula/.*", re.I)
# Of Meta's own, those that need another input than text, or are another model.
_OTHERS = re.compile(r"facebook/(musicgen-.*(melody|style).*|audiogen-.*|magnet-.*|jasco-.*)", re.I)


def refuse_by_name(model: str) -> None:
    """Raises BadInput for a hub id that is known not to run."""
    if _PARTS.fullmatch(model):
        raise BadInput(f"{model} is only a part of what HeartMuLa needs; name the whole: heartmula")
    if _OTHERS.fullmatch(model):
        raise BadInput(f"model {model} is not supported; {_SUPPORTED}")


def refuse(model: str, cached: Path | None) -> None:
    """Raises BadInput for a model that is known not to run, by its name, folder or cached snapshot."""
    refuse_by_name(model)
    folder = Path(model).expanduser()
    if folder.is_dir():
        judge(read_config(folder), str(folder))
    elif cached:
        judge(read_config(cached), f"model {model}")


def read_config(folder: Path) -> object:
    """The checkpoint's config.json. Raises BadInput if it is not there or damaged."""
    path = folder / "config.json"
    try:
        return json.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        raise BadInput(f"{folder} is not a model folder: config.json is missing; check the path") from None
    except (ValueError, OSError):
        raise BadInput(f"{path} is damaged; fetch the model again") from None


def judge(config: object, model: str) -> None:
    """Raises BadInput unless the engine runs checkpoints with this config.json."""
    kind = config.get("model_type") if isinstance(config, dict) else None
    if kind in ("heartmula", "heartcodec"):
        raise BadInput(f"{model} is only a part of what HeartMuLa needs; name the folder that holds it")
    if kind != "musicgen" or not isinstance(config, dict):
        raise BadInput(f"{model} holds a {kind!r} model; {_SUPPORTED}")
    decoder, codec = config.get("decoder"), config.get("audio_encoder")
    if not isinstance(decoder, dict) or not isinstance(codec, dict):
        raise BadInput(f"{model}: config.json is damaged; fetch it again")
    for part, key, supported in _ASSUMED:
        if (found := config[part].get(key, supported)) != supported:
            raise BadInput(f"{model} has {part}.{key} {found!r}; only {supported!r} is supported")
    channels, n_codebooks = decoder.get("audio_channels", 1), decoder.get("num_codebooks", 4)
    if channels not in (1, 2) or n_codebooks % channels:
        raise BadInput(
            f"{model} has {channels} channels and {n_codebooks} codebooks; supported are 1 and 2 channels"
        )
    vocabulary, codebook = decoder.get("vocab_size", 2048), codec.get("codebook_size", 1024)
    if codebook < vocabulary:
        raise BadInput(
            f"{model} makes tokens up to {vocabulary}, and its codec knows {codebook}: "
            "decoder and audio_encoder do not belong together; fetch it again or use another"
        )
