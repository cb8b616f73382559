"""Small model sets as the hub has them: real configs, real headers, no sense in the weights."""

import json
import struct

from tests.fakes import hub as hubs

NAME = "demo/tiny"
CONFIG = json.dumps(
    {
        "model_type": "musicgen",
        "decoder": {"vocab_size": 64, "num_codebooks": 4, "audio_channels": 1},
        "audio_encoder": {"model_type": "encodec", "codebook_size": 64},
    }
).encode()


def weights(n_bytes: int, salt: int = 0) -> bytes:
    """A safetensors file with one tensor of so many bytes, which differ from place to place."""
    header = json.dumps({"w": {"dtype": "U8", "shape": [n_bytes], "data_offsets": [0, n_bytes]}}).encode()
    content = b"".join(struct.pack("<I", (i * 2654435761 + salt) % 2**32) for i in range(n_bytes // 4 + 1))
    return struct.pack("<Q", len(header)) + header + content[:n_bytes]


LARGE = weights(3_000_000)
FILES = {
    "config.json": CONFIG,
    "generation_config.json": b'{"a": 1}',
    "tokenizer.json": b'{"tokens": []}' * 1000,
    "model.safetensors": LARGE,
    "pytorch_model.bin": b"the same in another format",
    "README.md": b"# tiny",
}
NEEDED = {name: FILES[name] for name in FILES if name.endswith(("json", "safetensors"))}


def repos(name: str = NAME) -> dict[str, dict[str, bytes]]:
    return {name: dict(FILES)}


def env(hub: hubs.Hub, folder: object, **more: str) -> dict[str, str]:
    """What a worker's environment says that uses this hub and keeps its models in this folder."""
    return {"HF_ENDPOINT": hub.url, "MUSICGEN_MODELS_DIR": str(folder), "HF_HOME": f"{folder}/hf"} | more
